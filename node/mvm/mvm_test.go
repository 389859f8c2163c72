package mvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test program plays three more parts: an MVM process (as all of mvm does),

// and a node that is killed.

func TestMain(m *testing.M) {
	if IsProcess(os.Args) {
		os.Exit(Main(os.Args))
	}
	if os.Getenv("MVM_TEST_NODE") != "" {
		os.Exit(nodeToKill())
	}
	if os.Getenv("MVM_TEST_DIR") != "" { // this is TestUnprivileged's second life
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "mvm-test")
	if err != nil {
		panic(err)
	}
	os.Setenv("MVM_TEST_DIR", dir)
	build := exec.Command("go", "build", "-o", filepath.Join(dir, "slim"), "./process")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // as the Makefile has it: no C library to load
	if raced() {
		build = exec.Command("go", "build", "-race", "-o", filepath.Join(dir, "slim"), "./process")
	}
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// raced tells whether the tests, and so the MVM process too, look for races.

func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func slim(t testing.TB) *os.File {
	t.Helper()
	program, err := os.Open(filepath.Join(os.Getenv("MVM_TEST_DIR"), "slim"))
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	f, err := Executable(program)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// TestExecutable: a program runs from either kind of file, and holds no file
// of the machine open.
func TestExecutable(t *testing.T) {
	for name, file := range map[string]func() (*os.File, error){"huge pages": hugeFile, "memfd": memoryFile} {
		t.Run(name, func(t *testing.T) {
			writer, err := file()
			if err != nil {
				t.Skipf("SKIPPED: this machine has no such files: %v", err)
			}
			program, err := seal(writer, slim(t))
			if err != nil {
				t.Fatal(err)
			}
			defer program.Close()
			if cleaning := Probe(slim(t)); !Works(program, cleaning) {
				t.Errorf("it does not run, at the level %s", cleaning)
			}
			var s unix.Stat_t
			if err := unix.Fstat(int(program.Fd()), &s); err != nil || s.Nlink != 0 {
				t.Errorf("%d names, %v: it stays when the node is gone", s.Nlink, err)
			}
		})
	}
}

// levels runs a test under all levels of cleaning.

func levels(t *testing.T, test func(t *testing.T, binary *os.File, cleaning string)) {
	binary := slim(t)
	best := Probe(binary)
	for _, cleaning := range []string{PIDNamespace, CGroup, Subreaper} {
		t.Run(cleaning, func(t *testing.T) {
			if cleaning == CGroup && !Works(binary, CGroup) {
				t.Skip("SKIPPED: this user may make no control group that can be killed: run as root, or in a delegated group")
			}
			if cleaning == PIDNamespace && best != PIDNamespace {
				t.Skip("SKIPPED: this machine lets nobody make a PID namespace with a /proc of its own")
			}
			test(t, binary, cleaning)
		})
	}
}

// launched is an MVM process under test, with its events as they come.

type launched struct {
	*Handle
	t     testing.TB
	dir   string
	mark  string
	ended map[int]ProcessState
	other []Event
}

func launch(t testing.TB, binary *os.File, cleaning string, change func(*Start)) *launched {
	t.Helper()
	config := LaunchConfig{Binary: binary, Cleaning: cleaning}
	if change != nil {
		change(&config.Start)
	}
	return launchAs(t, config)
}

func launchAs(t testing.TB, config LaunchConfig) *launched {
	t.Helper()
	l := &launched{t: t, dir: t.TempDir(), mark: fmt.Sprintf("test-%d-%s-%d", os.Getpid(), t.Name(), time.Now().UnixNano()), ended: map[int]ProcessState{}}
	config.Mark, config.Start.Attempt, config.Start.WorkDir = l.mark, t.Name()+"/1", l.dir
	if config.Start.Node == "" {
		config.Start.Node = "a"
	}
	var err error
	if l.Handle, err = Launch(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Kill(); <-l.Done() })
	if got := l.Ready().Cleaning; got != config.Cleaning {
		t.Fatalf("cleaning is %s, want %s", got, config.Cleaning)
	}
	return l
}

func (l *launched) call(r Request) (Reply, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return l.Call(ctx, r)
}

func (l *launched) must(r Request) Reply {
	l.t.Helper()
	reply, err := l.call(r)
	if err != nil {
		l.t.Fatal(err)
	}
	return reply
}

// await reads events until the process has ended.
func (l *launched) await(id int) ProcessState {
	l.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		if s, ok := l.ended[id]; ok {
			return s
		}
		select {
		case e, ok := <-l.Events():
			if !ok {
				l.t.Fatalf("the MVM process is gone before process %d has ended", id)
			}
			if e.Process == nil {
				l.keep(e)
			} else if e.Process.State != "running" {
				l.ended[e.Process.ID] = *e.Process
			}
		case <-limit:
			l.t.Fatalf("process %d does not end", id)
		}
	}
}

// keep leaves out words of quiet: on a busy machine everybody may wait for a while.
func (l *launched) keep(e Event) {
	if e.Quiet == 0 {
		l.other = append(l.other, e)
	}
}

// over expects that the MVM process and all that it started are gone.
func (l *launched) over() {
	l.t.Helper()
	select {
	case <-l.Done():
	case <-time.After(20 * time.Second):
		l.t.Fatal("the MVM process does not end")
	}
	for e := range l.Events() {
		if e.Process == nil {
			l.keep(e)
		}
	}
	nothingLeft(l.t, l.mark)
	if left := slices.Concat(groupsLeft(forKilling, l.mark), groupsLeft(forMemory, l.mark), groupsLeft(forTasks, l.mark)); len(left) > 0 {
		l.t.Errorf("left behind: %v", left)
	}
}

func (l *launched) terminate() {
	l.t.Helper()
	l.must(Request{Terminate: &Terminate{Grace: time.Second, Reason: "finished"}})
	l.over()
	if err := l.Err(); err != nil {
		l.t.Fatal(err)
	}
}

// nothingLeft looks for what carries the mark in its environment or in its
// command line.
func nothingLeft(t testing.TB, mark string) {
	t.Helper()
	if left := withMark(mark); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func withMark(mark string) (left []string) {
	for _, pid := range pids() {
		dir := "/proc/" + strconv.Itoa(pid)
		environment, _ := os.ReadFile(dir + "/environ")
		command, _ := os.ReadFile(dir + "/cmdline")
		if pid != os.Getpid() && strings.Contains(string(environment)+string(command), mark) {
			left = append(left, fmt.Sprintf("%d %q", pid, command))
		}
	}
	return left
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("does not come true: %s", what)
		}
	}
}

func sh(id int, script string) ProcessSpec {
	return ProcessSpec{ID: id, Task: "test", Index: id, Count: 1, Command: []string{"/bin/sh", "-c", script}}
}

func (l *launched) run(specs ...ProcessSpec) {
	l.t.Helper()
	if n := l.must(Request{Instantiate: &Instantiate{Processes: specs}}).Count; n != len(specs) {
		l.t.Fatalf("%d processes run, want %d", n, len(specs))
	}
}

func (l *launched) printed(process int, name string) string {
	l.t.Helper()
	data, _, _, _, err := ReadStream(l.dir, process, name, 0, 1<<20)
	if err != nil {
		l.t.Fatal(err)
	}
	return string(data)
}

func TestExitCodesUsageAndStreams(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(
			sh(0, `echo out; echo err >&2; pwd; exit 7`),
			sh(1, `kill -SEGV $$`),
			sh(2, `i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo "$COLOR $HOME"; env | sort >&2; cat`),
		)
		if s := l.await(0); s.State != "exited" || s.ExitCode != 7 || s.Message != "exit status 7" {
			t.Errorf("process 0: %+v", s)
		}
		if s := l.await(1); s.State != "killed" || s.Signal != "SIGSEGV" || s.ExitCode != 128+11 {
			t.Errorf("process 1: %+v", s)
		}
		if s := l.await(2); s.State != "exited" || s.ExitCode != 0 || s.User < 10*time.Millisecond || s.MaxRSSKiB < 100 || !s.Ended.After(s.Started) {
			t.Errorf("process 2: %+v", s)
		}
		if got, want := l.printed(0, "stdout"), "out\n"+l.dir+"/process-0\n"; got != want {
			t.Errorf("stdout is %q, want %q", got, want)
		}
		if got := l.printed(0, "stderr"); got != "err\n" {
			t.Errorf("stderr is %q", got)
		}
		if _, next, end, _, err := ReadStream(l.dir, 0, "stderr", 0, 100); !end || next != 4 || err != nil {
			t.Errorf("the end of stderr: next %d, end %v, %v", next, end, err)
		}
		if got := l.printed(2, "stderr"); strings.Contains(got, "GOPATH") || !strings.Contains(got, "MVM_ATTEMPT="+l.mark) || !strings.Contains(got, "MVM_CONTROL=3") {
			t.Errorf("the environment is\n%s", got)
		}
		states := l.must(Request{Inspect: &struct{}{}}).Inspect.Processes
		if len(states) != 3 || states[0].ExitCode != 7 {
			t.Errorf("inspect: %+v", states)
		}
		if _, err := l.call(Request{Instantiate: &Instantiate{}}); err == nil || err.(*Error).Code != "conflict" {
			t.Errorf("instantiated twice: %v", err)
		}
		l.terminate()
		if traffic := l.other; len(traffic) != 1 || traffic[0].Traffic == nil || traffic[0].Traffic.Bytes != 0 {
			t.Errorf("other events: %+v", traffic)
		}
	})
}

func TestAllOrNone(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		_, err := l.call(Request{Instantiate: &Instantiate{Processes: []ProcessSpec{
			sh(0, "sleep 1000"), sh(1, "setsid sleep 1000"), {ID: 2, Task: "ghost", Command: []string{"/no/such/program"}},
		}}})
		var e *Error
		if !errors.As(err, &e) || !strings.Contains(e.Message, "/no/such/program") || !strings.Contains(e.Message, "ghost") {
			t.Fatalf("a program that is not there: %v", err)
		}
		for _, id := range []int{0, 1} {
			if s := l.await(id); s.State != "killed" {
				t.Errorf("process %d: %+v", id, s)
			}
		}
		for _, p := range withMark(l.mark) {
			if !strings.Contains(p, ProcessName) {
				t.Errorf("left: %s", p)
			}
		}
		l.terminate()
	})
}

// detach forks twice, starts a session and stays, as daemons do. It also hides

// its environment.

// nodeToKill is a node that starts an MVM process and then waits to be killed.

func TestWallTime(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		began := time.Now()
		l.must(Request{Instantiate: &Instantiate{WallTime: time.Second, Processes: []ProcessSpec{
			sh(0, "trap 'echo told; exit 3' TERM; sleep 1000 & wait"),
			sh(1, "trap '' TERM; while :; do sleep 1000; done"),
		}}})
		if s := l.await(0); s.ExitCode != 3 || s.Message != "wall time of 1s exceeded" || l.printed(0, "stdout") != "told\n" {
			t.Errorf("one that listens: %+v", s)
		}
		s := l.await(1)
		if s.Signal != "SIGKILL" || s.Message != "wall time of 1s exceeded" {
			t.Errorf("one that does not: %+v", s)
		}
		if took := time.Since(began); took < time.Second+wallGrace || took > 15*time.Second {
			t.Errorf("it took %v", took)
		}
		if len(l.other) == 0 || l.other[0].Failure == "" {
			t.Errorf("other events: %+v", l.other)
		}
		l.terminate()
	})
}

func TestStreamFlood(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, func(s *Start) { s.StreamMax = 10000 })
		l.run(sh(0, `i=0; while [ $i -lt 200000 ]; do i=$((i+1)); echo $i; done`), sh(1, "yes"))
		l.await(0)
		got := l.printed(0, "stdout")
		if !strings.HasPrefix(got, "1\n2\n3\n") || !strings.HasSuffix(got, "\n199999\n200000\n") || len(got) > 10100 || len(got) < 10000 {
			t.Errorf("%d bytes: %.20q ... %q", len(got), got, got[len(got)-20:])
		}
		const printed = 9*2 + 90*3 + 900*4 + 9000*5 + 90000*6 + 100001*7
		if !strings.Contains(got, fmt.Sprintf("\n[mvm: %d bytes left out]\n", printed-10000)) {
			t.Error("it does not say how much was left out")
		}
		_, next, end, dropped, err := ReadStream(l.dir, 0, "stdout", 5000, 1<<20)
		if next != printed || !end || dropped != printed-10000 || err != nil {
			t.Errorf("next %d, end %v, dropped %d, %v", next, end, dropped, err)
		}
		// A flood that goes on is drained, and readable meanwhile.
		offset, rounds := int64(0), 0
		eventually(t, "the flood was followed over 50 MB", func() bool {
			data, next, end, dropped, err := ReadStream(l.dir, 1, "stdout", offset, 1<<20)
			if err != nil || end {
				t.Fatal(end, err)
			}
			if dropped > 0 {
				_, after, _ := strings.Cut(string(data), "left out]\n")
				data = []byte(after)
			}
			if strings.Trim(string(data), "y\n") != "" || strings.Contains(string(data), "yy") {
				t.Fatalf("round %d: %q", rounds, data)
			}
			offset = next
			rounds++
			return offset > 50<<20
		})
		l.terminate()
		if _, _, end, _, err := ReadStream(l.dir, 1, "stdout", offset+1<<40, 10); err != nil || !end {
			t.Errorf("behind the end: %v %v", end, err)
		}
	})
}

// TestReexec runs all of a program as the MVM process, for a build without the

// slim one in it.

func TestReexec(t *testing.T) {
	l := launch(t, nil, Probe(nil), nil)
	l.run(sh(0, "exit 0"))
	l.await(0)
	l.terminate()
}

// TestUnprivileged runs some of these tests again as a user without rights.

// TestStartCost measures what every job pays. The limit is of CPU time, so that

// a busy machine does not fail it.
