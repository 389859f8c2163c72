package queuevm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
)

// What a taker that has left did not take goes to the taker that its edge is led to
// next: the daemon of its node takes it in its place, and is the producer of a
// channel that the next taker reads before all newer ones. LAYOUT.md, section 9.

// forwards says that the daemon here is the channel's producer, in the place of a
// taker that has left.
func (c Channel) forwards() bool { return c.Forward && c.From.local() }

// checkForward is checkPort for the port that a taker has left.
func (vm *VM) checkForward(c Channel) error {
	p := vm.processes[c.From.Process]
	if p == nil {
		return fmt.Errorf("process %d: %w", c.From.Process, ErrUnknown)
	}
	q := p.ports[c.From.Port]
	if q == nil {
		return fmt.Errorf("port %q of process %d: %w", c.From.Port, c.From.Process, ErrUnknown)
	}
	for k, in := range q.ins {
		if k == 0 && !p.ended && atomic.LoadUint32(&in.ring.header.consumerState)&stateClosed == 0 {
			return fmt.Errorf("process %d has not left its port %q: what waits there is its own", c.From.Process, c.From.Port)
		}
	}
	return nil
}

// inherits says whether what a channel has can be taken by another than its taker. A
// served queue keeps what was not asked for, and a direct channel's bytes are the
// taker's kernel's.
func (c *channel) inherits() bool { return !c.demands && c.direct == nil && !c.broken }

// inherit begins to forward what waits at the port that channel f leads from, and
// what is still on its way there. Their producers go on hearing "closed", for they may
// have left an item half written, until they are told to go on elsewhere.
func (vm *VM) inherit(f *channel) error {
	q := vm.processes[f.From.Process].port(f.From.Port)
	var left []*channel
	for _, c := range q.ins {
		if !c.inherits() {
			continue
		}
		view, _, err := c.ring.view()
		if err != nil {
			for _, c := range left {
				c.take.taker.ring.unmap()
				c.take = nil
			}
			return err
		}
		h := c.ring.header
		head := atomic.LoadUint64(&h.head)
		if begun := atomic.LoadUint64(&h.begun); begun-head <= c.ring.capacity {
			head = begun // it was being copied out: it was taken
		}
		c.take = newOutside(c)
		c.take.taker = taker{ring: view, head: head, tail: head, items: atomic.LoadUint64(&h.itemsOut)}
		left = append(left, c)
	}
	q.ins = slices.DeleteFunc(slices.Clone(q.ins), (*channel).inherits)
	for _, c := range left {
		c.take.turn <- struct{}{}
		if !slices.Contains(vm.carried, c) {
			vm.carried = append(vm.carried, c)
		}
		c.reopen()
	}
	f.give = newOutside(f)
	f.give.turn <- struct{}{}
	vm.tasks.Add(1)
	go vm.forward(f, left)
	return nil
}

// reopen has the daemon, where it forwards into a channel, go on after the taker left.
func (c *channel) reopen() {
	if c.forwards() {
		atomic.AndUint32(&c.ring.header.consumerState, ^uint32(stateClosed))
	}
}

// forward moves all that comes on some channels into another, and ends it.
func (vm *VM) forward(f *channel, left []*channel) {
	defer vm.tasks.Done()
	end := uint32(stateClosed | stateSwitched)
	for _, c := range left {
		var err error = ErrLost
		if end&stateLost == 0 { // else an item may be half way
			err = vm.pass(f.give, c.take)
		}
		vm.mu.Lock()
		c.take.taker.ring.unmap()
		if !vm.closed {
			if err != io.EOF {
				vm.logf("forward what %v left in channel %d: %v", c.To, c.ID, err)
				end |= stateLost
			}
			vm.left(c, true)
		}
		vm.mu.Unlock()
		<-c.take.turn
	}
	vm.mu.Lock()
	if !vm.closed {
		f.ring.endProducer(end, vm.bell)
		vm.heat(f)
		vm.review(f)
	}
	vm.mu.Unlock()
	<-f.give.turn
	ring1(vm.bell)
}

// pass moves items until END, which is io.EOF. The rest of an item of which the taker
// had the beginning was taken.
func (vm *VM) pass(to, from *outside) error {
	t := &from.taker
	if t.head&7 != 0 {
		return from.spoil(vm, fmt.Errorf("%w: head %d", ErrBroken, t.head))
	}
	for {
		r, err := from.record(context.Background(), vm)
		if err != nil {
			return err
		}
		whole := false
		if from.part.begun || !r.cont {
			if whole, err = from.part.add(r, uint64(vm.config.MaxItem)); err != nil {
				return from.spoil(vm, err)
			}
		}
		if whole {
			if err := to.insist(vm, from.part.meta, from.part.bytes); err != nil {
				return err
			}
			from.part.reset()
		}
		t.head += r.size
		if !r.more {
			t.items++
		}
		t.release(vm.bell)
	}
}

// insist puts an item. Where the taker has left too it waits until another one
// follows that.
func (o *outside) insist(vm *VM, meta uint32, item []byte) error {
	put := func(flags uint32, total uint64, part []byte) error {
		for {
			err := o.putRecord(context.Background(), vm, flags, meta, total, part)
			if !errors.Is(err, ErrClosed) {
				return err
			}
			select {
			case <-o.nudge:
			case <-vm.done:
				return ErrDown
			}
		}
	}
	if len(item) <= largest(o.giver.capacity) {
		return put(0, 0, item)
	}
	err := put(flagMore, uint64(len(item)), item[:o.step()])
	for rest := item[o.step():]; err == nil && len(rest) > 0; {
		part, flags := rest[:min(o.step(), len(rest))], uint32(flagCont|flagMore)
		if rest = rest[len(part):]; len(rest) == 0 {
			flags = flagCont
		}
		err = put(flags, 0, part)
	}
	return err
}

// Resume has what a channel still has go on to its taker's node, although the taker
// has left: there it is forwarded. Its producer must be at this node. Doing it again
// changes nothing.
func (vm *VM) Resume(id uint32) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c := vm.channels[id]
	switch {
	case vm.closed:
		return ErrDown
	case c == nil && vm.removed[id]:
		return nil
	case c == nil:
		return fmt.Errorf("resume channel %d: %w", id, ErrUnknown)
	case c.out == nil:
		return fmt.Errorf("resume channel %d: it does not lead to a peer", id)
	}
	h, o := c.ring.header, c.out
	if o.resumed || o.over || c.direct != nil || !c.Forward && atomic.LoadUint32(&h.producerState)&stateSwitched != 0 {
		return nil
	}
	o.resumed = true
	if o.heard&^stateClosed == 0 && !c.lost && !c.broken {
		o.refused = false
		c.reopen()
	}
	vm.changes++
	vm.heat(c)
	ring1(vm.bell)
	return nil
}
