package client

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// A node holds a call for a minute at most, so who waits longer asks again.
func TestALongWaitIsAskedInTurns(t *testing.T) {
	for _, c := range []struct {
		wait  time.Duration
		over  int // the turn that has the answer
		turns []time.Duration
	}{
		{0, 9, []time.Duration{0}},
		{time.Second, 9, []time.Duration{time.Second}},
		{150 * time.Second, 9, []time.Duration{time.Minute, time.Minute, 30 * time.Second}},
		{150 * time.Second, 2, []time.Duration{time.Minute, time.Minute}},
	} {
		synctest.Test(t, func(t *testing.T) {
			var turns []time.Duration
			o := outsider{ctx: t.Context(), wait: c.wait}
			err := o.inTurns(func(turn time.Duration) (bool, error) {
				turns = append(turns, turn)
				time.Sleep(turn)
				return len(turns) == c.over, nil
			})
			if err != nil || !reflect.DeepEqual(turns, c.turns) {
				t.Errorf("a wait of %v, answered in turn %d: asked %v, %v; want %v", c.wait, c.over, turns, err, c.turns)
			}
		})
	}
}

// Who waits for a job's queues waits for the job to run, and is told if it does not.
func TestOutsidersWaitUntilTheJobRuns(t *testing.T) {
	refused := wsdl.Faultf(wsdl.FaultCodeConflict, "only a running job has queues")
	for name, c := range map[string]struct {
		state wsdl.JobState // from 3 s on
		asks  int
		err   string
	}{
		"it runs":     {wsdl.JobStateRunning, 31, ""},
		"it does not": {wsdl.JobStateAwakening, 101, "job j-1 is not running yet, but awakening"},
		"it ended":    {wsdl.JobStateFailed, 0, "only a running job has queues"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &fakeGrid{states: []*wsdl.JobStatus{status(wsdl.JobStatePending, 1), status(c.state, 2)}}
			time.AfterFunc(2950*time.Millisecond, func() {
				g.mu.Lock()
				g.at = 1
				g.mu.Unlock()
			})
			asks := 0
			o := outsider{ctx: t.Context(), c: g.dial(t), job: "j-1", wait: 10 * time.Second}
			err := o.inTurns(func(time.Duration) (bool, error) {
				asks++
				g.mu.Lock()
				defer g.mu.Unlock()
				if g.at == 1 && c.err == "" {
					return true, nil
				}
				return false, refused
			})
			if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) || c.asks > 0 && asks != c.asks {
				t.Errorf("%s: asked %d times: %v", name, asks, err)
			}
		})
	}
}

// fakeQueue has one change, which is done in the end.
type fakeQueue struct {
	wsdl.QueueContext
	*fakeGrid
	tokens map[string]bool
	calls  int
	waits  []time.Duration
	done   time.Time
}

func (q *fakeQueue) answer(millis int32) *wsdl.ChangeStatus {
	wait := time.Duration(millis) * time.Millisecond
	q.waits = append(q.waits, wait)
	state := wsdl.ChangeStatePending
	time.Sleep(min(wait, time.Until(q.done)))
	if !time.Now().Before(q.done) {
		state = wsdl.ChangeStateDone
	}
	return &wsdl.ChangeStatus{Number: 1, What: "an edge ends", State: &state}
}

func (q *fakeQueue) RemoveEdgeContext(_ context.Context, r *wsdl.RemoveEdge) (*wsdl.RemoveEdgeResponse, error) {
	q.tokens[r.Token] = true
	if q.calls++; q.unavailable() != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, "EOF", "")
	}
	return &wsdl.RemoveEdgeResponse{Change: q.answer(r.WaitMillis)}, nil
}

func (q *fakeQueue) GetChangeContext(_ context.Context, r *wsdl.GetChange) (*wsdl.GetChangeResponse, error) {
	if err := q.unavailable(); err != nil {
		return nil, err
	}
	return &wsdl.GetChangeResponse{Change: q.answer(r.WaitMillis)}, nil
}

func (q *fakeQueue) PeekQueueContext(_ context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	answer := &wsdl.PeekQueueResponse{}
	for range r.Limit {
		answer.Item = append(answer.Item, &wsdl.QueueItem{Size: wsdl.Of(int64(2)), Data: wsdl.Of(wsdl.Binary("it"))})
	}
	if r.Queue == "hidden" {
		answer.Next = wsdl.Of(int64(8))
	}
	return answer, nil
}

// Who looks at an edge between nodes is told that not all of it could be shown, and
// never that nothing waits then.
func TestPeekSaysWhatItDoesNotShow(t *testing.T) {
	g := &fakeGrid{}
	client := g.dial(t)
	client.queue = wsdl.NewQueueClient(local{"q": wsdl.QueueContract(&fakeQueue{fakeGrid: g})}, "q")
	for _, c := range []struct {
		queue string
		limit int32
		json  bool
		says  string
	}{
		{"plain", 0, false, "nothing waits\n"},
		{"hidden", 0, false, "nothing waits at the taker's node\n"},
		{"hidden", 1, false, "PLACE"},
		{"hidden", 1, true, "["},
	} {
		var out, words strings.Builder
		cmd := &cobra.Command{}
		cmd.SetContext(t.Context())
		cmd.SetOut(&out)
		cmd.SetErr(&words)
		if err := peek(cmd, client, &wsdl.PeekQueue{Job: "j-1", Queue: c.queue, Limit: c.limit}, c.json); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(out.String(), c.says) || strings.Contains(words.String(), "producer's node could not be shown") != (c.queue == "hidden") {
			t.Errorf("%+v: %q and %q", c, out.String(), words.String())
		}
	}
}

// A change is waited for as long as it takes, and asked for again under one token
// when the broker was gone before it answered.
func TestChangesAreWaitedForAndAskedForAgain(t *testing.T) {
	for name, c := range map[string]struct {
		wait, takes time.Duration
		down        int
		waits       []time.Duration
		state       wsdl.ChangeState
		err         string
	}{
		"not at all":  {0, time.Hour, 0, []time.Duration{0}, wsdl.ChangeStatePending, ""},
		"long":        {150 * time.Second, time.Hour, 0, []time.Duration{time.Minute, time.Minute, 30 * time.Second}, wsdl.ChangeStatePending, ""},
		"long enough": {150 * time.Second, 70 * time.Second, 0, []time.Duration{time.Minute, time.Minute}, wsdl.ChangeStateDone, ""},
		"a restart":   {10 * time.Second, 0, 3, []time.Duration{10 * time.Second}, wsdl.ChangeStateDone, ""},
		"no broker":   {10 * time.Second, 0, 1000, nil, "", "if it was journalled the broker goes on with it until it is made or a node refuses it; `mvm queue ls JOB` lists the changes of a job"},
	} {
		synctest.Test(t, func(t *testing.T) {
			g := &fakeGrid{down: c.down}
			q := &fakeQueue{fakeGrid: g, tokens: map[string]bool{}, done: time.Now().Add(c.takes)}
			client := g.dial(t)
			client.queue = wsdl.NewQueueClient(local{"q": wsdl.QueueContract(q)}, "q")
			change, err := client.await(t.Context(), "j-1", c.wait, func(millis int32) (*wsdl.ChangeStatus, error) {
				return client.RemoveEdge(t.Context(), &wsdl.RemoveEdge{Job: "j-1", Edge: "a:b", WaitMillis: millis})
			})
			switch {
			case len(q.tokens) != 1 || q.tokens[""]:
				t.Errorf("%s: the tokens %v in %d calls", name, q.tokens, q.calls)
			case c.err != "":
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%s: %v", name, err)
				}
			case err != nil || *change.State != c.state || !reflect.DeepEqual(q.waits, c.waits):
				t.Errorf("%s: %v, %v, after waits of %v", name, change, err, q.waits)
			}
		})
	}
}
