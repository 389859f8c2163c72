package osvm_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// TestAdoption kills a node with five machines, spoils three of them, and has
// another node take over: what runs goes on, and nothing else is left.
func TestAdoption(t *testing.T) {
	folder := t.TempDir()
	node, answer := startHelper(t, helping{
		Dir: folder, Templates: vmtest.Templates(t), QEMU: vmtest.QEMU(t), Image: vmtest.Image(t),
		IDs: []string{"runs", "stands", "hangs", "dies", "lost"}, Template: true,
	}, nil)
	if _, err := osvm.NewHost(t.Context(), osvm.HostConfig{Dir: folder, QEMU: vmtest.QEMU(t), Accelerator: osvm.TCG}); err == nil {
		t.Error("two nodes have one folder")
	}
	pid := map[string]int{}
	for i, id := range []string{"runs", "stands", "hangs", "dies", "lost"} {
		pid[id] = answer.PIDs[i]
	}
	_ = node.Process.Kill()
	_ = node.Wait()
	groups := map[string][]string{}
	for id := range pid {
		var record struct{ Groups []string }
		text, err := os.ReadFile(filepath.Join(folder, "machines", id, "machine.json"))
		if err := errors.Join(err, json.Unmarshal(text, &record)); err != nil {
			t.Fatal(err)
		}
		groups[id] = record.Groups
	}
	signal := func(id string, number unix.Signal) {
		if err := unix.Kill(pid[id], number); err != nil {
			t.Fatal(err)
		}
	}
	signal("hangs", unix.SIGSTOP)
	signal("dies", unix.SIGKILL)
	// One whose node was killed before it wrote down the process's number.
	record := filepath.Join(folder, "machines", "lost", "machine.json")
	text, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if strings.Contains(line, `"PID"`) {
			lines[i] = ""
		}
	}
	if err := os.WriteFile(record, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "machines", "half"), 0o700); err != nil { // and one killed earlier
		t.Fatal(err)
	}

	h := vmtest.HostIn(t, folder)
	var ids []string
	for _, m := range h.List() {
		t.Cleanup(func() { _ = m.Destroy() })
		ids = append(ids, m.ID)
	}
	if strings.Join(ids, " ") != "runs stands" {
		t.Errorf("adopted: %v", ids)
	}
	left, _ := os.ReadDir(filepath.Join(folder, "machines"))
	if len(left) != 2 {
		t.Errorf("folders left: %v", left)
	}
	for _, id := range []string{"hangs", "dies", "lost"} {
		eventually(t, id+" is gone", func() bool { return gone(pid[id]) })
		for _, group := range groups[id] {
			if _, err := os.Stat(group); err == nil {
				t.Errorf("the control group %s of %s is left", group, id)
			}
		}
	}
	m, err := h.Get("runs")
	if err != nil {
		t.Fatal(err)
	}
	if m.State() != osvm.Running || m.Owner != "job/1" || m.Published()[80] != "192.0.2.1:8080" || m.PID() != pid["runs"] {
		t.Errorf("adopted as %s, owner %q, published %v, process %d, was %d", m.State(), m.Owner, m.Published(), m.PID(), pid["runs"])
	}
	agent := session(t, t.Context(), m)
	if hello := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{}); hello.Hostname != "runs" {
		t.Errorf("its guest is %q", hello.Hostname)
	}

	// A second time, in one process, and suspended.
	stands, err := h.Get("stands")
	if err == nil {
		err = stands.Suspend(t.Context())
	}
	if err := errors.Join(err, h.Close()); err != nil {
		t.Fatal(err)
	}
	h = vmtest.HostIn(t, folder)
	if stands, err = h.Get("stands"); err != nil || stands.State() != osvm.Suspended {
		t.Fatalf("the suspended one: %v, %v", stands, err)
	}
	session(t, t.Context(), resumed(t, stands))
	for _, m := range h.List() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
		eventually(t, m.ID+" is gone", func() bool { return gone(m.PID()) })
		for _, group := range groups[m.ID] {
			if _, err := os.Stat(group); err == nil {
				t.Errorf("the control group %s of %s is left", group, m.ID)
			}
		}
	}
}

func resumed(t *testing.T, m *osvm.Machine) *osvm.Machine {
	t.Helper()
	if err := m.Resume(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// gone says whether there is no such process, or but its number, which its new
// parent may not have collected.
func gone(pid int) bool {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(text), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begin := time.Now(); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > vmtest.Limit {
			t.Fatalf("after %v it is not so that %s", vmtest.Limit, what)
		}
	}
}
