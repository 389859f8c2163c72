package place

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/broker/profile"
)

// compile makes a job from what stands between <job> and </job>, with a C
// source "c" and a Python source "py" at hand.
func compile(t testing.TB, body string) *profile.Job {
	t.Helper()
	text := `<job xmlns="urn:mvm:1" name="test">`
	for name, source := range map[string]string{
		"c":  `<source name="c" language="c"><file name="a.c"><text>int main(){}</text></file></source>`,
		"py": `<source name="py" language="python"><file name="a.py"><text>pass</text></file></source>`,
	} {
		if strings.Contains(body, `source="`+name+`"`) { // one that no task runs is refused
			text += source
		}
	}
	text += body + `</job>`
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

var update = flag.Bool("update", false, "write the golden files anew")

// transcript is a plan for people, and for golden files.
func transcript(job *profile.Job, nodes []Node, plan Plan, ok bool) []byte {
	var out bytes.Buffer
	for _, n := range nodes {
		fmt.Fprintf(&out, "node %s %s/%s: %d of %d slots, %d of %d cores, %d of %d MiB free; %s\n", n.ID, n.OS, n.Arch,
			n.FreeSlots, n.Slots, n.FreeCores, n.Cores, n.FreeMemoryMiB, n.MemoryMiB, strings.Join(n.Compilers, " "))
	}
	if ok {
		fmt.Fprintf(&out, "fits on %d nodes, %d channels local, %d remote\n", plan.Used, plan.Local, plan.Remote)
		for i, n := range nodes {
			var here []string
			for p, at := range plan.Node {
				if at == i {
					here = append(here, job.Processes[p].Label())
				}
			}
			if len(here) > 0 {
				fmt.Fprintf(&out, "  %s: %s\n", n.ID, strings.Join(here, " "))
			}
		}
	} else {
		fmt.Fprintf(&out, "does not fit, never %v\n  %s\n", plan.Never, plan.Reason)
	}
	for _, r := range plan.Rejections {
		fmt.Fprintf(&out, "not %s on %s: it %s\n", r.Task, r.Node, r.Reason)
	}
	return out.Bytes()
}

// edit changes some of a list of nodes.
func edit(nodes []Node, change func(i int, n *Node)) []Node {
	for i := range nodes {
		change(i, &nodes[i])
	}
	return nodes
}

func TestPlansAreGolden(t *testing.T) {
	mixed := func() []Node {
		return edit(alike(4, 4), func(i int, n *Node) {
			switch i {
			case 0, 1:
				n.Compilers = []string{"python", "shell"}
			case 2:
				n.FreeSlots = 1
			}
		})
	}
	for _, c := range []struct {
		name, body string
		nodes      []Node
	}{
		{"butterfly", `<task name="transform" source="c" count="8"/><topology kind="butterfly"/><policy nodes="4"/>`, alike(4, 4)},
		{"mesh", `<task name="tile" source="c" count="16"/><topology kind="mesh"/>`, alike(4, 4)},
		{"torus-uneven", `<task name="block" source="c" count="9"/><topology kind="torus"/>`, edit(alike(4, 4), func(i int, n *Node) { n.FreeSlots = i + 1 })},
		{"pack-best-fit", `<task name="p" source="c" count="3"/><topology kind="ring"/>`, edit(alike(3, 8), func(i int, n *Node) { n.FreeSlots = []int{8, 3, 4}[i] })},
		{"spread-evenly", `<task name="p" source="c" count="9"/><topology kind="line"/><policy nodes="4"/>`, alike(5, 16)},
		{"compilers", `<task name="master" source="py"/><task name="worker" source="c" count="4"/><topology kind="farm"/>`, mixed()},
		{"no-compiler", `<task name="p" source="c" count="6"/>`, mixed()},
		{"two-tasks", `<task name="a" source="c" count="6"/><task name="b" source="py" count="12"/>`, mixed()},
		{"memory", `<task name="big" source="c" count="3"><resources memory="3000"/></task>`, edit(alike(3, 4), func(i int, n *Node) { n.FreeMemoryMiB = []int64{4096, 2048, 4096}[i] })},
		{"cores", `<task name="alone" source="c" count="2"><resources cores="3"/></task><task name="p" source="c" count="4"/>`, alike(2, 4)},
		{"never", `<task name="p" source="c" count="20"/>`, alike(4, 4)},
		{"never-by-requirement", `<task name="p" source="c"><resources cores="8"><require property="os" equals="plan9"/></resources></task><task name="q" source="c"><resources><require property="memory" minimum="1000000"/></resources></task>`, alike(2, 4)},
		{"too-few-nodes", `<task name="p" source="c" count="8"/><policy nodes="6"/>`, alike(4, 4)},
		{"refusers", `<task name="p" source="c" count="6"/>`, edit(alike(2, 4), func(i int, n *Node) {
			if i == 0 {
				n.Shunned = "left alone for 2s after a refusal"
			}
		})},
		{"no-nodes", `<task name="p" source="c"/>`, nil},
		{"named", `<task name="p" source="c" count="2"><resources><require property="name" equals="n3"/></resources></task><task name="q" source="c" count="2"/><topology kind="line"/>`, alike(3, 4)},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := compile(t, c.body)
			plan, ok := Place(job, c.nodes, "")
			if ok {
				check(t, job, c.nodes, plan)
			}
			got := transcript(job, c.nodes, plan, ok)
			file := filepath.Join("testdata", c.name+".golden")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s differs (write it anew with -update):\n%s", file, got)
			}
		})
	}
}

// check is what no plan may break.
func check(t testing.TB, job *profile.Job, nodes []Node, plan Plan) {
	t.Helper()
	if len(plan.Node) != len(job.Processes) {
		t.Fatalf("%d of %d processes are placed", len(plan.Node), len(job.Processes))
	}
	languages := map[string]string{}
	for _, s := range job.Sources {
		languages[s.Name] = s.Language
	}
	slots, cores, memory := make([]int, len(nodes)), make([]int, len(nodes)), make([]int64, len(nodes))
	used := 0
	for i, at := range plan.Node {
		p, n := &job.Processes[i], &nodes[at]
		if slots[at]++; slots[at] == 1 {
			used++
		}
		cores[at] += p.Need.Cores
		memory[at] += p.Need.MemoryMiB
		if !slices.Contains(n.Compilers, languages[p.Source]) {
			t.Fatalf("%s is on %s, which lacks %s", p.Label(), n.ID, languages[p.Source])
		}
		for _, r := range p.Need.Require {
			if r.Property == "arch" && n.Arch != r.Equals {
				t.Fatalf("%s is on %s, which is %s", p.Label(), n.ID, n.Arch)
			}
		}
	}
	for i, n := range nodes {
		if slots[i] > n.FreeSlots || cores[i] > n.FreeCores || memory[i] > n.FreeMemoryMiB {
			t.Fatalf("%s holds %d processes, %d cores, %d MiB but has %+v", n.ID, slots[i], cores[i], memory[i], n)
		}
	}
	if used < job.Nodes || used != plan.Used {
		t.Fatalf("%d nodes are used, the plan says %d, the policy wants %d", used, plan.Used, job.Nodes)
	}
	local, remote := 0, 0
	for _, c := range job.Channels {
		if c.From.Process < 0 || c.To.Process < 0 {
			continue
		}
		if plan.Node[c.From.Process] == plan.Node[c.To.Process] {
			local++
		} else {
			remote++
		}
	}
	if local != plan.Local || remote != plan.Remote {
		t.Fatalf("%d channels are local and %d remote, the plan says %d and %d", local, remote, plan.Local, plan.Remote)
	}
}

// numbers is a small generator for tests (Lehmer's).
type numbers uint64

func (n *numbers) below(limit int) int {
	*n = *n * 48271 % 0x7fffffff
	return int(*n) % limit
}

// Random jobs on random nodes: capacities are never broken, and where a plan
// is refused although one exists that is easy to find, that is a fault.
func TestPlansBreakNothing(t *testing.T) {
	fits := 0
	for seed := 1; seed <= 2000; seed++ {
		r := numbers(seed * 7919)
		var body strings.Builder
		tasks := 1 + r.below(4)
		for i := range tasks {
			fmt.Fprintf(&body, `<task name="t%d" source="%s" count="%d"><resources cores="%d" memory="%d">`, i, []string{"c", "py"}[r.below(2)], 1+r.below(12), r.below(3), r.below(3)*500)
			if r.below(3) == 0 {
				fmt.Fprintf(&body, `<require property="arch" equals="%s"/>`, []string{"amd64", "arm64"}[r.below(2)])
			}
			body.WriteString(`</resources></task>`)
		}
		fmt.Fprintf(&body, `<topology kind="%s"/>`, []string{"ring", "complete", "random", "tree", "star"}[r.below(5)])
		job := compile(t, body.String())
		job.Nodes = 1 + r.below(min(4, len(job.Processes)))
		nodes := edit(alike(1+r.below(8), 1+r.below(16)), func(_ int, n *Node) {
			n.Arch = []string{"amd64", "amd64", "arm64"}[r.below(3)]
			n.Compilers = [][]string{{"c", "python"}, {"c"}, {"python"}, {"python", "c"}}[r.below(4)]
			n.FreeSlots = r.below(n.Slots + 1)
			n.FreeCores = r.below(n.Cores + 1)
			n.FreeMemoryMiB = int64(r.below(int(n.MemoryMiB) + 1))
		})
		plan, ok := Place(job, nodes, Pack)
		again, _ := Place(job, nodes, "")
		if !slices.Equal(plan.Node, again.Node) || plan.Reason != again.Reason {
			t.Fatalf("seed %d: two answers to one question", seed)
		}
		if ok {
			fits++
			check(t, job, nodes, plan)
			if plan.Never || plan.Reason != "" {
				t.Fatalf("seed %d: a plan with the reason %q", seed, plan.Reason)
			}
			continue
		}
		if plan.Reason == "" || plan.Node != nil {
			t.Fatalf("seed %d: no plan without a reason", seed)
		}
		if easy(job, nodes) {
			t.Errorf("seed %d: refused (%s), but first fit finds a plan", seed, plan.Reason)
		}
		if plan.Never {
			empty := edit(slices.Clone(nodes), func(_ int, n *Node) {
				n.FreeSlots, n.FreeCores, n.FreeMemoryMiB = n.Slots, n.Cores, n.MemoryMiB
			})
			if _, ok := Place(job, empty, ""); ok {
				t.Errorf("seed %d: never fits, it says, but empty nodes take it: %s", seed, plan.Reason)
			}
		}
	}
	if fits < 200 || fits > 1800 {
		t.Errorf("%d of 2000 fit: the test is too easy or too hard", fits)
	}
}

// easy is an independent answer: first fit, the picky and big first.
func easy(job *profile.Job, nodes []Node) bool {
	languages := map[string]string{}
	for _, s := range job.Sources {
		languages[s.Name] = s.Language
	}
	can := func(p *profile.Process, n *Node) bool {
		for _, r := range p.Need.Require {
			if n.Arch != r.Equals {
				return false
			}
		}
		return slices.Contains(n.Compilers, languages[p.Source])
	}
	order := make([]int, len(job.Processes))
	weight := make([]int, len(job.Processes))
	for i := range order {
		order[i] = i
		p := &job.Processes[i]
		weight[i] = -p.Need.Cores*1000 - int(p.Need.MemoryMiB)
		for j := range nodes {
			if can(p, &nodes[j]) {
				weight[i] += 100_000
			}
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return weight[a] - weight[b] })
	free := slices.Clone(nodes)
	used := map[int]bool{}
	for _, i := range order {
		p, done := &job.Processes[i], false
		for j := range free {
			n := &free[j]
			if can(p, n) && n.FreeSlots > 0 && n.FreeCores >= p.Need.Cores && n.FreeMemoryMiB >= p.Need.MemoryMiB {
				n.FreeSlots--
				n.FreeCores -= p.Need.Cores
				n.FreeMemoryMiB -= p.Need.MemoryMiB
				used[j], done = true, true
				break
			}
		}
		if !done {
			return false
		}
	}
	return len(used) >= job.Nodes
}

// With equal needs a plan is found whenever there is one, however the
// compilers are strewn: here there is exactly one way to place each task.
func TestNoPossiblePlanIsMissed(t *testing.T) {
	// Node i can run languages i and i+1; the tasks fill all of it only when
	// each language goes to the node that only it can use.
	sources := []string{"c", "cpp", "go", "python", "shell"}
	var body strings.Builder
	nodes := alike(5, 4)
	for i, language := range sources {
		fmt.Fprintf(&body, `<source name="s%d" language="%s"><file name="x"><text>x</text></file></source>`, i, language)
		nodes[i].Compilers = []string{language}
		if i+1 < len(sources) {
			nodes[i].Compilers = []string{language, sources[i+1]}
		}
	}
	for i := range sources {
		fmt.Fprintf(&body, `<task name="t%d" source="s%d" count="4"/>`, i, i)
	}
	job := compile(t, body.String()+`<topology kind="complete"/>`)
	for range len(nodes) {
		plan, ok := Place(job, nodes, "")
		if !ok {
			t.Fatal(plan.Reason)
		}
		check(t, job, nodes, plan)
		nodes = append(nodes[1:], nodes[0])
	}
}

// The border between groups is as short as geometry allows.
func TestCutsAreGood(t *testing.T) {
	for _, c := range []struct {
		name, body string
		nodes      []Node
		most       int // links between nodes
	}{
		// 4 x 4 blocks of a 16 x 16 mesh: 3 cuts of 16 each way.
		{"mesh", `<task name="p" source="c" count="256"/><topology kind="mesh" direction="forward"/>`, alike(16, 16), 96 * 11 / 10},
		// 8 rows of 2^3 in a 2^6 cube: dimensions outside a subcube are cut.
		{"hypercube", `<task name="p" source="c" count="64"/><topology kind="hypercube" direction="forward"/>`, alike(8, 8), 96},
		{"line", `<task name="p" source="c" count="100"/><topology kind="line" direction="forward"/>`, alike(10, 10), 9},
		{"ring", `<task name="p" source="c" count="100"/><topology kind="ring" direction="forward"/>`, alike(10, 10), 10},
		{"butterfly", `<task name="p" source="c" count="16"/><topology kind="butterfly" direction="forward"/>`, alike(4, 4), 16},
		{"one node", `<task name="p" source="c" count="30"/><topology kind="complete"/>`, alike(3, 30), 0},
		// Two cliques joined by one link.
		{"cliques", `<task name="a" source="c" count="8"/><task name="b" source="c" count="8"/><topology kind="complete" over="a" direction="forward"/><topology kind="complete" over="b" direction="forward"/><edge from="a[3]:x" to="b[5]:x"/>`, alike(2, 8), 1},
	} {
		plan, ok := Place(compile(t, c.body), c.nodes, "")
		if !ok {
			t.Fatal(plan.Reason)
		}
		if plan.Remote > c.most {
			t.Errorf("%s: %d links cross between nodes, expected at most %d", c.name, plan.Remote, c.most)
		}
	}
}

// Who shares a served queue is kept together as who shares a channel is: here
// four farms of four, told one process after the other over all of them.
func TestQueuesKeepTheirEndsTogether(t *testing.T) {
	body := `<task name="p" source="c" count="16"/>`
	for p := range 16 {
		if p < 4 {
			body += fmt.Sprintf(`<edge from="p[%d]:out" to="queue:q%d"/>`, p, p)
		} else {
			body += fmt.Sprintf(`<edge from="queue:q%d" to="p[%d]:in"/>`, p%4, p)
		}
	}
	for k := range 4 {
		body += fmt.Sprintf(`<queue name="q%d" type="work"/>`, k)
	}
	plan, ok := Place(compile(t, body), alike(4, 4), "")
	if !ok {
		t.Fatal(plan.Reason)
	}
	for p, node := range plan.Node {
		if node != plan.Node[p%4] {
			t.Errorf("process %d is on node %d, the producer of its queue on %d", p, node, plan.Node[p%4])
		}
	}
}

func TestBigPlansAreFast(t *testing.T) {
	job := compile(t, `<task name="p" source="c" count="10000"/><topology kind="random" degree="6"/>`)
	nodes := alike(1000, 10)
	start := processorTime(t)
	plan, ok := Place(job, nodes, "")
	took := processorTime(t) - start
	if !ok {
		t.Fatal(plan.Reason)
	}
	check(t, job, nodes, plan)
	if took > time.Second && !raceDetector {
		t.Errorf("10,000 processes on 1,000 nodes took %v of processor time, expected less than a second", took)
	}
	t.Logf("10,000 processes on 1,000 nodes: %v of processor time", took)
}

// processorTime is what this process has used: other programs on the machine
// do not count.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func TestUnknownStrategy(t *testing.T) {
	if plan, ok := Place(compile(t, `<task name="p" source="c"/>`), alike(1, 1), "best"); ok || !strings.Contains(plan.Reason, `"best"`) {
		t.Errorf("found %+v", plan)
	}
}

// A job in VMs goes to nodes that can have some, with memory for one on each, and
// builds with what is in them.
func TestVMs(t *testing.T) {
	job := compile(t, `<task name="p" source="c" count="4"/>`)
	job.VM = &profile.VM{MemoryMiB: 200, Languages: []string{"c"}}
	nodes := edit(alike(3, 4), func(i int, n *Node) {
		n.Accelerator, n.Compilers, n.MemoryMiB, n.FreeMemoryMiB = "tcg", nil, 1000, 1000
		switch i {
		case 0:
			n.Accelerator = ""
		case 1:
			n.FreeMemoryMiB = 199
		}
	})
	job.Processes[0].Need.MemoryMiB = 1 // of the whole task
	plan, ok := Place(job, nodes, "")
	if !ok || plan.Used != 1 || plan.Node[0] != 2 {
		t.Errorf("found %+v", plan)
	}
	nodes[2].VMs = profile.VMLimits{CPUPercent: 50, DiskRate: 100}
	job.VM.Limits = profile.VMLimits{CPUPercent: 50, DiskMiB: 5000, DiskRate: 100, NetworkRate: 5000}
	if plan, ok := Place(job, nodes, ""); !ok {
		t.Errorf("what a node allows: %+v", plan)
	}
	job.VM.Limits.DiskRate++
	if plan, ok := Place(job, nodes[2:], ""); ok || !plan.Never || !strings.Contains(plan.Reason, "lets a VM have 100 KiB a second from and to its disk at most, fewer than 101") {
		t.Errorf("found %+v", plan)
	}
	job.VM.Limits = profile.VMLimits{DiskMiB: 300}
	disk := int64(500)
	nodes[2].FreeDiskMiB = &disk
	if plan, ok := Place(job, nodes[2:], ""); !ok {
		t.Errorf("a VM of 200 MiB that may write 300, on a disk of 500: %+v", plan)
	}
	disk = 499
	if plan, ok := Place(job, nodes[2:], ""); ok || plan.Never || !strings.Contains(plan.Reason, "has 499 MiB of disk free, fewer than the 500 that a VM may fill") {
		t.Errorf("found %+v", plan)
	}
	nodes[2].FreeDiskMiB = nil
	job.VM.Limits = profile.VMLimits{}
	job.VM.Languages = []string{"shell"}
	if plan, ok := Place(job, nodes, ""); ok || !strings.Contains(plan.Reason, "lack a C compiler") {
		t.Errorf("found %+v", plan)
	}
	job.VM.Languages = []string{"c"}
	if plan, ok := Place(job, nodes[:1], ""); ok || !plan.Never || !strings.Contains(plan.Reason, "has no OS-level VMs") {
		t.Errorf("found %+v", plan)
	}
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
