package osvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// HostConfig says what a Host has.
type HostConfig struct {
	Dir         string // where the machines are; of one Host at a time
	Templates   string // where warm templates are, "" for a place in Dir; hosts may share it
	QEMU        QEMU
	Accelerator Accelerator    // as wanted: Auto, KVM or TCG
	Log         *logrus.Logger // nil is none

	// Boot is how long a guest may take from the start of its boot until its agent
	// answers; 0 is bootDefault, or bootOfSystem where it starts from its disk.
	Boot time.Duration

	// Pass is told of each of MigrationPoints as it is passed; nil is nobody. It is
	// for tests, which end something there.
	Pass func(point string)
}

// Host is the VMs of one node. All methods may be called from any goroutine.
type Host struct {
	config      HostConfig
	accelerator Accelerator
	lock        *os.File // of the folder
	machines    string   // folder
	templates   *templates
	places      chan struct{} // of those that are being created

	mu    sync.Mutex          // guards what follows
	all   map[string]*Machine // by id; nil while it is being created
	moves map[string]*move    // by id: migrations that are not over, or whose other side may ask yet
}

// Errors of a Host's machines, to be told apart.
var (
	ErrExists  = errors.New("there is a VM of that name already")
	ErrUnknown = errors.New("there is no VM of that name")
)

// Order is a machine as a Host is asked for it.
type Order struct {
	ID        string
	Image     Image
	MemoryMiB int    // 0 is the image's least
	Owner     string // the attempt that it is for; "" is a person's
	Limits    Limits
	Network   bool     // it has a network card
	Segment   *Segment // where that belongs

	// Template has it begin as a clone of a warm template, which is made first
	// where there is none. It needs the image's digest.
	Template bool
}

// NewHost takes a folder's machines over and removes those that it cannot.
func NewHost(ctx context.Context, config HostConfig) (*Host, error) {
	accelerator, against, err := Choose(config.Accelerator)
	if err != nil {
		return nil, err
	}
	if config.Log == nil {
		config.Log = logrus.New()
		config.Log.SetOutput(io.Discard)
	}
	if against != nil {
		config.Log.Infof("VMs run by translation: %v", against)
	}
	h := &Host{config: config, accelerator: accelerator, machines: filepath.Join(config.Dir, "machines"), all: map[string]*Machine{}, moves: map[string]*move{},
		places: make(chan struct{}, runtime.GOMAXPROCS(0))}
	if err := os.MkdirAll(h.machines, 0o700); err != nil {
		return nil, err
	}
	if h.lock, err = lockNow(filepath.Join(config.Dir, "lock")); err != nil {
		return nil, fmt.Errorf("the VMs in %s: %w", config.Dir, err)
	}
	if err := errors.Join(h.loadMoves(), h.takeOver(ctx)); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.recoverMoves(ctx)
	if h.templates, err = newTemplates(cmp.Or(config.Templates, filepath.Join(config.Dir, "templates")), h); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Accelerator is what its machines run with.
func (h *Host) Accelerator() Accelerator { return h.accelerator }

// Create makes a machine, whose processors stand still until it is resumed.
func (h *Host) Create(ctx context.Context, order Order) (*Machine, error) {
	if order.Template && order.Image.Digest == "" {
		return nil, fmt.Errorf("VM %s: its image has no digest by which a template is found", order.ID)
	}
	return h.add(order, func(spec Spec) (*Machine, error) {
		if !order.Template {
			return h.create(ctx, spec)
		}
		return h.templates.clone(ctx, spec, order.Image.Digest)
	})
}

// create is Create in its turn: QEMU's start is processor time alone, and of twenty
// that share the cores all are ready when the last is. One after the other, the half
// of them are in half the time.
func (h *Host) create(ctx context.Context, spec Spec) (*Machine, error) {
	select {
	case h.places <- struct{}{}:
		defer func() { <-h.places }()
		return Create(ctx, h.config.QEMU, h.machines, spec)
	case <-ctx.Done():
		return nil, fmt.Errorf("VM %s: wait for its turn to be created: %w", spec.ID, context.Cause(ctx))
	}
}

// add puts the machine that create makes on the list.
func (h *Host) add(order Order, create func(Spec) (*Machine, error)) (*Machine, error) {
	spec := Spec{
		ID: order.ID, Kernel: order.Image.Kernel, Initrd: order.Image.Initrd, CommandLine: order.Image.CommandLine, Disks: order.Image.Disks,
		MemoryMiB: cmp.Or(order.MemoryMiB, order.Image.LeastMemoryMiB, LeastMemoryMiB), Accelerator: h.accelerator, Owner: order.Owner, Limits: order.Limits, Network: order.Network, Segment: order.Segment,
		ImageName: order.Image.Name, ImageDigest: order.Image.Digest, Created: time.Now().UTC(),
	}
	if spec.MemoryMiB < order.Image.LeastMemoryMiB {
		return nil, fmt.Errorf("VM %s: %w: its image needs %d MiB of memory, and it is to have %d", order.ID, ErrOrder, order.Image.LeastMemoryMiB, spec.MemoryMiB)
	}
	if err := spec.check(); err != nil {
		return nil, err
	}
	if isTemplate(spec.ID) {
		return nil, fmt.Errorf("VM %s: names that begin with %q are for what becomes a template", spec.ID, templatePrefix)
	}
	return h.enter(order.ID, func() (*Machine, error) { return create(spec) })
}

// enter makes a machine, whose id nobody else gets meanwhile.
func (h *Host) enter(id string, make func() (*Machine, error)) (*Machine, error) {
	h.mu.Lock()
	if _, there := h.all[id]; there {
		h.mu.Unlock()
		return nil, fmt.Errorf("VM %s: %w", id, ErrExists)
	}
	h.all[id] = nil
	h.mu.Unlock()
	m, err := make()
	if err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.all, id)
		return nil, err
	}
	h.keep(m)
	return m, nil
}

// keep has a machine be found, until it is destroyed.
func (h *Host) keep(m *Machine) {
	m.destroyed = func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.all[m.ID] == m {
			delete(h.all, m.ID)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all[m.ID] = m
}

// Get finds a machine by its id. The error is ErrUnknown where there is none.
func (h *Host) Get(id string) (*Machine, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.all[id]; m != nil {
		return m, nil
	}
	return nil, fmt.Errorf("VM %s: %w", id, ErrUnknown)
}

// List is all machines, also those that have ended and were not destroyed yet,
// by id.
func (h *Host) List() []*Machine {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*Machine
	for _, id := range slices.Sorted(maps.Keys(h.all)) {
		if m := h.all[id]; m != nil {
			list = append(list, m)
		}
	}
	return list
}

// Close lets go of all machines, which run on: another Host of the folder
// adopts them.
func (h *Host) Close() error {
	for _, m := range h.List() {
		m.letGo()
	}
	return h.lock.Close()
}
