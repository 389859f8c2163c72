package node

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"mvm/wsdl"
)

// The ledger is the node's half of the rules under "Life of a job": which
// attempts it holds, which it fences off, what room is booked, and until when
// each may live. It is pure: step takes an event and returns what is to be
// done; it knows no clock, no file and no process, so that every order of
// events can be replayed from a transcript.
type ledger struct {
	node        string
	incarnation string
	total       room
	vms         room          // of total that VMs have which are no attempt's of this node
	machines    int           // attempts at once; 0 is any number
	file        string        // that says so
	patience    time.Duration // how long an Instantiate waits to be named live

	lease    time.Duration // 0 = never registered: no attempt may start
	leaving  bool          // the node shuts down: nothing starts any more
	sent     uint64        // heartbeats sent so far
	answered uint64        // the newest answered one
	jobs     map[string]*jobRecord
	held     []*attempt // not yet removed, in the order of their coming
	idle     []string   // jobs without a held attempt, the longest idle first
}

const (
	// remembered bounds the jobs whose end is remembered. A call so late that
	// its job was forgotten still meets the lease: no heartbeat names it.
	remembered = 4096
	// faultsKept bounds the ended attempts whose fault is kept word for word.
	faultsKept = 64
)

// room is what an attempt books and a node has.
type room struct {
	Slots  int
	Memory int64 // MiB
	Cores  int   // kept for processes alone
}

func (r room) minus(o room) room {
	return room{r.Slots - o.Slots, r.Memory - o.Memory, r.Cores - o.Cores}
}

// lacks says in words what of need is not there, or "".
func (r room) lacks(need room) string {
	switch {
	case need.Slots > r.Slots:
		return fmt.Sprintf("%d slots are free, the attempt needs %d", r.Slots, need.Slots)
	case need.Memory > r.Memory:
		return fmt.Sprintf("%d MiB of memory are free, the attempt needs %d", r.Memory, need.Memory)
	case need.Cores > r.Cores:
		return fmt.Sprintf("%d cores are free, the attempt needs %d", r.Cores, need.Cores)
	}
	return ""
}

// key names an attempt on this node.
type key struct {
	job    string
	number int
}

// of says whether the attempt is at a job, or at a part of it: of several VMs that a
// job has on a node each is an attempt of its own there.
func (k key) of(job string) bool {
	return k.job == job || strings.HasPrefix(k.job, job) && k.job[len(job)] == '.'
}

// whole is the attempt that k is, or is a part of.
func (k key) whole() key {
	k.job, _, _ = strings.Cut(k.job, ".")
	return k
}

func (k key) String() string { return fmt.Sprintf("%s/%d", k.job, k.number) }

// fence is what every call of a broker carries.
type fence struct {
	key
	node, incarnation string
}

type phase int

const (
	booked        phase = iota // waits to be named live: nothing was begun
	awakening                  // load was ordered
	ready                      // loaded; waits for Instantiate
	instantiating              // spawn was ordered
	running
	terminating // end was ordered
)

func (p phase) String() string {
	return [...]string{"awakening", "awakening", "ready", "running", "running", "terminating"}[p]
}

// jobRecord is what is known of one job. It outlives its attempts.
type jobRecord struct {
	highest    int // attempt seen; lower ones are refused
	terminated int // all attempts up to this one are over
	held       *attempt

	// Of the last attempt that ended here.
	ended    int
	sequence int64
	fault    *wsdl.Fault // what its Awaken or Instantiate was refused with; nil = none, or no longer kept
	reason   string
}

// attempt is one held attempt: it books room until it is removed.
type attempt struct {
	key
	phase  phase
	need   room
	born   uint64        // heartbeats sent before it came: their answers cannot know it
	named  bool          // an answer named it live
	until  time.Duration // its lease ends
	killed bool
	reason string
	fault  *wsdl.Fault

	awakens      []uint64 // calls waiting
	instantiates []uint64
	giveUp       time.Duration // when instantiates are refused if still unnamed
	terminates   []uint64
}

// Events.
type (
	registered struct{ lease time.Duration }
	// beatSent counts a heartbeat; its number is ledger.sent afterwards.
	beatSent     struct{}
	beatAnswered struct {
		beat  uint64
		sent  time.Duration
		at    time.Duration // when the answer came
		lease time.Duration
		live  []key
	}
	awakenCall struct {
		call uint64
		at   time.Duration
		fence
		need    room
		against string // what a rule of the node's own file forbids it, "" for nothing
	}
	instantiateCall struct {
		call uint64
		at   time.Duration
		fence
	}
	terminateCall struct {
		call uint64
		fence
		grace  time.Duration
		reason string
	}
	// loaded and spawned tell how an ordered load or spawn went.
	loaded struct {
		at time.Duration
		key
		fault *wsdl.Fault
	}
	spawned struct {
		key
		fault *wsdl.Fault
	}
	// lost tells that the MVM process ended unasked.
	lost struct {
		key
		reason string
	}
	// unclean tells that processes of an ending attempt are still there although
	// they were killed. Their end is tried again and again.
	unclean struct {
		key
		why string
	}
	// removed tells that nothing of the attempt is left.
	removed struct {
		key
		sequence int64
	}
	tick struct{ now time.Duration }
	// vmsTake tells what VMs have that no attempt has booked.
	vmsTake struct{ room }
	// leave tells that the node shuts down.
	leave struct{}
)

// Actions.
type (
	// book keeps what an Awaken asks for; nothing may be begun before load.
	book  struct{ key }
	load  struct{ key }
	spawn struct{ key }
	// end removes the attempt: SIGTERM, SIGKILL after grace, collect, remove.
	// It is ordered once, also while a load or spawn is under way.
	end struct {
		key
		grace  time.Duration
		reason string
		asked  bool // by the broker, or nothing was begun; else it is reported as a failure
	}
	// kill cuts the grace of an ordered end short.
	kill struct{ key }
	// beat asks for a heartbeat at once.
	beat struct{}
	// answer ends a waiting call; fault nil is success.
	answer struct {
		call     uint64
		fault    *wsdl.Fault
		sequence int64
	}
)

func newLedger(node, incarnation string, total room, patience time.Duration) *ledger {
	return &ledger{node: node, incarnation: incarnation, total: total, patience: patience, jobs: map[string]*jobRecord{}}
}

// free is the room that no held attempt has booked.
func (l *ledger) free() room {
	r := l.total.minus(l.vms)
	for _, a := range l.held {
		r = r.minus(a.need)
	}
	return r
}

// deadline is the next instant at which a tick is due; ok is false when none is.
func (l *ledger) deadline() (at time.Duration, ok bool) {
	for _, a := range l.held {
		if !a.killed && (!ok || a.until < at) {
			at, ok = a.until, true
		}
		if len(a.instantiates) > 0 && a.phase <= ready && (!ok || a.giveUp < at) {
			at, ok = a.giveUp, true
		}
	}
	return at, ok
}

// step applies one event and returns what is to be done about it, in order.
func (l *ledger) step(event any) []any {
	switch e := event.(type) {
	case registered:
		l.lease = e.lease
	case beatSent:
		l.sent++
	case beatAnswered:
		return l.answeredBeat(e)
	case awakenCall:
		return l.awaken(e)
	case instantiateCall:
		return l.instantiate(e)
	case terminateCall:
		return l.terminate(e)
	case loaded:
		a := l.find(e.key)
		if a == nil || a.phase != awakening {
			return nil // ended meanwhile: its end answers
		}
		if e.fault != nil {
			a.fault = e.fault
			return l.end(a, 0, e.fault.Message, true)
		}
		a.phase = ready
		actions := answerAll(nil, &a.awakens, nil, 0)
		return append(actions, l.proceed(a, e.at)...)
	case spawned:
		a := l.find(e.key)
		if a == nil || a.phase != instantiating {
			return nil // as above
		}
		if e.fault != nil {
			a.fault = e.fault
			return l.end(a, 0, e.fault.Message, true)
		}
		a.phase = running
		return answerAll(nil, &a.instantiates, nil, 0)
	case lost:
		if a := l.find(e.key); a != nil && a.phase != terminating {
			return l.end(a, 0, e.reason, false)
		}
	case unclean:
		// An answer to Terminate is proof that nothing is left.
		if a := l.find(e.key); a != nil {
			return answerAll(nil, &a.terminates, wsdl.NewFault(wsdl.FaultCodeUnavailable,
				fmt.Sprintf("not all of attempt %s is gone from node %s yet: %s", e.key, l.node, e.why), "call again: the node goes on ending it"), 0)
		}
	case removed:
		return l.remove(e)
	case tick:
		return l.tick(e.now)
	case vmsTake:
		if l.vms == e.room {
			return nil
		}
		l.vms = e.room
		return []any{beat{}} // the broker must not give away what is taken
	case leave:
		l.leaving = true
		var actions []any
		for _, a := range l.held {
			actions = append(actions, l.end(a, 0, "node "+l.node+" was shut down", false)...)
		}
		return actions
	default:
		panic(fmt.Sprintf("node: no such event: %T", event))
	}
	return nil
}

func (l *ledger) find(k key) *attempt {
	if j := l.jobs[k.job]; j != nil && j.held != nil && j.held.key == k {
		return j.held
	}
	return nil
}

// record finds or makes the job's record and forgets the longest idle ones.
func (l *ledger) record(job string) *jobRecord {
	j := l.jobs[job]
	if j == nil {
		j = &jobRecord{}
		l.jobs[job] = j
		l.rest(job)
	}
	return j
}

// rest puts a job that holds nothing any more, or does not yet, at the end of
// the list to forget, in which it is not.
func (l *ledger) rest(job string) {
	l.idle = append(l.idle, job)
	if n := len(l.idle) - faultsKept; n > 0 {
		l.jobs[l.idle[n-1]].fault = nil
	}
	if len(l.idle) > remembered {
		delete(l.jobs, l.idle[0])
		l.idle = l.idle[1:]
	}
}

// refuse is the fault for a call that the fence keeps out, or nil.
func (l *ledger) refuse(f fence) *wsdl.Fault {
	switch {
	case f.job == "" || f.number < 1:
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "the call names no attempt",
			"give the job and the attempt's number, from 1")
	case f.node != l.node:
		return wsdl.NewFault(wsdl.FaultCodeWrongNode, fmt.Sprintf("attempt %s is for node %q, this is node %q", f.key, f.node, l.node),
			"ask the information service where that node is")
	case f.incarnation != l.incarnation:
		return stale(f.key, fmt.Sprintf("is for incarnation %q of node %s, this is %q", f.incarnation, l.node, l.incarnation),
			"the node was started again: plan a new attempt")
	}
	return nil
}

func stale(k key, what, advice string) *wsdl.Fault {
	return wsdl.NewFault(wsdl.FaultCodeStale, fmt.Sprintf("attempt %s %s", k, what), advice)
}

// over is the answer to a call for an attempt that may not go on, or nil.
func (j *jobRecord) over(k key) *wsdl.Fault {
	switch {
	case k.number < j.highest:
		return stale(k, fmt.Sprintf("is older than attempt %d, which this node has seen", j.highest), "go on with the newest attempt")
	case k.number == j.ended && j.fault != nil:
		return j.fault
	case k.number == j.ended:
		return stale(k, "has ended on this node: "+j.reason, "plan a new attempt")
	case k.number <= j.terminated:
		return stale(k, "was terminated", "plan a new attempt")
	}
	return nil
}

func (l *ledger) awaken(e awakenCall) []any {
	no := func(f *wsdl.Fault) []any { return []any{answer{call: e.call, fault: f}} }
	if f := l.refuse(e.fence); f != nil {
		return no(f)
	}
	if l.leaving {
		return no(wsdl.NewFault(wsdl.FaultCodeUnavailable, "node "+l.node+" is shutting down", "place the attempt elsewhere"))
	}
	if l.lease == 0 {
		return no(wsdl.NewFault(wsdl.FaultCodeUnavailable, "node "+l.node+" has not joined the grid yet", "try again later"))
	}
	if e.need.Slots < 0 || e.need.Memory < 0 || e.need.Cores < 0 {
		return no(wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("attempt %s asks for less than nothing", e.key), "give slots, memory and cores from 0"))
	}
	j := l.record(e.job)
	if f := j.over(e.key); f != nil {
		return no(f)
	}
	j.highest = e.number
	if a := j.held; a != nil {
		if a.number < e.number {
			// The broker has given the older attempt up: this one says so.
			actions := l.end(a, 0, fmt.Sprintf("superseded by attempt %d", e.number), false)
			return append(actions, answer{call: e.call, fault: wsdl.NewFault(wsdl.FaultCodeBusy,
				fmt.Sprintf("attempt %s waits until attempt %d is removed", e.key, a.number), "try again later")})
		}
		if a.phase == booked || a.phase == awakening || a.phase == terminating {
			a.awakens = append(a.awakens, e.call)
			return nil
		}
		return no(nil)
	}
	if l.machines > 0 && len(l.held) >= l.machines {
		return no(wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s has its %d queue-level VMs, and lets no more be: the rule machines=\"%d\" of %s", l.node, len(l.held), l.machines, l.file), "try again later or elsewhere"))
	}
	if e.against != "" {
		return no(wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s does not let attempt %s have %s", l.node, e.key, e.against), "place the attempt elsewhere"))
	}
	if lack := l.free().lacks(e.need); lack != "" {
		return no(wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s has no room for attempt %s: %s", l.node, e.key, lack), "try again later or elsewhere"))
	}
	j.held = &attempt{key: e.key, need: e.need, born: l.sent, until: e.at + l.lease, awakens: []uint64{e.call}}
	l.held = append(l.held, j.held)
	for i, job := range slices.Backward(l.idle) { // most jobs have just come
		if job == e.job {
			l.idle = slices.Delete(l.idle, i, i+1)
			break
		}
	}
	// Anyone can send an Awaken; that it is the broker's shows in the answer to
	// a heartbeat. Until then it costs this node nothing but room.
	return []any{book{e.key}, beat{}}
}

func (l *ledger) instantiate(e instantiateCall) []any {
	no := func(f *wsdl.Fault) []any { return []any{answer{call: e.call, fault: f}} }
	if f := l.refuse(e.fence); f != nil {
		return no(f)
	}
	j := l.jobs[e.job]
	if j == nil {
		return no(stale(e.key, "was never awakened here", "awaken it first"))
	}
	if f := j.over(e.key); f != nil {
		return no(f)
	}
	a := l.find(e.key)
	if a == nil {
		return no(stale(e.key, "was never awakened here", "awaken it first"))
	}
	switch a.phase {
	case running:
		return no(nil)
	case booked, awakening, ready:
		if len(a.instantiates) == 0 {
			a.giveUp = e.at + l.patience
		}
	}
	a.instantiates = append(a.instantiates, e.call)
	actions := l.proceed(a, e.at)
	if actions == nil && !a.named {
		return []any{beat{}}
	}
	return actions
}

// proceed loads once the attempt is named live, and spawns once everything
// that a spawn needs is there.
func (l *ledger) proceed(a *attempt, now time.Duration) []any {
	switch {
	case !a.named || now >= a.until:
	case a.phase == booked:
		a.phase = awakening
		return []any{load{a.key}}
	case a.phase == ready && len(a.instantiates) > 0:
		a.phase = instantiating
		return []any{spawn{a.key}}
	}
	return nil
}

func (l *ledger) terminate(e terminateCall) []any {
	if f := l.refuse(e.fence); f != nil {
		return []any{answer{call: e.call, fault: f}}
	}
	j := l.record(e.job)
	j.highest = max(j.highest, e.number)
	j.terminated = max(j.terminated, e.number)
	a := j.held
	if a == nil || a.number > e.number {
		var sequence int64
		if j.ended == e.number {
			sequence = j.sequence
		}
		return []any{answer{call: e.call, sequence: sequence}}
	}
	a.terminates = append(a.terminates, e.call)
	reason := e.reason
	if reason == "" {
		reason = "terminated by the broker"
	}
	if a.phase != terminating {
		return l.end(a, e.grace, reason, true)
	}
	if e.grace == 0 && !a.killed {
		a.killed = true
		return []any{kill{a.key}}
	}
	return nil
}

// end orders the attempt's removal, the one path for every ending.
func (l *ledger) end(a *attempt, grace time.Duration, reason string, asked bool) []any {
	if a.phase == terminating {
		return nil
	}
	asked = asked || a.phase == booked
	a.phase, a.reason, a.killed = terminating, reason, grace == 0
	return []any{end{a.key, grace, reason, asked}}
}

func (l *ledger) remove(e removed) []any {
	a := l.find(e.key)
	if a == nil {
		return nil
	}
	j := l.jobs[e.job]
	j.held = nil
	l.held = slices.DeleteFunc(l.held, func(h *attempt) bool { return h == a })
	j.ended, j.sequence, j.fault, j.reason = e.number, e.sequence, a.fault, a.reason
	j.terminated = max(j.terminated, e.number)
	l.rest(e.job)
	fault := a.fault
	if fault == nil {
		fault = stale(e.key, "has ended on this node: "+a.reason, "plan a new attempt")
	}
	actions := answerAll(nil, &a.awakens, fault, 0)
	actions = answerAll(actions, &a.instantiates, fault, 0)
	if len(a.terminates) > 0 {
		// Whoever asked for the end frees the room by the answer. A heartbeat
		// here would be the second that every job costs.
		return answerAll(actions, &a.terminates, nil, e.sequence)
	}
	return append(actions, beat{})
}

func (l *ledger) answeredBeat(e beatAnswered) []any {
	// A node that stood still may hear of the answer before it looks at the
	// clock: what had lapsed by then has no second life.
	actions := l.lapse(e.at)
	if e.beat <= l.answered {
		return actions // a late answer: a newer one was heard
	}
	l.answered, l.lease = e.beat, e.lease
	for _, a := range l.held {
		if e.at >= a.until {
			continue
		}
		switch {
		case slices.Contains(e.live, a.key):
			a.named = true
			a.until = max(a.until, e.sent+e.lease)
			actions = append(actions, l.proceed(a, e.at)...)
		case e.beat > a.born:
			reason := "the grid no longer names it live"
			if !a.named {
				reason = "the grid does not name it live"
			}
			actions = append(actions, l.end(a, 0, reason, false)...)
		}
	}
	return actions
}

// lapse ends what has no lease any more, and leaves no grace to what is ending.
func (l *ledger) lapse(now time.Duration) []any {
	var actions []any
	for _, a := range l.held {
		switch {
		case now < a.until:
		case a.phase != terminating:
			actions = append(actions, l.end(a, 0, fmt.Sprintf("its lease ran out: no heartbeat was answered for %v", l.lease), false)...)
		case !a.killed:
			a.killed = true
			actions = append(actions, kill{a.key})
		}
	}
	return actions
}

func (l *ledger) tick(now time.Duration) []any {
	actions := l.lapse(now)
	for _, a := range l.held {
		if len(a.instantiates) > 0 && a.phase <= ready && now >= a.giveUp {
			// Not stale: an answer that names others ends it, and says so then.
			fault := wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("no heartbeat's answer has named attempt %s live yet", a.key), "call again")
			if a.phase == awakening {
				fault = wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("attempt %s is still awakening", a.key), "wait for the answer to Awaken first")
			}
			actions = answerAll(actions, &a.instantiates, fault, 0)
		}
	}
	return actions
}

func answerAll(actions []any, calls *[]uint64, fault *wsdl.Fault, sequence int64) []any {
	for _, c := range *calls {
		actions = append(actions, answer{call: c, fault: fault, sequence: sequence})
	}
	*calls = nil
	return actions
}
