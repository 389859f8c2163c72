package qmp

import (
	"context"
	"sync"

	"github.com/digitalocean/go-qemu/qmp"
)

// streamMax bounds the events that wait for a listener. One that does not
// listen loses the oldest: QEMU's state can always be asked for.
const streamMax = 1024

// stream is the way of events to one listener.
type stream struct {
	news chan struct{} // holds a token when something changed

	mu     sync.Mutex // guards what follows
	events []qmp.Event
	ended  bool
}

func (s *stream) add(event qmp.Event) {
	s.mu.Lock()
	if len(s.events) == streamMax {
		s.events = s.events[1:]
	}
	s.events = append(s.events, event)
	s.mu.Unlock()
	s.tell()
}

func (s *stream) end() {
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.tell()
}

func (s *stream) tell() {
	select {
	case s.news <- struct{}{}:
	default:
	}
}

func (s *stream) take() (event qmp.Event, ok, ended bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.events) == 0 {
		return event, false, s.ended
	}
	event, s.events = s.events[0], s.events[1:]
	return event, true, false
}

// Events tells of all that happens from now on, in order, until ctx ends or the
// connection does; then the channel is closed. Who does not listen for 1,024
// events loses the oldest of them and holds up nobody.
func (m *Monitor) Events(ctx context.Context) (<-chan qmp.Event, error) {
	s := &stream{news: make(chan struct{}, 1)}
	m.mu.Lock()
	if m.failure != nil {
		m.mu.Unlock()
		return nil, m.failure
	}
	m.streams[s] = struct{}{}
	m.mu.Unlock()
	out := make(chan qmp.Event)
	go func() {
		defer close(out)
		defer func() {
			m.mu.Lock()
			delete(m.streams, s)
			m.mu.Unlock()
		}()
		for {
			event, ok, ended := s.take()
			switch {
			case ok:
				select {
				case out <- event:
				case <-ctx.Done():
					return
				}
			case ended:
				return
			default:
				select {
				case <-s.news:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out, nil
}
