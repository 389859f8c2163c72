package profile

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// wires is a job's channels in one comparable text, by process IDs.
func wires(job *Job) string {
	var out []string
	for _, c := range job.Channels {
		out = append(out, fmt.Sprintf("%d:%s>%d:%s", c.From.Process, c.From.Port, c.To.Process, c.To.Port))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// over is n processes of one task under a topology with these attributes.
func over(n int, attributes string) string {
	return fmt.Sprintf(`<task name="p" source="c" count="%d"/><topology %s/>`, n, attributes)
}

// degrees is how many ports each process has.
func degrees(job *Job) []int {
	out := make([]int, len(job.Processes))
	for i := range out {
		out[i] = len(job.Processes[i].Ports)
	}
	return out
}

// sound checks what holds of every topology: channel and process numbers are
// in order, a port is bound at most once each way, is listed at its process
// and at no other, and, with direction both, leads back from where it leads.
func sound(t *testing.T, job *Job, mutual bool) {
	t.Helper()
	type port struct {
		process int
		name    string
	}
	out, in := map[port]port{}, map[port]port{}
	for i, c := range job.Channels {
		if c.ID != i {
			t.Fatalf("channel %d has the ID %d", i, c.ID)
		}
		if c.Capacity < MinCapacity || bits.OnesCount(uint(c.Capacity)) != 1 {
			t.Fatalf("channel %d has the capacity %d", i, c.Capacity)
		}
		from, to := port{c.From.Process, c.From.Port}, port{c.To.Process, c.To.Port}
		if from.process == to.process {
			t.Fatalf("channel %d joins process %d to itself", i, from.process)
		}
		if _, twice := out[from]; twice {
			t.Fatalf("port %v enqueues to two channels", from)
		}
		if _, twice := in[to]; twice {
			t.Fatalf("port %v dequeues from two channels", to)
		}
		out[from], in[to] = to, from
	}
	listed := 0
	for i := range job.Processes {
		p := &job.Processes[i]
		if p.ID != i {
			t.Fatalf("process %d has the ID %d", i, p.ID)
		}
		if !slices.IsSortedFunc(p.Ports, before) {
			t.Fatalf("the ports of %s are not in natural order: %v", p.Label(), p.Ports)
		}
		for _, name := range p.Ports {
			_, o := out[port{i, name}]
			_, n := in[port{i, name}]
			if !o && !n {
				t.Fatalf("%s lists the port %s, which no channel has", p.Label(), name)
			}
			if o {
				listed++
			}
			if n {
				listed++
			}
			if mutual && out[port{i, name}] != in[port{i, name}] {
				t.Fatalf("%s:%s leads to %v but comes from %v", p.Label(), name, out[port{i, name}], in[port{i, name}])
			}
		}
	}
	if listed != 2*len(job.Channels) {
		t.Fatalf("%d ends are listed, expected %d", listed, 2*len(job.Channels))
	}
}

// parts is how many connected parts the job falls into.
func parts(job *Job) int {
	root := make([]int, len(job.Processes))
	for i := range root {
		root[i] = i
	}
	find := func(i int) int {
		for root[i] != i {
			root[i] = root[root[i]]
			i = root[i]
		}
		return i
	}
	count := len(root)
	for _, c := range job.Channels {
		if a, b := find(c.From.Process), find(c.To.Process); a != b {
			root[a] = b
			count--
		}
	}
	return count
}

func TestKindsHoldWhatTheyPromise(t *testing.T) {
	same := func(degree int) func(*testing.T, int, *Job) {
		return func(t *testing.T, n int, job *Job) {
			for i, d := range degrees(job) {
				if d != degree {
					t.Fatalf("process %d of %d has %d ports, expected %d", i, n, d, degree)
				}
			}
		}
	}
	links := func(want func(n int) int) func(*testing.T, int, *Job) {
		return func(t *testing.T, n int, job *Job) {
			if got := len(job.Channels) / 2; got != want(n) {
				t.Fatalf("%d processes have %d links, expected %d", n, got, want(n))
			}
		}
	}
	for _, c := range []struct {
		attributes string
		sizes      []int
		check      func(*testing.T, int, *Job)
		loose      bool // need not be connected
	}{
		{`kind="line"`, []int{1, 2, 3, 17}, links(func(n int) int { return n - 1 }), false},
		{`kind="ring"`, []int{2, 3, 4, 17}, same(2), false},
		{`kind="ring"`, []int{1}, same(0), false},
		{`kind="star"`, []int{1, 2, 9}, links(func(n int) int { return n - 1 }), false},
		{`kind="tree"`, []int{1, 2, 3, 4, 20}, links(func(n int) int { return n - 1 }), false},
		{`kind="tree" arity="5"`, []int{1, 6, 31, 100}, links(func(n int) int { return n - 1 }), false},
		{`kind="complete"`, []int{1, 2, 3, 12}, links(func(n int) int { return n * (n - 1) / 2 }), false},
		{`kind="mesh"`, []int{1, 2, 6, 7, 12, 36}, nil, false},
		{`kind="mesh" dimensions="1"`, []int{1, 5}, links(func(n int) int { return n - 1 }), false},
		{`kind="mesh" dimensions="3"`, []int{1, 8, 27, 30, 64}, nil, false},
		{`kind="torus"`, []int{4, 9, 16, 12}, same(4), false},
		{`kind="torus" dimensions="3"`, []int{8, 27, 24, 64}, same(6), false},
		{`kind="torus" dimensions="1"`, []int{2, 3, 9}, same(2), false},
		{`kind="hypercube"`, []int{1}, same(0), false},
		{`kind="hypercube"`, []int{16}, same(4), false},
		{`kind="butterfly"`, []int{32}, same(5), false},
		{`kind="fatTree"`, []int{3, 8, 20, 48}, nil, false},
		{`kind="fatTree" arity="4" levels="2"`, []int{24}, nil, false},
		{`kind="random"`, []int{2, 3, 10, 100}, links(func(n int) int { return max(n-1, n*min(4, n-1)/2) }), false},
		{`kind="random" degree="1"`, []int{2, 50}, links(func(n int) int { return n - 1 }), false},
		{`kind="random" degree="19" seed="77"`, []int{20}, same(19), false},
		{`kind="smallWorld"`, []int{5, 6, 20, 200}, links(func(n int) int { return 2 * n }), true},
		{`kind="smallWorld" probability="0" degree="6"`, []int{7, 30}, same(6), false},
		{`kind="smallWorld" probability="1" degree="4"`, []int{40}, links(func(n int) int { return 2 * n }), true},
	} {
		for _, n := range c.sizes {
			t.Run(fmt.Sprintf("%s n=%d", c.attributes, n), func(t *testing.T) {
				job := compile(t, over(n, c.attributes))
				sound(t, job, true)
				if c.check != nil {
					c.check(t, n, job)
				}
				if got := parts(job); got != 1 && !c.loose {
					t.Errorf("it falls into %d parts", got)
				}
				forward := compile(t, over(n, c.attributes+` direction="forward"`))
				sound(t, forward, false)
				if 2*len(forward.Channels) != len(job.Channels) {
					t.Errorf("forward has %d channels, both %d", len(forward.Channels), len(job.Channels))
				}
			})
		}
	}
}

// Kinds whose wiring has one right answer, spelled out.
func TestWiringByHand(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{over(3, `kind="line" direction="forward"`), "0:next>1:prev 1:next>2:prev"},
		{over(3, `kind="ring" direction="forward"`), "0:next>1:prev 1:next>2:prev 2:next>0:prev"},
		{over(2, `kind="ring"`), "0:next>1:prev 0:prev>1:next 1:next>0:prev 1:prev>0:next"},
		{over(3, `kind="star" direction="forward"`), "0:leaf0>1:hub 0:leaf1>2:hub"},
		{over(4, `kind="tree" direction="forward"`), "0:child0>1:parent 0:child1>2:parent 1:child0>3:parent"},
		{over(3, `kind="complete" direction="forward"`), "0:peer1>1:peer0 0:peer2>2:peer0 1:peer2>2:peer1"},
		{over(4, `kind="mesh" direction="forward" prefix="m"`), "0:meast>1:mwest 0:msouth>2:mnorth 1:msouth>3:mnorth 2:meast>3:mwest"},
		{over(3, `kind="torus" rows="1" direction="forward"`), "0:east>1:west 1:east>2:west 2:east>0:west"},
		{over(2, `kind="mesh" layers="2" rows="1" columns="1" direction="forward"`), "0:up>1:down"},
		{over(4, `kind="hypercube" direction="forward"`), "0:dim0>1:dim0 0:dim1>2:dim1 1:dim1>3:dim1 2:dim0>3:dim0"},
		{over(4, `kind="butterfly" direction="forward"`), "0:stage0>1:stage0 0:stage1>2:stage1 1:stage1>3:stage1 2:stage0>3:stage0"},
		{over(8, `kind="fatTree" direction="forward"`), "0:up0>4:down0 1:up0>4:down1 2:up0>5:down0 3:up0>5:down1 4:up0>6:down0 4:up1>7:down0 5:up0>6:down1 5:up1>7:down1"},
		{`<task name="m" source="c"/><task name="w" source="c" count="2"/><topology kind="farm" direction="forward"/>`, "0:worker0>1:master 0:worker1>2:master"},
		{`<task name="m" source="c" count="2"/><task name="w" source="c"/><topology kind="farm" direction="forward"/>`, "0:worker0>2:master0 1:worker0>2:master1"},
		{`<task name="a" source="c"/><task name="b" source="c"/><topology kind="line" over="b a" direction="forward"/>`, "1:next>0:prev"},
		// A graph: numbers in the order of first appearance, links by the neighbours' numbers.
		{`<task name="p" source="c" count="3"/><topology kind="graph" direction="forward"><graph format="edgeList"><text>
b c   # first
c a
b a left right
</text></graph></topology>`, "0:left>2:right 0:link0>1:link0 1:link1>2:link0"},
		{`<task name="p" source="c" count="3"/><topology kind="graph" direction="forward"><graph format="dot"><text>
digraph { c -> b -> {a} [dir=back]; /* backwards */ }</text></graph></topology>`, "1:link0>0:link0 2:link0>1:link1"},
		{`<task name="p" source="c" count="2"/><topology kind="graph" direction="forward"><graph format="graphml"><text><![CDATA[
<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><key id="k0" for="edge" attr.name="toPort" attr.type="string"/>
<graph edgedefault="directed"><node id="x"/><node id="y"/>
<edge source="y" target="x" sourceport="out"><data key="k0">in</data></edge><edge source="x" target="y"/></graph></graphml>]]></text></graph></topology>`, "0:link0>1:link0 1:out>0:in"},
		{`<task name="a" source="c"/><task name="b" source="c" count="2"/><edge from="outside:feed" to="a:in"/><edge from="a:out" to="b[1]:in"/><edge from="b:out" to="outside:result"/>`,
			"-1:>0:in 0:out>2:in 1:out>-1:"},
	} {
		job, err := parse(t, c.body)
		if err != nil {
			t.Errorf("%s: %v", c.body, err)
			continue
		}
		if got := wires(job); got != c.want {
			t.Errorf("%s\ngot:  %s\nwant: %s", c.body, got, c.want)
		}
	}
}

// A seed gives the same graph for ever: these digests must never change.
func TestSeedsNeverChange(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{over(50, `kind="random"`), "sha256:daa1f3b45312c4fc48bc1b2fae78da2a2460b2974514b4f1ed05be2f08fb4435"},
		{over(50, `kind="random" seed="2" degree="40"`), "sha256:efbbdedf6bca8b9feff5dd93799d14dd6b68b98996025e306f670ee44bd5d92d"},
		{over(50, `kind="smallWorld"`), "sha256:edccfec3c0bd3c29ab0105aa933f4042eec8409ae8e9e4bc2e0bd487cef6cfb4"},
		{over(50, `kind="smallWorld" seed="123456789012345678" probability="0.5" degree="6"`), "sha256:b21061d8743089b766138ce809b41178f9e1a7fadf666dd6af858147711f16f3"},
	} {
		if got := DigestOf([]byte(wires(compile(t, c.body)))); got != c.want {
			t.Errorf("%s became another graph: %s", c.body, got)
		}
	}
	// The published first numbers of SplitMix64 from 1234567.
	g := generator(1234567)
	for i, want := range []uint64{6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821} {
		if got := g.next(); got != want {
			t.Errorf("number %d is %d, expected %d", i, got, want)
		}
	}
	if wires(compile(t, over(50, `kind="random" seed="1"`))) == wires(compile(t, over(50, `kind="random" seed="2"`))) {
		t.Error("two seeds gave the same graph")
	}
}

// Every leaf of a fat tree reaches every other, by as many shortest ways as a
// k-ary n-tree has: arity^(levels-1) tops are above each leaf.
func TestFatTreeIsFull(t *testing.T) {
	job := compile(t, over(81+4*27, `kind="fatTree" arity="3" direction="forward"`))
	up := map[int][]int{}
	for _, c := range job.Channels {
		up[c.From.Process] = append(up[c.From.Process], c.To.Process)
	}
	for leaf := range 81 {
		level := map[int]bool{leaf: true}
		for range 4 {
			next := map[int]bool{}
			for p := range level {
				for _, q := range up[p] {
					next[q] = true
				}
			}
			level = next
		}
		if len(level) != 27 {
			t.Fatalf("leaf %d is under %d of 27 top switches", leaf, len(level))
		}
	}
}

// Two topologies and edges over the same tasks live together by their ports.
func TestTopologiesOverlay(t *testing.T) {
	job := compile(t, `<task name="p" source="c" count="8"/><topology kind="ring"/><topology kind="hypercube" prefix="h-"/><edge from="p[0]:x" to="p[5]:x"/><edge from="p[5]:x" to="p[0]:x"/>`)
	sound(t, job, true)
	if want := []string{"h-dim0", "h-dim1", "h-dim2", "next", "prev", "x"}; !slices.Equal(job.Processes[0].Ports, want) {
		t.Errorf("ports are %v, expected %v", job.Processes[0].Ports, want)
	}
}

func TestCompileScales(t *testing.T) {
	for _, body := range []string{
		over(10_000, `kind="torus"`), over(8192, `kind="hypercube"`), over(10_000, `kind="random" degree="8"`),
		over(10_000, `kind="smallWorld" degree="8"`), over(10_000, `kind="tree"`),
	} {
		start := processorTime(t)
		job := compile(t, body)
		if took := processorTime(t) - start; took > time.Second {
			t.Errorf("%d processes and %d channels took %v of processor time, expected well under a second", len(job.Processes), len(job.Channels), took)
		} else {
			t.Logf("%d processes, %d channels: %v", len(job.Processes), len(job.Channels), took)
		}
	}
}

// processorTime is what this process has used: other programs on the machine
// do not count.
func processorTime(t *testing.T) time.Duration {
	t.Helper()
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		t.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func BenchmarkCompile(b *testing.B) {
	for _, c := range []struct{ name, body string }{
		{"torus10000", over(10_000, `kind="torus"`)},
		{"random10000", over(10_000, `kind="random" degree="8"`)},
		{"complete1000", over(1000, `kind="complete"`)},
		{"mesh100000", over(100_000, `kind="mesh"`)},
	} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				compile(b, c.body)
			}
		})
	}
}
