package link

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"sync"
	"time"
)

// OutsideConfig says what a host does for one guest.
type OutsideConfig struct {
	// Relay serves the guest's connections to RelayAddress, and closes them. Nil
	// refuses them.
	Relay func(net.Conn)
	// Dial connects to other addresses, or says why not; nil refuses all.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Listen listens for one of the guest's ports; known is where it was before,
	// "" for anywhere. Nil refuses.
	Listen func(port int, known string) (net.Listener, error)
	// Published is where ports were published before: a host that comes back
	// listens there again before the guest asks.
	Published map[int]string
	// Believed is what the guest is told of ports in place of where they are: one
	// that was restored may be to notice nothing of that.
	Believed map[int]string
}

// Bounds of what one guest may have of its host.
const (
	mostStreams = 256 // connections at once, each way
	mostPorts   = 64  // published
)

// Outside is the host's side of one guest's connections, over all sessions that
// the guest lives through.
type Outside struct {
	config OutsideConfig
	places chan struct{} // of the guest's connections
	visits chan struct{} // of those to its ports

	mu        sync.Mutex // guards what follows
	session   *Session   // nil between two
	changed   chan struct{}
	listeners map[int]net.Listener
	closed    bool
}

// NewOutside makes the host's side, and listens for what was published before.
func NewOutside(config OutsideConfig) (*Outside, error) {
	o := &Outside{config: config, places: make(chan struct{}, mostStreams), visits: make(chan struct{}, mostStreams),
		changed: make(chan struct{}), listeners: map[int]net.Listener{}}
	for port, address := range config.Published {
		if _, err := o.publish(port, address); err != nil {
			o.Close()
			return nil, fmt.Errorf("listen again for port %d of the guest: %w", port, err)
		}
	}
	return o, nil
}

// Serve takes the guest's connections until the session ends, which it does at
// once when Close was called. A newer session takes the place of an older one.
func (o *Outside) Serve(s *Session) {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		_ = s.Close()
		return
	}
	o.session = s
	close(o.changed)
	o.changed = make(chan struct{})
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.session == s {
			o.session = nil
		}
	}()
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		select {
		case o.places <- struct{}{}:
			go func() {
				defer func() { <-o.places }()
				o.serve(conn)
			}()
		default:
			_ = tell(conn, reply{Error: fmt.Sprintf("the guest has %d connections, which is all it may", mostStreams)})
			_ = conn.Close()
		}
	}
}

// serve does what one connection of the guest's asks for.
func (o *Outside) serve(conn net.Conn) {
	var w word
	_ = conn.SetReadDeadline(time.Now().Add(wordLimit))
	err := hear(conn, &w)
	_ = conn.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
	case w.Publish != 0:
		var address string
		if address, err = o.publish(w.Publish, ""); err == nil {
			if believed, told := o.config.Believed[w.Publish]; told {
				address = believed
			}
			_ = tell(conn, reply{Address: address})
		}
	case w.Withdraw != 0:
		o.withdraw(w.Withdraw)
		_ = tell(conn, reply{})
	case w.Dial != "":
		if o.dial(conn, w.Dial) {
			return
		}
		err = nil // it was told
	default:
		err = errors.New("a guest's connection is to dial or to publish")
	}
	if err != nil {
		_ = tell(conn, reply{Error: err.Error()})
	}
	_ = conn.Close()
}

// dial makes the connection that the guest asks for; true: it is, or was, made.
func (o *Outside) dial(conn net.Conn, address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		host = address
	}
	var out net.Conn
	switch {
	case host == RelayAddress && o.config.Relay != nil:
		if err := tell(conn, reply{}); err != nil {
			return false
		}
		o.config.Relay(conn)
		return true
	case o.config.Dial == nil || host == RelayAddress:
		err = fmt.Errorf("the host connects this guest to no %s", address)
	default:
		ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
		out, err = o.config.Dial(ctx, address)
		cancel()
	}
	if err != nil {
		_ = tell(conn, reply{Error: err.Error()})
		return false
	}
	if err := tell(conn, reply{}); err != nil {
		_ = out.Close()
		return false
	}
	Splice(conn, out)
	return true
}

// publish listens for a port of the guest's, and answers where.
func (o *Outside) publish(port int, known string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.listeners[port]; l != nil {
		return l.Addr().String(), nil
	}
	switch {
	case o.closed:
		return "", net.ErrClosed
	case o.config.Listen == nil:
		return "", errors.New("the host publishes nothing for this guest")
	case port < 1 || port > 65535:
		return "", fmt.Errorf("there is no port %d", port)
	case len(o.listeners) >= mostPorts:
		return "", fmt.Errorf("the guest has published %d ports, which is all it may", mostPorts)
	}
	l, err := o.config.Listen(port, known)
	if err != nil {
		return "", err
	}
	o.listeners[port] = l
	go o.visit(l, port)
	return l.Addr().String(), nil
}

func (o *Outside) withdraw(port int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if l := o.listeners[port]; l != nil {
		_ = l.Close()
		delete(o.listeners, port)
	}
}

// visit leads who connects to a published port to the guest.
func (o *Outside) visit(l net.Listener, port int) {
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, most likely
			continue
		}
		select {
		case o.visits <- struct{}{}:
			go func() {
				defer func() { <-o.visits }()
				ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
				in, err := o.Port(ctx, port)
				cancel()
				if err != nil {
					_ = conn.Close()
					return
				}
				Splice(in, conn)
			}()
		default:
			_ = conn.Close()
		}
	}
}

// Agent connects to the guest's agent; while there is no session it waits for
// one as long as ctx allows.
func (o *Outside) Agent(ctx context.Context) (net.Conn, error) {
	return o.open(ctx, word{To: toAgent})
}

// Port connects to a port of the guest's loopback. That nothing listens there
// shows as end of file.
func (o *Outside) Port(ctx context.Context, port int) (net.Conn, error) {
	return o.open(ctx, word{To: toPort, Port: port})
}

func (o *Outside) open(ctx context.Context, w word) (net.Conn, error) {
	for {
		o.mu.Lock()
		s, changed, closed := o.session, o.changed, o.closed
		o.mu.Unlock()
		if closed {
			return nil, net.ErrClosed
		}
		if s != nil {
			conn, err := s.begin(ctx, w)
			if err == nil {
				return conn, nil
			}
			o.mu.Lock()
			if o.session == s && ctx.Err() == nil { // it is over
				o.session = nil
			}
			o.mu.Unlock()
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("the guest has no session with this host: %w", context.Cause(ctx))
		}
	}
}

// Published is where the guest's ports are.
func (o *Outside) Published() map[int]string {
	o.mu.Lock()
	defer o.mu.Unlock()
	at := map[int]string{}
	for port, l := range o.listeners {
		at[port] = l.Addr().String()
	}
	return at
}

// Close ends the session and stops listening; there will be no other session.
func (o *Outside) Close() {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.closed = true
	s := o.session
	close(o.changed)
	o.changed = make(chan struct{})
	listeners := maps.Clone(o.listeners)
	o.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	if s != nil {
		_ = s.Close()
	}
}

// Listener listens on a host's address, at the known port where that is free.
func Listener(host, known string) (net.Listener, error) {
	if _, port, err := net.SplitHostPort(known); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err == nil {
			if l, err := net.Listen("tcp", net.JoinHostPort(host, port)); err == nil {
				return l, nil
			}
		}
	}
	return net.Listen("tcp", net.JoinHostPort(host, "0"))
}
