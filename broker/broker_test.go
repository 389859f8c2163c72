package broker

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

// until polls for something that comes soon.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("%s did not come", what)
		}
		time.Sleep(time.Millisecond)
	}
}

func (g *grid) get(b *Service, id string) *wsdl.JobStatus {
	g.t.Helper()
	answer, err := b.GetJobContext(context.Background(), &wsdl.GetJob{Id: id})
	if err != nil {
		g.t.Fatal(err)
	}
	return answer.Job
}

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
}

func TestTokenSubmitsOnce(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	b := g.start()
	first := g.submit(b, "t", profileOf("one", task("a", 1)))
	if again := g.submit(b, "t", profileOf("other", task("a", 1))); again != first {
		t.Errorf("the token got %s, and then %s", first, again)
	}
	g.wait(b, first)
	g.stop()
	b = g.start()
	if again := g.submit(b, "t", profileOf("other", task("a", 1))); again != first {
		t.Errorf("after a restart the token got %s, expected %s", again, first)
	}
	if other := g.submit(b, "u", profileOf("one", task("a", 1))); other <= first {
		t.Errorf("the later job %s does not sort after %s", other, first)
	}
	for _, token := range []string{"", strings.Repeat("x", maxToken+1)} {
		if _, err := b.SubmitJobContext(context.Background(), &wsdl.SubmitJob{Token: token, Job: profileOf("one", task("a", 1))}); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("a token of %d characters: %v", len(token), err)
		}
	}
}

func TestRefusedProfile(t *testing.T) {
	g := newGrid(t, nil)
	b := g.start()
	bad := profileOf("bad", task("a", 1), task("a", 1))
	bad.Task[1].Source = "nowhere"
	_, err := b.SubmitJobContext(context.Background(), &wsdl.SubmitJob{Token: "t", Job: bad})
	if wsdl.CodeOf(err) != wsdl.FaultCodeInvalidProfile || len(faultOf(err).Problem) < 2 {
		t.Errorf("a bad profile: %v", err)
	}
	missing := profileOf("missing", task("a", 1))
	missing.Source[0].File[0] = &wsdl.SourceFile{Name: "s.sh", Digest: "sha256:" + strings.Repeat("0", 64)}
	if _, err := b.SubmitJobContext(context.Background(), &wsdl.SubmitJob{Token: "t", Job: missing}); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("a blob that is nowhere: %v", err)
	}
	if _, err := b.SubmitJobContext(context.Background(), &wsdl.SubmitJob{Token: "t"}); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
		t.Errorf("no profile: %v", err)
	}
	if _, err := b.GetJobContext(context.Background(), &wsdl.GetJob{Id: "j-nothere0"}); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("no job: %v", err)
	}
}

// A job that does not fit waits with a reason, and starts when a node joins;
// later, smaller jobs go ahead of it.
func TestPendingReason(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	b := g.start()
	big := g.submit(b, "big", profileOf("big", task("a", 3)))
	until(t, "a reason", func() bool { return strings.Contains(g.get(b, big).Reason, "slot") })
	s := g.get(b, big)
	if *s.State != wsdl.JobStatePending {
		t.Fatalf("it is %s", *s.State)
	}
	small := g.submit(b, "small", profileOf("small", task("a", 1)))
	if s := g.wait(b, small); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the small one is %s: %s", *s.State, s.Reason)
	}
	answer, err := b.WaitJobContext(context.Background(), &wsdl.WaitJob{Id: big, Revision: 1})
	if err != nil || answer.Job.Revision <= 1 {
		t.Errorf("a poll from revision 1: %v %v", answer, err)
	}
	g.node("n2", 2)
	if s := g.wait(b, big); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the big one is %s: %s", *s.State, s.Reason)
	}
	g.settled()
}

func TestPriority(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	b := g.start()
	holder := g.submit(b, "holder", profileOf("holder", task("a", 1, "hang")))
	until(t, "the holder", func() bool { return *g.get(b, holder).State == wsdl.JobStateRunning })
	var ids []string
	for i, priority := range []string{"10", "90", "50"} {
		j := profileOf("p"+priority, task("a", 1, "sleep=2ms"))
		j.Policy = &wsdl.JobPolicy{Priority: wsdl.Of(wsdl.Number(priority))}
		ids = append(ids, g.submit(b, fmt.Sprint("t", i), j))
	}
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: holder, Reason: "enough"}); err != nil {
		t.Fatal(err)
	}
	var started []time.Time
	for _, id := range ids {
		started = append(started, g.wait(b, id).Started.ToGoTime())
	}
	if !(started[1].Before(started[2]) && started[2].Before(started[0])) {
		t.Errorf("priorities 10, 90, 50 started at %v", started)
	}
	s := g.wait(b, holder) // its room was free before its last report had come
	if *s.State != wsdl.JobStateCancelled || s.Reason != "cancelled: enough" {
		t.Errorf("the cancelled one is %s: %s", *s.State, s.Reason)
	}
	if answer, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: ids[0]}); err != nil || *answer.State != wsdl.JobStateSucceeded {
		t.Errorf("cancelling an ended job: %v %v", answer, err)
	}
	g.settled()
}

// A node that the broker does not know to be full answers busy: the rest of the
// gang is terminated, and the job starts once there is room.
func TestBusyNode(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 1)
	full := g.node("n2", 1)
	full.mu.Lock()
	full.free = 0
	full.mu.Unlock()
	b := g.start()
	id := g.submit(b, "t", profileOf("gang", task("a", 2)))
	until(t, "a second try", func() bool {
		full.mu.Lock()
		defer full.mu.Unlock()
		return full.calls["Awaken"] > 2
	})
	full.mu.Lock()
	full.free = 1
	full.mu.Unlock()
	s := g.wait(b, id)
	if *s.State != wsdl.JobStateSucceeded || *s.Attempt < 3 {
		t.Errorf("it is %s after %d attempts: %s", *s.State, *s.Attempt, s.Reason)
	}
	g.settled()
}

// A node that dies takes its part of the attempt with it; the next attempt
// begins when its lease has run out.
func TestLostNode(t *testing.T) {
	g := newGrid(t, nil)
	g.ttl = time.Second
	g.node("n1", 1)
	dying := g.node("n2", 1)
	b := g.start()
	j := profileOf("trial", task("a", 1), task("b", 1, "sleep=20ms"))
	id := g.submit(b, "none", profileOf("hanging", task("a", 2, "hang")))
	until(t, "its run", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	dying.die()
	s := g.wait(b, id)
	if *s.State != wsdl.JobStateFailed || !strings.Contains(s.Reason, "node n2 was lost") {
		t.Errorf("it is %s: %s", *s.State, s.Reason)
	}
	for _, p := range s.Process {
		if want := map[string]wsdl.ProcessState{"n1": wsdl.ProcessStateKilled, "n2": wsdl.ProcessStateLost}[p.Node]; *p.State != want {
			t.Errorf("process %d on %s is %s, expected %s", *p.Id, p.Node, *p.State, want)
		}
	}
	// Without n2 the next one waits; it comes back as another incarnation.
	next := g.submit(b, "next", j)
	until(t, "a reason", func() bool { return g.get(b, next).Reason != "" })
	nodes, err := b.ListNodesContext(context.Background(), &wsdl.ListNodes{})
	if err != nil || len(nodes.Node) != 2 || nodes.Node[0].State != "up" || nodes.Node[1].State != "lost" {
		t.Errorf("the nodes are %v, %v", nodes.Node, err)
	}
	dying.join()
	if s := g.wait(b, next); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("the next one is %s: %s", *s.State, s.Reason)
	}
	g.settled()
}

func TestStaleReports(t *testing.T) {
	g := newGrid(t, nil)
	n := g.node("n1", 1)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("a", 1, "hang")))
	until(t, "its run", func() bool { return *g.get(b, id).State == wsdl.JobStateRunning })
	report := func(change func(*wsdl.Report)) error {
		r := &wsdl.Report{Attempt: &wsdl.Attempt{Job: id, Number: 1, Node: "n1", Incarnation: n.incarnation}, Sequence: 1,
			Process: []*wsdl.ProcessStatus{{Id: wsdl.Of(int32(0)), State: wsdl.Of(wsdl.ProcessStateRunning)}}}
		change(r)
		_, err := b.ReportContext(context.Background(), r)
		return err
	}
	for name, c := range map[string]struct {
		change func(*wsdl.Report)
		want   wsdl.FaultCode
	}{
		"fine":              {func(r *wsdl.Report) {}, ""},
		"repeated":          {func(r *wsdl.Report) {}, ""},
		"no such job":       {func(r *wsdl.Report) { r.Attempt.Job = "j-00000000" }, wsdl.FaultCodeStale},
		"older attempt":     {func(r *wsdl.Report) { r.Attempt.Number = 0 }, wsdl.FaultCodeStale},
		"later attempt":     {func(r *wsdl.Report) { r.Attempt.Number = 2 }, wsdl.FaultCodeStale},
		"other node":        {func(r *wsdl.Report) { r.Attempt.Node = "n9" }, wsdl.FaultCodeStale},
		"other incarnation": {func(r *wsdl.Report) { r.Attempt.Incarnation = "x" }, wsdl.FaultCodeStale},
		"no sequence":       {func(r *wsdl.Report) { r.Sequence = 0 }, wsdl.FaultCodeInvalidRequest},
		"no such process":   {func(r *wsdl.Report) { r.Sequence = 9; r.Process[0].Id = wsdl.Of(int32(7)) }, wsdl.FaultCodeInvalidRequest},
		"blob not here": {func(r *wsdl.Report) {
			r.Sequence = 9
			r.Process[0].File = []*wsdl.File{{Name: "f", Digest: "sha256:" + strings.Repeat("1", 64), Size: wsdl.Of(int64(3))}}
		}, wsdl.FaultCodeUnavailable},
		"other bytes": {func(r *wsdl.Report) {
			r.Sequence = 9
			f := inline("f", "these")
			f.Digest = "sha256:" + strings.Repeat("1", 64)
			r.Process[0].File = []*wsdl.File{f}
		}, wsdl.FaultCodeInvalidRequest},
	} {
		if got := wsdl.CodeOf(report(c.change)); got != c.want {
			t.Errorf("%s: %q, expected %q", name, got, c.want)
		}
	}
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, id)
	if got := wsdl.CodeOf(report(func(r *wsdl.Report) { r.Sequence = 20 })); got != wsdl.FaultCodeStale {
		t.Errorf("after the end: %q", got)
	}
}

func TestOutput(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 2)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("a", 1, "hang"), task("b", 1)))
	output := func(process int32, name string, offset int64, wait int32) (*wsdl.GetOutputResponse, error) {
		return b.GetOutputContext(context.Background(), &wsdl.GetOutput{Id: id, Process: &process, Name: name, Offset: offset, WaitMillis: wait})
	}
	live, err := output(0, "stdout", 0, 5000)
	if err != nil || live.Data == nil || string(*live.Data) != "live\n" || *live.Next != 5 || *live.End {
		t.Fatalf("live: %v %v", live, err)
	}
	// b ends while a hangs: its file is there before the job has ended.
	until(t, "b's stdout", func() bool {
		done, err := output(1, "stdout", 6, 100)
		return err == nil && done.Data != nil && string(*done.Data) == "from b\n" && *done.End && done.Digest != ""
	})
	if _, err := output(2, "stdout", 0, 0); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("no such process: %v", err)
	}
	if _, err := output(1, "picture.png", 0, 0); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("no such file: %v", err)
	}
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	g.wait(b, id)
	g.stop()
	b = g.start()
	for _, process := range []int32{0, 1} {
		done, err := output(process, "stdout", 0, 0)
		if err != nil || !strings.HasPrefix(string(*done.Data), "hello from") || !*done.End {
			t.Errorf("process %d after the end and a restart: %v %v", process, done, err)
		}
	}
	past, err := output(1, "stdout", 1000, 0)
	if err != nil || past.Data != nil || !*past.End {
		t.Errorf("past the end: %v %v", past, err)
	}
	empty, err := output(1, "stderr", 0, 0)
	if err != nil || empty.Data != nil || !*empty.End {
		t.Errorf("an empty file: %v %v", empty, err)
	}
}

func TestListAndForget(t *testing.T) {
	g := newGrid(t, func(c *Config) { c.KeepJobs = 5 })
	g.node("n1", 4)
	b := g.start()
	var ids []string
	for i := range 12 {
		id := g.submit(b, fmt.Sprint("t", i), profileOf(fmt.Sprint("job", i), task("a", 1, fmt.Sprint("own", i))))
		g.wait(b, id)
		ids = append(ids, id)
	}
	list := func(r *wsdl.ListJobs) []string {
		answer, err := b.ListJobsContext(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, j := range answer.Job {
			got = append(got, j.Id)
		}
		return got
	}
	until(t, "the forgetting", func() bool { return len(list(&wsdl.ListJobs{})) == 5 })
	if got := list(&wsdl.ListJobs{Limit: 2}); len(got) != 2 || got[0] != ids[11] || got[1] != ids[10] {
		t.Errorf("the first page is %v, expected the newest of %v", got, ids)
	}
	if got := list(&wsdl.ListJobs{Limit: 2, Before: ids[10]}); len(got) != 2 || got[0] != ids[9] {
		t.Errorf("the second page is %v", got)
	}
	if got := list(&wsdl.ListJobs{Name: "ob9"}); len(got) != 1 || got[0] != ids[9] {
		t.Errorf("by name: %v", got)
	}
	if got := list(&wsdl.ListJobs{State: wsdl.Of(wsdl.JobStateFailed)}); len(got) != 0 {
		t.Errorf("by state: %v", got)
	}
	left, err := g.store.List(context.Background(), "broker/")
	if err != nil {
		t.Fatal(err)
	}
	if len(left) != 5*4 {
		t.Errorf("5 jobs have %d keys, expected 4 each", len(left))
	}
	g.stop()
	b = g.start()
	if got := list(&wsdl.ListJobs{}); len(got) != 5 || got[4] != ids[7] {
		t.Errorf("after a restart: %v", got)
	}
	// Everything the five refer to is pinned, and nothing else.
	owners := len(g.images.Owners())
	g.submit(b, "last", profileOf("last", task("a", 1)))
	if owners == 0 || len(g.images.Owners()) != owners {
		t.Errorf("%d blobs were pinned, and %d after the same program came again", owners, len(g.images.Owners()))
	}
}

func TestPlan(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 2)
	g.node("n2", 2)
	b := g.start()
	fits, err := b.PlanJobContext(context.Background(), &wsdl.PlanJob{Job: profileOf("trial", task("a", 4))})
	if err != nil || !*fits.Fits || len(fits.Placement) != 4 {
		t.Errorf("it fits: %+v %v", fits, err)
	}
	not, err := b.PlanJobContext(context.Background(), &wsdl.PlanJob{Job: profileOf("trial", task("a", 5))})
	if err != nil || *not.Fits || not.Reason == "" {
		t.Errorf("it does not fit: %+v %v", not, err)
	}
	if got, err := g.store.List(context.Background(), "broker/"); err != nil || len(got) != 0 {
		t.Errorf("a dry run left %v, %v", got, err)
	}
}

func TestRegisteredProfiles(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 8)
	b := g.start()
	ctx := context.Background()
	register := func(p *wsdl.Profile) int32 {
		t.Helper()
		answer, err := b.RegisterProfileContext(ctx, &wsdl.RegisterProfile{Profile: p})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Version
	}
	ring := func(columns string) *wsdl.Profile {
		return &wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "round", Description: "A mesh of " + columns,
			Topology: &wsdl.Topology{Kind: wsdl.Of(wsdl.TopologyKindMesh), Columns: wsdl.Of(wsdl.Number(columns))}}
	}
	for i, c := range []struct {
		profile *wsdl.Profile
		want    int32
	}{{ring("2"), 1}, {ring("2"), 1}, {ring("4"), 2}, {ring("4"), 2}, {ring("2"), 3}} {
		if got := register(c.profile); got != c.want {
			t.Errorf("registration %d is version %d, expected %d", i, got, c.want)
		}
	}
	whole := profileOf("whole", task("a", 1, "x${n}"))
	whole.Task[0].Count = wsdl.Of(wsdl.Number("${n}"))
	whole.Parameter = []*wsdl.Parameter{{Name: "n", Default: "4"}}
	whole.Topology = []*wsdl.Topology{{Profile: "round", Version: wsdl.Of(wsdl.Number("2"))}}
	register(&wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindJob), Name: "whole", Job: whole})

	if _, err := b.RegisterProfileContext(ctx, &wsdl.RegisterProfile{Profile: &wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindJob), Name: "none"}}); err == nil {
		t.Error("a profile without content was registered")
	}
	for name, bad := range map[string]*wsdl.Profile{
		"topology/@probability": {Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "bad", Topology: &wsdl.Topology{Kind: wsdl.Of(wsdl.TopologyKindSmallWorld), Probability: wsdl.Of(wsdl.Quantity("7"))}},
		"topology/graph": {Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "bad", Topology: &wsdl.Topology{Kind: wsdl.Of(wsdl.TopologyKindGraph),
			Graph: &wsdl.Graph{Format: wsdl.Of(wsdl.GraphFormatDot), Text: "digraph {"}}},
		"resources/require[1]": {Kind: wsdl.Of(wsdl.ProfileKindResources), Name: "bad", Resources: &wsdl.Resources{Require: []*wsdl.Requirement{{Property: wsdl.Of(wsdl.NodePropertyCores)}}}},
		"":                     {Kind: wsdl.Of(wsdl.ProfileKindResources), Name: "1/..", Resources: &wsdl.Resources{}},
	} {
		_, err := b.RegisterProfileContext(ctx, &wsdl.RegisterProfile{Profile: bad})
		f := faultOf(err)
		if wsdl.CodeOf(err) != wsdl.FaultCodeInvalidProfile || name != "" && (len(f.Problem) == 0 || !strings.HasPrefix(f.Problem[0].Element, name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, kind := range []wsdl.TopologyKind{wsdl.TopologyKindRing, wsdl.TopologyKindButterfly, wsdl.TopologyKindFarm, wsdl.TopologyKindTree} {
		register(&wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "good-" + string(kind), Topology: &wsdl.Topology{Kind: wsdl.Of(kind), Over: "some tasks"}})
	}
	register(&wsdl.Profile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "fat", Topology: &wsdl.Topology{Kind: wsdl.Of(wsdl.TopologyKindFatTree), Arity: wsdl.Of(wsdl.Number("3")), Levels: wsdl.Of(wsdl.Number("4"))}})
	g.stop()
	b = g.start()
	listed, err := b.ListProfilesContext(ctx, &wsdl.ListProfiles{Search: "MESH"})
	if err != nil || len(listed.Profile) != 3 || listed.Profile[0].Registered == nil || listed.Profile[0].Topology != nil {
		t.Errorf("three versions are listed as %+v, %v", listed, err)
	}
	got, err := b.GetProfileContext(ctx, &wsdl.GetProfile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "round"})
	if err != nil || got.Profile.Version != 3 || *got.Profile.Topology.Columns != "2" {
		t.Errorf("the newest is %+v, %v", got, err)
	}
	if _, err := b.GetProfileContext(ctx, &wsdl.GetProfile{Kind: wsdl.Of(wsdl.ProfileKindTopology), Name: "round", Version: 9}); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("version 9: %v", err)
	}
	answer, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: "t", Profile: "whole", Argument: []*wsdl.Assignment{{Name: "n", Value: "8"}}})
	if err != nil {
		t.Fatal(err)
	}
	s := g.wait(b, answer.Id)
	if *s.State != wsdl.JobStateSucceeded || len(s.Process) != 8 || len(s.Argument) != 1 || s.Argument[0].Value != "8" {
		t.Errorf("the job is %s with %d processes: %s", *s.State, len(s.Process), s.Reason)
	}
	if _, err := b.SubmitJobContext(ctx, &wsdl.SubmitJob{Token: "u", Profile: "nothing"}); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("an unknown profile: %v", err)
	}
}

// A job of 4,000 processes has records too big for etcd: they are blobs, and
// survive a restart.
func TestBigJob(t *testing.T) {
	g := newGrid(t, nil)
	g.node("n1", 2000)
	g.node("n2", 2000)
	b := g.start()
	id := g.submit(b, "t", profileOf("big", task("a", 3999), task("b", 1, "hang")))
	until(t, "3,999 ends", func() bool {
		ended := 0
		for _, p := range g.get(b, id).Process {
			if *p.State == wsdl.ProcessStateExited {
				ended++
			}
		}
		return ended == 3999
	})
	g.stop()
	b = g.start()
	if _, err := b.CancelJobContext(context.Background(), &wsdl.CancelJob{Id: id}); err != nil {
		t.Fatal(err)
	}
	s := g.wait(b, id)
	exited := 0
	for _, p := range s.Process {
		if *p.State == wsdl.ProcessStateExited {
			exited++
		}
	}
	if *s.State != wsdl.JobStateCancelled || exited != 3999 {
		t.Errorf("it is %s with %d of 3,999 ends: %s", *s.State, exited, s.Reason)
	}
	value, _, err := g.store.Get(context.Background(), resultsPrefix+id)
	if err != nil || len(value) > bulky {
		t.Errorf("its results take %d bytes of the journal, %v", len(value), err)
	}
	g.settled()
}

// What a crash between two transactions leaves is swept at the next start.
func TestRecoverySweeps(t *testing.T) {
	g := newGrid(t, nil)
	n := g.node("n1", 1)
	b := g.start()
	id := g.submit(b, "t", profileOf("trial", task("a", 1)))
	g.wait(b, id)
	g.stop()
	if err := g.store.Commit(context.Background(), store.Name(store.Attempt{Job: id, Number: 1, Node: "n1", Incarnation: n.incarnation})); err != nil {
		t.Fatal(err)
	}
	digest, _, err := g.images.Put(context.Background(), strings.NewReader("nobody's"))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.images.Pin(pinPrefix+digest, digest); err != nil {
		t.Fatal(err)
	}
	before := len(g.images.Owners())
	b = g.start()
	if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("it is %s", *s.State)
	}
	if after := len(g.images.Owners()); after != before-1 {
		t.Errorf("%d pins before the restart and %d after", before, after)
	}
	g.settled()
}

// A graph that was uploaded is kept for as long as its job may be compiled anew.
func TestUploadedGraphIsKept(t *testing.T) {
	g := newGrid(t, nil)
	b := g.start()
	graph, _, err := g.images.Put(context.Background(), strings.NewReader("a b\n"))
	if err != nil {
		t.Fatal(err)
	}
	j := profileOf("wired", task("a", 2))
	j.Topology = []*wsdl.Topology{{Kind: wsdl.Of(wsdl.TopologyKindGraph), Graph: &wsdl.Graph{Format: wsdl.Of(wsdl.GraphFormatEdgeList), Digest: graph}}}
	id := g.submit(b, "t", j) // no node is there: it waits
	g.stop()
	if _, err := g.images.Sweep(time.Now().Add(24 * time.Hour)); err != nil {
		t.Fatal(err)
	}
	b = g.start()
	g.node("n1", 2)
	if s := g.wait(b, id); *s.State != wsdl.JobStateSucceeded {
		t.Errorf("it is %s: %s", *s.State, s.Reason)
	}
	g.settled()
}

// Jobs are forgotten by age also when no other job ends.
func TestForgetByAge(t *testing.T) {
	g := newGrid(t, func(c *Config) { c.KeepFor = 80 * time.Millisecond })
	g.node("n1", 1)
	b := g.start()
	id := g.submit(b, "t", profileOf("old", task("a", 1)))
	g.wait(b, id)
	until(t, "the forgetting", func() bool {
		_, err := b.GetJobContext(context.Background(), &wsdl.GetJob{Id: id})
		return wsdl.CodeOf(err) == wsdl.FaultCodeNotFound
	})
	until(t, "an empty journal", func() bool {
		left, err := g.store.List(context.Background(), "broker/")
		return err == nil && len(left) == 0 && len(g.images.Owners()) == 0
	})
}
