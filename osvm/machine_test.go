package osvm

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qemu"

	"mvm/osvm/guest"
	"mvm/osvm/link"
)

// bootLimit is far above the 2 to 3 s that a cold boot takes on a machine that
// does nothing else.
const bootLimit = 2 * time.Minute

// minimal is the minimal image, made once and kept on disk for the next run.
var minimal = sync.OnceValues(func() (Image, error) {
	scratch, err := os.MkdirTemp("", "mvm-image-")
	if err != nil {
		return Image{}, err
	}
	defer os.RemoveAll(scratch)
	program := filepath.Join(scratch, "agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./guest/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := build.CombinedOutput(); err != nil {
		return Image{}, fmt.Errorf("build the agent: %w: %s", err, text)
	}
	agent, err := os.ReadFile(program)
	if err != nil {
		return Image{}, err
	}
	kernel, err := newestKernel(context.Background())
	if err != nil {
		return Image{}, err
	}
	kept := filepath.Join(os.TempDir(), fmt.Sprintf("mvm-image-%d-%x", os.Getuid(), sha256.Sum256(append([]byte(kernel), agent...))))
	image := Image{Kernel: filepath.Join(kept, "vmlinux"), Initrd: filepath.Join(kept, "initrd")}
	if _, err := os.Stat(image.Initrd); err == nil {
		return image, nil
	}
	if _, err := BuildMinimal(context.Background(), scratch, agent); err != nil {
		return Image{}, err
	}
	if err := os.Rename(scratch, kept); err != nil && !errors.Is(err, os.ErrExist) && !errors.Is(err, syscall.ENOTEMPTY) {
		return Image{}, err
	}
	return image, nil
})

// boot creates a machine from the minimal image and starts it.
func boot(t *testing.T, ctx context.Context, id string, memory int) *Machine {
	t.Helper()
	q, err := Probe(ctx)
	if err != nil {
		t.Skip("SKIPPED: no OS-level VM was started: ", err, ": make setup installs it")
	}
	image, err := minimal()
	if err != nil {
		t.Skip("SKIPPED: no OS-level VM was started: ", err)
	}
	m, err := Create(ctx, q, t.TempDir(), Spec{ID: id, Kernel: image.Kernel, Initrd: image.Initrd, MemoryMiB: memory, Accelerator: TCG})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Destroy() })
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	return m
}

// agentOf begins a session with the guest's agent. Like call it may be called from
// any goroutine of a test, which it ends when it fails.
func agentOf(t *testing.T, ctx context.Context, m *Machine) *link.Session {
	t.Helper()
	port, err := m.Agent(ctx)
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	session, err := link.Begin(ctx, port)
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	t.Cleanup(func() { _ = session.Close() })
	return session
}

func call[Answer any](t *testing.T, session *link.Session, method string, question any) Answer {
	t.Helper()
	conn, err := session.Open()
	if err != nil {
		t.Error(err)
		runtime.Goexit()
	}
	_ = conn.SetDeadline(time.Now().Add(bootLimit))
	client := guest.Client(conn)
	defer client.Close()
	var answer Answer
	if err := client.Call("Agent."+method, question, &answer); err != nil {
		t.Errorf("%s: %v", method, err)
		runtime.Goexit()
	}
	return answer
}

// TestLifeOfAMachine is one cold boot, and all that needs none of its own.
func TestLifeOfAMachine(t *testing.T) {
	outer := t
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	begin := time.Now()
	m := boot(t, ctx, "one", 128)
	session := agentOf(t, ctx, m)
	hello := call[guest.Greeting](t, session, "Hello", guest.Nothing{})
	t.Logf("a cold boot took %v to the agent's answer: %+v", time.Since(begin), hello)
	if hello.MemoryMiB < 50 || hello.MemoryMiB > 128 {
		t.Errorf("the guest has %d MiB, of a machine with 128", hello.MemoryMiB)
	}

	t.Run("identity", func(t *testing.T) {
		at := time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC)
		call[guest.Nothing](t, session, "Identify", guest.Identity{Hostname: "laboratory-7", Time: at, Randomness: make([]byte, 32)})
		after := call[guest.Greeting](t, session, "Hello", guest.Nothing{})
		if after.Hostname != "laboratory-7" || after.Time.Before(at) || after.Time.After(at.Add(bootLimit)) {
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
			call[guest.Greeting](t, session, "Hello", guest.Nothing{})
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
		_ = session.Close()
		session = agentOf(outer, ctx, m)
		if again := call[guest.Greeting](t, session, "Hello", guest.Nothing{}); again.Boot != hello.Boot {
			t.Errorf("boot %s, before %s", again.Boot, hello.Boot)
		}
	})
	t.Run("power off", func(t *testing.T) {
		call[guest.Nothing](t, session, "PowerOff", guest.Nothing{})
		select {
		case <-m.Ended():
		case <-ctx.Done():
			t.Fatal("the machine runs on")
		}
		folder := m.folder
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(folder); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("its folder is left: %v", err)
		}
		if err := m.Destroy(); err != nil {
			t.Errorf("destroyed twice: %v", err)
		}
	})
}

func TestMachinesThatCannotBe(t *testing.T) {
	q := QEMU{Path: "/bin/false", Version: "7.2.22"}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := Spec{ID: "one", Kernel: file, Initrd: file, MemoryMiB: 128, Accelerator: TCG}
	for want, spoil := range map[string]func(*Spec, *QEMU){
		"its id is not":  func(s *Spec, _ *QEMU) { s.ID = "../one" },
		"are not enough": func(s *Spec, _ *QEMU) { s.MemoryMiB = 1 },
		"accelerator":    func(s *Spec, _ *QEMU) { s.Accelerator = Auto },
		"no such file":   func(s *Spec, _ *QEMU) { s.Kernel = file + "none" },
		"no two numbers": func(_ *Spec, q *QEMU) { q.Version = "new" },
		"exit status 1":  func(*Spec, *QEMU) {},
	} {
		t.Run(want, func(t *testing.T) {
			spec, emulator, parent := good, q, t.TempDir()
			spoil(&spec, &emulator)
			m, err := Create(t.Context(), emulator, parent, spec)
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
