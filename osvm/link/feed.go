package link

import (
	"io"
	"sync"
)

// feedMax bounds the bytes that wait for a session in the guest: then the pipe
// waits, and so the host. yamux reads on whatever its streams do, so that this
// is short.
const feedMax = 1 << 20

// feed is a pipe of bytes in memory, whose giver waits while it is full.
type feed struct {
	mu      sync.Mutex // guards all below
	changed *sync.Cond
	bytes   []byte
	reason  error // why there will be no more
}

func newFeed() *feed {
	f := &feed{}
	f.changed = sync.NewCond(&f.mu)
	return f
}

func (f *feed) give(payload []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.bytes) > feedMax && f.reason == nil {
		f.changed.Wait()
	}
	f.bytes = append(f.bytes, payload...)
	f.changed.Broadcast()
}

func (f *feed) end(reason error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.reason == nil {
		f.reason = reason
	}
	f.changed.Broadcast()
}

func (f *feed) Read(into []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for len(f.bytes) == 0 {
		if f.reason != nil {
			return 0, io.EOF
		}
		f.changed.Wait()
	}
	n := copy(into, f.bytes)
	if f.bytes = f.bytes[n:]; len(f.bytes) == 0 {
		f.bytes = nil
	}
	f.changed.Broadcast()
	return n, nil
}
