package place

import (
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
