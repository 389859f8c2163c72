package mvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
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

// TestMemoryLimitOfChildren starts programs whose first deed is to fork, so
// that the child that takes the memory is there before anything can be done to
// a program that runs.
func TestMemoryLimitOfChildren(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is needed to take memory; install it")
	}
	take := fmt.Sprintf("%s -c \"x = bytearray(400 << 20); x[::4096] = b'x' * len(x[::4096]); print('taken')\"", python)
	path := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	var specs []ProcessSpec
	for id, program := range []struct {
		mebibytes int64
		script    string
	}{
		{100, take + "; exit $?"},
		{100, "(" + take + "; exit $?) & wait $!"},
		{100, "((" + take + "; : > gone) &); until [ -e gone ]; do sleep 0.05; done"}, // an orphan
		{0, "echo free"},
		{1, ":"}, // hardly enough to start with: it may fail, but nothing else may
	} {
		spec := sh(id, program.script)
		spec.Environment, spec.MemoryMiB = path, program.mebibytes
		specs = append(specs, spec)
	}
	grouped := findGroups(forMemory).parent != ""
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(specs...)
		for id := range 3 {
			s, printed, complaint := l.await(id), l.printed(id, "stdout"), l.printed(id, "stderr")
			if printed != "" || grouped && s.Message != "memory limit of 100 MiB exceeded" ||
				!grouped && !strings.Contains(complaint, "MemoryError") {
				t.Errorf("program %d: %+v, printed %q\n%s", id, s, printed, complaint)
			}
		}
		if s := l.await(3); s.ExitCode != 0 || s.Message != "" {
			t.Errorf("a program without a limit: %+v", s)
		}
		l.await(4)
		l.terminate()
	})
}

// TestStuckInCell: while the starting thread cannot leave a cell, nothing is
// started that would share a limit that is not its own.
func TestStuckInCell(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	stuck := errors.New("stuck")
	s := &spawner{children: map[int]func(syscall.WaitStatus, *syscall.Rusage){}, leave: func() error { return stuck }, thread: syscall.Gettid()}
	s.changed = sync.NewCond(&s.mu)
	start := func() error { return s.start(child{argv: []string{"/bin/true"}, dir: "/"}, nil, nil) }
	if err := start(); !errors.Is(err, stuck) || len(s.children) != 0 {
		t.Errorf("%v, and %d programs started", err, len(s.children))
	}
	s.leave = func() error { return nil }
	if err := start(); err != nil || len(s.children) != 1 {
		t.Errorf("%v, and %d programs started", err, len(s.children))
	}
	for pid := range s.children { // no reaper is at work here
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestCell starts programs inside a group of each kind, and puts programs there
// that have forked already.
func TestCell(t *testing.T) {
	for name, g := range map[string]groups{
		"version 2":     {"/sys/fs/cgroup", true},
		"version 2 too": {"/sys/fs/cgroup/unified", true},
		"memory":        {"/sys/fs/cgroup/memory", false},
		"own memory":    findGroups(forMemory),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := os.Stat(filepath.Join(g.parent, "cgroup.procs")); err != nil {
				t.Skipf("SKIPPED: there are no such groups here: %v", err)
			}
			group, err := g.add("mvm.test-cell-" + strconv.Itoa(os.Getpid()))
			if err != nil {
				t.Skipf("SKIPPED: no such groups can be made here: %v", err)
			}
			c := &cell{groups: g, path: group}
			defer func() {
				if err := endGroup(group, time.Now().Add(10*time.Second)); err != nil {
					t.Error(err)
				}
			}()
			t.Run("born", func(t *testing.T) {
				runtime.LockOSThread() // and it ends with the test
				// To where a thread returns it must have been.
				if err := os.WriteFile(filepath.Join(g.parent, "tasks"), []byte("0"), 0); !g.unified && err != nil {
					t.Fatal(err)
				}
				where := func() string {
					text, err := os.ReadFile("/proc/thread-self/cgroup")
					if err != nil {
						t.Fatal(err)
					}
					return string(text)
				}
				before := where()
				// Its child tells where it is: most is told of who forks first.
				command := exec.Command("/bin/sh", "-c", "cat /proc/self/cgroup; exit $?")
				command.SysProcAttr = &syscall.SysProcAttr{}
				leave, err := c.enter(command.SysProcAttr)
				if err != nil {
					t.Fatal(err)
				}
				out, failed := command.Output()
				if err := leave(); err != nil {
					t.Fatal(err)
				}
				if failed != nil || !strings.Contains(string(out), filepath.Base(group)) {
					t.Errorf("a child is not in the group: %v\n%s", failed, out)
				}
				if after := where(); after != before {
					t.Errorf("the starting thread was in\n%sand is in\n%s", before, after)
				}
				if command.SysProcAttr.UseCgroupFD {
					t.Error("the next child would be born there too")
				}
			})
		})
	}
}

// Where there are no control groups, a program is born with its limit.
func TestDataLimit(t *testing.T) {
	c := child{argv: []string{"/bin/sh", "-c", "ulimit -d; ulimit -Hd; echo $0 $1; exit 3", "a b", "c"}}
	if err := c.limitData(100); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(filepath.Join(os.Getenv("MVM_TEST_DIR"), "slim"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "slim")
	if err := os.WriteFile(path, program, 0o755); err != nil {
		t.Fatal(err)
	}
	command := exec.Cmd{Path: path, Args: c.argv}
	out, err := command.Output()
	var exit *exec.ExitError
	if want := "102400\n102400\na b c\n"; string(out) != want || !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("it printed %q, want %q: %v", out, want, err)
	}
	if err := (&child{argv: []string{"/no/such/program"}}).limitData(100); err == nil || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that is not there: %v", err)
	}
	for _, bad := range [][]string{nil, {"100"}, {"much", "/bin/true"}, {"100", "/no/such/program"}} {
		if err := runLimitedElsewhere(path, bad); err == nil {
			t.Errorf("%q works", bad)
		}
	}
}

// runLimitedElsewhere is runLimited in a process that may turn into another.
func runLimitedElsewhere(path string, args []string) error {
	command := exec.Cmd{Path: path, Args: append([]string{ProcessName, limitedWord}, args...)}
	return command.Run()
}
