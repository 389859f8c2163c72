package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/services/image"
	"mvm/wsdl"
)

// inVMs is a job in VMs, of an image that is here, with a checkpoint a second.
func (g *grid) inVMs(job *wsdl.Job) *wsdl.Job {
	g.t.Helper()
	put := func(text string) string {
		digest, _, err := g.images.Put(context.Background(), strings.NewReader(text))
		if err != nil {
			g.t.Fatal(err)
		}
		return digest
	}
	m := image.Manifest{Format: image.ManifestFormat, Name: "minimal", Architecture: "amd64", LeastMemory: 80, Languages: []string{"shell"},
		Files: []image.File{{Part: image.Kernel, Digest: put("kernel"), Size: 6}, {Part: image.Initrd, Digest: put("initrd"), Size: 6}}}
	text, _, err := m.Encode()
	if err != nil {
		g.t.Fatal(err)
	}
	job.Policy = &wsdl.JobPolicy{Isolation: wsdl.Of(wsdl.IsolationVm), Image: put(string(text)), Checkpoint: wsdl.Of(wsdl.Number("1")), Nodes: wsdl.Of(wsdl.Number("2"))}
	return job
}

// set waits for the job's set of at least that number.
func (g *grid) set(id string, number int64) *set {
	g.t.Helper()
	var s *set
	until(g.t, "a checkpoint of the job", func() bool {
		value, _, err := g.store.Get(context.Background(), setsPrefix+id)
		if err != nil {
			return false
		}
		s = new(set)
		return unpack(g.images, value, s) == nil && s.Number >= number
	})
	return s
}

// pinned says whether a set's blobs are kept.
func (g *grid) pinned(s *set) bool { return slices.Contains(g.images.Owners(), s.Pins) }

// startAnew loses all that the node holds. (One that does not come back is lost when
// its lease is over, which a busy machine's nodes are too.)
func (n *fakeNode) startAnew() {
	n.die()
	n.join()
}

// TestSets has a job lose a node: it goes on from its newest set, which is what is
// kept, also when the broker was started anew between. At the end nothing of it is
// left.
func TestSets(t *testing.T) {
	for name, anew := range map[string]bool{"one broker": false, "another broker": true} {
		t.Run(name, func(t *testing.T) {
			g := newGrid(t, nil)
			nodes := g.several(1, "n1", "n2", "n3")
			b := g.start()
			id := g.submit(b, "t", g.inVMs(profileOf("trial", task("worker", 2, "unrestored"))))
			first := g.set(id, 1)
			second := g.set(id, 2)
			if len(second.Members) != 2 || !g.pinned(second) {
				t.Errorf("set 2 has %d members, and is not kept", len(second.Members))
			}
			until(t, "the older set to be let go of", func() bool { return !g.pinned(first) })
			if anew {
				g.stop()
				b = g.start()
			}
			last := g.set(id, 1)
			nodes[last.Members[0].Node].startAnew()
			s := g.wait(b, id)
			if *s.State != wsdl.JobStateSucceeded {
				t.Fatalf("the job is %s: %s", *s.State, s.Reason)
			}
			g.settled()
			if _, _, err := g.store.Get(context.Background(), setsPrefix+id); err == nil {
				t.Error("the job has ended, and has a set")
			}
			until(t, "the last set to be let go of", func() bool { return !g.pinned(last) })
		})
	}
}

// TestSeveralVMsOnANode has a job with a VM for each process, all on one of two
// nodes: each is an attempt of its own there. When that is lost, the other takes all.
func TestSeveralVMsOnANode(t *testing.T) {
	g := newGrid(t, nil)
	nodes := g.several(4, "n1", "n2")
	b := g.start()
	job := g.inVMs(profileOf("trial", task("worker", 4, "unrestored")))
	job.Policy.PerVM, job.Policy.Nodes = wsdl.Of(wsdl.Number("1")), nil
	id := g.submit(b, "t", job)
	last := g.set(id, 1)
	parts := map[int]bool{}
	for _, m := range last.Members {
		parts[m.Part] = true
	}
	if len(last.Members) != 4 || len(parts) != 4 || parts[0] {
		t.Fatalf("the set has %+v", last.Members)
	}
	g.stop()
	b = g.start() // it knows them again
	last = g.set(id, last.Number)
	nodes[last.Members[0].Node].startAnew()
	if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
		t.Fatalf("the job is %s: %s", *s.State, s.Reason)
	}
	g.settled()
}

// TestSetsThatFail: a set that is not whole leaves the one before, and one whose
// record is gone has the job begin anew.
func TestSetsThatFail(t *testing.T) {
	g := newGrid(t, nil)
	nodes := g.several(1, "n1", "n2", "n3")
	b := g.start()
	id := g.submit(b, "t", g.inVMs(profileOf("trial", task("worker", 2, "unrestored"))))
	g.set(id, 1)
	g.mu.Lock()
	failed := make(chan struct{}, 100)
	g.fault = func(node, operation string) error {
		if operation == "CheckpointAttempt" && node == "n1" {
			failed <- struct{}{}
			return wsdl.Faultf(wsdl.FaultCodeInternal, "the disk is full")
		}
		return nil
	}
	g.mu.Unlock()
	last := g.set(id, 1)
	if !slices.ContainsFunc(last.Members, func(m setMember) bool { return m.Node == "n1" }) {
		t.Skip("SKIPPED: the job was not placed on n1")
	}
	<-failed
	<-failed
	if now := g.set(id, 1); now.Number > last.Number+1 {
		t.Errorf("set %d was made without n1", now.Number)
	}
	for _, n := range nodes { // nobody stands still for ever
		until(t, n.id+" to go on", func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			a := n.attempts[id]
			return a == nil || a.taken == 0
		})
	}
	// The record is lost: unpinned behind the broker's back, and swept.
	last = g.set(id, 1)
	if err := g.images.Unpin(last.Pins); err != nil {
		t.Fatal(err)
	}
	if _, err := g.images.Sweep(time.Now().Add(3 * image.DefaultLease)); err != nil {
		t.Fatal(err)
	}
	nodes[last.Members[1].Node].startAnew()
	until(t, "the job to begin anew", func() bool {
		s := g.get(b, id)
		return wsdl.Or(s.State, "") == wsdl.JobStateRunning && wsdl.Or(s.Attempt, 0) >= 3
	})
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, id)
}

// hasty is a clock whose seconds, between two checkpoints, are short.
type hasty struct{ realClock }

func (c hasty) AfterFunc(d time.Duration, f func()) func() {
	if d == time.Second {
		d = 20 * time.Millisecond
	}
	return c.realClock.AfterFunc(d, f)
}

// TestBrokerDiesInASet ends the broker at each point of making a checkpoint and of
// going on from one, and starts it anew: the job goes on from a whole one, or begins
// anew, ends well, and nothing of any checkpoint is left.
func TestBrokerDiesInASet(t *testing.T) {
	t.Parallel()
	g := newGrid(t, func(c *Config) { c.Clock = hasty{} })
	g.node("n1", 2)
	g.node("n2", 2)
	type death struct {
		point string
		time  int
	}
	var deaths []death
	for _, point := range SetPoints() {
		deaths = append(deaths, death{point, 1}, death{point, 4}) // of two members, and of the second set
	}
	for _, step := range []string{"outcome", "Terminate", "requeue", "attempt", "Awaken", "go", "Instantiate", "report", "end"} {
		deaths = append(deaths, death{"before " + step, 2}, death{"after " + step, 2}, death{"after " + step, 3})
	}
	var mu sync.Mutex // guards what follows
	var now death
	passed := 0
	g.config.Pass = func(point string) {
		mu.Lock()
		defer mu.Unlock()
		if point != now.point {
			return
		}
		if passed++; passed == now.time {
			g.crash()
		}
	}
	died := 0
	for _, d := range deaths {
		mu.Lock()
		now, passed = d, 0
		mu.Unlock()
		job := g.inVMs(profileOf("trial", task("a", 2, "relapse")))
		job.Policy.Retries = wsdl.Of(wsdl.Number("9"))
		if g.live(fmt.Sprint(d.point, d.time), job, wsdl.JobStateSucceeded, false) {
			died++
		}
	}
	t.Logf("the broker died in %d of %d jobs", died, len(deaths))
	if died < len(deaths)/2 {
		t.Errorf("the broker died %d times, of %d", died, len(deaths))
	}
	g.settled()
}
