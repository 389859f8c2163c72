package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// takers counts the live edges that lead from a queue.
func (w *wiring) takers(queue int) (n int) {
	for i := range w.channels {
		if _, over := w.ended[i]; !over && w.channels[i].From.Queue == queue {
			n++
		}
	}
	return n
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
