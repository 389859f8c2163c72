package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"mvm/node/mvm"
	"mvm/wsdl"
)

// faulty is a launcher whose MVM processes are real and misbehave.
type faulty struct {
	launcher
	refuse   error
	launched func()
	clean    func() error
	call     func(ctx context.Context, next process, r mvm.Request) (mvm.Reply, error)
}

type faultyProcess struct {
	process
	faulty *faulty
}

func (f *faulty) Launch(ctx context.Context, start mvm.Start) (process, error) {
	if f.launched != nil {
		f.launched()
	}
	if f.refuse != nil {
		return nil, f.refuse
	}
	p, err := f.launcher.Launch(ctx, start)
	if err == nil && (f.call != nil || f.clean != nil) {
		p = &faultyProcess{p, f}
	}
	return p, err
}

func (p *faultyProcess) Call(ctx context.Context, r mvm.Request) (mvm.Reply, error) {
	if p.faulty.call == nil {
		return p.process.Call(ctx, r)
	}
	return p.faulty.call(ctx, p.process, r)
}

func (p *faultyProcess) Clean() error {
	if p.faulty.clean == nil {
		return p.process.Clean()
	}
	return p.faulty.clean()
}

// faulty starts a node whose MVM processes misbehave.
func (g *grid) faulty(f *faulty) *member {
	p := quickParts()
	real := p.launcher
	p.launcher = func(dir string, limits mvm.Limits, log *logrus.Entry) (_ launcher, err error) {
		f.launcher, err = real(dir, limits, log)
		return f, err
	}
	return g.with(g.t.TempDir(), p, nil)
}

func TestAnMVMProcessThatCannotStart(t *testing.T) {
	g := newGrid(t)
	f := &faulty{refuse: errors.New("no memory")}
	m := g.faulty(f)
	_, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "exit 0"))
	if code(err) != "internal" || !strings.Contains(err.Error(), "no memory") {
		t.Errorf("Awaken: %v", err)
	}
	m.clean()
	m.terminate("j", 1, 0)
}

func TestTerminateBreaksABuildOff(t *testing.T) {
	g := newGrid(t)
	building := make(chan struct{}, 2)
	m := g.faulty(&faulty{call: func(ctx context.Context, next process, r mvm.Request) (mvm.Reply, error) {
		if r.Build != nil && strings.HasPrefix(r.Build.Source, "slow") {
			building <- struct{}{}
			<-ctx.Done()
			return mvm.Reply{}, ctx.Err()
		}
		return next.Call(ctx, r)
	}})
	slow := m.source("slow", wsdl.LanguageShell, "exit 0")
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { _, err := m.awaken("j", 1, 1, slow); first <- err }()
	<-building
	// Another attempt waits for the same build, and takes it over.
	quick := m.source("quick", wsdl.LanguageShell, "exit 0")
	go func() { _, err := m.awaken("k", 1, 1, quick); second <- err }()
	eventually(t, "the second attempt is there", func() bool { return m.started("k") })
	m.terminate("j", 1, 0)
	if err := <-first; code(err) != "stale" {
		t.Errorf("the broken off Awaken: %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the other one: %v", err)
	}
	m.terminate("k", 1, 0)
	m.clean()
}

func TestAnMVMProcessThatHangs(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	mark := "hang-" + random(6)
	m.run("j", "sh -c 'sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) > 0 })
	m.mu.Lock()
	pid := m.runners[key{"j", 1}].process.PID()
	m.mu.Unlock()
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	m.terminate("j", 1, 200*time.Millisecond)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Terminate took %v", took)
	}
	m.clean()
	if left := pids(t, mark); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	eventually(t, "the process is reported", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); *s.State != wsdl.ProcessStateLost || !strings.Contains(s.Message, "the test is over") {
		t.Errorf("the process is %+v", s)
	}
}

func TestGraceIsCutShort(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	m.run("j", "trap '' TERM; echo up; while :; do sleep 0.01; done")
	eventually(t, "the program is up", func() bool {
		answer, err := m.queue.ReadStreamContext(context.Background(), &wsdl.ReadStream{Attempt: m.attempt("j", 1), Process: wsdl.Of(int32(0)), Name: "stdout", WaitMillis: 1000})
		return err == nil && answer.Data != nil
	})
	slow := make(chan time.Duration, 1)
	began := time.Now()
	go func() { m.terminate("j", 1, time.Minute); slow <- time.Since(began) }()
	eventually(t, "it is ending", func() bool {
		answer, err := m.queue.InspectContext(context.Background(), &wsdl.Inspect{Job: "j"})
		return err == nil && len(answer.Attempt) == 1 && answer.Attempt[0].State == "terminating"
	})
	m.terminate("j", 1, 0)
	if took := <-slow; took > 10*time.Second {
		t.Errorf("Terminate took %v", took)
	}
	m.clean()
}

// A full disk must not lose a report.
func TestASpoolWithoutADisk(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	m.spool.mu.Lock()
	m.spool.dir = "/dev/null/spool"
	m.spool.mu.Unlock()
	m.run("j", "exit 5")
	eventually(t, "the report arrives", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); wsdl.Or(s.ExitCode, 0) != 5 {
		t.Errorf("the process is %+v", s)
	}
	m.terminate("j", 1, 0)
	eventually(t, "the spool is empty", m.spool.empty)
}

// Anyone can send an Awaken. One of which no heartbeat's answer knows has
// nothing fetched, built or started, and nothing told to whom it names.
func TestAForgedAwaken(t *testing.T) {
	g := newGrid(t)
	launched := 0
	m := g.faulty(&faulty{launched: func() { launched++ }})
	build := m.source("main", wsdl.LanguageShell, "exit 0")
	for _, down := range []bool{false, true} {
		g.set(func() { g.down = down })
		_, err := m.queue.AwakenContext(context.Background(), &wsdl.Awaken{Attempt: m.attempt(fmt.Sprint("forged", down), 1), Broker: g.url + "/services/broker",
			Image: []string{g.url}, Slots: 4, Proxy: wsdl.Of(true), Build: []*wsdl.Build{build}})
		if code(err) != "stale" {
			t.Errorf("Awaken: %v", err)
		}
		m.clean()
	}
	g.set(func() { g.down = false })
	if launched > 0 {
		t.Errorf("%d MVM processes were started", launched)
	}
	if m.images.Has(build.File[0].Digest) {
		t.Error("its source was fetched")
	}
	if f := g.failures("forgedfalse") + g.failures("forgedtrue"); f != "" || !m.spool.empty() {
		t.Errorf("it was reported: %q", f)
	}
}

// Terminate is acknowledged when nothing is left, not before.
func TestProcessesThatDoNotEnd(t *testing.T) {
	g := newGrid(t)
	var stuck atomic.Bool
	stuck.Store(true)
	m := g.faulty(&faulty{clean: func() error {
		if stuck.Load() {
			return errors.New("process 7 does not end")
		}
		return nil
	}})
	m.run("j", "sleep 1000")
	for range 2 {
		_, err := m.queue.TerminateContext(context.Background(), &wsdl.Terminate{Attempt: m.attempt("j", 1)})
		if code(err) != "unavailable" || !strings.Contains(err.Error(), "process 7") {
			t.Fatalf("Terminate: %v", err)
		}
	}
	m.mu.Lock()
	if free := m.ledger.free(); free == m.total {
		t.Error("its room is free again")
	}
	m.mu.Unlock()
	stuck.Store(false)
	m.terminate("j", 1, 0)
	m.clean()
	// A node that shuts down does not wait for what never ends.
	stuck.Store(true)
	m.run("k", "sleep 1000")
	m.stop()
}

// What a queue took before something kept the rest out is told.
func TestAnEnqueueThatFailsHalfway(t *testing.T) {
	g := newGrid(t)
	m := g.faulty(&faulty{call: func(ctx context.Context, next process, r mvm.Request) (mvm.Reply, error) {
		if r.Enqueue != nil {
			failed := &mvm.Error{Code: "conflict", Message: "queue q is closed"}
			return mvm.Reply{Count: len(r.Enqueue.Items) / 2, Error: failed}, failed
		}
		return next.Call(ctx, r)
	}})
	m.run("j", "sleep 1000")
	item := wsdl.Of(wsdl.Binary("x"))
	put, err := m.queue.EnqueueContext(context.Background(), &wsdl.Enqueue{Job: "j", Queue: "q", Item: []*wsdl.Binary{item, item}})
	if err != nil || wsdl.Or(put.Accepted, -1) != 1 {
		t.Errorf("half an Enqueue: %+v, %v", put, err)
	}
	_, err = m.queue.EnqueueContext(context.Background(), &wsdl.Enqueue{Job: "j", Queue: "q", Item: []*wsdl.Binary{item}})
	var fault *wsdl.Fault
	if code(err) != "conflict" || !errors.As(err, &fault) || fault.Advice == "" {
		t.Errorf("the other half: %v", err)
	}
	m.terminate("j", 1, 0)
	m.clean()
}

// A file that nobody can remove does not keep a machine out of the grid.
func TestAFileThatStays(t *testing.T) {
	dir := t.TempDir()
	left := filepath.Join(dir, "work", "j-old-1", "process-0")
	if err := os.MkdirAll(left, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(left, "immutable")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chattr", "+i", file).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no file can be made immutable here: %v %s", err, out)
	}
	t.Cleanup(func() { exec.Command("chattr", "-i", file).Run() })
	g := newGrid(t)
	m := g.with(dir, quickParts(), nil)
	m.run("j", "echo fine")
	eventually(t, "the job's end is reported", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); *s.State != wsdl.ProcessStateExited || g.text(s, "stdout") != "fine\n" {
		t.Errorf("the process is %+v", s)
	}
	m.terminate("j", 1, 0)
}
