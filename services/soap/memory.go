package soap

import (
	"context"
	"time"
)

const (
	// smallBody is up to how many bytes a request is read without asking for
	// memory, so that small calls never wait behind large ones.
	smallBody = 64 << 10

	memoryPart = 64 << 10
)

// memory is what all large requests may take together. It is given out whole,
// to one request after the other, so that none waits for a part while it holds
// another.
type memory struct {
	turn  chan struct{} // holds a value while somebody takes
	parts chan struct{} // holds a value for each part that is taken
}

func newMemory(bytes int64) *memory {
	return &memory{turn: make(chan struct{}, 1), parts: make(chan struct{}, (bytes+memoryPart-1)/memoryPart)}
}

// take waits for room for so many bytes and returns what to give back; 0 when
// ctx or patience ended first.
func (m *memory) take(ctx context.Context, bytes int64, patience time.Duration) int {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case m.turn <- struct{}{}:
	case <-ctx.Done():
		return 0
	case <-timer.C:
		return 0
	}
	defer func() { <-m.turn }()
	want := int((bytes + memoryPart - 1) / memoryPart)
	for n := range want {
		select {
		case m.parts <- struct{}{}:
			continue
		case <-ctx.Done():
		case <-timer.C:
		}
		m.give(n)
		return 0
	}
	return want
}

func (m *memory) give(parts int) {
	for range parts {
		<-m.parts
	}
}
