package queuevm

import (
	"errors"
	"fmt"
	"sync/atomic"
)

// QueueChange says what becomes of a served queue; nil leaves a thing as it is.
type QueueChange struct {
	Type     *QueueType
	Full     *FullPolicy
	Capacity *int // bytes, rounded up as a channel's; 0 means DefaultCapacity
	// Converter and Rule are for what arrives from now on; a nil interface converts
	// nothing, and leaves the order to the type. Nodes but the home only look
	// whether there is one.
	Converter *Converter
	Rule      *Rule
	Link      *Link
}

// ChangeQueue changes a served queue while items flow; LAYOUT.md, section 5, says
// what becomes of those that wait. It must be called at the home first, and then
// at every other node that knows the queue. Doing it again changes nothing.
func (vm *VM) ChangeQueue(id int, change QueueChange) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	q := vm.queues[id]
	switch {
	case vm.closed:
		return ErrDown
	case q == nil:
		return fmt.Errorf("queue %d: %w", id, ErrUnknown)
	case change.Type != nil && !change.Type.known():
		return fmt.Errorf("queue %s: type %q: %w", q.Name, *change.Type, ErrUnknown)
	case change.Full != nil && !change.Full.known():
		return fmt.Errorf("queue %s: policy %q: %w", q.Name, *change.Full, ErrUnknown)
	case change.Capacity != nil && (*change.Capacity < 0 || *change.Capacity > maxCapacity):
		return fmt.Errorf("queue %s: a capacity of %d bytes is not between 0 and %d", q.Name, *change.Capacity, maxCapacity)
	}
	kind, converter, rule := q.Type, q.Converter, q.Rule
	if change.Type != nil {
		kind = *change.Type
	}
	if change.Converter != nil {
		converter = *change.Converter
	}
	if change.Rule != nil {
		rule = *change.Rule
	}
	if err := checkRule(kind, rule); err != nil {
		return fmt.Errorf("queue %s: %w", q.Name, err)
	}
	if q.home && q.vacant && kind == QueueBroadcast && q.Type != QueueBroadcast {
		return fmt.Errorf("queue %s has no taker now, and of a broadcast what waits in it would be nobody's; add a taker first", q.Name)
	}
	if change.Link != nil {
		if err := change.Link.check(); err != nil {
			return fmt.Errorf("queue %s: %w", q.Name, err)
		}
		q.setLink(vm, *change.Link)
	}
	if change.Converter != nil || change.Rule != nil {
		q.treat(converter, rule, change.Converter != nil, change.Rule != nil)
	}
	if change.Capacity != nil {
		q.capacity = roundCapacity(*change.Capacity)
		q.Capacity = int(q.capacity)
		q.store.capacity = q.capacity
	}
	if change.Full != nil {
		q.Full = *change.Full
		q.store.full = q.Full
	}
	gone := make([]bool, len(q.backs))
	for k, b := range q.backs {
		gone[k] = b.gone || b.parting
	}
	if rule == nil {
		q.store.setRuled(false, gone)
	}
	if kind != q.Type {
		q.Type = kind
		q.store.retype(q.Type, gone)
		if q.Type == QueueBroadcast { // a guest is no taker of it
			for _, b := range q.waiting {
				b.guest.done()
			}
		}
	}
	if rule != nil {
		q.store.setRuled(true, gone)
	}
	q.ceiling = max(q.ceiling, q.most())
	for _, c := range vm.channels {
		if c.To.Queue == id {
			c.offers(q)
			if c.From.local() {
				atomic.OrUint32(&c.ring.header.consumerState, controlChanged)
			}
		}
	}
	vm.changes++
	if q.home {
		q.settle(vm) // there may be room now, or nobody waits for it any more
	}
	ring1(vm.bell)
	return nil
}

// PeekQueue copies the first items that wait in a served queue whose home is
// here, the next to be taken first; of broadcast what waits for any taker, the
// oldest first. Nothing moves.
func (vm *VM) PeekQueue(id int, limit int) ([]Item, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	q, err := vm.atHome(id)
	if err != nil {
		return nil, err
	}
	all := q.store.next()
	return outsideItems(all[:min(max(limit, 0), len(all))]), nil
}

// DrainQueue takes the first items that wait out of a served queue whose home is
// here, of broadcast out of every taker's fifo, and returns them.
func (vm *VM) DrainQueue(id int, limit int) ([]Item, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	q, err := vm.atHome(id)
	if err != nil {
		return nil, err
	}
	all := q.store.next()
	all = all[:min(max(limit, 0), len(all))]
	q.store.remove(all)
	q.out += uint64(len(all))
	vm.changes++
	q.settle(vm) // there is room now
	ring1(vm.bell)
	return outsideItems(all), nil
}

// Glance is what a look at a channel's ring has seen.
type Glance struct {
	Items []Item // that wait, the next to be taken first
	// Rest is how many bytes of the last of them are not here: it is being enqueued,
	// or it lies partly at another node.
	Rest int
	// Next is, at the taker's node of a channel between nodes, the ring offset from
	// which on more may wait at its producer's; nil when there is more here.
	Next *uint64
}

// PeekChannel copies the first items that wait in a bare channel's ring on the node
// of its taker. Nothing moves; what the taker takes meanwhile is left out.
func (vm *VM) PeekChannel(id uint32, limit int) (Glance, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c := vm.channels[id]
	switch {
	case vm.closed:
		return Glance{}, ErrDown
	case c == nil:
		return Glance{}, fmt.Errorf("channel %d: %w", id, ErrUnknown)
	case c.To.Peer != "":
		return Glance{}, fmt.Errorf("channel %d: its items wait at node %s: %w here", id, c.To.Peer, ErrUnknown)
	}
	h := c.ring.header
	from := atomic.LoadUint64(&h.head)
	if begun := atomic.LoadUint64(&h.begun); begun > from && begun-from <= c.ring.capacity && begun&7 == 0 {
		from = begun // the taker is copying a record out
	}
	seen, err := c.ring.peek(from, limit, uint64(vm.config.MaxItem))
	if err != nil {
		return Glance{}, err
	}
	now, first := atomic.LoadUint64(&h.head), 0
	for first < len(seen.Items) && int64(now-seen.starts[first]) > 0 {
		first++
	}
	if c.From.Peer != "" && c.direct == nil && len(seen.Items) < limit {
		seen.Next = &seen.end
	}
	if seen.Items = seen.Items[first:]; len(seen.Items) == 0 {
		seen.Rest = 0
	}
	return seen.Glance, nil
}

// ErrMoved says that the taker's node has received what was to be looked at.
var ErrMoved = errors.New("it has moved on")

// PeekSent copies the first items that wait in a bare channel's ring on the node of its
// producer, and that the taker's node has not received: from the ring offset after on,
// which is what PeekChannel says there. ErrMoved says that it has by now.
func (vm *VM) PeekSent(id uint32, after uint64, limit int) (Glance, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c := vm.channels[id]
	switch {
	case vm.closed:
		return Glance{}, ErrDown
	case c == nil || c.To.Peer == "":
		return Glance{}, fmt.Errorf("channel %d to another node: %w", id, ErrUnknown)
	case c.direct != nil:
		return Glance{}, nil
	}
	h := c.ring.header
	gone := func() bool { return int64(atomic.LoadUint64(&h.head)-after) > 0 }
	if gone() || after&7 != 0 || after-atomic.LoadUint64(&h.head) > c.ring.capacity {
		return Glance{}, fmt.Errorf("channel %d: %w", id, ErrMoved)
	}
	seen, err := c.ring.peek(after, limit, uint64(vm.config.MaxItem))
	if err == nil && gone() {
		err = fmt.Errorf("channel %d: %w", id, ErrMoved)
	}
	if err != nil {
		return Glance{}, err
	}
	return seen.Glance, nil
}

// look is a glance at one ring, and the offsets where each item begins and where
// what was not seen does.
type look struct {
	Glance
	starts []uint64
	end    uint64
}

// peek copies items from an offset on, the last of them as far as it is there. The
// ring is the children's: every word is checked, and what the taker may have taken
// meanwhile is the caller's to give up.
func (r *ring) peek(from uint64, limit int, most uint64) (look, error) {
	view := taker{ring: r}
	if r.data == nil {
		mapped, unmap, err := r.view()
		if err != nil {
			return look{}, err
		}
		defer unmap()
		view.ring = mapped
	}
	if from&7 != 0 {
		return look{}, fmt.Errorf("%w: head %d", ErrBroken, from)
	}
	view.head, view.tail = from, from
	seen := look{end: from}
	var part assembly
	start := from // of the item that part is of
	note := func() {
		seen.Items = append(seen.Items, outsideItems([]item{{meta: part.meta, data: part.bytes}})...)
		seen.starts = append(seen.starts, start)
		seen.end = view.head
	}
	for len(seen.Items) < limit {
		r, here, err := view.next()
		if err != nil {
			return seen, nil
		}
		if r.size == 0 {
			break
		}
		if r.cont && !part.begun { // the rest of an item that was taken, or seen elsewhere
			view.head += r.size
			seen.end = view.head
			if !here {
				break
			}
			continue
		}
		if !part.begun {
			start = view.head
		}
		whole := false
		if here {
			whole, err = part.add(r, most)
		} else {
			err = part.begin(r, view.tail-view.head-recordHeader, most)
		}
		if err != nil {
			return seen, nil
		}
		if here || part.begun {
			view.head += r.size
		}
		if whole {
			note()
			part.reset()
		}
		if !here {
			break
		}
	}
	if part.begun && len(seen.Items) < limit {
		note()
		seen.Rest = int(part.total) - len(part.bytes)
	}
	return seen, nil
}

// view maps the ring's data area for a look.
func (r *ring) view() (*ring, func(), error) {
	look := &ring{file: r.file, capacity: r.capacity}
	if err := look.mapped(int(r.file.Fd()), true); err != nil {
		look.unmap()
		return nil, nil, fmt.Errorf("map channel %d: %w", r.header.channel, err)
	}
	return look, look.unmap, nil
}
