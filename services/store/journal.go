package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// KV is a key with its value.
type KV struct {
	Key      string
	Value    []byte
	Revision int64 // of the transaction that last wrote it; grows over the whole store

	lease clientv3.LeaseID // it goes when the lease does; 0: it stays
}

// Op is one part of a Commit: a write or a condition.
type Op struct {
	kind     opKind
	key      string
	value    []byte
	revision int64
}

type opKind byte

const (
	opPut opKind = iota
	opDelete
	opDeletePrefix
	opIfAbsent
	opIfPresent
	opIfRevision
)

// Key is the key, or the prefix, that the Op is about.
func (o Op) Key() string { return o.key }

// Put writes value under key. Keys are slash-separated names of your own
// ("jobs/…"); those under "grid/" belong to this package.
func Put(key string, value []byte) Op { return Op{kind: opPut, key: key, value: value} }

// Delete removes key; nothing happens when it is not there.
func Delete(key string) Op { return Op{kind: opDelete, key: key} }

// DeletePrefix removes every key that begins with prefix.
func DeletePrefix(prefix string) Op { return Op{kind: opDeletePrefix, key: prefix} }

// IfAbsent lets the Commit happen only when key is not there.
func IfAbsent(key string) Op { return Op{kind: opIfAbsent, key: key} }

// IfPresent lets the Commit happen only when key is there.
func IfPresent(key string) Op { return Op{kind: opIfPresent, key: key} }

// IfRevision lets the Commit happen only when key was last written at revision,
// as a KV said.
func IfRevision(key string, revision int64) Op {
	return Op{kind: opIfRevision, key: key, revision: revision}
}

// Commit does all ops in one transaction, or none: ErrConflict when a condition
// does not hold. When it returns nil the writes are on disk, and this Store's
// LiveOn and Nodes show them. A key may be written only once in a Commit. With
// any other error it is unknown whether it happened (the context may have ended
// between the write and its answer): read, or repeat an idempotent one.
func (s *Store) Commit(ctx context.Context, ops ...Op) error {
	_, err := s.commit(ctx, ops)
	return err
}

func (s *Store) commit(ctx context.Context, ops []Op) (int64, error) {
	var conditions []clientv3.Cmp
	var writes []clientv3.Op
	for _, op := range ops {
		if op.key == "" {
			return 0, fmt.Errorf("state store: commit: a key is empty")
		}
		switch op.kind {
		case opPut:
			writes = append(writes, clientv3.OpPut(op.key, string(op.value)))
		case opDelete:
			writes = append(writes, clientv3.OpDelete(op.key))
		case opDeletePrefix:
			// The caches learn of deletions key by key.
			if strings.HasPrefix(op.key, gridPrefix) || strings.HasPrefix(gridPrefix, op.key) {
				return 0, fmt.Errorf("state store: commit: prefix %q reaches into %s, which only single keys may change", op.key, gridPrefix)
			}
			writes = append(writes, clientv3.OpDelete(op.key, clientv3.WithPrefix()))
		case opIfAbsent:
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(op.key), "=", 0))
		case opIfPresent:
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(op.key), "!=", 0))
		case opIfRevision:
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(op.key), "=", op.revision))
		}
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	if slices.ContainsFunc(ops, func(op Op) bool { return op.kind == opPut }) {
		if err := s.embedded.room(); err != nil {
			return 0, fmt.Errorf("state store: commit to %s: %w", ops[0].key, err)
		}
	}
	answer, err := s.kv.Txn(ctx).If(conditions...).Then(writes...).Commit()
	if errors.Is(err, rpctypes.ErrNoSpace) && s.embedded.heal(ctx) {
		answer, err = s.kv.Txn(ctx).If(conditions...).Then(writes...).Commit()
	}
	if err != nil {
		return 0, s.wrap("commit to", ops[0].key, err)
	}
	if !answer.Succeeded {
		return 0, fmt.Errorf("state store: commit to %s: %w", ops[0].key, ErrConflict)
	}
	revision := answer.Header.Revision
	for _, op := range ops {
		if op.kind > opDelete || !strings.HasPrefix(op.key, gridPrefix) {
			continue
		}
		s.grid.apply(Change{KV: KV{Key: op.key, Value: op.value, Revision: revision}, Deleted: op.kind == opDelete})
	}
	return revision, nil
}

// Get reads one key, linearizably. A missing key is ErrNotFound. The revision
// is for IfRevision.
func (s *Store) Get(ctx context.Context, key string) (value []byte, revision int64, err error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, err := s.kv.Get(ctx, key)
	if err != nil {
		return nil, 0, s.wrap("read", key, err)
	}
	if len(answer.Kvs) == 0 {
		return nil, 0, fmt.Errorf("state store: %s: %w", key, ErrNotFound)
	}
	return answer.Kvs[0].Value, answer.Kvs[0].ModRevision, nil
}

const pageSize = 1000

// List reads every key that begins with prefix, in the order of keys, as of one
// moment.
func (s *Store) List(ctx context.Context, prefix string) ([]KV, error) {
	all, _, err := s.list(ctx, prefix)
	return all, err
}

// list also returns the moment: the revision that everything is as of.
func (s *Store) list(ctx context.Context, prefix string) ([]KV, int64, error) {
	var all []KV
	var at int64                                                            // 0: now
	from, end := cmp.Or(prefix, "\x00"), clientv3.GetPrefixRangeEnd(prefix) // etcd takes no empty key
	for {
		page, cancel := bounded(ctx)
		answer, err := s.kv.Get(page, from, clientv3.WithRange(end), clientv3.WithLimit(pageSize), clientv3.WithRev(at))
		cancel()
		if err != nil {
			return nil, 0, s.wrap("list", prefix, err)
		}
		if at == 0 {
			at = answer.Header.Revision
		}
		for _, kv := range answer.Kvs {
			all = append(all, kvOf(kv))
		}
		if !answer.More {
			return all, at, nil
		}
		from = all[len(all)-1].Key + "\x00"
	}
}

// ListPage reads at most limit keys that begin with prefix: those after the key
// named after ("" for the first page), in the order of keys, or against it when
// descending.
func (s *Store) ListPage(ctx context.Context, prefix, after string, limit int, descending bool) ([]KV, error) {
	from, end, order := cmp.Or(prefix, "\x00"), clientv3.GetPrefixRangeEnd(prefix), clientv3.SortAscend
	if descending {
		order = clientv3.SortDescend
	}
	switch {
	case after == "":
	case !strings.HasPrefix(after, prefix):
		return nil, fmt.Errorf("state store: list %s: the page cannot begin after %q, which is elsewhere", prefix, after)
	case descending:
		end = after
	default:
		from = after + "\x00"
	}
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, err := s.kv.Get(ctx, from, clientv3.WithRange(end), clientv3.WithLimit(int64(limit)),
		clientv3.WithSort(clientv3.SortByKey, order))
	if err != nil {
		return nil, s.wrap("list", prefix, err)
	}
	page := make([]KV, 0, len(answer.Kvs))
	for _, kv := range answer.Kvs {
		page = append(page, kvOf(kv))
	}
	return page, nil
}

func kvOf(kv *mvccpb.KeyValue) KV {
	return KV{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision, lease: clientv3.LeaseID(kv.Lease)}
}
