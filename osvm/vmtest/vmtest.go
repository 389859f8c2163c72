// Package vmtest gives tests OS-level VMs: the minimal image, made once and kept
// on disk for all packages and runs, and hosts whose machines begin as clones of
// templates that are kept there too, so that a cold boot is rare.
//
// What always holds: without QEMU, or without the packages that the image is made
// of, the test is skipped and says so; no machine outlives its test, and a test
// that forgot to destroy one fails.
//
// It must never be used by anything but tests.
package vmtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
)

// Limit is how long anything about a machine may take in a test: far above what
// it does take, because the tests' machine is busy.
const Limit = 2 * time.Minute

// making is how long the image may take to be fetched and made, beside other work
// too: without it every test of machines is skipped.
const making = 8 * time.Minute

// imagesMax is how many images are kept: each change of the agent makes a new
// one, and several checkouts may be at work.
const imagesMax = 12

// agent is the package of PID 1.
const agent = "mvm/osvm/guest/agent"

// QEMU finds the one that is installed; without one the test is skipped.
func QEMU(t testing.TB) osvm.QEMU {
	t.Helper()
	q, err := osvm.Probe(t.Context())
	if err != nil {
		t.Skip("SKIPPED: no OS-level VM was started: ", err, ": make setup installs it")
	}
	return q
}

// Image is the minimal image, made where it was not made before.
func Image(t testing.TB) osvm.Image {
	t.Helper()
	image, err := minimal()
	if err != nil {
		t.Skip("SKIPPED: no OS-level VM was started: ", err)
	}
	return image
}

// asNodeMiB is the least memory of the image as Folder has it, whose guests are
// nodes: as osvm.BuildMinimal reckons it, within some MiB.
const asNodeMiB = 128

// Folder is the minimal image in a folder, as `mvm image push` takes it.
func Folder(t testing.TB) string {
	t.Helper()
	i, folder := Image(t), t.TempDir()
	var files []string
	for _, f := range []struct{ part, path string }{{"kernel", i.Kernel}, {"initrd", i.Initrd}} {
		content, err := os.ReadFile(f.path)
		if err == nil {
			err = os.Symlink(f.path, filepath.Join(folder, f.part))
		}
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, fmt.Sprintf("    {\n      \"part\": %q,\n      \"digest\": \"sha256:%x\",\n      \"size\": %d\n    }", f.part, sha256.Sum256(content), len(content)))
	}
	// Word for word as package services/image writes it: else it would not be taken.
	manifest := fmt.Sprintf("{\n  \"format\": \"mvm-image-1\",\n  \"name\": \"minimal\",\n  \"architecture\": %q,\n  \"leastMemory\": %d,\n  \"files\": [\n%s\n  ]\n}\n",
		runtime.GOARCH, asNodeMiB, strings.Join(files, ",\n"))
	if err := os.WriteFile(filepath.Join(folder, "manifest.json"), []byte(manifest), 0o644); err != nil {
		t.Fatal(err)
	}
	return folder
}

// Agent is the program that is PID 1 of the minimal image, and is put into others.
func Agent(t testing.TB) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Limit)
	defer cancel()
	content, err := built(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// built is the agent, made in a folder.
func built(ctx context.Context, dir string) ([]byte, error) {
	program := filepath.Join(dir, "agent")
	if err := build(ctx, program, agent); err != nil {
		return nil, err
	}
	return os.ReadFile(program)
}

// minimal is asked once a process: linking the agent takes longer than a clone.
var minimal = sync.OnceValues(func() (image osvm.Image, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), making)
	defer cancel()
	kept, err := kept()
	if err != nil {
		return image, err
	}
	scratch, err := os.MkdirTemp(kept, "making.")
	if err != nil {
		return image, err
	}
	defer os.RemoveAll(scratch)
	content, err := built(ctx, scratch)
	if err != nil {
		return image, err
	}
	listed, err := exec.CommandContext(ctx, "go", "list", "-f", "{{.Dir}}", "mvm/osvm").Output()
	if err != nil {
		return image, fmt.Errorf("go list: %w", err)
	}
	root := strings.TrimSpace(string(listed))
	client := os.DirFS(filepath.Join(root, "..", "queuevm", "c"))
	digest, err := digestOf(ctx, content, os.DirFS(root), client)
	if err != nil {
		return image, err
	}
	folder := filepath.Join(kept, "image-"+digest)
	image = osvm.Image{
		Digest: "sha256:" + digest, Kernel: filepath.Join(folder, "kernel"), Initrd: filepath.Join(folder, "initrd"),
		LeastMemoryMiB: osvm.LeastMemoryMiB,
	}
	lock, err := lock(ctx, folder+".lock")
	if err != nil {
		return image, err
	}
	defer lock.Close()
	now := time.Now()
	if os.Chtimes(folder, now, now) == nil {
		return image, nil
	}
	made := filepath.Join(scratch, "image")
	if err := os.Mkdir(made, 0o755); err != nil {
		return image, err
	}
	if _, err := osvm.BuildMinimal(ctx, made, content, client); err != nil {
		return image, err
	}
	if err := os.Rename(made, folder); err != nil {
		return image, err
	}
	return image, trim(kept)
})

// digestOf names what an image is made of: the agent, Debian's newest kernel, the
// C client, and the program that makes it.
func digestOf(ctx context.Context, agent []byte, maker, client fs.FS) (string, error) {
	sum := sha256.New()
	sum.Write(agent)
	packages, _ := exec.CommandContext(ctx, "apt-cache", "depends", "linux-image-cloud-amd64").Output() // where it fails, building says why
	sum.Write(packages)
	for _, of := range []struct {
		files fs.FS
		names []string
	}{{maker, []string{"image.go", "packages.go", "toolchain.go", "kernel.go", "cpio.go"}}, {client, []string{"mvm.c", "mvm.h", "collective.c"}}} {
		for _, name := range of.names {
			text, err := fs.ReadFile(of.files, name)
			if err != nil {
				return "", err
			}
			sum.Write(text)
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

// kept is the folder for what outlives a test.
func kept() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	folder := filepath.Join(cache, "mvm-test")
	return folder, os.MkdirAll(folder, 0o700)
}

// trim removes the images that were not used for longest.
func trim(folder string) error {
	names, err := filepath.Glob(filepath.Join(folder, "image-*"))
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return filepath.Ext(name) != "" })
	slices.SortFunc(names, func(a, b string) int { return used(b).Compare(used(a)) })
	for _, name := range names[min(len(names), imagesMax):] {
		err = errors.Join(err, os.RemoveAll(name))
	}
	return err
}

func used(path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// lock waits for a lock, which ends with the file or the process.
func lock(ctx context.Context, path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			_ = file.Close()
			return nil, fmt.Errorf("another test has %s for %v", path, Limit)
		}
	}
	return file, nil
}

// Templates is the folder of templates that all tests share.
func Templates(t testing.TB) string {
	t.Helper()
	folder, err := kept()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, "templates")
}

// Host is a host of VMs without KVM in a folder of its own. When the test ends it
// has no machine left, or the test fails and they are destroyed.
func Host(t testing.TB) *osvm.Host {
	t.Helper()
	return HostIn(t, t.TempDir())
}

// HostIn is Host in a folder where there may be machines already.
func HostIn(t testing.TB, folder string) *osvm.Host {
	t.Helper()
	h, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: folder, Templates: Templates(t), QEMU: QEMU(t), Accelerator: osvm.TCG})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range h.List() {
			t.Errorf("the test leaves the VM %s, %s", m.ID, m.State())
			_ = m.Destroy()
		}
		_ = h.Close()
	})
	return h
}

// Machine is a machine of 128 MiB of the minimal image: a clone that was not
// started yet, and that is destroyed when the test ends.
func Machine(t testing.TB, h *osvm.Host, id string) *osvm.Machine {
	t.Helper()
	return MachineOf(t, h, osvm.Order{ID: id, Image: Image(t), MemoryMiB: 128, Template: true})
}

// MachineOf is a machine as ordered, which is destroyed when the test ends.
func MachineOf(t testing.TB, h *osvm.Host, order osvm.Order) *osvm.Machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Limit)
	defer cancel()
	m, err := h.Create(ctx, order)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Destroy() })
	return m
}

// Start starts a machine, and gives a session with its agent.
func Start(t testing.TB, m *osvm.Machine) *link.Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Limit)
	defer cancel()
	session, err := m.Start(ctx, guest.Identity{})
	if err != nil {
		const lastWords = time.Second // of a QEMU that has hung up
		select {
		case <-m.Ended():
			err = errors.Join(err, m.Reason())
		case <-time.After(lastWords):
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

// Call asks the guest's agent. It may be called from any goroutine of a test,
// which it ends when it fails.
func Call[Answer any](t testing.TB, session *link.Session, method string, question any) Answer {
	t.Helper()
	var answer Answer
	conn, err := session.Agent(context.Background())
	if err != nil {
		t.Errorf("%s: %v", method, err)
		runtime.Goexit()
	}
	_ = conn.SetDeadline(time.Now().Add(Limit))
	client := guest.Client(conn)
	defer client.Close()
	if err := client.Call("Agent."+method, question, &answer); err != nil {
		t.Errorf("%s: %v", method, err)
		runtime.Goexit()
	}
	return answer
}
