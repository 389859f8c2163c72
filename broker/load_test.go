package broker

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

// counting counts commits.
type counting struct {
	*store.Store
	mu sync.Mutex // guards n
	n  int
}

func (j *counting) Commit(ctx context.Context, ops ...store.Op) error {
	j.mu.Lock()
	j.n++
	j.mu.Unlock()
	return j.Store.Commit(ctx, ops...)
}

// TestThousandJobs puts 1,000 jobs of one process through four nodes.
func TestThousandJobs(t *testing.T) {
	const jobs = 1000
	var journal *counting
	g := newGrid(t, nil)
	journal = &counting{Store: g.store}
	g.config.Journal = journal
	for i := range 4 {
		g.node(fmt.Sprintf("n%d", i+1), 8)
	}
	b := g.start()
	before := runtime.NumGoroutine()
	begin := time.Now()
	ids := make([]string, jobs)
	var all sync.WaitGroup
	for w := range 16 {
		all.Go(func() {
			for i := w; i < jobs; i += 16 {
				answer, err := b.SubmitJobContext(context.Background(), &wsdl.SubmitJob{Token: fmt.Sprint("t", i), Job: profileOf("trivial", task("a", 1))})
				if err != nil {
					t.Errorf("job %d: %v", i, err)
					return
				}
				ids[i] = answer.Id
			}
		})
	}
	all.Wait()
	accepted := time.Since(begin)
	for _, id := range ids {
		if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
			t.Fatalf("job %s is %s: %s", id, *s.State, s.Reason)
		}
	}
	took := time.Since(begin)
	t.Logf("%d jobs: accepted in %v, ended in %v: %.0f a second, %.1f commits a job", jobs, accepted, took, jobs/took.Seconds(), float64(journal.n)/jobs)
	g.settled()
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before+10 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestChaos loses, repeats and delays calls in both directions, and lets nodes
// die and come back, while jobs run.
func TestChaos(t *testing.T) {
	g := newGrid(t, func(c *Config) { c.Patience = 50 * time.Millisecond })
	g.chaos = true
	var nodes []*fakeNode
	for i := range 4 {
		nodes = append(nodes, g.node(fmt.Sprintf("n%d", i+1), 4))
	}
	b := g.start()
	var ids []string
	for i := range 60 {
		j := profileOf("trial", task("a", 1+i%5, "sleep=3ms"), task("b", 1, []string{"ok", "once", "exit=4"}[i%3]))
		j.Policy = &wsdl.JobPolicy{Retries: wsdl.Of(wsdl.Number("20"))}
		if i%3 == 2 {
			j.Policy.Retries = wsdl.Of(wsdl.Number("0"))
		}
		ids = append(ids, g.submit(b, fmt.Sprint("t", i), j))
		if i%20 == 10 {
			nodes[i/20].die()
			nodes[i/20].join()
		}
	}
	for i, id := range ids {
		s := g.wait(b, id)
		want := wsdl.JobStateSucceeded
		if i%3 == 2 {
			want = wsdl.JobStateFailed
		}
		if *s.State != want {
			t.Errorf("job %d, %s, is %s, expected %s: %s", i, id, *s.State, want, s.Reason)
		}
	}
	g.chaos = false
	g.settled()
}

// TestThousandWaiters has 1,000 long polls on one job, which all end with it,
// and leave nothing behind.
func TestThousandWaiters(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("a", 1, "hang")))
	before := runtime.NumGoroutine()
	var all sync.WaitGroup
	for range 1000 {
		all.Go(func() {
			for {
				answer, err := b.WaitJobContext(context.Background(), &wsdl.WaitJob{Id: id})
				if err != nil {
					t.Error(err)
					return
				}
				if final(*answer.Job.State) {
					return
				}
			}
		})
	}
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	all.Wait()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the waiters took %v", took)
	}
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before+10 {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
		time.Sleep(10 * time.Millisecond)
	}
}
