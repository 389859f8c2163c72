package queuevm

import (
	"context"
	"fmt"
)

// Item is one item of a queue, as callers from outside see it.
type Item struct {
	Data        []byte
	Priority    uint8
	Instruction bool // not data
}

func (i Item) inside() item { return item{meta: i.meta(), data: append([]byte{}, i.Data...)} }

func (i Item) meta() uint32 {
	if i.Instruction {
		return uint32(i.Priority)<<4 | kindInstruction
	}
	return uint32(i.Priority) << 4
}

func outsideItem(it item) Item {
	return Item{Data: it.data, Priority: uint8(it.priority()), Instruction: it.instructs()}
}

func outsideItems(items []item) []Item {
	seen := make([]Item, len(items))
	for k, it := range items {
		seen[k] = outsideItem(it)
	}
	return seen
}

// guest is a caller from outside who stands among the producers or takers of a
// served queue for one call. Guarded by VM.mu.
type guest struct {
	over    chan struct{} // closed when there is nothing more to wait for
	settled bool
	judged  verdict
	err     error  // why the item could not be converted
	items   []item // that a taker got
}

func newGuest() *guest { return &guest{over: make(chan struct{}), judged: blocked} }

// done ends the wait; it may be called again, and of nobody.
func (g *guest) done() {
	if g != nil && !g.settled {
		g.settled = true
		close(g.over)
	}
}

func (g *guest) entered(judged verdict) {
	g.judged = judged
	g.done()
}

func (g *guest) failed(err error) {
	if g != nil && err != nil {
		g.err = err
		g.done()
	}
}

func (g *guest) took(it item) {
	g.items = append(g.items, it)
	g.done()
}

// wait ends when the guest is done, or with the reason why not. It is called,
// and returns, with vm.mu held.
func (vm *VM) wait(ctx context.Context, g *guest) error {
	ring1(vm.bell)
	vm.mu.Unlock()
	defer vm.mu.Lock()
	select {
	case <-g.over:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-vm.done:
		return ErrDown
	}
}

// atHome is the queue, if it is served here. vm.mu is held.
func (vm *VM) atHome(id int) (*queue, error) {
	if vm.closed {
		return nil, ErrDown
	}
	q := vm.queues[id]
	vm.visited = true
	if q == nil {
		return nil, fmt.Errorf("queue %d: %w", id, ErrUnknown)
	}
	if !q.home {
		return nil, fmt.Errorf("queue %s: its home is another node: %w here", q.Name, ErrUnknown)
	}
	return q, nil
}

// EnqueueQueue puts items into a served queue whose home is here, in order and
// as its producers do: behind those that came before, and converted. It waits for
// room until ctx ends, and says how many are in the queue. ErrFull where the
// policy is to fail, ErrTooBig for an item that is bigger than the queue, ErrClosed
// when all takers are gone or the queue has ended.
func (vm *VM) EnqueueQueue(ctx context.Context, id int, items []Item) (n int, err error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	q, err := vm.atHome(id)
	if err != nil {
		return 0, err
	}
	q.guests++
	vm.changes++
	defer func() {
		q.guests--
		ring1(vm.bell)
	}()
	for ; n < len(items) && err == nil; n++ {
		if err = q.admit(ctx, vm, items[n].inside()); err != nil {
			return n, fmt.Errorf("enqueue to queue %s: item %d of %d: %w", q.Name, n+1, len(items), err)
		}
	}
	return n, nil
}

// admit has one item from outside enter. vm.mu is held, but for the wait.
func (q *queue) admit(ctx context.Context, vm *VM, it item) error {
	switch {
	case vm.closed:
		return ErrDown
	case uint64(len(it.data)) > q.most():
		return fmt.Errorf("%w: the queue holds at most %d bytes", ErrTooBig, q.most())
	case q.gone() || q.halted || q.through || q.ended():
		return ErrClosed
	}
	g := newGuest()
	f := &front{queue: q, guest: g}
	q.in++
	if q.treatment == nil && len(q.converting) == 0 {
		f.entering = []item{it}
		f.offer(vm)
	} else {
		f.batch = q.newBatch(0)
		f.batch.add(it)
		f.handOver(vm)
	}
	err := error(nil)
	if !g.settled {
		err = vm.wait(ctx, g)
	}
	if err != nil && !g.settled {
		q.withdraw(f)
		q.in--
		return err
	}
	switch {
	case g.err != nil:
		return g.err
	case g.judged == refused:
		return ErrFull
	case g.judged == blocked:
		q.in--
		return ErrClosed
	}
	return nil
}

// withdraw takes an item from outside back that has not entered.
func (q *queue) withdraw(f *front) {
	for k, other := range q.blocked {
		if other == f {
			q.blocked = append(q.blocked[:k], q.blocked[k+1:]...)
			return
		}
	}
	f.batch.dropped = true // it is at the converter: nobody wants what comes of it
}

// DequeueQueue takes up to limit items from a served queue whose home is here, as
// a taker does who asks for each: it waits for the first until ctx ends, and takes
// no more than the queue has. end says that nothing will come any more. Nobody
// outside is a taker of a broadcast queue, which has a fifo for each.
func (vm *VM) DequeueQueue(ctx context.Context, id int, limit int) (items []Item, end bool, err error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	q, err := vm.atHome(id)
	if err != nil {
		return nil, false, err
	}
	if q.Type == QueueBroadcast {
		return nil, false, fmt.Errorf("dequeue from queue %s: it is a broadcast queue, whose items are each taker's: peek or drain", q.Name)
	}
	if limit < 1 {
		return nil, false, nil
	}
	q.asked = true
	defer func() { q.told = q.told || end }()
	q.guests++
	vm.changes++
	defer func() {
		q.guests--
		ring1(vm.bell)
	}()
	// What a producer published before this was asked must not be missed.
	for _, f := range q.fronts {
		for range frontBatch {
			if q.store.count() > 0 || !f.step(vm) {
				break
			}
		}
	}
	g := newGuest()
	b := &back{queue: q, guest: g, waiting: true}
	q.waiting = append(q.waiting, b)
	q.settle(vm)
	if !g.settled && !q.ended() {
		err = vm.wait(ctx, g)
	}
	b.drop()
	for len(g.items) > 0 && len(g.items) < limit && len(q.waiting) == 0 && q.Type != QueueBroadcast {
		it, ok := q.store.take(0)
		if !ok {
			break
		}
		q.out++
		g.items = append(g.items, it)
		q.settle(vm)
	}
	if len(g.items) > 0 {
		return outsideItems(g.items), false, nil
	}
	if err == nil && !q.ended() {
		err = ErrClosed // the queue became a broadcast
	}
	if err != nil {
		err = fmt.Errorf("dequeue from queue %s: %w", q.Name, err)
	}
	return nil, err == nil, err
}
