package mvm

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/node/build"
	"mvm/queuevm"
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

// A limit of a program's own within that of all, and beside that of tasks: each
// counts for whom it is.
func TestLimitsTogether(t *testing.T) {
	binary := slim(t)
	l := launchAs(t, LaunchConfig{Binary: binary, Cleaning: Probe(binary), Limits: Limits{MemoryMiB: 400, Tasks: 100}})
	big := taker(t, 0, 200, 0)
	big.MemoryMiB = 80
	small := sh(2, "sleep 2; exit 3") // when the other is over its limit, most likely
	small.MemoryMiB = 50
	l.run(big, taker(t, 1, 100, 0), small)
	if s := l.await(0); findGroups(forMemory).parent != "" && s.Message != "memory limit of 80 MiB exceeded" || s.ExitCode == 0 {
		t.Errorf("one over its own limit: %+v", s)
	}
	for id, want := range map[int]int{1: 0, 2: 3} {
		if s := l.await(id); s.ExitCode != want || strings.Contains(s.Message, "memory") {
			t.Errorf("one beside it: %+v", s)
		}
	}
	l.terminate()
}

// When the whole machine is out of memory, programs go first, as they are born.
func TestRankForKilling(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(sh(0, "exec cat /proc/self/oom_score_adj"))
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

// TestForkBomb: a fork bomb meets a limit, and its end; and while it is at its
// limit the MVM process goes on serving: the limit is for what it starts.
func TestForkBomb(t *testing.T) {
	if findGroups(forTasks).parent == "" {
		t.Skip("SKIPPED: this user may make no control group that limits tasks: a fork bomb would hit the machine")
	}
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		const most, talkers, lines = 64, 4, 1000
		l := launchAs(t, LaunchConfig{Binary: binary, Cleaning: cleaning, Limits: Limits{Tasks: most}})
		found := groupsLeft(forTasks, l.mark)
		if len(found) != 1 {
			t.Fatalf("the groups are %v", found)
		}
		group, own := found[0], "tasks"
		if _, err := os.Stat(filepath.Join(group, "cgroup.kill")); err == nil { // version 2
			group, own = filepath.Join(group, "tasks"), "rest/cgroup.threads"
		}
		count := func(file string) int {
			text, err := os.ReadFile(filepath.Join(group, file))
			if err != nil {
				t.Fatal(err)
			}
			_, number, events := strings.Cut(string(text), "max ")
			if !events {
				number = string(text)
			}
			n, err := strconv.Atoi(strings.TrimSpace(number))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		gate, late := filepath.Join(l.dir, "gate"), filepath.Join(l.dir, "late")
		for _, fifo := range []string{gate, late} {
			if err := unix.Mkfifo(fifo, 0o666); err != nil {
				t.Fatal(err)
			}
		}
		opened, err := os.OpenFile(gate, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer opened.Close()
		var specs []ProcessSpec
		for id := range talkers { // with what their shell has in itself: they cannot fork then
			specs = append(specs, sh(id, "read line < "+gate+"; i=0; while [ $i -lt "+strconv.Itoa(lines)+" ]; do i=$((i+1)); echo line $i; done; exit 5"))
		}
		specs = append(specs, sh(talkers, "exit 4"), sh(talkers+1, "bomb() { bomb | bomb & }; bomb; sleep 1000")) // the bomb last: it leaves room for no other
		l.must(Request{Instantiate: &Instantiate{Processes: specs, Queues: []Queue{{Queue: queuevm.Queue{ID: 1, Name: "q", Type: queuevm.QueueFifo, Full: queuevm.FullBlock, Capacity: 1 << 16}}}}})
		eventually(t, "the bomb meets its limit", func() bool { return count("pids.events") > 0 })
		if n := count("pids.current"); n > most {
			t.Errorf("there are %d tasks, over the limit of %d", n, most)
		}
		if s := l.await(talkers); s.ExitCode != 4 {
			t.Errorf("the program beside it: %+v", s)
		}
		inside, err := os.ReadFile(filepath.Join(group, own))
		if err != nil {
			t.Fatal(err)
		}
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", l.PID()))
		among := 0
		for _, thread := range threads {
			if slices.Contains(strings.Fields(string(inside)), filepath.Base(thread)) {
				among++
			}
		}
		if among > 1 {
			t.Errorf("%d of the MVM process's %d threads are among those that are limited", among, len(threads))
		}
		// Each build waits in the kernel for its source, which takes a thread, and
		// ends with the attempt.
		var building, asking sync.WaitGroup
		defer building.Wait()
		for n := range runtime.NumCPU() {
			building.Go(func() {
				if _, err := l.call(Request{Build: &build.Request{Source: "late", Language: build.Shell, Files: []build.File{{Name: "late"}}, Dir: l.dir,
					Out: filepath.Join(l.dir, "out"+strconv.Itoa(n)), Compiler: build.Compiler{Language: build.Shell, Name: "sh", Command: "/bin/sh"}}}); err == nil {
					t.Error("a build without its source")
				}
			})
		}
		for range 8 {
			asking.Go(func() {
				for range 30 {
					if _, err := l.call(Request{Inspect: &struct{}{}}); err != nil {
						t.Errorf("inspect: %v", err)
						return
					}
				}
			})
		}
		if _, err := opened.WriteString(strings.Repeat("go\n", talkers)); err != nil {
			t.Fatal(err)
		}
		for id := range talkers {
			if s := l.await(id); s.ExitCode != 5 {
				t.Errorf("a program that prints beside it: %+v", s)
			}
			if text := l.printed(id, "stdout"); !strings.HasSuffix(text, fmt.Sprintf("\nline %d\n", lines)) {
				t.Errorf("it printed %d bytes", len(text))
			}
		}
		asking.Wait()
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
