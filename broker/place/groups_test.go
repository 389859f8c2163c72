package place

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"mvm/broker/profile"
)

func TestGroups(t *testing.T) {
	job := compile(t, `<task name="p" source="c" count="4"><resources memory="100"/></task>`)
	job.VM = &profile.VM{MemoryMiB: 200, Languages: []string{"c"}}
	vms := func(nodes []Node) []Node {
		for i := range nodes {
			nodes[i].Accelerator, nodes[i].Compilers = "tcg", nil
		}
		return nodes
	}
	groups := []Group{{Processes: []int{0}, Prefer: "n2"}, {Processes: []int{1, 2}, Prefer: "gone"}, {Processes: []int{3}, Prefer: "n1"}}
	for name, c := range map[string]struct {
		spoil func([]Node) []Node
		want  []int
		why   string
	}{
		"as they were, and the nearest fit":   {func(n []Node) []Node { n[3].FreeSlots = 2; return n }, []int{1, 3, 3, 0}, ""},
		"the former node is full":             {func(n []Node) []Node { n[1].FreeMemoryMiB = 250; return n }, []int{3, 2, 2, 0}, ""},
		"the former node has no VMs any more": {func(n []Node) []Node { n[0].Accelerator = ""; return n }, []int{1, 2, 2, 3}, ""},
		"each needs a node of its own":        {func(n []Node) []Node { return n[:2] }, nil, "wants 2 slots and 400 MiB"},
		"one is left alone":                   {func(n []Node) []Node { n[2].Shunned, n[3].Shunned = "x", "y"; return n }, nil, "has room for one of them"},
	} {
		plan, ok := Groups(job, groups, c.spoil(vms(alike(4, 4))))
		if ok != (c.want != nil) || !slices.Equal(plan.Node, c.want) || !strings.Contains(plan.Reason, c.why) {
			t.Errorf("%s: %v, %q; want %v, %q", name, plan.Node, plan.Reason, c.want, c.why)
		}
	}
}

// Where a node may have several VMs, a set's stay apart as long as that can be, and
// never on fewer nodes than the policy wants.
func TestGroupsTogether(t *testing.T) {
	job := compile(t, `<task name="p" source="c" count="4"/>`)
	job.VM = &profile.VM{MemoryMiB: 200, Most: 1, Languages: []string{"c"}}
	groups := []Group{{[]int{0}, "n1"}, {[]int{1}, "n1"}, {[]int{2}, "n2"}, {[]int{3}, "n2"}}
	for name, c := range map[string]struct {
		nodes, least int
		memory       int64
		want         []int
		why          string
	}{
		"as they were":         {2, 2, 1000, []int{0, 0, 1, 1}, ""},
		"one is left":          {1, 1, 800, []int{0, 0, 0, 0}, ""},
		"two are wanted":       {1, 2, 800, nil, "room for them on 1 nodes, and the policy wants 2"},
		"no memory for all":    {1, 1, 799, nil, "200 MiB of memory"},
		"others take the rest": {4, 1, 250, []int{0, 2, 1, 3}, ""},
	} {
		nodes := alike(c.nodes, 4)
		for i := range nodes {
			nodes[i].Accelerator, nodes[i].FreeMemoryMiB, nodes[i].Compilers = "tcg", c.memory, nil
		}
		job.Nodes = c.least
		plan, ok := Groups(job, groups, nodes)
		if ok != (c.want != nil) || !slices.Equal(plan.Node, c.want) || !strings.Contains(plan.Reason, c.why) {
			t.Errorf("%s: %v, %q; want %v, %q", name, plan.Node, plan.Reason, c.want, c.why)
		}
	}
}

// A node is given no more VMs than it has memory for, however many processes are in one.
func TestSeveralVMsOnANode(t *testing.T) {
	for most, want := range map[int]int{0: 6, 1: 3, 2: 4, 3: 5} { // processes on the one node that there is
		for count := 1; count <= 6; count++ {
			job := compile(t, fmt.Sprintf(`<task name="p" source="c" count="%d"><resources memory="50"/></task>`, count))
			job.VM = &profile.VM{MemoryMiB: 200, Most: most, Languages: []string{"c"}}
			nodes := alike(1, 8)
			nodes[0].Accelerator, nodes[0].FreeMemoryMiB, nodes[0].Compilers = "tcg", 750, nil
			if _, ok := Place(job, nodes, Pack); ok != (count <= want) {
				t.Errorf("%d processes in VMs of %d: it fits: %v", count, most, ok)
			}
		}
	}
}
