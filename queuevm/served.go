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

// front is the home's end of a producer's channel.
type front struct {
	taker
	channel  *channel
	queue    *queue
	part     assembly
	entering []item // whole items; those from entered on are not in the queue yet
	entered  int
	pending  bool // they wait for room, or batch for the converter
	ended    bool
	armed    bool // the producer was told that the daemon sleeps

	batch      *batch // what is to be converted yet
	converting bool   // it is at the converter

	removed bool   // its producer went elsewhere
	behind  *front // nothing enters before this one has ended
	first   bool   // the queue had no producer before

	line  *line // nil while there is no link
	waits bool  // in VM.flying: the loop looks after the line in time

	guest *guest // instead of a channel: a caller from outside
}

// back is the home's end of a taker's channel.
type back struct {
	giver
	channel  *channel
	queue    *queue
	lane     int
	answers  uint32 // given so far
	waiting  bool
	writing  bool // an item's fragments: rest is still to come
	begun    bool
	meta     uint32
	rest     []byte
	gone     bool
	finished bool
	armed    bool
	parting  bool // it is to be ended with SWITCH
	removed  bool // it was

	guest *guest // instead of a channel: a caller from outside
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

// step takes what the producer brought, as far as there is room.
func (f *front) step(vm *VM) bool {
	if f.ended && !f.removed && atomic.LoadUint32(&f.header.producerState)&stateSwitched != 0 {
		f.remove(vm) // it had ended when its port was led elsewhere
	}
	if f.behind != nil {
		return false
	}
	worked := f.queue.converted(vm)
	worked = f.land(vm) || worked
	more := f.batch == nil // else what the converter left of one is next
	for range frontBatch {
		if f.queue.gone() && !f.ended && atomic.LoadUint32(&f.header.producerState)&stateSwitched != 0 {
			f.finished(vm, stateClosed|stateSwitched)
		}
		if f.ended || f.pending || f.queue.halted || f.queue.gone() {
			return worked
		}
		if !more {
			break
		}
		if f.line.busy() && !f.line.takes(vm.now()) {
			f.hold(vm)
			break
		}
		state := atomic.LoadUint32(&f.header.producerState) // before tail: END comes after what was published
		r, ok, err := f.next()
		if f.batch != nil && (err != nil || !ok || r.more || r.cont || uint64(len(r.payload)) > f.queue.ceiling) {
			break // what came before it goes first
		}
		whole := false
		if ok {
			whole, err = f.part.add(r, f.queue.ceiling)
		}
		if err != nil {
			vm.breaks(f.channel, err)
			f.finished(vm, stateLost)
			return true
		}
		if !ok {
			if state != 0 {
				f.finished(vm, state)
				return true
			}
			return worked
		}
		worked = true
		f.head += r.size
		if whole {
			f.items++
		}
		if f.channel.in == nil {
			f.release(vm.bell)
		} else { // the daemon has the other end too: it need not wake itself
			atomic.StoreUint64(&f.header.itemsOut, f.items)
			atomic.StoreUint64(&f.header.head, f.head)
			vm.heat(f.channel)
		}
		if whole {
			it := item{meta: f.part.meta &^ metaAwaits, data: f.part.bytes, firm: f.part.meta&metaAwaits == 0}
			f.part.reset()
			f.queue.in++
			// Behind those that are being converted also when nothing converts
			// any more: they arrived first.
			if f.queue.treatment == nil && len(f.queue.converting) == 0 {
				f.pass(vm, f.head-r.size, it)
				continue
			}
			if f.batch == nil {
				f.batch = f.queue.newBatch(f.items)
			}
			more = f.batch.add(it) < convertBatch && it.firm
		}
	}
	if f.batch != nil {
		f.handOver(vm)
		return true
	}
	return worked
}

// offer has whole items enter, or wait behind those that came before them.
func (f *front) offer(vm *VM) {
	q := f.queue
	for f.entered < len(f.entering) {
		behind := len(q.blocked) > 0
		if behind && q.Full == FullFail && !f.entering[f.entered].firm {
			q.store.refusals++
			f.entry(vm, refused)
			continue
		}
		if behind || !f.enter(vm) {
			f.pending = true
			q.blocked = append(q.blocked, f)
			for k := f.entered; k < len(f.entering) && f.guest == nil; k++ {
				if it := &f.entering[k]; !it.firm { // its producer is told that it is in, whatever the policy becomes
					it.firm = true
					f.decide(vm, false)
				}
			}
			q.settle(vm)
			return
		}
		q.settle(vm)
	}
}

// enter has the rules judge the next item; false when it must wait.
func (f *front) enter(vm *VM) bool {
	judged := f.queue.store.offer(f.entering[f.entered])
	if judged == blocked {
		return false
	}
	f.entry(vm, judged)
	return true
}

// entry takes an item off those that are to enter.
func (f *front) entry(vm *VM, judged verdict) {
	firm := f.entering[f.entered].firm
	f.entering[f.entered] = item{} // so that its bytes can go
	if f.entered++; f.entered == len(f.entering) {
		f.entering, f.entered = f.entering[:0], 0
	}
	switch {
	case f.guest != nil:
		f.guest.entered(judged)
	case !firm:
		f.decide(vm, judged == refused)
	}
}

// decide tells a producer that awaits it what became of its last item. One that
// waits for room will enter, and the producer goes on.
func (f *front) decide(vm *VM, refusal bool) {
	word := uint32(f.items) << 1
	if refusal {
		word |= 1
	}
	atomic.StoreUint32(&f.header.verdict, word)
	wake(&f.header.producerWaits, vm.bell)
	vm.heat(f.channel)
}

// finish says that nothing more comes from the producer.
func (f *front) finish(vm *VM, state uint32) {
	f.ended = true
	f.queue.closed++
	for _, o := range f.queue.fronts {
		if o.behind == f {
			o.behind = nil
			vm.heat(o.channel)
		}
	}
	if state&stateSwitched != 0 {
		f.remove(vm)
	}
	if state&(stateLost|stateBroken) != 0 {
		f.queue.state |= stateLost
	}
	f.queue.settle(vm)
}

// remove has the queue know the producer no more: it went elsewhere.
func (f *front) remove(vm *VM) {
	q := f.queue
	q.Producers--
	q.closed--
	q.fronts = without(q.fronts, f)
	f.removed = true
	f.ring.endConsumer(stateClosed|stateSwitched, vm.bell)
	vm.heat(f.channel)
	vm.review(f.channel)
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

// step sees to what the taker asks for.
func (b *back) step(vm *VM) bool {
	if b.gone || b.finished {
		if b.removed {
			vm.review(b.channel)
		}
		return false
	}
	q := b.queue
	if atomic.LoadUint32(&b.header.consumerState) != 0 {
		b.leave(vm)
		return true
	}
	if b.writing {
		if !b.write(vm) {
			return false
		}
		if !b.writing {
			q.settle(vm) // it may have been the last
		}
		return true
	}
	demand := atomic.LoadUint32(&b.header.demand)
	if !counted(demand>>1, b.answers) {
		return false
	}
	worked := !b.waiting
	if worked {
		b.waiting = true
		q.waiting = append(q.waiting, b)
		q.settle(vm)
	}
	if b.waiting && demand&impatient != 0 && !b.finished {
		// What a producer published before this was asked must not be missed.
		for _, f := range q.fronts {
			for b.waiting && f.step(vm) {
			}
		}
		if b.waiting && !q.halted && len(q.converting) > 0 {
			return worked // asked again when that is converted
		}
		if free, err := b.free(); err != nil {
			vm.breaks(b.channel, err)
			b.leave(vm)
		} else if b.waiting && !b.finished && free >= recordHeader {
			b.drop()
			b.answers++
			b.put(flagControl, controlNothing, 0, nil)
			b.items-- // put counts records without MORE: this was no item
			b.show(vm)
		}
		return true
	}
	return worked
}

// drop takes the taker off those that wait.
func (b *back) drop() {
	if b.waiting {
		b.waiting = false
		b.queue.waiting = slices.DeleteFunc(b.queue.waiting, func(o *back) bool { return o == b })
	}
}

// give begins to hand an item over.
func (b *back) give(vm *VM, it item) {
	if b.guest != nil {
		b.waiting = false
		b.guest.took(it)
		return
	}
	b.waiting, b.writing, b.begun = false, true, false
	b.answers++
	b.meta, b.rest = it.meta, it.data
	b.write(vm)
}

// write puts as much of the item as there is room for; true when there was some.
func (b *back) write(vm *VM) bool {
	wrote := false
	for b.writing {
		flags, part, total := uint32(0), b.rest, uint64(0)
		need := recordSize(len(part))
		switch step := fragment(b.capacity) - totalHeader; {
		case b.begun:
			if flags = flagCont; len(part) > step {
				flags, part = flagCont|flagMore, part[:step]
			}
			need = recordSize(len(part))
		case len(part) > largest(b.capacity):
			flags, part, total = flagMore, part[:step], uint64(len(part))
			need = recordSize(len(part) + totalHeader)
		}
		free, err := b.free()
		if err != nil {
			vm.breaks(b.channel, err)
			b.leave(vm)
			return true
		}
		if free < need {
			break
		}
		b.put(flags, b.meta, total, part)
		b.rest, b.begun, wrote = b.rest[len(part):], true, true
		if flags&flagMore == 0 {
			b.writing, b.rest = false, nil
		}
	}
	if wrote {
		b.show(vm)
	}
	return wrote
}

func (b *back) show(vm *VM) {
	if b.channel.out == nil {
		b.publish(vm.bell)
		return
	}
	atomic.StoreUint64(&b.header.itemsIn, b.items)
	atomic.StoreUint64(&b.header.tail, b.tail)
	vm.heat(b.channel)
}

// leave says that the taker takes no more. When it was the last, producers are
// told so.
func (b *back) leave(vm *VM) {
	q := b.queue
	if b.gone {
		return
	}
	b.gone, b.writing, b.rest = true, false, nil
	b.drop()
	q.store.leave(b.lane)
	q.left++
	if b.parting {
		b.parted(vm)
	}
	if !q.gone() {
		q.settle(vm) // of broadcast there may be room now
		return
	}
	q.desert(vm)
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

// stirred is channel.stirred for the home's ends, where the other end is no peer.
func (f *front) stirred() bool {
	if f.converting && f.batch.done.Load() {
		return true
	}
	return !f.ended && f.channel.in == nil &&
		(f.armed && atomic.LoadUint32(&f.header.consumerWaits) == awake || atomic.LoadUint32(&f.header.producerState) != 0)
}

func (b *back) stirred() bool {
	return !b.gone && b.channel.out == nil &&
		(b.armed && atomic.LoadUint32(&b.header.producerWaits) == awake || atomic.LoadUint32(&b.header.consumerState) != 0)
}

// still is channel.still for the home's ends: nothing to take in, and no answer
// that could be given.
func (f *front) still() bool {
	if f.line != nil && f.line.first < len(f.line.flights) {
		return false // it arrives
	}
	if f.ended || f.queue.gone() {
		return true
	}
	if f.batch != nil {
		return false // it is being converted, or the attempt is about to fail
	}
	if f.pending {
		return true
	}
	if f.armed && atomic.LoadUint32(&f.header.consumerWaits) == awake {
		return false // the bell is on its way
	}
	state := atomic.LoadUint32(&f.header.producerState)
	_, ok, err := f.next()
	return state == 0 && !ok && err == nil
}

func (b *back) still() bool {
	if b.gone || b.finished {
		return true
	}
	if b.armed && atomic.LoadUint32(&b.header.producerWaits) == awake || atomic.LoadUint32(&b.header.consumerState) != 0 {
		return false
	}
	demand := atomic.LoadUint32(&b.header.demand)
	return !b.writing && (b.waiting && demand&impatient == 0 || !counted(demand>>1, b.answers))
}

// arm announces the daemon's sleep where the other end could give it work.
func (f *front) arm() {
	if f.armed = !f.ended && !f.pending && f.behind == nil && f.channel.in == nil && (f.line == nil || !f.line.full); f.armed {
		atomic.StoreUint32(&f.header.consumerWaits, waitsDaemon)
	}
}

func (b *back) arm() {
	if b.armed = !b.gone && !b.finished && b.channel.out == nil; b.armed {
		atomic.StoreUint32(&b.header.producerWaits, waitsDaemon)
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
