package osvm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serial is the other end of a console: what a guest has of its serial port.
func serial(t *testing.T) (c *Console, guest net.Conn, end func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "console")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	c = newConsole(func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}, ended)
	t.Cleanup(c.close)
	if guest, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	end = sync.OnceFunc(func() { _ = listener.Close(); _ = guest.Close(); close(ended) })
	t.Cleanup(end)
	return c, guest, end
}

func hears(t *testing.T, v *View, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(v, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; expected %q", got, err, want)
	}
}

func write(t *testing.T, to io.Writer, text string) {
	t.Helper()
	if _, err := io.WriteString(to, text); err != nil {
		t.Fatal(err)
	}
}

func attach(t *testing.T, c *Console, who string, force bool) *View {
	t.Helper()
	v, err := c.Attach(who, force)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestConsole(t *testing.T) {
	c, guest, end := serial(t)
	write(t, guest, "boot\n")
	ann := attach(t, c, "ann", false)
	hears(t, ann, "boot\n")
	write(t, ann, "ls\n")
	typed := make([]byte, 3)
	if _, err := io.ReadFull(guest, typed); err != nil || string(typed) != "ls\n" {
		t.Fatalf("the guest reads %q, %v", typed, err)
	}

	var held *HeldError
	if _, err := c.Attach("bob", false); !errors.As(err, &held) || held.By != "ann" {
		t.Fatalf("a second one is told %v", err)
	}
	bob := attach(t, c, "bob", true)
	if c.Holder() != "bob" {
		t.Errorf("%q has it", c.Holder())
	}
	if _, err := ann.Read(typed); !errors.Is(err, ErrDetached) {
		t.Errorf("the first one reads on: %v", err)
	}
	if _, err := ann.Write(typed); !errors.Is(err, ErrDetached) {
		t.Errorf("the first one types on: %v", err)
	}
	_ = ann.Close() // of what it no longer has
	hears(t, bob, "boot\n")

	// The last words can be read after the end, more than once.
	write(t, guest, "panic\n")
	hears(t, bob, "panic\n")
	end()
	if n, err := bob.Read(typed); err != io.EOF {
		t.Errorf("after the end: %d, %v", n, err)
	}
	_ = bob.Close()
	if c.Holder() != "" {
		t.Errorf("%q still has it", c.Holder())
	}
	if text, err := io.ReadAll(attach(t, c, "eve", false)); err != nil || string(text) != "boot\npanic\n" {
		t.Errorf("%q, %v", text, err)
	}
}

// A flood that nobody reads leaves its end; one that somebody reads arrives whole.
func TestConsoleUnderAFlood(t *testing.T) {
	c, guest, _ := serial(t)
	const lines = 20_000
	line := strings.Repeat("0123456789", 10) + "\n"
	write(t, guest, strings.Repeat(line, lines)) // returns: it is read though nobody is attached
	write(t, guest, "end")
	for {
		c.mu.Lock()
		all := c.total == int64(lines*len(line)+3)
		c.mu.Unlock()
		if all {
			break
		}
		time.Sleep(time.Millisecond)
	}
	v := attach(t, c, "ann", false)
	kept := make([]byte, consoleTail)
	if _, err := io.ReadFull(v, kept); err != nil || !bytes.HasSuffix(kept, []byte(line+"end")) {
		t.Fatalf("kept ...%q, %v", kept[len(kept)-20:], err)
	}

	sent := strings.Repeat(line, lines)
	wrote := make(chan error, 1)
	go func() { _, err := io.WriteString(guest, sent); wrote <- err }()
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(v, got); err != nil || string(got) != sent {
		t.Errorf("what came is not what the guest wrote (%v)", err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

// Whoever types to a guest that does not read is let go.
func TestConsoleThatIsNotRead(t *testing.T) {
	for name, letGo := range map[string]func(t *testing.T, c *Console, v *View){
		"closed":     func(_ *testing.T, _ *Console, v *View) { _ = v.Close() },
		"taken over": func(t *testing.T, c *Console, _ *View) { attach(t, c, "bob", true) },
	} {
		t.Run(name, func(t *testing.T) {
			c, guest, _ := serial(t)
			v := attach(t, c, "ann", false)
			stuck := make(chan error, 1)
			go func() {
				for {
					if _, err := v.Write(make([]byte, 1<<20)); err != nil {
						stuck <- err
						return
					}
				}
			}()
			select {
			case err := <-stuck:
				t.Fatalf("it did not wait: %v", err)
			case <-time.After(20 * time.Millisecond):
			}
			letGo(t, c, v)
			if err := <-stuck; err == nil {
				t.Error("no error")
			}
			// What comes next is typed and read as before.
			go io.Copy(io.Discard, guest)
			next := attach(t, c, "eve", true)
			write(t, next, "ls\n")
		})
	}
}

// TestFailures: of all that a guest wrote, it is why it ended that is quoted.
func TestFailures(t *testing.T) {
	c, guest, end := serial(t)
	for connected := false; !connected; time.Sleep(time.Millisecond) { // what ends before is never read
		c.mu.Lock()
		connected = c.port != nil
		c.mu.Unlock()
	}
	write(t, guest, "[    1.2] booting\r\n[   15.7] Out of memory: Killed process 82 (exe) total-vm:1284472kB\r\nfatal error: all is lost\r\n\r\n"+
		"goroutine 1 [running]:\r\nagent: the agent has ended: exit status -1, signal 9\r\n[   16.3] reboot: Power down\r\n")
	end()
	const want = "Out of memory: Killed process 82 (exe) total-vm:1284472kB; fatal error: all is lost; agent: the agent has ended: exit status -1, signal 9"
	if got := c.failures(); got != want {
		t.Errorf("it says %q", got)
	}
}
