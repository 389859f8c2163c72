package queuevm

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// channel is one channel on this node: its ring and what the daemon does at
// either end. Guarded by VM.mu, but for the outside ends, which have their own turn.
type channel struct {
	Channel
	told   bool     // its producer was told to end it with SWITCH
	void   bool     // the change that made it has failed: nobody goes on with it
	ending bool     // it is over, and the loop is about to remove it
	after  *channel // which the outside end that takes goes on with
	ring   *ring
	out    *outlet  // To is a peer: the daemon takes from the ring and sends
	in     *inlet   // From is a peer: the daemon receives and gives to the ring
	give   *outside // From is outside
	take   *outside // To is outside

	direct *direct // its items go over a socket of the two processes; the ring tells only of ends

	front    *front        // To is a served queue whose home is here
	back     *back         // From is one
	demands  bool          // it leads from a served queue: the taker asks for each item
	verdicts atomic.Bool   // it leads to one that refuses items: the producer hears of each
	most     atomic.Uint64 // the largest item in bytes, 0 for no bound

	hot     bool // in VM.hot: the loop polls it
	carried uint64
	broken  bool
	lost    bool
}

func (e Endpoint) String() string {
	switch {
	case e.Peer != "":
		return fmt.Sprintf("peer %q", e.Peer)
	case e.Outside != "":
		return fmt.Sprintf("outside queue %q", e.Outside)
	case e.Queue != 0:
		return fmt.Sprintf("served queue %d", e.Queue)
	}
	return fmt.Sprintf("port %q of process %d", e.Port, e.Process)
}

func (e Endpoint) local() bool { return e.Peer == "" && e.Outside == "" && e.Queue == 0 }

// home says that the end is a served queue's, and its home here.
func (e Endpoint) home() bool { return e.Queue != 0 && e.Peer == "" }

// AddChannel makes the channel's ring on this node. Processes that it names
// must be known; a peer need not be connected yet: early items wait.
func (vm *VM) AddChannel(c Channel) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return ErrDown
	}
	if err := vm.checkChannel(c); err != nil {
		return fmt.Errorf("channel %d from %v to %v: %w", c.ID, c.From, c.To, err)
	}
	capacity := roundCapacity(c.Capacity)
	c.Capacity = int(capacity)
	r, err := newRing(c.ID, capacity, !c.From.local() || !c.To.local() || c.Forward)
	if err != nil {
		return err
	}
	made := &channel{Channel: c, ring: r}
	if c.Direct && (c.From.Peer != "" || c.To.Peer != "") {
		made.direct = newDirect(vm, made)
	}
	if c.forwards() {
		if err := vm.inherit(made); err != nil {
			r.free()
			return err
		}
	}
	made.serve(vm)
	vm.channels[c.ID] = made
	switch {
	case c.From.home():
	case c.From.local(), c.From.Outside != "":
	default:
		p := vm.peer(c.From.Peer)
		made.in = &inlet{giver: giver{ring: r}, peer: p, due: true}
		p.add(made)
	}
	switch {
	case c.To.home():
	case c.To.local(), c.To.Outside != "":
	default:
		p := vm.peer(c.To.Peer)
		made.out = &outlet{taker: taker{ring: r}, peer: p}
		p.add(made)
		if early, ok := p.early[c.ID]; ok { // the peer was quicker
			delete(p.early, c.ID)
			if err := made.acknowledge(vm, early); err != nil {
				vm.cut(p, err)
			}
		}
	}
	vm.follow(made)
	vm.changes++
	if made.back != nil {
		made.back.queue.settle(vm) // it may be at its end
	}
	if !c.From.local() || !c.To.local() || c.Forward {
		vm.carried = append(vm.carried, made)
		if made.direct != nil && vm.linked {
			vm.joinDirect(made.direct)
		}
		vm.heat(made)
		ring1(vm.bell)
	}
	return nil
}

func (vm *VM) checkChannel(c Channel) error {
	if vm.channels[c.ID] != nil || vm.removed[c.ID] {
		return fmt.Errorf("the id is taken")
	}
	if c.Capacity < 0 || c.Capacity > maxCapacity {
		return fmt.Errorf("a capacity of %d bytes is not between 0 and %d", c.Capacity, maxCapacity)
	}
	if c.From.Peer != "" && c.To.Peer != "" {
		return fmt.Errorf("neither end is on this node")
	}
	for _, end := range []Endpoint{c.From, c.To} {
		if end.Outside != "" && (end.Peer != "" || end.Queue != 0) {
			return fmt.Errorf("an end is one of a peer, outside and a served queue")
		}
		if end.Peer != "" && vm.listener == nil {
			return fmt.Errorf("a peer needs a proxy: set Config.Listen")
		}
	}
	if c.Direct && (c.From.Queue+c.To.Queue != 0 || c.From.Outside+c.To.Outside != "") {
		return fmt.Errorf("a direct channel leads from a process to a process")
	}
	if c.From.Queue != 0 && c.To.Queue != 0 {
		return fmt.Errorf("it leads from one served queue to another")
	}
	if c.From.Queue != 0 {
		if err := vm.checkQueue(c.From, (*queue).deserted); err != nil {
			return err
		}
	}
	if c.To.Queue != 0 {
		if err := vm.checkQueue(c.To, (*queue).complete); err != nil {
			return err
		}
	}
	if c.After == 0 && (c.From.Outside != "" && vm.givers[c.From.Outside] != nil || c.To.Outside != "" && vm.takers[c.To.Outside] != nil) {
		return fmt.Errorf("the outside queue is taken")
	}
	if c.forwards() {
		if err := vm.checkForward(c); err != nil {
			return err
		}
	} else if c.From.local() {
		if err := vm.checkPort(c.From, c.After, func(p *port) []*channel { return p.outs }); err != nil {
			return err
		}
	}
	if c.To.local() {
		return vm.checkPort(c.To, c.After, func(p *port) []*channel { return p.ins })
	}
	return nil
}

func (vm *VM) checkPort(e Endpoint, after uint32, way func(*port) []*channel) error {
	p := vm.processes[e.Process]
	if p == nil {
		return fmt.Errorf("process %d: %w", e.Process, ErrUnknown)
	}
	if e.Port == "" || len(e.Port) > 255 || strings.ContainsFunc(e.Port, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return fmt.Errorf("port name %q is not 1 to 255 bytes without spaces", e.Port)
	}
	if q := p.ports[e.Port]; q != nil && after == 0 && slices.ContainsFunc(way(q), func(c *channel) bool { return !c.void }) {
		return fmt.Errorf("port %q of process %d already leads that way", e.Port, e.Process)
	}
	return nil
}

// breaks marks a channel whose ring held garbage. The child that wrote it
// loses the channel; nobody else loses anything.
func (vm *VM) breaks(c *channel, err error) {
	if c.broken {
		return
	}
	c.broken = true
	vm.logf("channel %d: %v", c.ID, err)
	c.ring.endProducer(stateClosed|stateBroken, vm.bell)
	c.ring.endConsumer(stateClosed|stateBroken, vm.bell)
	c.direct.shut(unix.SHUT_RDWR)
	vm.heat(c)
}

// Inspect reports every channel of this node, ordered by id.
func (vm *VM) Inspect() []ChannelState {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil
	}
	states := make([]ChannelState, 0, len(vm.channels))
	for _, c := range vm.channels {
		h := c.ring.header
		head := atomic.LoadUint64(&h.head) // before tail: depth is never negative by haste
		tail := atomic.LoadUint64(&h.tail)
		giver, taker := atomic.LoadUint32(&h.producerState), atomic.LoadUint32(&h.consumerState)&^controlBits
		s := ChannelState{
			ID: c.ID, From: c.From, To: c.To, Capacity: c.Capacity,
			ItemsIn: atomic.LoadUint64(&h.itemsIn), ItemsOut: atomic.LoadUint64(&h.itemsOut),
			BytesIn: tail, BytesOut: head, Carried: c.carried,
			TakerWaits:  atomic.LoadUint32(&h.consumerWaits) != awake && c.out == nil,
			GiverWaits:  atomic.LoadUint32(&h.producerWaits) != awake && c.in == nil,
			GiverClosed: giver != 0, TakerClosed: taker != 0,
			Broken: c.broken || (giver|taker)&stateBroken != 0,
			Lost:   c.lost || (giver|taker)&stateLost != 0,
			Switch: c.switched(),
		}
		if c.out != nil {
			s.ItemsOut = c.out.items // the ring hears of them when the peer has them
			if c.direct != nil {
				s.ItemsOut, s.Carried = s.ItemsIn, c.direct.carried()
			}
		}
		if depth := tail - head; depth <= c.ring.capacity {
			s.Depth = int(depth)
		}
		states = append(states, s)
	}
	sort.Slice(states, func(a, b int) bool { return states[a].ID < states[b].ID })
	return states
}
