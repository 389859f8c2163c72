package osvm_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qemu"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/osvm/vmtest"
)

// boot creates a machine from the minimal image, no clone, and starts it.
func boot(t *testing.T, ctx context.Context, parent, id string) *osvm.Machine {
	t.Helper()
	q, image := vmtest.QEMU(t), vmtest.Image(t)
	m, err := osvm.Create(ctx, q, parent, osvm.Spec{ID: id, Kernel: image.Kernel, Initrd: image.Initrd, MemoryMiB: 128, Accelerator: osvm.TCG})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Destroy() })
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

// session begins a session with the guest's agent. It may be called from any
// goroutine of a test, which it ends when it fails.
func session(t *testing.T, ctx context.Context, m *osvm.Machine) *link.Session {
	t.Helper()
	s, _, err := m.Session(ctx)
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// TestLifeOfAMachine is one cold boot, and all that needs none of its own.
func TestLifeOfAMachine(t *testing.T) {
	outer := t
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	begin := time.Now()
	parent := t.TempDir()
	m := boot(t, ctx, parent, "one")
	agent := session(t, ctx, m)
	hello := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
	t.Logf("a cold boot took %v to the agent's answer: %+v", time.Since(begin), hello)
	if hello.MemoryMiB < 50 || hello.MemoryMiB > 128 {
		t.Errorf("the guest has %d MiB, of a machine with 128", hello.MemoryMiB)
	}

	t.Run("identity", func(t *testing.T) {
		at := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
		vmtest.Call[guest.Nothing](t, agent, "Identify", guest.Identity{Hostname: "laboratory-7", Time: at, Randomness: make([]byte, 32)})
		after := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
		if after.Hostname != "laboratory-7" || after.Time.Before(at) || after.Time.After(at.Add(vmtest.Limit)) {
			t.Errorf("identified as laboratory-7 at %v, it is %q at %v", at, after.Hostname, after.Time)
		}
	})
	t.Run("suspend", func(t *testing.T) {
		if err := m.Suspend(ctx); err != nil {
			t.Fatal(err)
		}
		if status, err := m.Status(); err != nil || status != qemu.StatusPaused {
			t.Errorf("suspended: %v, %v", status, err)
		}
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
		}()
		select {
		case <-answered:
			t.Error("a suspended guest answers")
		case <-time.After(100 * time.Millisecond):
		}
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		<-answered
	})
	t.Run("another host", func(t *testing.T) { // as after a kill -9 of the node
		_ = agent.Close()
		agent = session(outer, ctx, m)
		if again := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{}); again.Boot != hello.Boot {
			t.Errorf("boot %s, before %s", again.Boot, hello.Boot)
		}
	})
	t.Run("power off", func(t *testing.T) {
		vmtest.Call[guest.Nothing](t, agent, "PowerOff", guest.Nothing{})
		select {
		case <-m.Ended():
		case <-ctx.Done():
			t.Fatal("the machine runs on")
		}
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(filepath.Join(parent, m.ID)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its folder is left: %v", err)
		}
		if err := m.Destroy(); err != nil {
			t.Errorf("destroyed twice: %v", err)
		}
	})
}

func TestMachinesThatCannotBe(t *testing.T) {
	q := osvm.QEMU{Path: "/bin/false", Version: "7.2.22"}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := osvm.Spec{ID: "one", Kernel: file, Initrd: file, MemoryMiB: 128, Accelerator: osvm.TCG}
	for want, spoil := range map[string]func(*osvm.Spec, *osvm.QEMU){
		"its id is not":  func(s *osvm.Spec, _ *osvm.QEMU) { s.ID = "../one" },
		"are not enough": func(s *osvm.Spec, _ *osvm.QEMU) { s.MemoryMiB = 1 },
		"accelerator":    func(s *osvm.Spec, _ *osvm.QEMU) { s.Accelerator = osvm.Auto },
		"no such file":   func(s *osvm.Spec, _ *osvm.QEMU) { s.Kernel = file + "none" },
		"no two numbers": func(_ *osvm.Spec, q *osvm.QEMU) { q.Version = "new" },
		"exit status 1":  func(*osvm.Spec, *osvm.QEMU) {},
	} {
		t.Run(want, func(t *testing.T) {
			spec, emulator, parent := good, q, t.TempDir()
			spoil(&spec, &emulator)
			m, err := osvm.Create(t.Context(), emulator, parent, spec)
			if err == nil {
				_ = m.Destroy()
				t.Fatal("it was created")
			}
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q, expected one with %q", err, want)
			}
			if left, _ := os.ReadDir(parent); len(left) > 0 {
				t.Errorf("%s is left", left[0].Name())
			}
		})
	}
}
