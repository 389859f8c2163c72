// Package jobqueue is the queues in which a broker's jobs wait for room: several,
// with names, each fifo or by priority as queuevm orders its items (paper,
// section 3.1: the front end's own queues), and turns between them by weight.
//
// What always holds: whoever entered is in exactly one queue until it leaves;
// changing a queue moves nobody out of it; the same calls lead to the same
// order. It reads no clock, does no I/O and does not lock: its user does.
//
// It must never lose a job: what is full refuses at the door, before a job is
// accepted, and never drops.
package jobqueue

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"mvm/queuevm"
)

const (
	// Default is the name of the queue that is always there: of jobs that name
	// none.
	Default = "default"
	// MaxQueues bounds how many there are, the default one included.
	MaxQueues = 64
	// MaxWeight bounds a queue's weight.
	MaxWeight = 1000
	// MaxCapacity bounds how many jobs a queue may be said to hold.
	MaxCapacity = 1_000_000
)

// Settings are what an administrator says about a queue.
type Settings struct {
	Type     queuevm.QueueType // fifo or priority
	Capacity int               `json:",omitempty"` // jobs that may wait; 0 = any number
	Weight   int               // its share of the room, against that of others
	Held     bool              `json:",omitempty"` // its jobs are not placed
}

// DefaultSettings are those of a queue of which nothing is said.
func DefaultSettings() Settings { return Settings{Type: queuevm.QueuePriority, Weight: 1} }

// Check says what is wrong with the settings, for people.
func (s Settings) Check() error {
	switch {
	case s.Type != queuevm.QueueFifo && s.Type != queuevm.QueuePriority:
		return fmt.Errorf("a queue of jobs has the type %q, expected fifo or priority", s.Type)
	case s.Capacity < 0 || s.Capacity > MaxCapacity:
		return fmt.Errorf("a queue of jobs has the capacity %d, expected 1 to %d jobs, or 0 for any number", s.Capacity, MaxCapacity)
	case s.Weight < 1 || s.Weight > MaxWeight:
		return fmt.Errorf("a queue of jobs has the weight %d, expected 1 to %d", s.Weight, MaxWeight)
	}
	return nil
}

// Why a call is refused.
var (
	ErrUnknown = errors.New("there is no such queue")
	ErrExists  = errors.New("there is such a queue")
	ErrFull    = errors.New("the queue is full")
	ErrShut    = errors.New("the queue is being removed")
	ErrTooMany = errors.New("there are as many queues as there may be")
	ErrInUse   = errors.New("jobs are in the queue")
	ErrDefault = errors.New("the default queue stays")
)

// Place is where a job stands: in which queue, and where in it.
type Place struct {
	Queue    string // "" = Default
	Priority int
	Arrival  uint64
}

// Job is one that waits.
type Job[V any] struct {
	ID    string
	Place Place
	Size  int       // slots it will take; what its queue is charged
	Since time.Time // when it began to wait
	Ready bool      // it may be placed; false while it is left alone for a moment
	Paid  bool      // its queue was charged for an attempt that never ran
	Value V

	in *queue[V]
}

// queue is one queue with those that wait in it.
type queue[V any] struct {
	name string
	Settings
	jobs     []*Job[V] // in the order in which they go
	ready    int       // of them
	reserved int       // places of jobs that are being accepted
	shut     bool      // it is about to be removed: no places any more
	// pass is what the queue has been charged, in slots by its weight. The queue
	// of the lowest pass is served next (stride scheduling: Waldspurger and
	// Weihl, 1995).
	pass    float64
	in, out uint64
	refused uint64
}

// Set is all queues. The zero value is not ready; use New.
type Set[V any] struct {
	queues map[string]*queue[V]
	sorted []*queue[V] // by name
	jobs   map[string]*Job[V]
	// turn is the pass of the queue that was served last: one that begins to
	// compete begins there, so that having been idle is no credit.
	turn float64
}

// New has the default queue only.
func New[V any]() *Set[V] {
	s := &Set[V]{queues: map[string]*queue[V]{}, jobs: map[string]*Job[V]{}}
	_ = s.Make(Default, DefaultSettings())
	return s
}

// Make adds a queue, with settings that are right.
func (s *Set[V]) Make(name string, settings Settings) error {
	switch {
	case s.queues[name] != nil:
		return ErrExists
	case len(s.sorted) >= MaxQueues:
		return ErrTooMany
	}
	q := &queue[V]{name: name, Settings: settings, pass: s.turn}
	s.queues[name] = q
	at, _ := slices.BinarySearchFunc(s.sorted, q, func(a, b *queue[V]) int { return cmp.Compare(a.name, b.name) })
	s.sorted = slices.Insert(s.sorted, at, q)
	return nil
}

// Change gives a queue other settings, which are right. Those that wait stay,
// also where there are more than its capacity.
func (s *Set[V]) Change(name string, settings Settings) error {
	q := s.queues[name]
	if q == nil {
		return ErrUnknown
	}
	resort, resumed := q.Type != settings.Type, q.Held && !settings.Held
	q.Settings = settings
	if resort {
		slices.SortFunc(q.jobs, q.compare)
	}
	if resumed {
		q.pass = max(q.pass, s.turn)
	}
	return nil
}

// Remove ends a queue in which nobody is, or is about to be.
func (s *Set[V]) Remove(name string) error {
	q := s.queues[name]
	switch {
	case q == nil:
		return ErrUnknown
	case name == Default:
		return ErrDefault
	case s.InUse(name):
		return ErrInUse
	}
	delete(s.queues, name)
	s.sorted = slices.DeleteFunc(s.sorted, func(x *queue[V]) bool { return x == q })
	return nil
}

// InUse says whether jobs are in a queue, or about to be.
func (s *Set[V]) InUse(name string) bool {
	q := s.queues[name]
	return q != nil && (len(q.jobs) > 0 || q.reserved > 0)
}

// Shut closes a queue to jobs that are accepted from now, before it is removed,
// or opens it again.
func (s *Set[V]) Shut(name string, shut bool) {
	if q := s.queues[name]; q != nil {
		q.shut = shut
	}
}

// Reserve keeps a place for a job that is about to be accepted, until Unreserve.
// A queue that holds as many as it may has none.
func (s *Set[V]) Reserve(name string) error {
	q := s.queues[name]
	switch {
	case q == nil:
		return ErrUnknown
	case q.shut:
		return ErrShut
	case q.Capacity > 0 && len(q.jobs)+q.reserved >= q.Capacity:
		q.refused++
		return ErrFull
	}
	q.reserved++
	return nil
}

// Unreserve gives a reserved place back: the job has entered, or never will.
func (s *Set[V]) Unreserve(name string) {
	if q := s.queues[name]; q != nil && q.reserved > 0 {
		q.reserved--
	}
}

// Enter lets a job wait, and says whether it did not wait before. It always
// gets in: one that waits again was accepted long ago. A job of a queue that was
// removed waits in the default one.
func (s *Set[V]) Enter(j *Job[V]) bool {
	if s.jobs[j.ID] != nil {
		return false
	}
	s.jobs[j.ID] = j
	s.insert(j)
	return true
}

func (s *Set[V]) insert(j *Job[V]) {
	q := s.queues[cmp.Or(j.Place.Queue, Default)]
	if q == nil {
		q = s.queues[Default]
	}
	j.in = q
	at, _ := slices.BinarySearchFunc(q.jobs, j, q.compare)
	q.jobs = slices.Insert(q.jobs, at, j)
	q.in++
	if j.Ready {
		s.readied(q)
	}
}

// readied notes one more that may be placed.
func (s *Set[V]) readied(q *queue[V]) {
	if q.ready++; q.ready == 1 {
		q.pass = max(q.pass, s.turn)
	}
}

// Ready says that a job, if it waits, may be placed from now on.
func (s *Set[V]) Ready(id string) {
	if j := s.jobs[id]; j != nil && !j.Ready {
		j.Ready = true
		s.readied(j.in)
	}
}

// Leave takes a job out, and says whether it was in.
func (s *Set[V]) Leave(id string) bool {
	j := s.jobs[id]
	if j == nil {
		return false
	}
	delete(s.jobs, id)
	s.take(j)
	return true
}

func (s *Set[V]) take(j *Job[V]) {
	q := j.in
	if at, there := slices.BinarySearchFunc(q.jobs, j, q.compare); there {
		q.jobs = slices.Delete(q.jobs, at, at+1)
	}
	q.out++
	if j.Ready {
		q.ready--
	}
	j.in = nil
}

// Move gives a job, if it waits, another place, perhaps in another queue.
func (s *Set[V]) Move(id string, to Place) {
	if j := s.jobs[id]; j != nil && j.Place != to {
		s.take(j)
		j.Place = to
		s.insert(j)
	}
}

// compare is the order within the queue.
func (q *queue[V]) compare(a, b *Job[V]) int {
	return cmp.Or(q.Type.Compare(a.rank(), b.rank()), cmp.Compare(a.ID, b.ID))
}

func (j *Job[V]) rank() queuevm.Rank {
	return queuevm.Rank{Priority: j.Place.Priority, Arrival: j.Place.Arrival}
}

// Queue is the name of the queue in which a job waits.
func (j *Job[V]) Queue() string { return j.in.name }

// HeldBack are the jobs of queues that are held.
func (s *Set[V]) HeldBack() []*Job[V] {
	var held []*Job[V]
	for _, q := range s.sorted {
		if q.Held {
			held = append(held, q.jobs...)
		}
	}
	return held
}

// Position is where a job stands in its queue, from 1; 0 when it does not wait.
func (s *Set[V]) Position(id string) int {
	j := s.jobs[id]
	if j == nil {
		return 0
	}
	at, _ := slices.BinarySearchFunc(j.in.jobs, j, j.in.compare)
	return at + 1
}

// Get is the job that waits under an id, or nil.
func (s *Set[V]) Get(id string) *Job[V] { return s.jobs[id] }

// Len is how many wait, in all queues.
func (s *Set[V]) Len() int { return len(s.jobs) }

// Answer is what became of a job that was offered.
type Answer int

const (
	Passed Answer = iota // it stays
	Placed               // it leaves
	Enough               // it stays, and no other is to be offered
)

// Round offers the jobs that may be placed, each once at most: always the next
// one of the queue that has been charged least by its weight. A job that stays
// lets later ones go ahead, and its queue others: room that a queue has no use
// for is no debt to it.
func (s *Set[V]) Round(offer func(*Job[V]) Answer) {
	type turn struct {
		*queue[V]
		next int
	}
	var turns []*turn
	for _, q := range s.sorted {
		if q.ready > 0 && !q.Held {
			turns = append(turns, &turn{queue: q})
		}
	}
	var placed []*Job[V]
	for len(turns) > 0 {
		least := 0
		for i, t := range turns {
			if t.pass < turns[least].pass {
				least = i
			}
		}
		t := turns[least]
		for t.next < len(t.jobs) && !t.jobs[t.next].Ready {
			t.next++
		}
		if t.next == len(t.jobs) {
			turns = slices.Delete(turns, least, least+1)
			continue
		}
		j := t.jobs[t.next]
		t.next++
		answer := offer(j)
		if answer == Enough {
			break
		}
		if answer == Placed {
			placed = append(placed, j)
			s.charge(t.queue, j)
		}
	}
	for _, j := range placed {
		s.Leave(j.ID)
	}
}

// charge counts what a job that is placed takes against its queue's share.
// Queues with a lower pass had nothing that fits: they forgo what they are
// behind.
func (s *Set[V]) charge(q *queue[V], j *Job[V]) {
	s.turn = max(s.turn, q.pass)
	for _, other := range s.sorted {
		other.pass = max(other.pass, q.pass)
	}
	if !j.Paid {
		q.pass += float64(j.Size) / float64(q.Weight)
	}
}

// Drop takes out every job that gone says is.
func (s *Set[V]) Drop(gone func(V) bool) {
	var ids []string
	for id, j := range s.jobs {
		if gone(j.Value) {
			ids = append(ids, id)
		}
	}
	for _, id := range ids {
		s.Leave(id)
	}
}

// Has says whether there is a queue of this name.
func (s *Set[V]) Has(name string) bool { return s.queues[name] != nil }

// Names are the queues, in order.
func (s *Set[V]) Names() []string {
	names := make([]string, len(s.sorted))
	for i, q := range s.sorted {
		names[i] = q.name
	}
	return names
}

// State is a queue as it is now.
type State struct {
	Settings
	Depth   int       // jobs that wait
	Oldest  time.Time // when the one began to wait that waits longest; zero when none does
	In, Out uint64    // jobs that came and went since the Set was made
	Refused uint64    // jobs for which it was full
	First   uint64    // the least arrival of those that wait
	Last    uint64    // and the greatest
}

// State is a queue as it is now; it is false where there is none.
func (s *Set[V]) State(name string) (State, bool) {
	q := s.queues[name]
	if q == nil {
		return State{}, false
	}
	state := State{Settings: q.Settings, Depth: len(q.jobs), In: q.in, Out: q.out, Refused: q.refused}
	for i, j := range q.jobs {
		if i == 0 || j.Since.Before(state.Oldest) {
			state.Oldest = j.Since
		}
		if i == 0 || j.Place.Arrival < state.First {
			state.First = j.Place.Arrival
		}
		state.Last = max(state.Last, j.Place.Arrival)
	}
	return state, true
}

// Peek is the first jobs of a queue, in the order in which they go, those
// included that may not be placed yet.
func (s *Set[V]) Peek(name string, limit int) []*Job[V] {
	q := s.queues[name]
	if q == nil {
		return nil
	}
	return slices.Clone(q.jobs[:min(limit, len(q.jobs))])
}
