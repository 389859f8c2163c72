package osvm

import (
	"context"
	"net"
	"sync/atomic"

	"golang.org/x/time/rate"
)

// trafficBurst is how many bytes pass at once before the limit holds; a piece is
// never larger.
const trafficBurst = 64 << 10

// traffic counts and bounds what a guest and its host say to each other. All of a
// guest's network goes that way.
type traffic struct {
	in, out atomic.Int64  // bytes to the guest, and from it
	limit   *rate.Limiter // nil is none
}

func newTraffic(bytesPerSecond int64) *traffic {
	t := &traffic{}
	if bytesPerSecond > 0 {
		t.limit = rate.NewLimiter(rate.Limit(bytesPerSecond), trafficBurst)
	}
	return t
}

func (t *traffic) count(conn net.Conn) net.Conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &counted{Conn: conn, traffic: t, ctx: ctx, cancel: cancel}
}

// counted is a connection whose bytes are counted, and held up.
type counted struct {
	net.Conn
	traffic *traffic
	ctx     context.Context // ends with the connection
	cancel  context.CancelFunc
}

func (c *counted) Read(into []byte) (int, error) {
	if c.traffic.limit != nil {
		into = into[:min(len(into), trafficBurst)]
	}
	n, err := c.Conn.Read(into)
	c.traffic.out.Add(int64(n))
	if err == nil {
		err = c.pay(n)
	}
	return n, err
}

func (c *counted) Write(from []byte) (written int, err error) {
	for err == nil && written < len(from) {
		n := len(from) - written
		if c.traffic.limit != nil {
			n = min(n, trafficBurst)
		}
		if err = c.pay(n); err != nil {
			break
		}
		n, err = c.Conn.Write(from[written : written+n])
		c.traffic.in.Add(int64(n))
		written += n
	}
	return written, err
}

// pay waits until n bytes may pass.
func (c *counted) pay(n int) error {
	if c.traffic.limit == nil || n == 0 {
		return nil
	}
	return c.traffic.limit.WaitN(c.ctx, n)
}

func (c *counted) Close() error {
	c.cancel()
	return c.Conn.Close()
}
