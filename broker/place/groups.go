package place

import (
	"fmt"
	"slices"

	"mvm/broker/profile"
)

// Group is processes that go together in one VM.
type Group struct {
	Processes []int
	Prefer    string // a node's ID, taken where it can be
}

// Groups plans a job whose groups are settled: those of a checkpoint's VMs. Every
// group takes its preferred node or, those that need most first, the node with the
// fewest free slots that has room for it and no other group. Where nodes may have
// several VMs of the job, nodes with others come last.
func Groups(job *profile.Job, groups []Group, nodes []Node) (Plan, bool) {
	d := newDemand(job, nodes)
	s := newSupply(d, nodes, false)
	plan := Plan{Rejections: s.rejections(job)}
	needs := make([]room, len(groups))
	order := make([]int, len(groups))
	shared := false
	for g := range groups {
		order[g] = g
		for _, id := range groups[g].Processes {
			need := &job.Processes[id].Need
			needs[g].give(room{1, need.Cores, need.MemoryMiB})
		}
		if job.VM != nil {
			needs[g].memory += job.VM.MemoryMiB
			shared = job.VM.Most > 0
		}
	}
	for n := range s.free {
		s.free[n].memory += s.vm // each group has its own
	}
	slices.SortStableFunc(order, func(a, b int) int { return needs[b].slots - needs[a].slots })
	count := make([]int, len(nodes)) // groups by node
	fits := func(g, n int) bool {
		return s.free[n].fits(needs[g]) && !slices.ContainsFunc(groups[g].Processes, func(id int) bool { return !s.may(d.of[id], n) })
	}
	at := make([]int, len(groups))
	put := func(g, n int) {
		if count[n]++; count[n] == 1 {
			plan.Used++
		}
		s.free[n].take(needs[g])
		at[g] = n
	}
	var rest []int
	for _, g := range order {
		n := slices.IndexFunc(nodes, func(n Node) bool { return n.ID == groups[g].Prefer })
		if n < 0 || !fits(g, n) || count[n] > 0 && !shared {
			rest = append(rest, g)
			continue
		}
		put(g, n)
	}
	for _, g := range rest {
		best := -1
		for n := range nodes {
			if !fits(g, n) || count[n] > 0 && !shared {
				continue
			}
			if best < 0 || count[n] < count[best] || count[n] == count[best] && s.free[n].slots < s.free[best].slots {
				best = n
			}
		}
		if best < 0 {
			plan.Reason = fmt.Sprintf("no node that is left has room for one of them, which wants %d slots and %d MiB of memory", needs[g].slots, needs[g].memory)
			return plan, false
		}
		put(g, best)
	}
	if plan.Used < min(job.Nodes, len(groups)) {
		plan.Reason = fmt.Sprintf("there is room for them on %d nodes, and the policy wants %d", plan.Used, job.Nodes)
		return plan, false
	}
	plan.Node = make([]int, len(job.Processes))
	for g := range groups {
		for _, id := range groups[g].Processes {
			plan.Node[id] = at[g]
		}
	}
	return plan, true
}
