package store

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// cluster starts an etcd that listens on a Unix socket, and returns its
// endpoint.
func cluster(t *testing.T) (endpoint string) {
	t.Helper()
	endpoint, stop := startCluster(t, t.TempDir())
	t.Cleanup(stop)
	return endpoint
}

func startCluster(t *testing.T, dir string) (endpoint string, stop func()) {
	t.Helper()
	c := embed.NewConfig()
	c.Dir = filepath.Join(dir, "etcd")
	c.Name = "outside"
	socket := url.URL{Scheme: "unix", Path: filepath.Join(dir, "s")}
	c.ListenPeerUrls = nil
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{socket}, []url.URL{socket}
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.TickMs, c.ElectionMs = 20, 100
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-e.Server.ReadyNotify():
	case <-time.After(20 * time.Second):
		t.Fatal("etcd does not become ready")
	}
	return socket.String(), e.Close
}

// join opens a Store on a cluster.
func join(t *testing.T, endpoint string) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Open(ctx, Config{Endpoints: []string{endpoint}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// record returns what s knows of a node.
func record(t *testing.T, s *Store, id string) NodeRecord {
	t.Helper()
	records, err := s.Nodes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if r.ID == id {
			return r
		}
	}
	return NodeRecord{}
}

// until waits until a node's record is as told.
func until(t *testing.T, s *Store, id, what string, is func(NodeRecord) bool) NodeRecord {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	changed := s.WatchNodes(ctx)
	for {
		if r := record(t, s, id); is(r) {
			return r
		}
		if _, ok := <-changed; !ok {
			t.Fatalf("node %s does not become %s: %+v", id, what, record(t, s, id))
		}
	}
}

func lost(r NodeRecord) bool { return r.ID != "" && !r.Alive }

// Both kinds of Store do the same.
func eachKind(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Parallel()
	t.Run("embedded", func(t *testing.T) {
		t.Parallel()
		test(t, open(t, t.TempDir()))
	})
	t.Run("external", func(t *testing.T) {
		t.Parallel()
		test(t, join(t, cluster(t)))
	})
}

func TestNodeLife(t *testing.T) {
	eachKind(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		if err := s.KeepNode(ctx, "n1", "i1", nil); !errors.Is(err, ErrStale) {
			t.Fatalf("an unknown node was kept: %v", err)
		}
		before := time.Now()
		if err := s.PutNode(ctx, "n1", "i1", []byte("what"), []byte("load"), time.Second); err != nil {
			t.Fatal(err)
		}
		r := record(t, s, "n1")
		if !r.Alive || r.Incarnation != "i1" || string(r.Value) != "what" || string(r.Load) != "load" || r.Seen.Before(before) || !r.Lost.IsZero() {
			t.Fatalf("after registering: %+v", r)
		}
		if err := s.KeepNode(ctx, "n1", "i0", nil); !errors.Is(err, ErrStale) || !strings.Contains(err.Error(), "i1") {
			t.Fatalf("another incarnation was kept: %v", err)
		}
		// Kept for longer than its lease.
		for start := time.Now(); time.Since(start) < 3*time.Second; {
			if err := s.KeepNode(ctx, "n1", "i1", []byte("load2")); err != nil {
				t.Fatal(err)
			}
			if r := record(t, s, "n1"); !r.Alive || string(r.Load) != "load2" {
				t.Fatalf("after a heartbeat: %+v", r)
			}
			time.Sleep(200 * time.Millisecond)
		}
		kept := record(t, s, "n1").Seen
		r = until(t, s, "n1", "lost", lost)
		if r.Seen != kept || r.Lost.Sub(kept) < time.Second || string(r.Value) != "what" || r.Incarnation != "i1" || r.Load != nil {
			t.Fatalf("lost %v after it was kept: %+v", r.Lost.Sub(kept), r)
		}
		t.Logf("a lease of 1s ran out after %v", r.Lost.Sub(kept))
		if err := s.KeepNode(ctx, "n1", "i1", nil); !errors.Is(err, ErrStale) {
			t.Fatalf("a lost node was kept: %v", err)
		}
		// It comes back, first as itself, then as another.
		for _, incarnation := range []string{"i1", "i2"} {
			if err := s.PutNode(ctx, "n1", incarnation, nil, nil, time.Minute); err != nil {
				t.Fatal(err)
			}
			if r := record(t, s, "n1"); !r.Alive || r.Incarnation != incarnation || !r.Lost.IsZero() {
				t.Fatalf("back as %s: %+v", incarnation, r)
			}
		}
		if err := s.KeepNode(ctx, "n1", "i1", nil); !errors.Is(err, ErrStale) {
			t.Fatalf("a superseded incarnation was kept: %v", err)
		}
		if err := s.PutNode(ctx, "n1", "i1", nil, nil, time.Minute); !errors.Is(err, ErrStale) {
			t.Fatalf("a superseded incarnation came back: %v", err)
		}
		if r := record(t, s, "n1"); r.Incarnation != "i2" || !r.Alive {
			t.Fatalf("the refused one changed: %+v", r)
		}
		for _, bad := range []string{"", "a/b", "..", ".x", "-x", "ä", "a b", strings.Repeat("a", 129)} {
			if err := s.PutNode(ctx, bad, "i", nil, nil, time.Minute); !errors.Is(err, ErrInvalid) {
				t.Errorf("node id %q: %v", bad, err)
			}
		}
		if err := s.PutNode(ctx, "n2", "", nil, nil, time.Minute); !errors.Is(err, ErrInvalid) {
			t.Errorf("an empty incarnation: %v", err)
		}
	})
}

func TestManyIncarnations(t *testing.T) {
	s := open(t, t.TempDir())
	for i := range formerLimit + 5 {
		if err := s.PutNode(t.Context(), "n", fmt.Sprint(i), nil, nil, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	if got := len(s.grid.node("n").Former); got != formerLimit {
		t.Fatalf("%d former incarnations are kept", got)
	}
	if err := s.PutNode(t.Context(), "n", fmt.Sprint(formerLimit+3), nil, nil, time.Minute); !errors.Is(err, ErrStale) {
		t.Fatalf("the last but one came back: %v", err)
	}
}

// A heartbeat whose load is unchanged writes nothing.
func TestKeepWritesNothing(t *testing.T) {
	eachKind(t, func(t *testing.T, s *Store) {
		ctx := t.Context()
		if err := s.PutNode(ctx, "n", "i", nil, []byte("l"), time.Minute); err != nil {
			t.Fatal(err)
		}
		revision := func() int64 {
			_, at, err := s.list(ctx, "none")
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		was := revision()
		for range 20 {
			if err := s.KeepNode(ctx, "n", "i", []byte("l")); err != nil {
				t.Fatal(err)
			}
		}
		if is := revision(); is != was {
			t.Fatalf("20 heartbeats made %d writes", is-was)
		}
		if err := s.KeepNode(ctx, "n", "i", []byte("m")); err != nil {
			t.Fatal(err)
		}
		// Another life of an embedded server does without.
		writes := int64(1)
		if s.embedded != nil {
			writes = 0
		}
		if is := revision(); is != was+writes {
			t.Fatalf("a changed load made %d writes, expected %d", is-was, writes)
		}
		if r := record(t, s, "n"); string(r.Load) != "m" {
			t.Fatalf("after a changed load it is %q", r.Load)
		}
	})
}

func TestForgetLost(t *testing.T) {
	t.Parallel()
	now := atomic.Int64{}
	clock := func() time.Time { return time.Unix(1_000_000+now.Load(), 0) }
	s, err := Open(t.Context(), Config{Dir: t.TempDir(), Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	for id, ttl := range map[string]time.Duration{"gone": time.Second, "here": time.Hour} {
		if err := s.PutNode(ctx, id, "i", nil, nil, ttl); err != nil {
			t.Fatal(err)
		}
	}
	until(t, s, "gone", "lost", lost)
	now.Add(59)
	if n, err := s.ForgetLost(ctx, time.Minute); n != 0 || err != nil {
		t.Fatalf("forgot %d too early, %v", n, err)
	}
	now.Add(2)
	if n, err := s.ForgetLost(ctx, time.Minute); n != 1 || err != nil {
		t.Fatalf("forgot %d, %v", n, err)
	}
	if record(t, s, "gone").ID != "" || record(t, s, "here").ID == "" {
		t.Fatal("the wrong node was forgotten")
	}
	if err := s.PutNode(ctx, "gone", "i", nil, nil, time.Hour); err != nil {
		t.Fatal(err)
	}
}

// Leases outlive the store's process, counted afresh: a node whose heartbeats
// pause while its backend restarts is not lost.
func TestRestartKeepsNodes(t *testing.T) {
	t.Parallel()
	dir, ctx := t.TempDir(), t.Context()
	s := open(t, dir)
	for id, ttl := range map[string]time.Duration{"gone": time.Second, "here": 2 * time.Second} {
		if err := s.PutNode(ctx, id, "i", []byte(id), nil, ttl); err != nil {
			t.Fatal(err)
		}
	}
	live := Attempt{Job: "j", Number: 3, Node: "here", Incarnation: "i"}
	if err := s.Commit(ctx, Name(live)); err != nil {
		t.Fatal(err)
	}
	until(t, s, "gone", "lost", lost)
	s.Close()

	opened := time.Now()
	s = open(t, dir)
	r := record(t, s, "here")
	if !r.Alive || string(r.Value) != "here" || r.Seen.Before(opened) {
		t.Fatalf("after a restart: %+v", r)
	}
	if got, err := s.LiveOn(ctx, "here"); err != nil || len(got) != 1 || got[0] != live {
		t.Fatalf("live after a restart: %v, %v", got, err)
	}
	if r := record(t, s, "gone"); r.Alive || r.Seen != (time.Time{}) || r.Lost.Before(opened) || r.Lost.IsZero() {
		t.Fatalf("a node that was lost before the restart: %+v", r)
	}
	if err := s.KeepNode(ctx, "here", "i", nil); err != nil {
		t.Fatal(err)
	}
	if r = until(t, s, "here", "lost", lost); r.Lost.Sub(opened) < 2*time.Second {
		t.Fatalf("lost %v after the restart, before its lease", r.Lost.Sub(opened))
	}
}

func TestLiveKeys(t *testing.T) {
	for _, a := range []Attempt{
		{Job: "j-1", Number: 1, Node: "n1"},
		{Job: "a/b c", Number: 12, Node: "n/ü", Incarnation: "i"},
	} {
		got, ok := attemptOf(KV{Key: LiveKey(a.Node, a.Job, a.Number), Value: []byte(a.Incarnation)})
		if !ok || got != a {
			t.Errorf("%+v came back as %+v", a, got)
		}
	}
	if _, ok := attemptOf(KV{Key: livePrefix + "n/j"}); ok {
		t.Error("a broken key is an attempt")
	}
}

func FuzzLiveKey(f *testing.F) {
	f.Add("grid/live/n/j/1")
	f.Add("grid/live/n%2F/j%20/-1")
	f.Fuzz(func(t *testing.T, key string) {
		a, ok := attemptOf(KV{Key: key})
		if !ok {
			return
		}
		if again, ok := attemptOf(KV{Key: LiveKey(a.Node, a.Job, a.Number)}); !ok || again != a {
			t.Fatalf("%q: %+v, then %+v", key, a, again)
		}
	})
}

// What one Store has dropped no Store names, from the moment Commit returned.
func TestDroppedIsNeverNamed(t *testing.T) {
	endpoint := cluster(t)
	mine := open(t, t.TempDir())
	for name, pair := range map[string][2]*Store{
		"embedded":           {mine, mine},
		"another's, cluster": {join(t, endpoint), join(t, endpoint)},
	} {
		t.Run(name, func(t *testing.T) {
			broker, information := pair[0], pair[1]
			ctx := t.Context()
			// number n is live in [named, dropped): rounds are counted up.
			var dropped atomic.Int64
			var readers sync.WaitGroup
			done := make(chan struct{})
			var answers atomic.Int64
			for range 2 {
				readers.Go(func() {
					for {
						select {
						case <-done:
							return
						case <-time.After(20 * time.Microsecond): // leave the others some of the processor
						}
						before := dropped.Load()
						live, err := information.LiveOn(ctx, "n")
						if err != nil {
							t.Error(err)
							return
						}
						for _, a := range live {
							if int64(a.Number) <= before {
								t.Errorf("attempt %d was named after %d was dropped", a.Number, before)
							}
						}
						answers.Add(1)
					}
				})
			}
			for n := 1; n <= 150; n++ {
				if err := broker.Commit(ctx, Name(Attempt{Job: "j", Number: n, Node: "n", Incarnation: "i"})); err != nil {
					t.Fatal(err)
				}
				if live, err := information.LiveOn(ctx, "n"); err != nil || len(live) != 1 || live[0].Number != n {
					t.Fatalf("attempt %d is not named: %v, %v", n, live, err)
				}
				if err := broker.Commit(ctx, Drop("n", "j", n)); err != nil {
					t.Fatal(err)
				}
				dropped.Store(int64(n))
			}
			close(done)
			readers.Wait()
			t.Logf("%d answers", answers.Load())
		})
	}
}

// The order in which a Store's own commits and the watch reach the cache does
// not matter.
func TestCacheTakesAnyOrder(t *testing.T) {
	key := LiveKey("n", "j", 1)
	put := func(revision int64) Change { return Change{KV: KV{Key: key, Value: []byte("i"), Revision: revision}} }
	gone := func(revision int64) Change { return Change{KV: KV{Key: key, Revision: revision}, Deleted: true} }
	for name, c := range map[string]struct {
		do   func(g *grid)
		live int
	}{
		"a drop, then the watch's older put": {func(g *grid) { g.apply(gone(6)); g.advance([]Change{put(5)}) }, 0},
		"the watch's drop, then a late put":  {func(g *grid) { g.advance([]Change{put(5), gone(6)}); g.apply(put(5)) }, 0},
		"a put, then an older listing":       {func(g *grid) { g.apply(put(7)); g.replace(nil, 6) }, 1},
		"a listing without a known key":      {func(g *grid) { g.advance([]Change{put(5)}); g.replace(nil, 6) }, 0},
		"a listing with a dropped key":       {func(g *grid) { g.apply(gone(6)); g.replace([]KV{put(5).KV}, 5) }, 0},
		"a newer put after a drop":           {func(g *grid) { g.apply(gone(6)); g.advance([]Change{put(7)}) }, 1},
	} {
		g := newGrid("me", time.Now)
		c.do(g)
		if got := len(g.live["n"]); got != c.live {
			t.Errorf("%s: %d live, expected %d", name, got, c.live)
		}
	}
}

// Two backends on one cluster: a node may be heard by either.
func TestTwoStoresOneCluster(t *testing.T) {
	t.Parallel()
	endpoint := cluster(t)
	a, b := join(t, endpoint), join(t, endpoint)
	ctx := t.Context()
	if err := a.PutNode(ctx, "n", "i1", []byte("v"), nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	// b's cache may not know it yet; its KeepNode does not depend on that.
	if err := b.KeepNode(ctx, "n", "i1", nil); err != nil {
		t.Fatal(err)
	}
	// Now b hears it: as far as a knows, it may have been answered just now.
	until(t, a, "n", "heard elsewhere", func(NodeRecord) bool { return a.grid.node("n").alive.Owner == b.owner })
	before := time.Now()
	if r := record(t, a, "n"); r.Seen.Before(before) {
		t.Fatalf("a takes what b heard for old: %+v", r)
	}
	// It restarts and registers with a; b must refuse its former life at once.
	if err := a.PutNode(ctx, "n", "i2", []byte("v"), nil, 2*time.Second); err != nil {
		t.Fatal(err)
	}
	if err := b.KeepNode(ctx, "n", "i1", nil); !errors.Is(err, ErrStale) {
		t.Fatalf("b kept a superseded incarnation: %v", err)
	}
	if err := b.PutNode(ctx, "n", "i1", nil, nil, time.Minute); !errors.Is(err, ErrStale) {
		t.Fatalf("b registered a superseded incarnation: %v", err)
	}
	until(t, b, "n", "lost", func(r NodeRecord) bool { return lost(r) && r.Incarnation == "i2" })
}

func TestNoCluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := Open(ctx, Config{Endpoints: []string{"127.0.0.1:1"}})
	if err == nil || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Fatalf("without a cluster: %v", err)
	}
	if _, err := Open(t.Context(), Config{}); err == nil {
		t.Fatal("neither folder nor endpoints were good")
	}
}

// While a cluster is away calls fail in time; once it is back everything goes
// on, the watches too.
func TestClusterIsAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	endpoint, stop := startCluster(t, dir)
	s, ctx := join(t, endpoint), t.Context()
	if err := s.PutNode(ctx, "n", "i", nil, nil, time.Minute); err != nil {
		t.Fatal(err)
	}
	changes, err := s.Watch(ctx, "w/")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	for what, err := range map[string]error{
		"commit": s.Commit(short, Put("w/a", nil)),
		"keep":   s.KeepNode(short, "n", "i", nil),
	} {
		if err == nil || errors.Is(err, ErrStale) {
			t.Errorf("%s without the cluster: %v", what, err)
		}
	}
	if live, err := s.LiveOn(short, "n"); err == nil {
		t.Errorf("live without the cluster: %v", live)
	}
	_, stop = startCluster(t, dir)
	defer stop()
	if err := s.Commit(ctx, Put("w/b", nil)); err != nil {
		t.Fatal(err)
	}
	if err := s.KeepNode(ctx, "n", "i", nil); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-changes:
		if c.Key != "w/b" && c.Key != "w/a" { // the failed commit may have happened
			t.Fatalf("watched %v", c)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the watch does not go on")
	}
	s.Close() // before its cluster
}

func TestWatch(t *testing.T) {
	eachKind(t, func(t *testing.T, s *Store) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		must(s.Commit(ctx, Put("w/old", nil)))
		changes, err := s.Watch(ctx, "w/")
		must(err)
		must(s.Commit(ctx, Put("w/a", []byte("1")), Put("x", nil)))
		must(s.Commit(ctx, Delete("w/old"), Put("w/a", []byte("2"))))
		var got []string
		for range 3 {
			c := <-changes
			got = append(got, fmt.Sprintf("%s=%s %v", c.Key, c.Value, c.Deleted))
		}
		if want := "w/a=1 false,w/old= true,w/a=2 false"; strings.Join(got, ",") != want {
			t.Fatalf("got %v, expected %s", got, want)
		}
		cancel()
		if _, ok := <-changes; ok {
			t.Fatal("a change after the end")
		}
		changes, err = s.Watch(t.Context(), "w/")
		must(err)
		s.Close()
		if _, ok := <-changes; ok {
			t.Fatal("a change after Close")
		}
	})
}

// A watch whose history was compacted away goes on with what there is.
func TestWatchOverCompaction(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	for i := range 10 {
		if err := s.Commit(ctx, Put(fmt.Sprint("w/", i), nil)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Commit(ctx, DeletePrefix("w/"), Put("v", nil)); err != nil {
		t.Fatal(err)
	}
	_, at, err := s.list(ctx, "w/")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, Put("w/new", nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.client.Compact(ctx, at, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	following, cancel := context.WithCancel(ctx)
	var listed, followed []string
	s.follow(following, "w/", 2, func(changes []Change) {
		for _, c := range changes {
			followed = append(followed, c.Key)
		}
		cancel()
	}, func(all []KV, _ int64) {
		for _, kv := range all {
			listed = append(listed, kv.Key)
		}
		if err := s.Commit(ctx, Put("w/next", nil)); err != nil {
			t.Error(err)
		}
	})
	if fmt.Sprint(listed, followed) != "[w/new] [w/next]" {
		t.Fatalf("listed %v, followed %v", listed, followed)
	}
}

func BenchmarkKeepNode(b *testing.B) {
	s := open(b, b.TempDir())
	if err := s.PutNode(b.Context(), "n", "i", make([]byte, 500), nil, time.Minute); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := s.KeepNode(b.Context(), "n", "i", nil); err != nil {
			b.Fatal(err)
		}
	}
}
