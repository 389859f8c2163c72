package mvm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// taker takes so much memory and stays for so many seconds.
func taker(t *testing.T, id, mebibytes, seconds int) ProcessSpec {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is needed to take memory; install it")
	}
	return ProcessSpec{ID: id, Environment: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")},
		Command: []string{python, "-c", fmt.Sprintf("import time; x = bytearray(%d << 20); x[::4096] = b'x' * len(x[::4096]); print('taken', flush=True); time.sleep(%d)", mebibytes, seconds)}}
}

// What no program has claimed is bounded all the same: one alone, and all
// together.
func TestMemoryOfAll(t *testing.T) {
	grouped := findGroups(forMemory).parent != ""
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launchAs(t, LaunchConfig{Binary: binary, Cleaning: cleaning, Limits: Limits{MemoryMiB: 150}})
		l.run(taker(t, 0, 400, 0), sh(1, "sleep 0.1; echo fine; exit 3"))
		s := l.await(0)
		if grouped && !strings.HasPrefix(s.Message, "memory limit of 150 MiB exceeded") || !grouped && !strings.Contains(l.printed(0, "stderr"), "MemoryError") {
			t.Errorf("one that takes too much: %+v\n%s", s, l.printed(0, "stderr"))
		}
		if s := l.await(1); s.ExitCode != 3 || s.Message != "exit status 3" {
			t.Errorf("one beside it: %+v", s)
		}
		l.terminate()
		if !grouped {
			t.Log("SKIPPED: without a control group for memory each process has its limit for itself")
			return
		}
		l = launchAs(t, LaunchConfig{Binary: binary, Cleaning: cleaning, Limits: Limits{MemoryMiB: 150}})
		l.run(taker(t, 0, 70, 1000), taker(t, 1, 70, 1000), taker(t, 2, 70, 1000))
		over := 0
		eventually(t, "one had to go", func() bool {
			over = 0
			for _, p := range l.must(Request{Inspect: &struct{}{}}).Inspect.Processes {
				if strings.HasPrefix(p.Message, "memory limit of 150 MiB exceeded") {
					over++
				}
			}
			return over > 0
		})
		if over > 2 {
			t.Errorf("%d of three are over a limit that two exceed", over)
		}
		l.terminate()
	})
}

// When the whole machine is out of memory, programs go first.
func TestRankForKilling(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(sh(0, "until grep -qx 1000 /proc/$$/oom_score_adj; do sleep 0.01; done; exec cat /proc/self/oom_score_adj"))
		l.await(0)
		if got := l.printed(0, "stdout"); got != "1000\n" {
			t.Errorf("a program's rank is %q", got)
		}
		mine, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", l.PID()))
		if err != nil || string(mine) == "1000\n" {
			t.Errorf("the MVM process's rank is %q, %v", mine, err)
		}
		l.terminate()
	})
}

// A fork bomb meets a limit, and its end.
func TestForkBomb(t *testing.T) {
	if findGroups(forTasks).parent == "" {
		t.Skip("SKIPPED: this user may make no control group that limits tasks: a fork bomb would hit the machine")
	}
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		const most = 200
		l := launchAs(t, LaunchConfig{Binary: binary, Cleaning: cleaning, Limits: Limits{Tasks: most}})
		group := groupsLeft(forTasks, l.mark)
		if len(group) != 1 {
			t.Fatalf("the groups are %v", group)
		}
		count := func(file string) int {
			text, err := os.ReadFile(filepath.Join(group[0], file))
			if err != nil {
				t.Fatal(err)
			}
			n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
			return n
		}
		l.run(sh(0, "bomb() { bomb | bomb & }; bomb; sleep 1000"), sh(1, "exit 4"))
		eventually(t, "the bomb meets its limit", func() bool {
			text, err := os.ReadFile(filepath.Join(group[0], "pids.events"))
			if err != nil {
				t.Fatal(err)
			}
			_, n, _ := strings.Cut(strings.TrimSpace(string(text)), "max ")
			return n != "" && n != "0"
		})
		if n := count("pids.current"); n > most {
			t.Errorf("there are %d tasks, over the limit of %d", n, most)
		}
		if s := l.await(1); s.ExitCode != 4 {
			t.Errorf("the program beside it: %+v", s)
		}
		l.terminate()
	})
}

// What programs leave in shared memory goes where namespaces can be had; that is
// one way in which the other levels are weaker.
func TestSharedMemoryLeft(t *testing.T) {
	if unix.Access("/dev/shm", unix.W_OK) != nil {
		t.Skip("SKIPPED: this machine has no /dev/shm to write to")
	}
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		name := fmt.Sprintf("/dev/shm/mvm-test-%d", os.Getpid())
		t.Cleanup(func() { os.Remove(name) })
		l.run(sh(0, "echo here > "+name+" && cat "+name))
		l.await(0)
		if got := l.printed(0, "stdout"); got != "here\n" {
			t.Errorf("it read %q: %s", got, l.printed(0, "stderr"))
		}
		l.terminate()
		if _, err := os.Stat(name); (err == nil) != (cleaning != PIDNamespace) {
			t.Errorf("%s after the end: %v", name, err)
		}
	})
}
