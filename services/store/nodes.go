package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/lease"
)

// NodeRecord is a node as the state knows it.
type NodeRecord struct {
	ID          string
	Incarnation string
	Value       []byte // as PutNode got it
	Load        []byte // as the last heartbeat said; nil when not Alive

	// Alive: the lease runs. Once it does not, its whole ttl has passed since
	// the node was last answered, by any Store, also over restarts of this one
	// (a restarted etcd counts every lease afresh).
	Alive bool
	// Seen is the latest moment at which the node can have been answered: when
	// this Store last kept its lease; or, when another Store hears the node, now
	// while it is alive, and then when its lease was found to have run out. Zero
	// when it was lost already at Open. Of Config.Clock.
	Seen time.Time
	// Lost is when this Store found that the lease had run out, at the earliest
	// when it was opened; zero while Alive. Of Config.Clock.
	Lost time.Time
}

// formerLimit is how many superseded incarnations of a node are remembered.
const formerLimit = 16

// retries is how often a transaction is tried again when another Store's came
// in between.
const retries = 8

// checkNodeID keeps ids to what is one step of a key and of a path.
func checkNodeID(id string) error {
	ok := id != "" && len(id) <= 128 && id[0] != '.' && id[0] != '-'
	for _, c := range []byte(id) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("state store: node id %q: expected 1 to 128 letters, digits, dots, hyphens and underscores, not beginning with a dot or hyphen: %w", id, ErrInvalid)
	}
	return nil
}

// PutNode makes the node known and alive for ttl, which is rounded up to whole
// seconds. The latest incarnation that comes is the node; one that was
// superseded by another is refused with ErrStale, however late it comes.
func (s *Store) PutNode(ctx context.Context, id, incarnation string, value, load []byte, ttl time.Duration) error {
	if err := checkNodeID(id); err != nil {
		return err
	}
	if incarnation == "" {
		return fmt.Errorf("state store: node %s: its incarnation is empty: %w", id, ErrInvalid)
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	granted, err := s.lease.Grant(ctx, max(1, int64((ttl+time.Second-1)/time.Second)))
	if err != nil {
		return s.wrap("grant a lease to node", id, err)
	}
	former, err := s.putNode(ctx, id, incarnation, value, load, granted.ID)
	if err != nil {
		former = granted.ID
	}
	if former != clientv3.NoLease {
		// Best effort, also when ctx has ended: an unused lease runs out by itself.
		revoking, cancel := context.WithTimeout(s.life, time.Second)
		defer cancel()
		_, _ = s.lease.Revoke(revoking, former)
	}
	return err
}

// putNode returns the lease that the node had before.
func (s *Store) putNode(ctx context.Context, id, incarnation string, value, load []byte, lease clientv3.LeaseID) (clientv3.LeaseID, error) {
	for range retries {
		was, err := s.readNode(ctx, id)
		if err != nil {
			return 0, err
		}
		if slices.Contains(was.Former, incarnation) {
			return 0, fmt.Errorf("state store: node %s: incarnation %s was superseded by %s: %w", id, incarnation, was.Incarnation, ErrStale)
		}
		is := nodeValue{Incarnation: incarnation, Former: was.Former, Value: value}
		if was.Incarnation != "" && was.Incarnation != incarnation {
			is.Former = append(is.Former, was.Incarnation)
			is.Former = is.Former[max(0, len(is.Former)-formerLimit):]
		}
		what, err := json.Marshal(is)
		if err != nil {
			return 0, fmt.Errorf("state store: node %s: %w", id, err)
		}
		alive, err := json.Marshal(aliveValue{Incarnation: incarnation, Owner: s.owner, Load: load})
		if err != nil {
			return 0, fmt.Errorf("state store: node %s: %w", id, err)
		}
		answer, err := s.kv.Txn(ctx).If(
			clientv3.Compare(clientv3.ModRevision(nodePrefix+id), "=", was.revision),
			clientv3.Compare(clientv3.ModRevision(alivePrefix+id), "=", was.aliveRevision),
		).Then(
			clientv3.OpPut(nodePrefix+id, string(what)),
			clientv3.OpPut(alivePrefix+id, string(alive), clientv3.WithLease(lease)),
		).Commit()
		if err != nil {
			return 0, s.wrap("register node", id, err)
		}
		if !answer.Succeeded {
			continue
		}
		s.grid.apply(Change{KV: KV{Key: nodePrefix + id, Value: what, Revision: answer.Header.Revision}})
		s.grid.apply(Change{KV: KV{Key: alivePrefix + id, Value: alive, Revision: answer.Header.Revision, lease: lease}})
		s.grid.hear(id, lease)
		return was.lease, nil
	}
	return 0, fmt.Errorf("state store: register node %s: others register it at the same time: %w", id, ErrConflict)
}

// readNode reads a node's two keys, as of one moment, into a node that is not
// the cache's.
func (s *Store) readNode(ctx context.Context, id string) (node, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, err := s.kv.Txn(ctx).Then(clientv3.OpGet(nodePrefix+id), clientv3.OpGet(alivePrefix+id)).Commit()
	if err != nil {
		return node{}, s.wrap("read node", id, err)
	}
	var n node
	for _, kv := range answer.Responses[0].GetResponseRange().Kvs {
		n.nodeValue, n.revision = decode[nodeValue](kv.Value), kv.ModRevision
	}
	for _, kv := range answer.Responses[1].GetResponseRange().Kvs {
		n.alive, n.aliveRevision = decode[aliveValue](kv.Value), kv.ModRevision
		n.lease = clientv3.LeaseID(kv.Lease)
	}
	return n, nil
}

// KeepNode keeps a node alive for another ttl, from when this is called, and
// records its load when that has changed: where others read it, in the cluster,
// and with an embedded server in memory only, so that another life of it first
// knows the load of the node's first heartbeat to this one. A node
// that is not alive under this incarnation is refused with ErrStale, and must be
// given no answer that keeps anything of its.
func (s *Store) KeepNode(ctx context.Context, id, incarnation string, load []byte) error {
	ctx, cancel := bounded(ctx)
	defer cancel()
	for try := range retries {
		n := s.grid.node(id)
		if try > 0 || n.aliveRevision == 0 || n.alive.Incarnation != incarnation {
			// The cache may be behind what another Store did.
			var err error
			if n, err = s.readNode(ctx, id); err != nil {
				return err
			}
		}
		switch {
		case n.revision == 0:
			return fmt.Errorf("state store: node %s is not known: %w", id, ErrStale)
		case n.Incarnation != incarnation:
			return fmt.Errorf("state store: node %s is known under incarnation %s, not %s: %w", id, n.Incarnation, incarnation, ErrStale)
		case n.aliveRevision == 0:
			return fmt.Errorf("state store: node %s has lost its lease: %w", id, ErrStale)
		}
		switch {
		case n.alive.Owner != s.owner || !bytes.Equal(n.alive.Load, load) && s.embedded == nil:
			alive, err := json.Marshal(aliveValue{Incarnation: incarnation, Owner: s.owner, Load: load})
			if err != nil {
				return fmt.Errorf("state store: node %s: %w", id, err)
			}
			answer, err := s.kv.Txn(ctx).
				If(clientv3.Compare(clientv3.ModRevision(alivePrefix+id), "=", n.aliveRevision)).
				Then(clientv3.OpPut(alivePrefix+id, string(alive), clientv3.WithLease(n.lease))).Commit()
			if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
				return s.wrap("keep node", id, err)
			}
			if err != nil || !answer.Succeeded {
				continue
			}
			s.grid.apply(Change{KV: KV{Key: alivePrefix + id, Value: alive, Revision: answer.Header.Revision, lease: n.lease}})
		case !bytes.Equal(n.alive.Load, load):
			// Nobody else reads the embedded server, and the next heartbeat tells
			// its successor: a write to disk for each would cost as much as any
			// other step of a job, since every Awaken makes its node send one.
			if !s.grid.load(id, n.aliveRevision, load) {
				continue
			}
		}
		err := s.renew(ctx, n.lease)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) || errors.Is(err, lease.ErrLeaseNotFound) {
			return fmt.Errorf("state store: node %s has lost its lease: %w", id, ErrStale)
		}
		if err != nil {
			return s.wrap("keep node", id, err)
		}
		s.grid.hear(id, n.lease)
		return nil
	}
	return fmt.Errorf("state store: keep node %s: others keep it at the same time: %w", id, ErrConflict)
}

// renew keeps a lease. The embedded server is asked without its client, which
// opens a stream for each call.
func (s *Store) renew(ctx context.Context, id clientv3.LeaseID) error {
	if s.embedded != nil {
		_, err := s.embedded.etcd.Server.LeaseRenew(ctx, lease.LeaseID(id))
		return err
	}
	_, err := s.lease.KeepAliveOnce(ctx, id)
	return err
}

// Nodes returns every node that is known, by id. It is answered from the cache:
// this Store's own writes are in, another's within moments.
func (s *Store) Nodes(ctx context.Context) ([]NodeRecord, error) {
	if err := errors.Join(ctx.Err(), s.life.Err()); err != nil {
		return nil, s.wrap("list", "nodes", err)
	}
	s.grid.mu.Lock()
	defer s.grid.mu.Unlock()
	records := make([]NodeRecord, 0, len(s.grid.nodes))
	for id, n := range s.grid.nodes {
		if n.revision != 0 {
			records = append(records, s.grid.record(id, n))
		}
	}
	slices.SortFunc(records, func(a, b NodeRecord) int { return cmp.Compare(a.ID, b.ID) })
	return records, nil
}

// WatchNodes returns a channel that holds a token whenever something about
// nodes has changed since it was last read, their load included: read it, then
// call Nodes. It closes when ctx ends or the Store is closed.
func (s *Store) WatchNodes(ctx context.Context) <-chan struct{} {
	wake := make(chan struct{}, 1)
	g := s.grid
	g.mu.Lock()
	g.waiters[wake] = struct{}{}
	g.mu.Unlock()
	here, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	context.AfterFunc(here, func() {
		stop()
		cancel()
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.waiters, wake)
		close(wake)
	})
	return wake
}

// ForgetLost removes the records of nodes that have been lost for at least
// after, and returns how many. Their ids may come again.
func (s *Store) ForgetLost(ctx context.Context, after time.Duration) (int, error) {
	records, err := s.Nodes(ctx)
	if err != nil {
		return 0, err
	}
	forgotten := 0
	for _, r := range records {
		if r.Alive || s.clock().Sub(r.Lost) < after {
			continue
		}
		n, err := s.readNode(ctx, r.ID)
		if err != nil {
			return forgotten, err
		}
		if n.revision == 0 || n.aliveRevision != 0 {
			continue
		}
		err = s.Commit(ctx, IfRevision(nodePrefix+r.ID, n.revision), IfAbsent(alivePrefix+r.ID), Delete(nodePrefix+r.ID))
		if errors.Is(err, ErrConflict) {
			continue // it came back
		}
		if err != nil {
			return forgotten, err
		}
		forgotten++
	}
	return forgotten, nil
}
