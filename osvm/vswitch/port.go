package vswitch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// Port is one connection of a switch.
type Port struct {
	of     *Switch
	name   string
	trunk  bool
	mac    MAC // a guest's
	note   string
	conn   net.Conn
	rate   Rate      // a guest's
	paid   time.Time // by when all that it has sent would be through at its rate; read's alone
	floods *rate.Limiter
	counts counts
	done   chan struct{}

	mu      sync.Mutex // guards what follows
	filled  *sync.Cond
	waiting []byte // frames as they are to be written
	reason  error  // why the port is no more
}

// Rate is how much a guest may send. What is 0 is as much as a port ever may.
type Rate struct {
	Bytes  int // a second
	Frames int // a second, each counted for every port that it goes to
}

// within is the rate as a port has it.
func (r Rate) within() Rate {
	if r.Bytes <= 0 || r.Bytes > bytesMost {
		r.Bytes = bytesMost
	}
	if r.Frames <= 0 || r.Frames > framesMost {
		r.Frames = framesMost
	}
	return r
}

// cost is how long such a frame takes at this rate.
func (r Rate) cost(bytes, copies int) time.Duration {
	return max(time.Duration(bytes)*time.Second/time.Duration(r.Bytes), time.Duration(copies)*time.Second/time.Duration(r.Frames))
}

// counts are of frames.
type counts struct{ in, out, dropped, spoofed, stormed, malformed atomic.Int64 }

// Counts is what has passed a port, in frames.
type Counts struct {
	In, Out   int64 // from it, and to it
	Dropped   int64 // that were to go to it, and it did not take in time
	Spoofed   int64 // from it, by an address that it may not use
	Stormed   int64 // from it to all, more than it may send
	Malformed int64 // from it, too short or longer than the network's
}

// Counts says what has passed so far.
func (p *Port) Counts() Counts {
	c := &p.counts
	return Counts{c.in.Load(), c.out.Load(), c.dropped.Load(), c.spoofed.Load(), c.stormed.Load(), c.malformed.Load()}
}

// Done is closed when the port is no more; Err then says why.
func (p *Port) Done() <-chan struct{} { return p.done }

// Err is nil while the port is there.
func (p *Port) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reason
}

// Close ends the port and its connection.
func (p *Port) Close() { p.cut(ErrClosed) }

// cut ends the port, once.
func (p *Port) cut(reason error) {
	p.mu.Lock()
	first := p.reason == nil
	if first {
		p.reason = fmt.Errorf("%s: %w", p.name, reason)
		p.waiting = nil
	}
	p.filled.Broadcast()
	p.mu.Unlock()
	if !first {
		return
	}
	_ = p.conn.Close()
	p.of.remove(p)
	close(p.done)
}

// read passes on what comes from the other side, until that ends.
func (p *Port) read() {
	p.cut(frames(p.conn, func(frame []byte) {
		if frame == nil {
			p.counts.malformed.Add(1)
			p.pay(lengthMost, 1)
			return
		}
		p.pay(len(frame), p.of.forward(p, frame))
	}))
}

// pay has a guest that sends faster than it may wait: what stays in its connection
// costs nobody anything, and when that is full, it is the guest's own card that waits.
// A trunk brings what other nodes have let pass.
func (p *Port) pay(bytes, copies int) {
	if p.trunk {
		return
	}
	now := p.of.config.Now()
	if ready := now.Add(-rateCredit); p.paid.Before(ready) {
		p.paid = ready
	}
	p.paid = p.paid.Add(p.rate.cost(bytes, max(1, copies)))
	if ahead := p.paid.Sub(now); ahead >= rateRest {
		select {
		case <-p.of.config.After(ahead):
		case <-p.done:
		}
	}
}

// frames reads frame after frame; each is good until take returns. A nil one was
// too short or too long for the network, and is left out. It never returns nil.
func frames(from io.Reader, take func(frame []byte)) error {
	const buffer = 64 << 10 // several frames for one look at the connection
	reader := bufio.NewReaderSize(from, buffer)
	for {
		head, err := reader.Peek(lengthSize)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) > 0 {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		length := int(binary.BigEndian.Uint32(head))
		switch {
		case length == 0 || length > lengthMost:
			return fmt.Errorf("%w: one is said to have %d bytes", ErrGarbage, length)
		case length < headSize || length > FrameMost:
			if _, err := reader.Discard(lengthSize + length); err != nil {
				return within(err)
			}
			take(nil)
			continue
		}
		whole, err := reader.Peek(lengthSize + length)
		if err != nil {
			return within(err)
		}
		take(whole[lengthSize:])
		_, _ = reader.Discard(lengthSize + length)
	}
}

// within is how a connection ends that ends within a frame.
func within(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// put has a frame wait for the port, or drops it where too many do.
func (p *Port) put(frame []byte) { p.queue(frame, queueMost) }

// announce is put for what switches tell each other, which nobody says again: there is
// room for it where there is none for frames.
func (p *Port) announce(frame []byte) { p.queue(frame, queueMost+announcedMost) }

func (p *Port) queue(frame []byte, most int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason != nil || len(p.waiting)+lengthSize+len(frame) > most {
		p.counts.dropped.Add(1)
		return
	}
	p.waiting = binary.BigEndian.AppendUint32(p.waiting, uint32(len(frame)))
	p.waiting = append(p.waiting, frame...)
	p.counts.out.Add(1)
	p.filled.Signal()
}

// write sends what waits, all of it at once, until the port ends. A guest may stand
// still for as long as it likes; a trunk that takes nothing is dead.
func (p *Port) write() {
	var out []byte
	for {
		p.mu.Lock()
		for len(p.waiting) == 0 && p.reason == nil {
			p.filled.Wait()
		}
		if p.reason != nil {
			p.mu.Unlock()
			return
		}
		out, p.waiting = p.waiting, out[:0]
		p.mu.Unlock()
		if p.trunk {
			_ = p.conn.SetWriteDeadline(time.Now().Add(trunkPatience))
		}
		if _, err := p.conn.Write(out); err != nil {
			p.cut(err)
			return
		}
	}
}
