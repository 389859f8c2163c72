package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// alteration is what a served queue is like from now on, and what of that is new.
type alteration struct {
	Queue                                   profile.Queue
	Type, Full, Capacity, Steps, Rule, Link bool
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
