package queuevm

import (
	"fmt"
	"slices"
	"sort"
	"sync/atomic"
)

// Queue is a served queue: one whose home is one node of the job group, with a
// channel from each producer and one to each taker. Every node that has an end
// of such a channel knows the queue. The rules are LAYOUT.md's, section 5.
type Queue struct {
	ID        int    // from 1, over the whole job
	Name      string // for people
	Type      QueueType
	Full      FullPolicy
	Capacity  int // bytes, rounded up as a channel's
	Producers int // how many channels lead to it and from it: at its home only,
	Takers    int // which ends it when all have ended
	// Converter changes items before they count against the capacity; nil
	// changes nothing. Every node that knows the queue has one, or none has.
	Converter Converter `json:"-"`
	Rule      Rule      `json:"-"` // nil leaves the order to the type; likewise
	Link      Link      // between each producer and the queue
}

// QueueState is what InspectQueues sees of a served queue at its home.
type QueueState struct {
	Queue
	Items            int    // that wait; of broadcast for the taker that has most
	Bytes            uint64 // of them, 8 for each item included
	ItemsIn          uint64 // items that producers brought
	ItemsOut         uint64 // items handed to takers
	Dropped, Refused uint64 // by the policy for a full queue; of broadcast for each taker
	Lost             uint64 // by the link
	Flying           int    // items on their way over the link
	ProducersWait    int    // producers whose item waits for room
	TakersWait       int    // takers that asked for an item and have none yet
	ProducersClosed  int
	TakersClosed     int
}

// frontBatch bounds what one step takes from one producer.
const frontBatch = 64

// queue is a served queue on this node; only at its home do channels meet in
// it. Guarded by VM.mu, and moved by the loop alone.
type queue struct {
	Queue
	capacity uint64
	store    *store
	fronts   []*front
	backs    []*back
	blocked  []*front // whose item waits for room, in order of arrival
	waiting  []*back  // that asked, in order of their demands
	closed   int      // producers that ended
	left     int      // takers that ended
	state    uint32   // of END: lost, when a producer's channel ended so
	in, out  uint64
	lost     uint64 // on the link

	home    bool   // it is here
	had     bool   // producers, at some time
	vacant  bool   // it has no taker because changes took them elsewhere, or brought none yet
	alone   bool   // producers were told that nobody takes any more
	through bool   // takers were told END
	ceiling uint64 // the most that most ever was: what a producer may still bring
	guests  int    // callers from outside who wait
	asked   bool   // one has come to take, and
	told    bool   // was told END

	treatment  *treatment  // of what arrives; nil lets it through as it is
	work       chan *batch // to be treated; nil before the first item
	converting []*front    // whose batches are there, in order of arrival
	fed        int         // of them, given to it
	halted     bool        // an item cannot be converted
}

// most is the largest item, in bytes, that a producer may bring.
func (q *queue) most() uint64 {
	if q.Converter != nil || q.Rule != nil {
		return min(mostOf(q.capacity), ConvertedMax)
	}
	return mostOf(q.capacity)
}

// AddQueue makes a served queue known. Its channels are added after it.
func (vm *VM) AddQueue(q Queue) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	switch {
	case vm.closed:
		return ErrDown
	case q.ID < 1 || vm.queues[q.ID] != nil:
		return fmt.Errorf("queue %d (%s): the id is taken, or not above 0", q.ID, q.Name)
	case !q.Type.known() || !q.Full.known():
		return fmt.Errorf("queue %d (%s): type %q with policy %q: %w", q.ID, q.Name, q.Type, q.Full, ErrUnknown)
	case q.Capacity < 0 || q.Capacity > maxCapacity:
		return fmt.Errorf("queue %d (%s): a capacity of %d bytes is not between 0 and %d", q.ID, q.Name, q.Capacity, maxCapacity)
	}
	if err := q.Link.check(); err != nil {
		return fmt.Errorf("queue %d (%s): %w", q.ID, q.Name, err)
	}
	if err := checkRule(q.Type, q.Rule); err != nil {
		return fmt.Errorf("queue %d (%s): %w", q.ID, q.Name, err)
	}
	made := &queue{Queue: q, capacity: roundCapacity(q.Capacity), vacant: q.Takers == 0}
	made.Capacity = int(made.capacity)
	made.ceiling = made.most()
	made.treat(q.Converter, q.Rule, true, true)
	made.store = newStore(q.Type, q.Full, made.capacity, q.Takers)
	made.store.setRuled(q.Rule != nil, make([]bool, q.Takers))
	vm.queues[q.ID] = made
	return nil
}

// serve makes of a channel what it is for the queues at its ends.
func (c *channel) serve(vm *VM) {
	h := c.ring.header
	if q := vm.queues[c.To.Queue]; q != nil {
		c.offers(q)
		if c.To.home() {
			c.front = &front{taker: taker{ring: c.ring}, channel: c, queue: q, first: !q.had}
			if before := vm.channels[c.Behind]; before != nil && before.front != nil && before.front.queue == q && !before.front.ended {
				c.front.behind = before.front
			}
			c.front.impose(q.Link, len(q.fronts))
			q.fronts = append(q.fronts, c.front)
			q.home, q.had = true, true
			q.Producers = max(q.Producers, len(q.fronts))
		}
	}
	if q := vm.queues[c.From.Queue]; q != nil {
		h.served |= servedDemand
		c.demands = true
		if c.From.home() {
			c.back = &back{giver: giver{ring: c.ring}, channel: c, queue: q, lane: len(q.backs)}
			q.backs = append(q.backs, c.back)
			q.home, q.vacant = true, false
			q.Takers = max(q.Takers, len(q.backs))
			if q.Type == QueueBroadcast && len(q.store.lanes) < len(q.backs) {
				q.store.lanes = append(q.store.lanes, q.store.newLane())
			}
		}
	}
}

// offers tells a producer's end what the queue takes, and whether it refuses.
func (c *channel) offers(q *queue) {
	h := c.ring.header
	c.most.Store(q.most())
	atomic.StoreUint64(&h.most, q.most())
	served := atomic.LoadUint32(&h.served) &^ servedVerdict
	if q.Full == FullFail {
		served |= servedVerdict
	}
	c.verdicts.Store(q.Full == FullFail)
	atomic.StoreUint32(&h.served, served)
}

// checkQueue is checkChannel for an end at a served queue.
func (vm *VM) checkQueue(e Endpoint, over func(*queue) bool) error {
	q := vm.queues[e.Queue]
	if q == nil {
		return fmt.Errorf("queue %d: %w", e.Queue, ErrUnknown)
	}
	if e.home() && over(q) {
		if q.through {
			return &overError{fmt.Sprintf("queue %s has ended: its producers have all said END, its takers were told so, and nothing can follow that; lead the edge to another queue", q.Name)}
		}
		return &overError{fmt.Sprintf("queue %s was left by all its takers, and its producers were told so: nobody can take from it any more; lead the edge from another queue", q.Name)}
	}
	return nil
}

// overError is ErrClosed, said of a queue that takes no more ends.
type overError struct{ text string }

func (e *overError) Error() string        { return e.text }
func (e *overError) Is(target error) bool { return target == ErrClosed }

// deserted says that producers were told of the end of all takers, and complete
// that takers may have been told END: then nobody joins them.
func (q *queue) deserted() bool { return q.alone }
func (q *queue) complete() bool { return q.through }

// level is what an ack of this channel tells the sender besides room.
func (c *channel) level() uint32 {
	switch {
	case c.front != nil:
		return atomic.LoadUint32(&c.ring.header.verdict)
	case c.back == nil && c.demands:
		return atomic.LoadUint32(&c.ring.header.demand)
	}
	return 0
}

// levelled takes the level that the peer told.
func (c *channel) levelled(vm *VM, level uint32) {
	h := c.ring.header
	switch {
	case c.back != nil:
		atomic.StoreUint32(&h.demand, level)
	case c.To.Queue != 0 && atomic.LoadUint32(&h.verdict) != level:
		atomic.StoreUint32(&h.verdict, level)
		wake(&h.producerWaits, vm.bell)
	}
}

// settle hands out what is asked for, lets in what has room, and says END when
// it is due.
func (q *queue) settle(vm *VM) {
	for moved := true; moved; {
		moved = false
		for k := 0; k < len(q.waiting); {
			b := q.waiting[k]
			it, ok := q.store.take(b.lane)
			switch {
			case ok:
				q.waiting = slices.Delete(q.waiting, k, k+1)
				b.give(vm, it)
				q.out++
				moved = true
			case q.Type != QueueBroadcast:
				k = len(q.waiting)
			default:
				k++
			}
		}
		if len(q.blocked) > 0 && q.blocked[0].enter(vm) {
			if f := q.blocked[0]; len(f.entering) == 0 {
				q.blocked = slices.Delete(q.blocked, 0, 1)
				f.pending = f.converting
				if f.guest == nil {
					vm.heat(f.channel)
				}
			}
			moved = true
		}
	}
	for k := 0; k < len(q.backs); k++ {
		if b := q.backs[k]; b.parting && !b.writing && (q.Type != QueueBroadcast || q.store.empty(b.lane)) {
			b.parted(vm)
			k = -1
		}
	}
	if !q.had || q.closed < q.Producers || len(q.blocked)+len(q.converting) > 0 {
		return
	}
	for _, b := range q.backs {
		if !b.gone && !b.finished && !b.writing && q.store.empty(b.lane) {
			b.finished, q.through = true, true
			b.drop()
			b.ring.endProducer(stateClosed|q.state, vm.bell)
			vm.heat(b.channel)
		}
	}
	if q.ended() {
		for _, b := range q.waiting {
			b.guest.done()
		}
	}
}

// gone says that all takers are, so that nobody would get what comes. What comes to
// a queue that changes have left without a taker waits there for the next; but of
// a broadcast it would be nobody's, and waits before it.
func (q *queue) gone() bool { return q.left == q.Takers && (!q.vacant || q.Type == QueueBroadcast) }

// ended says that nothing comes any more.
func (q *queue) ended() bool {
	return q.had && q.closed >= q.Producers && len(q.blocked) == 0 && len(q.converting) == 0 && q.store.count() == 0
}

// desert tells producers that nobody takes any more.
func (q *queue) desert(vm *VM) {
	q.alone = true
	for _, f := range q.blocked {
		f.guest.done()
	}
	q.blocked = nil
	for _, f := range q.fronts {
		f.part.reset()
		f.line.clear()
		f.entering, f.entered = nil, 0
		f.pending = f.converting
		f.ring.endConsumer(stateClosed, vm.bell)
		vm.heat(f.channel)
	}
}

// InspectQueues reports the served queues whose home is this node, ordered by id.
func (vm *VM) InspectQueues() []QueueState {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	var states []QueueState
	for _, q := range vm.queues {
		if !q.home {
			continue
		}
		s := QueueState{
			Queue: q.Queue, ItemsIn: q.in, ItemsOut: q.out, Dropped: q.store.dropped, Refused: q.store.refusals,
			ProducersWait: len(q.blocked), TakersWait: len(q.waiting), ProducersClosed: q.closed, TakersClosed: q.left,
		}
		s.Items, s.Bytes = q.store.depth()
		s.Lost = q.lost
		for _, f := range q.fronts {
			if l := f.line; l != nil {
				s.Flying += len(l.flights) - l.first
			}
		}
		states = append(states, s)
	}
	sort.Slice(states, func(a, b int) bool { return states[a].ID < states[b].ID })
	return states
}
