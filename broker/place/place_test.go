package place

import (
	"fmt"
	"strings"
	"testing"

	"mvm/broker/profile"
)

// compile makes a job from what stands between <job> and </job>, with a C
// source "c" and a Python source "py" at hand.
func compile(t testing.TB, body string) *profile.Job {
	t.Helper()
	text := `<job xmlns="urn:mvm:1" name="test">
<source name="c" language="c"><file name="a.c"><text>int main(){}</text></file></source>
<source name="py" language="python"><file name="a.py"><text>pass</text></file></source>
` + body + `</job>`
	job, lines, err := profile.Parse(strings.NewReader(text), "test")
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := profile.Compile(job, nil, nil, nil)
	if err != nil {
		t.Fatal(lines.Locate(err))
	}
	return compiled
}

// alike makes nodes that can do everything, all free.
func alike(n, slots int) []Node {
	nodes := make([]Node, n)
	for i := range nodes {
		name := fmt.Sprintf("n%d", i+1)
		nodes[i] = Node{
			ID: name, Name: name, OS: "linux", Arch: "amd64", Cores: slots, MemoryMiB: 1024 * int64(slots), Slots: slots,
			FreeSlots: slots, FreeCores: slots, FreeMemoryMiB: 1024 * int64(slots),
			Compilers: []string{"c", "cpp", "go", "python", "shell"}, Cleaning: "pidNamespace",
		}
	}
	return nodes
}

func BenchmarkPlace(b *testing.B) {
	for _, c := range []struct{ name, body string }{
		{"mesh100x100", `<task name="p" source="c" count="10000"/><topology kind="mesh"/>`},
		{"torus100x100", `<task name="p" source="c" count="10000"/><topology kind="torus"/>`},
		{"mesh3d", `<task name="p" source="c" count="8000"/><topology kind="mesh" dimensions="3"/>`},
		{"hypercube8192", `<task name="p" source="c" count="8192"/><topology kind="hypercube"/>`},
		{"random", `<task name="p" source="c" count="10000"/><topology kind="random" degree="6"/>`},
		{"tree", `<task name="p" source="c" count="10000"/><topology kind="tree"/>`},
		{"smallWorld", `<task name="p" source="c" count="10000"/><topology kind="smallWorld" degree="6"/>`},
		{"complete1000", `<task name="p" source="c" count="1000"/><topology kind="complete" direction="forward"/>`},
		{"farm", `<task name="m" source="c"/><task name="w" source="py" count="9999"/><topology kind="farm"/>`},
	} {
		b.Run(c.name, func(b *testing.B) {
			job := compile(b, c.body)
			for _, nodes := range [][]Node{alike(1000, 10), alike(1000, 16), alike(4, 2500)} {
				b.Run(fmt.Sprintf("%dx%d", len(nodes), nodes[0].Slots), func(b *testing.B) {
					var plan Plan
					for b.Loop() {
						var ok bool
						if plan, ok = Place(job, nodes, ""); !ok {
							b.Fatal(plan.Reason)
						}
					}
					b.ReportMetric(float64(plan.Remote), "remote")
					b.ReportMetric(float64(plan.Used), "nodes")
				})
			}
		})
	}
}
