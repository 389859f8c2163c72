package mvm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestMemoryLimit(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is needed to take memory; install it")
	}
	big := func(id int, mebibytes int) ProcessSpec {
		return ProcessSpec{ID: id, MemoryMiB: 100, Environment: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")},
			Command: []string{python, "-c", fmt.Sprintf("import time; time.sleep(0.3); x = bytearray(%d << 20); x[::4096] = b'x' * len(x[::4096])", mebibytes)}}
	}
	grouped := findGroups().parent != ""
	l := launch(t, slim(t), Subreaper, nil)
	l.run(big(0, 200), big(1, 20))
	s := l.await(0)
	if grouped && (s.Signal != "SIGKILL" || s.Message != "memory limit of 100 MiB exceeded") ||
		!grouped && (s.ExitCode != 1 || !strings.Contains(l.printed(0, "stderr"), "MemoryError")) {
		t.Errorf("%+v\n%s", s, l.printed(0, "stderr"))
	}
	if s := l.await(1); s.ExitCode != 0 {
		t.Errorf("%+v\n%s", s, l.printed(1, "stderr"))
	}
	l.terminate()
	if !grouped {
		return
	}
	// When the MVM process is killed, the node removes the groups.
	left := func() []string {
		found, _ := filepath.Glob(filepath.Join(findGroups().parent, groupName(l.mark)+"*"))
		return found
	}
	l = launch(t, slim(t), Probe(nil), nil)
	l.run(ProcessSpec{ID: 7, Command: []string{"/bin/sleep", "1000"}, MemoryMiB: 50})
	if len(left()) != 1 {
		t.Errorf("groups: %v", left())
	}
	l.Kill()
	l.over()
	if len(left()) != 0 {
		t.Errorf("left behind: %v", left())
	}
}

func TestFindGroups(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"memory/jobs/a", "slice/node.service"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "slice/cgroup.subtree_control"), []byte("cpu memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]groups{
		"":                                   {},
		"nonsense\n1:2":                      {},
		"5:freezer:/x\n4:cpu,memory:/jobs/a": {filepath.Join(root, "memory/jobs/a"), false},
		"4:memory:/elsewhere":                {filepath.Join(root, "memory"), false},
		"0::/slice/node.service\n":           {filepath.Join(root, "slice"), true},
		"0::/slice/node.service/deeper":      {},
		"0::/":                               {},
	} {
		membership := filepath.Join(t.TempDir(), "cgroup")
		if err := os.WriteFile(membership, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got := findGroupsIn(root, membership); got != want {
			t.Errorf("%q: %+v, want %+v", text, got, want)
		}
	}
}
