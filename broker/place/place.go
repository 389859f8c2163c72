// Package place decides which process of a job goes to which node. It is a
// pure function of the job, a snapshot of the nodes and a strategy: the same
// three give the same plan for ever.
//
// What always holds: a plan covers all processes or there is none (a gang);
// it breaks no node's slots, memory, cores or properties, and uses at least
// as many nodes as the job's policy asks. Where there is no plan, the answer
// says why in words, step by step, and whether it could ever fit these nodes.
//
// The package must not do I/O, look at a clock or draw a random number.
package place

import (
	"fmt"

	"mvm/broker/profile"
)

// Pack is the default strategy: few nodes, and processes that talk to each
// other together.
const Pack = "pack"

// Node is what placement knows of one node.
type Node struct {
	ID            string
	Name          string
	OS            string
	Arch          string
	Cores         int
	MemoryMiB     int64
	Slots         int // processes it takes at once
	FreeSlots     int
	FreeCores     int    // not kept for processes alone
	FreeMemoryMiB int64  // not claimed
	FreeDiskMiB   *int64 // that may be filled, as it is now; nil = it has not told
	Compilers     []string
	QEMU          bool
	Accelerator   string           // of its OS-level VMs; "" = it has none
	VMs           profile.VMLimits // the most that it lets one of them have; 0 = no limit
	Cleaning      string
	Queues        map[string][]string // by profile.Need.Kind: the names that its own file allows; a kind that is not there is free
	Shunned       string              // why it takes nothing for now: "left alone for 2s after a refusal"; "" = it takes
}

// Plan is the answer of Place.
type Plan struct {
	Node       []int       // by process ID: index in nodes; nil when it does not fit
	Used       int         // nodes that get a process
	Local      int         // channels between processes on one node
	Remote     int         // channels between nodes
	Reason     string      // step by step, when it does not fit
	Never      bool        // it would not fit even if all these nodes were empty
	Rejections []Rejection // nodes that cannot take any process of a task, and why
}

// Rejection says why a node takes no process of a task.
type Rejection struct {
	Node   string // its ID
	Task   string
	Reason string // goes on from the node's name: "lacks a C compiler"
}

// Place plans the job onto the nodes and tells whether it fits. strategy is
// Pack or "", which means Pack. Rejections are given in both cases.
func Place(job *profile.Job, nodes []Node, strategy string) (Plan, bool) {
	if strategy != "" && strategy != Pack {
		return Plan{Reason: fmt.Sprintf("there is no strategy %q; use %q", strategy, Pack)}, false
	}
	d := newDemand(job, nodes)
	now := newSupply(d, nodes, false)
	plan := Plan{Rejections: now.rejections(job)}
	node, ok := now.pack(newNetwork(job), max(job.Nodes, 1))
	if !ok {
		empty := newSupply(d, nodes, true)
		plan.Reason, plan.Never = now.explain(empty, max(job.Nodes, 1))
		return plan, false
	}
	plan.Node = node
	used := make([]bool, len(nodes))
	for _, n := range node {
		if !used[n] {
			used[n] = true
			plan.Used++
		}
	}
	for i := range job.Channels {
		from, to := job.Channels[i].From.Process, job.Channels[i].To.Process
		switch {
		case from < 0 || to < 0:
		case node[from] == node[to]:
			plan.Local++
		default:
			plan.Remote++
		}
	}
	return plan, true
}
