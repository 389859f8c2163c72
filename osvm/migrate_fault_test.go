package osvm_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/vmtest"
)

// couple is two hosts with one machine between them.
type couple struct {
	hosts   [2]*osvm.Host
	folders [2]string
	image   osvm.Image
	at      int // which has the machine
	test    *testing.T
}

const wanderer = "wanderer"

func newCouple(t *testing.T) *couple {
	c := &couple{image: vmtest.DiskPatterns(t), test: t}
	for i := range c.hosts {
		c.folders[i] = t.TempDir()
		c.again(t, i)
	}
	t.Cleanup(func() {
		for _, h := range c.hosts {
			for _, m := range h.List() {
				_ = m.Destroy()
			}
		}
	})
	c.fresh(t)
	return c
}

// fresh makes the machine anew.
func (c *couple) fresh(t *testing.T) {
	t.Helper()
	m, err := c.hosts[0].Create(t.Context(), osvm.Order{ID: wanderer, Image: c.image, MemoryMiB: 160, Template: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	vmtest.Rest(t, m)
	c.at = 0
}

// again has a host's place taken by another one, as after the end of its node.
func (c *couple) again(t *testing.T, i int) {
	t.Helper()
	h, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: c.folders[i], Templates: vmtest.Templates(t), QEMU: vmtest.QEMU(t), Accelerator: osvm.TCG})
	if err != nil {
		t.Fatal(err)
	}
	c.test.Cleanup(func() { _ = h.Close() })
	c.hosts[i] = h
}

// settle asks after what is in doubt, as nodes do.
func (c *couple) settle(t *testing.T) {
	t.Helper()
	source, target := c.hosts[c.at], c.hosts[1-c.at]
	for _, doubt := range source.Doubts() {
		if m, err := source.Get(doubt.Machine); err == nil && m.State() != osvm.Ended {
			if err := m.Resume(t.Context()); !errors.Is(err, osvm.ErrClaimed) {
				t.Errorf("in doubt it is resumed: %v", err)
			}
		}
		if err := source.Settle(t.Context(), doubt.ID, target.Outcome(doubt.ID)); err != nil {
			t.Error(err)
		}
		target.Settled(doubt.ID)
	}
}

// one finds the machine, which only one host may have, and of which nothing else
// may be left.
func (c *couple) one(t *testing.T) *osvm.Machine {
	t.Helper()
	var found []int
	for i, h := range c.hosts {
		_, err := h.Get(wanderer)
		if err == nil {
			found = append(found, i)
		}
		left, _ := os.ReadDir(filepath.Join(c.folders[i], "machines"))
		if (len(left) != 0) != (err == nil) {
			t.Errorf("host %d has the folders %v", i, left)
		}
		if len(h.Doubts()) != 0 {
			t.Errorf("host %d is in doubt: %v", i, h.Doubts())
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d hosts have the machine", len(found))
	}
	c.at = found[0]
	m, err := c.hosts[c.at].Get(wanderer)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// well holds that the machine runs and has lost nothing.
func (c *couple) well(t *testing.T, m *osvm.Machine) {
	t.Helper()
	if m.State() != osvm.Running {
		t.Fatalf("the machine is %s: %v", m.State(), m.Reason())
	}
	if _, bad := vmtest.Verified(t, m); bad != 0 {
		t.Fatalf("%d pages are bad", bad)
	}
}

// move runs a migration and returns what each side said.
func (c *couple) move(t *testing.T, near, far net.Conn) (source, target error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := c.hosts[1-c.at].MigrateFrom(ctx, far, admit(c.image))
		done <- err
	}()
	_, source = c.hosts[c.at].MigrateTo(ctx, wanderer, near, osvm.Migration{})
	return source, <-done
}

// faultPoints are all points, or where no soak is wanted those that matter most.
func faultPoints() (source, target []string) {
	if os.Getenv("MVM_SOAK") != "" {
		return osvm.MigrationPoints()
	}
	return []string{"standing", "offered", "committed", "destroyed"}, []string{"first page", "loaded", "taking"}
}

// TestMigrationCut cuts the connection at each point: the machine runs on, on one
// host.
func TestMigrationCut(t *testing.T) {
	c := newCouple(t)
	ours, theirs := faultPoints()
	for i, point := range slices.Concat(ours, theirs) {
		t.Run(point, func(t *testing.T) {
			near, far := pipe(t)
			side := c.hosts[c.at]
			if i >= len(ours) {
				side = c.hosts[1-c.at]
			}
			cut := false
			side.PassPoints(func(at string) {
				if at == point {
					cut = true
					_ = near.Close()
					_ = far.Close()
				}
			})
			source, target := c.move(t, near, far)
			side.PassPoints(nil)
			t.Logf("source: %v; target: %v", source, target)
			if !cut {
				t.Fatal("it was not passed")
			}
			c.settle(t)
			c.well(t, c.one(t))
		})
	}
}

// TestMigrationWithoutQEMU kills the source's QEMU and the target's at points of
// theirs. Before the target has everything the source's is the end of the VM, as
// it always is; after that nobody misses it. The target's has the source go on,
// until the target has taken the VM.
func TestMigrationWithoutQEMU(t *testing.T) {
	c := newCouple(t)
	for _, test := range []struct {
		point  string
		source bool // whose QEMU is killed
		ended  int  // which host has a VM that has ended; -1: the VM is well
		seldom bool // only where a soak is wanted
	}{
		{"leaving", true, 0, true},
		{"offer", true, 0, false},
		{"round", true, 0, true},
		{"standing", true, 0, false},
		{"last page", true, -1, false},
		{"end", true, -1, true},
		{"ready", true, -1, false},
		{"offered", true, -1, true},
		{"committed", true, -1, true},
		{"taken", true, -1, true},
		{"destroyed", true, -1, true},
		{"arriving", false, -1, true},
		{"waiting", false, -1, true},
		{"first page", false, -1, false},
		{"ended", false, -1, true},
		{"loaded", false, -1, false},
		{"commit", false, -1, false},
		{"taking", false, 1, false},
		{"running", false, 1, true},
		{"has", false, 1, true},
	} {
		if test.seldom && os.Getenv("MVM_SOAK") == "" {
			continue
		}
		t.Run(test.point, func(t *testing.T) {
			if c.at != 0 { // so that host 0 is the source
				near, far := pipe(t)
				if source, target := c.move(t, near, far); source != nil || target != nil {
					t.Fatal(source, target)
				}
				c.one(t)
			}
			side := c.hosts[1]
			if test.source {
				side = c.hosts[0]
			}
			side.PassPoints(func(point string) {
				if point == test.point {
					osvm.KillQEMUOf(side, wanderer)
				}
			})
			near, far := pipe(t)
			source, target := c.move(t, near, far)
			side.PassPoints(nil)
			t.Logf("source: %v; target: %v", source, target)
			c.settle(t)
			m := c.one(t)
			if test.ended < 0 {
				c.well(t, m)
				return
			}
			if <-m.Ended(); m.State() != osvm.Ended || c.at != test.ended {
				t.Errorf("host %d has it, %s", c.at, m.State())
			}
			if err := m.Destroy(); err != nil {
				t.Error(err)
			}
			c.fresh(t)
		})
	}
}

// TestMigrationToAFullDisk has no room at the target for all that the guest has
// written: the machine goes on where it was, and nothing of it is left there.
func TestMigrationToAFullDisk(t *testing.T) {
	c := newCouple(t)
	if err := unix.Mount("tmpfs", c.folders[1], "tmpfs", 0, "size=163m"); err != nil { // its memory has 160
		t.Skip("SKIPPED: full disks were not tried: no file system can be mounted here: ", err)
	}
	_ = c.hosts[1].Close()
	t.Cleanup(func() {
		_ = c.hosts[1].Close()
		_ = unix.Unmount(c.folders[1], unix.MNT_DETACH)
	})
	c.again(t, 1)
	if said, err := c.one(t).QEMUIO(t.Context(), "write -P 7 9M 7M"); err != nil || said != "" { // its guest takes that for damage, and is not asked
		t.Fatal(said, err)
	}
	near, far := pipe(t)
	source, target := c.move(t, near, far)
	t.Logf("source: %v; target: %v", source, target)
	if !errors.Is(target, unix.ENOSPC) || source == nil || !strings.Contains(source.Error(), "no space left") {
		t.Error("it was to be told that the disk is full")
	}
	if m := c.one(t); c.at != 0 || m.State() != osvm.Running {
		t.Errorf("host %d has it, %s", c.at, m.State())
	}
}

// TestMigrationNodeKilled kills the source's node, and the target's, and has
// others begin in their places.
func TestMigrationNodeKilled(t *testing.T) {
	c := newCouple(t)
	ours, theirs := faultPoints()
	for i, point := range slices.Concat(ours, theirs) {
		t.Run(point, func(t *testing.T) {
			killed, other, name := c.at, 1-c.at, wanderer
			if i >= len(ours) {
				killed, other, name = other, killed, ""
			}
			_ = c.hosts[killed].Close()
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			node, out := beginHelper(t, helping{
				Dir: c.folders[killed], Templates: vmtest.Templates(t), QEMU: vmtest.QEMU(t), Image: c.image,
				Move: &moving{listener.Addr().String(), name, point},
			}, nil)
			gone := make(chan string, 1)
			go func() { gone <- lastWords(out) }()
			conn, err := listener.Accept()
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
			defer cancel()
			if name == "" {
				_, err = c.hosts[other].MigrateTo(ctx, wanderer, conn, osvm.Migration{})
			} else {
				_, err = c.hosts[other].MigrateFrom(ctx, conn, admit(c.image))
			}
			t.Logf("the other one: %v", err)
			if said := <-gone; said != "" {
				t.Fatal(said)
			}
			_ = node.Wait()
			c.again(t, killed)
			c.settle(t)
			c.well(t, c.one(t))
		})
	}
}

// moving is a migration with whoever listens at an address: of the machine to
// there, or, without one, from there. The process kills itself at the point.
type moving struct{ Address, Machine, Point string }

func helpMoving(told helping) helped {
	ctx, cancel := context.WithTimeout(context.Background(), vmtest.Limit)
	defer cancel()
	h, err := osvm.NewHost(ctx, osvm.HostConfig{
		Dir: told.Dir, Templates: told.Templates, QEMU: told.QEMU, Accelerator: osvm.TCG,
		Pass: func(point string) {
			if point == told.Move.Point {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		},
	})
	if err != nil {
		return helped{Error: err.Error()}
	}
	conn, err := net.Dial("tcp", told.Move.Address)
	if err != nil {
		return helped{Error: err.Error()}
	}
	if told.Move.Machine == "" {
		_, err = h.MigrateFrom(ctx, conn, admit(told.Image))
	} else {
		_, err = h.MigrateTo(ctx, told.Move.Machine, conn, osvm.Migration{})
	}
	return helped{Error: fmt.Sprintf("%s was not passed: %v", told.Move.Point, err)}
}

// lastWords is what a process has answered that was to be killed, "" if nothing.
func lastWords(out io.Reader) string {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var answer helped
		if json.Unmarshal(lines.Bytes(), &answer) == nil {
			return answer.Error
		}
	}
	return ""
}
