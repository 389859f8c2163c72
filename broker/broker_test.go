package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

func TestJobSucceeds(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 2)
	g.node("n2", 2)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("worker", 4)))
	s := g.wait(b, id)
	if *s.State != wsdl.JobStateSucceeded {
		t.Fatalf("the job is %s: %s", *s.State, s.Reason)
	}
	nodes := map[string]int{}
	for _, p := range s.Process {
		nodes[p.Node]++
		if *p.State != wsdl.ProcessStateExited || *p.ExitCode != 0 {
			t.Errorf("process %d: %s", *p.Id, *p.State)
		}
	}
	if nodes["n1"] != 2 || nodes["n2"] != 2 {
		t.Errorf("the processes sat on %v", nodes)
	}
	out, err := b.GetOutputContext(context.Background(), &wsdl.GetOutput{Id: id, Process: wsdl.Of(int32(3)), Name: "stdout"})
	if err != nil {
		t.Fatal(err)
	}
	if string(*out.Data) != "hello from worker\n" || !*out.End {
		t.Errorf("its output is %q, end %v", *out.Data, *out.End)
	}
	g.settled()
}

func TestJobFailsWithReason(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 4)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("good", 2, "hang"), task("bad", 1, "exit=3")))
	s := g.wait(b, id)
	if *s.State != wsdl.JobStateFailed || !strings.Contains(s.Reason, "bad on node n1 exited with 3") || !strings.Contains(s.Reason, "last words") {
		t.Fatalf("the job is %s: %s", *s.State, s.Reason)
	}
	for _, p := range s.Process[:2] {
		if *p.State != wsdl.ProcessStateKilled || p.Signal != "SIGTERM" {
			t.Errorf("process %d: %s %s", *p.Id, *p.State, p.Signal)
		}
	}
	g.settled()
	_ = time.Now
}
