package broker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// change is a live operation on an attempt's queues, as the journal has it: with
// all that is needed to make it again from any point on. Its number, from 1 in
// each attempt, makes it idempotent at the nodes.
type change struct {
	Number int64
	What   string // in words
	Queue  string // what it changed or made, as every operation takes it
	State  wsdl.ChangeState
	Token  string   `json:",omitempty"` // of who asked for it, who may ask again
	Reason string   `json:",omitempty"` // what it waits for, or why it failed
	About  []string `json:",omitempty"` // edges and queues that take no other change meanwhile

	Queues   []profile.Queue   `json:",omitempty"` // made
	Sources  []profile.Source  `json:",omitempty"` // of the registered logic that is new
	Homes    []int             `json:",omitempty"` // of these: members
	Channels []profile.Channel `json:",omitempty"` // made
	AfterOut map[int]int       `json:",omitempty"` // of these: the channel that each follows at its producer's port
	AfterIn  map[int]int       `json:",omitempty"` // and at its taker's
	Forward  []int             `json:",omitempty"` // of these: what lead from a port that a taker has left, and end with what it left there
	Resume   []int             `json:",omitempty"` // channels to that port, from other nodes
	Alter    *alteration       `json:",omitempty"`
	Switches []swap            `json:",omitempty"` // made once all channels are
}

// swap ends a channel at its producer, who goes on with Next, or with nothing
// when that is below 0.
type swap struct{ Channel, Next int }

// alteration is what a served queue is like from now on, and what of that is new.
type alteration struct {
	Queue                                   profile.Queue
	Type, Full, Capacity, Steps, Rule, Link bool
}

// apply puts a change into the wiring. What one that failed made stays where it
// was made, and is nobody's.
func (w *wiring) apply(c *change) {
	w.queues = append(w.queues, c.Queues...)
	w.homes = append(w.homes, c.Homes...)
	w.channels = append(w.channels, c.Channels...)
	for _, made := range c.Channels {
		if c.State == wsdl.ChangeStateFailed {
			w.ended[made.ID], w.void[made.ID] = c.Number, true
		}
	}
	if c.State == wsdl.ChangeStateFailed {
		for i := range c.Queues {
			w.queues[len(w.queues)-1-i].Name = ""
		}
		return
	}
	if a := c.Alter; a != nil {
		w.queues = slices.Clone(w.queues) // the profile's stay as they are
		w.queues[a.Queue.ID-1] = a.Queue
	}
	for _, s := range c.Switches {
		w.ended[s.Channel] = c.Number
	}
	for _, id := range c.Forward { // its end is settled
		w.ended[id], w.forwards[id] = c.Number, true
	}
	if c.State == wsdl.ChangeStatePending {
		for _, about := range c.About {
			w.busy[about] = c.Number
		}
	}
}

// draft is a change that is being planned.
type draft struct {
	*wiring
	change
}

func (w *wiring) draft(what string) *draft {
	return &draft{w, change{What: what, State: wsdl.ChangeStatePending, AfterOut: map[int]int{}, AfterIn: map[int]int{}}}
}

func conflictf(format string, args ...any) *wsdl.Fault {
	return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf(format, args...), "")
}

// claim keeps other changes off a thing until this one is done.
func (d *draft) claim(about string) error {
	if n, busy := d.busy[about]; busy {
		f := conflictf("change %d, which is about %s too, is still pending", n, d.describe(about))
		f.Advice = fmt.Sprintf("wait for it (GetChange, `mvm queue change JOB %d`)", n)
		return f
	}
	if !slices.Contains(d.About, about) {
		d.About = append(d.About, about)
	}
	return nil
}

func (d *draft) describe(about string) string {
	about = strings.TrimRight(about, " <>")
	if id, ok := strings.CutPrefix(about, "queue:"); ok {
		if q, err := d.queue(id); err == nil {
			return "the queue " + d.queues[q-1].Name
		}
	}
	return about
}

// live is nil for an edge that has not ended.
func (d *draft) live(channel int) error {
	n, over := d.ended[channel]
	if !over {
		return nil
	}
	f := conflictf("change %d has ended channel %d (%s)", n, channel, d.edge(channel))
	f.Advice = "name the edge by its ends: they lead to what is there now"
	return f
}

// lay makes a channel. Where it takes the place of one, old is that; below 0 it
// takes none.
func (d *draft) lay(from, to profile.End, capacity, old int) (id int, err error) {
	id = len(d.channels)
	if err := d.room(from, old, true); err != nil {
		return 0, err
	}
	if err := d.room(to, old, false); err != nil {
		return 0, err
	}
	return id, d.place(from, to, capacity)
}

// place makes a channel between ends that have room for it.
func (d *draft) place(from, to profile.End, capacity int) error {
	id := len(d.channels)
	if a, b := d.ends(&profile.Channel{From: from, To: to}); a != b {
		for _, i := range []int{a, b} {
			if m := &d.plan.members[i]; m.Address == "" {
				f := conflictf("an edge between nodes would begin or end on node %s, which was awakened without a proxy", m.label())
				f.Advice = "give the job any edge between processes: then all its nodes have one"
				return f
			}
		}
	}
	if err := d.claim(fmt.Sprintf("channel:%d", id)); err != nil {
		return err
	}
	if before, there := d.last(from, true); there {
		d.AfterOut[id] = before
	}
	if before, there := d.last(to, false); there {
		d.AfterIn[id] = before
	}
	c := profile.Channel{ID: id, From: from, To: to, Capacity: capacity}
	d.Channels = append(d.Channels, c)
	d.channels = append(d.channels, c)
	return nil
}

// room says whether an end may take one more edge: a port and an end outside have
// one each way, a queue has any number.
func (d *draft) room(end profile.End, old int, out bool) error {
	if end.Queue > 0 {
		return d.open(end.Queue)
	}
	if err := d.claim(d.label(end) + map[bool]string{true: " >", false: " <"}[out]); err != nil {
		return err
	}
	for i := range d.channels {
		if _, over := d.ended[i]; over || i == old {
			continue
		}
		c := &d.channels[i]
		switch {
		case end.Outside != "" && (c.From == end || c.To == end):
			return conflictf("%s is taken already: its edge is %s; each needs a name of its own", d.label(end), d.edge(i))
		case out && c.From == end:
			f := conflictf("%s enqueues already to %s: a port has one edge each way", d.label(end), d.label(c.To))
			f.Advice = "re-wire that edge, or have several takers share a queue"
			return f
		case !out && c.To == end:
			f := conflictf("%s dequeues already from %s: a port has one edge each way", d.label(end), d.label(c.From))
			f.Advice = "lead both producers to one queue, which many may share: change that edge into a queue first, then add an edge to queue:NAME"
			return f
		}
	}
	return nil
}

// open is nil for a queue that was made, and that no failed change left over.
func (d *draft) open(queue int) error {
	if d.queues[queue-1].Name == "" {
		return wsdl.Faultf(wsdl.FaultCodeNotFound, "the queue %d was not made", queue)
	}
	return nil
}

// make adds a served queue between ends; its home is where most of them are.
func (d *draft) make(q profile.Queue, name string, ends ...profile.End) int {
	q.ID = len(d.queues) + 1
	q.Name = name
	for n := 2; slices.ContainsFunc(d.queues, func(other profile.Queue) bool { return other.Name == q.Name }); n++ {
		q.Name = fmt.Sprintf("%s#%d", name, n)
	}
	var processes []int
	for _, e := range ends {
		if e.Process >= 0 {
			processes = append(processes, e.Process)
		}
	}
	home := homeOf(processes, func(process int) int { return d.plan.node[process] })
	d.Queues, d.Homes = append(d.Queues, q), append(d.Homes, home)
	d.queues, d.homes = append(d.queues, q), append(d.homes, home)
	return q.ID
}

// named is what a queue is called that was made of an edge.
func (d *draft) named(e profile.End) string {
	if e.Outside != "" {
		return "outside." + e.Outside
	}
	p := &d.job.Processes[e.Process]
	if p.Count == 1 {
		return p.Task + "." + e.Port
	}
	return fmt.Sprintf("%s.%d.%s", p.Task, p.Index, e.Port)
}

func (d *draft) end(channel, next int) error {
	if err := d.claim(fmt.Sprintf("channel:%d", channel)); err != nil {
		return err
	}
	d.Switches = append(d.Switches, swap{channel, next})
	return nil
}

// done is the change, unless something is in its way.
func (d *draft) done(err error) (*change, error) {
	if err != nil {
		return nil, err
	}
	return &d.change, nil
}

// takers counts the live edges that lead from a queue.
func (w *wiring) takers(queue int) (n int) {
	for i := range w.channels {
		if _, over := w.ended[i]; !over && w.channels[i].From.Queue == queue {
			n++
		}
	}
	return n
}

// called is what a refusal calls the queue of a change. A queue's own name may be
// one that no profile can give: of an edge, or with a number after it.
func (w *wiring) called(t target) string {
	name := ""
	if t.queue > 0 {
		name, _, _ = strings.Cut(w.queues[t.queue-1].Name, "#")
	} else {
		name = w.draft("").named(w.channels[t.channel].From)
	}
	return name[:min(len(name), 63)]
}

// changeQueue plans other properties of a queue. Those that are not asked for
// stay; a bare channel becomes a queue that is served where it needs to be.
func (w *wiring) changeQueue(r *wsdl.ChangeQueue, lookup profile.Lookup) (*change, error) {
	t, err := w.find(r.Queue)
	if err != nil {
		return nil, err
	}
	if r.Capacity != nil && (*r.Capacity < 1 || *r.Capacity > profile.MaxCapacity) {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a capacity of %d bytes", *r.Capacity), fmt.Sprintf("write 1 to %d", profile.MaxCapacity))
	}
	if r.Weight != 0 || r.Held != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "only queues in which jobs wait have a weight, and can be held", "leave weight and held out, or the job")
	}
	if r.Type_ == nil && r.Full == nil && r.Capacity == nil && r.Encoders == nil && r.Rule == nil && r.Link == nil && !r.Served {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "the change changes nothing", "name a type, full, capacity, encoders, rule, link or served")
	}
	element := &wsdl.Queue{Name: w.called(t), Type: r.Type_, Full: r.Full}
	if r.Capacity != nil {
		element.Capacity = wsdl.Of(wsdl.Number(fmt.Sprint(*r.Capacity)))
	}
	if r.Encoders != nil {
		element.Encoder = r.Encoders.Encoder
	}
	if element.Rule = wsdl.Or(r.Rule, ""); element.Rule != "" && r.RuleVersion > 0 {
		element.Version = wsdl.Of(wsdl.Number(fmt.Sprint(r.RuleVersion)))
	}
	now := profile.Queue{Type: string(wsdl.QueueTypeFifo), Full: string(wsdl.FullPolicyBlock)}
	if t.queue > 0 {
		now = w.queues[t.queue-1]
	}
	if element.Type == nil {
		element.Type = wsdl.Of(wsdl.QueueType(now.Type))
	}
	if name, version, ok := strings.Cut(now.Rule, "@"); ok && r.Rule == nil { // it must go with what is new
		element.Rule, element.Version = name, wsdl.Of(wsdl.Number(version))
	}
	link := r.Link
	if link != nil && *link == (wsdl.Link{}) {
		link = nil // it imposes nothing
	}
	wanted, sources, served, err := profile.CompileQueue(element, link, lookup)
	if err != nil {
		return nil, err
	}
	a := &alteration{Queue: now, Type: r.Type_ != nil, Full: r.Full != nil, Capacity: r.Capacity != nil, Steps: r.Encoders != nil, Rule: r.Rule != nil, Link: r.Link != nil}
	if a.Type {
		a.Queue.Type = wanted.Type
	}
	if a.Full {
		a.Queue.Full = wanted.Full
	}
	if a.Capacity {
		a.Queue.Capacity = wanted.Capacity
	}
	if a.Steps {
		a.Queue.Steps = wanted.Steps
	}
	if a.Rule {
		a.Queue.Rule = wanted.Rule
	}
	if a.Link {
		a.Queue.Link = wanted.Link
	}
	if t.queue > 0 {
		d := w.draft(fmt.Sprintf("the queue %s: %s", now.Name, a.words()))
		d.Queue, d.Sources = now.Name, sources
		if n := w.takers(t.queue); n > 1 && a.Queue.Type == string(wsdl.QueueTypeFifo) {
			f := conflictf("the queue %s has %d takers, and a fifo has one", now.Name, n)
			f.Advice = "write work for each item to one of them, or broadcast for each item to all"
			return nil, f
		} else if n == 0 && a.Type && a.Queue.Type == string(wsdl.QueueTypeBroadcast) && now.Type != a.Queue.Type {
			f := conflictf("the queue %s has no taker now, and of a broadcast what waits in it would be nobody's", now.Name)
			f.Advice = "add a taker first"
			return nil, f
		}
		d.Alter = a
		return d.done(d.claim(t.id()))
	}
	if err := w.draft("").live(t.channel); err != nil {
		return nil, err
	}
	old := w.channels[t.channel]
	a.Queue.Capacity = cmp.Or(a.Queue.Capacity, old.Capacity)
	d := w.draft(fmt.Sprintf("the edge %s: %s", w.edge(t.channel), a.words()))
	if !served && !r.Served {
		if !a.Capacity {
			return nil, conflictf("the edge %s is a plain fifo that blocks already", w.edge(t.channel))
		}
		id, err := d.lay(old.From, old.To, a.Queue.Capacity, old.ID)
		if err != nil {
			return nil, err
		}
		d.Queue = d.label(old.From)
		d.proxied(&old)
		return d.done(d.end(old.ID, id))
	}
	d.Sources = sources
	q := profile.End{Process: -1, Queue: d.make(a.Queue, d.named(old.From), old.From, old.To)}
	in, err := d.lay(old.From, q, a.Queue.Capacity, old.ID)
	if err != nil {
		return nil, err
	}
	if _, err := d.lay(q, old.To, a.Queue.Capacity, old.ID); err != nil {
		return nil, err
	}
	d.Queue = d.Queues[0].Name
	d.proxied(&old)
	return d.done(d.end(old.ID, in))
}

// words says what changes.
func (a *alteration) words() string {
	var parts []string
	if a.Type {
		parts = append(parts, "type "+a.Queue.Type)
	}
	if a.Full {
		parts = append(parts, a.Queue.Full+" when full")
	}
	if a.Capacity {
		parts = append(parts, fmt.Sprintf("capacity %d", a.Queue.Capacity))
	}
	if a.Steps {
		steps := make([]string, len(a.Queue.Steps))
		for i, s := range a.Queue.Steps {
			steps[i] = s.String()
		}
		parts = append(parts, "encoders "+cmp.Or(strings.Join(steps, ", "), "none"))
	}
	if a.Rule {
		parts = append(parts, "rule "+cmp.Or(a.Queue.Rule, "of its type"))
	}
	if a.Link {
		if a.Queue.Link == nil {
			parts = append(parts, "no link")
		} else {
			parts = append(parts, "link "+a.Queue.Link.String())
		}
	}
	return cmp.Or(strings.Join(parts, ", "), "a queue of its own")
}

// rewire plans an edge's way to another taker, or from another producer. left says
// that the taker which it has now has left: what that did not take goes to the next.
func (w *wiring) rewire(r *wsdl.RewireEdge, left func(channel int) (bool, error)) (*change, error) {
	if (r.From == "") == (r.To == "") {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "an edge is re-wired at one end", "give from or to, and not both")
	}
	id, err := w.findEdge(r.Edge)
	if err != nil {
		return nil, err
	}
	old := w.channels[id]
	other, err := w.end(cmp.Or(r.From, r.To))
	if err == nil {
		err = w.alive(other)
	}
	if err != nil {
		return nil, err
	}
	from, to := old.From, old.To
	if r.From != "" {
		from = other
	} else {
		to = other
	}
	d := w.draft(fmt.Sprintf("the edge %s: %s -> %s now", w.edge(id), w.label(from), w.label(to)))
	d.Queue = w.label(from)
	switch {
	case d.live(id) != nil:
		return nil, d.live(id)
	case from == old.From && to == old.To:
		return nil, conflictf("the edge leads from %s to %s already", w.label(from), w.label(to))
	}
	if err := d.pair(from, to, id); err != nil {
		return nil, err
	}
	if to != old.To && bare(&old) && old.To.Process >= 0 {
		gone, err := left(id)
		switch {
		case err != nil || !gone:
		case d.direct(&old):
			f := conflictf("%s has left, and the edge %s is direct: what it did not take went with its socket", w.label(old.To), w.edge(id))
			f.Advice = "remove the edge, if that may be, and add another from there"
			err = f
		default:
			err = d.forward(id, to)
		}
		if err != nil {
			return nil, err
		}
	}
	next, err := d.lay(from, to, old.Capacity, id)
	if err != nil {
		return nil, err
	}
	if to.Queue > 0 && len(d.Forward) > 0 { // what was enqueued before it goes before it
		d.AfterIn[next] = d.Forward[0]
	}
	if err := d.loses(id, next); err != nil {
		return nil, err
	}
	was, _ := d.ends(&old)
	if is, _ := d.ends(&d.channels[next]); from != old.From || from.Queue > 0 || was != is {
		next = -1 // its producer, or the node that is it, goes on with nothing
	}
	d.proxied(&old)
	return d.done(d.end(id, next))
}

// direct says that the two processes of a channel have a socket of their own.
func (d *draft) direct(c *profile.Channel) bool {
	from, to := d.ends(c)
	return c.Direct && from != to
}

// proxied says of a change that what it leads elsewhere is direct no more.
func (d *draft) proxied(old *profile.Channel) {
	if d.direct(old) {
		d.What += ", through the proxies"
	}
}

// forward leads what the taker of a channel left to the next one. It comes
// before all that is newer of its producer.
func (d *draft) forward(channel int, to profile.End) error {
	port := d.channels[channel].To
	if to.Outside != "" {
		f := conflictf("%s has left, and items may wait there: an end outside cannot be given what another left", d.label(port))
		f.Advice = "lead the edge to a process, or to a queue"
		return f
	}
	if err := d.room(to, channel, false); err != nil {
		return err
	}
	for i := range d.channels { // it may have had what another left before it
		from, there := d.ends(&d.channels[i])
		if d.channels[i].To == port && from != there && (i == channel || d.forwards[i]) {
			d.Resume = append(d.Resume, i)
		}
	}
	id := len(d.channels)
	if err := d.place(port, to, d.channels[channel].Capacity); err != nil {
		return err
	}
	delete(d.AfterOut, id) // it is none of what the port enqueued
	d.Forward = append(d.Forward, id)
	d.ended[id] = int64(len(d.changes)) + 1
	return nil
}

// alive is nil for an end that may have an edge: not for one of a process that has
// ended.
func (w *wiring) alive(e profile.End) error {
	if e.Process < 0 || !w.exited[e.Process] {
		return nil
	}
	f := conflictf("%s has ended: nothing will ever enqueue or dequeue at %s", w.job.Processes[e.Process].Label(), w.label(e))
	f.Advice = "name a process that runs: the job's status tells which do (`mvm job ID`)"
	return f
}

// sources are those of the registered logic that a queue of the profile's uses.
func (w *wiring) sources(q *profile.Queue) (all []profile.Source) {
	names := q.Programs()
	for _, s := range w.job.Sources {
		if slices.Contains(names, s.Name) {
			all = append(all, s)
		}
	}
	return all
}

// pair says whether an edge may join two ends at all.
func (d *draft) pair(from, to profile.End, old int) error {
	switch {
	case from.Queue > 0 && to.Queue > 0:
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "an edge from a queue to a queue", "lead one end to a process or outside")
	case from.Outside != "" && to.Outside != "":
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "an edge from outside to outside", "lead one end to a process")
	case to.Queue > 0 && d.over(to.Queue):
		f := conflictf("the last producer of the queue %s was led elsewhere: its takers are told END", d.queues[to.Queue-1].Name)
		f.Advice = "add the next producer before the last one leaves, or make another queue"
		return f
	case from.Queue > 0 && d.queues[from.Queue-1].Type == string(wsdl.QueueTypeFifo) && d.others(from.Queue, old) > 0:
		f := conflictf("the queue %s is a fifo, and has a taker already", d.queues[from.Queue-1].Name)
		f.Advice = "change its type to work, for each item to one of them, or broadcast, for each item to all"
		return f
	}
	return nil
}

// over says whether changes have taken a queue all its producers.
func (d *draft) over(queue int) bool {
	had := false
	for i := range d.channels {
		if d.channels[i].To.Queue != queue || d.void[i] {
			continue
		}
		if _, over := d.ended[i]; !over {
			return false
		}
		had = true
	}
	return had
}

// others counts the takers of a queue besides one edge that is to end.
func (d *draft) others(queue, old int) int {
	n := d.takers(queue)
	if old >= 0 && d.channels[old].From.Queue == queue {
		n--
	}
	return n
}

// loses refuses to take a broadcast its last taker, while the channel laid since does
// not lead from it. In other queues items wait for the next taker.
func (d *draft) loses(old, laid int) error {
	q := d.channels[old].From.Queue
	if q == 0 || d.queues[q-1].Type != string(wsdl.QueueTypeBroadcast) || d.takers(q) > 1 || laid >= 0 && d.channels[laid].From.Queue == q {
		return nil
	}
	f := conflictf("%s is the last taker of the queue %s, a broadcast: what comes while there is none would be nobody's", d.label(d.channels[old].To), d.queues[q-1].Name)
	f.Advice = "add another taker first, or change its type to work: then what comes waits for the next taker"
	return f
}

// addEdge plans a new edge, with a queue between its ends or a new one at one of
// them where the request has one.
func (w *wiring) addEdge(r *wsdl.AddEdge, lookup profile.Lookup) (*change, error) {
	e := r.Edge
	switch {
	case e == nil:
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "there is no edge to add", "give one, with from and to")
	case e.Direct:
		return nil, wsdl.NewFault(wsdl.FaultCodeUnsupported, "a direct channel is made when its processes start, and not added later", "leave direct out: the edge goes through the proxies")
	case e.Queue != "" && r.Queue != nil && r.Queue.Name != e.Queue:
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the edge names the queue %q, and the request describes the queue %q", e.Queue, r.Queue.Name), "describe the one that the edge names, or none")
	}
	d := w.draft("")
	kind, served := profile.Queue{Type: string(wsdl.QueueTypeFifo), Full: string(wsdl.FullPolicyBlock), Capacity: profile.DefaultCapacity}, false
	if r.Queue != nil || e.Link != nil {
		element := wsdl.Queue{Name: "link"}
		if r.Queue != nil {
			element = *r.Queue
		}
		var err error
		if kind, d.Sources, served, err = profile.CompileQueue(&element, e.Link, lookup); err != nil {
			return nil, err
		}
	}
	// An end may be the queue that the request describes, or one of a kind that the
	// profile describes and of which there is none yet.
	own := ""
	if r.Queue != nil {
		own = r.Queue.Name
		served = served || e.Queue != "" // a queue that is named is one, also if it is a plain fifo
	} else {
		for _, text := range []string{e.Queue, strings.TrimPrefix(e.From, "queue:"), strings.TrimPrefix(e.To, "queue:")} {
			k := slices.IndexFunc(w.job.Kinds, func(k profile.Queue) bool { return k.Name == text })
			if _, err := w.queue(text); k < 0 || text != e.Queue && err == nil {
				continue
			}
			link := kind.Link
			own, kind = text, w.job.Kinds[k]
			kind.Link = link
			served = kind.Served()
			d.Sources = w.sources(&kind)
			break
		}
		if e.Queue != "" && e.Queue != own && e.Queue != "fifo" {
			names := []string{"fifo"}
			for _, k := range w.job.Kinds {
				names = append(names, k.Name)
			}
			return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("the edge names the queue %q, which neither the job's profile nor the request describes%s", e.Queue, profile.Nearest(e.Queue, names)),
				"describe it in the request's queue (`mvm queue add --name NAME --type TYPE`), or lead the edge to queue:NAME of one that is there")
		}
	}
	var ends [2]profile.End
	atQueue := -1
	for i, text := range []string{e.From, e.To} {
		if own != "" && (r.Queue != nil || e.Queue == "") && text == "queue:"+own {
			atQueue = i
			continue
		}
		var err error
		if ends[i], err = w.end(text); err == nil {
			err = w.alive(ends[i])
		}
		if err != nil {
			return nil, err
		}
	}
	from, to := ends[0], ends[1]
	switch {
	case atQueue >= 0 && e.From == e.To:
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "an edge from a queue to itself", "lead one end to a process or outside")
	case atQueue >= 0:
		if _, err := w.queue(own); err == nil {
			return nil, conflictf("the job has a queue %s already", own)
		}
		other := ends[1-atQueue]
		if other.Process < 0 {
			return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a new queue whose only end is %s", w.label(other)), "begin with an edge to or from a process")
		}
		q := profile.End{Process: -1, Queue: d.make(kind, own, other)}
		if atQueue == 0 {
			from = q
		} else {
			to = q
		}
		served = false // nothing comes between
	case served && (from.Queue > 0 || to.Queue > 0):
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "the edge has a queue at its end and another between its ends", "leave one of them out")
	}
	if err := d.pair(from, to, -1); err != nil {
		return nil, err
	}
	d.What = fmt.Sprintf("a new edge %s -> %s", d.label(from), d.label(to))
	if !served {
		if _, err := d.lay(from, to, kind.Capacity, -1); err != nil {
			return nil, err
		}
		if d.Queue = d.label(from); from.Queue > 0 || to.Queue > 0 {
			d.Queue = d.queues[from.Queue+to.Queue-1].Name
		}
		return &d.change, nil
	}
	if from.Process < 0 && to.Process < 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "an edge from outside to outside", "lead one end to a process")
	}
	if _, err := w.queue(own); r.Queue != nil && e.Queue != "" && err == nil {
		return nil, conflictf("the job has a queue %s already", own)
	}
	name := cmp.Or(own, d.named(from))
	q := profile.End{Process: -1, Queue: d.make(kind, name, from, to)}
	if _, err := d.lay(from, q, kind.Capacity, -1); err != nil {
		return nil, err
	}
	if _, err := d.lay(q, to, kind.Capacity, -1); err != nil {
		return nil, err
	}
	d.Queue = d.Queues[0].Name
	d.What += ", with a queue of type " + kind.Type
	return d.done(nil)
}

// removeEdge plans an edge's end.
func (w *wiring) removeEdge(text string) (*change, error) {
	id, err := w.findEdge(text)
	if err != nil {
		return nil, err
	}
	d := w.draft(fmt.Sprintf("the edge %s ends", w.edge(id)))
	d.Queue = fmt.Sprintf("channel:%d", id)
	if err := d.live(id); err != nil {
		return nil, err
	}
	if err := d.loses(id, -1); err != nil {
		return nil, err
	}
	return d.done(d.end(id, -1))
}

// The steps of a change. Nobody is asked for one before all have made the one
// before.
const (
	meetStep   = 1 + iota // members make links to those that they had none to
	makeStep              // what is new, at every node with an end of it
	leaveStep             // at the nodes of takers that have left, and of who sends there: what they left begins to move
	alterStep             // what is altered, at the queue's home
	followStep            // and at the other nodes with an end of the queue
	switchStep            // at the nodes of the producers
	steps
	discardStep // at those of makeStep and of the step that was refused: see change.undone
)

// concerned are the members that take part in each step.
func (w *wiring) concerned(c *change) [steps][]int {
	var all [steps][]int
	makers, meeting, leavers := map[int]bool{}, map[int]bool{}, map[int]bool{}
	for _, home := range c.Homes {
		makers[home] = true
	}
	for i := range c.Channels {
		from, to := w.ends(&c.Channels[i])
		forwards := slices.Contains(c.Forward, c.Channels[i].ID)
		if makers[to] = true; !forwards || from == to {
			makers[from] = true
		}
		if forwards {
			leavers[from] = true
		}
		if from != to && !slices.Contains(w.plan.peers[from], to) {
			meeting[from], meeting[to] = true, true
		}
	}
	for _, id := range c.Resume {
		from, _ := w.ends(&w.channels[id])
		leavers[from] = true
	}
	all[meetStep], all[makeStep], all[leaveStep] = slices.Sorted(maps.Keys(meeting)), slices.Sorted(maps.Keys(makers)), slices.Sorted(maps.Keys(leavers))
	if c.Alter != nil {
		home := w.homes[c.Alter.Queue.ID-1]
		followers := map[int]bool{}
		for i := range w.channels {
			if made := &w.channels[i]; made.From.Queue+made.To.Queue == c.Alter.Queue.ID && !w.void[i] {
				from, to := w.ends(made)
				followers[from], followers[to] = true, true
			}
		}
		delete(followers, home)
		all[alterStep], all[followStep] = []int{home}, slices.Sorted(maps.Keys(followers))
	}
	switchers := map[int]bool{}
	for _, s := range c.Switches {
		from, _ := w.ends(&w.channels[s.Channel])
		switchers[from] = true
	}
	all[switchStep] = slices.Sorted(maps.Keys(switchers))
	return all
}

// ends are the members that hold a channel's two ends.
func (w *wiring) ends(c *profile.Channel) (from, to int) {
	return w.holder(c.From, c.To), w.holder(c.To, c.From)
}
