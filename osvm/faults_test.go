package osvm_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	logrustest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/osvm/vmtest"
)

// TestKilledMachine has QEMU killed from outside: the machine is listed with the
// reason, answers nothing, and can be removed.
func TestKilledMachine(t *testing.T) {
	folder := filepath.Join(t.TempDir(), strings.Repeat("longer than the path of a socket", 4))
	h := vmtest.HostIn(t, folder)
	m := vmtest.Machine(t, h, "one")
	agent := vmtest.Start(t, m)
	groups := m.Groups()
	if err := unix.Kill(m.PID(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-m.Ended()
	if m.State() != osvm.Ended || !strings.Contains(m.Reason().Error(), "killed") {
		t.Errorf("it is %s: %v", m.State(), m.Reason())
	}
	if all := h.List(); len(all) != 1 || all[0] != m {
		t.Errorf("listed: %v", all)
	}
	for what, err := range map[string]error{"resumed": m.Resume(t.Context()), "suspended": m.Suspend(t.Context())} {
		if err == nil {
			t.Errorf("%s after its end", what)
		}
	}
	if _, err := m.Statistics(t.Context()); err == nil {
		t.Error("it has statistics after its end")
	}
	<-agent.Ended()
	if err := m.Destroy(); err != nil {
		t.Error(err)
	}
	left, err := os.ReadDir(filepath.Join(folder, "machines"))
	if err != nil || len(left) > 0 || len(h.List()) > 0 {
		t.Errorf("left: %v, %v, %v", left, h.List(), err)
	}
	for _, group := range groups {
		if _, err := os.Stat(group); err == nil {
			t.Errorf("the control group %s is left", group)
		}
	}
}

// TestGuestThatPanics has a kernel that finds nothing to run, as a template and by
// itself: both say so at once, and nothing is left.
func TestGuestThatPanics(t *testing.T) {
	folder, image := t.TempDir(), vmtest.Image(t)
	h, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: folder, QEMU: vmtest.QEMU(t), Accelerator: osvm.TCG})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	image.CommandLine = "rdinit=/none"
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	_, err = h.Create(ctx, osvm.Order{ID: "one", Image: image, MemoryMiB: 128, Template: true})
	if err == nil || !strings.Contains(err.Error(), "Kernel panic - not syncing") {
		t.Errorf("a template whose kernel panics: %v", err)
	}
	t.Log(err)
	for _, name := range []string{"machines", "templates"} {
		entries, err := os.ReadDir(filepath.Join(folder, name))
		for _, e := range entries {
			if filepath.Ext(e.Name()) != ".lock" {
				t.Errorf("left: %s in %s, %v", e.Name(), name, err)
			}
		}
	}
	if len(h.List()) > 0 {
		t.Errorf("listed: %v", h.List())
	}
}

// TestGuestThatHangs has a guest that never answers: who waits gives up in time.
func TestGuestThatHangs(t *testing.T) {
	h := vmtest.Host(t)
	m := vmtest.Machine(t, h, "one") // its processors stand still
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, _, err := m.Session(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a guest that hangs: %v", err)
	}
	if agent := vmtest.Start(t, m); vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{}).Hostname != "one" {
		t.Error("it is another one, once it runs")
	}
}

// TestGuestThatFloods has a guest that sends without end what nobody reads, and
// writes without end to its console: it costs the host a bounded memory, and other
// machines do not notice.
func TestGuestThatFloods(t *testing.T) {
	h := vmtest.Host(t)
	one, two := vmtest.Machine(t, h, "one"), vmtest.Machine(t, h, "two")
	floods, other := vmtest.Start(t, one), vmtest.Start(t, two)
	out := shell(t, floods, `busybox ifconfig lo 127.0.0.1 up
(busybox yes >/dev/console 2>&1 &)
busybox nc -ll -p 9000 -e busybox cat /dev/zero >/dev/null 2>&1 </dev/null & sleep 0`)
	if out.Status != 0 {
		t.Fatalf("%+v", out)
	}
	outside, err := link.NewOutside(link.OutsideConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	go outside.Serve(floods)
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	heap := func() uint64 {
		var now runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&now)
		return now.HeapAlloc
	}
	before := heap()
	const floodings = 8
	for range floodings {
		var conn net.Conn
		eventually(t, "the guest's program sends", func() bool {
			if conn, err = outside.Port(ctx, 9000); err != nil {
				t.Fatal(err)
			}
			_, err = io.ReadFull(conn, make([]byte, 4096))
			return err == nil
		})
		defer conn.Close()
	}
	begin := time.Now()
	for i := range 10 {
		if got := shell(t, other, "echo $((6*7))"); got.Said != "42\n" {
			t.Fatalf("beside a flood, time %d: %+v", i, got)
		}
	}
	t.Logf("10 answers of the other guest in %v", time.Since(begin))
	if got := shell(t, floods, "echo $((6*7))"); got.Said != "42\n" {
		t.Errorf("in the flood: %+v", got)
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("the flood costs the host %d bytes", grown)
	}
	if last := one.Console().Last(); len(last) < 10<<10 {
		t.Errorf("the console has %d bytes of the flood", len(last))
	}
}

// TestQEMUThatIsNone has no machine and nothing left of it.
func TestQEMUThatIsNone(t *testing.T) {
	folder := t.TempDir()
	h, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: folder, QEMU: osvm.QEMU{Path: filepath.Join(folder, "qemu"), Version: "7.2.0"}, Accelerator: osvm.TCG})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	file := filepath.Join(folder, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = h.Create(t.Context(), osvm.Order{ID: "one", Image: osvm.Image{Kernel: file, Initrd: file}})
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without QEMU: %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(folder, "machines")); len(left) > 0 || len(h.List()) > 0 {
		t.Errorf("left: %v, %v", left, h.List())
	}
}

// TestFullDisk has a disk without room for a machine's memory, or for a template.
func TestFullDisk(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=150m"); err != nil {
		t.Skip("SKIPPED: full disks were not tried: no file system can be mounted here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	h := vmtest.HostIn(t, disk)
	order := osvm.Order{ID: "one", Image: vmtest.Image(t), MemoryMiB: 256}
	if _, err := h.Create(t.Context(), order); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("256 MiB on a disk of 150: %v", err)
	}
	nothing := func() {
		t.Helper()
		if left, _ := os.ReadDir(filepath.Join(disk, "machines")); len(left) > 0 || len(h.List()) > 0 {
			t.Errorf("left: %v, %v", left, h.List())
		}
	}
	nothing()
	order.MemoryMiB = 128
	m, err := h.Create(t.Context(), order)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Destroy()
	fill := filepath.Join(disk, "fill")
	if err := os.WriteFile(fill, make([]byte, 30<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the disk is not full: %v", err)
	}
	if _, err := m.Freeze(t.Context(), filepath.Join(disk, "template")); err == nil {
		t.Error("frozen on a full disk")
	} else {
		t.Log(err)
	}
	if _, err := os.Stat(filepath.Join(disk, "template")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a template is left: %v", err)
	}
	order.ID = "two"
	if _, err := h.Create(t.Context(), order); err == nil {
		t.Error("created on a full disk")
	}
	if err := m.Destroy(); err != nil {
		t.Error(err)
	}
	nothing()
}

// TestSpoiledTemplate has four machines wanted at once of a template that is
// damaged: it is made again, once.
func TestSpoiledTemplate(t *testing.T) {
	folder := t.TempDir()
	log, logged := logrustest.NewNullLogger()
	h, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: folder, QEMU: vmtest.QEMU(t), Accelerator: osvm.TCG, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	order := func(id string) osvm.Order {
		return osvm.Order{ID: id, Image: vmtest.Image(t), MemoryMiB: 128, Template: true}
	}
	// What is there is a shared one's copy, without the end of its devices' state.
	vmtest.Machine(t, vmtest.Host(t), "one")
	key := h.TemplateKey(order("any"))
	there, spoiled := filepath.Join(vmtest.Templates(t), key), filepath.Join(folder, "templates", key)
	if err := os.Mkdir(spoiled, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(there, "memory"), filepath.Join(spoiled, "memory")); err != nil {
		if err := copyFile(filepath.Join(spoiled, "memory"), filepath.Join(there, "memory")); err != nil {
			t.Fatal(err)
		}
	}
	state, err := os.ReadFile(filepath.Join(there, "state"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(spoiled, "state"), state[:len(state)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	var group sync.WaitGroup
	for _, id := range []string{"a", "b", "c", "d"} {
		group.Go(func() {
			m, err := h.Create(ctx, order(id))
			if err != nil {
				t.Error(err)
				return
			}
			defer m.Destroy()
			agent, err := m.Start(ctx, guest.Identity{})
			if err != nil {
				t.Error(err)
				return
			}
			defer agent.Close()
			if vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{}).Hostname != id {
				t.Errorf("%s is another", id)
			}
		})
	}
	group.Wait()
	made := 0
	for _, entry := range logged.AllEntries() {
		if entry.Level == logrus.InfoLevel && strings.HasSuffix(entry.Message, "is made") {
			made++
		}
	}
	if made != 1 {
		t.Errorf("the template was made %d times", made)
	}
}

// TestDiskFullUnderARunningGuest fills the disk that has what guests write to theirs:
// they stand still, with nothing lost. One goes on by itself when there is room, also
// for a node that begins anew; another one moves to where there is some.
func TestDiskFullUnderARunningGuest(t *testing.T) {
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=200m"); err != nil {
		t.Skip("SKIPPED: full disks were not tried: no file system can be mounted here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	image, fill := vmtest.DiskPatterns(t), filepath.Join(disk, "fill")
	open := func() *osvm.Host {
		h, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: disk, Templates: vmtest.Templates(t), QEMU: vmtest.QEMU(t), Accelerator: osvm.TCG})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := open()
	defer func() {
		for _, m := range h.List() {
			_ = m.Destroy()
		}
		_ = h.Close()
	}()
	stalls := func(m *osvm.Machine, stands bool) {
		t.Helper()
		for deadline := time.Now().Add(vmtest.Limit); m.Stalled() != stands; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("VM %s is %s, and that it stands still for want of room is not %v", m.ID, m.State(), stands)
			}
		}
	}
	begin := func(id string) *osvm.Machine {
		t.Helper()
		m, err := h.Create(t.Context(), osvm.Order{ID: id, Image: image, MemoryMiB: 160, Template: true})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(fill, make([]byte, 200<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
		if err := m.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
		stalls(m, true)
		return m
	}
	well := func(m *osvm.Machine) {
		t.Helper()
		vmtest.Rest(t, m)
		if _, bad := vmtest.Verified(t, m); bad != 0 || m.State() != osvm.Running {
			t.Errorf("VM %s is %s, and %d of its pages or blocks are bad", m.ID, m.State(), bad)
		}
	}

	m := begin("waits")
	if _, err := m.Capture(t.Context()); !errors.Is(err, osvm.ErrStalled) {
		t.Errorf("its state is taken: %v", err)
	}
	if err := m.Resume(t.Context()); err != nil { // which finds no room
		t.Error(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	h = open()
	m, err := h.Get("waits")
	if err != nil {
		t.Fatalf("a node that begins anew does not have it: %v", err)
	}
	stalls(m, true)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	stalls(m, false)
	well(m)

	m = begin("moves")
	other := vmtest.Host(t)
	for err = error(unix.ENOSPC); errors.Is(err, unix.ENOSPC); { // room for a note of the move, which what the guest writes may be quicker to take
		info, failed := os.Stat(fill)
		if failed == nil {
			failed = os.Truncate(fill, info.Size()-16<<10)
		}
		if failed != nil {
			t.Fatal(failed)
		}
		stalls(m, true)
		near, far := pipe(t)
		arrived := make(chan error, 1)
		go func() {
			_, err := other.MigrateFrom(t.Context(), far, admit(image))
			arrived <- err
		}()
		_, err = h.MigrateTo(t.Context(), "moves", near, osvm.Migration{})
		if there := <-arrived; err == nil {
			err = there
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if m, err = other.Get("moves"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Destroy() }()
	well(m)
}
