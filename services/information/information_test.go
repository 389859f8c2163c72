package information

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

func newService(t testing.TB, change func(*Config)) (*Service, *store.Store) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	state, err := store.Open(ctx, store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(state.Close)
	c := Config{Store: state, BrokerURL: func() string { return "http://b:1/services/broker" }}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s, state
}

func someNode(id string) *wsdl.Node {
	return &wsdl.Node{
		Id: id, Incarnation: "i1", Name: "name of " + id, Url: "http://" + id + ":8080",
		Role: []*wsdl.Role{wsdl.Of(wsdl.RoleWorker)}, Version: "1", Os: "linux", Arch: "amd64",
		Cores: 4, Memory: 8000, Slots: wsdl.Of(int32(4)), FreeSlots: wsdl.Of(int32(4)), FreeMemory: wsdl.Of(int64(8000)), FreeDisk: wsdl.Of(int64(5000)),
		Compiler: []*wsdl.Compiler{{Language: wsdl.Of(wsdl.LanguageC), Command: "gcc", Version: "14"}},
		Cleaning: "cgroup",
	}
}

func register(t *testing.T, s *Service, n *wsdl.Node) {
	t.Helper()
	r, err := s.Register(&wsdl.Register{Node: n})
	if err != nil {
		t.Fatal(err)
	}
	if r.LeaseMillis != s.c.Lease.Milliseconds() || r.HeartbeatMillis != s.c.Heartbeat.Milliseconds() || r.Broker != "http://b:1/services/broker" {
		t.Fatalf("answered %+v", r)
	}
}

func wantCode(t *testing.T, err error, code wsdl.FaultCode) {
	t.Helper()
	if wsdl.CodeOf(err) != code {
		t.Fatalf("expected a fault %s, got %v", code, err)
	}
}

func ids(t *testing.T, s *Service, q *wsdl.Query) string {
	t.Helper()
	r, err := s.Query(q)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, n := range r.Node {
		all = append(all, n.Id)
	}
	return strings.Join(all, " ")
}

func TestRegisterAndQuery(t *testing.T) {
	s, _ := newService(t, nil)
	n1, n2 := someNode("n1"), someNode("n2")
	n2.Role = append(n2.Role, wsdl.Of(wsdl.RoleBackend))
	n2.Compiler = append(n2.Compiler, &wsdl.Compiler{Language: wsdl.Of(wsdl.LanguageGo_), Command: "go", Version: "1.26"})
	n2.State = "nonsense that only the service may say"
	register(t, s, n2)
	register(t, s, n1)
	r, err := s.Query(&wsdl.Query{})
	if err != nil {
		t.Fatal(err)
	}
	want1, want2 := *n1, *n2
	want1.State, want2.State = up, up
	if len(r.Node) != 2 || !reflect.DeepEqual(r.Node[0], &want1) || !reflect.DeepEqual(r.Node[1], &want2) {
		t.Fatalf("queried %+v %+v", r.Node[0], r.Node[1])
	}
	for _, c := range []struct {
		query wsdl.Query
		want  string
	}{
		{wsdl.Query{Role: wsdl.Of(wsdl.RoleBackend)}, "n2"},
		{wsdl.Query{Role: wsdl.Of(wsdl.RoleWorker)}, "n1 n2"},
		{wsdl.Query{Role: wsdl.Of(wsdl.RoleFrontend)}, ""},
		{wsdl.Query{Language: wsdl.Of(wsdl.LanguageGo_)}, "n2"},
		{wsdl.Query{Language: wsdl.Of(wsdl.LanguageC), Role: wsdl.Of(wsdl.RoleBackend)}, "n2"},
		{wsdl.Query{Language: wsdl.Of(wsdl.LanguagePython)}, ""},
	} {
		if got := ids(t, s, &c.query); got != c.want {
			t.Errorf("role %q language %q: %q, expected %q", wsdl.Or(c.query.Role, ""), wsdl.Or(c.query.Language, ""), got, c.want)
		}
	}
}

func TestHeartbeat(t *testing.T) {
	s, state := newService(t, nil)
	ctx := t.Context()
	register(t, s, someNode("n"))
	beat := func(incarnation string, slots int32) (*wsdl.HeartbeatResponse, error) {
		return s.Heartbeat(&wsdl.Heartbeat{Node: "n", Incarnation: incarnation, FreeSlots: &slots, FreeDisk: wsdl.Of(int64(0))})
	}
	records, err := state.Nodes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	value := string(records[0].Value)
	r, err := beat("i1", 0)
	if err != nil || len(r.Attempt) != 0 || r.LeaseMillis != 10_000 || r.HeartbeatMillis != 2_000 {
		t.Fatalf("%+v, %v", r, err)
	}
	q, err := s.Query(&wsdl.Query{})
	if err != nil || wsdl.Or(q.Node[0].FreeSlots, -1) != 0 || q.Node[0].FreeMemory != nil || wsdl.Or(q.Node[0].FreeDisk, -1) != 0 || *q.Node[0].Slots != 4 {
		t.Fatalf("the load did not arrive: %+v, %v", q.Node[0], err)
	}
	if records, _ = state.Nodes(ctx); string(records[0].Value) != value {
		t.Fatal("a heartbeat rewrote the record")
	}

	// What is live on it, and nothing else.
	if err := state.Commit(ctx,
		store.Name(store.Attempt{Job: "j2", Number: 1, Node: "n", Incarnation: "i1"}),
		store.Name(store.Attempt{Job: "j1", Number: 3, Node: "n", Incarnation: "i1"}),
		store.Name(store.Attempt{Job: "j1", Number: 2, Node: "n", Incarnation: "i0"}),
		store.Name(store.Attempt{Job: "j1", Number: 3, Node: "m", Incarnation: "i1"}),
	); err != nil {
		t.Fatal(err)
	}
	named := func() string {
		t.Helper()
		r, err := beat("i1", 0)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, a := range r.Attempt {
			all = append(all, fmt.Sprintf("%s/%d@%s:%s", a.Job, a.Number, a.Node, a.Incarnation))
		}
		return strings.Join(all, " ")
	}
	if got := named(); got != "j1/3@n:i1 j2/1@n:i1" {
		t.Fatalf("named %q", got)
	}
	if err := state.Commit(ctx, store.Drop("n", "j1", 3)); err != nil {
		t.Fatal(err)
	}
	if got := named(); got != "j2/1@n:i1" {
		t.Fatalf("named %q", got)
	}

	_, err = beat("i2", 0)
	wantCode(t, err, wsdl.FaultCodeStale)
	if !strings.Contains(err.Error(), "register again") {
		t.Fatalf("no advice: %v", err)
	}
	_, err = s.Heartbeat(&wsdl.Heartbeat{Node: "unknown", Incarnation: "i1"})
	wantCode(t, err, wsdl.FaultCodeStale)
}

func TestRegisterRefuses(t *testing.T) {
	s, _ := newService(t, nil)
	_, err := s.Register(&wsdl.Register{})
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)
	for what, change := range map[string]func(n *wsdl.Node){
		"id":          func(n *wsdl.Node) { n.Id = "../x" },
		"incarnation": func(n *wsdl.Node) { n.Incarnation = "" },
		"url":         func(n *wsdl.Node) { n.Url = "file:///etc/passwd" },
		"host":        func(n *wsdl.Node) { n.Url = "http://:80" },
		"slots":       func(n *wsdl.Node) { n.Slots = wsdl.Of(int32(-1)) },
		"cores":       func(n *wsdl.Node) { n.Cores = -1 },
		"memory":      func(n *wsdl.Node) { n.Memory = -1 },
	} {
		n := someNode("n")
		change(n)
		_, err := s.Register(&wsdl.Register{Node: n})
		if wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("a bad %s: %v", what, err)
		}
	}
	n := someNode("n")
	n.Name = strings.Repeat("x", recordLimit)
	_, err = s.Register(&wsdl.Register{Node: n})
	wantCode(t, err, wsdl.FaultCodeTooLarge)
	if got := ids(t, s, &wsdl.Query{}); got != "" {
		t.Fatalf("refused nodes are known: %q", got)
	}

	register(t, s, someNode("n"))
	later := someNode("n")
	later.Incarnation = "i2"
	register(t, s, later)
	_, err = s.Register(&wsdl.Register{Node: someNode("n")})
	wantCode(t, err, wsdl.FaultCodeStale)
	if !strings.Contains(err.Error(), "another data folder") {
		t.Fatalf("no advice: %v", err)
	}
}

// A node that falls silent is lost once lease and margin have passed, stays
// known as lost, is refused until it registers again, and is forgotten in the end.
func TestLost(t *testing.T) {
	s, state := newService(t, func(c *Config) {
		c.Heartbeat, c.Lease, c.Margin, c.Forget = 100*time.Millisecond, time.Second, time.Second, time.Second
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	changed := state.WatchNodes(ctx)
	await := func(state string) {
		t.Helper()
		for {
			q, err := s.QueryContext(ctx, &wsdl.Query{})
			if err != nil {
				t.Fatal(err)
			}
			is := "forgotten"
			if len(q.Node) > 0 {
				is = q.Node[0].State
			}
			if is == state {
				return
			}
			<-changed
		}
	}
	register(t, s, someNode("n"))
	await(up)
	heard := time.Now()
	if _, err := s.Heartbeat(&wsdl.Heartbeat{Node: "n", Incarnation: "i1"}); err != nil {
		t.Fatal(err)
	}
	await(lost)
	if silent := time.Since(heard); silent < 2*time.Second {
		t.Fatalf("lost after %v, before lease and margin", silent)
	}
	_, err := s.Heartbeat(&wsdl.Heartbeat{Node: "n", Incarnation: "i1"})
	wantCode(t, err, wsdl.FaultCodeStale)
	register(t, s, someNode("n"))
	await(up)

	running, stop := context.WithCancel(ctx)
	ended := make(chan error)
	go func() { ended <- s.Run(running) }()
	await("forgotten")
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestStateIsAway(t *testing.T) {
	s, state := newService(t, nil)
	register(t, s, someNode("n"))
	state.Close()
	_, err := s.Heartbeat(&wsdl.Heartbeat{Node: "n", Incarnation: "i1"})
	wantCode(t, err, wsdl.FaultCodeUnavailable)
	_, err = s.Register(&wsdl.Register{Node: someNode("m")})
	wantCode(t, err, wsdl.FaultCodeUnavailable)
	// An answer without the live attempts would end them all.
	live := errors.New("no")
	s.c.Store = failing{s.c.Store, live}
	_, err = s.Heartbeat(&wsdl.Heartbeat{Node: "n", Incarnation: "i1"})
	wantCode(t, err, wsdl.FaultCodeUnavailable)
}

// failing keeps nodes but cannot say what is live.
type failing struct {
	State
	err error
}

func (f failing) KeepNode(context.Context, string, string, []byte) error  { return nil }
func (f failing) LiveOn(context.Context, string) ([]store.Attempt, error) { return nil, f.err }

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("no store was good")
	}
	if _, err := New(Config{Store: failing{}, Lease: time.Second, Heartbeat: time.Second}); err == nil {
		t.Error("a lease of one heartbeat was good")
	}
}

func BenchmarkHeartbeat(b *testing.B) {
	s, state := newService(b, nil)
	if _, err := s.Register(&wsdl.Register{Node: someNode("n")}); err != nil {
		b.Fatal(err)
	}
	for i := range 8 {
		if err := state.Commit(b.Context(), store.Name(store.Attempt{Job: fmt.Sprint("j", i), Number: 1, Node: "n", Incarnation: "i1"})); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if _, err := s.Heartbeat(&wsdl.Heartbeat{Node: "n", Incarnation: "i1"}); err != nil {
			b.Fatal(err)
		}
	}
}

// What a node holds is told by its heartbeats, and by nothing else.
func TestHeld(t *testing.T) {
	s, state := newService(t, nil)
	register(t, s, someNode("n1"))
	held := func() string {
		t.Helper()
		all, err := state.Nodes(context.Background())
		if err != nil || len(all) != 1 {
			t.Fatalf("%v, %v", all, err)
		}
		attempts, told := Held(all[0])
		return fmt.Sprint(attempts, told)
	}
	beat := func(attempts ...*wsdl.Attempt) {
		t.Helper()
		if _, err := s.Heartbeat(&wsdl.Heartbeat{Node: "n1", Incarnation: "i1", Attempt: attempts}); err != nil {
			t.Fatal(err)
		}
	}
	attempt := func(job string, number int32, incarnation string) *wsdl.Attempt {
		return &wsdl.Attempt{Job: job, Number: number, Node: "n1", Incarnation: incarnation}
	}
	var many []*wsdl.Attempt
	for i := range 4000 {
		many = append(many, attempt(fmt.Sprintf("j-%08d", i), 1, "i1"))
	}
	for _, c := range []struct {
		does func()
		want string
	}{
		{func() {}, "[] false"},
		{func() { beat() }, "[] true"},
		{func() { beat(attempt("j-1", 2, "i1"), attempt("j-2", 1, "i0"), nil) }, "[{j-1 2 n1 i1}] true"},
		{func() { beat(many...) }, "[] false"},
		{func() { beat() }, "[] true"},
		{func() { register(t, s, someNode("n1")) }, "[] false"},
	} {
		if c.does(); held() != c.want {
			t.Errorf("it holds %s, expected %s", held(), c.want)
		}
	}
}
