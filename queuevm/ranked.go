package queuevm

import (
	"container/heap"
	"slices"
)

// ranked is a taker's items where a Rule gives them their places.
type ranked struct{ ends [2]rankHeap }

// The ends of a ranked lane: what goes first, and what is dropped first, which is
// the oldest of the highest rank.
const (
	rankedFirst = iota
	rankedLast
)

// place is an item in both heaps.
type place struct {
	item
	at [2]int
}

// rankHeap has the place at its end of the lane in front (container/heap).
type rankHeap struct {
	end    int
	places []*place
}

func newRanked() *ranked {
	return &ranked{[2]rankHeap{{end: rankedFirst}, {end: rankedLast}}}
}

func (r *ranked) push(it item) {
	p := &place{item: it}
	for end := range r.ends {
		heap.Push(&r.ends[end], p)
	}
}

// pop takes the item at an end; there is one.
func (r *ranked) pop(end int) item {
	p := heap.Pop(&r.ends[end]).(*place)
	heap.Remove(&r.ends[1-end], p.at[1-end])
	return p.item
}

// last is the rank at the end that is dropped first; there is an item.
func (r *ranked) last() uint64 { return r.ends[rankedLast].places[0].rank }

// all is what waits, in no order.
func (r *ranked) all() (items []item) {
	for _, p := range r.ends[rankedFirst].places {
		items = append(items, p.item)
	}
	return items
}

// Len is heap.Interface's.
func (h *rankHeap) Len() int { return len(h.places) }

// Less is heap.Interface's.
func (h *rankHeap) Less(i, j int) bool {
	a, b := h.places[i], h.places[j]
	if a.rank != b.rank {
		return a.rank < b.rank == (h.end == rankedFirst)
	}
	return a.seq < b.seq
}

// Swap is heap.Interface's.
func (h *rankHeap) Swap(i, j int) {
	h.places[i], h.places[j] = h.places[j], h.places[i]
	h.places[i].at[h.end], h.places[j].at[h.end] = i, j
}

// Push is heap.Interface's.
func (h *rankHeap) Push(x any) {
	p := x.(*place)
	p.at[h.end] = len(h.places)
	h.places = append(h.places, p)
}

// Pop is heap.Interface's.
func (h *rankHeap) Pop() any {
	n := len(h.places) - 1
	p := h.places[n]
	h.places[n] = nil // so that its bytes can go
	h.places = slices.Delete(h.places, n, n+1)
	return p
}
