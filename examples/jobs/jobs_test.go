// Package jobs holds the example jobs. Its tests run them on real grids: node
// processes of the real program on loopback, real compilers, and answers that
// were computed in another way.
package jobs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/services/client"
	"mvm/wsdl"
)

func TestSunspots(t *testing.T) {
	g := startGrid(t, 4, 8)
	for _, processes := range []string{"4", "8", "16", "32"} {
		job := g.run(request(t, "sunspots/sunspots.xml", "processes="+processes))
		checkSunspots(t, string(g.file(job, "transform", 0, "stdout")), g.file(job, "transform", 0, "spectrum.csv"))
		g.crossed(job, 4)
	}
	job := g.run(request(t, "sunspots/sunspots.xml", "processes=1", "nodes=1"))
	checkSunspots(t, string(g.file(job, "transform", 0, "stdout")), g.file(job, "transform", 0, "spectrum.csv"))
	g.crossed(job, 1)
	for _, b := range job.Build {
		if !wsdl.Or(b.Cached, false) {
			t.Errorf("source %s was compiled again on node %s", b.Source, b.Node)
		}
	}
}

func TestHeat(t *testing.T) {
	g := startGrid(t, 4, 4)
	for _, mesh := range [][]string{{"rows=3", "columns=2", "processes=6"}, {"rows=2", "columns=5", "processes=10"}} {
		job := g.run(request(t, "heat/heat.xml", append(mesh, "size=60", "steps=300")...))
		checkHeat(t, g.file(job, "tile", 0, "heat.png"), 60, 300)
		g.crossed(job, 4)
	}
}

func TestMandelbrot(t *testing.T) {
	g := startGrid(t, 4, 3)
	for _, workers := range []string{"3", "9"} {
		job := g.run(request(t, "mandelbrot/mandelbrot.xml", "workers="+workers, "width=120", "height=80", "limit=100"))
		checkMandelbrot(t, string(g.file(job, "master", 0, "stdout")), g.file(job, "master", 0, "mandelbrot.png"), 120, 80, 100)
		g.crossed(job, 4)
	}
}

func TestCannon(t *testing.T) {
	g := startGrid(t, 4, 4)
	for _, torus := range []struct {
		side  int
		named []string
	}{{3, []string{"side=3", "processes=9"}}, {2, []string{"side=2", "processes=4"}}} {
		job := g.run(request(t, "cannon/cannon.xml", append(torus.named, "size=60")...))
		var blocks [][]byte
		for i := range torus.side * torus.side {
			blocks = append(blocks, g.file(job, "block", i, "block.txt"))
		}
		checkCannon(t, blocks, 60)
		g.crossed(job, 4)
	}
}

func TestPipeline(t *testing.T) {
	g := startGrid(t, 3, 3)
	var before []string
	for _, nodes := range []int{3, 1} {
		job := g.run(request(t, "pipeline/pipeline.xml", "top=5", fmt.Sprintf("nodes=%d", nodes)))
		checkPipeline(t, string(g.file(job, "count", 0, "stdout")), g.file(job, "count", 0, "words.txt"), 5)
		g.crossed(job, nodes)
		if before != nil && !slices.Equal(before, digests(job)) {
			t.Errorf("builds differ between node counts: %v and %v", before, digests(job))
		}
		before = digests(job)
	}
}

func TestFarm(t *testing.T) {
	g := startGrid(t, 4, 4)
	for _, farm := range [][2]int{{6, 4}, {2, 1}} {
		workers, nodes := farm[0], farm[1]
		job := g.run(request(t, "farm/farm.xml", fmt.Sprintf("workers=%d", workers), fmt.Sprintf("nodes=%d", nodes), "limit=200000", "orders=50"))
		var shares []string
		for i := range workers {
			shares = append(shares, string(g.file(job, "worker", i, "stdout")))
		}
		checkFarm(t, string(g.file(job, "add", 0, "stdout")), g.file(job, "add", 0, "primes.txt"), shares, 200000, 50)
		g.crossed(job, nodes)
	}
}

// What a C program writes as XDR a Python program reads as JSON.
func TestTranslate(t *testing.T) {
	g := startGrid(t, 2, 2)
	for _, nodes := range []int{2, 1} {
		job := g.run(request(t, "translate/translate.xml", fmt.Sprintf("nodes=%d", nodes)))
		checkTranslate(t, string(g.file(job, "period", 0, "stdout")), g.file(job, "period", 0, "orbit.csv"), 15)
		g.crossed(job, nodes)
	}
}

// register registers the codec or rule in a file, and gives its version.
func (g *grid) register(path string) int {
	g.t.Helper()
	p, _, err := client.LoadProfile(path, "", "")
	if err != nil {
		g.t.Fatal(err)
	}
	version, err := g.client.Register(g.t.Context(), p)
	if err != nil {
		g.t.Fatal(err)
	}
	return version
}

// A profile's links are what it asks for, to a tenth, within a node and between
// two. Of a busy machine the best of some runs is judged.
func TestNetwork(t *testing.T) {
	g := startGrid(t, 2, 2)
	for _, nodes := range []int{1, 2} {
		for _, asked := range [][3]float64{{5, 10, 0.1}, {50, 1, 0.5}} {
			names := []string{"latency", "bandwidth", "loss"}
			arguments := []string{fmt.Sprintf("nodes=%d", nodes)}
			for k, name := range names {
				arguments = append(arguments, fmt.Sprintf("%s=%v", name, asked[k]))
			}
			var seen []string
			within := [3]bool{}
			for len(seen) < 6 && within != [3]bool{true, true, true} {
				job := g.run(request(t, "network/network.xml", arguments...))
				g.crossed(job, nodes)
				text := string(g.file(job, "far", 0, "stdout"))
				var got [3]float64
				if _, err := fmt.Sscanf(text, "latency %f ms, bandwidth %f Mbit/s, loss %f", &got[0], &got[1], &got[2]); err != nil {
					t.Fatalf("%q: %v", text, err)
				}
				for k := range got {
					within[k] = within[k] || got[k] >= 0.9*asked[k] && got[k] <= 1.1*asked[k]
				}
				if got[0] < 0.9*asked[0] {
					t.Errorf("half of the items took less than %v ms over a link of %v ms", got[0], asked[0])
				}
				seen = append(seen, text)
			}
			if within != [3]bool{true, true, true} {
				t.Errorf("on %d nodes %v was asked for, and seen: %s", nodes, asked, strings.Join(seen, ""))
			}
		}
	}
}

// A codec that is registered as source, in C, translates for a program in Python,
// and a rule, in Python, says what goes first and what is dropped.
func TestAlarms(t *testing.T) {
	g := startGrid(t, 2, 2)
	g.register("alarms/registered/frame.xml")
	g.register("alarms/registered/urgent.xml")
	for _, nodes := range []int{2, 1} {
		job := g.run(request(t, "alarms/alarms.xml", fmt.Sprintf("nodes=%d", nodes)))
		checkAlarms(t, g.file(job, "monitor", 0, "alarms.txt"), 12)
		g.crossed(job, nodes)
	}
}

// Collectives over any number of processes and any tree.
func TestSort(t *testing.T) {
	g := startGrid(t, 4, 4)
	for _, c := range [][4]int{{1, 2, 1, 1000}, {2, 2, 2, 1000}, {3, 2, 3, 0}, {8, 2, 4, 100000}, {13, 3, 4, 100000}} {
		processes, arity, nodes, keys := c[0], c[1], c[2], c[3]
		job := g.run(request(t, "sort/sort.xml", fmt.Sprintf("processes=%d", processes), fmt.Sprintf("arity=%d", arity),
			fmt.Sprintf("nodes=%d", nodes), fmt.Sprintf("keys=%d", keys)))
		checkSort(t, string(g.file(job, "sorter", 0, "stdout")), string(g.file(job, "sorter", 0, "sorted.txt")), processes, keys)
		g.crossed(job, nodes)
	}
}

// Registered codecs and rules are put on a queue while items flow through it, in
// one version and then the next: each item comes once, in one form.
func TestLogicOnALiveQueue(t *testing.T) {
	g := startGrid(t, 2, 2)
	program := func(kind wsdl.ProfileKind, name, answer string) {
		t.Helper()
		source := &wsdl.Source{Name: name, Language: wsdl.Of(wsdl.LanguagePython), File: []*wsdl.SourceFile{{Name: name + ".py", Text: `
import struct, sys
while head := sys.stdin.buffer.read(4):
    item = sys.stdin.buffer.read(struct.unpack(">I", head)[0])
    answer = ` + answer + `
    sys.stdout.buffer.write(struct.pack(">BI", 0, len(answer)) + answer)
    sys.stdout.buffer.flush()
`}}}
		p := &wsdl.Profile{Kind: &kind, Name: name, Description: "for TestLogicOnALiveQueue"}
		if kind == wsdl.ProfileKindCodec {
			p.Codec = source
		} else {
			p.Rule = source
		}
		if _, err := g.client.Register(t.Context(), p); err != nil {
			t.Fatal(err)
		}
	}
	program(wsdl.ProfileKindCodec, "tag", `item + b" one"`)
	program(wsdl.ProfileKindCodec, "tag", `item + b" two"`)
	program(wsdl.ProfileKindRule, "newest", `struct.pack(">q", -int(item[2:].split()[0]))`)
	for _, nodes := range []int{2, 1} {
		id := g.submit(request(t, "testdata/stream.xml", fmt.Sprintf("nodes=%d", nodes)))
		// moved waits until more has come to the queue.
		moved := func() {
			t.Helper()
			at := int64(-1)
			g.eventually("items flow", func() (bool, string) {
				found, err := g.client.Queues(t.Context(), &wsdl.ListQueues{Job: id})
				if err != nil {
					return false, err.Error()
				}
				for _, s := range found.Queue {
					if in := wsdl.Or(s.ItemsIn, 0); s.Name == "stream" && at < 0 {
						at = in
					} else if s.Name == "stream" && in > at+100 {
						return true, ""
					}
				}
				return false, fmt.Sprintf("%d items came", at)
			})
		}
		moved()
		tag := func(version string) *wsdl.EncoderChain {
			return &wsdl.EncoderChain{Encoder: []*wsdl.Encoder{{Registered: "tag", Version: wsdl.Of(wsdl.Number(version))}}}
		}
		for _, change := range []*wsdl.ChangeQueue{
			{Encoders: tag("1")}, {Rule: wsdl.Of("newest")}, {Encoders: tag("2")}, {Encoders: &wsdl.EncoderChain{}}, {Rule: wsdl.Of("")},
		} {
			change.Job, change.Queue, change.WaitMillis = id, "stream", 20000
			if _, err := g.client.ChangeQueue(t.Context(), change); err != nil {
				t.Fatalf("change %+v: %v", change, err)
			}
			moved()
		}
		if _, err := g.client.Enqueue(t.Context(), id, "stop", [][]byte{[]byte("stop")}, true, time.Second); err != nil {
			t.Fatal(err)
		}
		job := g.wait(id)
		if wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
			t.Fatalf("job %s is %s: %s", id, wsdl.Or(job.State, ""), job.Reason)
		}
		count, err := strconv.Atoi(strings.TrimSpace(string(g.file(job, "numbers", 0, "stdout"))))
		if err != nil {
			t.Fatal(err)
		}
		tags := make([]string, count)
		seen := make([]bool, count)
		for line := range strings.Lines(string(g.file(job, "keep", 0, "items.txt"))) {
			number, tag, _ := strings.Cut(strings.TrimSpace(line), " ")
			n, err := strconv.Atoi(number)
			if err != nil || n < 0 || n >= count || seen[n] {
				t.Fatalf("%q came, of %d numbers, or came again", line, count)
			}
			seen[n], tags[n] = true, tag
		}
		if slices.Contains(seen, false) {
			t.Errorf("of %d numbers %d is the first that did not come", count, slices.Index(seen, false))
		}
		if forms := slices.Compact(tags); !slices.Equal(forms, []string{"", "one", "two", ""}) {
			t.Errorf("the forms follow each other as %q", forms)
		}
		g.crossed(job, nodes)
		t.Logf("%d numbers", count)
	}
}

// A node's own file says what queues it keeps: jobs go elsewhere, or wait with the
// reason; one job is not refused for another's sake.
func TestNodeLimitsQueues(t *testing.T) {
	file := filepath.Join(t.TempDir(), "limits.xml")
	if err := os.WriteFile(file, []byte(`<queueLimits xmlns="urn:mvm:1" types="fifo" registered="none" channels="3" machines="1"/>`), 0o644); err != nil {
		t.Fatal(err)
	}
	front := startNode(t, "front", "--roles", "backend,frontend")
	strict := startNode(t, "strict", "--name", "strict", "--slots", "8", "--join", front.url, "--queue-limits", file)
	g := dialGrid(t, front, 2, front, strict)
	g.register("alarms/registered/frame.xml")
	g.register("alarms/registered/urgent.xml")
	alarms := g.submit(request(t, "alarms/alarms.xml", "nodes=1"))
	reason := func(id, want string) {
		t.Helper()
		g.eventually("the job waits, as "+want, func() (bool, string) {
			job, err := g.client.Job(t.Context(), id)
			if err != nil {
				return false, err.Error()
			}
			return wsdl.Or(job.State, "") == wsdl.JobStatePending && strings.Contains(job.Reason, want), string(wsdl.Or(job.State, "")) + ": " + job.Reason
		})
	}
	reason(alarms, "keeps no queue with the registered codec frame")
	// What only the node itself can count, it refuses; and it has one queue-level VM.
	if _, err := g.client.Register(t.Context(), &wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "loop",
		Topology: &wsdl.Topology{Kind: wsdl.Of(wsdl.TopologyKindRing)}}); err != nil {
		t.Fatal(err)
	}
	token := g.submit(request(t, "testdata/token.xml", "topology=loop"))
	reason(token, `12 channels: the rule channels="3" of `+file)
	if _, err := g.client.Cancel(t.Context(), token, ""); err != nil {
		t.Fatal(err)
	}
	stream := g.submit(request(t, "testdata/stream.xml", "nodes=1"))
	g.eventually("the stream runs", func() (bool, string) {
		job, err := g.client.Job(t.Context(), stream)
		if err != nil {
			return false, err.Error()
		}
		return wsdl.Or(job.State, "") == wsdl.JobStateRunning, string(wsdl.Or(job.State, "")) + ": " + job.Reason
	})
	second := g.submit(request(t, "testdata/stream.xml", "nodes=1"))
	reason(second, "at the 1 queue-level VMs that its own file allows")
	change, err := g.client.ChangeQueue(t.Context(), &wsdl.ChangeQueue{Job: stream, Queue: "stream", Type_: wsdl.Of(wsdl.QueueTypeLifo), WaitMillis: 5000})
	if err != nil || !strings.Contains(change.Reason, `does not let its queues have queues of type lifo: the rule types="fifo" of `+file) {
		t.Errorf("a change to lifo is answered %+v, %v", change, err)
	}
	for _, id := range []string{stream, second} {
		if _, err := g.client.Cancel(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	startNode(t, "free", "--name", "free", "--slots", "2", "--join", front.url)
	if job := g.wait(alarms); wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
		t.Fatalf("job %s is %s: %s", job.Id, wsdl.Or(job.State, ""), job.Reason)
	}
}

// Flynn's four forms of machines are one set of programs, wired in four ways.
func TestFlynn(t *testing.T) {
	g := startGrid(t, 4, 4)
	all := []string{"divisors", "collatz", "totient", "squares"}
	for _, form := range []struct {
		name      string
		functions []string // of each stream of numbers
		streams   int
		nodes     int
	}{
		{"sisd", all[:1], 1, 1},
		{"simd", all[:1], 4, 4},
		{"misd", all, 1, 4},
		{"mimd", nil, 4, 4}, // the k-th function of the k-th stream
	} {
		job := g.run(request(t, "flynn/"+form.name+".xml", "numbers=50"))
		want := map[string][][2]int{} // function -> first and last number
		for k := range form.streams {
			functions := form.functions
			if functions == nil {
				functions = all[k : k+1]
			}
			for _, f := range functions {
				want[f] = append(want[f], [2]int{k*50 + 1, (k + 1) * 50})
			}
		}
		checkFlynn(t, string(g.file(job, "collect", 0, "results.txt")), want)
		g.crossed(job, form.nodes)
	}
}

// A later instruction replaces the one before when that is done, and whatever is
// wrong with an instruction, its program or its items is said of the item.
func TestInstructions(t *testing.T) {
	g := startGrid(t, 1, 16)
	for _, c := range []struct {
		name, script string
		shows        string // by the taker of the results
		says         string // by the job, which then fails
	}{
		{"one after the other", `
    p.instruct(python + b"out.enqueue(b'first ' + item)")
    p.enqueue(b"a")
    p.enqueue(b"b" * 3000000)
    p.instruct(head + b'shell -e\necho "in the shell: $*" >&2; exit 0')
    p.instruct(python.replace(b"import mvm", b"import mvm, sys") + b"out.enqueue(b'second ' + item[:1] + sys.argv[1].encode())")
    p.enqueue(b"c")`, "first a 7\nfirst " + strings.Repeat("b", 24) + " 3000006\nsecond can argument 19\n", ""},
		{"a program that instructs", `
    p.instruct(python + b"out.instruct(item); out.enqueue(item)")
    p.enqueue(b"a")`, "a 1 instruction\na 1\n", ""},
		{"no program", `
    p.instruct(head + b"c -O1\nint main(void) { return nothing; }")`, "", "item 1 of port hub, an instruction in c: source of the instruction does not build: gcc answered with exit status 1"},
		{"the compiler's words", `
    p.instruct(head + b"c -O1\nint main(void) { return nothing; }")`, "", "main.c:1:25: error: "},
		{"no instruction", `
    p.instruct(b"hello")`, "", "item 1 of port hub is no instruction: it begins with \"hello\""},
		{"no language", `
    p.instruct(head + b"cobol\n")`, "", "the language \"cobol\" is none of"},
		{"no flag", `
    p.instruct(head + b"c -fplugin=x\n")`, "", "-fplugin=x"},
		{"only data", `
    p.enqueue(b"x")`, "", "item 1 of port hub is data, and no instruction came before it on any port"},
		{"refused", `
    p.instruct(python + b"out.enqueue(b'%d' % (10 // int(item)))")
    for k in range(-3, 4): p.enqueue(b"%d" % k)`, "-4 2\n-5 2\n-10 3\n", "the program of item 1 of port hub exited with 1 after it took item 5 of port hub"},
		{"the program's words", `
    p.instruct(python + b"out.enqueue(b'%d' % (10 // int(item)))")
    for k in range(-3, 4): p.enqueue(b"%d" % k)`, "-4 2\n-5 2\n-10 3\n", "ZeroDivisionError"},
		{"crash", `
    p.instruct(head + b"c\n#include <mvm.h>\nint main(void) { char c; mvm_dequeue(mvm_open(\"in\"), &c, 1); return *(volatile int *)0; }")
    p.enqueue(b"x")`, "", "the program of item 1 of port hub was killed by SIGSEGV after it took item 2 of port hub"},
		{"ends early", `
    p.instruct(python + b"break")
    p.enqueue(b"x")
    p.enqueue(b"y")`, "", "the program of item 1 of port hub has ended before item 3 of port hub"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := &grid{t, g.nodes, g.client}
			var script strings.Builder // exec takes no indented block
			for line := range strings.Lines(strings.TrimPrefix(c.script, "\n")) {
				script.WriteString(strings.TrimPrefix(line, "    "))
			}
			job := g.wait(g.submit(request(t, "testdata/instructed.xml", "script="+script.String())))
			if state := wsdl.Or(job.State, ""); (state == wsdl.JobStateSucceeded) != (c.says == "") || !strings.Contains(job.Reason, c.says) {
				t.Fatalf("the job is %s: %s\nwant it to say %s", state, job.Reason, c.says)
			}
			// A failed attempt is over before the last results are shown.
			if shown := string(g.file(job, "show", 0, "stdout")); c.says == "" && shown != c.shows || !strings.HasPrefix(c.shows, shown) {
				t.Errorf("shown is %.300q, want %.300q", shown, c.shows)
			}
		})
	}

	// However many processors have it, an instruction is built once a node.
	const many = `p.instruct(head + b"c\n#include <mvm.h>\nint main(void) { mvm_enqueue(mvm_open(\"out\"), \"built\", 5); return 0; }")`
	job := g.run(request(t, "testdata/instructed.xml", "script="+many, "processors=12"))
	if shown := string(g.file(job, "show", 0, "stdout")); shown != strings.Repeat("built 5\n", 12) {
		t.Errorf("shown is %q", shown)
	}
	programs := 0
	err := filepath.WalkDir(g.nodes[0].dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Name() == "program" {
			var binary []byte
			if binary, err = os.ReadFile(path); strings.Contains(string(binary), "built\x00") {
				programs++
			}
		}
		return err
	})
	if err != nil || programs != 1 {
		t.Errorf("it was built %d times, want once: %v", programs, err)
	}
}

// An item that cannot be converted fails the job and says which, whose, where
// and why; what was before it comes through, and nothing after it.
func TestUntranslated(t *testing.T) {
	g := startGrid(t, 2, 2)
	for _, nodes := range []string{"2", "1"} {
		job := g.wait(g.submit(request(t, "testdata/untranslated.xml", "nodes="+nodes)))
		const want = "queue numbers: item 17 of sender[0]: step 1, decode xdr double<>: at byte 4 of 5: element 0: 8 bytes are needed, 1 are left"
		if wsdl.Or(job.State, "") != wsdl.JobStateFailed || !strings.Contains(job.Reason, want) {
			t.Errorf("the job is %s: %s\nwant it to say %s", wsdl.Or(job.State, ""), job.Reason, want)
		}
		if said := string(g.file(job, "receiver", 0, "stdout")); !strings.HasPrefix("1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n13\n14\n15\n16\n", said) {
			t.Errorf("the receiver got %q", said)
		}
	}
}

// digests are the builds of a job, without repetition.
func digests(job *wsdl.JobStatus) []string {
	var all []string
	for _, b := range job.Build {
		all = append(all, b.Digest)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// One program runs over two registered topologies with the same build, and one
// registered topology serves two programs.
func TestRegisteredTopologies(t *testing.T) {
	g := startGrid(t, 2, 4)
	for _, kind := range []string{"ring", "complete"} {
		if _, err := g.client.Register(t.Context(), &wsdl.Profile{
			Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "wiring-" + kind, Description: "for TestRegisteredTopologies",
			Topology: &wsdl.Topology{Kind: wsdl.Of(wsdl.TopologyKind(kind))},
		}); err != nil {
			t.Fatal(err)
		}
	}
	ring := g.run(request(t, "testdata/rumour.xml", "topology=wiring-ring"))
	complete := g.run(request(t, "testdata/rumour.xml", "topology=wiring-complete"))
	if a, b := digests(ring), digests(complete); len(a) != 1 || !slices.Equal(a, b) {
		t.Errorf("builds differ between topologies: %v and %v", a, b)
	}
	// The rumour says over how many ports it was heard: 2 in a ring, 5 in a complete graph.
	for _, run := range []struct {
		job  *wsdl.JobStatus
		want string
	}{{ring, "heard 2\n"}, {complete, "heard 5\n"}} {
		for i := range 6 {
			if got := string(g.file(run.job, "gossip", i, "stdout")); got != run.want {
				t.Errorf("process %d of %s said %q, want %q", i, run.job.Id, got, run.want)
			}
		}
	}
	other := g.run(request(t, "testdata/token.xml", "topology=wiring-ring"))
	if got := string(g.file(other, "station", 0, "stdout")); got != "the token went through 6 stations\n" {
		t.Errorf("the token ring said %q", got)
	}

	// A registered job is submitted by its name alone, with other parameters.
	profile, _, err := client.LoadProfile("testdata/token.xml", "token", "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.client.Register(t.Context(), profile); err != nil {
		t.Fatal(err)
	}
	again := g.run(client.Request{Profile: "token", Arguments: map[string]string{"topology": "wiring-ring", "stations": "4"}})
	if got := string(g.file(again, "station", 0, "stdout")); got != "the token went through 4 stations\n" {
		t.Errorf("the registered token ring said %q", got)
	}
}
