package broker

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/broker/profile"
	"mvm/wsdl"
)

const (
	mostSample = 10 * time.Second
	mostQueues = 10_000 // of one answer
)

// listQueues answers what the plan says of the job's queues, and, asked for more
// than the plan, what the nodes count.
func (b *Service) listQueues(ctx context.Context, r *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	j, err := b.job(r.Job)
	if err != nil {
		return nil, err
	}
	wiring := j.wiring
	if r.Planned {
		wiring = j.plannedWiring
	}
	w, attempt, err := wiring()
	if err != nil {
		return nil, err
	}
	targets := w.targets()
	if r.Queue != "" {
		one, err := w.find(r.Queue)
		if err != nil {
			return nil, err
		}
		targets = []target{one}
	}
	if len(targets) > mostQueues {
		return nil, wsdl.NewFault(wsdl.FaultCodeTooLarge, fmt.Sprintf("job %s has %d queues, and an answer at most %d", j.id, len(targets), mostQueues), "name one queue")
	}
	all := w.edges()
	edges := func(t target) []int {
		if t.queue > 0 {
			return all[t.queue]
		}
		return []int{t.channel}
	}
	var asked []int
	for _, t := range targets {
		asked = append(asked, edges(t)...)
	}
	members := w.holders(asked)
	var first, last []*seen
	if !r.Planned {
		if sample := min(time.Duration(r.SampleMillis)*time.Millisecond, mostSample); sample > 0 {
			first = b.look(ctx, w, j.id, attempt, members)
			if !b.sleepIn(ctx, sample) {
				return nil, wsdl.NewFault(wsdl.FaultCodeTimeout, "the caller did not wait for the answer", "ask again")
			}
		}
		if last = b.look(ctx, w, j.id, attempt, members); len(members) > 0 && unseen(last) {
			// Or the attempt is over: then that is the reason to tell.
			if _, now, err := j.wiring(); err != nil || now != attempt {
				return nil, cmpFault(err, wsdl.NewFault(wsdl.FaultCodeConflict, "attempt "+fmt.Sprint(attempt)+" ended meanwhile", "ask again"))
			}
			return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("no node of job %s answers what is in its queues", j.id), "ask again in a moment")
		}
	}
	answer := &wsdl.ListQueuesResponse{Attempt: int32(attempt), Change: w.changesOf(attempt)}
	for _, t := range targets {
		s := w.planned(t, edges(t))
		if last != nil && !w.observe(s, t, edges(t), last) && r.Queue == "" {
			continue
		}
		if first != nil {
			w.flow(s, t, edges(t), first, last)
		}
		answer.Queue = append(answer.Queue, s)
	}
	return answer, nil
}

func cmpFault(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// seen is what a member answered Inspect.
type seen struct {
	micros   int64
	channels map[int]*wsdl.ChannelState
	queues   map[int]*wsdl.QueueState
}

func unseen(all []*seen) bool {
	for _, s := range all {
		if s != nil {
			return false
		}
	}
	return true
}

// look asks members at once what they count; nil for one that does not answer.
func (b *Service) look(ctx context.Context, w *wiring, job string, attempt int, members []int) []*seen {
	all := make([]*seen, len(w.plan.members))
	var asking sync.WaitGroup
	for _, i := range members {
		asking.Go(func() {
			try, cancel := context.WithTimeout(ctx, b.config.InstantiateTimeout)
			defer cancel()
			answer, err := b.queueOf(&w.plan.members[i]).InspectContext(try, &wsdl.Inspect{Job: w.plan.members[i].job(job)})
			if err != nil {
				return
			}
			for _, a := range answer.Attempt {
				if a == nil || a.Attempt == nil || int(a.Attempt.Number) != attempt || a.Micros == nil {
					continue
				}
				s := &seen{micros: *a.Micros, channels: map[int]*wsdl.ChannelState{}, queues: map[int]*wsdl.QueueState{}}
				for _, c := range a.Channel {
					if c != nil && c.Id != nil {
						s.channels[int(*c.Id)] = c
					}
				}
				for _, q := range a.Queue {
					if q != nil {
						s.queues[int(q.Id)] = q
					}
				}
				all[i] = s
			}
		})
	}
	asking.Wait()
	return all
}

// left says whether the taker of a channel of the job's running attempt has left it.
func (b *Service) left(ctx context.Context, w *wiring, job string, channel int) (bool, error) {
	j, err := b.job(job)
	if err != nil {
		return false, err
	}
	_, attempt, err := j.wiring()
	if err != nil {
		return false, err
	}
	_, at := w.ends(&w.channels[channel])
	s := b.look(ctx, w, j.id, attempt, []int{at})[at]
	if s == nil {
		f := wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s does not say whether %s has left", w.plan.members[at].label(), w.label(w.channels[channel].To)), "try again in a moment")
		return false, f
	}
	c := s.channels[channel]
	return c != nil && wsdl.Or(c.TakerClosed, false), nil
}

// planned is a queue as the plan has it.
func (w *wiring) planned(t target, edges []int) *wsdl.QueueStatus {
	m := &w.plan.members[w.member(t)]
	s := &wsdl.QueueStatus{Id: t.id(), Served: wsdl.Of(t.queue > 0), Node: m.Node, Url: m.URL + "/services/queue"}
	if t.queue > 0 {
		q := &w.queues[t.queue-1]
		s.Name, s.Type_, s.Full, s.Capacity = q.Name, wsdl.Of(wsdl.QueueType(q.Type)), wsdl.Of(wsdl.FullPolicy(q.Full)), wsdl.Of(int64(q.Capacity))
		s.Encoder, s.Link = encodersOf(q.Steps), q.Link.Document()
		if name, version, ok := strings.Cut(q.Rule, "@"); ok {
			number, _ := strconv.Atoi(version)
			s.Rule, s.RuleVersion = name, int32(number)
		}
	} else {
		s.Name, s.Type_, s.Full, s.Capacity = w.name(t.channel), wsdl.Of(wsdl.QueueTypeFifo), wsdl.Of(wsdl.FullPolicyBlock), wsdl.Of(int64(w.channels[t.channel].Capacity))
	}
	end := func(id int, e, other profile.End) *wsdl.QueueEnd {
		m := &w.plan.members[w.holder(e, other)]
		return &wsdl.QueueEnd{Name: w.label(e), Channel: wsdl.Of(int32(id)), Node: m.Node, Url: m.URL + "/services/queue"}
	}
	for _, id := range edges {
		c := &w.channels[id]
		if c.From.Queue == 0 {
			s.Producer = append(s.Producer, end(id, c.From, c.To))
		}
		if c.To.Queue == 0 {
			s.Taker = append(s.Taker, end(id, c.To, c.From))
		}
	}
	return s
}

// observe adds what the nodes count, as far as they answered. It is false for a
// queue that a change has ended and in which nothing is left.
func (w *wiring) observe(s *wsdl.QueueStatus, t target, edges []int, all []*seen) bool {
	end := func(at []*wsdl.QueueEnd, id int) *wsdl.QueueEnd {
		for _, e := range at {
			if int(*e.Channel) == id {
				return e
			}
		}
		return nil
	}
	var waitsIn, waitsOut int32
	left := map[int]bool{} // channels that a change ended and that are empty
	for _, id := range edges {
		in, out := w.state(id, all)
		_, over := w.ended[id]
		between := depth(in, out)
		// A node forgets a channel once both ends have gone on from it.
		left[id] = over && (between != nil && *between == 0 || w.forgotten(id, all))
		if e := end(s.Producer, id); e != nil && in != nil {
			e.Items, e.Depth, e.Waits, e.Closed = in.ItemsIn, between, in.ProducerWaits, wsdl.Of(over || wsdl.Or(in.Closed, false))
			if wsdl.Or(in.ProducerWaits, false) && !over {
				waitsIn++
			}
		}
		if e := end(s.Taker, id); e != nil && out != nil {
			e.Items, e.Depth, e.Waits, e.Closed = out.ItemsOut, between, out.ConsumerWaits, wsdl.Of(left[id] || wsdl.Or(out.TakerClosed, false))
			if wsdl.Or(out.ConsumerWaits, false) && !over {
				waitsOut++
			}
		}
		if t.queue == 0 && in != nil && out != nil {
			s.ItemsIn, s.ItemsOut, s.Depth = in.ItemsIn, out.ItemsOut, between
			if in.ItemsIn != nil && out.ItemsOut != nil {
				s.Items = wsdl.Of(max(0, *in.ItemsIn-*out.ItemsOut))
			}
			s.ProducersWait, s.TakersWait = wsdl.Of(waitsIn), wsdl.Of(waitsOut)
		}
	}
	if t.queue == 0 {
		return !left[t.channel]
	}
	gone := func(ends []*wsdl.QueueEnd) []*wsdl.QueueEnd {
		var kept []*wsdl.QueueEnd
		for _, e := range ends {
			if !left[int(*e.Channel)] {
				kept = append(kept, e)
			}
		}
		return kept
	}
	s.Producer, s.Taker = gone(s.Producer), gone(s.Taker)
	home := all[w.member(t)]
	if home == nil || home.queues[t.queue] == nil {
		return true
	}
	q := home.queues[t.queue]
	s.Type_, s.Full, s.Capacity = q.Type_, q.Full, wsdl.Of(q.Capacity)
	s.Items, s.Depth, s.ItemsIn, s.ItemsOut, s.Dropped, s.Refused = q.Items, q.Depth, q.ItemsIn, q.ItemsOut, q.Dropped, q.Refused
	// Whoever's item waits at the home for room may itself not wait yet.
	s.ProducersWait, s.TakersWait = wsdl.Of(max(waitsIn, wsdl.Or(q.ProducersWait, 0))), q.TakersWait
	return true
}

// forgotten says whether both nodes of a channel answered, and neither has it.
func (w *wiring) forgotten(id int, all []*seen) bool {
	from, to := w.ends(&w.channels[id])
	in, out := w.state(id, all)
	return all[from] != nil && all[to] != nil && in == nil && out == nil
}

// state is a channel as its producer's node sees it, and as its taker's does.
func (w *wiring) state(id int, all []*seen) (in, out *wsdl.ChannelState) {
	c := &w.channels[id]
	if s := all[w.holder(c.From, c.To)]; s != nil {
		in = s.channels[id]
	}
	if s := all[w.holder(c.To, c.From)]; s != nil {
		out = s.channels[id]
	}
	return in, out
}

// depth is how many bytes wait between the ends of a channel. Offsets are the
// same on both nodes.
func depth(in, out *wsdl.ChannelState) *int64 {
	if in == nil || out == nil || in.BytesIn == nil || out.BytesOut == nil {
		return nil
	}
	return wsdl.Of(max(0, *in.BytesIn-*out.BytesOut))
}

// flow adds what moved between two looks, all of it as one node counts it in the
// same two moments: the home, or the taker's.
func (w *wiring) flow(s *wsdl.QueueStatus, t target, edges []int, first, last []*seen) {
	was, is := first[w.member(t)], last[w.member(t)]
	if was == nil || is == nil || is.micros <= was.micros {
		return
	}
	f := &wsdl.QueueFlow{Micros: is.micros - was.micros}
	moved := func(id int, count func(*wsdl.ChannelState) *int64) int64 {
		before, now := int64(0), int64(0)
		if c := was.channels[id]; c != nil {
			before = wsdl.Or(count(c), 0)
		}
		if c := is.channels[id]; c != nil {
			now = wsdl.Or(count(c), 0)
		}
		return max(0, now-before)
	}
	itemsIn := func(c *wsdl.ChannelState) *int64 { return c.ItemsIn }
	itemsOut := func(c *wsdl.ChannelState) *int64 { return c.ItemsOut }
	bytesIn := func(c *wsdl.ChannelState) *int64 { return c.BytesIn }
	bytesOut := func(c *wsdl.ChannelState) *int64 { return c.BytesOut }
	var inItems, outItems, inBytes, outBytes int64
	for _, id := range edges {
		c := &w.channels[id]
		switch {
		case t.queue == 0:
			inItems, outItems = moved(id, itemsIn), moved(id, itemsOut)
			inBytes, outBytes = moved(id, bytesIn), moved(id, bytesOut)
		case c.To.Queue > 0: // what the home took from a producer
			inBytes += moved(id, bytesOut)
		default:
			outBytes += moved(id, bytesIn)
		}
	}
	if t.queue > 0 {
		before, now := was.queues[t.queue], is.queues[t.queue]
		if now == nil {
			return
		}
		inItems, outItems = wsdl.Or(now.ItemsIn, 0), wsdl.Or(now.ItemsOut, 0)
		if before != nil {
			inItems -= wsdl.Or(before.ItemsIn, 0)
			outItems -= wsdl.Or(before.ItemsOut, 0)
		}
	}
	f.ItemsIn, f.ItemsOut, f.BytesIn, f.BytesOut = &inItems, &outItems, &inBytes, &outBytes
	s.Flow = f
}
