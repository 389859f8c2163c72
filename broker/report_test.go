package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// A report that was lost on its node, be it one before the last or the last,
// ends the attempt: nothing else would.
func TestLostReports(t *testing.T) {
	g := newGrid(t, func(c *Config) { c.Lease = 300 * time.Millisecond })
	n := g.node("n1", 4)
	b := g.start()

	id := g.submit(b, "gap", profileOf("gap", task("a", 2, "hang")))
	until(t, "its run", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	_, err := b.ReportContext(context.Background(), &wsdl.Report{
		Attempt: &wsdl.Attempt{Job: id, Number: 1, Node: "n1", Incarnation: n.incarnation}, Sequence: 2,
		Process: []*wsdl.ProcessStatus{{Id: wsdl.Of(int32(0)), State: wsdl.Of(wsdl.ProcessStateExited), ExitCode: wsdl.Of(int32(0))}}})
	if err != nil {
		t.Fatal(err)
	}
	if s := g.wait(b, id); *s.State != wsdl.JobStateFailed || !strings.Contains(s.Reason, "node n1: report 2 came where report 1 was due") {
		t.Errorf("with a report missing the job is %s: %s", *s.State, s.Reason)
	}

	id = g.submit(b, "last", profileOf("last", task("a", 2, "hang")))
	until(t, "its run", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	time.Sleep(2 * g.config.Lease) // it is held all the while
	if s := g.get(b, id); *s.State != wsdl.JobStateRunning {
		t.Fatalf("while its node holds it the job is %s: %s", *s.State, s.Reason)
	}
	n.forget(id, true)
	if s := g.wait(b, id); *s.State != wsdl.JobStateFailed || !strings.Contains(s.Reason, "node n1 does not hold the attempt any more") {
		t.Errorf("with its last report missing the job is %s: %s", *s.State, s.Reason)
	}
}

// What ended well while the broker was away has ended well, though its node
// does not know the attempt any more when the broker asks.
func TestEndedWhileAway(t *testing.T) {
	g := newGrid(t, func(c *Config) { c.Flush = time.Minute }) // the machine may be slow to send what is late
	n := g.node("n1", 2)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("a", 1, "sleep=100ms")))
	until(t, "its run", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	n.mu.Lock()
	a := n.attempts[id]
	n.mu.Unlock()
	g.stop()
	until(t, "its end", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.sequence == 1
	})
	n.forget(id, false)
	b = g.start()
	// Reports come late.
	g.mu.Lock()
	g.broker = nil
	g.mu.Unlock()
	until(t, "the second Instantiate", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.calls["Instantiate"] > 1
	})
	time.Sleep(50 * time.Millisecond)
	if s := g.get(b, id); *s.State != wsdl.JobStateRunning {
		t.Fatalf("before its reports came the job is %s: %s", *s.State, s.Reason)
	}
	g.mu.Lock()
	g.broker = b
	g.mu.Unlock()
	if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the job is %s: %s", *s.State, s.Reason)
	}
}
