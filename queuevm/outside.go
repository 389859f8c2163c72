package queuevm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"
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
	failure error    // sticky: the ring is broken
	part    assembly // what is taken of an item that has not come whole yet
	asked   bool     // a served queue owes an answer
	told    bool     // somebody was told END; guarded by VM.mu
	removed bool     // the channel is: another may have taken its place
}

func newOutside(c *channel) *outside {
	return &outside{
		channel: c, turn: make(chan struct{}, 1), nudge: make(chan struct{}, 1),
		giver: giver{ring: c.ring}, taker: taker{ring: c.ring, answers: c.demands},
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

// find is a queue's end that leads one way.
func (vm *VM) find(queue string, ends map[string]*channel, end func(*channel) *outside) (*outside, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil, ErrDown
	}
	c := ends[queue]
	vm.visited = true
	if c == nil {
		return nil, fmt.Errorf("outside:%s is %w here, or leads the other way", queue, ErrUnknown)
	}
	return end(c), nil
}

// enter waits for the turn.
func (o *outside) enter(ctx context.Context, vm *VM) error {
	select {
	case o.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-vm.done:
		return ErrDown
	}
	select {
	case <-vm.done:
		<-o.turn
		return ErrDown
	default:
	}
	if o.removed {
		<-o.turn
		return errNext
	}
	return nil
}

// switched says that the daemon has ended the channel, as its producer, for another.
func (o *outside) switched() bool {
	return atomic.LoadUint32(&o.channel.ring.header.producerState)&stateSwitched != 0
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

// LeadsIn is nil when an outside queue leads into the job, ErrUnknown when
// none of this name does.
func (vm *VM) LeadsIn(queue string) error {
	_, err := vm.find(queue, vm.givers, intoJob)
	return err
}

// Enqueue puts one item into an outside queue (a channel whose From is Outside)
// and blocks while it is full. An item over half the capacity goes in
// fragments. Once the first is in, the others follow as room comes: when ctx
// ends meanwhile, the item counts as taken, and must not be changed. ErrClosed
// when the taker is gone, ErrTooBig over Config.MaxItem or what a served queue can
// hold, ErrFull where a served queue refuses what finds it full.
func (vm *VM) Enqueue(ctx context.Context, queue string, item []byte) error {
	return vm.EnqueueItem(ctx, queue, Item{Data: item})
}

// EnqueueItem is Enqueue of an item with its kind and priority.
func (vm *VM) EnqueueItem(ctx context.Context, queue string, item Item) error {
	for {
		err := vm.enqueue(ctx, queue, item)
		if err != errNext {
			return err
		}
	}
}

// errNext says that another channel has taken the place of one.
var errNext = errors.New("another channel follows")

func (vm *VM) enqueue(ctx context.Context, queue string, whole Item) error {
	item := whole.Data
	if len(item) > vm.config.MaxItem {
		return fmt.Errorf("enqueue %d bytes to %q: %w: at most %d", len(item), queue, ErrTooBig, vm.config.MaxItem)
	}
	o, err := vm.find(queue, vm.givers, intoJob)
	if err == nil {
		err = o.enter(ctx, vm)
	}
	if err != nil {
		return err
	}
	if o.switched() {
		<-o.turn
		return errNext
	}
	if most := o.channel.most.Load(); most > 0 && uint64(len(item)) > most {
		<-o.turn
		return fmt.Errorf("enqueue %d bytes to %q: %w: the queue holds at most %d", len(item), queue, ErrTooBig, most)
	}
	meta, awaits := whole.meta(), o.channel.verdicts.Load()
	if awaits {
		meta |= metaAwaits
	}
	rest, err := o.begin(ctx, vm, meta, item)
	if err == nil && (len(rest) > 0 || awaits) {
		over := ctx.Done()
		done := make(chan error, 1)
		go func() {
			err := o.finish(vm, meta, rest)
			if err == nil && awaits {
				err = o.verdict(vm)
			}
			<-o.turn
			done <- err
		}()
		if awaits { // such a queue keeps nobody waiting
			over = nil
		}
		select {
		case err = <-done:
		case <-over:
		}
	} else {
		<-o.turn
	}
	if err != nil {
		return fmt.Errorf("enqueue to %q: %w", queue, err)
	}
	return nil
}

// begin puts a whole item or the first fragment of it, and gives what is left.
func (o *outside) begin(ctx context.Context, vm *VM, meta uint32, item []byte) (rest []byte, err error) {
	if len(item) <= largest(o.giver.capacity) {
		return nil, o.putRecord(ctx, vm, 0, meta, 0, item)
	}
	step := o.step()
	return item[step:], o.putRecord(ctx, vm, flagMore, meta, uint64(len(item)), item[:step])
}

func (o *outside) step() int { return fragment(o.giver.capacity) - totalHeader }

// finish puts the fragments after the first, and waits for as long as it takes.
func (o *outside) finish(vm *VM, meta uint32, rest []byte) error {
	for flags := uint32(flagCont | flagMore); len(rest) > 0; {
		part := rest[:min(o.step(), len(rest))]
		if rest = rest[len(part):]; len(rest) == 0 {
			flags = flagCont
		}
		if err := o.putRecord(context.Background(), vm, flags, meta, 0, part); err != nil {
			return err
		}
	}
	return nil
}

// verdict waits for what became of the last item.
func (o *outside) verdict(vm *VM) error {
	h := o.channel.ring.header
	var word uint32
	err := o.wait(context.Background(), vm, &h.producerWaits, func() (bool, error) {
		if word = atomic.LoadUint32(&h.verdict); word>>1 == uint32(o.giver.items)&(1<<31-1) {
			return true, nil
		}
		if state := atomic.LoadUint32(&h.consumerState); state != 0 {
			return false, stateError(state, ErrClosed)
		}
		return false, nil
	})
	if err == nil && word&1 != 0 {
		err = ErrFull
	}
	return err
}

func (o *outside) putRecord(ctx context.Context, vm *VM, flags, meta uint32, total uint64, part []byte) error {
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
	g.put(flags, meta, total, part)
	g.publish(vm.bell)
	return nil
}

// Dequeue takes one item from an outside queue (a channel whose To is Outside),
// waiting for it until ctx ends. io.EOF is END, and stays. An item over
// Config.MaxItem is ErrTooBig, and the channel is of no more use.
func (vm *VM) Dequeue(ctx context.Context, queue string) ([]byte, error) {
	item, err := vm.DequeueItem(ctx, queue)
	return item.Data, err
}

// DequeueItem is Dequeue of an item with its kind and priority.
func (vm *VM) DequeueItem(ctx context.Context, queue string) (Item, error) {
	for {
		item, err := vm.dequeue(ctx, queue)
		if err != errNext {
			return item, err
		}
	}
}

func (vm *VM) dequeue(ctx context.Context, queue string) (Item, error) {
	o, err := vm.find(queue, vm.takers, outOfJob)
	if err == nil {
		err = o.enter(ctx, vm)
	}
	if err != nil {
		return Item{}, err
	}
	defer func() { <-o.turn }()
	if o.failure != nil {
		return Item{}, fmt.Errorf("dequeue from %q: %w", queue, o.failure)
	}
	item, err := o.get(ctx, vm)
	if err == io.EOF {
		if o.went(vm) {
			return Item{}, errNext
		}
		vm.mu.Lock()
		o.told = true
		vm.mu.Unlock()
	}
	if err != nil && err != io.EOF {
		return Item{}, fmt.Errorf("dequeue from %q: %w", queue, err)
	}
	return item, err
}

// Untold says, of a VM whose programs have all ended, whether anything is left that
// somebody outside may want to take: items, or END, of an outside queue that leads
// out of the job, or of a served queue that somebody has taken from by its id. visited
// says whether anybody has come from outside at all.
func (vm *VM) Untold() (untold, visited bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return false, vm.visited
	}
	if vm.handing.Load() > 0 {
		return true, vm.visited
	}
	for _, c := range vm.takers {
		if c.take.told || atomic.LoadUint32(&c.ring.header.consumerState) != 0 {
			continue
		}
		if c.take.taker.some() || c.From.Outside == "" && (c.back == nil || c.back.queue.holds()) {
			return true, vm.visited
		}
	}
	for _, q := range vm.queues {
		if q.asked && !q.told && q.holds() {
			return true, vm.visited
		}
	}
	return false, vm.visited
}

// holds says of a queue at its home whether there is an item, or END, for takers or
// on its way to them: a producer outside that just has not said END is no reason to
// wait.
func (q *queue) holds() bool {
	if q.store.count() > 0 || len(q.blocked)+len(q.converting) > 0 {
		return true
	}
	open := false // to somebody outside
	for _, f := range q.fronts {
		if f.some() {
			return true
		}
		open = open || !f.ended && !f.removed && f.channel.From.Outside != ""
	}
	return q.had && !open
}

// some says whether there is something to take from the ring.
func (t *taker) some() bool {
	return atomic.LoadUint64(&t.header.tail) != atomic.LoadUint64(&t.header.head)
}

// get takes an item. What came of one when ctx ends is kept for the next call.
// A served queue is asked for it, and always answers: also when ctx is over.
func (o *outside) get(ctx context.Context, vm *VM) (Item, error) {
	over := ctx.Err() != nil
	for {
		wait := ctx
		if o.channel.demands && !o.part.begun {
			o.ask(vm, over)
			if over {
				wait = context.Background()
			}
		}
		r, err := o.record(wait, vm)
		if err != nil && o.channel.demands && !over && err == ctx.Err() {
			over = true
			continue
		}
		if err != nil {
			return Item{}, err
		}
		t := &o.taker
		if r.control {
			o.asked = false
			t.head += r.size
			t.release(vm.bell)
			if over {
				return Item{}, ctx.Err()
			}
			continue
		}
		whole, err := o.part.add(r, uint64(vm.config.MaxItem))
		if err != nil {
			return Item{}, o.spoil(vm, err)
		}
		t.head += r.size
		if whole {
			t.items++
		}
		t.release(vm.bell)
		if whole {
			got := outsideItem(item{meta: o.part.meta, data: o.part.bytes})
			o.part.reset()
			o.asked = false
			return got, nil
		}
	}
}

// ask has a served queue owe an answer: an item when there is one, or at once
// whether there is.
func (o *outside) ask(vm *VM, now bool) {
	h := o.channel.ring.header
	demand := h.demand // only who has the turn writes it
	if !o.asked {
		o.asked = true
		demand = (demand>>1 + 1) << 1
	}
	if now {
		demand |= impatient
	}
	if demand != h.demand {
		atomic.StoreUint32(&h.demand, demand)
		wake(&h.producerWaits, vm.bell)
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

// CloseOutside says END on an outside queue that leads into the job: after the
// items of those who are enqueueing, for whom it does not wait.
func (vm *VM) CloseOutside(queue string) error {
	o, err := vm.find(queue, vm.givers, intoJob)
	if err != nil {
		return err
	}
	end := func(ctx context.Context) error {
		err := o.enter(ctx, vm)
		if err == nil && o.switched() {
			<-o.turn
			err = errNext
		}
		if err == nil {
			o.channel.ring.endProducer(stateClosed, vm.bell)
			ring1(vm.bell)
			<-o.turn
		}
		return err
	}
	soon, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	err = end(soon)
	if err == errNext {
		return vm.CloseOutside(queue)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	go func() {
		if end(context.Background()) == errNext {
			_ = vm.CloseOutside(queue)
		}
	}()
	return nil
}
