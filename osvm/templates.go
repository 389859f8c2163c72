package osvm

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm/guest"
	"mvm/osvm/link"
)

// Bounds of what is kept warm: templates, and the bytes that they have on disk.
const (
	templatesMax      = 16
	templatesMaxSize  = 4 << 30
	bootDefault       = 2 * time.Minute        // to the agent's answer, on a busy machine
	bootOfSystem      = 10 * time.Minute       // to that of a distribution, which without KVM starts for a minute or two
	settleLimit       = 3 * time.Minute        // for a distribution to have started all, once its agent answers
	templateRest      = 100 * time.Millisecond // its agent looks for a host often for twice as long
	templatesInMemory = 4
	lockPoll          = 5 * time.Millisecond
)

// templates are warm machines on disk, each made when it is first asked for.
// Folders: KEY is a whole template; KEY.lock is held while it is made.
type templates struct {
	folder string
	host   *Host

	mu    sync.Mutex  // guards known
	known []*Template // the last used first; those after some have nothing in memory
}

func newTemplates(folder string, host *Host) (*templates, error) {
	return &templates{folder: folder, host: host}, os.MkdirAll(folder, 0o700)
}

// find is the template of a key, whether it is there or not.
func (t *templates) find(key string) *Template {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := &Template{folder: filepath.Join(t.folder, key)}
	if i := slices.IndexFunc(t.known, func(known *Template) bool { return known.folder == found.folder }); i >= 0 {
		found = t.known[i]
		t.known = slices.Delete(t.known, i, i+1)
	}
	t.known = slices.Insert(t.known, 0, found)
	for len(t.known) > templatesInMemory {
		t.known[len(t.known)-1].forget()
		t.known = t.known[:len(t.known)-1]
	}
	return found
}

// key names the template that a machine can be a clone of: one of the same
// content, hardware, QEMU and accelerator, and made since this machine was booted:
// nobody waited until it was safely on a disk.
func (t *templates) key(spec Spec, digest string) (string, error) {
	q := t.host.config.QEMU
	machine, err := q.machine()
	if err != nil {
		return "", err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	text, err := json.Marshal([]any{string(boot), digest, q.Version, spec.Accelerator, spec.hardware(machine, descriptors{}, ""), spec.boot(descriptors{}), spec.Disks, spec.diskMiB()})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	return fmt.Sprintf("%x", sum[:16]), nil
}

// clone makes a machine out of the template that fits it. A template that no
// machine can be made of is made again, once.
func (t *templates) clone(ctx context.Context, spec Spec, digest string) (*Machine, error) {
	key, err := t.key(spec, digest)
	if err != nil {
		return nil, err
	}
	var failed error
	for range 2 {
		template, err := t.get(ctx, key, spec)
		if err != nil {
			return nil, fmt.Errorf("VM %s: %w", spec.ID, err)
		}
		generation := template.generation()
		clone := spec
		clone.Template = template
		m, err := t.host.create(ctx, clone)
		if err == nil {
			return m, nil
		}
		if failed = errors.Join(failed, err); ctx.Err() != nil || errors.Is(err, fs.ErrExist) {
			break
		}
		t.host.config.Log.Warnf("template %s of VM %s is made again: %v", key, spec.ID, err)
		if err := t.discard(ctx, template, generation); err != nil {
			return nil, errors.Join(failed, err)
		}
	}
	return nil, failed
}

// discard removes a template, unless another one has been made in its place.
func (t *templates) discard(ctx context.Context, template *Template, generation int64) error {
	lock, err := lockFile(ctx, template.folder+".lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	if template.generation() != generation {
		template.forget()
		return nil
	}
	return template.Remove()
}

// get finds a template or makes it; of all that want one, one makes it.
func (t *templates) get(ctx context.Context, key string, spec Spec) (*Template, error) {
	template := t.find(key)
	if template.there() {
		return template, nil
	}
	lock, err := lockFile(ctx, template.folder+".lock")
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if template.there() {
		return template, nil
	}
	if err := t.make(ctx, template, key, spec); err != nil {
		return nil, fmt.Errorf("make a template to clone it from: %w", err)
	}
	t.host.config.Log.Infof("template %s is made", key)
	t.trim(key)
	return template, nil
}

// make boots a machine and freezes it once its agent answers.
func (t *templates) make(ctx context.Context, template *Template, key string, spec Spec) error {
	limit := cmp.Or(t.host.config.Boot, bootDefault)
	if spec.Kernel == "" && t.host.config.Boot == 0 {
		limit = bootOfSystem
	}
	booting, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("its guest has not answered for %v since its boot began", limit))
	defer cancel()
	scratch := template.folder + ".new"
	if err := errors.Join(os.RemoveAll(scratch), template.Remove()); err != nil {
		return err
	}
	spec.ID, spec.Owner, spec.Segment, spec.Limits = templateID(key), "", nil, Limits{DiskMiB: spec.diskMiB()}
	began := time.Now()
	m, err := Create(booting, t.host.config.QEMU, t.host.machines, spec)
	if err != nil {
		return err
	}
	defer m.Destroy()
	// What the guest has done before, its clones do not do for the first time: it gets
	// an identity, as they will, and is left until it is at rest again.
	session, err := m.Start(booting, guest.Identity{})
	if err != nil {
		return m.Console().WithLastLine(err)
	}
	answered := time.Since(began)
	if spec.Kernel == "" {
		m.settle(ctx, session)
	}
	_ = session.Close()
	t.host.config.Log.Infof("template %s: its guest answered after %v, and was at rest after %v", key, answered, time.Since(began))
	select {
	case <-time.After(templateRest):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if _, err := m.Freeze(ctx, scratch); err != nil {
		return err
	}
	return os.Rename(scratch, template.folder)
}

// settle waits until a distribution has started all that it starts, so that no clone
// goes on with that. Where it cannot be asked, or does not come to an end, it is frozen
// as it is.
func (m *Machine) settle(ctx context.Context, session *link.Session) {
	ctx, cancel := context.WithTimeout(ctx, settleLimit)
	defer cancel()
	question := guest.Command{Words: []string{"/bin/systemctl", "is-system-running", "--wait"}, Limit: settleLimit}
	_ = call(ctx, session, "Run", question, &guest.Output{})
}

// templateID names the machine that becomes a template; others never have it.
func templateID(key string) string {
	return templatePrefix + key[:8] + "." + strings.ToLower(rand.Text()[:8])
}

const templatePrefix = "template."

func isTemplate(id string) bool { return strings.HasPrefix(id, templatePrefix) }

// trim removes what was not used for longest, until the rest is within bounds.
func (t *templates) trim(but string) {
	entries, _ := os.ReadDir(t.folder)
	type kept struct {
		path string
		used time.Time
		size int64
	}
	var all []kept
	var size int64
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !e.IsDir() || strings.Contains(e.Name(), ".") {
			continue
		}
		one := &Template{folder: filepath.Join(t.folder, e.Name())}
		k := kept{one.folder, info.ModTime(), one.size()}
		size += k.size
		all = append(all, k)
	}
	for len(all) > templatesMax || size > templatesMaxSize {
		oldest := -1
		for i, k := range all {
			if filepath.Base(k.path) != but && (oldest < 0 || k.used.Before(all[oldest].used)) {
				oldest = i
			}
		}
		if oldest < 0 {
			return
		}
		_ = os.RemoveAll(all[oldest].path)
		size -= all[oldest].size
		all = append(all[:oldest], all[oldest+1:]...)
	}
}

// lockFile waits until this one has the lock, which ends with the file, also when
// this process is killed.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	for {
		file, err := lockNow(path)
		if !errors.Is(err, errLocked) {
			return file, err
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}

var errLocked = errors.New("another process has it")

func lockNow(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		return file, nil
	}
	_ = file.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errLocked
	}
	return nil, fmt.Errorf("lock %s: %w", path, err)
}
