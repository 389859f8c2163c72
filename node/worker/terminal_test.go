package worker

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm/vmtest"
)

// screen is a pseudo-terminal (pty(7)): the end that a program has, and what it has
// written there.
type screen struct {
	t           *testing.T
	keys, inner *os.File

	mu   sync.Mutex // guards said
	said string
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("SKIPPED: no console was attached to by a terminal: ", err)
	}
	t.Cleanup(func() { _ = keys.Close() })
	number, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	inner, err := os.OpenFile(fmt.Sprint("/dev/pts/", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = inner.Close() })
	s := &screen{t: t, keys: keys, inner: inner}
	go func() {
		var buffer [4096]byte
		for {
			n, err := keys.Read(buffer[:])
			s.mu.Lock()
			s.said += string(buffer[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return s
}

// mode is how the terminal takes keys.
func (s *screen) mode() unix.Termios {
	s.t.Helper()
	mode, err := unix.IoctlGetTermios(int(s.inner.Fd()), unix.TCGETS)
	if err != nil {
		s.t.Fatal(err)
	}
	return *mode
}

// shows waits until the program has written something since it was last asked.
func (s *screen) shows(want string) {
	s.t.Helper()
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(10 * time.Millisecond) {
		s.mu.Lock()
		said := s.said
		_, after, there := strings.Cut(said, want)
		if there {
			s.said = after
		}
		s.mu.Unlock()
		if there {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("the screen does not show %q but %q", want, said)
		}
	}
}

func (s *screen) types(text string) {
	s.t.Helper()
	if _, err := s.keys.WriteString(text); err != nil {
		s.t.Fatal(err)
	}
}

// terminal attaches a terminal to a console: its keys go to the guest as they are, also
// those that else would end a program; it is as before when the console is left, and
// when the node dies under it.
func (l *lab) terminal(t *testing.T) {
	l.must("vm", "create", "minimal", "--name", "seat", "--memory", "256", "--node", "worker2")
	defer func() { l.must("vm", "destroy", "seat") }()
	for deadline := time.Now().Add(vmtest.Limit); !strings.Contains(l.must("nodes"), "seat"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the VM is no node: mvm nodes says\n%s", l.must("nodes"))
		}
	}
	text := l.must("submit", l.write(map[string]string{
		"job.xml": `<job xmlns="urn:mvm:1" name="hearer">
  <source name="hear" language="shell"><file path="hear.sh"/></source>
  <task name="hear" source="hear"><resources><require property="name" equals="seat"/></resources></task>
</job>`,
		"hear.sh": "#!/bin/sh\nstty -F /dev/ttyS0 raw -echo\necho listens\nexec </dev/ttyS0 >/dev/ttyS0\nwhile :; do echo \"key $(dd bs=1 count=1 2>/dev/null | od -An -tx1)\"; done\n",
	}))
	job, _, _ := strings.Cut(text, "\n")
	l.eventually("listening", job, func(text string) bool { return strings.Contains(text, "listens") }, "logs", job)

	s := newScreen(t)
	before := s.mode()
	ctx, cancel := context.WithTimeout(t.Context(), 2*vmtest.Limit)
	defer cancel()
	attach := func() *exec.Cmd {
		t.Helper()
		c := exec.CommandContext(ctx, program, "vm", "console", "seat")
		c.Env = append(os.Environ(), "MVM_GRID="+l.front.URL)
		c.Stdin, c.Stdout, c.Stderr = s.inner, s.inner, s.inner
		c.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		s.shows("console of seat; Ctrl-] leaves it\r\n")
		if m := s.mode(); m.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 || m.Iflag&(unix.ICRNL|unix.IXON) != 0 || m.Oflag&unix.OPOST != 0 {
			t.Errorf("attached, the terminal is not raw: %+v", m)
		}
		return c
	}
	left := func(c *exec.Cmd, well bool) {
		t.Helper()
		if err := c.Wait(); (err == nil) != well {
			t.Errorf("mvm vm console ends with %v", err)
		}
		if after := s.mode(); after != before {
			t.Errorf("the terminal is not as it was: %+v, not %+v", after, before)
		}
	}
	c := attach()
	for key, shown := range map[string]string{"a": "61", "\x03": "03", "\r": "0d", "\x1a": "1a", "\x11": "11"} {
		s.types(key)
		s.shows("key  " + shown)
	}
	s.types("\x1d")
	left(c, true)

	c = attach()
	l.must("cancel", job)
	l.workers[1].Kill()
	left(c, false)
	l.workers[1] = l.worker("worker2", strings.TrimPrefix(l.workers[1].URL, "http://"))
	l.eventually("over", job, func(text string) bool { return strings.Contains(text, "cancelled") }, "job", job)
}
