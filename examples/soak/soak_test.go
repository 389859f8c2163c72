package soak

import (
	"context"
	"testing"
	"time"
)

// TestSoak takes jobs through a grid of four workers while everything that can
// fail fails.
func TestSoak(t *testing.T) {
	together(t)
	count, width := 30, 8
	if *longFlag {
		count, width = *jobsFlag, 16
	}
	c := newChance(t)
	g := newGrid(t, gridOptions{workers: 4, slots: 4, chance: c})
	kinds := c.fork()
	var jobs []*job
	for i := range count {
		jobs = append(jobs, g.randomJob(kinds, i))
	}
	for _, n := range g.nodes() {
		s, err := n.size()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("at first, %s: %v", n.name, s)
	}

	ctx, over := context.WithTimeout(t.Context(), 2*time.Minute+3*time.Duration(count)*time.Second)
	defer over()
	damage := &chaos{g: g, calls: true, brief: !*longFlag}
	faults, heal := context.WithCancel(ctx)
	healed := make(chan struct{})
	go func() {
		damage.run(faults, c.fork())
		close(healed)
	}()
	begin := time.Now()
	g.crowd(ctx, jobs, width, func(done int) {
		if done%100 == 0 {
			t.Logf("%v: %d of %d jobs have ended", time.Since(begin).Round(time.Second), done, count)
		}
	})
	heal()
	<-healed
	t.Logf("%d jobs in %v", count, time.Since(begin).Round(time.Second))
	account(t, jobs)
	damage.report(t)

	g.up(len(g.nodes()))
	g.clean()
	g.settled(jobs)
	if *longFlag {
		jobs = append(jobs, g.flat(kinds, count)...)
	}
	g.audit(jobs)
}

// flat runs jobs without faults, and finds the nodes as big as before.
func (g *grid) flat(c *chance, from int) []*job {
	g.t.Helper()
	batch := func(n int) (jobs []*job) {
		for range n {
			jobs = append(jobs, &job{number: from, mode: "ok", count: 2 + c.n(3), rounds: 1 + c.n(30), nodes: 1 + c.n(2)})
			from++
		}
		g.crowd(g.t.Context(), jobs, 8, nil)
		g.clean()
		return jobs
	}
	const size = 300
	jobs := batch(size)
	before := g.sizes()
	jobs = append(jobs, batch(size)...)
	after := g.sizes()
	for _, n := range g.nodes() {
		was, is := before[n], after[n]
		g.t.Logf("after %d more jobs without faults, %s: %v; then: %v", size, n.name, was, is)
		// Idle connections come and go. The front end remembers jobs.
		const few, bytesPerJob, noise = 12, 8 << 10, 4 << 20
		if is.files > was.files+few || is.goroutines > was.goroutines+2*few || is.heap > was.heap+size*bytesPerJob+noise ||
			is.resident > was.resident+size*bytesPerJob+2*noise {
			g.t.Errorf("%s has grown", n.name)
		}
	}
	return jobs
}
