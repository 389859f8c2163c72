package mvm

import (
	"fmt"
	"os"
	"os/exec"
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
	grouped := findGroups(forMemory).parent != ""
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
	l = launch(t, slim(t), Probe(nil), nil)
	l.run(ProcessSpec{ID: 7, Command: []string{"/bin/sleep", "1000"}, MemoryMiB: 50})
	if left := groupsLeft(forMemory, l.mark); len(left) == 0 {
		t.Error("a program with a limit has no group")
	}
	l.Kill()
	l.over()
}
