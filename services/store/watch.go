package store

import (
	"context"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// Change is what became of a key. Value is nil when it was deleted.
type Change struct {
	KV
	Deleted bool
}

// Watch delivers every change to keys that begin with prefix and that is
// committed after Watch returned, per key in order. Changes that follow each
// other closely may be delivered as the last of them when the watch had to
// start again. The channel closes when ctx ends or the Store is closed.
func (s *Store) Watch(ctx context.Context, prefix string) (<-chan Change, error) {
	first, at, err := s.list(ctx, prefix)
	if err != nil {
		return nil, err
	}
	known := make(map[string]int64, len(first))
	for _, kv := range first {
		known[kv.Key] = kv.Revision
	}
	changes := make(chan Change)
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.life, cancel)
	send := func(c Change) {
		if c.Deleted {
			delete(known, c.Key)
		} else {
			known[c.Key] = c.Revision
		}
		select {
		case changes <- c:
		case <-ctx.Done():
		}
	}
	s.running.Go(func() {
		defer close(changes)
		defer stop()
		defer cancel()
		s.follow(ctx, prefix, at, func(changes []Change) {
			for _, c := range changes {
				send(c)
			}
		}, func(all []KV, at int64) {
			here := make(map[string]bool, len(all))
			for _, kv := range all {
				here[kv.Key] = true
				if known[kv.Key] != kv.Revision {
					send(Change{KV: kv})
				}
			}
			for key := range known {
				if !here[key] {
					send(Change{KV: KV{Key: key, Revision: at}, Deleted: true})
				}
			}
		})
	})
	return changes, nil
}

func changeOf(e *clientv3.Event) Change {
	c := Change{KV: kvOf(e.Kv), Deleted: e.Type == clientv3.EventTypeDelete}
	if c.Deleted {
		c.Value = nil
	}
	return c
}

// follow calls some with the changes after revision at, until ctx ends. When
// the history that it needs is compacted away, or etcd ends the watch, it calls
// all with everything that is there instead, and goes on from there. Both are
// called from this goroutine only.
func (s *Store) follow(ctx context.Context, prefix string, at int64, some func([]Change), all func([]KV, int64)) {
	for ctx.Err() == nil {
		watching, cancel := context.WithCancel(ctx)
		for answer := range s.watcher.Watch(watching, prefix, clientv3.WithPrefix(), clientv3.WithRev(at+1)) {
			if answer.Err() != nil {
				break
			}
			changes := make([]Change, 0, len(answer.Events))
			for _, e := range answer.Events {
				changes = append(changes, changeOf(e))
				// Not the header's revision: that one may be ahead of the events.
				at = e.Kv.ModRevision
			}
			if len(changes) > 0 {
				some(changes)
			}
		}
		cancel()
		for ctx.Err() == nil {
			everything, now, err := s.list(ctx, prefix)
			if err == nil {
				all(everything, now)
				at = now
				break
			}
			// The cluster is away. Its client keeps dialling; there is nothing
			// to do but to ask again.
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}
