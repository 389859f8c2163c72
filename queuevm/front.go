package queuevm

import "sync/atomic"

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

// stirred is channel.stirred for the home's ends, where the other end is no peer.
func (f *front) stirred() bool {
	if f.converting && f.batch.done.Load() {
		return true
	}
	return !f.ended && f.channel.in == nil &&
		(f.armed && atomic.LoadUint32(&f.header.consumerWaits) == awake || atomic.LoadUint32(&f.header.producerState) != 0)
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

// arm announces the daemon's sleep where the other end could give it work.
func (f *front) arm() {
	if f.armed = !f.ended && !f.pending && f.behind == nil && f.channel.in == nil && (f.line == nil || !f.line.full); f.armed {
		atomic.StoreUint32(&f.header.consumerWaits, waitsDaemon)
	}
}
