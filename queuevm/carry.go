package queuevm

import (
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// outlet is the near end of a channel to a peer: the daemon takes from the
// ring and sends. taker.head is what the peer has acknowledged, and only then
// does the producer get the room back: what a cut connection swallowed is
// still in the ring.
type outlet struct {
	taker
	peer    *peer
	sent    uint64 // next ring byte to send on this connection
	most    uint64 // the most that was ever sent on any connection
	limit   uint64 // the peer has room up to here
	synced  bool   // the peer said on this connection where it stands
	said    uint8  // END as it was sent on this connection, 0 before
	over    bool   // the peer was told that nothing is left of the channel
	refused bool   // the taker is gone
	resumed bool   // and what it leaves is forwarded at the peer
	heard   uint32 // the taker's state as the peer last said
	level   uint32 // and its demand, or the home's verdict
	armed   bool   // the producer was told that the daemon sleeps
}

// sync takes the peer's word for where it stands.
func (o *outlet) sync(f frame) error {
	from, to := o.head, o.sent
	if !o.synced {
		to = o.most
	}
	if f.offset < from || f.offset > to {
		return fmt.Errorf("channel %d: the peer acknowledged byte %d, not between %d and %d", f.channel, f.offset, from, to)
	}
	if !o.synced {
		o.sent, o.synced, o.said = f.offset, true, 0
	}
	o.limit = f.offset + uint64(f.length)
	return nil
}

// inlet is the far end: the daemon receives and gives to the ring.
type inlet struct {
	giver
	peer     *peer
	received uint64 // ring bytes written; giver.tail is what is published of them
	acked    uint64 // as last sent
	limit    uint64 // as last sent
	due      bool   // an acknowledgement must go out
	told     uint32 // the taker's state as last sent
	level    uint32 // its demand, or the home's verdict, as last sent
	ended    bool
	how      uint8 // END as it came
	over     bool  // the peer has nothing left of the channel
	armed    bool  // the consumer was told that the daemon sleeps
}

// room is how far the peer may send.
func (i *inlet) room() uint64 { return i.giver.head + i.capacity }

// stirred says that the other end of a ring that the daemon does not poll did
// something that the daemon must see: it answered the announcement of a sleep,
// or it closed.
func (c *channel) stirred() bool {
	h := c.ring.header
	if c.front != nil && c.front.stirred() || c.back != nil && c.back.stirred() {
		return true
	}
	if o := c.out; o != nil && (!o.refused && o.armed && atomic.LoadUint32(&h.consumerWaits) == awake || c.end() != o.said) {
		return true
	}
	i := c.in
	return i != nil && (i.armed && atomic.LoadUint32(&h.producerWaits) == awake || atomic.LoadUint32(&h.consumerState)&endBits != i.told)
}

// end is END as an outlet's peer must hear of it, 0 while there is none. When the
// taker is gone the peer only needs to hear of SWITCH; but what is forwarded is kept
// for who may follow.
func (c *channel) end() uint8 {
	state := atomic.LoadUint32(&c.ring.header.producerState)
	if o := c.out; state == 0 || o.over || o.refused && (state&stateSwitched == 0 || c.forwards() && o.sent != atomic.LoadUint64(&c.ring.header.tail)) {
		return o.said
	}
	if c.broken {
		state |= stateBroken
	}
	return uint8(state&endBits) | stateClosed
}

// arm announces on the ring that the daemon is about to sleep, where news from
// the ring would give it work. Without credit, or while the socket is full,
// news from the ring does not: the peer's frame will wake the loop.
func (c *channel) arm() {
	h := c.ring.header
	if c.front != nil {
		c.front.arm()
	}
	if c.back != nil {
		c.back.arm()
	}
	if o := c.out; o != nil {
		if o.armed = !o.refused && (!o.synced || o.sent < o.limit); o.armed {
			atomic.StoreUint32(&h.consumerWaits, waitsDaemon)
		}
	}
	// A peer that has half the ring ahead of it does not wait for room, but a
	// taker may ask.
	if i := c.in; i != nil {
		if i.armed = c.front == nil && (c.demands || i.limit-i.received < i.capacity/2); i.armed {
			atomic.StoreUint32(&h.producerWaits, waitsDaemon)
		}
	}
}

// step looks at a hot ring and queues what there is to send for its peer; true
// when there was something.
func (c *channel) step(vm *VM) bool {
	worked := false
	if c.back != nil {
		worked = c.back.step(vm)
	}
	if c.out != nil {
		worked = c.stepOut(vm) || worked
	}
	if c.front != nil {
		worked = c.front.step(vm) || worked
	}
	if c.in != nil {
		worked = c.stepIn(vm) || worked
	}
	return worked
}

func (c *channel) stepOut(vm *VM) bool {
	o := c.out
	p := o.peer
	if !o.synced || o.over || !p.writable() {
		return false
	}
	end := c.end() // before tail: END comes after what was published
	if o.refused {
		return end != 0 && c.farewell(vm, end, o.sent)
	}
	if !c.broken {
		if _, err := o.ready(); err != nil {
			vm.breaks(c, err)
			end = stateClosed | stateBroken
		}
	}
	items := atomic.LoadUint64(&o.header.itemsIn) // after tail: of what is sent, none is left uncounted
	tail := o.taker.tail
	if n := min(tail, o.limit) - o.sent; n > 0 && o.sent < o.limit && o.sent < tail {
		n = min(n, maxFrameData)
		p.queue(frame{kind: frameData, channel: c.ID, offset: o.sent, length: uint32(n), items: uint32(items)}, o.at(o.sent, n))
		o.sent += n
		o.most = max(o.most, o.sent)
		o.items = items
		c.carried += n
		return true
	}
	return o.sent == tail && c.farewell(vm, end, tail)
}

// farewell says END, and when the peer has heard of SWITCH and needs nothing more,
// that nothing is left of the channel here.
func (c *channel) farewell(vm *VM, end uint8, at uint64) bool {
	o := c.out
	if end != o.said {
		o.peer.queue(frame{kind: frameEnd, channel: c.ID, offset: at, flags: end}, nil)
		o.said = end
		return true
	}
	if o.said != 0 && o.heard&stateClosed != 0 && (uint32(o.said)|o.heard)&stateSwitched != 0 && o.head == o.sent {
		o.peer.queue(frame{kind: frameGone, channel: c.ID}, nil)
		o.over = true
		vm.review(c)
		return true
	}
	return false
}

// acknowledge takes a peer's word on an outlet.
func (c *channel) acknowledge(vm *VM, f frame) error {
	o := c.out
	if err := o.sync(f); err != nil {
		return err
	}
	if f.offset > o.head {
		o.head = f.offset
		o.taker.release(vm.bell)
	}
	news := uint32(f.flags) &^ o.heard
	o.heard = uint32(f.flags)
	if o.resumed {
		news &^= stateClosed
	}
	o.level = f.items
	c.levelled(vm, f.items)
	if news != 0 {
		o.refused = true
		o.ring.endConsumer(uint32(f.flags)|stateClosed, vm.bell)
		c.direct.shut(unix.SHUT_RDWR)
	}
	vm.heat(c)
	return nil
}

func (c *channel) stepIn(vm *VM) bool {
	i := c.in
	p := i.peer
	if i.over || !p.writable() {
		return false
	}
	state := atomic.LoadUint32(&i.header.consumerState) & endBits
	if !c.broken {
		if _, err := i.free(); err != nil {
			vm.breaks(c, err)
			state = stateClosed | stateBroken
		}
	}
	got, level := i.received&^7, c.level()
	if !i.owes(state) && level == i.level {
		return false
	}
	i.acked, i.limit, i.due, i.told, i.level = got, max(i.limit, i.room()), false, state, level
	p.queue(frame{kind: frameAck, channel: c.ID, offset: got, length: uint32(i.limit - got), items: level, flags: uint8(state)}, nil)
	return true
}

// owes says whether an acknowledgement is due. It is when the peer could come to
// wait for it: a quarter of the ring came free, or an eighth arrived. And it is
// when the channel's level moved.
func (i *inlet) owes(state uint32) bool {
	return i.due || i.room()-i.limit >= i.capacity/4 || i.received&^7-i.acked >= i.capacity/8 || state != i.told
}

// starts readies both ends for a new connection.
func (c *channel) starts() {
	if c.out != nil {
		c.out.synced, c.out.said = false, 0
	}
	if c.in != nil {
		c.in.received &^= 7
		c.in.due = true
	}
}

// show publishes what was received and wakes the taker.
func (c *channel) show(vm *VM) {
	if i := c.in; i.received&^7 != i.tail {
		i.tail = i.received &^ 7
		i.publish(vm.bell)
	}
}

// finish takes the peer's END.
func (c *channel) finish(vm *VM, f frame) error {
	i := c.in
	if f.offset != i.received {
		return fmt.Errorf("channel %d: END at byte %d, but %d were received", c.ID, f.offset, i.received)
	}
	i.due = true // so that the peer's ring is free
	vm.heat(c)
	if f.flags&^i.how != 0 {
		i.ended = true
		i.how |= f.flags
		c.ring.endProducer(uint32(f.flags), vm.bell)
		if f.flags&stateLost != 0 {
			c.direct.shut(unix.SHUT_RDWR)
		}
	}
	return nil
}

// forget takes the peer's word that nothing is left of a channel there.
func (c *channel) forget(vm *VM) {
	i := c.in
	if !i.ended {
		i.ended = true
		c.ring.endProducer(stateClosed|stateSwitched, vm.bell)
	}
	i.over = true
	vm.heat(c)
	vm.review(c)
}

// lose ends both ways of a channel whose peer is gone.
func (c *channel) lose(vm *VM) {
	c.direct.shut(unix.SHUT_RDWR)
	if c.out != nil && !c.out.refused && !c.out.over && !(c.out.said != 0 && c.out.head == c.out.taker.tail) {
		c.lost, c.out.refused = true, true
		c.ring.endConsumer(stateClosed|stateLost, vm.bell)
	}
	if c.in != nil && !c.in.ended {
		c.lost, c.in.ended = true, true
		c.ring.endProducer(stateClosed|stateLost, vm.bell)
	}
}
