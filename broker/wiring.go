package broker

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// wiring is an attempt's topology as it is now: the plan that its nodes were
// instantiated with, and the changes that were made since. It is pure, and made
// anew from plan and changes wherever one is needed.
type wiring struct {
	plan     *layout
	job      *profile.Job
	channels []profile.Channel // by ID
	queues   []profile.Queue   // by ID less 1
	homes    []int             // likewise: members
	ended    map[int]int64     // channels that lead nowhere any more, by the change that ended them
	busy     map[string]int64  // pending changes, by what they are about
	changes  []change
	void     map[int]bool // channels of changes that failed
	forwards map[int]bool // channels of what a taker left
	exited   map[int]bool // processes that have ended, as far as is known
}

// newWiring is the wiring of an attempt. What changes add goes behind what the
// profile has, so the profile's slices stay as they are.
func newWiring(y *layout, changes []change) *wiring {
	w := &wiring{plan: y, job: y.job, channels: slices.Clip(y.job.Channels), queues: slices.Clip(y.job.Queues), homes: slices.Clip(y.homes),
		changes: changes, ended: map[int]int64{}, busy: map[string]int64{}, void: map[int]bool{}, forwards: map[int]bool{}, exited: map[int]bool{}}
	for i := range changes {
		w.apply(&changes[i])
	}
	return w
}

// holder is the member that serves an end, as layout.holder.
func (w *wiring) holder(end, other profile.End) int {
	switch {
	case end.Queue > 0:
		return w.homes[end.Queue-1]
	case end.Outside != "":
		return w.holder(other, end)
	}
	return w.plan.node[end.Process]
}

func (w *wiring) label(e profile.End) string { return w.job.Label(e, w.queues) }

// edge is what people call an edge.
func (w *wiring) edge(channel int) string {
	c := &w.channels[channel]
	return w.label(c.From) + " -> " + w.label(c.To)
}

// bare says whether a channel is a queue by itself.
func bare(c *profile.Channel) bool { return c.From.Queue == 0 && c.To.Queue == 0 }

// name is what a bare channel is called: by its producer, or by its number once
// something else leads from there.
func (w *wiring) name(channel int) string {
	if _, over := w.ended[channel]; over {
		return fmt.Sprintf("channel:%d", channel)
	}
	return w.label(w.channels[channel].From)
}

// target is what an operation is about: a served queue by its ID, or, with 0, a
// bare channel.
type target struct{ queue, channel int }

func (t target) id() string {
	if t.queue > 0 {
		return fmt.Sprintf("queue:%d", t.queue)
	}
	return fmt.Sprintf("channel:%d", t.channel)
}

// member is who has a target's items: the home, or the node of the taker.
func (w *wiring) member(t target) int {
	if t.queue > 0 {
		return w.homes[t.queue-1]
	}
	c := &w.channels[t.channel]
	return w.holder(c.To, c.From)
}

// find is the queue that a person names: by its name, or by any edge of it.
func (w *wiring) find(text string) (target, error) {
	if name, ok := strings.CutPrefix(text, "queue:"); ok && !strings.Contains(text, "->") {
		q, err := w.queue(name)
		return target{queue: q}, err
	}
	if !strings.Contains(text, ":") {
		if id, there := w.at(profile.End{Process: -1, Outside: text}, nil); there {
			return w.through(id), nil
		}
		q, err := w.queue(text)
		return target{queue: q}, err
	}
	id, err := w.findEdge(text)
	if err != nil {
		return target{}, err
	}
	return w.through(id), nil
}

// through is the queue that an edge belongs to.
func (w *wiring) through(channel int) target {
	c := &w.channels[channel]
	return target{queue: c.From.Queue + c.To.Queue, channel: channel}
}

// queue is the ID of a served queue.
func (w *wiring) queue(name string) (int, error) {
	if id, err := strconv.Atoi(name); err == nil && id >= 1 && id <= len(w.queues) && w.queues[id-1].Name != "" {
		return id, nil
	}
	for i := range w.queues {
		if w.queues[i].Name == name && name != "" {
			return i + 1, nil
		}
	}
	var names, outside []string
	for i := range w.channels {
		if _, over := w.ended[i]; over {
			continue
		}
		for _, e := range []profile.End{w.channels[i].From, w.channels[i].To} {
			if e.Outside != "" {
				outside = append(outside, e.Outside)
			}
		}
	}
	for i := range w.queues {
		// One that was made of an edge from outside is called as people call that.
		of, made := strings.CutPrefix(w.queues[i].Name, "outside.")
		if w.queues[i].Name != "" && !(made && slices.Contains(outside, of)) {
			names = append(names, w.queues[i].Name)
		}
	}
	names = append(names, outside...)
	return 0, w.missing("queue", name, names)
}

// listed bounds the names in an error.
const listed = 8

func (w *wiring) missing(what, name string, names []string) error {
	f := wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("the job has no %s %q%s", what, name, profile.Nearest(name, names)), "")
	switch {
	case len(names) == 0:
		f.Advice = "it has none at all; edges are named by their ends, as in sender[0]:out"
	case len(names) <= listed:
		f.Advice = "there are " + strings.Join(names, ", ")
	default:
		f.Advice = fmt.Sprintf("there are %s and %d more: ListQueues tells them all", strings.Join(names[:listed], ", "), len(names)-listed)
	}
	return f
}

// at is the channel that leads from an end, or, where none does, to it. With
// another end it is the one between the two.
func (w *wiring) at(end profile.End, to *profile.End) (channel int, there bool) {
	found := -1
	for i := range w.channels {
		if _, over := w.ended[i]; over {
			continue
		}
		switch c := &w.channels[i]; {
		case to != nil && c.From == end && c.To == *to, to == nil && c.From == end:
			return i, true
		case to == nil && c.To == end && found < 0:
			found = i
		}
	}
	return found, found >= 0
}

// findEdge is the channel that a person names.
func (w *wiring) findEdge(text string) (int, error) {
	if number, ok := strings.CutPrefix(text, "channel:"); ok {
		id, err := strconv.Atoi(number)
		if err != nil || id < 0 || id >= len(w.channels) {
			return 0, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("the job has no edge %q: its channels go from 0 to %d", text, len(w.channels)-1), "ListQueues tells all edges")
		}
		return id, nil
	}
	from, arrow, hasTo := strings.Cut(text, "->")
	end, err := w.end(strings.TrimSpace(from))
	if err != nil {
		return 0, err
	}
	if hasTo {
		to, err := w.end(strings.TrimSpace(arrow))
		if err != nil {
			return 0, err
		}
		if id, there := w.at(end, &to); there {
			return id, nil
		}
		return 0, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("no edge leads from %s to %s", w.label(end), w.label(to)), "ListQueues tells all edges")
	}
	if end.Queue > 0 {
		return 0, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("%s has several edges", w.label(end)), "name the process's end of the edge, as in sender[0]:out")
	}
	if id, there := w.at(end, nil); there {
		return id, nil
	}
	var names []string
	for i := range w.channels {
		if _, over := w.ended[i]; over {
			continue
		}
		for _, e := range []profile.End{w.channels[i].From, w.channels[i].To} {
			if e.Queue == 0 && len(names) < 1000 {
				names = append(names, w.label(e))
			}
		}
	}
	slices.Sort(names)
	return 0, w.missing("edge at", w.label(end), slices.Compact(names))
}

// end reads an end, which need not have an edge.
func (w *wiring) end(text string) (profile.End, error) {
	end, queue, err := w.job.End(text)
	if err != nil {
		return end, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "the job's status names its tasks, ListQueues its queues and edges")
	}
	if queue != "" {
		if end.Queue, err = w.queue(queue); err != nil {
			return end, err
		}
	}
	return end, nil
}

// targets are all queues of the job: the served ones, and bare channels. Of those
// that a change ended, only their nodes know whether anything is left in them.
func (w *wiring) targets() []target {
	var all []target
	for i := range w.queues {
		if w.queues[i].Name != "" {
			all = append(all, target{queue: i + 1})
		}
	}
	for i := range w.channels {
		if bare(&w.channels[i]) && !w.void[i] {
			all = append(all, target{channel: i})
		}
	}
	return all
}

// edges are the channels of targets, by their served queue, 0 for bare ones.
func (w *wiring) edges() map[int][]int {
	all := map[int][]int{}
	for i := range w.channels {
		if q := w.through(i).queue; !w.void[i] {
			all[q] = append(all[q], i)
		}
	}
	return all
}

// holders are the members that have an end of any of the channels, ascending.
func (w *wiring) holders(channels []int) []int {
	members := map[int]bool{}
	for _, id := range channels {
		c := &w.channels[id]
		members[w.holder(c.From, c.To)] = true
		members[w.holder(c.To, c.From)] = true
	}
	return slices.Sorted(maps.Keys(members))
}

// last is the newest channel that a port or an end outside has, or had, out of it
// or into it.
func (w *wiring) last(port profile.End, out bool) (channel int, there bool) {
	if port.Queue > 0 {
		return 0, false
	}
	for i := len(w.channels) - 1; i >= 0; i-- {
		c := &w.channels[i]
		if !w.void[i] && (out && c.From == port || !out && c.To == port) {
			return i, true
		}
	}
	return 0, false
}

// outside lists the ends outside the job that are open, by name.
func (w *wiring) outside() []*wsdl.OutsideQueue {
	var all []*wsdl.OutsideQueue
	for i := range w.channels {
		if _, over := w.ended[i]; over {
			continue
		}
		c := &w.channels[i]
		from, to := w.ends(c)
		for _, o := range []struct {
			name, direction string
			member          int
		}{{c.From.Outside, "in", from}, {c.To.Outside, "out", to}} {
			if m := &w.plan.members[o.member]; o.name != "" {
				all = append(all, &wsdl.OutsideQueue{Name: o.name, Direction: o.direction, Node: m.Node, Url: m.URL + "/services/queue"})
			}
		}
	}
	slices.SortFunc(all, func(a, b *wsdl.OutsideQueue) int { return strings.Compare(a.Name, b.Name) })
	return all
}
