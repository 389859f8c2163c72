package soak

import (
	"testing"
)

// A grid without faults passes every check.
func TestNoFaults(t *testing.T) {
	c := newChance(t)
	g := newGrid(t, gridOptions{workers: 2, slots: 4})
	var jobs []*job
	for i := range 20 {
		jobs = append(jobs, g.randomJob(c, i))
	}
	g.crowd(t.Context(), jobs, 4, nil)
	account(t, jobs)
	g.clean()
	for n, s := range g.sizes() {
		t.Log(n.name, s)
	}
	g.settled(jobs)
	g.audit(jobs)
}
