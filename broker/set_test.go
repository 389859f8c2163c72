package broker

import (
	"context"
	"slices"
	"strings"
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

// pinned says which blobs of a set are kept.
func (g *grid) pinned(s *set) (count int) {
	owners := g.images.Owners()
	for _, digest := range s.Blobs {
		if slices.Contains(owners, pinPrefix+digest) {
			count++
		}
	}
	return count
}

// TestSets has a job lose a node: it goes on from its newest set, which is what is
// kept, also when the broker was started anew between. At the end nothing of it is
// left.
func TestSets(t *testing.T) {
	for name, anew := range map[string]bool{"one broker": false, "another broker": true} {
		t.Run(name, func(t *testing.T) {
			g := newGrid(t, nil)
			g.ttl = 2 * time.Second
			nodes := map[string]*fakeNode{}
			for _, id := range []string{"n1", "n2", "n3"} {
				nodes[id] = g.node(id, 1)
			}
			b := g.start()
			id := g.submit(b, "t", g.inVMs(profileOf("trial", task("worker", 2, "unrestored"))))
			first := g.set(id, 1)
			second := g.set(id, 2)
			if len(second.Members) != 2 || g.pinned(second) != len(second.Blobs) {
				t.Errorf("set 2 has %d members, and %d of its %d blobs are kept", len(second.Members), g.pinned(second), len(second.Blobs))
			}
			until(t, "the older set to be let go of", func() bool { return g.pinned(first) <= 1 }) // what both have
			if anew {
				g.stop()
				b = g.start()
			}
			last := g.set(id, 1)
			nodes[last.Members[0].Node].die()
			s := g.wait(b, id)
			if *s.State != wsdl.JobStateSucceeded {
				t.Fatalf("the job is %s: %s", *s.State, s.Reason)
			}
			g.settled()
			if _, _, err := g.store.Get(context.Background(), setsPrefix+id); err == nil {
				t.Error("the job has ended, and has a set")
			}
			until(t, "the last set to be let go of", func() bool { return g.pinned(last) == 0 })
		})
	}
}

// TestSetsThatFail: a set that is not whole leaves the one before, and one whose
// record is gone has the job begin anew.
func TestSetsThatFail(t *testing.T) {
	g := newGrid(t, nil)
	g.ttl = 2 * time.Second
	nodes := map[string]*fakeNode{}
	for _, id := range []string{"n1", "n2", "n3"} {
		nodes[id] = g.node(id, 1)
	}
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
	for _, digest := range last.Blobs {
		if err := g.images.Unpin(pinPrefix + digest); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.images.Sweep(time.Now().Add(3 * image.DefaultLease)); err != nil {
		t.Fatal(err)
	}
	nodes[last.Members[1].Node].die()
	until(t, "the job to begin anew", func() bool {
		s := g.get(b, id)
		return wsdl.Or(s.State, "") == wsdl.JobStateRunning && wsdl.Or(s.Attempt, 0) >= 3
	})
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, id)
}
