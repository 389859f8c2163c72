// Package jobs holds the example jobs. Its tests run them on real grids: node
// processes of the real program on loopback, real compilers, and answers that
// were computed in another way.
package jobs

import (
	"fmt"
	"slices"
	"strings"
	"testing"

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
