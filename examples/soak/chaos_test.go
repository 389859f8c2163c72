package soak

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"testing"
	"time"

	"mvm/broker"
)

// lease is how long a node may keep what a heartbeat's answer named, and slack
// how much longer it takes until a node that is silent is given up.
const (
	lease = 10 * time.Second
	slack = 5 * time.Second
)

// chaos puts faults into a grid, on three fronts at once: the front end, the
// workers, the network. The choices on each are its own.
type chaos struct {
	g     *grid
	calls bool // the network is a front too
	brief bool // nothing that takes a lease

	mu     sync.Mutex // guards counts
	counts map[string]int
}

func (c *chaos) count(fault string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.counts[fault]++
}

// run goes on until ctx ends; then all is whole again.
func (c *chaos) run(ctx context.Context, from *chance) {
	c.counts = map[string]int{}
	var fronts sync.WaitGroup
	for _, front := range []struct {
		hurt func(context.Context, *chance)
		rest time.Duration // at most, between two faults
	}{{c.front, 8 * time.Second}, {c.workers, 3 * time.Second}, {c.network, 3 * time.Second}} {
		own := from.fork()
		fronts.Go(func() {
			for nap(ctx, own.between(100*time.Millisecond, front.rest)) {
				front.hurt(ctx, own)
			}
		})
	}
	fronts.Wait()
	for _, n := range c.g.nodes() {
		if n.pid() == 0 {
			n.start()
		}
		if n.proxy != nil {
			n.proxy.trouble.Store(0)
		}
	}
}

// nap is false when ctx ended before.
func nap(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (c *chaos) report(t testing.TB) {
	t.Log("faults:")
	c.mu.Lock()
	defer c.mu.Unlock()
	table(t, c.counts)
	fates := map[string]int{}
	for _, n := range c.g.nodes() {
		if n.proxy != nil {
			for i := range n.proxy.fates {
				fates[fateNames[i]] += int(n.proxy.fates[i].Load())
			}
		}
	}
	if len(fates) > 0 {
		t.Log("calls through the proxies:")
		table(t, fates)
	}
}

// front hurts the front end.
func (c *chaos) front(ctx context.Context, own *chance) {
	n := c.g.front
	k, away, stop := own.n(100), own.between(0, time.Second), own.between(50*time.Millisecond, 3*time.Second)
	points := broker.Points()
	point := fmt.Sprintf("%s:%d", points[own.n(len(points))], 1+own.n(4))
	switch {
	case k < 30:
		c.count("broker: kill -9")
		n.kill()
		nap(ctx, away)
	case k < 80:
		n.kill()
		l := n.start("--kill-at", point)
		select {
		case <-l.gone:
			c.count("broker: kill -9 at a point")
		case <-time.After(8 * time.Second):
			c.count("broker: kill -9, for it never passed a point")
			n.kill()
		}
	case k < 95 || c.brief:
		c.count("broker: SIGSTOP, SIGCONT")
		n.signal(syscall.SIGSTOP)
		nap(ctx, stop)
		n.signal(syscall.SIGCONT)
		return
	default:
		c.count("broker: away for longer than the lease")
		n.kill()
		nap(ctx, lease+slack+away)
	}
	n.start()
}

// workers hurts a worker, or what runs on it.
func (c *chaos) workers(ctx context.Context, own *chance) {
	n := c.g.workers[own.n(len(c.g.workers))]
	k, away, stop, which := own.n(100), own.between(0, 3*time.Second), own.between(50*time.Millisecond, 3*time.Second), own.n(1000)
	one := func(pids []int) int {
		if len(pids) == 0 {
			return 0
		}
		return pids[which%len(pids)]
	}
	hurt := func(what string, pid int, signals ...syscall.Signal) {
		if pid == 0 {
			return
		}
		c.count(what)
		for i, s := range signals {
			if i > 0 {
				nap(ctx, stop)
			}
			syscall.Kill(pid, s)
		}
	}
	switch {
	case k < 25:
		c.count("node: kill -9, back soon")
		n.kill()
		nap(ctx, away)
		n.start()
	case k < 45:
		hurt("MVM process: kill -9", one(n.mvmProcesses()), syscall.SIGKILL)
	case k < 60:
		hurt("program: kill -9", one(c.g.programs(n)), syscall.SIGKILL)
	case k < 72:
		hurt("node: SIGSTOP, SIGCONT", n.pid(), syscall.SIGSTOP, syscall.SIGCONT)
	case k < 84:
		hurt("MVM process: SIGSTOP, SIGCONT", one(n.mvmProcesses()), syscall.SIGSTOP, syscall.SIGCONT)
	case k < 94 || c.brief:
		hurt("program: SIGSTOP, SIGCONT", one(c.g.programs(n)), syscall.SIGSTOP, syscall.SIGCONT)
	default:
		c.count("node: kill -9, away for longer than the lease")
		n.kill()
		nap(ctx, lease+slack+away)
		n.start()
	}
}

// network makes calls go astray for a while.
func (c *chaos) network(ctx context.Context, own *chance) {
	share, length := 50+own.n(400), own.between(500*time.Millisecond, 5*time.Second)
	if !c.calls {
		nap(ctx, length)
		return
	}
	c.count("network: trouble")
	for _, n := range c.g.nodes() {
		n.proxy.trouble.Store(uint64(share))
	}
	nap(ctx, length)
	for _, n := range c.g.nodes() {
		n.proxy.trouble.Store(0)
	}
}
