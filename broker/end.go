package broker

import (
	"fmt"
	"strings"
	"time"

	"mvm/wsdl"
)

// failed decides what a failure of an attempt that ran leads to.
func (l *life) failed(now time.Time, cause string) []action {
	l.Failures++
	if l.Failures <= l.Retries {
		return l.decide(now, retry, fmt.Sprintf("attempt %d of %d failed: %s", l.Failures, l.Retries+1, cause))
	}
	if l.Retries > 0 {
		cause = fmt.Sprintf("attempt %d of %d failed: %s", l.Failures, l.Retries+1, cause)
	}
	return l.decide(now, fail, cause)
}

// decide is the one way out of an attempt.
func (l *life) decide(now time.Time, to outcome, cause string) []action {
	l.changes++
	l.Outcome, l.Cause = to, cause
	l.Phase = wsdl.JobStateTerminating
	l.Reason = cause
	var actions []action
	save := commit{}
	if to != requeue && l.Held == nil {
		// A requeue need not be durable: an attempt without a go is superseded
		// anyway. Nor does what a held report leads to: it will come again.
		save.Outcome = true
	}
	for i := range l.Members {
		if m := &l.Members[i]; m.Lost && !m.Gone && !m.Dropped {
			m.Dropped = true
			save.Drop = append(save.Drop, i)
		}
	}
	if save.Outcome || save.Drop != nil {
		actions = append(actions, save)
	}
	actions = append(actions, l.end()...)
	if save.Drop != nil {
		actions = append(actions, l.expire(save.Drop))
	}
	return append(actions, l.conclude(now)...)
}

// end terminates every member that may still hold something.
func (l *life) end() []action {
	grace := l.Rules.Grace
	if l.Outcome == succeed {
		grace = 0 // every process has ended; what one left behind has had its time
	}
	var actions []action
	for i := range l.Members {
		if !l.Members[i].Gone {
			actions = append(actions, terminate{Member: i, Grace: grace, Reason: l.Cause})
		}
	}
	if actions != nil {
		actions = append(actions, wait{Timer: dropTimer, For: grace + l.Rules.Drop})
	}
	return actions
}

// expire waits until a node that no heartbeat's answer names any more has lost
// its lease: the last answer that named the attempt was to a heartbeat sent
// before the drop. After a restart of the broker it is counted afresh.
func (l *life) expire(members []int) action {
	return wait{Timer: expireTimer, Members: members, For: l.Rules.Lease + l.Rules.Grace + l.Rules.Drift}
}

func (l *life) terminated(now time.Time, e terminated) []action {
	m := &l.Members[e.Member]
	if l.Phase != wsdl.JobStateTerminating || m.Acked {
		return nil
	}
	l.changes++
	m.Acked, m.Last = true, e.Sequence
	var actions []action
	if !m.Gone {
		m.Gone = true
		actions = append(actions, release{Member: e.Member})
	}
	l.settle(e.Member)
	if !m.Settled {
		// A node reports in order: what is due comes after the held one.
		return append(append(actions, l.keep()...), wait{Timer: flushTimer, For: l.Rules.Flush})
	}
	return append(actions, l.conclude(now)...)
}

// settle notes that a member has nothing more to say.
func (l *life) settle(i int) {
	m := &l.Members[i]
	if m.Acked && m.Reported >= m.Last {
		m.Settled = true
	}
}

// conclude ends the attempt once nothing of it can run any more and nothing
// more is to be heard of it.
func (l *life) conclude(now time.Time) []action {
	if l.Phase != wsdl.JobStateTerminating {
		return nil
	}
	for i := range l.Members {
		if m := &l.Members[i]; !m.Gone || !m.Settled {
			return nil
		}
	}
	l.changes++
	l.Gone = true
	if l.Running {
		for i := range l.Members {
			m := &l.Members[i]
			for _, id := range m.Processes {
				// What a node that acknowledged never spoke of was not started.
				if p := &l.Processes[id]; !p.ended() && !(m.Acked && p.State == wsdl.ProcessStateWaiting) {
					p.State = wsdl.ProcessStateLost
					if p.Message == "" {
						p.Message = "no report of its end came"
					}
				}
			}
		}
	}
	switch l.Outcome {
	case requeue, retry:
		if l.Outcome == requeue {
			l.Refusals++
		}
		l.Phase = wsdl.JobStatePending
		l.Reason = l.Cause + "; it will be tried again"
		return []action{commit{Requeue: true}, queue{Refusals: l.Refusals}}
	}
	return l.over(now)
}

// over ends the job.
func (l *life) over(now time.Time) []action {
	l.Ended = now
	l.Reason = strings.TrimSpace(l.Cause)
	switch l.Outcome {
	case succeed:
		l.Phase = wsdl.JobStateSucceeded
	case cancel:
		l.Phase = wsdl.JobStateCancelled
	default:
		l.Phase = wsdl.JobStateFailed
	}
	return []action{commit{End: true}, done{}}
}
