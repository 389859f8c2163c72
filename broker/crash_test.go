package broker

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

// breaking is a journal that crashes the broker at its n-th commit: before
// anything is written, or after it is written and before anybody knows.
type breaking struct {
	*store.Store
	crash func()

	mu      sync.Mutex // guards all below
	commits int
	at      int // 0 = never
	after   bool
}

func (j *breaking) Commit(ctx context.Context, ops ...store.Op) error {
	j.mu.Lock()
	j.commits++
	now, after := j.at != 0 && j.commits == j.at, j.after
	j.mu.Unlock()
	if now && !after {
		j.crash()
		return errCrash
	}
	err := j.Store.Commit(ctx, ops...)
	if now {
		j.crash()
		return errCrash
	}
	return err
}

// TestCrashAtEveryCommit stops the broker at each commit to its journal, before
// and after it, starts it again over the same store, and finds that every
// accepted job ends exactly once, as it would have without.
func TestCrashAtEveryCommit(t *testing.T) {
	kinds := map[string]struct {
		profile func() *wsdl.Job
		want    wsdl.JobState
	}{
		"success": {func() *wsdl.Job { return profileOf("trial", task("a", 2, "sleep=5ms"), task("b", 2)) }, wsdl.JobStateSucceeded},
		"failure": {func() *wsdl.Job { return profileOf("trial", task("a", 3, "hang"), task("b", 1, "exit=2")) }, wsdl.JobStateFailed},
		"retry": {func() *wsdl.Job {
			j := profileOf("trial", task("a", 3), task("b", 1, "once"))
			j.Policy = &wsdl.JobPolicy{Retries: wsdl.Of(wsdl.Number("1"))}
			return j
		}, wsdl.JobStateSucceeded},
		"cancel": {func() *wsdl.Job { return profileOf("trial", task("a", 4, "hang")) }, wsdl.JobStateCancelled},
	}
	for name, kind := range kinds {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGrid(t, nil)
			j := &breaking{Store: g.store, crash: g.crash}
			g.config.Journal = j
			g.node("n1", 2)
			g.node("n2", 2)
			for n, past := 1, false; !past; n++ {
				for _, after := range []bool{false, true} {
					j.mu.Lock()
					j.commits, j.at, j.after = 0, n, after
					j.mu.Unlock()
					token := fmt.Sprintf("%s-%d-%v", name, n, after)
					crashed := g.live(token, kind.profile(), kind.want, name == "cancel")
					past = past || !crashed
				}
				if past && n < 5 {
					t.Errorf("the broker could be crashed at %d commits only", n-1)
				}
			}
			g.settled()
		})
	}
}

// live takes one job to its end, starting the broker again whenever it has
// crashed, and says whether it had.
func (g *grid) live(token string, profile *wsdl.Job, want wsdl.JobState, cancel bool) (crashed bool) {
	g.t.Helper()
	ctx, stop := context.WithTimeout(context.Background(), 30*time.Second)
	defer stop()
	var id string
	for {
		g.mu.Lock()
		b := g.broker
		g.mu.Unlock()
		if b == nil {
			crashed = crashed || id != "" || g.stopped != nil
			g.stop()
			b = g.start()
		}
		if ctx.Err() != nil {
			g.t.Fatalf("%s: job %q has not ended", token, id)
		}
		if id == "" {
			copied := *profile
			answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: token, Job: &copied})
			if err != nil {
				if c := wsdl.CodeOf(err); c != wsdl.FaultCodeUnavailable {
					g.t.Fatalf("%s: %v", token, err)
				}
				time.Sleep(time.Millisecond)
				continue
			}
			id = answer.Id
		}
		if cancel {
			s, err := b.GetJobContext(ctx, &wsdl.GetJob{Id: id})
			if err == nil && *s.Job.State == wsdl.JobStateRunning || crashed {
				_, _ = b.CancelJobContext(ctx, &wsdl.CancelJob{Id: id}) // it is tried again
			}
		}
		s, err := b.WaitJobContext(ctx, &wsdl.WaitJob{Id: id, TimeoutMillis: 20})
		if err != nil {
			if c := wsdl.CodeOf(err); c != wsdl.FaultCodeUnavailable {
				g.t.Fatalf("%s: job %s: %v", token, id, err)
			}
			time.Sleep(time.Millisecond)
			continue
		}
		if !final(*s.Job.State) {
			continue
		}
		if *s.Job.State != want {
			g.t.Fatalf("%s: job %s is %s, expected %s: %s", token, id, *s.Job.State, want, s.Job.Reason)
		}
		g.mu.Lock()
		starts := g.starts[id]
		g.mu.Unlock()
		if ran := len(s.Job.Process); profile.Policy == nil && starts != ran && !cancel {
			g.t.Errorf("%s: job %s has %d processes, and %d were started", token, id, ran, starts)
		}
		answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: token, Job: profile})
		if err == nil && answer.Id != id {
			g.t.Fatalf("%s: the token got %s, and then %s", token, id, answer.Id)
		}
		return crashed
	}
}

// TestRestartsUnderChaos stops and starts the broker again and again, at any
// moment, while calls are lost, repeated and late: each accepted job still ends
// once, as it should.
func TestRestartsUnderChaos(t *testing.T) {
	g := newGrid(t, func(c *Config) { c.Patience = 50 * time.Millisecond })
	g.chaos = true
	for i := range 4 {
		g.node(fmt.Sprintf("n%d", i+1), 3)
	}
	g.start()
	stop := make(chan struct{})
	var restarts sync.WaitGroup
	n := 0
	restarts.Go(func() {
		for n < 40 {
			g.mu.Lock()
			pause := time.Duration(g.rng.IntN(120)) * time.Millisecond
			g.mu.Unlock()
			select {
			case <-stop:
				return
			case <-time.After(pause):
				g.stop()
				g.start()
				n++
			}
		}
	})
	broker := func() *Service {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.broker
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	var clients sync.WaitGroup
	for i := range 40 {
		clients.Go(func() {
			kind := []string{"sleep=20ms", "once", "exit=4"}[i%3]
			want := []wsdl.JobState{wsdl.JobStateSucceeded, wsdl.JobStateSucceeded, wsdl.JobStateFailed}[i%3]
			id := ""
			for {
				if ctx.Err() != nil {
					j, err := broker().GetJobContext(context.Background(), &wsdl.GetJob{Id: id})
					if err == nil {
						t.Errorf("job %d, %q, has not ended: %s in attempt %d: %s", i, id, *j.Job.State, *j.Job.Attempt, j.Job.Reason)
						for _, p := range j.Job.Process {
							t.Errorf("%s %s %s", p.Task, *p.State, p.Node)
						}
					}
					return
				}
				b := broker()
				if b == nil {
					time.Sleep(time.Millisecond)
					continue
				}
				var s *wsdl.WaitJobResponse
				j := profileOf("trial", task("a", 1+i%4), task("b", 1, kind))
				if i%3 < 2 {
					j.Policy = &wsdl.JobPolicy{Retries: wsdl.Of(wsdl.Number("50"))}
				}
				answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: fmt.Sprint("t", i), Job: j})
				if err == nil {
					if id != "" && id != answer.Id {
						t.Errorf("job %d got the ids %s and %s", i, id, answer.Id)
						return
					}
					id = answer.Id
					s, err = b.WaitJobContext(ctx, &wsdl.WaitJob{Id: id, TimeoutMillis: 100})
				}
				if err != nil {
					if c := wsdl.CodeOf(err); c != wsdl.FaultCodeUnavailable {
						t.Errorf("job %d: %v", i, err)
						return
					}
					time.Sleep(time.Millisecond)
					continue
				}
				if final(*s.Job.State) {
					if *s.Job.State != want {
						t.Errorf("job %d, %s, is %s, expected %s: %s", i, id, *s.Job.State, want, s.Job.Reason)
					}
					return
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	restarts.Wait()
	t.Logf("the broker was started %d times", n+1)
	g.settled()
}

// tally is a caller that counts what goes through it.
type tally struct {
	wsdl.Caller
	calls atomic.Int64
}

func (c *tally) Call(ctx context.Context, url, operation string, request, response any) error {
	c.calls.Add(1)
	return c.Caller.Call(ctx, url, operation, request, response)
}

// Of two brokers over one etcd, as two front ends have it, the one that came first stops: it writes
// nothing any more, says who came instead, and calls no node.
func TestTakeOver(t *testing.T) {
	etcd := store.Config{Endpoints: []string{startEtcd(t)}}
	g := newGridOver(t, openStore(t, etcd), func(c *Config) { c.Drop = time.Minute })
	g.node("n1", 1)
	silent := g.node("n2", 1)
	theirs := &tally{Caller: g}
	g.config.Caller = theirs
	first := g.start()
	id := g.submit(first, "t", profileOf("trial", task("a", 1, "hang")))
	until(t, "its run", func() bool { return *g.get(first, id).State == wsdl.JobStateRunning })
	// One that is on its way out, and whose node does not answer.
	other := g.submit(first, "u", profileOf("other", task("a", 1, "hang")))
	until(t, "its run", func() bool { return *g.get(first, other).State == wsdl.JobStateRunning })
	if g.get(first, id).Process[0].Node != "n1" {
		id, other = other, id
	}
	silent.mu.Lock()
	silent.dead = true
	silent.mu.Unlock()
	if _, err := first.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: other}); err != nil {
		t.Fatal(err)
	}
	wait, stop := context.WithTimeout(context.Background(), 20*time.Second)
	defer stop()
	waiting := make(chan error, 1)
	go func() {
		s := g.get(first, id)
		_, err := first.WaitJobContext(wait, &wsdl.WaitJob{Id: id, Revision: s.Revision})
		waiting <- err
	}()

	mine := g.config
	mine.Journal, mine.Caller, mine.URL = openStore(t, etcd), g, func() string { return "http://second" }
	second, err := New(mine)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- second.Run(ctx) }()
	g.mu.Lock()
	g.broker = second
	g.mu.Unlock()
	<-g.stopped // though it had nothing to write
	calls := theirs.calls.Load()
	for name, err := range map[string]error{
		"it cancels": func() error {
			_, err := first.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id})
			return err
		}(),
		"it reads":      func() error { _, err := first.GetJobContext(context.Background(), &wsdl.GetJob{Id: id}); return err }(),
		"who waited":    <-waiting,
		"it takes jobs": func() error { _, err := first.SubmitJobContext(context.Background(), &wsdl.SubmitJob{}); return err }(),
		"it takes reports": func() error {
			_, err := first.ReportContext(context.Background(), &wsdl.Report{Attempt: &wsdl.Attempt{Job: id, Number: 1, Node: "n1"}, Sequence: 1})
			return err
		}(),
	} {
		f := faultOf(err)
		if f == nil || wsdl.CodeOf(f) != wsdl.FaultCodeWrongNode || f.Address != "http://second/services/broker" || !strings.Contains(f.Message, "another broker has taken over") {
			t.Errorf("the first broker, %s: %v", name, err)
		}
	}
	// Its node would report to the first broker's address for ever.
	if s := g.wait(second, id); *s.State != wsdl.JobStateFailed || !strings.Contains(s.Reason, "the broker has moved: the attempt's nodes report to "+brokerURL) {
		t.Errorf("at the second broker it is %s: %s", *s.State, s.Reason)
	}
	time.Sleep(time.Second) // of its pauses between two calls, the longest by then
	if more := theirs.calls.Load() - calls; more != 0 {
		t.Errorf("the first broker has made %d calls since", more)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the second broker ends with %v", err)
	}
}

// silent is a journal that does not answer the first questions for what was submitted.
type silent struct {
	*store.Store
	mu   sync.Mutex // guards left
	left int        // questions that are not answered
}

func (j *silent) Get(ctx context.Context, key string) ([]byte, int64, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if strings.HasPrefix(key, jobsPrefix) && j.left > 0 {
		j.left--
		return nil, 0, context.DeadlineExceeded
	}
	return j.Store.Get(ctx, key)
}

// TestJournalThatIsSlow: a broker that begins anew while its journal does not answer
// takes no job for one that cannot be read.
func TestJournalThatIsSlow(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	b := g.start()
	first := g.submit(b, "t1", profileOf("trial", task("a", 1, "sleep=200ms")))
	second := g.submit(b, "t2", profileOf("trial", task("a", 1))) // waits for room
	g.crash()
	journal := &silent{Store: g.store, left: 2}
	g.config.Journal = journal
	b = g.start()
	for _, id := range []string{first, second} {
		if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
			t.Errorf("job %s is %s: %s", id, *s.State, s.Reason)
		}
	}
	if journal.left != 0 {
		t.Error("the journal was not asked")
	}
}
