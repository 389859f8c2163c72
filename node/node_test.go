package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"mvm/node/mvm"
	"mvm/wsdl"
)

func TestLifeOfAnAttempt(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	input := g.blob("forty-two\n")
	script := `cat given/input.txt; echo "args: $*, $FLAVOUR" >&2; head -c 100000 /dev/zero | tr '\0' x > big; mkdir sub; echo small > sub/small; exit 0`
	request := &wsdl.Awaken{Attempt: m.attempt("j", 1), Broker: g.url + "/services/broker", Image: []string{g.url}, Slots: 2, Memory: 10, Proxy: wsdl.Of(false),
		Build: []*wsdl.Build{m.source("main", wsdl.LanguageShell, script)}, File: []*wsdl.FileRef{{Name: "input", Digest: input}}}
	g.set(func() { g.live[key{"j", 1}] = true })
	answer, err := m.queue.AwakenContext(context.Background(), request)
	if err != nil {
		t.Fatal(err)
	}
	if len(answer.Build) != 1 || wsdl.Or(answer.Build[0].Cached, true) || answer.Build[0].Digest == "" || answer.Address != "" {
		t.Errorf("the answer to Awaken is %+v", answer)
	}
	one, two := spec(0, "main", "a", "b c"), spec(1, "main")
	for _, s := range []*wsdl.ProcessSpec{one, two} {
		s.Input = []*wsdl.FileRef{{Name: "given/input.txt", Digest: input}}
		s.Environment = []*wsdl.Assignment{{Name: "FLAVOUR", Value: "sweet"}}
		s.Output = []*wsdl.OutputFile{{Name: "big"}, {Name: "sub/small", Process: wsdl.Of(wsdl.Number("0"))}, {Name: "none", Optional: true}}
	}
	if err := m.instantiate("j", 1, one, two); err != nil {
		t.Fatal(err)
	}
	for id := range 2 {
		eventually(t, "a process has ended", func() bool { s := g.status("j", id); return s != nil && terminal(s) })
		s := g.status("j", id)
		if *s.State != wsdl.ProcessStateExited || wsdl.Or(s.ExitCode, -1) != 0 || s.Node != m.id || s.Started == nil || s.Ended == nil || s.MaxResidentKiB == 0 {
			t.Errorf("process %d: %+v", id, s)
		}
		if got := g.text(s, "stdout"); got != "forty-two\n" {
			t.Errorf("stdout is %q", got)
		}
		if got := g.text(s, "big"); got != strings.Repeat("x", 100000) {
			t.Errorf("big has %d bytes", len(got))
		}
	}
	if got := g.text(g.status("j", 0), "stderr"); got != "args: a b c, sweet\n" {
		t.Errorf("stderr is %q", got)
	}
	if got := g.text(g.status("j", 0), "sub/small"); got != "small\n" {
		t.Errorf("sub/small is %q", got)
	}
	if n := len(g.status("j", 1).File); n != 3 {
		t.Errorf("process 1 has %d files, not stdout, stderr and big", n)
	}
	inspection, err := m.queue.InspectContext(context.Background(), &wsdl.Inspect{})
	if err != nil || len(inspection.Attempt) != 1 || len(inspection.Attempt[0].Process) != 2 || inspection.Attempt[0].State != "running" {
		t.Errorf("Inspect: %+v, %v", inspection, err)
	}
	sequence := m.terminate("j", 1, time.Second)
	m.clean()
	g.mu.Lock()
	if sequence != g.acked[laneName(m.attempt("j", 1))] || g.duplicates > 0 {
		t.Errorf("Terminate names report %d, %v are there, %d came twice", sequence, g.acked, g.duplicates)
	}
	g.mu.Unlock()
	if f := g.failures("j"); f != "" {
		t.Errorf("failures: %s", f)
	}
	if owners := m.images.Owners(); len(owners) > 0 {
		t.Errorf("%v still pin blobs", owners)
	}
	if !m.spool.empty() {
		t.Error("the spool is not empty")
	}
}

func TestAnIdleNodeRunsNothing(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	if children, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/children", os.Getpid())); err == nil && len(strings.Fields(string(children))) > 0 {
		t.Errorf("the idle node's children: %s", children)
	}
	n := g.nodes()[0]
	if n.Id != m.id || n.Incarnation != m.incarnation || wsdl.Or(n.Slots, 0) != 4 || n.Cores < 1 || n.Memory < 64 || n.Cleaning == "" || len(n.Compiler) == 0 || n.Os != "linux" {
		t.Errorf("the node describes itself as %+v", n)
	}
}

func TestBuildsThatFail(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	_, err := m.awaken("j", 1, 2, m.source("good", wsdl.LanguageShell, "exit 0"), m.source("bad", wsdl.LanguageShell, "if then ((("))
	var fault *wsdl.Fault
	if code(err) != "buildFailed" {
		t.Fatalf("Awaken: %v", err)
	}
	m.clean()
	_, again := m.awaken("j", 1, 2)
	if again == nil || again.Error() != err.Error() {
		t.Errorf("repeated, the answer is %v", again)
	}
	if fault, _ = err.(*wsdl.Fault); fault == nil || fault.Output == "" || !strings.Contains(fault.Message, "bad") {
		t.Errorf("the fault is %+v", fault)
	}
	m.terminate("j", 1, 0)
}

func TestBuildsAreShared(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	same := m.source("main", wsdl.LanguageShell, "exit 0")
	var all sync.WaitGroup
	answers := make([]*wsdl.AwakenResponse, 4)
	for i := range answers {
		all.Go(func() {
			var err error
			if answers[i], err = m.awaken(fmt.Sprint("j", i), 1, 1, same); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	fresh := 0
	for _, a := range answers {
		if a.Build[0].Digest != answers[0].Build[0].Digest {
			t.Errorf("the digests differ: %s, %s", a.Build[0].Digest, answers[0].Build[0].Digest)
		}
		if !wsdl.Or(a.Build[0].Cached, false) {
			fresh++
		}
	}
	if fresh != 1 {
		t.Errorf("%d of %d identical builds were made", fresh, len(answers))
	}
	if _, err := m.awaken("more", 1, 1); code(err) != "busy" {
		t.Errorf("without room: %v", err)
	}
	for i := range answers {
		m.terminate(fmt.Sprint("j", i), 1, 0)
	}
	m.clean()
	// A cached program cannot be changed by a job, and outlives the node.
	err := filepath.WalkDir(m.folders.builds, func(path string, d os.DirEntry, err error) error {
		if info, _ := d.Info(); err == nil && path != m.folders.builds && info.Mode().Perm()&0o222 != 0 {
			t.Errorf("%s may be written: %v", path, info.Mode())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	m.stop()
	m = g.with(m.dir, quickParts(), nil)
	answer, err := m.awaken("later", 1, 1, same)
	if err != nil || !wsdl.Or(answer.Build[0].Cached, false) {
		t.Errorf("after a restart: %+v, %v", answer, err)
	}
}

func TestCallsMayBeRepeatedAndLate(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	build := m.source("main", wsdl.LanguageShell, "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done")
	each := func(call func() (any, error)) {
		t.Helper()
		var all sync.WaitGroup
		for range 6 {
			all.Go(func() {
				if _, err := call(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
	}
	each(func() (any, error) { return m.awaken("j", 2, 1, build) })
	each(func() (any, error) { return nil, m.instantiate("j", 2, spec(0, "main")) })
	eventually(t, "the process runs", func() bool { return g.status("j", 0) != nil })

	if running := (&staged{member: m}).mvms(); len(running) != 1 {
		t.Errorf("%d MVM processes run", len(running))
	}
	if _, err := m.awaken("j", 1, 1, build); code(err) != "stale" {
		t.Errorf("an older attempt: %v", err)
	}
	old := m.attempt("j", 2)
	old.Incarnation = "feed"
	if _, err := m.queue.TerminateContext(context.Background(), &wsdl.Terminate{Attempt: old}); code(err) != "stale" {
		t.Errorf("another incarnation: %v", err)
	}
	if s := g.status("j", 0); terminal(s) {
		t.Errorf("the process was disturbed: %+v", s)
	}
	eventually(t, "the program is up", func() bool {
		answer, err := m.queue.ReadStreamContext(context.Background(), &wsdl.ReadStream{Attempt: m.attempt("j", 2), Process: wsdl.Of(int32(0)), Name: "stdout", WaitMillis: 1000})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Data != nil && string(*answer.Data) == "up\n"
	})
	each(func() (any, error) { return m.terminate("j", 2, 5*time.Second), nil })
	m.clean()
	eventually(t, "its end is reported", func() bool { return terminal(g.status("j", 0)) })
	if s := g.status("j", 0); *s.State != wsdl.ProcessStateExited || wsdl.Or(s.ExitCode, 0) != 3 || g.text(s, "stdout") != "up\nbye\n" {
		t.Errorf("after SIGTERM: %+v", s)
	}
	for _, n := range []int{1, 2} {
		if _, err := m.awaken("j", n, 1, build); code(err) != "stale" {
			t.Errorf("Awaken of %d after Terminate: %v", n, err)
		}
		if err := m.instantiate("j", n, spec(0, "main")); code(err) != "stale" {
			t.Errorf("Instantiate of %d after Terminate: %v", n, err)
		}
	}
	m.terminate("first", 1, 0)
	if _, err := m.awaken("first", 1, 1, build); code(err) != "stale" {
		t.Errorf("Awaken after a Terminate that came first: %v", err)
	}
	m.clean()
}

func TestNothingStartsThatIsNotNamedLive(t *testing.T) {
	g := newGrid(t)
	g.beat = time.Minute // only triggered heartbeats
	m := g.node()
	if _, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "exit 0")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the triggered heartbeat named it", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.ledger.held[0].named
	})
	if err := m.instantiate("j", 1, spec(0, "main")); err != nil {
		t.Errorf("what is live: %v", err)
	}
	_, err := m.queue.AwakenContext(context.Background(), &wsdl.Awaken{Attempt: m.attempt("k", 1), Broker: g.url, Image: []string{g.url}, Slots: 1, Proxy: wsdl.Of(false)})
	if err == nil {
		err = m.instantiate("k", 1)
	}
	if code(err) != "stale" {
		t.Errorf("what is not live: %v", err)
	}
}

// levels runs a test with each way of cleaning that this machine has.
func levels(t *testing.T, test func(t *testing.T, p parts)) {
	for _, cleaning := range []string{mvm.PIDNamespace, mvm.Subreaper} {
		t.Run(cleaning, func(t *testing.T) {
			p := quickParts()
			real := p.launcher
			p.launcher = func(dir string, limits mvm.Limits, log *logrus.Entry) (launcher, error) {
				l, err := real(dir, limits, log)
				if err == nil && cleaning == mvm.PIDNamespace && l.Cleaning() != cleaning {
					t.Skip("this machine makes no PID namespaces for this user: kernel.unprivileged_userns_clone, or run as root")
				}
				if err == nil {
					l.(*starter).cleaning = cleaning
				}
				return l, err
			}
			test(t, p)
		})
	}
}

// TestASilentStreamEnds: who follows what a program prints learns that it ended
// without a word.
func TestASilentStreamEnds(t *testing.T) {
	m := newGrid(t).node()
	gate := filepath.Join(t.TempDir(), "gate")
	if err := unix.Mkfifo(gate, 0o600); err != nil {
		t.Fatal(err)
	}
	m.run("j", "read line <"+gate+"; echo loud >&2")
	read := func(name string) *wsdl.ReadStreamResponse {
		answer, err := m.queue.ReadStreamContext(t.Context(), &wsdl.ReadStream{Attempt: m.attempt("j", 1), Process: wsdl.Of(int32(0)), Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return answer
	}
	if answer := read("stdout"); *answer.End || answer.Data != nil {
		t.Errorf("while it runs: %+v", answer)
	}
	if err := os.WriteFile(gate, []byte("go\n"), 0); err != nil { // waits for the reader
		t.Fatal(err)
	}
	eventually(t, "the silent stream ends", func() bool { return *read("stdout").End })
	if answer := read("stderr"); string(wsdl.Or(answer.Data, nil)) != "loud\n" || !*answer.End {
		t.Errorf("what it said: %+v", answer)
	}
}

func TestALostMVMProcess(t *testing.T) { levels(t, testALostMVMProcess) }

func testALostMVMProcess(t *testing.T, p parts) {
	g := newGrid(t)
	m := g.with(t.TempDir(), p, nil)
	mark := "lost-" + random(6)
	m.run("j", "echo before; sh -c 'sleep 1000; : "+mark+"' & sh -c 'sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) >= 2 })
	// What is still in the pipe when the MVM process is killed is lost with it.
	eventually(t, "what it printed is kept", func() bool {
		answer, err := m.queue.ReadStreamContext(t.Context(), &wsdl.ReadStream{Attempt: m.attempt("j", 1), Process: wsdl.Of(int32(0)), Name: "stdout"})
		return err == nil && string(wsdl.Or(answer.Data, nil)) == "before\n"
	})
	m.mu.Lock()
	pid := m.runners[key{"j", 1}].process.PID()
	m.mu.Unlock()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the loss is reported", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); *s.State != wsdl.ProcessStateLost || g.text(s, "stdout") != "before\n" {
		t.Errorf("the process is %+v", s)
	}
	if f := g.failures("j"); !strings.Contains(f, "MVM process") {
		t.Errorf("the failure is %q", f)
	}
	eventually(t, "everything is removed", func() bool { return !m.started("j") })
	m.clean()
	if left := pids(t, mark); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if n := m.terminate("j", 1, 0); n < 1 {
		t.Errorf("Terminate names report %d", n)
	}
}

func TestALeaseThatRunsOut(t *testing.T) {
	g := newGrid(t)
	g.lease = 500 * time.Millisecond
	m := g.node()
	mark := "lease-" + random(6)
	m.run("j", "sh -c 'trap \"\" TERM; sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) > 0 })
	// The lease is kept for as long as it is renewed.
	time.Sleep(2 * g.lease)
	if len(pids(t, mark)) == 0 {
		t.Fatal("a renewed lease ran out")
	}
	g.set(func() { g.down, g.brokerDown = true, true })
	away := time.Now()
	eventually(t, "nothing runs without a lease", func() bool { return len(pids(t, mark)) == 0 })
	if took := time.Since(away); took < g.lease-g.beat-50*time.Millisecond {
		t.Errorf("it was ended after %v, within the lease of %v", took, g.lease)
	}
	eventually(t, "everything is removed", func() bool { return !m.started("j") })
	m.clean()
	g.set(func() { g.down, g.brokerDown = false, false })
	eventually(t, "the failure arrives", func() bool { return strings.Contains(g.failures("j"), "lease ran out") })
	eventually(t, "the node serves again", func() bool {
		_, err := m.awaken("k", 1, 1)
		return err == nil
	})
}

func TestWhatIsNoLongerLiveEnds(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	m.run("j", "sleep 1000")
	g.set(func() { delete(g.live, key{"j", 1}) })
	eventually(t, "everything is removed", func() bool { return !m.started("j") })
	m.clean()
	eventually(t, "it is reported", func() bool { return strings.Contains(g.failures("j"), "no longer names it live") })
}

func TestTheBackendIsAwayAndBack(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	mark := "away-" + random(6)
	m.run("j", "sh -c 'sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) > 0 })
	before := len(g.nodes())
	g.set(func() { g.down = true })
	time.Sleep(g.lease / 3)
	g.set(func() { g.down, g.forgotten = false, true }) // it was started again and knows nobody
	eventually(t, "the node registers again", func() bool { return len(g.nodes()) > before })
	if again := g.nodes()[before]; again.Incarnation != m.incarnation || wsdl.Or(again.FreeSlots, 0) != 3 {
		t.Errorf("it registers as %+v", again)
	}
	time.Sleep(g.lease)
	if len(pids(t, mark)) == 0 {
		t.Error("the attempt did not survive")
	}
	m.terminate("j", 1, 0)
	m.clean()
}

func TestReportsWaitForTheBroker(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	g.set(func() { g.brokerDown = true })
	m.run("j", "head -c 50000 /dev/zero; exit 7")
	eventually(t, "the end is spooled", func() bool {
		files, _ := filepath.Glob(filepath.Join(m.folders.spool, "*.xml"))
		return slices.ContainsFunc(files, func(file string) bool {
			text, _ := os.ReadFile(file)
			return strings.Contains(string(text), "exited")
		})
	})
	last := m.terminate("j", 1, 0)
	m.clean()
	m.stop()
	if g.status("j", 0) != nil {
		t.Fatal("a report arrived at a broker that is away")
	}
	// The next life of the node delivers them.
	g.set(func() { g.brokerDown = false })
	next := g.with(m.dir, quickParts(), nil)
	eventually(t, "every report has arrived", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.acked[laneName(m.attempt("j", 1))] == last
	})
	if s := g.status("j", 0); wsdl.Or(s.ExitCode, 0) != 7 || len(g.text(s, "stdout")) != 50000 {
		t.Errorf("the report says %+v", s)
	}
	if next.id != m.id || next.incarnation == m.incarnation {
		t.Errorf("the node was %s/%s and is %s/%s", m.id, m.incarnation, next.id, next.incarnation)
	}
	eventually(t, "the spool is empty", next.spool.empty)
	eventually(t, "nothing is pinned", func() bool { return len(next.images.Owners()) == 0 })
}

func TestRefusedReportsAreDropped(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	g.set(func() { g.refuse = wsdl.Faultf(wsdl.FaultCodeStale, "an old attempt") })
	m.run("j", "exit 0")
	m.terminate("j", 1, 0)
	eventually(t, "the spool is empty", m.spool.empty)
}

func TestARestartSweeps(t *testing.T) { levels(t, testARestartSweeps) }

func testARestartSweeps(t *testing.T, p parts) {
	g := newGrid(t)
	m := g.with(t.TempDir(), p, nil)
	mark := "sweep-" + random(6)
	m.run("j", "(setsid sh -c 'sleep 1000; : "+mark+"' &) ; chmod 000 .; sh -c 'sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) >= 2 })
	// Another node in the same folder is refused while this one lives.
	if _, err := newNode(m.config, quickParts()); err == nil || !strings.Contains(err.Error(), "another node runs") {
		t.Fatalf("a second node in one folder: %v", err)
	}
	// As if the node had died: the lock is open, its MVM process runs on.
	if err := unix.Flock(int(m.lock.Fd()), unix.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	g.set(func() { g.down = true })
	next, err := newNode(m.config, quickParts())
	if err != nil {
		t.Fatal(err)
	}
	if left := pids(t, mark); len(left) > 0 {
		t.Errorf("processes %v are left before the node registers", left)
	}
	if entries, err := os.ReadDir(next.folders.work); err != nil || len(entries) > 0 {
		t.Errorf("the work folder holds %v (%v)", entries, err)
	}
	if next.id != m.id || next.incarnation == m.incarnation {
		t.Errorf("the node was %s/%s and is %s/%s", m.id, m.incarnation, next.id, next.incarnation)
	}
	next.lock.Close()
}

func TestManyProcesses(t *testing.T) {
	const many = 64
	g := newGrid(t)
	m := g.with(t.TempDir(), quickParts(), func(c *Config) { c.Slots = many })
	if _, err := m.awaken("j", 1, many, m.source("main", wsdl.LanguageShell, "echo $1; exit $(($1 % 3))")); err != nil {
		t.Fatal(err)
	}
	var all []*wsdl.ProcessSpec
	for i := range many {
		all = append(all, spec(i, "main", fmt.Sprint(i)))
	}
	if err := m.instantiate("j", 1, all...); err != nil {
		t.Fatal(err)
	}
	for i := range many {
		eventually(t, "a process has ended", func() bool { s := g.status("j", i); return s != nil && terminal(s) })
		s := g.status("j", i)
		if wsdl.Or(s.ExitCode, -1) != int32(i%3) || g.text(s, "stdout") != fmt.Sprintln(i) {
			t.Errorf("process %d: %+v, %q", i, s, g.text(s, "stdout"))
		}
	}
	m.terminate("j", 1, 0)
	m.clean()
}

// A node that is killed takes its attempts with it, and its next life tells
// what the killed one could not.
func TestAKilledNode(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	start := func() (*exec.Cmd, *member) { return g.alone(dir, "") }
	child, m := start()
	mark := "killed-" + random(6)
	eventually(t, "the program is started", func() bool { // the answer to Register may still be on its way
		_, err := m.awaken("j", 1, 2, m.source("main", wsdl.LanguageShell, "case $1 in 0) sleep 0.1; exit 4;; esac; (setsid sleep 1000 "+mark+" &); sh -c 'sleep 1000; : "+mark+"'"))
		if err != nil && code(err) != "unavailable" {
			t.Fatal(err)
		}
		return err == nil
	})
	g.set(func() { g.brokerDown = true })
	if err := m.instantiate("j", 1, spec(0, "main", "0"), spec(1, "main", "1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an end is spooled", func() bool {
		files, _ := filepath.Glob(filepath.Join(m.folders.spool, "*.xml"))
		for _, f := range files {
			if text, _ := os.ReadFile(f); bytes.Contains(text, []byte("exitCode>4<")) {
				return len(pids(t, mark)) > 0
			}
		}
		return false
	})
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait()
	eventually(t, "the programs die with their node", func() bool { return len(pids(t, mark)) == 0 })
	g.set(func() { g.brokerDown = false })
	_, next := start()
	if next.id != m.id || next.incarnation == m.incarnation {
		t.Errorf("the node was %s/%s and is %s/%s", m.id, m.incarnation, next.id, next.incarnation)
	}
	if left, err := os.ReadDir(m.folders.work); err != nil || len(left) > 0 {
		t.Errorf("%s holds %v after the sweep (%v)", m.folders.work, left, err)
	}
	eventually(t, "the killed node's report arrives", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); wsdl.Or(s.ExitCode, 0) != 4 {
		t.Errorf("process 0 is %+v", s)
	}
}

func TestOutputsThatAreNone(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	if _, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, `
		ln -s /etc/passwd link; mkfifo pipe; mkdir folder; mkdir real; echo x > real/file; ln -s real way; ln -s ../../.. up; exit 0`)); err != nil {
		t.Fatal(err)
	}
	s := spec(0, "main")
	for _, name := range []string{"link", "pipe", "folder", "way/file", "up/node-id", "missing"} {
		s.Output = append(s.Output, &wsdl.OutputFile{Name: name})
	}
	s.Output = append(s.Output, &wsdl.OutputFile{Name: "real/file"})
	if err := m.instantiate("j", 1, s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the process has ended", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	status := g.status("j", 0)
	if len(status.File) != 3 || g.text(status, "real/file") != "x\n" {
		t.Errorf("the files are %v", status.File)
	}
	for _, name := range []string{"link", "pipe", "folder", "way", "up", "missing"} {
		if !strings.Contains(status.Message, name) || !strings.Contains(g.failures("j"), name) {
			t.Errorf("%s is not named: %q, %q", name, status.Message, g.failures("j"))
		}
	}
}

func TestBadRequestsForProcesses(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	for i, change := range []func(*wsdl.ProcessSpec){
		func(s *wsdl.ProcessSpec) { s.Source = "other" },
		func(s *wsdl.ProcessSpec) { s.Input = []*wsdl.FileRef{{Name: "../x", Digest: g.blob("x")}} },
	} {
		job := fmt.Sprint("j", i)
		if _, err := m.awaken(job, 1, 1, m.source("main", wsdl.LanguageShell, "exit 0")); err != nil {
			t.Fatal(err)
		}
		s := spec(0, "main")
		change(s)
		if err := m.instantiate(job, 1, s); code(err) != "invalidRequest" {
			t.Errorf("%d: %v", i, err)
		}
		m.clean()
	}
	if _, err := m.awaken("k", 1, 1, &wsdl.Build{Source: "s", Language: wsdl.Of(wsdl.LanguageShell), File: []*wsdl.FileRef{{Name: "a.sh", Digest: "sha256:" + strings.Repeat("0", 64)}}}); err == nil {
		t.Error("a blob that nobody has was fetched")
	}
	m.clean()
}

func TestUnknownJobs(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	ctx := context.Background()
	_, enqueue := m.queue.EnqueueContext(ctx, &wsdl.Enqueue{Job: "nope", Queue: "q"})
	_, dequeue := m.queue.DequeueContext(ctx, &wsdl.Dequeue{Job: "nope", Queue: "q"})
	_, socket := m.queue.OpenSocketContext(ctx, &wsdl.OpenSocket{Job: "nope", Queue: "q"})
	_, stream := m.queue.ReadStreamContext(ctx, &wsdl.ReadStream{Attempt: m.attempt("nope", 1), Process: wsdl.Of(int32(0)), Name: "stdout"})
	if _, err := m.queue.EnqueueContext(ctx, &wsdl.Enqueue{Queue: "default"}); code(err) != "invalidRequest" || !strings.Contains(err.Error(), "SubmitJob") {
		t.Errorf("a job that is enqueued from outside: %v", err)
	}
	for i, err := range []error{enqueue, dequeue, socket, stream} {
		if code(err) != "notFound" {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

func TestShutdown(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	mark := "down-" + random(6)
	m.run("j", "sh -c 'sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) > 0 })
	m.stop()
	m.clean()
	if left := pids(t, mark); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	if f := g.failures("j"); !strings.Contains(f, "shut down") {
		t.Errorf("the failure is %q", f)
	}
}

// BenchmarkAwaken is one Awaken whose build is cached, with its Terminate.
func BenchmarkAwaken(b *testing.B) {
	g := newGrid(b)
	m := g.node()
	source := m.source("main", wsdl.LanguageShell, "exit 0")
	var awakening time.Duration
	for i := range b.N + 1 {
		if i == 1 { // the first one builds
			awakening = 0
			b.ResetTimer()
		}
		job := fmt.Sprint("j", i)
		began := time.Now()
		if _, err := m.awaken(job, 1, 1, source); err != nil {
			b.Fatal(err)
		}
		awakening += time.Since(began)
		m.terminate(job, 1, 0)
		g.set(func() { delete(g.live, key{job, 1}) })
	}
	b.ReportMetric(float64(awakening.Microseconds())/float64(b.N), "awaken-µs")
}
