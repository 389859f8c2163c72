package queuevm

import (
	"cmp"
	"math/bits"
	"slices"
)

// QueueType is the rule by which a queue hands out its items.
type QueueType string

const (
	QueueFifo      QueueType = "fifo"
	QueueWork      QueueType = "work"      // fifo; each item to one of many takers
	QueueLifo      QueueType = "lifo"      // the newest first
	QueuePriority  QueueType = "priority"  // the highest priority first, among equals fifo
	QueueLatest    QueueType = "latest"    // one item, which the next replaces
	QueueBroadcast QueueType = "broadcast" // every item to every taker
)

// FullPolicy is what becomes of an item that finds its queue full.
type FullPolicy string

const (
	FullBlock      FullPolicy = "block"
	FullDropNewest FullPolicy = "dropNewest"
	FullDropOldest FullPolicy = "dropOldest"
	FullFail       FullPolicy = "fail"
)

func (t QueueType) known() bool {
	switch t {
	case QueueFifo, QueueWork, QueueLifo, QueuePriority, QueueLatest, QueueBroadcast:
		return true
	}
	return false
}

func (f FullPolicy) known() bool {
	switch f {
	case FullBlock, FullDropNewest, FullDropOldest, FullFail:
		return true
	}
	return false
}

// item is one enqueued message in the daemon's own memory. Broadcast shares its
// bytes between takers: nobody changes them.
type item struct {
	meta uint32
	data []byte
	seq  uint64 // its place in the order of arrival
	firm bool   // never refused: nobody would hear of it
	drop bool   // a Rule says so
	rank uint64 // that a Rule gave it, the lowest first; 0 where there was none
}

// size is what an item counts against a queue's capacity.
func (i item) size() uint64 { return recordSize(len(i.data)) }

// kindInstruction is in the low four bits of meta.
const kindInstruction = 1

// instructs says that the item is an instruction, and no data.
func (i item) instructs() bool { return i.meta&0xf == kindInstruction }

func (i item) priority() int { return int(i.meta >> 4 & 0xff) }

// mostOf is the largest item, in bytes, that a queue of this capacity can hold.
func mostOf(capacity uint64) uint64 { return capacity - recordHeader }

type verdict int

const (
	accepted verdict = iota // it is in, or was dropped as the policy says
	refused                 // the policy is fail, and there is no room
	blocked                 // the policy is block, and there is no room: offer it again
)

// store is a served queue's rules and items: pure, without rings, processes or
// time. Its user synchronises.
type store struct {
	kind     QueueType
	full     FullPolicy
	capacity uint64
	lanes    []lane // one; of broadcast one a taker
	dropped  uint64 // items that the policy dropped; of broadcast for each taker
	refusals uint64
	seq      uint64 // of the next item
	ruled    bool   // a Rule orders it
}

func newStore(kind QueueType, full FullPolicy, capacity uint64, takers int) *store {
	n := 1
	if kind == QueueBroadcast {
		n = takers
	}
	s := &store{kind: kind, full: full, capacity: capacity, lanes: make([]lane, n)}
	for k := range s.lanes {
		s.lanes[k] = s.newLane()
	}
	return s
}

func (s *store) newLane() lane {
	if s.ruled {
		return lane{order: newRanked()}
	}
	levels := 1
	if s.kind == QueuePriority {
		levels = 256
	}
	return lane{levels: make([]deque, levels)}
}

// retype makes the queue one of another type. What waits stays, ordered by the
// new type's rule as if it had arrived in the same order under it: what waits for
// any taker waits for all of broadcast, or once where each item is for one. Only
// latest keeps no more than the newest. gone says which takers take no more.
func (s *store) retype(kind QueueType, gone []bool) {
	all := s.all()
	if !s.ruled {
		for k := range all {
			all[k].rank = 0 // another rule may come
		}
	}
	s.kind = kind
	s.lanes = make([]lane, 1)
	if kind == QueueBroadcast {
		s.lanes = make([]lane, len(gone))
	}
	if n := len(all) - 1; kind == QueueLatest && n > 0 {
		s.dropped += uint64(n)
		all = all[n:]
	}
	for k := range s.lanes {
		s.lanes[k] = s.newLane()
		if kind == QueueBroadcast && gone[k] {
			s.lanes[k] = lane{gone: true}
			continue
		}
		for _, it := range all {
			s.lanes[k].push(it)
		}
	}
}

// setRuled begins or ends that a Rule orders the queue. What waits then goes
// first, in order of arrival; gone is as retype's.
func (s *store) setRuled(ruled bool, gone []bool) {
	if s.ruled != ruled {
		s.ruled = ruled
		s.retype(s.kind, gone)
	}
}

// all is what waits, in order of arrival, each item once.
func (s *store) all() []item {
	var all []item
	for k := range s.lanes {
		if order := s.lanes[k].order; order != nil {
			all = append(all, order.all()...)
		}
		for _, d := range s.lanes[k].levels {
			for j := range d.count {
				all = append(all, d.items[(d.first+j)%len(d.items)])
			}
		}
	}
	slices.SortFunc(all, func(a, b item) int { return cmp.Compare(a.seq, b.seq) })
	return slices.CompactFunc(all, func(a, b item) bool { return a.seq == b.seq })
}

// next is what waits, in the order in which it would be taken.
func (s *store) next() []item {
	all := s.all()
	if s.ruled {
		slices.SortStableFunc(all, func(a, b item) int { return cmp.Compare(a.rank, b.rank) })
		return all
	}
	switch s.kind {
	case QueueLifo:
		slices.Reverse(all)
	case QueuePriority:
		slices.SortStableFunc(all, func(a, b item) int { return b.priority() - a.priority() })
	}
	return all
}

// remove takes items out of the queue, out of every taker's fifo.
func (s *store) remove(items []item) {
	out := make(map[uint64]bool, len(items))
	for _, it := range items {
		out[it.seq] = true
	}
	for k := range s.lanes {
		l := &s.lanes[k]
		if l.order != nil {
			all := l.order.all()
			*l = s.newLane()
			for _, it := range all {
				if !out[it.seq] {
					l.push(it)
				}
			}
		}
		for level := range l.levels {
			for range l.levels[level].count { // once round: what stays goes to the back
				if it := l.pop(false, level); !out[it.seq] {
					l.push(it)
				}
			}
		}
	}
}

// lane is where a taker's items wait: for all takers the same one, but of
// broadcast.
type lane struct {
	order  *ranked   // where a Rule orders; else nil, and
	levels []deque   // by priority; one where there is none
	filled [4]uint64 // bit k of word k/64: level k has items
	count  int
	bytes  uint64
	gone   bool

	closing bool // nothing new enters it
}

// open says that items enter.
func (l *lane) open() bool { return !l.gone && !l.closing }

// offer puts an item into the queue, as the type and the policy say. One that is
// bigger than the capacity, which may have shrunk since it was enqueued, has room
// in an empty queue.
func (s *store) offer(it item) verdict {
	size := it.size()
	it.seq = s.seq
	s.seq++
	if it.drop {
		if s.full == FullFail && !it.firm {
			s.refusals++
			return refused
		}
		s.dropped++
		return accepted
	}
	if s.kind == QueueLatest {
		l := &s.lanes[0]
		for l.count > 0 {
			l.pop(false, 0)
			s.dropped++
		}
		l.push(it)
		return accepted
	}
	if s.full == FullBlock || s.full == FullFail {
		for k := range s.lanes {
			if l := &s.lanes[k]; l.open() && !s.fits(l, size) {
				if s.full == FullBlock || it.firm {
					return blocked
				}
				s.refusals++
				return refused
			}
		}
	}
	for k := range s.lanes {
		if l := &s.lanes[k]; l.open() && s.makeRoom(l, it, size) {
			l.push(it)
		}
	}
	return accepted
}

func (s *store) fits(l *lane, size uint64) bool {
	return l.count == 0 || l.bytes+size <= s.capacity
}

// makeRoom drops what the policy drops, and says whether the item gets in.
func (s *store) makeRoom(l *lane, it item, size uint64) bool {
	for !s.fits(l, size) {
		if l.order != nil {
			s.dropped++
			if s.full != FullDropOldest || it.rank > l.order.last() {
				return false
			}
			l.ranked(rankedLast)
			continue
		}
		lowest := l.lowest()
		if s.full != FullDropOldest || s.kind == QueuePriority && it.priority() < lowest {
			s.dropped++
			return false
		}
		l.pop(false, lowest)
		s.dropped++
	}
	return true
}

// take gives the next item for a taker.
func (s *store) take(taker int) (item, bool) {
	l := s.lane(taker)
	if l.count == 0 {
		return item{}, false
	}
	if l.order != nil {
		return l.ranked(rankedFirst), true
	}
	return l.pop(s.kind == QueueLifo, l.highest()), true
}

// leave says that a taker takes no more; of broadcast its items go with it.
func (s *store) leave(taker int) {
	if s.kind == QueueBroadcast {
		l := s.lane(taker)
		*l = lane{gone: true}
	}
}

// empty says that there is nothing for a taker.
func (s *store) empty(taker int) bool { return s.lane(taker).count == 0 }

func (s *store) lane(taker int) *lane {
	if s.kind == QueueBroadcast {
		return &s.lanes[taker]
	}
	return &s.lanes[0]
}

// count is how many items wait, of broadcast over all fifos.
func (s *store) count() (n int) {
	for k := range s.lanes {
		n += s.lanes[k].count
	}
	return n
}

// depth is the items and bytes that wait; of broadcast in the fullest fifo.
func (s *store) depth() (items int, bytes uint64) {
	for k := range s.lanes {
		items, bytes = max(items, s.lanes[k].count), max(bytes, s.lanes[k].bytes)
	}
	return items, bytes
}

func (l *lane) push(it item) {
	if l.order != nil {
		l.order.push(it)
		l.count++
		l.bytes += it.size()
		return
	}
	level := 0
	if len(l.levels) > 1 {
		level = it.priority()
	}
	l.levels[level].push(it)
	l.filled[level/64] |= 1 << (level % 64)
	l.count++
	l.bytes += it.size()
}

// pop takes the oldest item of a level that has one, or its newest.
func (l *lane) pop(newest bool, level int) item {
	d := &l.levels[level]
	it := d.pop(newest)
	if d.count == 0 {
		l.filled[level/64] &^= 1 << (level % 64)
	}
	l.count--
	l.bytes -= it.size()
	return it
}

// ranked takes what is at an end where a Rule orders.
func (l *lane) ranked(end int) item {
	it := l.order.pop(end)
	l.count--
	l.bytes -= it.size()
	return it
}

// highest is the highest level that has items; there is one.
func (l *lane) highest() int {
	for k := len(l.filled) - 1; k > 0; k-- {
		if l.filled[k] != 0 {
			return k*64 + bits.Len64(l.filled[k]) - 1
		}
	}
	return bits.Len64(l.filled[0]) - 1
}

// lowest is the lowest level that has items; there is one.
func (l *lane) lowest() int {
	for k, word := range l.filled {
		if word != 0 {
			return k*64 + bits.TrailingZeros64(word)
		}
	}
	return 0
}

// deque is items in a circle: oldest at first.
type deque struct {
	items        []item
	first, count int
}

func (d *deque) push(it item) {
	if d.count == len(d.items) {
		grown := make([]item, max(8, 2*d.count))
		n := copy(grown, d.items[d.first:])
		copy(grown[n:], d.items[:d.first])
		d.items, d.first = grown, 0
	}
	d.items[(d.first+d.count)%len(d.items)] = it
	d.count++
}

func (d *deque) pop(newest bool) item {
	at := d.first
	if newest {
		at = (d.first + d.count - 1) % len(d.items)
	} else {
		d.first = (d.first + 1) % len(d.items)
	}
	it := d.items[at]
	d.items[at] = item{} // so that its bytes can go
	if d.count--; d.count == 0 && len(d.items) > 1024 {
		d.items, d.first = nil, 0
	}
	return it
}
