package soap

import (
	"container/list"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
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
	phases
)

// connections bounds how many connections a Server has. When there is one too
// many, the most dispensable goes that has been what it is for the longest: so
// that whoever opens connections and keeps them takes none from others, who
// need theirs for a moment, or have just been answered. Only when all are at
// work a new one is refused.
type connections struct {
	most    int
	dropped prometheus.Counter

	mu   sync.Mutex // guards what follows
	open map[net.Conn]*connection
	in   [phases]*list.List // of net.Conn, the longest first
}

type connection struct {
	phase phase
	at    *list.Element // in the phase's list
}

type connectionKey struct{}

func newConnections(most int, registry *prometheus.Registry) (*connections, error) {
	c := &connections{most: most, open: map[net.Conn]*connection{}}
	for p := range c.in {
		c.in[p] = list.New()
	}
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

// context is for http.Server.ConnContext.
func (c *connections) context(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// changed is for http.Server.ConnState.
func (c *connections) changed(conn net.Conn, state http.ConnState) {
	switch state {
	case http.StateNew:
		c.add(conn)
	case http.StateClosed, http.StateHijacked:
		c.mu.Lock()
		defer c.mu.Unlock()
		c.forget(conn)
	}
}

func (c *connections) add(conn net.Conn) {
	c.mu.Lock()
	full := len(c.open) >= c.most
	var victim net.Conn
	if full {
		for p := phaseIdle; p < phaseWorking && victim == nil; p++ {
			if longest := c.in[p].Front(); longest != nil {
				victim = longest.Value.(net.Conn)
				c.forget(victim)
			}
		}
	}
	if !full || victim != nil {
		c.open[conn] = &connection{phase: phaseIdle, at: c.in[phaseIdle].PushBack(conn)}
	}
	c.mu.Unlock()
	switch {
	case victim != nil:
		c.dropped.Inc()
		_ = victim.Close()
	case full:
		c.dropped.Inc()
		refuseConnection(conn)
	}
}

// refuseConnection answers what has not been asked yet. A new connection takes
// so few bytes without waiting.
func refuseConnection(conn net.Conn) {
	const why = "every connection that this node may have is busy; try again later\n"
	_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
	_, _ = fmt.Fprintf(conn, "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 2\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s", len(why), why)
	_ = conn.Close()
}

// forget takes a connection out. The caller holds mu.
func (c *connections) forget(conn net.Conn) {
	if k := c.open[conn]; k != nil {
		c.in[k.phase].Remove(k.at)
		delete(c.open, conn)
	}
}

// enter notes what the connection of the call with context ctx is about now. It
// does nothing for a call that came otherwise, as in tests.
func (c *connections) enter(ctx context.Context, p phase) {
	conn, _ := ctx.Value(connectionKey{}).(net.Conn)
	if conn == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	k := c.open[conn]
	if k == nil || k.phase == p {
		return
	}
	c.in[k.phase].Remove(k.at)
	k.phase, k.at = p, c.in[p].PushBack(conn)
}
