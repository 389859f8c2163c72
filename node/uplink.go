package node

import (
	"context"
	"net"
	"net/url"
	"time"

	"mvm/osvm"
	"mvm/osvm/link"
)

// uplink is this node's end of a VM's link: over all sessions it leads the guest's
// connections out, and those to what it publishes in.
type uplink struct {
	session func(ctx context.Context) (*link.Session, error) // the next; it waits for a VM that is suspended
	ended   <-chan struct{}                                  // of the VM; nil: who keeps it says when it is enough
	outside *link.Outside
}

// connect makes the uplink of a VM. What the guest publishes is reached where this
// node's proxies are.
func (n *Node) connect(m *osvm.Machine, config link.OutsideConfig) (*uplink, error) {
	host, _, err := net.SplitHostPort(n.proxyListen)
	if err != nil {
		return nil, err
	}
	config.Published = m.Published()
	config.Listen = func(port int, known string) (net.Listener, error) {
		listener, err := link.Listener(host, known)
		if err != nil {
			return nil, err
		}
		if err := m.Publish(port, listener.Addr().String()); err != nil {
			_ = listener.Close()
			return nil, err
		}
		return listener, nil
	}
	outside, err := link.NewOutside(config)
	next := func(ctx context.Context) (*link.Session, error) {
		session, _, err := m.Session(ctx)
		return session, err
	}
	return &uplink{next, m.Ended(), outside}, err
}

// keep takes part in session after session, session being the first, until the VM
// has ended or the uplink is closed.
func (u *uplink) keep(ctx context.Context, session *link.Session) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-u.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer u.outside.Close()
	for ctx.Err() == nil {
		if session == nil {
			const pause = 100 * time.Millisecond
			var err error
			if session, err = u.session(ctx); err != nil {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
				}
				continue
			}
		}
		stop := context.AfterFunc(ctx, func() { _ = session.Close() })
		u.outside.Serve(session)
		stop()
		_ = session.Close()
		session = nil
	}
}

// toSelf leads a guest's connection to this node's own services.
func (n *Node) toSelf(conn net.Conn) {
	n.mu.Lock()
	base, err := url.Parse(n.url)
	n.mu.Unlock()
	var own net.Conn
	if err == nil {
		own, err = net.Dial("tcp", base.Host)
	}
	if err != nil {
		_ = conn.Close()
		return
	}
	link.Splice(conn, own)
}

// dialOut is a guest's way to everywhere that this node reaches.
func dialOut(ctx context.Context, address string) (net.Conn, error) {
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", address)
}
