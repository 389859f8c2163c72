package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/broker/jobqueue"
	"mvm/services/store"
	"mvm/wsdl"
)

// queued is a job of one process for a queue, with a priority.
func queued(queue string, priority int, arguments ...string) *wsdl.Job {
	j := profileOf(fmt.Sprintf("p%d", priority), task("a", 1, arguments...))
	j.Policy = &wsdl.JobPolicy{Queue: queue, Priority: wsdl.Of(wsdl.Number(fmt.Sprint(priority)))}
	return j
}

// peek is the ids of the jobs that wait in a queue, in the order in which they go.
func (g *grid) peek(b *Service, queue string) []string {
	g.t.Helper()
	answer, err := b.Queue(nil).PeekQueueContext(context.Background(), &wsdl.PeekQueue{Queue: queue, Limit: 1000})
	if err != nil {
		g.t.Fatal(err)
	}
	ids := []string{}
	for _, item := range answer.Item {
		ids = append(ids, item.Job)
	}
	return ids
}

func (g *grid) expectQueue(b *Service, queue string, want ...string) {
	g.t.Helper()
	if got := g.peek(b, queue); !slices.Equal(got, append([]string{}, want...)) {
		g.t.Errorf("in %s wait %v, expected %v", queue, got, want)
	}
}

func (g *grid) makeQueue(b *Service, r *wsdl.MakeQueue) {
	g.t.Helper()
	if _, err := b.Queue(nil).MakeQueueContext(context.Background(), r); err != nil {
		g.t.Fatal(err)
	}
}

func (g *grid) changeQueue(b *Service, r *wsdl.ChangeQueue) {
	g.t.Helper()
	if _, err := b.Queue(nil).ChangeQueueContext(context.Background(), r); err != nil {
		g.t.Fatal(err)
	}
}

// expectFault wants a fault of this code that says all these words.
func expectFault(t *testing.T, what string, err error, code wsdl.FaultCode, words ...string) {
	t.Helper()
	f := faultOf(err)
	if f == nil || wsdl.CodeOf(err) != code {
		t.Errorf("%s: %v, expected %s", what, err, code)
		return
	}
	for _, word := range words {
		if !strings.Contains(f.Message+" "+f.Advice, word) {
			t.Errorf("%s: it does not say %q: %s; %s", what, word, f.Message, f.Advice)
		}
	}
}

func TestJobQueues(t *testing.T) {
	ctx := context.Background()
	g := newGrid(t, nil)
	b := g.start() // no node is there: all jobs wait
	c := b.Queue(nil)
	g.makeQueue(b, &wsdl.MakeQueue{Name: "batch", Capacity: 3, Weight: 2})
	g.makeQueue(b, &wsdl.MakeQueue{Name: "batch", Capacity: 3, Weight: 2}) // the answer was lost
	g.makeQueue(b, &wsdl.MakeQueue{Name: "urgent", Type_: wsdl.Of(wsdl.QueueTypePriority), Full: wsdl.Of(wsdl.FullPolicyFail)})

	for what, r := range map[string]*wsdl.MakeQueue{
		"conflict: another batch":        {Name: "batch"},
		"conflict: the default one":      {Name: "default"},
		"invalidRequest: no name":        {},
		"invalidRequest: a bad name":     {Name: "a/b"},
		"invalidRequest: a lifo":         {Name: "x", Type_: wsdl.Of(wsdl.QueueTypeLifo)},
		"invalidRequest: a block":        {Name: "x", Full: wsdl.Of(wsdl.FullPolicyBlock)},
		"invalidRequest: a drop":         {Name: "x", Full: wsdl.Of(wsdl.FullPolicyDropOldest)},
		"invalidRequest: less than 0":    {Name: "x", Capacity: -1},
		"invalidRequest: a light one":    {Name: "x", Weight: -1},
		"invalidRequest: a heavy one":    {Name: "x", Weight: jobqueue.MaxWeight + 1},
		"invalidRequest: an endless one": {Name: "x", Capacity: jobqueue.MaxCapacity + 1},
	} {
		code, _, _ := strings.Cut(what, ":")
		_, err := c.MakeQueueContext(ctx, r)
		expectFault(t, what, err, wsdl.FaultCode(code))
	}

	// Where a job waits: its profile says, or who submits it.
	low, high, mid := g.submit(b, "low", queued("urgent", 10)), g.submit(b, "high", queued("urgent", 90)), g.submit(b, "mid", queued("urgent", 50))
	g.expectQueue(b, "urgent", high, mid, low)
	first, second := g.submit(b, "first", queued("batch", 10)), g.submit(b, "second", queued("batch", 90))
	answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: "third", Job: queued("urgent", 50), Queue: "batch"})
	if err != nil {
		t.Fatal(err)
	}
	third := answer.Id
	g.expectQueue(b, "batch", first, second, third)
	plain := g.submit(b, "plain", profileOf("plain", task("a", 1)))
	g.expectQueue(b, "default", plain)
	if s := g.get(b, third); s.Queue != "batch" || g.get(b, plain).Queue != "" {
		t.Errorf("the third waits in %q, the plain one in %q", s.Queue, g.get(b, plain).Queue)
	}

	// No such queue, and a full one.
	_, err = b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: "x", Job: queued("nowhere", 50)})
	expectFault(t, "a profile's queue that is not there", err, wsdl.FaultCodeInvalidProfile, `no queue "nowhere"`, "batch, default, urgent")
	if f := faultOf(err); len(f.Problem) != 1 || f.Problem[0].Element != "job/policy/@queue" || f.Problem[0].Expected != "batch, default, urgent" {
		t.Errorf("its problem is %+v", f.Problem)
	}
	_, err = b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: "x", Job: queued("", 50), Queue: "nowhere"})
	expectFault(t, "a queue that is asked for and not there", err, wsdl.FaultCodeInvalidRequest, `no queue "nowhere"`, "batch, default, urgent")
	_, err = b.PlanJobContext(ctx, &wsdl.PlanJob{Job: queued("nowhere", 50)})
	expectFault(t, "a plan for a queue that is not there", err, wsdl.FaultCodeInvalidProfile, "batch, default, urgent")
	_, err = b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: "x", Job: queued("batch", 50)})
	expectFault(t, "a full queue", err, wsdl.FaultCodeBusy, "the queue batch is full: 3 jobs wait, and it takes 3")
	if again := g.submit(b, "second", queued("batch", 90)); again != second {
		t.Errorf("a token of a job in a full queue got %s, expected %s", again, second)
	}

	// Live changes keep the jobs.
	g.changeQueue(b, &wsdl.ChangeQueue{Queue: "batch", Type_: wsdl.Of(wsdl.QueueTypePriority), Capacity: wsdl.Of(int64(1)), Weight: 7})
	g.expectQueue(b, "batch", second, third, first)
	g.changeQueue(b, &wsdl.ChangeQueue{Queue: "batch", Type_: wsdl.Of(wsdl.QueueTypeFifo), Held: wsdl.Of(true)})
	g.expectQueue(b, "batch", first, second, third)
	until(t, "a reason of who is held back", func() bool { return strings.Contains(g.get(b, first).Reason, "its queue batch is held") })
	for what, r := range map[string]*wsdl.ChangeQueue{
		"notFound: no such queue":      {Queue: "nowhere"},
		"invalidRequest: a broadcast":  {Queue: "batch", Type_: wsdl.Of(wsdl.QueueTypeBroadcast)},
		"invalidRequest: a block":      {Queue: "batch", Full: wsdl.Of(wsdl.FullPolicyBlock)},
		"invalidRequest: a codec":      {Queue: "batch", Encoders: &wsdl.EncoderChain{}},
		"invalidRequest: a rule":       {Queue: "batch", Rule: wsdl.Of("fair")},
		"invalidRequest: less than 0":  {Queue: "batch", Capacity: wsdl.Of(int64(-1))},
		"invalidRequest: a heavy one":  {Queue: "batch", Weight: 1_000_000},
		"invalidRequest: a served one": {Queue: "batch", Served: true},
		"invalidRequest: with latency": {Queue: "batch", Link: &wsdl.Link{}},
	} {
		code, _, _ := strings.Cut(what, ":")
		_, err := c.ChangeQueueContext(ctx, r)
		expectFault(t, what, err, wsdl.FaultCode(code))
	}

	// Moves.
	move := func(want int32, r *wsdl.MoveJob) {
		t.Helper()
		switch at, err := c.MoveJobContext(ctx, r); {
		case err != nil:
			t.Error(err)
		case at.Place != want:
			t.Errorf("%s stands at %d of %s, expected %d", r.Job, at.Place, at.Queue, want)
		}
	}
	move(1, &wsdl.MoveJob{Job: low, Priority: wsdl.Of(int32(95))})
	g.expectQueue(b, "urgent", low, high, mid)
	move(1, &wsdl.MoveJob{Job: third, Place: wsdl.Of(wsdl.JobPlaceFirst)})
	g.expectQueue(b, "batch", third, first, second)
	move(3, &wsdl.MoveJob{Job: third, Place: wsdl.Of(wsdl.JobPlaceLast)})
	move(4, &wsdl.MoveJob{Job: plain, Queue: "batch"}) // it is bounded to 1; a move is not
	move(1, &wsdl.MoveJob{Job: low, Queue: "batch"})   // by its age
	g.expectQueue(b, "batch", low, first, second, third, plain)
	_, err = c.MoveJobContext(ctx, &wsdl.MoveJob{Job: low, Queue: "nowhere"})
	expectFault(t, "a move to nowhere", err, wsdl.FaultCodeNotFound, "batch, default, urgent")
	_, err = c.MoveJobContext(ctx, &wsdl.MoveJob{Job: "j-00000000", Queue: "batch"})
	expectFault(t, "a move of nobody", err, wsdl.FaultCodeNotFound)
	_, err = c.MoveJobContext(ctx, &wsdl.MoveJob{Job: low, Priority: wsdl.Of(int32(101))})
	expectFault(t, "a priority of 101", err, wsdl.FaultCodeInvalidRequest)
	if s := g.get(b, low); s.Queue != "batch" || *s.Priority != 95 {
		t.Errorf("the moved job is in %q with %d", s.Queue, *s.Priority)
	}

	// All of it is still so after a restart.
	g.stop()
	b = g.start()
	c = b.Queue(nil)
	g.expectQueue(b, "batch", low, first, second, third, plain)
	g.expectQueue(b, "urgent", high, mid)
	list, err := c.ListQueuesContext(ctx, &wsdl.ListQueues{SampleMillis: 1})
	if err != nil || len(list.Queue) != 3 {
		t.Fatalf("the queues are %v, %v", list, err)
	}
	if q := list.Queue[0]; q.Name != "batch" || *q.Type_ != wsdl.QueueTypeFifo || *q.Full != wsdl.FullPolicyFail || *q.Capacity != 1 || q.Weight != 7 || !*q.Held || *q.Items != 5 || *q.Running != 0 || q.OldestMillis == nil || q.Flow == nil || *q.Flow.ItemsIn != 0 {
		t.Errorf("batch is %+v", q)
	}
	if q := list.Queue[1]; q.Name != "default" || *q.Type_ != wsdl.QueueTypePriority || *q.Capacity != 0 || q.Weight != 1 || *q.Held || *q.Items != 0 || q.OldestMillis != nil {
		t.Errorf("default is %+v", q)
	}
	if one, err := c.ListQueuesContext(ctx, &wsdl.ListQueues{Queue: "urgent"}); err != nil || len(one.Queue) != 1 || *one.Queue[0].Items != 2 {
		t.Errorf("urgent alone: %+v, %v", one, err)
	}
	_, err = c.ListQueuesContext(ctx, &wsdl.ListQueues{Queue: "nowhere"})
	expectFault(t, "a list of nowhere", err, wsdl.FaultCodeNotFound)
	peeked, err := c.PeekQueueContext(ctx, &wsdl.PeekQueue{Queue: "batch", Limit: 1})
	if err != nil || len(peeked.Item) != 1 || peeked.Item[0].Name != "p10" || *peeked.Item[0].State != wsdl.JobStatePending || !strings.Contains(peeked.Item[0].Reason, "held") || peeked.Item[0].Priority != 95 {
		t.Errorf("the first of batch is %+v, %v", peeked, err)
	}

	// Out of a queue.
	_, err = c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "batch"})
	expectFault(t, "removing what is in use", err, wsdl.FaultCodeConflict, "5 jobs")
	_, err = c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "default"})
	expectFault(t, "removing the default queue", err, wsdl.FaultCodeConflict)
	_, err = c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "batch", Into: "batch"})
	expectFault(t, "removing into itself", err, wsdl.FaultCodeInvalidRequest)
	drained, err := c.DrainQueueContext(ctx, &wsdl.DrainQueue{Queue: "batch", Limit: 2})
	if err != nil || len(drained.Item) != 2 || drained.Item[0].Job != low || *drained.Item[1].State != wsdl.JobStateCancelled || !*drained.More {
		t.Errorf("drained are %+v, %v", drained, err)
	}
	if s := g.get(b, low); *s.State != wsdl.JobStateCancelled || s.Reason != "cancelled: taken out of the queue batch" {
		t.Errorf("the drained job is %s: %s", *s.State, s.Reason)
	}
	_, err = c.MoveJobContext(ctx, &wsdl.MoveJob{Job: low, Queue: "urgent"})
	expectFault(t, "a move of one that has ended", err, wsdl.FaultCodeConflict, "cancelled")
	if _, err := c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "batch", Into: "default"}); err != nil {
		t.Error(err)
	}
	g.expectQueue(b, "default", second, third, plain)
	_, err = c.PeekQueueContext(ctx, &wsdl.PeekQueue{Queue: "batch"})
	expectFault(t, "what was removed", err, wsdl.FaultCodeNotFound, "default, urgent")

	// Room comes: all end, and the queues are empty.
	g.node("n1", 2)
	for _, id := range []string{second, third, plain, high, mid} {
		if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
			t.Errorf("%s is %s: %s", id, *s.State, s.Reason)
		}
	}
	if _, err := c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "urgent"}); err != nil {
		t.Error(err)
	}
	g.settled()
}

// A job that runs belongs to its queue: it is counted there, waits there again
// when it is tried again, and comes along when the queue is removed.
func TestRunningJobsBelongToTheirQueue(t *testing.T) {
	ctx := context.Background()
	g := newGrid(t, nil)
	g.node("n1", 1)
	b := g.start()
	c := b.Queue(nil)
	g.makeQueue(b, &wsdl.MakeQueue{Name: "a"})
	g.makeQueue(b, &wsdl.MakeQueue{Name: "b", Capacity: 1, Held: true})
	j := queued("a", 50, "once", "sleep=200ms")
	j.Policy.Retries = wsdl.Of(wsdl.Number("1"))
	id := g.submit(b, "t", j)
	until(t, "its run", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	if list, err := c.ListQueuesContext(ctx, &wsdl.ListQueues{Queue: "a"}); err != nil || *list.Queue[0].Running != 1 || *list.Queue[0].Items != 0 {
		t.Errorf("a is %+v, %v", list, err)
	}
	_, err := c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "a"})
	expectFault(t, "removing what a running job belongs to", err, wsdl.FaultCodeConflict, id)
	_, err = c.MoveJobContext(ctx, &wsdl.MoveJob{Job: id, Queue: "b"})
	expectFault(t, "moving what runs", err, wsdl.FaultCodeConflict, "does not wait")
	if _, err := c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "a", Into: "b"}); err != nil {
		t.Fatal(err)
	}
	g.submit(b, "fills", queued("b", 50))
	until(t, "its second wait, in a queue that is full", func() bool { return slices.Contains(g.peek(b, "b"), id) })
	g.stop()
	b = g.start()
	if s := g.get(b, id); s.Queue != "b" || *s.State != wsdl.JobStatePending {
		t.Errorf("after a restart it is %s in %q", *s.State, s.Queue)
	}
	g.changeQueue(b, &wsdl.ChangeQueue{Queue: "b", Held: wsdl.Of(false)})
	if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded || *s.Attempt != 2 {
		t.Errorf("it is %s in attempt %d: %s", *s.State, *s.Attempt, s.Reason)
	}
}

// Queues take turns by their weights: with one slot, of each four jobs three
// are the heavy one's.
func TestQueuesTakeTurns(t *testing.T) {
	g := newGrid(t, nil)
	b := g.start()
	g.makeQueue(b, &wsdl.MakeQueue{Name: "heavy", Weight: 3})
	g.makeQueue(b, &wsdl.MakeQueue{Name: "light"})
	var ids []string
	for i := range 12 {
		ids = append(ids, g.submit(b, fmt.Sprint("h", i), queued("heavy", 50)))
	}
	for i := range 4 {
		ids = append(ids, g.submit(b, fmt.Sprint("l", i), queued("light", 100)))
	}
	g.node("n1", 1)
	type start struct {
		at    time.Time
		queue string
	}
	var starts []start
	for _, id := range ids {
		s := g.wait(b, id)
		starts = append(starts, start{s.Started.ToGoTime(), s.Queue})
	}
	slices.SortFunc(starts, func(a, b start) int { return a.at.Compare(b.at) })
	for i := 0; i < 16; i += 4 {
		heavy := 0
		for _, s := range starts[i : i+4] {
			if s.queue == "heavy" {
				heavy++
			}
		}
		if heavy != 3 {
			t.Errorf("of the jobs %d to %d %d were the heavy queue's, expected 3", i, i+3, heavy)
		}
	}
	g.settled()
}

// Whatever is done to the queues while jobs pass through them, each job ends
// once, well or taken out.
func TestQueuesChangeUnderLoad(t *testing.T) {
	ctx := context.Background()
	g := newGrid(t, nil)
	for i := range 2 {
		g.node(fmt.Sprintf("n%d", i+1), 3)
	}
	b := g.start()
	c := b.Queue(nil)
	g.makeQueue(b, &wsdl.MakeQueue{Name: "a"})
	g.makeQueue(b, &wsdl.MakeQueue{Name: "b", Type_: wsdl.Of(wsdl.QueueTypePriority), Weight: 5})
	const jobs = 200
	var ids [jobs]string
	var clients, administrators sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		clients.Go(func() {
			for i := w; i < jobs; i += 4 {
				j := queued([]string{"a", "b", ""}[i%3], i%100, []string{"", "once"}[i%2])
				j.Policy.Retries = wsdl.Of(wsdl.Number("1"))
				answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: fmt.Sprint("t", i), Job: j})
				for wsdl.CodeOf(err) == wsdl.FaultCodeBusy || wsdl.CodeOf(err) == wsdl.FaultCodeInvalidProfile {
					time.Sleep(time.Millisecond) // it is full for now, or just not there
					answer, err = b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: fmt.Sprint("t", i), Job: j})
				}
				if err != nil {
					t.Errorf("job %d: %v", i, err)
					return
				}
				ids[i] = answer.Id
			}
		})
	}
	drained := map[string]bool{}
	changes := 0
	administrators.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			changes = n
			queue := []string{"a", "b", "default"}[n%3]
			r := &wsdl.ChangeQueue{Queue: queue, Type_: wsdl.Of([]wsdl.QueueType{wsdl.QueueTypeFifo, wsdl.QueueTypePriority}[n%2]), Weight: int32(1 + n%7), Capacity: wsdl.Of(int64(n % 4 * 5)), Held: wsdl.Of(n%5 == 4)}
			if _, err := c.ChangeQueueContext(ctx, r); err != nil {
				t.Error(err)
			}
			peeked, err := c.PeekQueueContext(ctx, &wsdl.PeekQueue{Queue: queue, Limit: 3})
			if err != nil {
				t.Error(err)
				return
			}
			for i, item := range peeked.Item {
				_, err := c.MoveJobContext(ctx, &wsdl.MoveJob{Job: item.Job, Queue: []string{"b", "default", "a"}[(n+i)%3], Place: wsdl.Of([]wsdl.JobPlace{wsdl.JobPlaceFirst, wsdl.JobPlaceLast}[n%2])})
				if err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeConflict { // it was placed meanwhile
					t.Error(err)
				}
			}
			if n%10 == 9 {
				out, err := c.DrainQueueContext(ctx, &wsdl.DrainQueue{Queue: queue, Limit: 2})
				if err != nil {
					t.Error(err)
					return
				}
				for _, item := range out.Item {
					drained[item.Job] = true
				}
			}
			if n%15 == 7 {
				if _, err := c.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: "a", Into: "b"}); err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeBusy {
					t.Error(err)
				}
				if _, err := c.MakeQueueContext(ctx, &wsdl.MakeQueue{Name: "a"}); err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeConflict {
					t.Error(err)
				}
			}
		}
	})
	clients.Wait()
	close(stop)
	administrators.Wait()
	for _, queue := range []string{"a", "b", "default"} {
		g.changeQueue(b, &wsdl.ChangeQueue{Queue: queue, Held: wsdl.Of(false)})
	}
	for i, id := range ids {
		s := g.wait(b, id)
		want := wsdl.JobStateSucceeded
		if drained[id] {
			want = wsdl.JobStateCancelled
		}
		if *s.State != want {
			t.Errorf("job %d is %s, expected %s: %s", i, *s.State, want, s.Reason)
		}
		g.mu.Lock()
		if starts := g.starts[id]; want == wsdl.JobStateSucceeded && starts != 1+i%2 {
			t.Errorf("job %d was started %d times, expected %d", i, starts, 1+i%2)
		}
		g.mu.Unlock()
	}
	t.Logf("%d jobs, %d changes, %d drained", jobs, changes, len(drained))
	g.settled()
}

// TestQueuesSurviveCrashes stops the broker at each commit, before and after it,
// while queues are made, changed, moved into and removed. Whoever asks again gets
// what was asked for, and each job stands where it was put.
func TestQueuesSurviveCrashes(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	g := newGrid(t, nil)
	j := &breaking{Store: g.store, crash: g.crash}
	g.config.Journal = j
	broker := func() *Service {
		g.mu.Lock()
		b := g.broker
		g.mu.Unlock()
		if b == nil {
			g.stop()
			b = g.start()
		}
		return b
	}
	// patiently asks again for as long as the broker is away.
	patiently := func(what string, f func(b *Service) error) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; {
			err := f(broker())
			switch {
			case err == nil:
				return
			case wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable || time.Now().After(deadline):
				t.Fatalf("%s: %v", what, err)
			}
		}
	}
	for n, past := 1, false; !past; n++ {
		for _, after := range []bool{false, true} {
			name := fmt.Sprintf("q%d-%v", n, after)
			j.mu.Lock()
			j.commits, j.at, j.after = 0, n, after
			j.mu.Unlock()
			patiently("make", func(b *Service) error {
				_, err := b.Queue(nil).MakeQueueContext(ctx, &wsdl.MakeQueue{Name: name, Weight: 2})
				return err
			})
			var ids []string
			for i := range 3 {
				patiently("submit", func(b *Service) error {
					answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: fmt.Sprint(name, i), Job: queued(name, 10*i)})
					if err == nil {
						ids = append(ids, answer.Id)
					}
					return err
				})
			}
			patiently("move", func(b *Service) error {
				_, err := b.Queue(nil).MoveJobContext(ctx, &wsdl.MoveJob{Job: ids[2], Place: wsdl.Of(wsdl.JobPlaceFirst)})
				return err
			})
			patiently("change", func(b *Service) error {
				_, err := b.Queue(nil).ChangeQueueContext(ctx, &wsdl.ChangeQueue{Queue: name, Capacity: wsdl.Of(int64(5)), Held: wsdl.Of(true)})
				return err
			})
			g.expectQueue(broker(), name, ids[2], ids[0], ids[1])
			patiently("drain", func(b *Service) error {
				if slices.Contains(g.peek(b, name), ids[2]) {
					_, err := b.Queue(nil).DrainQueueContext(ctx, &wsdl.DrainQueue{Queue: name, Limit: 1})
					return err
				}
				return nil
			})
			g.expectQueue(broker(), name, ids[:2]...)
			patiently("remove", func(b *Service) error {
				_, err := b.Queue(nil).RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: name, Into: "default"})
				if wsdl.CodeOf(err) == wsdl.FaultCodeNotFound {
					return nil // it was removed, and the answer was lost
				}
				return err
			})
			g.expectQueue(broker(), "default", ids[1], ids[0]) // by priority
			patiently("drain", func(b *Service) error {
				_, err := b.Queue(nil).DrainQueueContext(ctx, &wsdl.DrainQueue{Queue: "default"})
				return err
			})
			g.expectQueue(broker(), "default")
			j.mu.Lock()
			past = past || j.commits < n
			j.mu.Unlock()
		}
		if past && n < 10 {
			t.Errorf("the broker could be crashed at %d commits only", n-1)
		}
	}
	g.settled()
}

// The broker that takes over has the same queues, with the same jobs in the
// same order.
func TestQueuesAreTakenOver(t *testing.T) {
	etcd := store.Config{Endpoints: []string{startEtcd(t)}}
	g := newGridOver(t, openStore(t, etcd), nil)
	first := g.start()
	g.makeQueue(first, &wsdl.MakeQueue{Name: "batch", Type_: wsdl.Of(wsdl.QueueTypePriority), Capacity: 9, Weight: 4})
	var ids []string
	for i := range 5 {
		ids = append(ids, g.submit(first, fmt.Sprint("t", i), queued("batch", i*10)))
	}
	if _, err := first.Queue(nil).MoveJobContext(t.Context(), &wsdl.MoveJob{Job: ids[0], Priority: wsdl.Of(int32(40)), Place: wsdl.Of(wsdl.JobPlaceFirst)}); err != nil {
		t.Fatal(err)
	}
	want := []string{ids[0], ids[4], ids[3], ids[2], ids[1]}
	g.expectQueue(first, "batch", want...)

	mine := g.config
	mine.Journal, mine.URL = openStore(t, etcd), func() string { return "http://second" }
	second, err := New(mine)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- second.Run(ctx) }()
	<-g.stopped
	_, err = first.Queue(nil).ChangeQueueContext(t.Context(), &wsdl.ChangeQueue{Queue: "batch", Weight: 1})
	expectFault(t, "a change at the first broker", err, wsdl.FaultCodeWrongNode)
	g.expectQueue(second, "batch", want...)
	list, err := second.Queue(nil).ListQueuesContext(t.Context(), &wsdl.ListQueues{Queue: "batch"})
	if err != nil || list.Queue[0].Weight != 4 || *list.Queue[0].Capacity != 9 {
		t.Errorf("at the second broker batch is %+v, %v", list, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the second broker ends with %v", err)
	}
}
