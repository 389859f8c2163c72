package broker

import (
	"fmt"
	"slices"
	"strings"

	"mvm/broker/profile"
	"mvm/wsdl"
)

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
