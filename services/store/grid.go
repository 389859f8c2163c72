package store

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// The keys of this package's own:
//
//	grid/nodes/ID                what the node is; stays when the node is lost
//	grid/alive/ID                attached to the node's lease; gone when it is lost
//	grid/live/NODE/JOB/NUMBER    an attempt that is live on the node
const (
	gridPrefix  = "grid/"
	nodePrefix  = gridPrefix + "nodes/"
	alivePrefix = gridPrefix + "alive/"
	livePrefix  = gridPrefix + "live/"
)

// nodeValue is what a node key holds.
type nodeValue struct {
	Incarnation string   `json:"incarnation"`
	Former      []string `json:"former,omitempty"` // superseded incarnations, the latest last
	Value       []byte   `json:"value"`
}

// aliveValue is what an alive key holds.
type aliveValue struct {
	Incarnation string `json:"incarnation"`
	Owner       string `json:"owner"` // the Store that hears the node
	Load        []byte `json:"load,omitempty"`
}

// grid is the cache of everything under gridPrefix: filled at Open, kept by a
// watch, and ahead of it by this Store's own commits.
type grid struct {
	owner string
	clock func() time.Time

	mu        sync.Mutex // guards all below
	settled   int64      // every change up to this revision is in
	revisions map[string]int64
	deleted   map[string]int64 // keys deleted after settled, so that an older change still on its way does not bring them back
	nodes     map[string]*node
	live      map[string]map[string]Attempt // by node, then by key
	waiters   map[chan struct{}]struct{}
}

// node is what is known of a node: from its two keys, and from hearing it.
type node struct {
	nodeValue
	revision      int64 // of its node key; 0: there is none
	alive         aliveValue
	lease         clientv3.LeaseID
	aliveRevision int64     // of its alive key; 0: not alive
	heard         time.Time // when this Store last kept its lease, or learnt that it ran out
	lost          time.Time
}

func newGrid(owner string, clock func() time.Time) *grid {
	return &grid{
		owner:     owner,
		clock:     clock,
		revisions: map[string]int64{},
		deleted:   map[string]int64{},
		nodes:     map[string]*node{},
		live:      map[string]map[string]Attempt{},
		waiters:   map[chan struct{}]struct{}{},
	}
}

// startGrid fills the cache and keeps it until the Store is closed.
func (s *Store) startGrid(ctx context.Context) error {
	all, at, err := s.list(ctx, gridPrefix)
	if err != nil {
		return err
	}
	s.grid.replace(all, at)
	s.running.Go(func() { s.follow(s.life, gridPrefix, at, s.grid.advance, s.grid.replace) })
	return nil
}

// apply puts in one change that this Store made itself; the watch may or may
// not have told it already.
func (g *grid) apply(c Change) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.change(c)
}

// advance puts in changes from the watch, which leaves none out.
func (g *grid) advance(changes []Change) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range changes {
		g.change(c)
	}
	g.settle(changes[len(changes)-1].Revision)
}

// replace puts in everything there is as of revision at.
func (g *grid) replace(all []KV, at int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	here := make(map[string]bool, len(all))
	for _, kv := range all {
		here[kv.Key] = true
		g.change(Change{KV: kv})
	}
	for key, revision := range g.revisions {
		if !here[key] && revision <= at {
			g.change(Change{KV: KV{Key: key, Revision: at}, Deleted: true})
		}
	}
	// A node without a lease was lost before anyone here looked.
	for _, n := range g.nodes {
		if n.aliveRevision == 0 && n.lost.IsZero() {
			n.lost = g.clock()
		}
	}
	g.settle(at)
}

func (g *grid) settle(at int64) {
	g.settled = max(g.settled, at)
	for key, revision := range g.deleted {
		if revision <= g.settled {
			delete(g.deleted, key)
		}
	}
}

// change puts in c unless something newer is in. g.mu is held.
func (g *grid) change(c Change) {
	if c.Revision <= g.settled || c.Revision <= g.revisions[c.Key] || c.Revision <= g.deleted[c.Key] {
		return
	}
	if c.Deleted {
		delete(g.revisions, c.Key)
		g.deleted[c.Key] = c.Revision
	} else {
		g.revisions[c.Key] = c.Revision
		delete(g.deleted, c.Key)
	}
	switch {
	case strings.HasPrefix(c.Key, nodePrefix):
		g.changeNode(strings.TrimPrefix(c.Key, nodePrefix), c)
	case strings.HasPrefix(c.Key, alivePrefix):
		g.changeAlive(strings.TrimPrefix(c.Key, alivePrefix), c)
	case strings.HasPrefix(c.Key, livePrefix):
		g.changeLive(c)
	}
}

func (g *grid) nodeAt(id string) *node {
	n := g.nodes[id]
	if n == nil {
		n = new(node)
		g.nodes[id] = n
	}
	return n
}

func (g *grid) changeNode(id string, c Change) {
	n := g.nodeAt(id)
	if c.Deleted {
		n.nodeValue, n.revision = nodeValue{}, 0
		if n.aliveRevision == 0 {
			delete(g.nodes, id)
		}
	} else {
		n.nodeValue, n.revision = decode[nodeValue](c.Value), c.Revision
	}
	g.tell()
}

func (g *grid) changeAlive(id string, c Change) {
	n := g.nodeAt(id)
	if c.Deleted {
		if n.alive.Owner != g.owner {
			// Someone else may have answered it until just now.
			n.heard = g.clock()
		}
		n.lost = g.clock()
		n.alive, n.lease, n.aliveRevision = aliveValue{}, clientv3.NoLease, 0
		if n.revision == 0 {
			delete(g.nodes, id)
		}
	} else {
		n.alive, n.lease, n.aliveRevision, n.lost = decode[aliveValue](c.Value), c.lease, c.Revision, time.Time{}
	}
	g.tell()
}

func (g *grid) changeLive(c Change) {
	a, ok := attemptOf(c.KV)
	if !ok {
		return
	}
	if c.Deleted {
		delete(g.live[a.Node], c.Key)
		if len(g.live[a.Node]) == 0 {
			delete(g.live, a.Node)
		}
		return
	}
	if g.live[a.Node] == nil {
		g.live[a.Node] = map[string]Attempt{}
	}
	g.live[a.Node][c.Key] = a
}

// decode reads what only this package writes; a value that it did not write is
// as good as an empty one.
func decode[T any](value []byte) (v T) {
	if json.Unmarshal(value, &v) != nil {
		v = *new(T)
	}
	return v
}

// node returns a copy of what is known of a node.
func (g *grid) node(id string) node {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.nodes[id]; n != nil {
		return *n
	}
	return node{}
}

// load notes a node's load while its alive key is the one of a revision, and
// says whether it is.
func (g *grid) load(id string, revision int64, load []byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := g.nodes[id]
	if n == nil || n.aliveRevision != revision {
		return false
	}
	n.alive.Load = load
	g.tell()
	return true
}

// hear notes that a node's lease was just kept here.
func (g *grid) hear(id string, lease clientv3.LeaseID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.nodes[id]; n != nil && n.lease == lease {
		n.heard = g.clock()
	}
}

// record is what the world sees of n. g.mu is held.
func (g *grid) record(id string, n *node) NodeRecord {
	r := NodeRecord{
		ID: id, Incarnation: n.Incarnation, Value: n.Value, Load: n.alive.Load,
		Alive: n.aliveRevision != 0, Seen: n.heard, Lost: n.lost,
	}
	if r.Alive && n.alive.Owner != g.owner {
		r.Seen = g.clock()
	}
	return r
}

// tell wakes everyone who watches nodes. g.mu is held.
func (g *grid) tell() {
	for w := range g.waiters {
		select {
		case w <- struct{}{}:
		default: // it has not yet looked since the last time
		}
	}
}
