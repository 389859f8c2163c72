package broker

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"mvm/wsdl"
)

// step takes one event and answers with what to do. now is only written down,
// never compared.
func (l *life) step(now time.Time, e event) []action {
	actions := l.react(now, e)
	if l.Held == nil {
		return actions
	}
	// The end of the job makes the held report durable. Any other commit comes
	// after it.
	for i, a := range actions {
		if c, ok := a.(commit); ok {
			if c.End || c.Requeue {
				l.Held = nil
				return actions
			}
			return slices.Insert(actions, i, l.keep()...)
		}
	}
	return actions
}

func (l *life) react(now time.Time, e event) []action {
	if n := e.attempt(); n >= 0 && (n != l.Attempt || l.Gone) {
		return nil // from an attempt that is over
	}
	if final(l.Phase) {
		return nil
	}
	switch e := e.(type) {
	case placed:
		return l.placed(e)
	case awoke:
		return l.awoke(now, e)
	case refused:
		return l.refused(now, e)
	case instantiated:
		return l.instantiated(e)
	case unstarted:
		return l.unstarted(now, e)
	case reported:
		return l.reported(now, e)
	case terminated:
		return l.terminated(now, e)
	case absent:
		return l.absent(e.Member)
	case present:
		l.Members[e.Member].Absent = false
		return nil
	case lost:
		return l.lost(now, e.Member)
	case rejoined:
		return l.rejoined(now, e.Member)
	case answered:
		return l.answered(now, e)
	case changing:
		return l.changing(e)
	case changed:
		return l.changed(e)
	case saved:
		return l.saved(e)
	case elapsed:
		return l.elapsed(now, e)
	case cancelled:
		return l.cancelled(now, e)
	case moved:
		return l.moved(e)
	case recovered:
		return l.recovered(now)
	case unreadable:
		return l.unreadable(now)
	}
	panic(fmt.Sprintf("broker: unknown event %T", e))
}

func (m *member) label() string {
	if m.Name != "" {
		return m.Name
	}
	return m.Node
}

func (l *life) placed(e placed) []action {
	if l.Phase != wsdl.JobStatePending {
		return nil
	}
	l.changes++
	l.Attempt++
	l.Phase = wsdl.JobStateAwakening
	l.Reason = ""
	l.Outcome, l.Cause = undecided, ""
	l.Gone, l.Running, l.Former, l.Held = false, false, "", nil
	l.Probing, l.Answers, l.Changes = 0, nil, nil
	l.Members = e.Members
	l.Builds, l.Sets = nil, 0
	l.restores()
	for i := range l.Processes {
		p := &l.Processes[i]
		*p = process{ID: p.ID, Task: p.Task, Index: p.Index, Count: p.Count, State: wsdl.ProcessStateWaiting}
	}
	actions := []action{commit{Attempt: true}}
	for i, m := range l.Members {
		for _, id := range m.Processes {
			l.Processes[id].Node = m.Node
		}
		actions = append(actions, awaken{Member: i})
	}
	return actions
}

func (l *life) awoke(now time.Time, e awoke) []action {
	m := &l.Members[e.Member]
	if l.Phase != wsdl.JobStateAwakening || m.Awake {
		return nil
	}
	l.changes++
	m.Awake, m.Address, m.Fingerprint, m.Trunk, m.TrunkKey = true, e.Address, e.Fingerprint, e.Trunk, e.TrunkKey
	l.Builds = append(l.Builds, e.Builds...)
	for i := range l.Members {
		if !l.Members[i].Awake {
			return nil // the gang barrier
		}
	}
	l.Phase, l.Running = wsdl.JobStateRunning, true
	l.Refusals, l.Rebuffs = 0, 0
	if l.Started.IsZero() {
		l.Started = now
	}
	l.Begun, l.Used = now, 0
	if m.Restore != "" && l.Set != nil {
		l.Used = l.Set.Used
	}
	return append([]action{commit{Go: true}}, l.start()...)
}

// start instantiates every member, at first and after a restart.
func (l *life) start() []action {
	var actions []action
	for i := range l.Members {
		actions = append(actions, instantiate{Member: i})
	}
	if l.WallTime > 0 {
		actions = append(actions, wait{Timer: wallTimer, For: max(0, l.WallTime-l.Used) + l.Rules.Grace + l.Rules.Slack})
	}
	return append(actions, l.nextSet()...)
}

func (l *life) refused(now time.Time, e refused) []action {
	if l.Phase != wsdl.JobStateAwakening {
		return nil
	}
	m := &l.Members[e.Member]
	if m.Restore != "" && (e.Code == wsdl.FaultCodeNotFound || e.Code == wsdl.FaultCodeInvalidRequest || e.Code == wsdl.FaultCodeUnsupported) {
		return l.spoilt(now, fmt.Sprintf("node %s could not restore the job's checkpoint: %s", m.label(), e.Message))
	}
	switch e.Code {
	case wsdl.FaultCodeBuildFailed, wsdl.FaultCodeUnsupported, wsdl.FaultCodeInvalidRequest, wsdl.FaultCodeTooLarge, wsdl.FaultCodeForbidden:
		// The same source, flags and request would be refused again.
		reason := e.Message
		if e.Output != "" {
			reason += ":\n" + e.Output
		}
		return l.decide(now, fail, fmt.Sprintf("node %s refused: %s", m.label(), reason))
	}
	cause := fmt.Sprintf("node %s could not be awakened: %s", m.label(), e.Message)
	if e.Code != wsdl.FaultCodeBusy && !transient(e.Code) {
		if l.Rebuffs++; l.Rebuffs == maxRebuffs {
			l.Rebuffs = 0
			return l.failed(now, fmt.Sprintf("%d times in a row the job was refused; the last time %s", maxRebuffs, cause))
		}
	}
	if transient(e.Code) {
		return l.unawakened(now, e.Member, cause)
	}
	return l.decide(now, requeue, cause)
}

// maxRebuffs is how many refusals for other reasons than want of room or of an
// answer are one failed attempt.
const maxRebuffs = 5

func (l *life) instantiated(e instantiated) []action {
	if l.Phase != wsdl.JobStateRunning {
		return nil
	}
	for _, id := range l.Members[e.Member].Processes {
		if p := &l.Processes[id]; p.State == wsdl.ProcessStateWaiting {
			l.changes++
			p.State = wsdl.ProcessStateRunning
		}
	}
	return nil
}

func (l *life) unstarted(now time.Time, e unstarted) []action {
	m := &l.Members[e.Member]
	if l.Phase != wsdl.JobStateRunning {
		return nil
	}
	cause := fmt.Sprintf("node %s did not start its processes: %s", m.label(), e.Message)
	switch {
	case transient(e.Code):
		return l.gone(now, cause) // nobody answers there for a whole lease
	case e.Code != wsdl.FaultCodeStale:
		return l.failed(now, cause)
	}
	// The attempt is over there. It may have ended well while the broker was
	// away: then its reports are on their way.
	if m.Unstarted != "" || l.complete(m) {
		return nil
	}
	m.Unstarted = cause
	return []action{wait{Timer: startTimer, Members: []int{e.Member}, For: l.Rules.Flush}}
}

// absent: a heartbeat may have been sent before the node was awakened, and
// reports may be on their way. Those that do not come within a lease are lost.
func (l *life) absent(i int) []action {
	m := &l.Members[i]
	if l.Phase != wsdl.JobStateRunning || m.Absent || l.complete(m) {
		return nil
	}
	m.Absent = true
	m.Absences++
	return []action{wait{Timer: absentTimer, Members: []int{i}, For: l.Rules.Lease, Turn: m.Absences}}
}

// complete says whether every process of a member has ended.
func (l *life) complete(m *member) bool {
	for _, id := range m.Processes {
		if !l.Processes[id].ended() {
			return false
		}
	}
	return true
}

// reported takes a report once. Reports come in the order in which the node
// made them, each after the one before was acknowledged: one that came before
// changes nothing, and one that is missing never comes.
func (l *life) reported(now time.Time, e reported) []action {
	m := &l.Members[e.Member]
	r := e.Report
	if r.Sequence <= m.Reported {
		return nil
	}
	l.changes++
	before := l.keep()
	gap := ""
	if next := m.Reported + 1; r.Sequence > next && !m.Resumed {
		gap = fmt.Sprintf("node %s: report %d came where report %d was due: what that said is lost", m.label(), r.Sequence, next)
	}
	m.Reported = r.Sequence
	m.ProxyBytes = max(m.ProxyBytes, r.ProxyBytes)
	m.ProxyItems = max(m.ProxyItems, r.ProxyItems)
	m.Quiet = max(m.Quiet, r.Quiet)
	cause := ""
	for _, p := range r.Processes {
		old := &l.Processes[p.ID]
		if old.ended() || !slices.Contains(m.Processes, p.ID) {
			continue
		}
		p.Task, p.Index, p.Count, p.Node = old.Task, old.Index, old.Count, old.Node
		*old = p
		if cause == "" && (p.failed() || r.Failure != "" && p.ended() && p.Message != "") {
			cause = l.describe(p)
		}
	}
	if r.Failure != "" && cause == "" {
		cause = fmt.Sprintf("node %s: %s", m.label(), r.Failure)
	}
	cause = cmp.Or(cause, gap)
	var actions []action
	save := commit{}
	if r.terminal() {
		save.Report = &memberReport{Member: e.Member, Report: r}
	}
	switch {
	case l.Phase == wsdl.JobStateTerminating:
		l.settle(e.Member)
		actions = l.conclude(now)
	case cause != "":
		switch {
		case l.Phase == wsdl.JobStateAwakening:
			actions = l.decide(now, requeue, cause)
		case r.Lost:
			actions = l.gone(now, cause)
		default:
			actions = l.failed(now, cause)
		}
	case l.allEnded():
		l.Held = &memberReport{Member: e.Member, Report: r}
		return append(l.decide(now, succeed, ""), wait{Timer: holdTimer, For: longestHold})
	case r.Quiet > 0:
		actions = l.probe()
	}
	// One transaction for the report and what it leads to.
	if len(actions) > 0 {
		if first, ok := actions[0].(commit); ok {
			if first.End || first.Requeue {
				return append(before, actions...) // the end carries every process
			}
			first.Report = save.Report
			actions[0] = first
			return append(before, actions...)
		}
	}
	if save.Report != nil {
		before = append(before, save)
	}
	return append(before, actions...)
}

// longestHold is for how long a report waits for the job's end to make it
// durable. A node answers Terminate in milliseconds, unless it leaves those outside
// a moment to take what is left.
const longestHold = time.Second

// keep makes the held report durable by itself, with what it led to.
func (l *life) keep() []action {
	if l.Held == nil {
		return nil
	}
	l.changes++
	save := commit{Report: l.Held, Outcome: true}
	l.Held = nil
	return []action{save}
}

// describe says which process failed and how.
func (l *life) describe(p process) string {
	node := p.Node
	for _, m := range l.Members {
		if m.Node == p.Node {
			node = m.label()
		}
	}
	s := fmt.Sprintf("%s on node %s", p.label(), node)
	switch {
	case p.State == wsdl.ProcessStateKilled && p.Signal != "":
		s += " was killed by " + p.Signal
	case p.State == wsdl.ProcessStateKilled:
		s += " was killed"
	case p.State == wsdl.ProcessStateLost:
		s += " was lost"
	case p.ExitCode != nil && *p.ExitCode != 0:
		s += fmt.Sprintf(" exited with %d", *p.ExitCode)
	case p.ExitCode == nil:
		s += " ended without an exit code"
	default:
		s += " failed"
	}
	message := p.Message
	// The node says that too, before whatever else it has to say.
	said := "ended by " + p.Signal
	if p.Signal == "" {
		said = fmt.Sprintf("exit status %d", wsdl.Or(p.ExitCode, 0))
	}
	if more, ok := strings.CutPrefix(message, said); ok && (more == "" || strings.HasPrefix(more, "; ")) {
		message = strings.TrimPrefix(more, "; ")
	}
	if message != "" {
		s += ": " + message
	}
	switch {
	case strings.Contains(p.Tail, "\n"):
		s += ":\n" + p.Tail
	case p.Tail != "":
		s += ": " + strings.TrimSpace(p.Tail)
	}
	return s
}

func (l *life) allEnded() bool {
	for i := range l.Processes {
		if !l.Processes[i].ended() {
			return false
		}
	}
	return l.Phase == wsdl.JobStateRunning
}

func (l *life) lost(now time.Time, i int) []action {
	m := &l.Members[i]
	if m.Lost || m.Gone {
		return nil
	}
	m.Lost = true
	cause := fmt.Sprintf("node %s was lost: its heartbeats ceased", m.label())
	switch l.Phase {
	case wsdl.JobStateAwakening:
		return l.unawakened(now, i, cause)
	case wsdl.JobStateRunning:
		return l.gone(now, cause)
	}
	if m.Dropped {
		return nil
	}
	m.Dropped = true
	return []action{commit{Drop: []int{i}}, l.expire([]int{i})}
}

func (l *life) rejoined(now time.Time, i int) []action {
	m := &l.Members[i]
	if m.Gone {
		return nil
	}
	m.Gone, m.Settled = true, true
	actions := []action{release{Member: i}}
	cause := fmt.Sprintf("node %s was started anew", m.label())
	switch l.Phase {
	case wsdl.JobStateAwakening:
		return append(actions, l.unawakened(now, i, cause)...)
	case wsdl.JobStateRunning:
		return append(actions, l.gone(now, cause)...)
	}
	return append(actions, l.conclude(now)...)
}

func (l *life) elapsed(now time.Time, e elapsed) []action {
	var actions []action
	switch t := e.Timer; {
	case t == wallTimer && l.Phase == wsdl.JobStateRunning:
		return l.failed(now, fmt.Sprintf("the wall time of %s is over", l.WallTime))
	case t == probeTimer:
		return l.probe()
	case t == setTimer:
		return l.snapshot()
	case t == startTimer && l.Phase == wsdl.JobStateRunning:
		for _, i := range e.Members {
			if m := &l.Members[i]; m.Unstarted != "" && !l.complete(m) {
				return l.failed(now, m.Unstarted+"; and no report of the end of all came")
			}
		}
		return nil
	case t == absentTimer && l.Phase == wsdl.JobStateRunning:
		for _, i := range e.Members {
			if m := &l.Members[i]; m.Absent && m.Absences == e.Turn && !l.complete(m) {
				return l.failed(now, fmt.Sprintf("node %s does not hold the attempt any more, and no report of the end of all its processes came", m.label()))
			}
		}
		return nil
	case l.Phase != wsdl.JobStateTerminating:
		return nil
	case t == holdTimer:
		return l.keep()
	case t == dropTimer:
		save := commit{}
		for i := range l.Members {
			if m := &l.Members[i]; !m.Gone && !m.Dropped {
				m.Dropped = true
				save.Drop = append(save.Drop, i)
			}
		}
		if save.Drop == nil {
			return nil
		}
		return []action{save, l.expire(save.Drop)}
	case t == expireTimer:
		for _, i := range e.Members {
			if m := &l.Members[i]; !m.Gone {
				m.Gone, m.Settled = true, true
				actions = append(actions, release{Member: i})
			}
		}
	case t == flushTimer:
		for i := range l.Members {
			if m := &l.Members[i]; m.Acked {
				m.Settled = true
			}
		}
	}
	return append(actions, l.conclude(now)...)
}

func (l *life) moved(e moved) []action {
	if e.Waiting && l.Phase != wsdl.JobStatePending || l.Place == e.Place {
		return nil
	}
	l.changes++
	l.Place = e.Place
	return []action{commit{Moved: true}, reseat{}}
}

func (l *life) cancelled(now time.Time, e cancelled) []action {
	cause := "cancelled"
	if e.Reason != "" {
		cause += ": " + e.Reason
	}
	switch {
	case e.Waiting && l.Phase != wsdl.JobStatePending:
		return nil
	case l.Phase == wsdl.JobStatePending:
		l.changes++
		l.Outcome, l.Cause, l.Gone = cancel, cause, true
		return l.over(now)
	case l.Phase == wsdl.JobStateTerminating && l.Outcome != retry && l.Outcome != requeue:
		return nil // its end is decided already
	case l.Phase == wsdl.JobStateTerminating:
		l.changes++
		l.Outcome, l.Cause, l.Reason = cancel, cause, cause
		return []action{commit{Outcome: true}}
	}
	return l.decide(now, cancel, cause)
}

// recovered goes on where the journal ends.
func (l *life) recovered(now time.Time) []action {
	switch {
	case l.Phase == wsdl.JobStatePending:
		return []action{queue{Refusals: l.Refusals}}
	case l.Phase == wsdl.JobStateTerminating:
		actions := l.end()
		return append(actions, l.conclude(now)...)
	case !l.Running:
		return l.decide(now, requeue, "the broker was started anew before the processes were")
	case l.Former != "":
		// Their ends would never be heard of.
		return l.failed(now, fmt.Sprintf("the broker has moved: the attempt's nodes report to %s", l.Former))
	}
	// What was told of quiet is not in the journal: ask once.
	for i := range l.Members {
		l.Members[i].Quiet = 1
	}
	return append(append(l.start(), l.resume()...), wait{Timer: probeTimer, For: probeAgain})
}

// unreadable is recovered for a job that nobody knows how to run: it ends.
func (l *life) unreadable(now time.Time) []action {
	cause := "what was submitted cannot be read from the journal any more"
	switch {
	case l.Phase == wsdl.JobStatePending:
		l.changes++
		l.Outcome, l.Cause, l.Gone = fail, cause, true
		return l.over(now)
	case l.Phase == wsdl.JobStateTerminating && l.Outcome != retry && l.Outcome != requeue:
		return l.recovered(now)
	case l.Phase == wsdl.JobStateTerminating:
		l.Outcome, l.Cause, l.Reason = fail, cause, cause
		return append([]action{commit{Outcome: true}}, l.recovered(now)...)
	}
	return l.decide(now, fail, cause)
}
