package soap

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// handovers is where net/http gets its connections from: those on which
// something came that a conversation does not take, with what came.
type handovers struct {
	listener net.Listener // whose address it has
	conns    chan net.Conn
	closed   chan struct{}
	close    sync.Once
}

func newHandovers(listener net.Listener) *handovers {
	return &handovers{listener: listener, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (h *handovers) Accept() (net.Conn, error) {
	select {
	case conn := <-h.conns:
		return conn, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Addr implements net.Listener.
func (h *handovers) Addr() net.Addr { return h.listener.Addr() }

// Close implements net.Listener: it closes the one beneath, too.
func (h *handovers) Close() error {
	h.close.Do(func() { close(h.closed) })
	return h.listener.Close()
}

// give hands a connection over, and says whether anybody took it.
func (h *handovers) give(conn net.Conn) bool {
	select {
	case h.conns <- conn:
		return true
	case <-h.closed:
		return false
	}
}

// replayed is a connection of which the first bytes were read already.
type replayed struct {
	net.Conn
	said  []byte
	first time.Time // by when its first head must be there; zero once that was said
}

// Read implements net.Conn.
func (r *replayed) Read(p []byte) (int, error) {
	if len(r.said) == 0 {
		return r.Conn.Read(p)
	}
	n := copy(p, r.said)
	if r.said = r.said[n:]; len(r.said) == 0 {
		r.said = nil
	}
	return n, nil
}

// SetReadDeadline implements net.Conn. The first is for the first head, for
// which the time began with the connection.
func (r *replayed) SetReadDeadline(t time.Time) error {
	if !r.first.IsZero() { // net/http says it before anybody else has the connection
		if r.first.Before(t) {
			t = r.first
		}
		r.first = time.Time{}
	}
	return r.Conn.SetReadDeadline(t)
}

// ReadFrom implements io.ReaderFrom: the kernel copies files.
func (r *replayed) ReadFrom(from io.Reader) (int64, error) {
	if to, ok := r.Conn.(io.ReaderFrom); ok {
		return to.ReadFrom(from)
	}
	return io.Copy(struct{ io.Writer }{r.Conn}, from)
}

// CloseWrite is for net/http, which gives the last words of a connection time.
func (r *replayed) CloseWrite() error {
	if c, ok := r.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// beneath is the connection that a Server knows.
func beneath(conn net.Conn) net.Conn {
	if r, ok := conn.(*replayed); ok {
		return r.Conn
	}
	return conn
}

// accept takes connections in until the listener is closed.
func (s *Server) accept(calls context.Context, w *crew, h *handovers) error {
	pause := time.Duration(0)
	for {
		conn, err := h.listener.Accept()
		if err != nil {
			// Too many open files, for instance, passes.
			var passing interface{ Temporary() bool }
			if !errors.As(err, &passing) || !passing.Temporary() {
				return err
			}
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.config.Log.WithError(err).Debugf("no connection can be accepted; the next try is in %s", pause)
			time.Sleep(pause)
			continue
		}
		pause = 0
		k := s.connections.add(conn)
		if k == nil {
			continue
		}
		switch plain := conn.(type) {
		case *net.TCPConn:
			s.meet(conn, plain, k, calls, w, h)
		case *net.UnixConn:
			s.meet(conn, plain, k, calls, w, h)
		default: // net/http has ways of its own with TLS
			if !h.give(conn) {
				s.connections.end(conn)
			}
		}
	}
}

// meet begins a conversation on a new connection.
func (s *Server) meet(conn net.Conn, plain syscall.Conn, k *connection, calls context.Context, w *crew, h *handovers) {
	raw, err := plain.SyscallConn()
	if err != nil {
		s.connections.end(conn)
		return
	}
	if c := s.newConversation(conn, raw, k, calls, w, h); !w.meet(c) {
		c.end()
	}
}
