package broker

import (
	"context"
	"strings"
	"testing"

	"mvm/services/store"
	"mvm/wsdl"
)

// The audit is silent about a sound grid, with a job under way and ended ones
// in it, and finds each thing that was put wrong.
func TestAudit(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 4)
	b := g.start()
	done := g.submit(b, "done", profileOf("done", task("a", 2)))
	g.wait(b, done)
	failed := g.submit(b, "failed", profileOf("failed", task("a", 1, "exit=3")))
	g.wait(b, failed)
	running := g.submit(b, "running", profileOf("running", task("a", 2, "hang")))
	until(t, "its run", func() bool { return *g.get(b, running).State == wsdl.JobStateRunning })
	incarnation := ""
	audit := func() *Ledger {
		t.Helper()
		ledger, err := Audit(context.Background(), g.store, g.images)
		if err != nil {
			t.Fatal(err)
		}
		return ledger
	}
	ledger := audit()
	if len(ledger.Problems) > 0 || len(ledger.Jobs) != 3 {
		t.Fatalf("of a sound grid with 3 jobs it says: %+v", ledger)
	}
	if j := ledger.Jobs[1]; j.ID != failed || j.State != wsdl.JobStateFailed || j.Failures != 1 || j.Attempt != 1 || !strings.Contains(j.Reason, "exited with 3") {
		t.Errorf("the failed job: %+v", j)
	}
	records, err := g.store.Nodes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	incarnation = records[0].Incarnation

	value := func(key string) []byte {
		t.Helper()
		v, _, err := g.store.Get(context.Background(), key)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for name, c := range map[string]struct {
		wrong store.Op
		says  string
	}{
		"an unknown key":          {store.Put("broker/what", nil), "no job"},
		"a key of nobody's":       {store.Put("other", nil), "no key of this grid's"},
		"a token of no job":       {store.Put(tokenKey("x/y"), []byte(`"j-00000000"`)), "no job j-00000000"},
		"a token of another job":  {store.Put(tokenKey("done"), value(tokenKey("failed"))), "is that of job"},
		"a job without a token":   {store.Delete(tokenKey("done")), "it is missing"},
		"an unreadable status":    {store.Put(statusPrefix+done, []byte("{")), "unexpected end"},
		"no results":              {store.Delete(resultsPrefix + done), "it is missing"},
		"another's results":       {store.Put(resultsPrefix+done, value(resultsPrefix+failed)), "results of 1"},
		"early results":           {store.Put(resultsPrefix+running, value(resultsPrefix+done)), "has not ended"},
		"an attempt of no job":    {store.Put(attemptKey("j-00000000", 1)+"go", []byte("{}")), "no job j-00000000"},
		"an attempt too much":     {store.Put(attemptKey(running, 2)+"attempt", value(attemptKey(running, 1)+"attempt")), "one of 2"},
		"an attempt that is over": {store.Put(attemptKey(done, 1)+"attempt", value(attemptKey(running, 1)+"attempt")), "has ended, and has records"},
		"a go without members":    {store.Delete(attemptKey(running, 1) + "attempt"), "it is missing"},
		"another's report":        {store.Put(reportKey(running, 1, 7, 1), []byte("{}")), "no member's report"},
		"a blob that is gone":     {store.Put(resultsPrefix+done, []byte("@sha256:"+strings.Repeat("0", 64))), "not here"},
		"a live mark of no job":   {store.Name(store.Attempt{Job: "j-00000000", Number: 1, Node: "n1", Incarnation: incarnation}), "has no such member"},
		"a live mark of an end":   {store.Name(store.Attempt{Job: done, Number: 1, Node: "n1", Incarnation: incarnation}), "has no such member"},
		"another incarnation":     {store.Name(store.Attempt{Job: running, Number: 1, Node: "n1", Incarnation: "old"}), "has no such member"},
		"a lost node's heartbeat": {store.Put("grid/alive/n9", []byte("{}")), "not known"},
		"what is not the store's": {store.Put("grid/what", nil), "no key of the store's"},
	} {
		t.Run(name, func(t *testing.T) {
			key := c.wrong.Key()
			was, _, err := g.store.Get(context.Background(), key)
			if err := g.store.Commit(context.Background(), c.wrong); err != nil {
				t.Fatal(err)
			}
			if problems := strings.Join(audit().Problems, "\n"); !strings.Contains(problems, c.says) {
				t.Errorf("it says %q, expected %q", problems, c.says)
			}
			undo := store.Put(key, was)
			if err != nil {
				undo = store.Delete(key)
			}
			if err := g.store.Commit(context.Background(), undo); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("a pin of nobody's", func(t *testing.T) {
		digest, _, err := g.images.Put(context.Background(), strings.NewReader("nobody wants this"))
		if err != nil {
			t.Fatal(err)
		}
		if err := g.images.Pin(pinPrefix+digest, digest); err != nil {
			t.Fatal(err)
		}
		if problems := strings.Join(audit().Problems, "\n"); !strings.Contains(problems, "nothing refers to it") {
			t.Errorf("it says %q", problems)
		}
		if err := g.images.Unpin(pinPrefix + digest); err != nil {
			t.Fatal(err)
		}
	})
	if left := audit().Problems; len(left) > 0 {
		t.Errorf("after all was put right it says %q", left)
	}
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: running}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, running)
	g.settled()
}
