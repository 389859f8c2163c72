package queuevm

import (
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

// PeekChannel copies the first items that wait in a bare channel's ring on this
// node, the next to be taken first; ask the node of its taker. Of an item that
// has not come whole nothing is given. Nothing moves; what the taker takes
// meanwhile is left out.
func (vm *VM) PeekChannel(id uint32, limit int) ([]Item, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c := vm.channels[id]
	switch {
	case vm.closed:
		return nil, ErrDown
	case c == nil:
		return nil, fmt.Errorf("channel %d: %w", id, ErrUnknown)
	case c.To.Peer != "":
		return nil, fmt.Errorf("channel %d: its items wait at node %s: %w here", id, c.To.Peer, ErrUnknown)
	}
	return c.ring.peek(limit, uint64(vm.config.MaxItem))
}

// peek copies whole items from head on. The ring is the children's: every word
// is checked, and what the taker may have taken meanwhile is given up.
func (r *ring) peek(limit int, most uint64) ([]Item, error) {
	view := taker{ring: r}
	if r.data == nil {
		mapped, unmap, err := r.view()
		if err != nil {
			return nil, err
		}
		defer unmap()
		view.ring = mapped
	}
	h := r.header
	head := atomic.LoadUint64(&h.head)
	view.head, view.tail = head, head
	if begun := atomic.LoadUint64(&h.begun); begun > head && begun-head <= r.capacity && begun&7 == 0 {
		view.head = begun // the taker is copying a record out
	}
	if head&7 != 0 {
		return nil, fmt.Errorf("%w: head %d", ErrBroken, head)
	}
	view.tail = view.head
	var (
		items []Item
		ends  []uint64 // where each lies
		part  assembly
	)
	for len(items) < limit {
		r, ok, err := view.next()
		if err != nil || !ok {
			break
		}
		if r.control || r.cont && !part.begun { // the rest of an item that was taken
			view.head += r.size
			continue
		}
		from := view.head
		if part.begun {
			from = ends[len(ends)-1]
		}
		whole, err := part.add(r, most)
		if err != nil {
			break
		}
		if !part.begun || len(ends) == len(items) {
			ends = append(ends[:len(items)], from)
		}
		view.head += r.size
		if whole {
			items = append(items, outsideItems([]item{{meta: part.meta, data: part.bytes}})...)
			part.reset()
		}
	}
	now, first := atomic.LoadUint64(&h.head), 0
	for first < len(items) && int64(now-ends[first]) > 0 {
		first++
	}
	return items[first:], nil
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
