package soap

import (
	"context"
	"slices"
	"sync"
	"time"
)

// memory is what all large requests may take together. A request takes its
// part step by step, as it arrives. So that requests that hold a part each
// cannot all wait for the rest, one of them, the favoured, has all that a
// request may take set aside for it; the next one is favoured when it is done.
type memory struct {
	mu       sync.Mutex // guards what follows, and every claim of it
	free     int64      // bytes for everyone; what is set aside comes on top
	favoured *claim     // nil: nobody needs what is set aside
	waiting  []*claim   // the earliest request first
	last     int64      // number given to a claim
}

// claim is what one request holds of the memory.
type claim struct {
	memory  *memory
	number  int64         // in the order of requests
	held    int64         // bytes, without what was set aside
	want    int64         // bytes that it waits for
	granted chan struct{} // closed when it has them
}

// newMemory shares out total bytes among requests of one bytes at most each.
func newMemory(total, one int64) *memory { return &memory{free: total - one} }

// claim takes nothing yet. Release it in the end.
func (m *memory) claim() *claim {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last++
	return &claim{memory: m, number: m.last}
}

// take waits for so many bytes more, and says whether it got them before ctx
// or patience ended.
func (c *claim) take(ctx context.Context, bytes int64, patience time.Duration) bool {
	m := c.memory
	m.mu.Lock()
	if m.favoured == c {
		m.mu.Unlock()
		return true
	}
	c.want, c.granted = bytes, make(chan struct{})
	at, _ := slices.BinarySearchFunc(m.waiting, c.number, func(w *claim, number int64) int { return int(w.number - number) })
	m.waiting = slices.Insert(m.waiting, at, c)
	m.grant()
	m.mu.Unlock()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c.granted:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	at = slices.Index(m.waiting, c)
	if at < 0 {
		return true // granted in the last moment, perhaps the only one it had
	}
	m.waiting = slices.Delete(m.waiting, at, at+1)
	m.grant()
	return false
}

// grant gives the earliest what they wait for, as far as there is enough. The
// caller holds mu.
func (m *memory) grant() {
	for len(m.waiting) > 0 {
		c := m.waiting[0]
		switch {
		case c.want <= m.free:
			m.free -= c.want
			c.held += c.want
		case m.favoured == nil:
			m.favoured = c
		default:
			return
		}
		m.waiting = slices.Delete(m.waiting, 0, 1)
		close(c.granted)
	}
}

// wanted says whether anybody waits for memory that others hold.
func (m *memory) wanted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting) > 0
}

// release gives everything back.
func (c *claim) release() {
	m := c.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.free += c.held
	c.held = 0
	if m.favoured == c {
		m.favoured = nil
	}
	m.grant()
}
