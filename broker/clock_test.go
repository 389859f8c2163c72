package broker

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"mvm/wsdl"
)

// jumping is a wall clock that somebody sets to and fro; its timers are the
// real ones, which count durations.
type jumping struct {
	realClock
	by atomic.Int64 // nanoseconds
}

func (c *jumping) Now() time.Time {
	return time.Now().Round(0).Add(time.Duration(c.by.Load())) // without the monotonic part
}

// The wall clock is written down and never counted with: it jumps by hours and
// days under running jobs, and over restarts, and every job ends as it should,
// in one attempt; ids and revisions go on growing.
func TestClockJumps(t *testing.T) {
	clock := &jumping{}
	g := newGrid(t, func(c *Config) { c.Clock = clock })
	g.node("n1", 4)
	g.node("n2", 4)
	b := g.start()
	last := ""
	for i, by := range []time.Duration{time.Hour, -time.Hour, 1000 * time.Hour, -5000 * time.Hour, 0} {
		well := g.submit(b, fmt.Sprint("well", i), profileOf("well", task("a", 4, "sleep=150ms")))
		once := profileOf("once", task("a", 1, "once"))
		once.Policy = &wsdl.JobPolicy{Retries: wsdl.Of(wsdl.Number("1"))}
		again := g.submit(b, fmt.Sprint("again", i), once)
		if well <= last || again <= well {
			t.Errorf("after a jump the jobs %s and %s follow %s", well, again, last)
		}
		last = again
		until(t, "its run", func() bool { return *g.get(b, well).State != wsdl.JobStatePending })
		before := g.get(b, well).Revision
		clock.by.Store(int64(by))
		for id, attempts := range map[string]int32{well: 1, again: 2} {
			if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded || *s.Attempt != attempts {
				t.Errorf("the clock jumped to %v: job %s is %s in attempt %d: %s", by, id, *s.State, *s.Attempt, s.Reason)
			}
		}
		if after := g.get(b, well).Revision; after <= before {
			t.Errorf("the clock jumped to %v: revision %d follows %d", by, after, before)
		}
		if i%2 == 1 {
			g.stop()
			b = g.start()
		}
	}
	g.settled()
}
