package soap

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// phase is what a connection is about, the most dispensable first.
type phase int

const (
	phaseIdle      phase = iota // it waits for a request, its headers, or the first 64 KiB of its body
	phaseSending                // the rest of a large body comes in
	phaseAnswering              // the answer goes out
	phaseWorking                // a call is being carried out: never dropped
)

// connections bounds how many connections a Server has. When there is one too
// many, the most dispensable goes that has been what it is for the longest: so
// that whoever opens connections and keeps them takes none from others, who
// need theirs for a moment, or have just been answered. A quarter of those that
// may go is left to the idle, for else whoever fills the places with uploads
// would have newcomers push each other out before they could say what they
// want. Only when all are at work a new one is refused.
type connections struct {
	most    int
	dropped prometheus.Counter
	clock   atomic.Int64 // counts changes of phase, of all connections

	mu   sync.Mutex // guards open
	open map[net.Conn]*connection
}

// connection is what a call says of its connection, some five times: so it
// costs no lock, and who looks for the most dispensable looks through all.
type connection struct {
	clock *atomic.Int64
	state atomic.Int64 // the phase, above the clock when it began
	left  func()       // called when it is dropped; may be nil
}

// phaseShift is where in a connection's state its phase begins.
const phaseShift = 60

type connectionKey struct{}

func newConnections(most int, registry *prometheus.Registry) (*connections, error) {
	c := &connections{most: most, open: map[net.Conn]*connection{}}
	c.dropped = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "mvm_connections_dropped_total", Help: "Connections closed or refused because there were too many.",
	})
	count := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "mvm_connections", Help: "Connections of callers."}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(len(c.open))
	})
	for _, collector := range []prometheus.Collector{c.dropped, count} {
		if err := registry.Register(collector); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// mostConnections leaves half of the descriptors that a process may have to
// files, children and its own calls.
func mostConnections() int {
	const most = 2048
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil || limit.Cur/2 > most {
		return most
	}
	return max(16, int(limit.Cur/2))
}

// context is for http.Server.ConnContext, which is called before ConnState.
func (c *connections) context(ctx context.Context, conn net.Conn) context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	return context.WithValue(ctx, connectionKey{}, c.open[beneath(conn)])
}

// changed is for http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	if state == http.StateClosed || state == http.StateHijacked {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.open, beneath(conn))
	}
}

// end closes a connection that net/http does not have.
func (c *connections) end(conn net.Conn) {
	c.mu.Lock()
	delete(c.open, conn)
	c.mu.Unlock()
	_ = conn.Close()
}

// add takes a new connection in, or closes it and returns nil.
func (c *connections) add(conn net.Conn) *connection {
	k := &connection{clock: &c.clock}
	k.enter(phaseIdle)
	c.mu.Lock()
	full := len(c.open) >= c.most
	var victim net.Conn
	var left func()
	if full {
		if victim = c.dispensable(); victim != nil {
			left = c.open[victim].left
			delete(c.open, victim)
		}
	}
	if !full || victim != nil {
		c.open[conn] = k
	}
	c.mu.Unlock()
	switch {
	case victim != nil:
		c.dropped.Inc()
		_ = victim.Close()
		if left != nil {
			left()
		}
	case full:
		c.dropped.Inc()
		refuseConnection(conn)
		return nil
	}
	return k
}

// dispensable returns the connection to close when there is one too many, or
// nil. The caller holds mu.
func (c *connections) dispensable() net.Conn {
	const working = int64(phaseWorking) << phaseShift
	var idle, busy net.Conn // the first of each to go
	leastIdle, leastBusy := working, working
	idles, all := 0, 0
	for conn, k := range c.open {
		switch state := k.state.Load(); {
		case state >= working:
			continue
		case phase(state>>phaseShift) == phaseIdle:
			idles++
			if state < leastIdle {
				idle, leastIdle = conn, state
			}
		case state < leastBusy:
			busy, leastBusy = conn, state
		}
		all++
	}
	if idle == nil || busy != nil && idles < all/4 {
		return busy
	}
	return idle
}

// refuseConnection answers what has not been asked yet. A new connection takes
// so few bytes without waiting.
func refuseConnection(conn net.Conn) {
	const why = "every connection that this node may have is busy; try again later\n"
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 2\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", len(why), why)
	_ = conn.Close()
}

// enter notes what the connection is about now. It does nothing for nil.
func (k *connection) enter(p phase) {
	if k != nil {
		k.state.Store(int64(p)<<phaseShift | k.clock.Add(1))
	}
}

// phase is what the connection is about.
func (k *connection) phase() phase { return phase(k.state.Load() >> phaseShift) }
