package soak

import (
	"syscall"
	"testing"
	"time"

	"mvm/wsdl"
)

// The process of a node stands still for longer than its lease, but not the
// MVM process on it. What runs there ends before another attempt begins.
func TestNodeStopped(t *testing.T) {
	if !*longFlag {
		t.Skip("SKIPPED: a node that stands still for longer than its lease is tested by `make soak` only: it takes a minute")
	}
	g := newGrid(t, gridOptions{workers: 2, slots: 4})
	j := &job{mode: "ok", count: 2, rounds: 60, pause: 400 * time.Millisecond, nodes: 1, retries: 1}
	over := make(chan struct{})
	go func() {
		defer close(over)
		g.run(t.Context(), j)
	}()
	var victim *node
	g.eventually("its run", 30*time.Second, func() (string, bool) {
		for _, w := range g.workers {
			if len(g.programs(w)) == 2 {
				victim = w
			}
		}
		return "", victim != nil
	})
	victim.signal(syscall.SIGSTOP)
	g.eventually("the programs of the node that stands still have ended", lease+slack, func() (string, bool) {
		return "", len(g.programs(victim)) == 0
	})
	nap(t.Context(), 2*lease)
	victim.signal(syscall.SIGCONT)
	<-over
	if j.status != nil && (j.state() != wsdl.JobStateSucceeded || j.ran() != 2) {
		t.Errorf("%v is %s, its program was started %d times: %s", j, j.state(), j.ran(), j.status.Reason)
	}
	g.up(3)
	g.clean()
	g.settled([]*job{j})
	g.audit([]*job{j})
}
