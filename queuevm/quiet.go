package queuevm

import (
	"slices"
	"sync/atomic"
)

// Wait is a process at one end of a channel, where nothing but the other end
// lets it go on. A process that waits on several ports has several.
type Wait struct {
	Process  int
	Channel  uint32
	Out      bool // for room to enqueue; else for an item
	Depth    int  // bytes that wait in this node's ring, record headers included
	Capacity int  // bytes
}

// Quiet is a node's part in finding out whether a job is deadlocked: whether
// anything can still happen here unless something comes from a peer.
//
// A job is deadlocked when all its nodes are quiet at one moment with nothing
// between them. That they are is known from two rounds of questions, the second
// begun when all answers of the first are in: all are quiet in both, nobody's
// Period has changed, and the sum of all Sent is the sum of all Received. For a
// node whose Period is the same was quiet all the time between, so at the
// moment between the rounds all were; and each Received is at most its Sent, so
// equal sums mean that every one has arrived (Mattern, Algorithms for
// distributed termination detection, 1987: the four counters).
type Quiet struct {
	Quiet  bool
	Period uint64 // grows whenever this VM is asked and something has moved since it was asked before
	// Sent counts all that this node's proxy has told its peers on channels:
	// bytes, acknowledgements, room, ends. Received counts what it was told.
	Sent, Received uint64
	Waits          []Wait // when quiet, by process
}

// Quiet finds out whether this node's part of the job is quiet: every process
// that lives waits, with all its threads and whatever it started, for what only
// the other end of a channel can do; and the daemon has nothing to do for any
// of them. It is never quiet while somebody outside the job can enqueue or
// dequeue. When in doubt, it is not quiet.
//
// It is cheap while something obviously moves. When nothing does, it looks at
// every thread through /proc, which takes some 100 us a process.
func (vm *VM) Quiet() Quiet {
	before, q := vm.standstill()
	if before != nil {
		waits, ok := vm.waiting()
		after, now := vm.standstill()
		q = now
		q.Quiet, q.Waits = ok && slices.Equal(before, after), waits
		before = after
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if !q.Quiet || !slices.Equal(before, vm.rest) {
		vm.period++
	}
	vm.rest = nil
	if q.Quiet {
		vm.rest = before
	} else {
		q.Waits = nil
	}
	q.Period = vm.period
	return q
}

// standstill is how far everything has come, nil when something obviously
// moves. Every number in it only grows, so that two that are equal mean that
// nothing moved in between.
func (vm *VM) standstill() ([]uint64, Quiet) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	var q Quiet
	if vm.closed {
		return nil, q
	}
	for _, p := range vm.processes {
		if !p.ended && (p.pidfd < 0 || !p.announced()) {
			return nil, q
		}
	}
	for _, queue := range vm.queues {
		if queue.guests > 0 {
			return nil, q // whoever is outside can let the job go on
		}
		if queue.home && queue.vacant && len(queue.fronts) > 0 {
			return nil, q // so can who adds a taker
		}
	}
	rest := make([]uint64, 0, 8*len(vm.channels)+len(vm.processes)+len(vm.links)+1)
	rest = append(rest, vm.changes)
	for _, p := range vm.links {
		if len(p.batch) > 0 || p.blocked || p.left32 > 0 || p.end > p.start || len(p.again) > 0 {
			return nil, q
		}
		rest = append(rest, p.connections)
	}
	ids := make([]int, 0, max(len(vm.channels), len(vm.processes)))
	for id, p := range vm.processes {
		if p.ended {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		rest = append(rest, uint64(id))
	}
	ids = ids[:0]
	for id := range vm.channels {
		ids = append(ids, int(id))
	}
	slices.Sort(ids)
	for _, id := range ids {
		c := vm.channels[uint32(id)]
		if !c.still() {
			return nil, q
		}
		rest = c.progress(rest)
		sent, received := c.counts()
		q.Sent += sent
		q.Received += received
	}
	q.Sent += vm.past.sent
	q.Received += vm.past.received
	return rest, q
}

// counts is what a channel adds to Quiet's Sent and Received. Once the producer's
// node has said that nothing is left there, acknowledgements count no more.
func (c *channel) counts() (sent, received uint64) {
	if o := c.out; o != nil {
		sent += o.sent + uint64(o.said) + one(o.over)
		if !o.over {
			received += o.head + o.limit + uint64(o.heard) + uint64(o.level)
		}
	}
	if i := c.in; i != nil {
		received += i.received + uint64(i.how) + one(i.over)
		if !i.over {
			sent += i.acked + i.limit + uint64(i.told) + uint64(i.level)
		}
	}
	return sent, received
}

func one(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// announced says whether the process announced, on any of its ports, a wait
// that nothing but the other end ends. That it did proves nothing yet.
func (p *process) announced() bool {
	for _, q := range p.ports {
		for _, c := range q.outs {
			if endless(atomic.LoadUint32(&c.ring.header.producerWaits)) {
				return true
			}
		}
		for _, c := range q.ins {
			if endless(atomic.LoadUint32(&c.ring.header.consumerWaits)) {
				return true
			}
		}
	}
	return false
}

func endless(waits uint32) bool { return waits == waitsOnly || waits == waitsOnlyGo }

// still says whether the daemon has nothing to do for a channel, and will have
// nothing unless the other end of its ring or the peer does something.
func (c *channel) still() bool {
	h := c.ring.header
	giver, taker := atomic.LoadUint32(&h.producerState), atomic.LoadUint32(&h.consumerState)
	if c.give != nil && giver == 0 && taker == 0 || c.take != nil && taker == 0 && giver == 0 {
		return false // whoever is outside can let the job go on
	}
	if c.broken {
		return true
	}
	if c.direct.doubtful() {
		return false // it is about to be cut, or the other end's end is about to be known
	}
	if o := c.out; o != nil && !o.refused {
		tail := atomic.LoadUint64(&h.tail)
		if !o.synced || o.peer.fd < 0 || min(tail, o.limit) > o.sent || c.end() != o.said && o.sent == tail {
			return false
		}
	}
	if i := c.in; i != nil {
		if !i.peer.gone && !i.over && (i.peer.fd < 0 || i.owes(taker&endBits) || c.level() != i.level) || i.received != i.tail {
			return false
		}
		if i.armed && atomic.LoadUint32(&h.producerWaits) == awake {
			return false // the bell is on its way
		}
	}
	return (c.front == nil || c.front.still()) && (c.back == nil || c.back.still())
}

// progress appends how far a channel is.
func (c *channel) progress(rest []uint64) []uint64 {
	h := c.ring.header
	rest = append(rest, atomic.LoadUint64(&h.head), atomic.LoadUint64(&h.tail),
		uint64(atomic.LoadUint32(&h.producerState)), uint64(atomic.LoadUint32(&h.consumerState)))
	if o := c.out; o != nil {
		rest = append(rest, o.sent, o.most, o.limit, uint64(o.heard), uint64(o.level), uint64(o.said), one(o.over))
	}
	if i := c.in; i != nil {
		rest = append(rest, i.received, i.acked, i.limit, uint64(i.told), uint64(i.level), uint64(i.how), one(i.over))
	}
	if c.demands || c.To.Queue != 0 {
		rest = append(rest, uint64(atomic.LoadUint32(&h.demand)), uint64(atomic.LoadUint32(&h.verdict)))
	}
	return rest
}
