package mvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const detach = `
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        open("detached", "w").write(str(os.getpid()))
        if sys.argv[1] == "hide":
            os.execve("/bin/sleep", ["sleep", "1000.0" + sys.argv[2]], {})
        time.sleep(1000)
    os._exit(0)
os.wait() # the daemon is in a session of its own now, out of the group's reach
time.sleep(float(sys.argv[3]))
`

func detacher(t *testing.T, id int, mode, mark, stay string) ProcessSpec {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is needed to detach a process; install it")
	}
	return ProcessSpec{ID: id, Task: "detacher", Command: []string{python, "-c", detach, mode, mark, stay}, Environment: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}}
}

func TestNothingDetachedStays(t *testing.T) {
	endings := map[string]func(l *launched){
		"terminate": func(l *launched) { l.terminate() },
		"killed":    func(l *launched) { l.Kill(); l.over() },
		"node gone": func(l *launched) { l.control.Close(); l.over() },
	}
	for name, ending := range endings {
		t.Run(name, func(t *testing.T) {
			levels(t, func(t *testing.T, binary *os.File, cleaning string) {
				l := launch(t, binary, cleaning, nil)
				digits := strconv.FormatInt(time.Now().UnixNano(), 10)
				mode := "hide"
				if cleaning == Subreaper && name == "killed" {
					mode = "show" // who hides is found in the other levels only: that is why they are better
				}
				l.run(detacher(t, 0, mode, digits, "0"), detacher(t, 1, mode, digits, "1000"), sh(2, "sleep 1000 & trap '' TERM; wait"))
				for id := range 2 {
					file := filepath.Join(l.dir, fmt.Sprintf("process-%d", id), "detached")
					eventually(t, file+" is written", func() bool { b, _ := os.ReadFile(file); return len(b) > 0 })
				}
				if mode == "hide" {
					eventually(t, "two hidden sleeps run", func() bool { return len(withMark("1000.0"+digits)) == 2 })
				}
				l.await(0)
				ending(l)
				nothingLeft(t, digits)
			})
		})
	}
}

func nodeToKill() int {
	dir := os.Getenv("MVM_TEST_NODE")
	h, err := Launch(LaunchConfig{Cleaning: os.Getenv("MVM_TEST_CLEANING"), Mark: os.Getenv("MVM_TEST_MARK"), Start: Start{Attempt: "orphan/1", WorkDir: dir}})
	if err == nil {
		_, err = h.Call(context.Background(), Request{Instantiate: &Instantiate{Processes: []ProcessSpec{sh(0, "touch running; sleep 1000"), sh(1, "setsid sleep 1000 & setsid env -i sleep 1000.0"+os.Getenv("MVM_TEST_MARK")[len("orphan-"):]+" & wait")}}})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

func TestNodeKilled(t *testing.T) {
	levels(t, func(t *testing.T, _ *os.File, cleaning string) {
		dir, mark := t.TempDir(), fmt.Sprintf("orphan-%d", time.Now().UnixNano())
		node := exec.Command("/proc/self/exe")
		node.Env = append(os.Environ(), "MVM_TEST_NODE="+dir, "MVM_TEST_CLEANING="+cleaning, "MVM_TEST_MARK="+mark)
		node.Stderr = os.Stderr
		if err := node.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the program runs", func() bool { _, err := os.Stat(dir + "/process-0/running"); return err == nil })
		node.Process.Kill()
		node.Wait()
		eventually(t, "nothing is left", func() bool { return len(withMark(mark)) == 0 })
		// The node's next life removes the group that nobody lives in any more.
		if left := groupsLeft(forKilling, mark); (len(left) == 1) != (cleaning == CGroup) {
			t.Errorf("groups: %v", left)
		}
		if _, err := Sweep(mark, 0); err != nil {
			t.Error(err)
		}
		if left := groupsLeft(forKilling, mark); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// TestNodeAndMVMProcessKilled: the node's next life finds what neither of the
// two could end any more, also who hid.
func TestNodeAndMVMProcessKilled(t *testing.T) {
	levels(t, func(t *testing.T, _ *os.File, cleaning string) {
		dir, digits := t.TempDir(), strconv.FormatInt(time.Now().UnixNano(), 10)
		mark := "orphan-" + digits
		node := exec.Command("/proc/self/exe")
		node.Env = append(os.Environ(), "MVM_TEST_NODE="+dir, "MVM_TEST_CLEANING="+cleaning, "MVM_TEST_MARK="+mark)
		node.Stderr = os.Stderr
		if err := node.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { node.Process.Kill(); node.Wait() })
		hidden := func() (found []int) {
			for _, pid := range pids() {
				if command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); string(command) == "sleep\x001000.0"+digits+"\x00" {
					found = append(found, pid)
				}
			}
			return found
		}
		eventually(t, "a hidden program runs", func() bool { return len(hidden()) == 1 })
		node.Process.Signal(syscall.SIGSTOP)
		for _, pid := range descendants(node.Process.Pid) {
			if parent, _ := parentOf(pid); parent == node.Process.Pid {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		node.Process.Kill()
		node.Wait()
		if _, err := Sweep(mark, 0); err != nil {
			t.Error(err)
		}
		if cleaning == Subreaper { // that is why it is the last choice
			if len(hidden()) != 1 {
				t.Error("who hides is found at this level too: say so where it is described")
			}
			for _, pid := range hidden() {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
		eventually(t, "nothing is left", func() bool { return len(withMark(digits)) == 0 })
		if left := groupsLeft(forKilling, mark); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
}

// TestForsakenGroups: a node's sweep takes the groups that an earlier node of
// another data folder left, but none that is young or lived in.
func TestForsakenGroups(t *testing.T) {
	g := findGroups(forTasks)
	make := func(name string, age time.Duration, lived bool) string {
		group, err := g.add("mvm.test-" + strconv.Itoa(os.Getpid()) + name)
		if err != nil {
			t.Skipf("SKIPPED: no control groups can be made here: %v", err)
		}
		t.Cleanup(func() { _ = endGroup(group, time.Now().Add(10*time.Second)) })
		if lived {
			command := exec.Command("/bin/sleep", "1000")
			command.SysProcAttr = &syscall.SysProcAttr{}
			if err := within([]*cell{{groups: g, path: group}}, command.SysProcAttr, command.Start); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = command.Process.Kill(); _ = command.Wait() })
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(group, then, then); err != nil {
			t.Fatal(err)
		}
		return group
	}
	groups := map[string]bool{ // whether it stays
		make("a-all", time.Hour, false):   false,
		make("a-1", time.Minute, false):   false, // a program's of the same launch
		make("b-all", time.Hour, true):    true,
		make("b-1", time.Hour, false):     true,
		make("c-all", time.Minute, false): true,
	}
	if _, err := Sweep("nobody."+strconv.Itoa(os.Getpid()), 0); err != nil {
		t.Fatal(err)
	}
	for group, stays := range groups {
		if _, err := os.Stat(group); (err == nil) != stays {
			t.Errorf("%s: %v, want it to stay: %t", group, err, stays)
		}
	}
}

// A launch whose programs have not begun, or have ended, is not forsaken: its group for
// them is empty, but its MVM process lives.
func TestGroupsOfTheIdleStay(t *testing.T) {
	if g := findGroups(forTasks); g.parent == "" || g.unified || findGroups(forMemory).parent == "" {
		t.Skip("SKIPPED: this process may make no control groups of version 1 for memory and tasks")
	}
	binary := slim(t)
	l := launchAs(t, LaunchConfig{Binary: binary, Cleaning: Probe(binary), Limits: Limits{MemoryMiB: 150, Tasks: 60}})
	then := time.Now().Add(-time.Hour)
	for _, c := range l.around.cells {
		if err := os.Chtimes(c.path, then, then); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Sweep("nobody."+strconv.Itoa(os.Getpid()), 0); err != nil { // another node's
		t.Fatal(err)
	}
	l.run(sh(0, "exit 3"))
	if s := l.await(0); s.ExitCode != 3 {
		t.Errorf("%+v", s)
	}
	l.terminate()
}

func TestSweep(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(sh(0, "setsid sleep 1000 & wait"))
		if n, err := Sweep(l.mark[:len(l.mark)-3], 0); err != nil || n < 1 {
			t.Fatalf("swept %d, %v", n, err)
		}
		l.over()
		if l.Err() == nil {
			t.Error("a killed MVM process has no error")
		}
		if _, err := l.call(Request{Inspect: &struct{}{}}); !errors.Is(err, errGone) {
			t.Errorf("a call after the end: %v", err)
		}
	})
}

func TestUnprivileged(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: all the other tests ran without privileges already")
	}
	dir, err := os.MkdirTemp("/tmp", "mvm-unprivileged")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const nobody = 65534
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(dir+"/tmp", 0o755), os.Chown(dir+"/tmp", nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"/proc/self/exe": "test", os.Getenv("MVM_TEST_DIR") + "/slim": "slim"} {
		program, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), program, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	again := exec.Command(dir+"/test", "-test.v", "-test.run", "^(TestExitCodes|TestMemoryLimit|TestAllOrNone|TestNodeKilled|TestReexec|TestEncloseUnified)")
	again.Dir = dir
	again.Env = []string{"MVM_TEST_DIR=" + dir, "TMPDIR=" + dir + "/tmp", "HOME=" + dir + "/tmp", "PATH=/usr/bin:/bin"}
	again.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	out, err := again.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS: TestExitCodes") {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "SKIPPED") {
		t.Logf("not everything can run without privileges here:\n%s", out)
	}
}
