package store

import (
	"cmp"
	"context"
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
