package queuevm

import "cmp"

// Rank is where something stands among others that wait in a queue.
type Rank struct {
	Priority int
	Arrival  uint64 // grows with the time at which it came
}

// Compare is negative when the type hands out a before b, positive when b goes
// first: the one rule of order that every queue keeps, those of items and, at
// the broker, those of jobs. Of two that came at once neither goes first.
func (t QueueType) Compare(a, b Rank) int {
	switch t {
	case QueuePriority:
		return cmp.Or(-cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Arrival, b.Arrival))
	case QueueLifo, QueueLatest:
		return -cmp.Compare(a.Arrival, b.Arrival)
	}
	return cmp.Compare(a.Arrival, b.Arrival)
}
