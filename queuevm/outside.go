package queuevm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync/atomic"
)

// outside is an end of a channel that callers from outside the job use. turn
// holds who is inside: one at a time, and nobody once Close took it for good.
// The ends, and the ring's memory, are touched only by who has the turn.
type outside struct {
	channel *channel
	turn    chan struct{}
	nudge   chan struct{} // the loop says: look again
	giver   giver
	taker   taker
	failure error // sticky: the ring is broken
}

func newOutside(c *channel) *outside {
	return &outside{
		channel: c, turn: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
		giver: giver{ring: c.ring}, taker: taker{ring: c.ring},
	}
}

// nudged passes on that the other end rang, by what it did to the waits word.
func (o *outside) nudged(word *uint32) {
	if o == nil || atomic.LoadUint32(word) == waitsDaemon && !o.ends() {
		return
	}
	select {
	case o.nudge <- struct{}{}:
	default:
	}
}

func (o *outside) ends() bool {
	h := o.channel.ring.header
	return atomic.LoadUint32(&h.producerState)|atomic.LoadUint32(&h.consumerState) != 0
}

// enter waits for the turn.
func (vm *VM) enter(ctx context.Context, queue string, ends map[string]*channel, end func(*channel) *outside) (*outside, error) {
	vm.mu.Lock()
	c := ends[queue]
	closed := vm.closed
	vm.mu.Unlock()
	if closed {
		return nil, ErrDown
	}
	if c == nil {
		return nil, fmt.Errorf("outside queue %q that leads this way: %w", queue, ErrUnknown)
	}
	o := end(c)
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-vm.done:
		return nil, ErrDown
	}
	select {
	case <-vm.done:
		<-o.turn
		return nil, ErrDown
	default:
	}
	return o, nil
}

// wait blocks until ready says so, announcing the sleep on word.
func (o *outside) wait(ctx context.Context, vm *VM, word *uint32, ready func() (bool, error)) error {
	for {
		if ok, err := ready(); ok || err != nil {
			return err
		}
		atomic.StoreUint32(word, waitsDaemon)
		if ok, err := ready(); ok || err != nil {
			atomic.StoreUint32(word, awake)
			return err
		}
		select {
		case <-o.nudge:
		case <-ctx.Done():
			atomic.StoreUint32(word, awake)
			return ctx.Err()
		case <-vm.done:
			return ErrDown
		}
	}
}

func stateError(state uint32, plain error) error {
	switch {
	case state&stateBroken != 0:
		return ErrBroken
	case state&stateLost != 0:
		return ErrLost
	}
	return plain
}

func intoJob(c *channel) *outside  { return c.give }
func outOfJob(c *channel) *outside { return c.take }

// Enqueue puts one item into an outside queue (a channel whose From is Outside)
// and blocks while it is full. An item over half the capacity goes in
// fragments, and once begun it is not given up when ctx ends. ErrClosed when
// the taker is gone, ErrTooBig over Config.MaxItem.
func (vm *VM) Enqueue(ctx context.Context, queue string, item []byte) error {
	if len(item) > vm.config.MaxItem {
		return fmt.Errorf("enqueue %d bytes to %q: %w: at most %d", len(item), queue, ErrTooBig, vm.config.MaxItem)
	}
	o, err := vm.enter(ctx, queue, vm.givers, intoJob)
	if err != nil {
		return err
	}
	defer func() { <-o.turn }()
	if err := o.put(ctx, vm, item); err != nil {
		return fmt.Errorf("enqueue to %q: %w", queue, err)
	}
	return nil
}

func (o *outside) put(ctx context.Context, vm *VM, item []byte) error {
	g := &o.giver
	if len(item) <= largest(g.capacity) {
		return o.putRecord(ctx, vm, 0, 0, item)
	}
	total, step := uint64(len(item)), fragment(g.capacity)-totalHeader
	for cont := uint32(0); len(item) > 0; cont = flagCont {
		part := item[:min(step, len(item))]
		item = item[len(part):]
		more := uint32(0)
		if len(item) > 0 {
			more = flagMore
		}
		if err := o.putRecord(ctx, vm, cont|more, total, part); err != nil {
			return err
		}
		ctx = context.Background() // begun
	}
	return nil
}

func (o *outside) putRecord(ctx context.Context, vm *VM, flags uint32, total uint64, part []byte) error {
	g := &o.giver
	need := recordSize(len(part))
	if flags == flagMore {
		need = recordSize(len(part) + totalHeader)
	}
	err := o.wait(ctx, vm, &g.header.producerWaits, func() (bool, error) {
		if state := atomic.LoadUint32(&g.header.consumerState) | atomic.LoadUint32(&g.header.producerState); state != 0 {
			return false, stateError(state, ErrClosed)
		}
		free, err := g.free()
		if err != nil {
			o.failure = err
			o.channel.ring.endProducer(stateClosed|stateBroken, vm.bell)
		}
		return free >= need, err
	})
	if err != nil {
		return err
	}
	g.put(flags, 0, total, part)
	g.publish(vm.bell)
	return nil
}

// Dequeue takes one item from an outside queue (a channel whose To is Outside),
// waiting for it until ctx ends. io.EOF is END, and stays. An item over
// Config.MaxItem is ErrTooBig, and the channel is of no more use.
func (vm *VM) Dequeue(ctx context.Context, queue string) ([]byte, error) {
	o, err := vm.enter(ctx, queue, vm.takers, outOfJob)
	if err != nil {
		return nil, err
	}
	defer func() { <-o.turn }()
	if o.failure != nil {
		return nil, fmt.Errorf("dequeue from %q: %w", queue, o.failure)
	}
	item, err := o.get(ctx, vm)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("dequeue from %q: %w", queue, err)
	}
	return item, err
}

// get takes an item. Nothing is taken of one that is not there whole or begun:
// a ctx that ends in the middle of a big one does not end the taking.
func (o *outside) get(ctx context.Context, vm *VM) ([]byte, error) {
	var item []byte
	var total uint64
	for cont := false; ; cont = true {
		r, err := o.record(ctx, vm)
		if err != nil {
			return nil, err
		}
		if r.cont != cont {
			return nil, o.spoil(vm, fmt.Errorf("%w: a fragment out of turn", ErrBroken))
		}
		payload := r.payload
		if !cont && r.more {
			total = binary.LittleEndian.Uint64(payload)
			payload = payload[totalHeader:]
			if total > uint64(vm.config.MaxItem) {
				return nil, o.spoil(vm, fmt.Errorf("%w: %d bytes, at most %d", ErrTooBig, total, vm.config.MaxItem))
			}
		}
		// Grown as it comes: the total is only what a child said.
		item = append(item, payload...)
		if uint64(len(item)) > uint64(vm.config.MaxItem) || cont && uint64(len(item)) > total {
			return nil, o.spoil(vm, fmt.Errorf("%w: an item longer than it said, or than %d bytes", ErrTooBig, vm.config.MaxItem))
		}
		if cont && !r.more && uint64(len(item)) != total {
			return nil, o.spoil(vm, fmt.Errorf("%w: an item shorter than it said", ErrBroken))
		}
		t := &o.taker
		t.head += r.size
		if !r.more {
			t.items++
		}
		t.release(vm.bell)
		if !r.more {
			if item == nil {
				item = []byte{}
			}
			return item, nil
		}
		ctx = context.Background()
	}
}

// spoil ends both ends of a channel that nobody can make sense of.
func (o *outside) spoil(vm *VM, err error) error {
	o.failure = err
	o.channel.ring.endConsumer(stateClosed|stateBroken, vm.bell)
	return err
}

// record waits for the next whole record.
func (o *outside) record(ctx context.Context, vm *VM) (r record, err error) {
	t := &o.taker
	err = o.wait(ctx, vm, &t.header.consumerWaits, func() (ok bool, err error) {
		state := atomic.LoadUint32(&t.header.producerState) // before tail: END comes after what was published
		r, ok, err = t.next()
		if err != nil {
			return false, o.spoil(vm, err)
		}
		if !ok && state != 0 {
			return false, stateError(state, io.EOF)
		}
		return ok, nil
	})
	return r, err
}

// CloseOutside says END on an outside queue that leads into the job.
func (vm *VM) CloseOutside(queue string) error {
	o, err := vm.enter(context.Background(), queue, vm.givers, intoJob)
	if err != nil {
		return err
	}
	defer func() { <-o.turn }()
	o.channel.ring.endProducer(stateClosed, vm.bell)
	ring1(vm.bell)
	return nil
}
