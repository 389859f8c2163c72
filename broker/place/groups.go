package place

import (
	"fmt"
	"slices"

	"mvm/broker/profile"
)

// Group is processes that go together, each group to a node of its own.
type Group struct {
	Processes []int
	Prefer    string // a node's ID, taken where it can be
}

// Groups plans a job whose groups are settled: those of a checkpoint's VMs. Every
// group takes its preferred node or, those that need most first, the node with the
// fewest free slots that has room for it.
func Groups(job *profile.Job, groups []Group, nodes []Node) (Plan, bool) {
	d := newDemand(job, nodes)
	s := newSupply(d, nodes, false)
	plan := Plan{Rejections: s.rejections(job), Used: len(groups)}
	needs := make([]room, len(groups))
	order := make([]int, len(groups))
	for g := range groups {
		order[g] = g
		for _, id := range groups[g].Processes {
			needs[g].give(d.classes[d.of[id]].need)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return needs[b].slots - needs[a].slots })
	taken := make([]int, len(nodes)) // group + 1
	fits := func(g, n int) bool {
		if taken[n] != 0 || !s.free[n].fits(needs[g]) {
			return false
		}
		return !slices.ContainsFunc(groups[g].Processes, func(id int) bool { return !s.may(d.of[id], n) })
	}
	at := make([]int, len(groups))
	var rest []int
	for _, g := range order {
		n := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == groups[g].Prefer })
		if n < 0 || !fits(g, n) {
			rest = append(rest, g)
			continue
		}
		taken[n], at[g] = g+1, n
	}
	for _, g := range rest {
		best := -1
		for n := range nodes {
			if fits(g, n) && (best < 0 || s.free[n].slots < s.free[best].slots) {
				best = n
			}
		}
		if best < 0 {
			memory := needs[g].memory
			if job.VM != nil {
				memory += job.VM.MemoryMiB
			}
			plan.Reason = fmt.Sprintf("no node that is left has room for one of them, which wants %d slots and %d MiB of memory", needs[g].slots, memory)
			return plan, false
		}
		taken[best], at[g] = g+1, best
	}
	plan.Node = make([]int, len(job.Processes))
	for g := range groups {
		for _, id := range groups[g].Processes {
			plan.Node[id] = at[g]
		}
	}
	return plan, true
}
