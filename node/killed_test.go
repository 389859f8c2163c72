package node

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/node/mvm"
	"mvm/wsdl"
)

// stage brings attempt 1 of job "j" to one step of its life and holds it there.
type stage struct {
	name string
	// reach returns when the attempt is at that step; it must not wait for the
	// calls that it makes, which end with the node.
	reach func(s *staged)
	// mvm is whether an MVM process is there by then.
	mvm bool
}

type staged struct {
	*member
	mark   string
	folder string // of the test
	calls  sync.WaitGroup
	failed chan error // what the call that is under way answered
}

// call makes a call in the background.
func (s *staged) call(call func(context.Context) error) {
	s.failed = make(chan error, 1)
	s.calls.Go(func() { s.failed <- call(context.Background()) })
}

func (s *staged) awakening(image string, builds ...*wsdl.Build) {
	s.grid.set(func() { s.grid.live[key{"j", 1}] = true })
	s.call(func(ctx context.Context) error {
		for { // the answer to Register may still be on its way
			_, err := s.queue.AwakenContext(ctx, &wsdl.Awaken{Attempt: s.attempt("j", 1), Broker: s.grid.url + "/services/broker",
				Image: []string{image}, Slots: 2, Proxy: wsdl.Of(true), Build: builds})
			if code(err) != "unavailable" || !strings.Contains(err.Error(), "not joined") {
				return err
			}
		}
	})
}

func (s *staged) awake(script string) {
	s.t.Helper()
	s.awakening(s.grid.url, s.source("main", wsdl.LanguageShell, script))
	if err := <-s.failed; err != nil {
		s.t.Fatal(err)
	}
}

func (s *staged) running(script string, processes ...*wsdl.ProcessSpec) {
	s.t.Helper()
	s.awake(script)
	if err := s.instantiate("j", 1, processes...); err != nil {
		s.t.Fatal(err)
	}
}

// leaver leaves what it can behind, and stays.
const leaver = `trap '' TERM
mkfifo fifo; ln -s / everything; mkdir -p shut/in; : > shut/in/file; chmod 000 shut
(setsid sleep 1000 $1 &); sh -c "sleep 1000; : $1" & sh -c ": > ready; while :; do sleep 1000; done; : $1"`

func stages() []stage {
	return []stage{
		{name: "booked", reach: func(s *staged) {
			s.grid.set(func() { s.grid.down = true }) // nobody names it live
			s.awakening(s.grid.url, s.source("main", wsdl.LanguageShell, "exit 0"))
			eventually(s.t, "a heartbeat tells of it", func() bool { return s.grid.beaten("j") })
			s.grid.set(func() { s.grid.down = false })
		}},
		{name: "fetch", mvm: true, reach: func(s *staged) {
			asked := make(chan bool, 10)
			slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				w.Header().Set("Content-Length", "100")
				w.Write([]byte("some of it"))
				w.(http.Flusher).Flush()
				asked <- true
				<-r.Context().Done()
			}))
			s.t.Cleanup(slow.Close)
			s.awakening(slow.URL, s.source("main", wsdl.LanguageShell, "exit 0"))
			<-asked
			eventually(s.t, "its MVM process is there", func() bool { return len(s.mvms()) == 1 })
		}},
		{name: "build", mvm: true, reach: func(s *staged) {
			fifo := filepath.Join(s.folder, "header")
			if err := unix.Mkfifo(fifo, 0o666); err != nil {
				s.t.Fatal(err)
			}
			s.awakening(s.grid.url, s.source("main", wsdl.LanguageC, fmt.Sprintf("#include %q\n", fifo)))
			eventually(s.t, "the compiler reads", func() bool {
				fd, err := unix.Open(fifo, unix.O_WRONLY|unix.O_NONBLOCK, 0)
				if err == nil {
					s.t.Cleanup(func() { unix.Close(fd) })
				}
				return err == nil
			})
		}},
		{name: "instantiate", mvm: true, reach: func(s *staged) {
			s.awake("exit 0")
			s.call(func(ctx context.Context) error {
				_, err := s.queue.InstantiateContext(ctx, &wsdl.Instantiate{Attempt: s.attempt("j", 1), Process: []*wsdl.ProcessSpec{spec(0, "main")},
					Channel: []*wsdl.Channel{{Id: wsdl.Of(int32(0)), Capacity: 65536, From: &wsdl.ChannelEnd{Process: wsdl.Of(int32(0)), Port: "next"}, To: &wsdl.ChannelEnd{Peer: "a"}}},
					Peer:    []*wsdl.Peer{{Node: "a", Address: "127.0.0.1:9", Fingerprint: strings.Repeat("0", 64)}}})
				return err
			})
			eventually(s.t, "it connects", func() bool {
				answer, err := s.queue.InspectContext(context.Background(), &wsdl.Inspect{Job: "j"})
				return err == nil && len(answer.Attempt) == 1 && answer.Attempt[0].State == "running"
			})
		}},
		{name: "run", mvm: true, reach: func(s *staged) {
			s.running(leaver, spec(0, "main", s.mark), spec(1, "main", s.mark))
			eventually(s.t, "the programs run", func() bool { return len(pids(s.t, s.mark)) >= 6 })
		}},
		{name: "report", mvm: true, reach: func(s *staged) {
			s.grid.set(func() { s.grid.brokerDown = true })
			s.running("[ $1 = stay ] || exit 4\n"+leaver, spec(0, "main", "go"), spec(1, "main", "stay", s.mark))
			eventually(s.t, "an end is spooled", func() bool {
				files, _ := filepath.Glob(filepath.Join(s.folders.spool, "*.xml"))
				return slices.ContainsFunc(files, func(f string) bool {
					text, _ := os.ReadFile(f)
					return bytes.Contains(text, []byte("exitCode>4<"))
				})
			})
		}},
		{name: "terminate", mvm: true, reach: func(s *staged) {
			s.running(leaver, spec(0, "main", s.mark))
			eventually(s.t, "the program is deaf", func() bool {
				ready, _ := filepath.Glob(filepath.Join(s.folders.work, "*", "process-0", "ready"))
				return len(ready) == 1
			})
			s.call(func(ctx context.Context) error {
				_, err := s.queue.TerminateContext(ctx, &wsdl.Terminate{Attempt: s.attempt("j", 1), GraceMillis: 60000, Reason: "the test is over"})
				return err
			})
			eventually(s.t, "it is ending", func() bool {
				answer, err := s.queue.InspectContext(context.Background(), &wsdl.Inspect{Job: "j"})
				return err == nil && len(answer.Attempt) == 1 && answer.Attempt[0].State == "terminating"
			})
		}},
	}
}

// mvms is the MVM processes that the node has.
func (s *staged) mvms() (found []int) {
	for _, name := range pids(s.t, mvm.ProcessName) {
		environment, _ := os.ReadFile("/proc/" + name + "/environ")
		status, _ := os.ReadFile("/proc/" + name + "/cmdline")
		if pid, err := strconv.Atoi(name); err == nil && bytes.HasPrefix(status, []byte(mvm.ProcessName)) && bytes.Contains(environment, []byte("MVM_ATTEMPT="+trace(s.t, s.dir, 0).mark)) {
			found = append(found, pid)
		}
	}
	return found
}

// eachStage runs a test at each step of an attempt's life, with each way of
// cleaning that this machine has; all of them under `make soak`.
func eachStage(t *testing.T, test func(t *testing.T, g *grid, st stage, cleaning string)) {
	best := mvm.Probe(nil)
	for _, cleaning := range []string{mvm.PIDNamespace, mvm.CGroup, mvm.Subreaper} {
		t.Run(cleaning, func(t *testing.T) {
			if cleaning == mvm.PIDNamespace && best != cleaning || cleaning == mvm.CGroup && !mvm.Works(nil, mvm.CGroup) {
				t.Skip("SKIPPED: this machine cannot clean so for this user: run as root")
			}
			for _, st := range stages() {
				// At the weaker levels `make test` tries the step that leaves most.
				if cleaning != best && st.name != "run" && os.Getenv("MVM_SOAK") == "" {
					continue
				}
				t.Run(st.name, func(t *testing.T) { test(t, newGrid(t), st, cleaning) })
			}
		})
	}
}

// works has the node run attempt 2 of the job to its end, as a proof that it
// serves.
func (m *member) works() {
	m.t.Helper()
	eventually(m.t, "the node takes another attempt", func() bool {
		_, err := m.awaken("j", 2, 1, m.source("main", wsdl.LanguageShell, "echo well; exit 0"))
		if err != nil && code(err) != "unavailable" && code(err) != "busy" {
			m.t.Fatal(err)
		}
		return err == nil
	})
	if err := m.instantiate("j", 2, spec(7, "main")); err != nil {
		m.t.Fatal(err)
	}
	eventually(m.t, "its end is reported", func() bool { s := m.grid.status("j", 7); return s != nil && terminal(s) })
	if s := m.grid.status("j", 7); *s.State != wsdl.ProcessStateExited || m.grid.text(s, "stdout") != "well\n" {
		m.t.Errorf("the process is %+v", s)
	}
	m.terminate("j", 2, 0)
	m.grid.set(func() { delete(m.grid.live, key{"j", 2}) })
}

// A node that is killed at any step leaves nothing once it is back, tells what
// it still knows, and serves.
func TestNodeKilledAtEachStep(t *testing.T) {
	eachStage(t, func(t *testing.T, g *grid, st stage, cleaning string) {
		dir := t.TempDir()
		child, m := g.alone(dir, cleaning)
		tr := trace(t, dir, child.Process.Pid)
		s := &staged{member: m, mark: "killed-" + random(6), folder: t.TempDir()}
		m.dir = dir
		st.reach(s)
		child.Process.Kill()
		child.Wait()
		s.calls.Wait()
		if left := pids(t, s.mark); cleaning != mvm.Subreaper && len(left) > 0 {
			eventually(t, "the programs die with their node", func() bool { return len(pids(t, s.mark)) == 0 })
		}
		g.set(func() { g.brokerDown = false; delete(g.live, key{"j", 1}) })
		child, m = g.alone(dir, cleaning)
		tr.again(child.Process.Pid)
		tr.nothingLeft()
		if left := pids(t, s.mark); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
		if st.name == "report" {
			eventually(t, "what the killed one could not tell arrives", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
			if s := g.status("j", 0); wsdl.Or(s.ExitCode, 0) != 4 {
				t.Errorf("process 0 is %+v", s)
			}
		}
		m.works()
		tr.nothingLeft()
	})
}

// An MVM process that is killed at any step fails the attempt with that reason,
// takes all with it, and costs its node nothing.
func TestMVMProcessKilledAtEachStep(t *testing.T) {
	eachStage(t, func(t *testing.T, g *grid, st stage, cleaning string) {
		if !st.mvm {
			return
		}
		dir := t.TempDir()
		child, m := g.alone(dir, cleaning)
		tr := trace(t, dir, child.Process.Pid)
		s := &staged{member: m, mark: "killed-" + random(6), folder: t.TempDir()}
		m.dir = dir
		st.reach(s)
		found := s.mvms()
		if len(found) != 1 {
			t.Fatalf("the MVM processes are %v", found)
		}
		if err := syscall.Kill(found[0], syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if st.name == "run" || st.name == "report" {
			g.set(func() { g.brokerDown = false })
			eventually(t, "the failure is told", func() bool { return strings.Contains(g.failures("j"), "MVM process ended unexpectedly") })
		} else if err := <-s.failed; st.name != "terminate" && err == nil || st.name == "terminate" && err != nil {
			t.Errorf("the call that was under way: %v", err)
		}
		m.terminate("j", 1, 0)
		tr.nothingLeft()
		if left := pids(t, s.mark); len(left) > 0 {
			t.Errorf("processes %v are left", left)
		}
		g.set(func() { delete(g.live, key{"j", 1}) })
		m.works()
		tr.nothingLeft()
	})
}
