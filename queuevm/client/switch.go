package client

import (
	"fmt"
	"sync/atomic"
	"syscall"
)

// A port outlives its rings: while the job runs its edge may be given another
// one, or be led to another process. The daemon says so in the ring's header, and
// gives the next ring out over the control socket.

// leads says whether the port leads the way of e, which an edge may have given it
// since it was opened. The caller has the turn of that way.
func (p *Port) leads(e *end) bool {
	if e.header != nil {
		return true
	}
	s := &current
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, fds, err := s.ask("open " + p.name)
	if err != nil {
		return false
	}
	defer closeAll(fds)
	var sizes [2]uint64
	if n, _ := fmt.Sscanf(answer, "ok %d %d", &sizes[0], &sizes[1]); n != 2 {
		return false
	}
	at, size := 1, sizes[0]
	if e == &p.in {
		if sizes[0] != 0 {
			at++
		}
		size = sizes[1]
	}
	if size == 0 || at >= len(fds) || e.open(fds[at], size) != nil {
		return false
	}
	e.resume(e == &p.out, s.bell)
	if s.connectSockets(p) != nil {
		e.header = nil
		return false
	}
	p.note(e)
	return true
}

// note keeps what others may ask of a way without having its turn.
func (p *Port) note(e *end) {
	if e == &p.out {
		p.largestOut.Store(int64(e.largest()))
		p.leadsOut.Store(e.header != nil)
		return
	}
	p.largestIn.Store(int64(e.largest()))
	p.leadsIn.Store(e.header != nil)
}

// goOn goes on with the ring that follows that of e. The caller has the turn of
// that way.
func (p *Port) goOn(e *end) error {
	way, none := "in", ErrEnd
	if e == &p.out {
		way, none = "out", ErrClosed
	}
	s := &current
	s.mu.Lock()
	defer s.mu.Unlock()
	answer, fds, err := s.ask(fmt.Sprintf("next %s %d %s", way, e.channel, p.name))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	defer closeAll(fds)
	var capacity uint64
	if _, err := fmt.Sscanf(answer, "ok %d", &capacity); err != nil {
		return fmt.Errorf("the answer %q is not understood: %w", answer, err)
	}
	if capacity == 0 || len(fds) == 0 {
		return none
	}
	old, size, meta := e.header, e.capacity, e.meta
	var next end
	if err := next.open(fds[0], capacity); err != nil {
		return fmt.Errorf("the next ring of port %q could not be mapped: %w", p.name, err)
	}
	e.header, e.data, e.capacity, e.channel, e.served, e.most = next.header, next.data, capacity, next.channel, next.served, next.most
	e.meta = next.meta | meta&^metaAwaits
	e.quiet, e.held, e.holding, e.broken, e.asked, e.switched = 0, 0, false, false, false, false
	if e.direct != nil {
		_ = syscall.Close(e.direct.fd)
		e.direct = nil
	}
	e.owes.Store(false)
	e.resume(e == &p.out, s.bell)
	p.note(e)
	p.hops++
	old.unmap(size)
	return nil
}

// heed does what the daemon asks of a producer, between two items. The caller has
// the turn of the way out.
func (p *Port) heed() error {
	e := &p.out
	state := atomic.LoadUint32(&e.header.consumerState)
	if state&controlChanged != 0 {
		atomic.AndUint32(&e.header.consumerState, ^uint32(controlChanged)) // before it is read
		e.reread()
	}
	if state&controlSwitch == 0 {
		return nil
	}
	if !e.switched {
		e.switched = true
		atomic.OrUint32(&e.header.producerState, stateClosed|switched)
		e.wake(&e.header.consumerWaits)
		e.ring()
		e.direct.shut()
	}
	if atomic.LoadUint32(&e.header.next)&nextOut == 0 {
		return ErrClosed
	}
	return p.goOn(e)
}

// heeding calls a producer's call again for as long as the daemon has a word for it.
func (p *Port) heeding(call func() error) error {
	if !p.leads(&p.out) {
		return ErrDirection
	}
	for {
		err := call()
		p.out.deaf = false
		if err != errHeed {
			return err
		}
		if err := p.heed(); err != nil {
			return err
		}
	}
}

// enqueue enqueues one item. The caller has the turn of the way out.
func (p *Port) enqueue(item []byte, until deadline) error {
	e := &p.out
	if !p.leads(e) {
		return ErrDirection
	}
	for {
		err := e.put(item, until)
		e.deaf = false
		if err == nil {
			return e.verdict()
		}
		if err != errHeed {
			return err
		}
		if err := p.heed(); err != nil {
			return err
		}
	}
}

// taking calls a consumer's call again for as long as another ring follows.
func (p *Port) taking(call func() error) error {
	if !p.leads(&p.in) {
		return ErrDirection
	}
	for {
		err := call()
		if err == errHeed {
			err = p.goOn(&p.in)
			if err == nil {
				continue
			}
		}
		return err
	}
}

// dequeue takes one item. The caller has the turn of the way in.
func (p *Port) dequeue(buffer []byte, fixed bool, until deadline) ([]byte, error) {
	if !p.leads(&p.in) {
		return nil, ErrDirection
	}
	for {
		item, err := p.in.dequeue(buffer, fixed, until)
		if err != errHeed {
			return item, err
		}
		if err := p.goOn(&p.in); err != nil {
			return nil, err
		}
	}
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = syscall.Close(fd)
	}
}
