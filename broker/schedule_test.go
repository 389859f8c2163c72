package broker

import (
	"context"
	"slices"
	"strings"
	"testing"

	"mvm/wsdl"
)

// scheduled is how many jobs hold room, and how many wait for room.
func (g *grid) scheduled(b *Service) (booked, waiting int) {
	b.scheduler.mu.Lock()
	defer b.scheduler.mu.Unlock()
	return len(b.scheduler.booked), b.scheduler.queues.Len()
}

// A job that ends while its back-off runs out neither waits for room nor holds
// any, whichever of the two comes first.
func TestEndedJobHoldsNothing(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 2)
	b := g.start()
	big := profileOf("big", task("a", 4))
	id := g.submit(b, "t", big)
	j, err := b.job(id)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, id)

	// The back-off's end comes after the job's.
	b.scheduler.add(j)
	until(t, "a queue without the ended job", func() bool {
		_, waiting := g.scheduled(b)
		return waiting == 0
	})

	// A round placed it just before it ended.
	members := []member{{Node: "n1", Name: "n1", Slots: 2, Processes: []int{0, 1}}}
	b.scheduler.book(id, members)
	if err := j.ask(context.Background(), placed{Members: members}); err != nil {
		t.Fatal(err)
	}
	if booked, _ := g.scheduled(b); booked != 0 {
		t.Errorf("a job that has ended holds slots of n1 for good")
	}
	if s := g.wait(b, g.submit(b, "next", profileOf("next", task("a", 2)))); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the next job is %s: %s", *s.State, s.Reason)
	}
}

// A node that is left alone after a refusal is still a node that is known.
func TestReasonKnowsRefusers(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	g.fault = func(node, operation string) error {
		if operation == "Awaken" {
			return wsdl.Faultf(wsdl.FaultCodeInternal, "its disk is full")
		}
		return nil
	}
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("a", 1)))
	until(t, "a reason after the refusal", func() bool {
		s := g.get(b, id)
		if strings.Contains(s.Reason, "no node is known") {
			t.Fatalf("it waits since %s", s.Reason)
		}
		return strings.Contains(s.Reason, "1 node known: 1 is left alone for 2s after a refusal")
	})
	plan, err := b.PlanJobContext(context.Background(), &wsdl.PlanJob{Job: profileOf("other", task("a", 1))})
	if err != nil || *plan.Fits || len(plan.Rejection) != 1 || !strings.Contains(plan.Rejection[0].Reason, "left alone") {
		t.Errorf("a dry run now: %+v, %v", plan, err)
	}
}

// TestVMsTakeMemory: what a node's VMs take that are no attempt's is not given away,
// and waited for.
func TestVMsTakeMemory(t *testing.T) {
	g := newGrid(t, nil)
	n := g.node("n1", 2)
	const all = 1 << 20 // MiB that it has
	take := func(memory int64) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.vms = memory
	}
	take(all - 100)
	b := g.start()
	free := func() int64 {
		answer, err := b.ListNodesContext(context.Background(), &wsdl.ListNodes{})
		if err != nil || len(answer.Node) != 1 {
			t.Fatalf("the nodes: %+v, %v", answer, err)
		}
		return wsdl.Or(answer.Node[0].FreeMemory, -1)
	}
	until(t, "the VMs to be known", func() bool { return free() == 100 })
	of := func(name string, memory string) *wsdl.Job {
		job := task(name, 1)
		job.Resources = &wsdl.Resources{Memory: wsdl.Of(wsdl.Number(memory))}
		return profileOf(name, job)
	}
	big, small := g.submit(b, "big", of("big", "200")), g.submit(b, "small", of("small", "100"))
	if s := g.wait(b, small); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the small one is %s: %s", *s.State, s.Reason)
	}
	until(t, "a reason", func() bool { return strings.Contains(g.get(b, big).Reason, "100 MiB of free memory") })
	take(0)
	if s := g.wait(b, big); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the big one is %s: %s", *s.State, s.Reason)
	}
	until(t, "all to be free", func() bool { return free() == all })
}

// TestFreeDisk: a job goes where there is as much disk as it requires, waits where there
// is not, and a node that tells nothing of its disk is taken.
func TestFreeDisk(t *testing.T) {
	g := newGrid(t, nil)
	nodes := g.several(2, "n1", "n2")
	tell := func(id string, disk int64) {
		n := nodes[id]
		n.mu.Lock()
		defer n.mu.Unlock()
		n.disk = &disk
	}
	tell("n1", 900)
	tell("n2", 1000)
	b := g.start()
	told := func(id string, disk int64) func() bool {
		return func() bool {
			answer, err := b.ListNodesContext(context.Background(), &wsdl.ListNodes{})
			if err != nil {
				t.Fatal(err)
			}
			return slices.ContainsFunc(answer.Node, func(n *wsdl.Node) bool { return n.Id == id && wsdl.Or(n.FreeDisk, -1) == disk })
		}
	}
	until(t, "the disks to be known", func() bool { return told("n1", 900)() && told("n2", 1000)() })
	submit := func(name string) string {
		job := task(name, 1)
		job.Resources = &wsdl.Resources{Require: []*wsdl.Requirement{{Property: wsdl.Of(wsdl.NodePropertyDisk), Minimum: wsdl.Of(wsdl.Number("1000"))}}}
		return g.submit(b, name, profileOf(name, job))
	}
	if s := g.wait(b, submit("first")); *s.State != wsdl.JobStateSucceeded || s.Process[0].Node != "n2" {
		t.Errorf("it is %s on %s: %s", *s.State, s.Process[0].Node, s.Reason)
	}
	tell("n2", 0)
	until(t, "the disk to be known", told("n2", 0))
	second := submit("second")
	until(t, "a reason", func() bool {
		reason := g.get(b, second).Reason
		return strings.Contains(reason, "900 MiB of disk free, fewer than 1000") && !strings.Contains(reason, "never")
	})
	tell("n1", 1000)
	if s := g.wait(b, second); *s.State != wsdl.JobStateSucceeded || s.Process[0].Node != "n1" {
		t.Errorf("it is %s on %s: %s", *s.State, s.Process[0].Node, s.Reason)
	}
}
