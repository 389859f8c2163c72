package queuevm

import (
	"io"
	"net"
	"time"
)

const (
	strangers     = 256              // connections that have not proven anything yet
	strangersTime = 10 * time.Second // and how long they may take
)

// accept takes connections to the proxy's port: peers, and plain sockets with
// a token. It returns when the listener is closed.
func (vm *VM) accept() {
	defer vm.tasks.Done()
	places := make(chan struct{}, strangers)
	for {
		conn, err := vm.listener.Accept()
		if err != nil {
			select {
			case <-vm.done:
				return
			case <-time.After(10 * time.Millisecond): // out of descriptors, most likely
				continue
			}
		}
		select {
		case places <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		vm.tasks.Add(1)
		go func() {
			defer vm.tasks.Done()
			// A stranger must not outlive Close.
			settled := make(chan struct{})
			defer close(settled)
			go func() {
				select {
				case <-vm.done:
					_ = conn.SetDeadline(time.Now())
				case <-settled:
				}
			}()
			vm.welcome(conn, func() { <-places })
		}()
	}
}

// welcome finds out who is there by the first bytes. proven is called once the
// connection is a stranger's no longer, or is over.
func (vm *VM) welcome(conn net.Conn, proven func()) {
	_ = conn.SetDeadline(time.Now().Add(strangersTime))
	head := make([]byte, len(socketMagic))
	if _, err := io.ReadFull(conn, head); err != nil {
		proven()
		_ = conn.Close()
		return
	}
	if string(head) == socketMagic {
		vm.serveSocket(conn, proven)
		return
	}
	defer proven()
	select {
	case <-vm.told:
	case <-vm.done:
		_ = conn.Close()
		return
	case <-time.After(strangersTime):
		_ = conn.Close()
		return
	}
	plain := string(head) == greetingMagic || string(head) == directMagic || string(head) == bothMagic || string(head) == movedMagic // else it is TLS, or nonsense
	if plain && !vm.open(conn) {
		vm.logf("a connection from %v is refused: it is not encrypted", conn.RemoteAddr())
		_ = conn.Close()
		return
	}
	secured, theirs, err := vm.key.accept(&replayed{Conn: conn, head: head}, plain, vm.config.Self, vm.mayDial, vm.takes, vm.knows)
	if err == nil {
		if r, ok := secured.(*replayed); ok {
			secured = r.Conn // nothing is left of what was read ahead
		}
		vm.mu.Lock()
		p := vm.peers[string(theirs.id)]
		if len(theirs.address) > 0 {
			p.Address = string(theirs.address)
		}
		vm.mu.Unlock()
		if len(theirs.direct) > 0 {
			err = vm.adopt(p, theirs.direct, conn, secured)
		} else {
			err = vm.attach(p, conn, secured, theirs)
		}
	}
	if err != nil {
		vm.logf("a connection from %v is refused: %v", conn.RemoteAddr(), err)
		_ = conn.Close()
	}
}

// replayed gives the first bytes, which told who is there, once more.
type replayed struct {
	net.Conn
	head []byte
}

func (r *replayed) Read(b []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(b, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	return r.Conn.Read(b)
}

// mayDial is the fingerprint of a peer that dials this node: the lower id, or one
// that is not where this node would dial it.
func (vm *VM) mayDial(g greeting) (string, bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	id := string(g.id)
	p := vm.peers[id]
	if p == nil || p.Fingerprint == "" || id >= vm.config.Self && len(g.address) == 0 {
		return "", false
	}
	if _, _, err := net.SplitHostPort(string(g.address)); err != nil && len(g.address) > 0 {
		return "", false
	}
	return p.Fingerprint, true
}

// takes says what a peer's connection comes to. One that was reported lost is, for
// good. A direct channel may be known there before it is here; to take the connection
// and then close it would leave the peer with a dead one.
func (vm *VM) takes(theirs greeting) byte {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	p := vm.peers[string(theirs.id)]
	switch {
	case p == nil || p.gone:
		return givenUp
	case len(theirs.direct) > 0 && vm.awaited(p, theirs.direct) != nil:
		return notNow
	case len(theirs.direct) == 2 && vm.channels[theirs.direct[0]].direct.back() != vm.channels[theirs.direct[1]].direct:
		return apart
	}
	return welcomed
}

func (vm *VM) knows(fingerprint string) bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for _, p := range vm.peers {
		if p.Fingerprint == fingerprint && fingerprint != "" {
			return true
		}
	}
	return false
}
