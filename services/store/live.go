package store

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// Attempt is one try at a job on one node, as the broker named it live.
type Attempt struct {
	Job         string
	Number      int // from 1
	Node        string
	Incarnation string // the node's, when the attempt was journalled
}

// LiveKey is the key under which an attempt is live. Name and Drop use it.
func LiveKey(node, job string, number int) string {
	return livePrefix + url.PathEscape(node) + "/" + url.PathEscape(job) + "/" + strconv.Itoa(number)
}

// Name is the part of a broker's Commit that makes a live: from then on the
// information service names it in the answers to the node's heartbeats.
func Name(a Attempt) Op { return Put(LiveKey(a.Node, a.Job, a.Number), []byte(a.Incarnation)) }

// Drop is the part of a broker's Commit after which no answer to a heartbeat
// names the attempt any more: answers given before the Commit returned bind the
// node for one lease from when it sent that heartbeat.
func Drop(node, job string, number int) Op { return Delete(LiveKey(node, job, number)) }

// attemptOf reads a live key.
func attemptOf(kv KV) (Attempt, bool) {
	parts := strings.Split(strings.TrimPrefix(kv.Key, livePrefix), "/")
	if len(parts) != 3 {
		return Attempt{}, false
	}
	node, err1 := url.PathUnescape(parts[0])
	job, err2 := url.PathUnescape(parts[1])
	number, err3 := strconv.Atoi(parts[2])
	if err1 != nil || err2 != nil || err3 != nil {
		return Attempt{}, false
	}
	return Attempt{Job: job, Number: number, Node: node, Incarnation: string(kv.Value)}, true
}

// LiveOn returns the attempts that are live on a node, by job and number.
//
// It is linearizable: an attempt whose Drop was committed before the call, by
// any Store, is not in the answer. The embedded server has one Store only, whose
// commits enter the cache before they return, so the cache answers; an external
// cluster may have other brokers, so there it is one read.
func (s *Store) LiveOn(ctx context.Context, node string) ([]Attempt, error) {
	if err := errors.Join(ctx.Err(), s.life.Err()); err != nil {
		return nil, s.wrap("list what is live on", node, err)
	}
	var live []Attempt
	if s.embedded != nil {
		s.grid.mu.Lock()
		for _, a := range s.grid.live[node] {
			live = append(live, a)
		}
		s.grid.mu.Unlock()
	} else {
		all, err := s.List(ctx, livePrefix+url.PathEscape(node)+"/")
		if err != nil {
			return nil, err
		}
		for _, kv := range all {
			if a, ok := attemptOf(kv); ok {
				live = append(live, a)
			}
		}
	}
	slices.SortFunc(live, func(a, b Attempt) int {
		return cmp.Or(cmp.Compare(a.Job, b.Job), cmp.Compare(a.Number, b.Number))
	})
	return live, nil
}

// Audit reads every key of this package's own and says what of them does not
// fit together; live are the attempts that are named live, on any node.
func (s *Store) Audit(ctx context.Context) (live []Attempt, problems []string, err error) {
	all, err := s.List(ctx, gridPrefix)
	if err != nil {
		return nil, nil, err
	}
	known := map[string]nodeValue{}
	bad := func(key, what string) { problems = append(problems, key+": "+what) }
	for _, kv := range all {
		id, isNode := strings.CutPrefix(kv.Key, nodePrefix)
		switch {
		case isNode:
			var n nodeValue
			if err := json.Unmarshal(kv.Value, &n); err != nil {
				bad(kv.Key, err.Error())
			} else if n.Incarnation == "" || slices.Contains(n.Former, n.Incarnation) {
				bad(kv.Key, "its incarnation is "+strconv.Quote(n.Incarnation)+", the former ones are "+strings.Join(n.Former, ", "))
			}
			known[id] = n
		case strings.HasPrefix(kv.Key, livePrefix):
			a, ok := attemptOf(kv)
			if !ok || a.Number < 1 || LiveKey(a.Node, a.Job, a.Number) != kv.Key {
				bad(kv.Key, "no attempt's key")
				continue
			}
			live = append(live, a)
		}
	}
	for _, kv := range all {
		id, isAlive := strings.CutPrefix(kv.Key, alivePrefix)
		switch {
		case isAlive:
			var alive aliveValue
			n, there := known[id]
			switch err := json.Unmarshal(kv.Value, &alive); {
			case err != nil:
				bad(kv.Key, err.Error())
			case !there:
				bad(kv.Key, "of a node that is not known")
			case alive.Incarnation != n.Incarnation:
				bad(kv.Key, "of incarnation "+alive.Incarnation+", but the node is "+n.Incarnation)
			case kv.lease == 0:
				bad(kv.Key, "it has no lease, so the node would never be lost")
			}
		case !strings.HasPrefix(kv.Key, nodePrefix) && !strings.HasPrefix(kv.Key, livePrefix):
			bad(kv.Key, "no key of the store's")
		}
	}
	return live, problems, nil
}
