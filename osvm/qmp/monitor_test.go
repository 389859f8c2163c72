package qmp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/digitalocean/go-qemu/qemu"

	"mvm/osvm/qmp"
	"mvm/osvm/qmp/qmptest"
)

// limit is far above what anything here takes.
func limit(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func dial(t *testing.T, s *qmptest.Server) *qmp.Monitor {
	t.Helper()
	m, err := qmp.Dial(limit(t), s.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Disconnect() })
	return m
}

func TestAnswersFindTheirCommands(t *testing.T) {
	var held []string // answers that come when all have asked, the last first
	const callers = 50
	s := qmptest.Start(t, qmptest.Greeting, func(s *qmptest.Server, c qmptest.Call) string {
		held = append(held, fmt.Sprintf(`{"return": %s, "id": %s}`, c.Arguments, c.ID))
		if len(held) == callers {
			for i := len(held) - 1; i >= 0; i-- {
				s.Say(held[i])
				s.Say(`{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}`)
			}
		}
		return ""
	})
	m := dial(t, s)
	if got := m.Version().String(); got != "7.2.22" {
		t.Errorf("version %s, greeted as 7.2.22", got)
	}
	var group sync.WaitGroup
	for i := range callers {
		group.Go(func() {
			var got map[string]int
			if err := m.Execute(limit(t), "echo", map[string]int{"number": i}, &got); err != nil || got["number"] != i {
				t.Errorf("caller %d got %v, %v", i, got, err)
			}
		})
	}
	group.Wait()
}

func TestRefusalsAndGarbage(t *testing.T) {
	for name, test := range map[string]struct {
		answer, want string
		over         bool // nothing more can be asked
	}{
		"refusal":    {`{"error": {"class": "CommandNotFound", "desc": "no query-nonsense"}, "id": %s}`, "no query-nonsense (CommandNotFound)", false},
		"no object":  {`nonsense%.0s`, "nonsense", true},
		"no id":      {`{"return": {}}%.0s`, "no command that was sent", true},
		"wrong type": {`{"return": "a text", "id": %s}`, "a text", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := qmptest.Start(t, qmptest.Greeting, func(_ *qmptest.Server, c qmptest.Call) string {
				if c.Name != "query-nonsense" {
					return qmptest.Done(nil, c)
				}
				return fmt.Sprintf(test.answer, c.ID)
			})
			m := dial(t, s)
			var result struct{}
			err := m.Execute(limit(t), "query-nonsense", nil, &result)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, expected one with %q", err, test.want)
			}
			var refused *qmp.Error
			if errors.As(err, &refused) != (name == "refusal") {
				t.Errorf("%v: a refusal is %v", err, errors.As(err, &refused))
			}
			if err := m.Execute(limit(t), "stop", nil, nil); (err != nil) != test.over {
				t.Errorf("the next command: %v", err)
			}
		})
	}
}

func TestWhoDoesNotGreet(t *testing.T) {
	silent := qmptest.Start(t, "", qmptest.Done)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(ctx, silent.Path); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, qmp.ErrBusy) {
		t.Errorf("no greeting: %v", err)
	}
	other := qmptest.Start(t, "220 mail.example ESMTP", qmptest.Done)
	if _, err := qmp.Dial(limit(t), other.Path); err == nil || !strings.Contains(err.Error(), "no QEMU") {
		t.Errorf("a mail server: %v", err)
	}
	if _, err := qmp.Dial(limit(t), filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no socket: %v", err)
	}
}

func TestACallerThatLeaves(t *testing.T) {
	var late qmptest.Call
	s := qmptest.Start(t, qmptest.Greeting, func(_ *qmptest.Server, c qmptest.Call) string {
		if c.Name == "slow" {
			late = c
			return ""
		}
		return qmptest.Done(nil, late) + "\r\n" + qmptest.Done(nil, c) // the late answer first
	})
	m := dial(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := m.Execute(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v", err)
	}
	if err := m.Execute(limit(t), "quick", nil, nil); err != nil {
		t.Errorf("quick, after an answer that nobody waits for: %v", err)
	}
}

// TestADeafListener proves that who does not listen holds up neither commands
// nor other listeners, and later hears the newest.
func TestADeafListener(t *testing.T) {
	const events = 5000
	s := qmptest.Start(t, qmptest.Greeting, func(s *qmptest.Server, c qmptest.Call) string {
		for i := range events {
			s.Say(fmt.Sprintf(`{"timestamp": {"seconds": %d, "microseconds": 0}, "event": "TICK"}`, i))
		}
		return qmptest.Done(nil, c)
	})
	m := dial(t, s)
	deaf, err := m.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Execute(limit(t), "flood", nil, nil); err != nil {
		t.Fatal(err)
	}
	s.HangUp()
	last, before := int64(-1), int64(-1)
	for event := range deaf {
		before, last = last, event.Timestamp.Seconds
		if last <= before {
			t.Fatalf("event %d after %d", last, before)
		}
	}
	if last != events-1 {
		t.Errorf("the last event heard is %d, expected %d", last, events-1)
	}
	if _, err := m.Events(t.Context()); err == nil {
		t.Error("a stream of events without a connection")
	}
}

func TestTheEndWakesAll(t *testing.T) {
	asked := make(chan struct{}, 2)
	s := qmptest.Start(t, qmptest.Greeting, func(_ *qmptest.Server, _ qmptest.Call) string { asked <- struct{}{}; return "" })
	m := dial(t, s)
	failed := make(chan error, 2)
	for range 2 {
		go func() { failed <- m.Execute(context.Background(), "never", nil, nil) }()
	}
	<-asked
	<-asked
	s.HangUp()
	for range 2 {
		if err := <-failed; err == nil || !strings.Contains(err.Error(), "QEMU has ended") {
			t.Errorf("at the end: %v", err)
		}
	}
	<-m.Closed()
	if err := m.Connect(); err == nil {
		t.Error("connected after the end")
	}
}

// TestALongLine is what go-qemu's own monitor dies of.
func TestALongLine(t *testing.T) {
	text := strings.Repeat("x", 1<<20)
	s := qmptest.Start(t, qmptest.Greeting, func(_ *qmptest.Server, c qmptest.Call) string {
		if c.Name == "endless" {
			return strings.Repeat("y", qmp.MaxLine+1)
		}
		return fmt.Sprintf(`{"return": %q, "id": %s}`, text, c.ID)
	})
	m := dial(t, s)
	var got string
	if err := m.Execute(limit(t), "long", nil, &got); err != nil || got != text {
		t.Errorf("a line of 1 MiB: %d bytes, %v", len(got), err)
	}
	if err := m.Execute(limit(t), "endless", nil, nil); err == nil || !strings.Contains(err.Error(), "over") {
		t.Errorf("an endless line: %v", err)
	}
}

func TestAFileTravels(t *testing.T) {
	s := qmptest.Start(t, qmptest.Greeting, func(_ *qmptest.Server, c qmptest.Call) string {
		return fmt.Sprintf(`{"return": {"files": %d}, "id": %s}`, c.Files, c.ID)
	})
	m := dial(t, s)
	file, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var got struct{ Files int }
	if err := m.ExecuteWithFile(limit(t), "getfd", map[string]string{"fdname": "one"}, &got, file); err != nil || got.Files != 1 {
		t.Errorf("with a file: %d came, %v", got.Files, err)
	}
	if err := m.Execute(limit(t), "stop", nil, &got); err != nil || got.Files != 0 {
		t.Errorf("without: %d came, %v", got.Files, err)
	}
	answer, err := m.RunWithFile([]byte(`{"execute": "getfd", "arguments": {"fdname": "two"}, "id": "mine"}`), file)
	var whole struct {
		Return struct{ Files int }
	}
	if err == nil {
		err = json.Unmarshal(answer, &whole)
	}
	if err != nil || whole.Return.Files != 1 {
		t.Errorf("by Run: %s, %v", answer, err)
	}
	for _, bad := range []string{"", "[]", `{"arguments": {}}`} {
		if _, err := m.Run([]byte(bad)); err == nil {
			t.Errorf("%q was run", bad)
		}
	}
}

// TestUnderARealQEMU runs go-qemu's Domain on the monitor, and what it cannot.
func TestUnderARealQEMU(t *testing.T) {
	path, err := exec.LookPath("qemu-system-" + map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[runtime.GOARCH])
	if err != nil {
		t.Skip("SKIPPED: no QEMU for this machine is installed: `make setup` installs it")
	}
	socket := filepath.Join(t.TempDir(), "qmp")
	machine := exec.Command(path, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-qmp", "unix:"+socket+",server=on,wait=off")
	machine.Stderr = os.Stderr
	if err := machine.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = machine.Process.Kill(); _ = machine.Wait() })
	var m *qmp.Monitor
	for ctx := limit(t); ; {
		if m, err = qmp.Dial(ctx, socket); err == nil {
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
	second, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := qmp.Dial(second, socket); err == nil {
		t.Error("QEMU serves two clients of one monitor")
	}
	domain, err := qemu.NewDomain(m, "test")
	if err != nil {
		t.Fatal(err)
	}
	if status, err := domain.Status(); err != nil || status != qemu.StatusPreLaunch {
		t.Errorf("status %v, %v; expected prelaunch", status, err)
	}
	var schema []json.RawMessage
	if err := m.Execute(limit(t), "query-qmp-schema", nil, &schema); err != nil || len(schema) < 100 {
		t.Errorf("the schema of all commands: %d entries, %v", len(schema), err)
	}
	var refused *qmp.Error
	if err := m.Execute(limit(t), "query-nonsense", nil, nil); !errors.As(err, &refused) || refused.Class != "CommandNotFound" {
		t.Errorf("an unknown command: %v", err)
	}
	events, err := m.Events(limit(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Execute(limit(t), "quit", nil, nil); err != nil {
		t.Error(err)
	}
	var names []string
	for event := range events {
		names = append(names, event.Event)
	}
	if len(names) == 0 || names[0] != "SHUTDOWN" {
		t.Errorf("events at the end: %q", names)
	}
	if err := domain.Close(); err != nil {
		t.Error(err)
	}
}
