package mvm

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestProgramsSeeOnlyTheirOwn: no descriptor but 0 to 3, and in a namespace no
// process of others.
func TestProgramsSeeOnlyTheirOwn(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(sh(0, "echo /proc/$$/fd/*; echo /proc/[0-9]*; kill -0 1 && kill -TERM 1; echo $?; cat /proc/$$/limits"), sh(1, "sleep 1000"))
		l.await(0)
		lines := strings.Split(l.printed(0, "stdout"), "\n")
		var fds []string
		for _, fd := range strings.Fields(lines[0]) {
			fds = append(fds, fd[strings.LastIndexByte(fd, '/')+1:])
		}
		if got := strings.Join(fds, " "); got != "0 1 2 3 4" { // 4 is the look itself
			t.Errorf("descriptors %s", got)
		}
		if !strings.Contains(strings.Join(lines, "\n"), "Max core file size        0                    0 ") {
			t.Error("core dumps are on")
		}
		if processes := len(strings.Fields(lines[1])); cleaning == PIDNamespace && processes > 5 {
			t.Errorf("it sees %d processes: %s", processes, lines[1])
		}
		if _, err := l.call(Request{Inspect: &struct{}{}}); err != nil && cleaning == PIDNamespace {
			t.Errorf("a program's SIGTERM ended the MVM process: %v", err)
		}
		l.terminate()
	})
}

// runner is a program that is never the same process for long: each forks the
// next one, in a session of its own, and ends.
const runner = `
#include <unistd.h>
int main(void) { for (;;) { pid_t p = fork(); if (p > 0) _exit(0); if (p == 0) { setsid(); usleep(50); } } }`

func compileRunner(t *testing.T) string {
	t.Helper()
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("SKIPPED: gcc is needed to make a program that forks; install it")
	}
	dir := t.TempDir()
	compile := exec.Command(gcc, "-O2", "-o", dir+"/runner-that-forks", "-x", "c", "-")
	compile.Stdin = strings.NewReader(runner)
	if out, err := compile.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return dir + "/runner-that-forks"
}

func TestForkChainEnds(t *testing.T) {
	runner := compileRunner(t)
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(ProcessSpec{ID: 0, Command: []string{runner}}, ProcessSpec{ID: 1, Command: []string{runner}})
		l.await(0)
		l.await(1)
		began := time.Now()
		l.terminate()
		nothingLeft(t, runner)
		t.Logf("ended in %v", time.Since(began))
	})
}

// TestKillAllLooksAgain: however busy the reaper is, killing goes on, and gives
// up in the end.
func TestKillAllLooksAgain(t *testing.T) {
	s := &spawner{} // without a reaper, which would take this program's children
	s.changed = sync.NewCond(&s.mu)
	s.mu.Lock()
	over := make(chan error, 1)
	go func() { over <- s.killAll(false, 100*time.Millisecond) }()
	time.Sleep(50 * time.Millisecond) // longer than until the next look
	s.mu.Unlock()
	select {
	case err := <-over:
		if err == nil {
			t.Error("nothing is left, though nobody said so")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not look again")
	}
}

// FuzzParent: a program cannot name itself into another family.
func FuzzParent(f *testing.F) {
	for _, name := range []string{"sh", "", ") S 1 (", "(a) Z 7 ", "a\n) S 3"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if parent, ok := parseParent([]byte("12 (" + name + ") S 42 12 12 0 -1")); !ok || parent != 42 {
			t.Errorf("%q: %d, %v", name, parent, ok)
		}
		if _, ok := parseParent([]byte("12 (" + name + ") Z 42 12 12 0 -1")); ok {
			t.Errorf("%q: a zombie counts", name)
		}
		parseParent([]byte(name))
	})
}

// TestBadStarts: what a node may get wrong is told in a sentence.
func TestBadStarts(t *testing.T) {
	binary := slim(t)
	for want, config := range map[string]LaunchConfig{
		"no absolute path": {Binary: binary, Cleaning: Subreaper, Start: Start{WorkDir: "here"}},
		"cleaning":         {Binary: binary, Cleaning: "thorough", Start: Start{WorkDir: "/tmp"}},
		"listen":           {Binary: binary, Cleaning: Subreaper, Start: Start{WorkDir: "/tmp", Listen: "256.1.1.1:0"}},
	} {
		if _, err := Launch(config); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Executable(strings.NewReader("")); err == nil {
		t.Error("an empty program")
	}
	broken, err := Executable(strings.NewReader("no program"))
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	if got := Probe(broken); got != Subreaper {
		t.Errorf("a broken program probes as %s", got)
	}
	if _, err := Launch(LaunchConfig{Binary: broken, Cleaning: Subreaper}); err == nil {
		t.Error("a broken program starts")
	}
	l := launch(t, binary, Subreaper, nil)
	for _, bad := range []Request{
		{},
		{Instantiate: &Instantiate{Processes: []ProcessSpec{{ID: 1, Command: []string{"relative"}}}}},
	} {
		var e *Error
		if _, err := l.call(bad); !errors.As(err, &e) || e.Message == "" {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	l.terminate()
	if code := Main([]string{ProcessName}); code == 0 {
		t.Error("it runs from the command line")
	}
}

// ignored is the set of signals that this process was born to ignore, and so its
// children: some test runners leave one of libc's own there.
func ignored(t *testing.T) string {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "SigIgn:\t")
	set, _, _ := strings.Cut(rest, "\n")
	return set
}

// TestSignalsOfPrograms: no signal of a program's ends PID 1 of its namespace,
// and programs have no handler or mask of PID 1's.
func TestSignalsOfPrograms(t *testing.T) {
	binary := slim(t)
	if !Works(binary, PIDNamespace) {
		t.Skip("SKIPPED: this user may make no PID namespace: run as root")
	}
	l := launch(t, binary, PIDNamespace, nil)
	all := "1 2 3 6 9 10 12 13 14 15 16 19 24 25 26 29 30 40" // as signal(7) has them on most machines
	l.run(sh(0, "for i in 1 2 3 4 5 6 7 8 9 10; do for s in "+all+"; do kill -$s 1 || exit 1; done; done; sleep 0.05; grep -E '^Sig(Blk|Ign)' /proc/self/status"),
		sh(1, "kill -TERM $$; sleep 1000"), sh(2, "kill -PIPE $$; sleep 1000"))
	if s := l.await(0); s.ExitCode != 0 {
		t.Errorf("%+v", s)
	}
	for _, line := range strings.Split(strings.TrimSpace(l.printed(0, "stdout")), "\n") {
		if name, set, _ := strings.Cut(line, "\t"); set != "0000000000000000" && (name != "SigIgn:" || set != ignored(t)) {
			t.Errorf("a program has %q", line)
		}
	}
	for id, signal := range map[int]string{1: "SIGTERM", 2: "SIGPIPE"} {
		if s := l.await(id); s.Signal != signal {
			t.Errorf("%s ends a program as %+v", signal, s)
		}
	}
	if _, err := l.call(Request{Inspect: &struct{}{}}); err != nil {
		t.Errorf("a program's signals ended the MVM process: %v", err)
	}
	l.terminate()
}
