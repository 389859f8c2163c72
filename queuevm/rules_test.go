package queuevm

import (
	"fmt"
	"slices"
	"testing"
)

// model is the queue rules said in the plainest way: lists that are searched
// from end to end.
type model struct {
	kind     QueueType
	full     FullPolicy
	capacity int
	lists    [][]item // in order of arrival; of broadcast one a taker
	gone     []bool
	dropped  int
	refused  int
}

func bytesOf(list []item) (n int) {
	for _, it := range list {
		n += (len(it.data) + 8 + 7) / 8 * 8
	}
	return n
}

func (m *model) fits(list []item, it item) bool {
	return bytesOf(list)+bytesOf([]item{it}) <= m.capacity
}

func (m *model) offer(it item) verdict {
	if m.kind == QueueLatest {
		m.dropped += len(m.lists[0])
		m.lists[0] = []item{it}
		return accepted
	}
	for k, list := range m.lists {
		if !m.gone[k] && !m.fits(list, it) {
			switch m.full {
			case FullBlock:
				return blocked
			case FullFail:
				m.refused++
				return refused
			}
		}
	}
	for k := range m.lists {
		if m.gone[k] {
			continue
		}
		list := append(slices.Clone(m.lists[k]), it)
		for bytesOf(list) > m.capacity {
			victim := len(list) - 1
			if m.full == FullDropOldest {
				victim = 0
				for at, other := range list {
					if m.kind == QueuePriority && other.priority() < list[victim].priority() {
						victim = at
					}
				}
			}
			list = slices.Delete(list, victim, victim+1)
			m.dropped++
		}
		m.lists[k] = list
	}
	return accepted
}

func (m *model) take(taker int) (item, bool) {
	k := 0
	if m.kind == QueueBroadcast {
		k = taker
	}
	list := m.lists[k]
	if len(list) == 0 {
		return item{}, false
	}
	at := 0
	switch m.kind {
	case QueueLifo:
		at = len(list) - 1
	case QueuePriority:
		for j, it := range list {
			if it.priority() > list[at].priority() {
				at = j
			}
		}
	}
	it := list[at]
	m.lists[k] = slices.Delete(slices.Clone(list), at, at+1)
	return it, true
}

func (m *model) leave(taker int) {
	if m.kind == QueueBroadcast {
		m.gone[taker], m.lists[taker] = true, nil
	}
}

var (
	everyType   = []QueueType{QueueFifo, QueueWork, QueueLifo, QueuePriority, QueueLatest, QueueBroadcast}
	everyPolicy = []FullPolicy{FullBlock, FullDropNewest, FullDropOldest, FullFail}
)

// check runs one script of operations, a byte or two each, on store and model.
func check(t *testing.T, kind QueueType, full FullPolicy, script []byte) {
	const capacity, takers = 256, 3
	s := newStore(kind, full, capacity, takers)
	m := &model{kind: kind, full: full, capacity: capacity, lists: make([][]item, len(s.lanes)), gone: make([]bool, takers)}
	for at := 0; at < len(script); at++ {
		op := script[at]
		switch {
		case op < 160: // an item: its number, a length from the byte, a priority of a few
			size := int(op) * int(mostOf(capacity)) / 159
			it := item{meta: uint32(at%5) << 4, data: []byte(fmt.Sprintf("%*d", size, at))[:size]}
			if size >= 4 {
				copy(it.data, fmt.Sprintf("%04d", at))
			}
			if got, want := s.offer(it), m.offer(it); got != want {
				t.Fatalf("%s, %s, step %d: offer of %d bytes gives %d, not %d", kind, full, at, size, got, want)
			}
		case op < 250:
			taker := int(op) % takers
			if kind == QueueBroadcast && m.gone[taker] {
				continue
			}
			got, ok := s.take(taker)
			want, wantOK := m.take(taker)
			if ok != wantOK || string(got.data) != string(want.data) || got.meta != want.meta {
				t.Fatalf("%s, %s, step %d: taker %d gets %q (%t), not %q (%t)", kind, full, at, taker, got.data, ok, want.data, wantOK)
			}
		default:
			s.leave(int(op) % takers)
			m.leave(int(op) % takers)
		}
		count, bytes := s.depth()
		most, mostBytes := 0, 0
		for _, list := range m.lists {
			most, mostBytes = max(most, len(list)), max(mostBytes, bytesOf(list))
		}
		if count != most || bytes != uint64(mostBytes) || bytes > capacity {
			t.Fatalf("%s, %s, step %d: %d items of %d bytes wait, not %d of %d", kind, full, at, count, bytes, most, mostBytes)
		}
	}
	if s.dropped != uint64(m.dropped) || s.refusals != uint64(m.refused) {
		t.Fatalf("%s, %s: dropped %d, refused %d, not %d and %d", kind, full, s.dropped, s.refusals, m.dropped, m.refused)
	}
}

// FuzzQueueRules compares the rules with a model that is too plain to be wrong.
func FuzzQueueRules(f *testing.F) {
	f.Add([]byte{10, 20, 30, 200, 10, 159, 255, 40, 201, 202, 159, 159, 0, 0, 249, 248})
	for k := range 8 {
		script := make([]byte, 400)
		x := uint32(k + 1)
		for j := range script {
			x = x*1664525 + 1013904223
			script[j] = byte(x >> 24)
			if j%97 != 96 && script[j] >= 250 {
				script[j] -= 20
			}
		}
		f.Add(script)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 2000 {
			return
		}
		for _, kind := range everyType {
			for _, full := range everyPolicy {
				check(t, kind, full, script)
			}
		}
	})
}
