package link

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"
	"time"
)

// Inside is the guest's side of its connections: it leads those that the host
// makes to where they are to go, and makes others out through the host. Sessions
// come and go beneath it: connections of the old one are cut, and whoever dials
// again gets one of the new.
type Inside struct {
	agent func(net.Conn)

	mu        sync.Mutex // guards what follows
	session   *Session   // nil between two
	changed   chan struct{}
	published map[int]*publication

	telling sync.Mutex // held while somebody is told that a host listens elsewhere
}

// publication is a port that hosts listen for.
type publication struct {
	address string // the latest; "" before the first
	moved   func(address string)
}

// NewInside makes the guest's side. agent serves the connections that are for
// the agent, and closes them.
func NewInside(agent func(net.Conn)) *Inside {
	return &Inside{agent: agent, changed: make(chan struct{}), published: map[int]*publication{}}
}

// Serve takes a session until it ends; it is the handle of package link's Serve.
func (i *Inside) Serve(s *Session) {
	if !i.take(s) {
		return
	}
	defer i.drop(s)
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		go i.lead(conn)
	}
}

// take makes a session the current one, and has the host listen again for what
// this guest publishes. False: it is over already.
func (i *Inside) take(s *Session) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	select {
	case <-s.Ended():
		return false
	default:
	}
	i.session = s
	close(i.changed)
	i.changed = make(chan struct{})
	for port := range i.published {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), wordLimit)
			defer cancel()
			if conn, err := s.Open(); err == nil {
				answer, err := ask(ctx, conn, word{Publish: port})
				_ = conn.Close()
				if err == nil {
					i.learn(s, port, answer.Address)
				}
			}
		}()
	}
	return true
}

// learn notes where a session's host listens, and tells who published.
func (i *Inside) learn(s *Session, port int, address string) {
	i.telling.Lock()
	defer i.telling.Unlock()
	i.mu.Lock()
	p := i.published[port]
	if p == nil || i.session != s || p.address == address {
		i.mu.Unlock()
		return
	}
	before := p.address
	p.address = address
	i.mu.Unlock()
	if before != "" && p.moved != nil { // else Publish answers it
		p.moved(address)
	}
}

func (i *Inside) drop(s *Session) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.session == s {
		i.session = nil
	}
}

// lead brings a connection of the host's to where its word says.
func (i *Inside) lead(conn net.Conn) {
	var w word
	_ = conn.SetReadDeadline(time.Now().Add(wordLimit))
	err := hear(conn, &w)
	_ = conn.SetReadDeadline(time.Time{})
	switch {
	case err == nil && w.To == toAgent:
		i.agent(conn)
	case err == nil && w.To == toPort:
		local, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(w.Port)))
		if err != nil {
			_ = conn.Close()
			return
		}
		Splice(conn, local)
	default:
		_ = conn.Close()
	}
}

// again is how soon a guest asks again on the same session.
const again = 50 * time.Millisecond

// open asks the host for something on a connection of its own, of this session
// or the next ones, as long as ctx allows.
func (i *Inside) open(ctx context.Context, w word) (net.Conn, reply, error) {
	var last error
	for {
		i.mu.Lock()
		s, changed := i.session, i.changed
		i.mu.Unlock()
		err := errNoSession
		var soon <-chan time.Time
		if s != nil {
			var conn net.Conn
			if conn, err = s.Open(); err == nil {
				var answer reply
				if answer, err = ask(ctx, conn, w); err == nil {
					return conn, answer, nil
				}
				_ = conn.Close()
				var refused *RefusedError
				if errors.As(err, &refused) || ctx.Err() != nil {
					return nil, reply{}, err
				}
			}
			select {
			case <-s.Ended():
				i.drop(s)
			default: // only this connection was cut
				soon = time.After(again)
			}
		}
		last = err
		select {
		case <-changed:
		case <-soon:
		case <-ctx.Done():
			return nil, reply{}, errors.Join(context.Cause(ctx), last)
		}
	}
}

// Dial connects to host:port as the host sees the network, or to the host itself
// at RelayAddress with or without a port. While there is no host it waits.
func (i *Inside) Dial(ctx context.Context, address string) (net.Conn, error) {
	conn, _, err := i.open(ctx, word{Dial: address})
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "uplink", Err: errors.Join(errors.New(address), err)}
	}
	return conn, nil
}

// Publish has the host listen for a port of this guest's loopback as long as the
// VM lives, and answers where. Another host, after the VM has moved, may listen
// elsewhere: then moved, unless it is nil, is called with where that is. Asked
// again for the same port, it answers the same.
func (i *Inside) Publish(ctx context.Context, port int, moved func(address string)) (address string, err error) {
	i.mu.Lock()
	p := i.published[port]
	fresh := p == nil
	if fresh { // so that a host which comes meanwhile is asked as well
		p = &publication{moved: moved}
		i.published[port] = p
	}
	i.mu.Unlock()
	conn, answer, err := i.open(ctx, word{Publish: port})
	if err == nil {
		_ = conn.Close()
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if err != nil {
		if fresh && i.published[port] == p {
			delete(i.published, port)
		}
		return "", err
	}
	if p.address == "" {
		p.address = answer.Address
	}
	return p.address, nil
}

// Withdraw ends what Publish began.
func (i *Inside) Withdraw(ctx context.Context, port int) error {
	i.mu.Lock()
	delete(i.published, port)
	i.mu.Unlock()
	conn, _, err := i.open(ctx, word{Withdraw: port})
	if err == nil {
		_ = conn.Close()
	}
	return err
}

// ServeDials lets other processes of the guest dial through the host: each
// connection to the listener begins with the line that a connection of the link
// does, and then is what it asked for. It returns when the listener fails.
func (i *Inside) ServeDials(listener net.Listener) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go i.dialFor(conn)
	}
}

// dialLimit is how long a process may wait for a connection.
const dialLimit = 30 * time.Second

func (i *Inside) dialFor(conn net.Conn) {
	var w word
	_ = conn.SetReadDeadline(time.Now().Add(wordLimit))
	if err := hear(conn, &w); err != nil || w.Dial == "" {
		_ = conn.Close()
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	out, err := i.Dial(ctx, w.Dial)
	cancel()
	if err != nil {
		_ = tell(conn, reply{Error: err.Error()})
		_ = conn.Close()
		return
	}
	if err := tell(conn, reply{}); err != nil {
		_ = conn.Close()
		_ = out.Close()
		return
	}
	Splice(conn, out)
}
