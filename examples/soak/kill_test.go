package soak

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mvm/broker"
	"mvm/wsdl"
)

// failing is a job whose every attempt fails.
func failing(number, retries int) *job {
	return &job{number: number, mode: "exit", count: 2, rounds: 1, nodes: 2, retries: retries}
}

// ran says how often the job's program was started.
func (j *job) ran() int { return bytes.Count(j.told, []byte("start 0\n")) }

// A grid without faults passes every check, and a job is tried again as often
// as its profile says: no more, no less.
func TestRetries(t *testing.T) {
	together(t)
	g := newGrid(t, gridOptions{workers: 2, slots: 8})
	var jobs []*job
	for retries := range 4 {
		jobs = append(jobs, failing(len(jobs), retries))
	}
	jobs = append(jobs, &job{number: len(jobs), mode: "once", count: 2, rounds: 1, retries: 3})
	jobs = append(jobs, &job{number: len(jobs), mode: "once", count: 2, rounds: 1, retries: 1})
	jobs = append(jobs, &job{number: len(jobs), mode: "ok", count: 3, rounds: 9, retries: 2})
	g.crowd(t.Context(), jobs, len(jobs), nil)
	for _, j := range jobs {
		if j.status == nil {
			continue
		}
		want := map[string]int{"exit": j.retries + 1, "once": 2, "ok": 1}[j.mode]
		if attempts := int(wsdl.Or(j.status.Attempt, 0)); attempts != want || j.ran() != want {
			t.Errorf("%v: %d attempts, its program was started %d times, expected %d", j, attempts, j.ran(), want)
		}
		if last := fmt.Sprintf("attempt %d of %d failed", want, want); j.mode == "exit" && j.retries > 0 && !strings.Contains(j.status.Reason, last) {
			t.Errorf("%v: the reason %q does not say %q", j, j.status.Reason, last)
		}
	}
	g.clean()
	g.settled(jobs)
	g.audit(jobs)
}

// The broker is killed at each point of a job's life, before and after each
// transaction and each call. The jobs end as they would have without that: a
// failed attempt is counted once, also when the broker dies while it counts.
func TestBrokerKilled(t *testing.T) {
	together(t)
	c := newChance(t)
	g := newGrid(t, gridOptions{workers: 2, slots: 8})
	type kill struct {
		point string
		pass  int // at which it happens
	}
	var kills []kill
	passes := 1
	if *longFlag {
		passes = 3
	}
	for _, point := range broker.Points() {
		for pass := range passes {
			if pass == 0 || !slices.Contains([]string{"before takeover", "after takeover", "recovered"}, point) { // once in a life
				kills = append(kills, kill{point, pass + 1})
			}
		}
	}
	if !*longFlag {
		c.rng.Shuffle(len(kills), func(i, k int) { kills[i], kills[k] = kills[k], kills[i] })
		kills = kills[:5]
	}
	var jobs []*job
	missed := map[string]int{}
	for _, k := range kills {
		g.front.kill()
		life := g.front.start("--kill-at", fmt.Sprintf("%s:%d", k.point, k.pass))
		first := len(jobs)
		modes := []string{"ok", "once", "exit", "stubborn"}
		const still = 2 * time.Second
		drop := strings.HasSuffix(k.point, "drop")
		queues := strings.HasSuffix(k.point, "move") || strings.HasSuffix(k.point, "queue")
		switch {
		case drop:
			modes = []string{"stubborn", "stubborn", "stubborn"}
		case queues: // nobody leaves before all move
			modes = modes[:3]
		}
		for i, mode := range modes {
			j := &job{number: first + i, mode: mode, count: 2, rounds: 4, pause: 20 * time.Millisecond, nodes: 1 + i%2, retries: 2}
			switch {
			case drop:
				j.cancel = still + time.Second
			case mode == "stubborn":
				j.cancel = c.between(time.Millisecond, 500*time.Millisecond)
			}
			jobs = append(jobs, j)
		}
		over := make(chan struct{})
		t.Cleanup(func() { <-over })
		go func() {
			defer close(over)
			if !queues {
				g.crowd(t.Context(), jobs[first:], len(jobs)-first, nil)
				return
			}
			queue := fmt.Sprintf("q%d", first)
			g.insist("make", func(ctx context.Context) error {
				_, err := g.client.MakeQueue(ctx, &wsdl.MakeQueue{Name: queue, Held: true})
				return err
			})
			g.insist("change", func(ctx context.Context) error {
				_, err := g.client.ChangeQueue(ctx, &wsdl.ChangeQueue{Queue: queue, Type_: wsdl.Of(wsdl.QueueTypePriority)})
				return err
			})
			for _, j := range jobs[first:] {
				j.queue = queue
			}
			released := make(chan struct{})
			go func() {
				defer close(released)
				g.release(queue, len(jobs)-first)
			}()
			g.crowd(t.Context(), jobs[first:], len(jobs)-first, nil)
			<-released
		}()
		if drop {
			// Nobody acknowledges Terminate while the nodes stand still.
			nap(t.Context(), still)
			for _, w := range g.workers {
				w.signal(syscall.SIGSTOP)
			}
		}
		select {
		case <-life.gone:
		case <-over:
			missed[k.point]++
			g.front.kill()
		case <-time.After(30 * time.Second):
			missed[k.point]++
			g.front.kill()
		}
		for _, w := range g.workers {
			w.signal(syscall.SIGCONT)
		}
		g.front.start()
		g.front.await() // without it the jobs would not end
		<-over
	}
	account(t, jobs)
	t.Logf("%d jobs, the broker was killed %d times", len(jobs), g.front.lives)
	for point, n := range missed {
		t.Errorf("the broker did not come to the point %q in %d of its lives", point, n)
	}
	for _, j := range jobs {
		want := map[string]int{"ok": 1, "once": 2, "exit": j.retries + 1}[j.mode]
		if j.status != nil && want > 0 && j.ran() != want {
			t.Errorf("%v: its program was started %d times, expected %d (%s)", j, j.ran(), want, j.status.Reason)
		}
	}
	g.clean()
	g.settled(jobs)
	g.audit(jobs)
}

// insist asks until the broker does it.
func (g *grid) insist(what string, call func(context.Context) error) {
	if err := insist(g.t.Context(), call); err != nil {
		g.t.Errorf("%s: %v", what, err)
	}
}

// release removes a queue that is held, once so many jobs wait in it: they move
// to the default one.
func (g *grid) release(queue string, jobs int) {
	g.insist("wait", func(ctx context.Context) error {
		for {
			there, err := g.client.Queues(ctx, &wsdl.ListQueues{Queue: queue})
			if err != nil || wsdl.Or(there.Queue[0].Items, 0) >= int64(jobs) {
				return err
			}
			nap(ctx, 10*time.Millisecond)
		}
	})
	g.insist("remove", func(ctx context.Context) error {
		err := g.client.RemoveQueue(ctx, queue, "default")
		if wsdl.CodeOf(err) == wsdl.FaultCodeNotFound {
			return nil // it was removed, and the answer was lost
		}
		return err
	})
}

// A worker, or the MVM process on it, is killed as a call passes: before it
// arrives, or as it has been answered. The job ends well nevertheless.
func TestNodeKilled(t *testing.T) {
	together(t)
	c := newChance(t)
	g := newGrid(t, gridOptions{workers: 3, slots: 4, chance: c})
	type kill struct {
		operation string
		answered  bool
		victim    string
	}
	victims := []string{"node", "MVM process"}
	if *longFlag {
		victims = append(victims, "node for long")
	}
	var kills []kill
	for _, operation := range []string{"Awaken", "Instantiate", "Report", "Heartbeat", "Terminate"} {
		for _, answered := range []bool{false, true} {
			for _, victim := range victims {
				kills = append(kills, kill{operation, answered, victim})
			}
		}
	}
	if !*longFlag {
		c.rng.Shuffle(len(kills), func(i, k int) { kills[i], kills[k] = kills[k], kills[i] })
		kills = kills[:6]
	}
	var jobs []*job
	for i, k := range kills {
		j := &job{number: i, mode: "ok", count: 4, rounds: 10, pause: 30 * time.Millisecond, nodes: 2 + i%2, retries: 3}
		jobs = append(jobs, j)
		victim := g.workers[c.n(len(g.workers))]
		var once sync.Once
		hit := make(chan struct{})
		strike := func(operation string, answered bool) {
			if operation != k.operation || answered != k.answered {
				return
			}
			pids := victim.mvmProcesses()
			if k.victim == "MVM process" && len(pids) == 0 {
				return // there is none yet, or none any more
			}
			once.Do(func() {
				defer close(hit)
				if k.victim != "MVM process" {
					victim.kill()
					return
				}
				for _, pid := range pids {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			})
		}
		at := victim.proxy
		if k.operation == "Report" || k.operation == "Heartbeat" {
			at = g.front.proxy
		}
		at.watch(strike)
		over := make(chan struct{})
		go func() {
			defer close(over)
			g.run(t.Context(), j)
		}()
		select {
		case <-hit:
			if k.victim == "node for long" {
				nap(t.Context(), lease+slack)
			}
		case <-over: // it had no part in the job
		}
		at.watch(nil)
		if victim.pid() == 0 {
			victim.start()
		}
		<-over
		victim.await()
		if j.status != nil {
			t.Logf("%s, answered %v, %s: %s in %d attempts", k.operation, k.answered, k.victim, j.state(), wsdl.Or(j.status.Attempt, 0))
			if j.state() != wsdl.JobStateSucceeded {
				t.Errorf("%v is %s: %s", j, j.state(), j.status.Reason)
			}
		}
	}
	g.up(len(g.nodes()))
	g.clean()
	g.settled(jobs)
	g.audit(jobs)
}

// Calls between broker and nodes that come late, twice, in another order, or
// whose answers are lost, change nothing.
func TestReordered(t *testing.T) {
	together(t)
	count := 12
	if *longFlag {
		count = 300
	}
	c := newChance(t)
	g := newGrid(t, gridOptions{workers: 3, slots: 6, chance: c})
	for _, n := range g.nodes() {
		n.proxy.trouble.Store(300)
	}
	var jobs []*job
	for i := range count {
		// Without retries: nothing of this may fail an attempt.
		j := &job{number: i, mode: []string{"ok", "exit", "leave", "ok"}[i%4], count: 2 + c.n(3), rounds: 1 + c.n(20), nodes: 1 + c.n(2)}
		if i%4 == 3 {
			j.pause = 20 * time.Millisecond
		}
		jobs = append(jobs, j)
	}
	ctx, over := context.WithTimeout(t.Context(), 2*time.Minute+time.Duration(count)*time.Second)
	defer over()
	g.crowd(ctx, jobs, 8, nil)
	for _, n := range g.nodes() {
		n.proxy.trouble.Store(0)
	}
	account(t, jobs)
	for _, j := range jobs {
		want := wsdl.JobStateSucceeded
		if j.mode == "exit" {
			want = wsdl.JobStateFailed
		}
		if j.status != nil && (j.state() != want || j.ran() != 1) {
			t.Errorf("%v is %s, its program was started %d times: %s", j, j.state(), j.ran(), j.status.Reason)
		}
	}
	(&chaos{g: g}).report(t)
	g.clean()
	g.settled(jobs)
	g.audit(jobs)
}
