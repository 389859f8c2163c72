package broker

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mvm/wsdl"
)

// A deadlock is found in two rounds. A node whose part of the attempt has come
// to rest reports it once; when all have, each is asked, and once all answers
// are in, each is asked again. Everybody quiet in both rounds, with the same
// periods, means that all were quiet at the moment between the rounds, and equal
// sums of what was sent and received mean that nothing was on its way then. So
// nothing can ever happen again. queuevm.Quiet says why that holds for a node.

// quiet is what a member answered about its part of the attempt.
type quiet struct {
	Failed         bool // it did not answer
	Quiet          bool
	Period         int64
	Sent, Received int64
	Waits          []waiting // in the second round
}

// waiting is a process that waits at one end of a channel for the other.
type waiting struct {
	Process         int
	Port            string
	Enqueues        bool // for room; else for an item
	Depth, Capacity int64
	Other           int    // the process at the other end, below 0 where there is none
	Queue           string // or the served queue
}

// probeAgain is the time between two tries where an answer did not come, or
// something is on its way although everybody waits.
const probeAgain = 2 * time.Second

// probe asks all members, if every one has said that it is quiet.
func (l *life) probe() []action {
	if l.Phase != wsdl.JobStateRunning || l.Probing != 0 {
		return nil
	}
	for i := range l.Members {
		if l.Members[i].Quiet == 0 {
			return nil
		}
	}
	l.Probing, l.Answers = 1, nil
	return []action{ask{Round: 1}}
}

// answered takes all answers of one round.
func (l *life) answered(now time.Time, e answered) []action {
	if l.Phase != wsdl.JobStateRunning || e.Round != l.Probing || len(e.Answers) != len(l.Members) {
		return nil
	}
	l.Probing = 0
	all, known := true, true
	var sent, received, waits int64
	for i, a := range e.Answers {
		m := &l.Members[i]
		// A member that became quiet again after it answered has said so already.
		if !a.Failed && !a.Quiet && m.Quiet <= a.Period {
			m.Quiet, known = 0, false
		}
		all = all && !a.Failed && a.Quiet && (e.Round == 1 || a.Period == l.Answers[i].Period)
		sent, received, waits = sent+a.Sent, received+a.Received, waits+int64(len(a.Waits))
	}
	switch {
	case !known:
		return nil // it will report when it is quiet again
	case !all || sent != received || e.Round == 2 && waits == 0 || l.pending():
		return []action{wait{Timer: probeTimer, For: probeAgain}}
	case e.Round == 1:
		l.Probing, l.Answers = 2, e.Answers
		return []action{ask{Round: 2}}
	}
	return l.failed(now, l.deadlock(e.Answers))
}

// Bounds of the words about a deadlock: a job may have thousands of processes.
const (
	circleShown = 8
	portsShown  = 3
)

// deadlock says who waits on whom, a circle first.
func (l *life) deadlock(answers []quiet) string {
	waits := map[int][]waiting{}
	var order []int
	for _, a := range answers {
		for _, w := range a.Waits {
			if waits[w.Process] == nil {
				order = append(order, w.Process)
			}
			waits[w.Process] = append(waits[w.Process], w)
		}
	}
	slices.Sort(order)
	circle := circleOf(waits, order)
	var parts []string
	for k, id := range circle {
		if hidden := len(circle) - circleShown; hidden > 1 && k >= circleShown-1 && k < len(circle)-1 {
			if k == circleShown-1 {
				parts = append(parts, fmt.Sprintf("%d more in the same way", hidden))
			}
			continue
		}
		parts = append(parts, l.waitOf(id, waits[id]))
	}
	text := "deadlock: every process waits for another, for ever: " + strings.Join(parts, "; ")
	if others := len(order) - len(circle); others > 0 {
		first := slices.IndexFunc(order, func(id int) bool { return !slices.Contains(circle, id) })
		text += "; and "
		if others > 1 {
			text += fmt.Sprintf("%d others wait, first ", others)
		}
		text += l.waitOf(order[first], waits[order[first]])
	}
	return text
}

// circleOf follows who waits on whom from the lowest process on until it comes
// to one that it has met. Of several ports of a process it follows the first
// that leads to one that waits: to be let go by any of them would be enough, so
// all their ends wait.
func circleOf(waits map[int][]waiting, order []int) []int {
	if len(order) == 0 {
		return nil
	}
	var path []int
	at := map[int]int{}
	for id := order[0]; ; {
		if k, met := at[id]; met {
			return path[k:]
		}
		at[id] = len(path)
		path = append(path, id)
		next := slices.IndexFunc(waits[id], func(w waiting) bool { return waits[w.Other] != nil })
		if next < 0 {
			return path // what it leads to is not known
		}
		id = waits[id][next].Other
	}
}

// waitOf says what one process waits for.
func (l *life) waitOf(id int, waits []waiting) string {
	var parts []string
	for _, w := range waits[:min(len(waits), portsShown)] {
		other := "nobody"
		if w.Queue != "" {
			other = "the queue " + w.Queue
		}
		if w.Other >= 0 && w.Other < len(l.Processes) {
			other = l.Processes[w.Other].label()
		}
		if w.Enqueues {
			parts = append(parts, fmt.Sprintf("room on %s (%d of %d bytes are full, to %s)", w.Port, w.Depth, w.Capacity, other))
		} else {
			parts = append(parts, fmt.Sprintf("an item on %s (%d bytes there, from %s)", w.Port, w.Depth, other))
		}
	}
	if more := len(waits) - portsShown; more > 0 {
		parts = append(parts, fmt.Sprintf("%d more ports", more))
	}
	return fmt.Sprintf("%s waits for %s", l.Processes[id].label(), strings.Join(parts, " or "))
}
