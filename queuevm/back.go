package queuevm

import (
	"slices"
	"sync/atomic"
)

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

func (b *back) stirred() bool {
	return !b.gone && b.channel.out == nil &&
		(b.armed && atomic.LoadUint32(&b.header.producerWaits) == awake || atomic.LoadUint32(&b.header.consumerState) != 0)
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

func (b *back) arm() {
	if b.armed = !b.gone && !b.finished && b.channel.out == nil; b.armed {
		atomic.StoreUint32(&b.header.producerWaits, waitsDaemon)
	}
}
