package queuevm

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// Re-wiring: a port goes from one ring to the next. Only the producer ends a
// ring; LAYOUT.md, section 9, has the rules.

// SwitchState is how far a channel's end by SWITCH is, as this node sees it.
type SwitchState struct {
	Told    bool // the producer was told; only its node knows
	Written bool // the producer has ended the ring
	Read    bool // the taker has taken all that came before, and gone on
	Removed bool // nothing is left of the channel on this node
}

// Done says that neither end uses the channel any more.
func (s SwitchState) Done() bool { return s.Removed || s.Written && s.Read }

// Switched says how far a channel's end by SWITCH is.
func (vm *VM) Switched(id uint32) (SwitchState, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c := vm.channels[id]
	if c == nil {
		if vm.removed[id] {
			return SwitchState{true, true, true, true}, nil
		}
		return SwitchState{}, fmt.Errorf("channel %d: %w", id, ErrUnknown)
	}
	return c.switched(), nil
}

func (c *channel) switched() SwitchState {
	h := c.ring.header
	return SwitchState{
		Told:    c.told,
		Written: atomic.LoadUint32(&h.producerState)&stateSwitched != 0,
		Read:    atomic.LoadUint32(&h.consumerState)&stateSwitched != 0,
	}
}

// Swap ends a channel at its producer, who goes on with the channel Next, which was
// added here with After; or, Next being 0, with nothing: its enqueues then answer
// "closed" until its port is given another channel.
type Swap struct{ Channel, Next uint32 }

// Switch tells the producers of channels, which must be at this node, to end them
// with SWITCH before their next item; or, when one of the swaps may not be, none of
// them. Where the daemon is the producer it ends the channel itself, between two
// items; a taker of a broadcast still gets what is in its fifo. A channel is done
// with when its taker has gone on too (Switched), and is then removed. Doing it again
// changes nothing.
func (vm *VM) Switch(swaps ...Swap) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return ErrDown
	}
	for _, s := range swaps {
		if err := vm.maySwitch(s); err != nil {
			return err
		}
	}
	for _, s := range swaps {
		vm.swap(s)
	}
	return nil
}

func (vm *VM) maySwitch(s Swap) error {
	c := vm.channels[s.Channel]
	switch {
	case c == nil && vm.removed[s.Channel]:
		return nil
	case c == nil:
		return fmt.Errorf("switch channel %d: %w", s.Channel, ErrUnknown)
	case c.in != nil:
		return fmt.Errorf("switch channel %d: its producer is at node %s", s.Channel, c.From.Peer)
	case s.Next != 0 && !vm.follows(c, s.Next) && !c.told:
		return fmt.Errorf("switch channel %d: channel %d does not follow it", s.Channel, s.Next)
	}
	return nil
}

// swap makes one that may be.
func (vm *VM) swap(s Swap) {
	c := vm.channels[s.Channel]
	if c == nil || c.told {
		return
	}
	c.told = true
	vm.changes++
	switch {
	case c.back != nil:
		c.back.dismiss(vm)
	case c.give != nil:
		c.give.dismiss(vm, s.Next)
	default:
		vm.pending = append(vm.pending, c)
		atomic.OrUint32(&c.ring.header.consumerState, controlSwitch)
		rouse(&c.ring.header.producerWaits, vm.bell)
		c.settleSwitch(vm)
	}
	vm.heat(c)
	ring1(vm.bell)
}

// follows says whether a producer goes on with channel next after c.
func (vm *VM) follows(c *channel, next uint32) bool {
	n := vm.channels[next]
	return vm.removed[next] || n != nil && n.From == c.From && n.After != 0
}

// settleSwitch ends a channel whose producer was told to, where the producer will
// not: it has ended, or said END. What follows is then at its end too. False
// while the producer still has to.
func (c *channel) settleSwitch(vm *VM) bool {
	h := c.ring.header
	state := atomic.LoadUint32(&h.producerState)
	if state&stateSwitched != 0 {
		return true
	}
	p := vm.processes[c.From.Process]
	if state == 0 && !p.ended {
		return false
	}
	c.ring.endProducer(stateClosed|stateSwitched, vm.bell)
	vm.heat(c)
	if outs := p.port(c.From.Port).outs; len(outs) > 1 && outs[0] == c {
		p.port(c.From.Port).outs = outs[1:]
		outs[1].ring.endProducer(stateClosed, vm.bell)
		vm.heat(outs[1])
		if outs[1].told {
			outs[1].settleSwitch(vm)
		}
	}
	vm.review(c)
	return true
}

// chase looks after the channels whose producers were told to end them.
func (vm *VM) chase() {
	vm.pending = slices.DeleteFunc(vm.pending, func(c *channel) bool {
		return c.ring.header == nil || c.settleSwitch(vm)
	})
}

// follow has a port, or an outside end, go on with a channel after those that it has.
func (vm *VM) follow(c *channel) {
	h := c.ring.header
	if c.From.local() && !c.Forward {
		p := vm.processes[c.From.Process]
		q := p.port(c.From.Port)
		if n := len(q.outs); n > 0 {
			atomic.OrUint32(&q.outs[n-1].ring.header.next, nextOut)
		}
		q.outs = append(q.outs, c)
		if p.ended {
			atomic.OrUint32(&h.producerState, stateClosed)
		}
	}
	if c.To.local() {
		p := vm.processes[c.To.Process]
		q := p.port(c.To.Port)
		if n := len(q.ins); n > 0 {
			atomic.OrUint32(&q.ins[n-1].ring.header.next, nextIn)
			rouse(&q.ins[n-1].ring.header.consumerWaits, vm.bell)
		}
		q.ins = append(q.ins, c)
		if p.ended {
			atomic.OrUint32(&h.consumerState, stateClosed)
		}
	}
	if name := c.From.Outside; name != "" {
		c.give = newOutside(c)
		if vm.givers[name] == nil {
			vm.givers[name] = c
		}
	}
	if name := c.To.Outside; name != "" {
		c.take = newOutside(c)
		last := vm.takers[name]
		if last == nil {
			vm.takers[name] = c
		}
		for ; last != nil; last = last.after {
			if last.after == nil {
				last.after = c
				break
			}
		}
	}
}

// nextRing answers a program that asks for the ring after the one it has.
func (p *process) nextRing(question string) (string, []int) {
	way, rest, _ := strings.Cut(question, " ")
	number, name, _ := strings.Cut(rest, " ")
	id, err := strconv.ParseUint(number, 10, 32)
	q := p.ports[name]
	if err != nil || q == nil || way != "in" && way != "out" {
		return "error next: of which ring of which port?", nil
	}
	chain := &q.ins
	if way == "out" {
		chain = &q.outs
	}
	if len(*chain) == 0 {
		return "ok 0", nil
	}
	c := (*chain)[0]
	if c.ID == uint32(id) {
		state := atomic.LoadUint32(&c.ring.header.producerState)
		if len(*chain) == 1 || way == "in" && state == 0 || way == "out" && state&stateSwitched == 0 {
			return "ok 0", nil
		}
		*chain = (*chain)[1:]
		p.vm.left(c, way == "in")
		c = (*chain)[0]
	}
	return fmt.Sprintf("ok %d", c.ring.capacity), []int{int(c.ring.file.Fd())}
}

// current gives the channels that a port stands at, for who opens it.
func (p *process) current(q *port) (out, in *channel) {
	for len(q.outs) > 1 && atomic.LoadUint32(&q.outs[0].ring.header.producerState)&stateSwitched != 0 {
		c := q.outs[0]
		q.outs = q.outs[1:]
		p.vm.left(c, false)
	}
	for len(q.ins) > 1 {
		h := q.ins[0].ring.header
		if atomic.LoadUint32(&h.producerState) == 0 || atomic.LoadUint64(&h.head) != atomic.LoadUint64(&h.tail) {
			break
		}
		c := q.ins[0]
		q.ins = q.ins[1:]
		p.vm.left(c, true)
	}
	if len(q.outs) > 0 {
		out = q.outs[0]
	}
	if len(q.ins) > 0 {
		in = q.ins[0]
	}
	return out, in
}

// left notes that a port has gone on from a channel.
func (vm *VM) left(c *channel, taker bool) {
	if taker {
		c.ring.endConsumer(stateClosed|stateSwitched, vm.bell)
	}
	vm.heat(c)
	vm.review(c)
	ring1(vm.bell)
}

// dismiss has the home end a taker's channel as soon as it may.
func (b *back) dismiss(vm *VM) {
	if b.finished || b.gone {
		b.parted(vm)
		return
	}
	b.parting = true
	if q := b.queue; q.Type == QueueBroadcast {
		q.store.lane(b.lane).closing = true
	}
	b.queue.settle(vm)
}

// parted ends a taker's channel with SWITCH; the queue has a taker less.
func (b *back) parted(vm *VM) {
	q := b.queue
	if b.removed {
		return
	}
	// Its taker did not leave, but was led elsewhere.
	q.vacant = q.vacant || q.Type != QueueBroadcast && (b.parting || !b.gone && !b.finished)
	b.drop()
	b.removed, b.parting = true, false
	b.ring.endProducer(stateClosed|stateSwitched, vm.bell)
	q.backs = without(q.backs, b)
	if q.Type == QueueBroadcast {
		q.store.lanes = slices.Delete(q.store.lanes, b.lane, b.lane+1)
	}
	for k, o := range q.backs {
		o.lane = k
	}
	q.Takers--
	if b.gone {
		q.left--
	}
	b.finished, b.gone = true, true
	if q.vacant = q.vacant && q.left == q.Takers; q.gone() {
		q.desert(vm)
	}
	vm.heat(b.channel)
	vm.review(b.channel)
}

// without is a list without one of its elements, in other memory: somebody may be
// going through the list.
func without[T comparable](list []T, one T) []T {
	return slices.DeleteFunc(slices.Clone(list), func(o T) bool { return o == one })
}

// dismiss has the daemon end the channel of an outside end, after the item of who is
// enqueueing, and go on with next.
func (o *outside) dismiss(vm *VM, next uint32) {
	end := func() {
		vm.mu.Lock()
		defer vm.mu.Unlock()
		if vm.closed {
			return
		}
		c, name := o.channel, o.channel.From.Outside
		said := atomic.LoadUint32(&c.ring.header.producerState) != 0
		c.ring.endProducer(stateClosed|stateSwitched, vm.bell)
		if n := vm.channels[next]; n != nil {
			vm.givers[name] = n
			if said {
				n.ring.endProducer(stateClosed, vm.bell)
				vm.heat(n)
			}
		} else if vm.givers[name] == c {
			delete(vm.givers, name)
		}
		vm.heat(c)
		vm.review(c)
		ring1(vm.bell)
	}
	vm.tasks.Add(1)
	go func() {
		defer vm.tasks.Done()
		select {
		case o.turn <- struct{}{}:
			end()
			<-o.turn
		case <-vm.done:
		}
	}()
}

// went has an outside end that leads out of the job go on with the next channel;
// false when there is none.
func (o *outside) went(vm *VM) bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c, name := o.channel, o.channel.To.Outside
	if vm.closed || c.after == nil {
		return false
	}
	if vm.takers[name] == c {
		vm.takers[name] = c.after
	}
	vm.left(c, true)
	return true
}

// over says that a channel that was ended by SWITCH has no use for anybody here.
func (c *channel) over(vm *VM) bool {
	h := c.ring.header
	giver, taker := atomic.LoadUint32(&h.producerState), atomic.LoadUint32(&h.consumerState)
	if (giver|taker)&stateSwitched == 0 {
		return false
	}
	switch {
	case c.back != nil:
		if !c.back.removed {
			return false
		}
	case c.in != nil:
		if !c.in.over {
			return false
		}
	case c.give != nil:
		if giver == 0 || vm.givers[c.From.Outside] == c {
			return false
		}
	default:
		p := vm.processes[c.From.Process]
		if giver == 0 || !p.ended && slices.Contains(p.ports[c.From.Port].outs, c) {
			return false
		}
	}
	switch {
	case c.front != nil:
		return c.front.removed
	case c.out != nil:
		return c.out.over || c.void && !c.out.synced
	case c.take != nil:
		return vm.takers[c.To.Outside] != c
	}
	p := vm.processes[c.To.Process]
	if !slices.Contains(p.ports[c.To.Port].ins, c) {
		return true
	}
	// What was forwarded to a taker that has left too is kept for who may follow.
	return p.ended && (!c.Forward || atomic.LoadUint64(&h.head) == atomic.LoadUint64(&h.tail))
}

// review has a channel removed that is over, when the loop comes to it.
func (vm *VM) review(c *channel) {
	if !c.ending && c.over(vm) {
		c.ending = true
		vm.ending = append(vm.ending, c)
	}
}

// bury removes the channels that are over, and frees their memory. Only the loop
// calls it, between two looks at its channels.
func (vm *VM) bury() {
	vm.ending = slices.DeleteFunc(vm.ending, func(c *channel) bool {
		for _, o := range []*outside{c.give, c.take} {
			if !o.free() {
				return false
			}
		}
		if c.From.local() { // of a process that ended
			q := vm.processes[c.From.Process].port(c.From.Port)
			q.outs = without(q.outs, c)
		}
		if c.To.local() {
			q := vm.processes[c.To.Process].port(c.To.Port)
			q.ins = without(q.ins, c)
		}
		items, bytes := c.crossed()
		vm.past.items += items
		vm.past.bytes += bytes
		c.direct.close()
		delete(vm.channels, c.ID)
		vm.removed[c.ID] = true
		is := func(o *channel) bool { return o == c }
		vm.carried = slices.DeleteFunc(vm.carried, is)
		vm.hot = slices.DeleteFunc(vm.hot, is)
		if c.out != nil {
			c.out.peer.channels = slices.DeleteFunc(c.out.peer.channels, is)
		}
		if c.in != nil {
			c.in.peer.channels = slices.DeleteFunc(c.in.peer.channels, is)
		}
		sent, received := c.counts()
		vm.past.sent += sent
		vm.past.received += received
		vm.changes++
		c.ring.free()
		return true
	})
}

// free says that nobody is inside an outside end, and bars it to all who come; of
// none, that there is none.
func (o *outside) free() bool {
	if o == nil || o.removed {
		return true
	}
	select {
	case o.turn <- struct{}{}:
		o.removed = true
		<-o.turn
		return true
	default:
		return false
	}
}

// past is what removed channels leave behind.
type past struct {
	items, bytes   uint64 // that went to peers
	sent, received uint64 // of Quiet
}

// Traffic is how many items, and bytes of rings, went to peers so far, over
// channels that have been removed too.
func (vm *VM) Traffic() (items, bytes uint64) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	items, bytes = vm.past.items, vm.past.bytes
	for _, c := range vm.channels {
		more, size := c.crossed()
		items, bytes = items+more, bytes+size
	}
	return items, bytes
}

// crossed is how many items and bytes went to a peer on a channel.
func (c *channel) crossed() (items, bytes uint64) {
	switch {
	case c.out == nil:
		return 0, 0
	case c.direct != nil:
		return atomic.LoadUint64(&c.ring.header.itemsIn), c.direct.carried()
	}
	return c.out.items, c.carried
}
