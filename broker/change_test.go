package broker

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// wired is a job on three nodes: two senders that share a work queue with three
// workers, a fifo between two processes, and one from outside.
func wired(t *testing.T, changes ...change) *wiring {
	t.Helper()
	body := `<job xmlns="urn:mvm:1" name="wired">
<source name="s" language="shell"><file name="s.sh"><text>true</text></file></source>
<task name="sender" source="s" count="2"/><task name="worker" source="s" count="3"/><task name="sink" source="s"/>
<edge from="sender[*]:out" to="queue:jobs"/><edge from="queue:jobs" to="worker[*]:in"/>
<edge from="worker[0]:log" to="sink:log"/><edge from="outside:more" to="sink:more"/><edge from="sink:fast" to="sender[0]:fast" direct="true"/>
<queue name="jobs" type="work" capacity="65536"/><queue name="spare" type="lifo" capacity="5000"/></job>`
	document := new(wsdl.Job)
	if _, err := wsdl.Decode([]byte(body), "job", document); err != nil {
		t.Fatal(err)
	}
	j, err := profile.Compile(document, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	members := []member{
		{Node: "n1", URL: "http://n1", Address: "n1:1", Processes: []int{0, 1}},
		{Node: "n2", URL: "http://n2", Address: "n2:1", Processes: []int{2, 3}},
		{Node: "n3", URL: "http://n3", Address: "n3:1", Processes: []int{4, 5}},
	}
	return newWiring(newLayout(j, members, "http://broker"), changes)
}

// print says what a change comes to, step by step.
func (w *wiring) print(c *change) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s [%s]\n", c.What, c.Queue)
	for i, q := range c.Queues {
		fmt.Fprintf(&b, "  queue %d %s %s at %s\n", q.ID, q.Name, q.Type, w.plan.members[c.Homes[i]].Node)
	}
	for _, made := range c.Channels {
		fmt.Fprintf(&b, "  channel %d: %s", made.ID, w.edge(made.ID))
		if after, there := c.AfterOut[made.ID]; there {
			fmt.Fprintf(&b, ", out after %d", after)
		}
		if after, there := c.AfterIn[made.ID]; there {
			fmt.Fprintf(&b, ", in after %d", after)
		}
		b.WriteString("\n")
	}
	for _, id := range c.Resume {
		fmt.Fprintf(&b, "  resume %d\n", id)
	}
	for _, s := range c.Switches {
		fmt.Fprintf(&b, "  switch %d to %d\n", s.Channel, s.Next)
	}
	for step, members := range w.concerned(c) {
		for _, i := range members {
			fmt.Fprintf(&b, "  step %d at %s\n", step, w.plan.members[i].Node)
		}
	}
	return b.String()
}

func stays(int) (bool, error)  { return false, nil }
func leaves(int) (bool, error) { return true, nil }

func TestChangesArePlanned(t *testing.T) {
	set := func(queue string, r wsdl.ChangeQueue) func(*wiring) (*change, error) {
		r.Queue = queue
		return func(w *wiring) (*change, error) { return w.changeQueue(&r, nil) }
	}
	rewire := func(edge, from, to string) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) {
			return w.rewire(&wsdl.RewireEdge{Edge: edge, From: from, To: to}, stays)
		}
	}
	add := func(from, to string, q *wsdl.Queue) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) {
			return w.addEdge(&wsdl.AddEdge{Edge: &wsdl.Edge{From: from, To: to}, Queue: q}, nil)
		}
	}
	like := func(from, to, name string) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) {
			return w.addEdge(&wsdl.AddEdge{Edge: &wsdl.Edge{From: from, To: to, Queue: name}}, nil)
		}
	}
	plain := func(from, to, name string) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) {
			return w.addEdge(&wsdl.AddEdge{Edge: &wsdl.Edge{From: from, To: to, Queue: name}, Queue: &wsdl.Queue{Name: name}}, nil)
		}
	}
	// exited has worker[1] ended, and sink.
	exited := func(plan func(*wiring) (*change, error)) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) {
			w.exited = map[int]bool{3: true, 5: true}
			return plan(w)
		}
	}
	named := func(from, to, name string) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) {
			kind := wsdl.QueueTypeLifo
			return w.addEdge(&wsdl.AddEdge{Edge: &wsdl.Edge{From: from, To: to, Queue: name}, Queue: &wsdl.Queue{Name: name, Type: &kind}}, nil)
		}
	}
	remove := func(edge string) func(*wiring) (*change, error) {
		return func(w *wiring) (*change, error) { return w.removeEdge(edge) }
	}
	for name, c := range map[string]struct {
		plan func(*wiring) (*change, error)
		want string // what it comes to; or, for a refusal, its code, and a part of message and advice
	}{
		"alter": {set("jobs", wsdl.ChangeQueue{Type_: wsdl.Of(wsdl.QueueTypePriority), Capacity: wsdl.Of(int64(5000))}), `
the queue jobs: type priority, capacity 8192 [jobs]
  step 4 at n1
  step 5 at n2
  step 5 at n3`},
		"alter by an end": {set("worker[1]:in", wsdl.ChangeQueue{Full: wsdl.Of(wsdl.FullPolicyDropOldest)}), `
the queue jobs: dropOldest when full [jobs]
  step 4 at n1
  step 5 at n2
  step 5 at n3`},
		"capacity of a channel": {set("worker[0]:log", wsdl.ChangeQueue{Capacity: wsdl.Of(int64(1 << 20))}), `
the edge worker[0]:log -> sink:log: capacity 1048576 [worker[0]:log]
  channel 8: worker[0]:log -> sink:log, out after 5, in after 5
  switch 5 to 8
  step 2 at n2
  step 2 at n3
  step 6 at n2`},
		"a channel becomes a queue": {set("worker[0]:log", wsdl.ChangeQueue{Type_: wsdl.Of(wsdl.QueueTypeLifo)}), `
the edge worker[0]:log -> sink:log: type lifo [worker.0.log]
  queue 2 worker.0.log lifo at n2
  channel 8: worker[0]:log -> queue:worker.0.log, out after 5
  channel 9: queue:worker.0.log -> sink:log, in after 5
  switch 5 to 8
  step 2 at n2
  step 2 at n3
  step 6 at n2`},
		"another taker": {rewire("worker[0]:log", "", "sender[0]:log"), `
the edge worker[0]:log -> sink:log: worker[0]:log -> sender[0]:log now [worker[0]:log]
  channel 8: worker[0]:log -> sender[0]:log, out after 5
  switch 5 to 8
  step 2 at n1
  step 2 at n2
  step 6 at n2`},
		"what a taker left": {func(w *wiring) (*change, error) {
			return w.rewire(&wsdl.RewireEdge{Edge: "worker[0]:log", To: "sender[0]:log"}, leaves)
		}, `
the edge worker[0]:log -> sink:log: worker[0]:log -> sender[0]:log now [worker[0]:log]
  channel 8: sink:log -> sender[0]:log
  channel 9: worker[0]:log -> sender[0]:log, out after 5, in after 8
  resume 5
  switch 5 to 9
  step 2 at n1
  step 2 at n2
  step 3 at n2
  step 3 at n3
  step 6 at n2`},
		"what a taker left, to a queue": {func(w *wiring) (*change, error) {
			return w.rewire(&wsdl.RewireEdge{Edge: "worker[0]:log", To: "queue:jobs"}, leaves)
		}, `
the edge worker[0]:log -> sink:log: worker[0]:log -> queue:jobs now [worker[0]:log]
  channel 8: sink:log -> queue:jobs
  channel 9: worker[0]:log -> queue:jobs, out after 5, in after 8
  resume 5
  switch 5 to 9
  step 2 at n1
  step 2 at n2
  step 3 at n2
  step 3 at n3
  step 6 at n2`},
		"what a taker left, outside": {func(w *wiring) (*change, error) {
			return w.rewire(&wsdl.RewireEdge{Edge: "worker[0]:log", To: "outside:logs"}, leaves)
		}, "conflict: lead the edge to a process, or to a queue"},
		"another producer": {rewire("channel:5", "sender[1]:log", ""), `
the edge worker[0]:log -> sink:log: sender[1]:log -> sink:log now [sender[1]:log]
  channel 8: sender[1]:log -> sink:log, in after 5
  switch 5 to -1
  step 2 at n1
  step 2 at n3
  step 6 at n2`},
		"another taker of a queue": {rewire("worker[2]:in", "", "sink:in"), `
the edge queue:jobs -> worker[2]:in: queue:jobs -> sink:in now [queue:jobs]
  channel 8: queue:jobs -> sink:in
  switch 4 to -1
  step 2 at n1
  step 2 at n3
  step 6 at n1`},
		"from outside elsewhere": {rewire("outside:more", "", "sender[0]:more"), `
the edge outside:more -> sink:more: outside:more -> sender[0]:more now [outside:more]
  channel 8: outside:more -> sender[0]:more, out after 6
  switch 6 to -1
  step 2 at n1
  step 6 at n3`},
		"add":                {add("sink:out", "queue:jobs", nil), "\na new edge sink:out -> queue:jobs [jobs]\n  channel 8: sink:out -> queue:jobs\n  step 2 at n1\n  step 2 at n3"},
		"add queued":         {add("sink:out", "sender[1]:in", &wsdl.Queue{Name: "back", Type: wsdl.Of(wsdl.QueueTypeLatest)}), "\na new edge sink:out -> sender[1]:in, with a queue of type latest [back]\n  queue 2 back latest at n1\n  channel 8: sink:out -> queue:back\n  channel 9: queue:back -> sender[1]:in\n  step 2 at n1\n  step 2 at n3"},
		"add to a new queue": {add("sink:out", "queue:back", &wsdl.Queue{Name: "back", Type: wsdl.Of(wsdl.QueueTypeWork)}), "\na new edge sink:out -> queue:back [back]\n  queue 2 back work at n3\n  channel 8: sink:out -> queue:back\n  step 2 at n3"},
		"add as described":   {like("sink:out", "sender[1]:in", "spare"), "\na new edge sink:out -> sender[1]:in, with a queue of type lifo [spare]\n  queue 2 spare lifo at n1\n  channel 8: sink:out -> queue:spare\n  channel 9: queue:spare -> sender[1]:in\n  step 2 at n1\n  step 2 at n3"},
		"add another such":   {like("sink:out", "sender[1]:in", "jobs"), "\na new edge sink:out -> sender[1]:in, with a queue of type work [jobs#2]\n  queue 2 jobs#2 work at n1\n  channel 8: sink:out -> queue:jobs#2\n  channel 9: queue:jobs#2 -> sender[1]:in\n  step 2 at n1\n  step 2 at n3"},
		"add to a described": {add("sink:out", "queue:spare", nil), "\na new edge sink:out -> queue:spare [spare]\n  queue 2 spare lifo at n3\n  channel 8: sink:out -> queue:spare\n  step 2 at n3"},
		"add none":           {like("sink:out", "sender[1]:in", "fifo"), "\na new edge sink:out -> sender[1]:in [sink:out]\n  channel 8: sink:out -> sender[1]:in\n  step 2 at n1\n  step 2 at n3"},
		"add a named fifo":   {plain("sink:out", "sender[1]:in", "mine"), "\na new edge sink:out -> sender[1]:in, with a queue of type fifo [mine]\n  queue 2 mine fifo at n1\n  channel 8: sink:out -> queue:mine\n  channel 9: queue:mine -> sender[1]:in\n  step 2 at n1\n  step 2 at n3"},
		"remove":             {remove("sender[1]:out"), "\nthe edge sender[1]:out -> queue:jobs ends [channel:1]\n  switch 1 to -1\n  step 6 at n1"},

		"not described":  {like("sink:out", "sender[1]:in", "spar"), `notFound: did you mean "spare"`},
		"from the ended": {exited(add("sink:out", "sender[1]:in", nil)), "conflict: sink has ended"},
		"to the ended":   {exited(add("sender[1]:out2", "worker[1]:in2", nil)), "conflict: worker[1] has ended"},
		"another ended":  {exited(rewire("worker[0]:log", "", "worker[1]:log")), "conflict: worker[1] has ended"},
		"a direct one": {rewire("sink:fast", "", "worker[0]:fast"), `
the edge sink:fast -> sender[0]:fast: sink:fast -> worker[0]:fast now, through the proxies [sink:fast]
  channel 8: sink:fast -> worker[0]:fast, out after 7
  switch 7 to 8
  step 2 at n2
  step 2 at n3
  step 6 at n3`},
		"fifo of many": {set("jobs", wsdl.ChangeQueue{Type_: wsdl.Of(wsdl.QueueTypeFifo)}), "conflict: has 3 takers, and a fifo has one"},
		"nothing":      {set("jobs", wsdl.ChangeQueue{}), "invalidRequest: changes nothing"},
		"a weight":     {set("jobs", wsdl.ChangeQueue{Weight: 3}), "invalidRequest: only queues in which jobs wait"},
		"a direct one, left": {func(w *wiring) (*change, error) {
			return w.rewire(&wsdl.RewireEdge{Edge: "sink:fast", To: "worker[0]:fast"}, leaves)
		}, "conflict: went with its socket"},
		"fifo already":      {set("channel:5", wsdl.ChangeQueue{Type_: wsdl.Of(wsdl.QueueTypeFifo)}), "conflict: plain fifo that blocks already"},
		"full of latest":    {set("jobs", wsdl.ChangeQueue{Type_: wsdl.Of(wsdl.QueueTypeLatest), Full: wsdl.Of(wsdl.FullPolicyFail)}), "invalidProfile: "},
		"no such queue":     {set("job", wsdl.ChangeQueue{Served: true}), `notFound: did you mean "jobs"`},
		"no such task":      {set("sendr[0]:out", wsdl.ChangeQueue{Served: true}), `invalidRequest: did you mean "sender"`},
		"no such end":       {remove("sender[0]:uot"), `notFound: did you mean "sender[0]:out"`},
		"no index":          {remove("sender:out"), `invalidRequest: write sender[0]:out to sender[1]:out`},
		"a second producer": {rewire("sender[0]:out", "", "sink:log"), "conflict: lead both producers to one queue"},
		"a second edge":     {add("worker[0]:log", "sender[0]:x", nil), "conflict: enqueues already to sink:log"},
		"taken outside":     {add("worker[0]:copy", "outside:more", nil), "conflict: outside:more is taken already"},
		"queue to queue":    {rewire("worker[1]:in", "", "queue:jobs"), "invalidRequest: from a queue to a queue"},
		"two ends":          {rewire("worker[1]:in", "queue:jobs", "sink:in"), "invalidRequest: give from or to"},
		"where it is":       {rewire("sender[0]:out", "", "queue:jobs"), "conflict: already"},
		"a name between":    {named("worker[1]:log", "sender[1]:x", "jobs"), "conflict: has a queue jobs already"},
		"a wrong encoder":   {set("jobs", wsdl.ChangeQueue{Encoders: &wsdl.EncoderChain{Encoder: []*wsdl.Encoder{{Codec: wsdl.Of(wsdl.Codec("json"))}}}}), `invalidProfile: the queue "jobs" cannot convert items`},
		"one on an edge":    {set("worker[0]:log", wsdl.ChangeQueue{Encoders: &wsdl.EncoderChain{Encoder: []*wsdl.Encoder{{Codec: wsdl.Of(wsdl.Codec("json"))}}}}), `invalidProfile: the queue "worker.0.log" cannot convert items`},
		"a queue's name":    {add("sink:out", "queue:jobs", &wsdl.Queue{Name: "jobs"}), "conflict: has a queue jobs already"},
		"between and at":    {add("sink:out", "queue:jobs", &wsdl.Queue{Name: "b", Type: wsdl.Of(wsdl.QueueTypeLifo)}), "invalidRequest: and another between"},
	} {
		t.Run(name, func(t *testing.T) {
			w := wired(t)
			got, err := c.plan(w)
			if err != nil {
				text := fmt.Sprintf("%s: %v", wsdl.CodeOf(err), err)
				if f := faultOf(err); f != nil {
					text += "; " + f.Advice
				}
				code, part, _ := strings.Cut(c.want, ": ")
				if !strings.HasPrefix(text, code+": ") || !strings.Contains(text, part) {
					t.Errorf("refused with %s", text)
				}
				return
			}
			if text := "\n" + strings.TrimSuffix(w.print(got), "\n"); text != c.want {
				t.Errorf("it comes to:%s", text)
			}
		})
	}
}

// A change that is pending keeps others off what it is about, one that is done
// leads names to what is there now, and one that failed leaves nothing.
func TestChangesFollowEachOther(t *testing.T) {
	w := wired(t)
	first, err := w.rewire(&wsdl.RewireEdge{Edge: "worker[0]:log", To: "sender[0]:log"}, stays)
	if err != nil {
		t.Fatal(err)
	}
	first.Number = 1
	for state, want := range map[wsdl.ChangeState]string{wsdl.ChangeStatePending: "change 1", wsdl.ChangeStateDone: "channel:8", wsdl.ChangeStateFailed: "channel:5"} {
		c := *first
		c.State = state
		w := wired(t, c)
		got, err := w.removeEdge("worker[0]:log")
		switch {
		case err != nil && !strings.Contains(err.Error(), want):
			t.Errorf("%s: %v", state, err)
		case err == nil && got.Queue != want:
			t.Errorf("%s: it ends %s, want %s", state, got.Queue, want)
		}
	}
	c := *first
	c.State = wsdl.ChangeStateDone
	w = wired(t, c)
	if _, err := w.removeEdge("channel:5"); wsdl.CodeOf(err) != wsdl.FaultCodeConflict {
		t.Errorf("an edge ends twice: %v", err)
	}
	back, err := w.rewire(&wsdl.RewireEdge{Edge: "worker[0]:log", To: "sink:log"}, stays)
	if err != nil {
		t.Fatal(err)
	}
	if len(back.Channels) != 1 || back.AfterOut[9] != 8 || back.AfterIn[9] != 5 {
		t.Errorf("the way back: %+v", back)
	}
	// A queue whose producers have all gone takes no other.
	var gone []change
	for i := range 2 {
		w := wired(t, slices.Clone(gone)...)
		c, err := w.removeEdge(fmt.Sprintf("sender[%d]:out", i))
		if err != nil {
			t.Fatal(err)
		}
		c.Number, c.State = int64(i+1), wsdl.ChangeStateDone
		gone = append(gone, *c)
	}
	if _, err := wired(t, gone...).rewire(&wsdl.RewireEdge{Edge: "outside:more", To: "queue:jobs"}, stays); err == nil || !strings.Contains(err.Error(), "last producer") {
		t.Errorf("a producer for a queue that has ended: %v", err)
	}
	// The last taker may go: what comes waits for the next. Only of a broadcast it
	// would be nobody's, so that keeps its last, and what has none becomes no broadcast.
	broadcast := func(w *wiring) (*change, error) {
		return w.changeQueue(&wsdl.ChangeQueue{Queue: "jobs", Type_: wsdl.Of(wsdl.QueueTypeBroadcast)}, nil)
	}
	for _, first := range []func(*wiring) (*change, error){nil, broadcast} {
		var changes []change
		made := func(plan func(*wiring) (*change, error)) error {
			c, err := plan(wired(t, slices.Clone(changes)...))
			if err == nil {
				c.Number, c.State = int64(len(changes)+1), wsdl.ChangeStateDone
				changes = append(changes, *c)
			}
			return err
		}
		if first != nil {
			if err := made(first); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 3 {
			err := made(func(w *wiring) (*change, error) { return w.removeEdge(fmt.Sprintf("worker[%d]:in", i)) })
			if (err != nil) != (i == 2 && first != nil) {
				t.Fatalf("taker %d: %v", i, err)
			}
		}
		if first != nil {
			continue
		}
		if err := made(broadcast); err == nil || !strings.Contains(err.Error(), "has no taker now") {
			t.Errorf("a broadcast without a taker: %v", err)
		}
		add := func(w *wiring) (*change, error) {
			return w.addEdge(&wsdl.AddEdge{Edge: &wsdl.Edge{From: "queue:jobs", To: "sink:in"}}, nil)
		}
		if err := made(add); err != nil {
			t.Errorf("the next taker: %v", err)
		}
		if err := made(broadcast); err != nil {
			t.Errorf("a broadcast with a taker: %v", err)
		}
	}
}

// What is registered is refused where the node that keeps the queue cannot build it,
// and a node is told what it would keep once the change is made.
func TestChangesSuitTheirNodes(t *testing.T) {
	w := wired(t)
	c, err := w.changeQueue(&wsdl.ChangeQueue{Queue: "worker[0]:log", Type_: wsdl.Of(wsdl.QueueTypeLifo), Capacity: wsdl.Of(int64(3 << 20))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Number = 1
	for i, want := range []wsdl.QueueLimits{ // of the jobs queue's five channels, and those of others
		{Types: "work", Queues: 1, Channels: 6, Memory: 1},
		{Types: "lifo", Queues: 1, Channels: 4, Memory: 13},
		{Channels: 4, Memory: 5},
	} {
		got := wired(t, *c).wants(i)
		if got.Types != want.Types || got.Queues != want.Queues || got.Channels != want.Channels || got.Memory != want.Memory {
			t.Errorf("member %d is asked for %+v, want %+v", i, got, want)
		}
	}
	python := &wsdl.Node{Id: "n2", Compiler: []*wsdl.Compiler{{Language: wsdl.Of(wsdl.LanguagePython)}}}
	c.Sources = []profile.Source{{Name: "rule:urgent@2", Language: "c"}}
	c.Queues[0].Rule = "urgent@2"
	if err := w.compilers(c, []*wsdl.Node{python}); err == nil || !strings.Contains(err.Error(), "node n2 keeps the queue worker.0.log and cannot build rule:urgent@2: it has no compiler for c") {
		t.Errorf("no compiler: %v", err)
	}
	c.Sources[0].Language = "python"
	if err := w.compilers(c, []*wsdl.Node{python}); err != nil {
		t.Error(err)
	}
}

// Each queue that an error lists has the one name that people type.
func TestQueuesAreListedOnce(t *testing.T) {
	w := wired(t)
	c, err := w.changeQueue(&wsdl.ChangeQueue{Queue: "more", Served: true}, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Number, c.State = 1, wsdl.ChangeStateDone
	w = wired(t, *c)
	if _, err := w.find("moer"); err == nil || faultOf(err).Advice != "there are jobs, more" {
		t.Errorf("listed: %+v", err)
	}
	if one, err := w.find("more"); err != nil || one.queue != 2 {
		t.Errorf("found: %+v, %v", one, err)
	}
}

// Whoever got no answer asks for the change again, also another broker: it is made once.
func TestTokenChangesOnce(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 2)
	b := g.start()
	id := g.submit(b, "t", profileOf("one", task("a", 2, "hang")))
	until(t, "the job runs", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	add := func(token, to string) (*wsdl.AddEdgeResponse, error) {
		return b.Queue(nil).AddEdgeContext(t.Context(), &wsdl.AddEdge{Job: id, Edge: &wsdl.Edge{From: "a[0]:" + token, To: to}, Token: token})
	}
	for range 2 {
		for range 2 {
			if s, err := add("mine", "a[1]:in"); err != nil || s.Change.Number != 1 {
				t.Fatalf("%+v, %v", s, err)
			}
		}
		g.crash()
		b = g.start()
		until(t, "the job runs", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	}
	if s, err := add("other", "a[1]:other"); err != nil || s.Change.Number != 2 {
		t.Errorf("under another token: %+v, %v", s, err)
	}
	if _, err := add(strings.Repeat("x", maxToken+1), "a[1]:in2"); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
		t.Errorf("a long token: %v", err)
	}
	if _, err := b.CancelJobContext(t.Context(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, id)
}

// A change that is refused in a later step is taken back where nothing has moved yet.
func TestChangeRefusedInALaterStep(t *testing.T) {
	for _, c := range []struct {
		refused int32
		back    bool
	}{{makeStep, true}, {switchStep, true}, {discardStep, false}} {
		t.Run(fmt.Sprint(c.refused), func(t *testing.T) {
			g := newGrid(t, nil)
			var discarded []int32
			g.apply = func(r *wsdl.ApplyChange) error {
				if r.Step == c.refused {
					return wsdl.Faultf(wsdl.FaultCodeInternal, "no memory")
				}
				if r.Discard != nil {
					g.mu.Lock()
					defer g.mu.Unlock()
					for _, s := range r.Discard.Channel {
						discarded = append(discarded, *s.Channel)
					}
				}
				return nil
			}
			g.node("n1", 4)
			b := g.start()
			job := profileOf("two", task("a", 1, "hang"), task("b", 1, "hang"))
			job.Edge = []*wsdl.Edge{{From: "a:out", To: "b:in"}}
			id := g.submit(b, "t", job)
			until(t, "it runs", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
			answer, err := b.Queue(nil).ChangeQueueContext(t.Context(), &wsdl.ChangeQueue{Job: id, Queue: "a:out", Capacity: wsdl.Of(int64(8192)), WaitMillis: 60000})
			if err != nil {
				t.Fatal(err)
			}
			state, reason := *answer.Change.State, answer.Change.Reason
			g.mu.Lock()
			back := slices.Clone(discarded)
			g.mu.Unlock()
			if c.back && (state != wsdl.ChangeStateFailed || !strings.Contains(reason, "no memory") || !slices.Equal(back, []int32{1})) || !c.back && (state != wsdl.ChangeStateDone || len(back) > 0) {
				t.Errorf("%s: %s; discarded %v", state, reason, back)
			}
			if _, err := b.CancelJobContext(t.Context(), &wsdl.CancelJob{Id: id}); err != nil {
				t.Error(err)
			}
			g.wait(b, id)
			g.settled()
		})
	}
}
