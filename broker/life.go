package broker

import (
	"strconv"
	"strings"
	"time"

	"mvm/broker/jobqueue"
	"mvm/wsdl"
)

// life is everything that decides what a job does next. It is a pure state
// machine: step takes an event and answers with actions, in the order in which
// they must be done; a commit among them must be durable before the next action
// begins. It reads no clock and does no I/O, and every ending (success, failure,
// cancel, wall time, lost node, refused build, restart of the broker) goes the
// same way: decide, terminate every member, wait until nothing of the attempt
// can run any more, conclude.
type life struct {
	Job       string
	Rules     rules
	WallTime  time.Duration // of one attempt, with what led to the set that it goes on from; 0 = no limit
	Retries   int           // failed attempts that are followed by another
	Every     time.Duration // between two checkpoints of the whole job; 0 = none
	Phase     wsdl.JobState
	Reason    string // why it is pending, or how it ended
	Started   time.Time
	Ended     time.Time
	Attempt   int // number of the newest attempt; 0 before the first
	Failures  int // attempts that ran and failed
	Refusals  int // attempts in a row that ended before they ran; sets the back-off
	Rebuffs   int // refusals in a row that waiting does not mend
	Outcome   outcome
	Cause     string         // of the outcome, in words
	Gone      bool           // conclude was reached: no attempt exists
	Place     jobqueue.Place // where it waits, or waited and would again
	Running   bool           // the attempt's go is journalled
	Former    string         // where the attempt's nodes report to, when the broker is no longer there
	Members   []member
	Processes []process
	Builds    []build
	// Held is the report of the last end of all, while it is neither durable nor
	// acknowledged: its node goes on keeping it, so the job's end, which is
	// moments away, may be what makes it durable.
	Held    *memberReport
	Probing int      // the round of questions under way that looks for a deadlock; 0 = none
	Answers []quiet  // of the first round, while the second is under way
	Changes []change // live ones of the attempt, by number less 1
	Set     *set     // the newest complete checkpoint of the whole job, of any attempt
	Sets    int64    // how many the attempt has begun
	Losses  int      // attempts lost with a node or a VM since the set was made

	Begun time.Time     // the attempt's go
	Used  time.Duration // of the wall time, before that

	changes int // grows when something that a reader sees changed
}

// rules are the durations that the fencing rests on.
type rules struct {
	Lease time.Duration // for how long after a heartbeat a node may keep an attempt
	Grace time.Duration // between SIGTERM and SIGKILL
	Drift time.Duration // what two machines' clocks may disagree by over a lease
	Drop  time.Duration // how long Terminate may go unanswered before the attempt is no longer named live
	Flush time.Duration // how long a terminated node's last reports are waited for
	Slack time.Duration // beyond the wall time before the broker itself ends the attempt
}

// outcome is what an attempt's end leads to, decided at the first cause.
type outcome string

const (
	undecided outcome = ""
	succeed   outcome = "succeed"
	fail      outcome = "fail"
	cancel    outcome = "cancel"
	retry     outcome = "retry"   // it ran and failed, and the job's policy allows another
	requeue   outcome = "requeue" // it never ran
)

// member is a node of the attempt's job group, or one of several VMs there.
type member struct {
	Node        string
	Part        int    // of the job, from 1, where a node may have several; 0 where it has one
	Name        string // for people
	Incarnation string
	URL         string // the node's base
	Processes   []int  // ids
	Slots       int
	Cores       int
	Memory      int64 // MiB

	Restore string // what it goes on from, "" where it begins
	Former  string // and where the others then believe its proxy to be

	Awake       bool
	Address     string // of its proxy
	Fingerprint string
	Trunk       string // proxyRecord's
	TrunkKey    string
	Reported    int64 // sequence of the last report taken
	Resumed     bool  // by a broker started anew, which knows of reports that told an end only
	ProxyBytes  int64
	ProxyItems  int64
	Quiet       int64 // the quiet period that it told of; 0 = it has told of none, or is known to move

	Unstarted string // why a repeated Instantiate was stale; its reports are waited for
	Absent    bool   // its heartbeats do not name the attempt
	Absences  int    // how often that began

	Lost    bool  // the information service says that its lease ran out
	Acked   bool  // it acknowledged Terminate
	Last    int64 // the last report it made, as it acknowledged
	Dropped bool  // its heartbeats no longer name the attempt
	Gone    bool  // nothing of the attempt can run there
	Settled bool  // and nothing more of it is waited for
}

// proxy is how the member is reached by the others.
func (m *member) proxy() proxyRecord {
	return proxyRecord{Address: m.Address, Fingerprint: m.Fingerprint, Trunk: m.Trunk, TrunkKey: m.TrunkKey}
}

// job is how the member's node knows the job: each of several VMs there is a job to
// it, with fences, a lease and reports of its own.
func (m *member) job(id string) string { return partID(id, m.Part) }

func partID(id string, part int) string {
	if part == 0 {
		return id
	}
	return id + "." + strconv.Itoa(part)
}

// jobPart is the job and the part that a node speaks of, as member.job has it.
func jobPart(text string) (id string, part int) {
	id, number, parted := strings.Cut(text, ".")
	if !parted {
		return id, 0
	}
	part, err := strconv.Atoi(number)
	if err != nil || part < 1 {
		return "", 0
	}
	return id, part
}

// peer is what its proxy calls itself to the others'.
func (m *member) peer() string { return m.job(m.Node) }

// process is one running instance of a task.
type process struct {
	ID             int
	Task           string
	Index          int
	Count          int    // of the task
	Node           string `json:",omitempty"`
	State          wsdl.ProcessState
	ExitCode       *int   `json:",omitempty"`
	Signal         string `json:",omitempty"`
	Message        string `json:",omitempty"`
	UserMicros     int64  `json:",omitempty"`
	SystemMicros   int64  `json:",omitempty"`
	MaxResidentKiB int64  `json:",omitempty"`
	Started        time.Time
	Ended          time.Time
	Files          []file `json:",omitempty"`
	Tail           string `json:",omitempty"` // the last lines of stderr, of a failed one
}

// file is a result whose bytes are in the image store.
type file struct {
	Name    string
	Digest  string
	Size    int64
	Dropped int64 `json:",omitempty"`
}

// build is what became of a source on a node.
type build struct {
	Source string
	Digest string
	Node   string
	Cached bool
	Millis int64
	Output string `json:",omitempty"`
}

// report is what a node says became of its part of the attempt.
type report struct {
	Sequence   int64
	Processes  []process `json:",omitempty"`
	Failure    string    `json:",omitempty"`
	ProxyBytes int64     `json:",omitempty"`
	ProxyItems int64     `json:",omitempty"`
	Quiet      int64     `json:",omitempty"` // it tells of this quiet period
	Lost       bool      `json:",omitempty"` // Failure is that the node, or the VM, ended under the attempt
}

// terminal says whether losing the report would lose a result.
func (r report) terminal() bool {
	if r.Failure != "" {
		return true
	}
	for _, p := range r.Processes {
		if p.ended() {
			return true
		}
	}
	return false
}

// label is the process's name for people, as profile.Process has it.
func (p process) label() string {
	if p.Count == 1 {
		return p.Task
	}
	return p.Task + "[" + strconv.Itoa(p.Index) + "]"
}

func (p process) ended() bool {
	switch p.State {
	case wsdl.ProcessStateExited, wsdl.ProcessStateKilled, wsdl.ProcessStateLost:
		return true
	}
	return false
}

// failed says whether the end by itself fails the attempt. A missing output
// does too, and comes as the report's failure.
func (p process) failed() bool {
	return p.ended() && (p.State != wsdl.ProcessStateExited || p.ExitCode == nil || *p.ExitCode != 0)
}

// event is what happened. All but placed, cancelled and recovered are about one
// attempt, and are dropped when it is no longer the newest.
type event interface{ attempt() int }

type (
	// placed: the scheduler found room.
	placed struct{ Members []member }
	// awoke: a member answered Awaken.
	awoke struct {
		Attempt, Member      int
		Address, Fingerprint string
		Trunk, TrunkKey      string
		Builds               []build
	}
	// refused: a member answered Awaken with a fault, or did not answer.
	refused struct {
		Attempt, Member int
		Code            wsdl.FaultCode
		Message, Output string
	}
	// instantiated: a member runs its processes.
	instantiated struct{ Attempt, Member int }
	// unstarted: a member answered Instantiate with a fault, or did not answer.
	unstarted struct {
		Attempt, Member int
		Code            wsdl.FaultCode
		Message         string
	}
	// reported: a member's report, its files already in the image store.
	reported struct {
		Attempt, Member int
		Report          report
	}
	// terminated: a member acknowledged Terminate.
	terminated struct {
		Attempt, Member int
		Sequence        int64
	}
	// absent: a member's heartbeat did not name the attempt.
	absent struct{ Attempt, Member int }
	// present: it did again.
	present struct{ Attempt, Member int }
	// lost: a member's lease ran out.
	lost struct{ Attempt, Member int }
	// rejoined: a member's node is back under another incarnation.
	rejoined struct{ Attempt, Member int }
	// answered: every member has answered, or failed to, whether it is quiet.
	answered struct {
		Attempt, Round int
		Answers        []quiet // by member
	}
	// saved: a checkpoint of the whole job is complete, or there is none.
	saved struct {
		Attempt int
		Number  int64
		Set     *set
	}
	// elapsed: a timer that the life had set ran out.
	elapsed struct {
		Attempt int
		Timer   timer
		Members []int // those that the timer was set for, where it is for some
		Turn    int   // as the wait had it
	}
	// changing: somebody wants the attempt's queues changed.
	changing struct {
		Attempt int
		Change  change
	}
	// changed: how far a change is.
	changed struct {
		Attempt int
		Number  int64
		State   wsdl.ChangeState
		Reason  string
	}
	// cancelled: somebody wants the job to end; with Waiting only if it waits.
	cancelled struct {
		Reason  string
		Waiting bool
	}
	// moved: it gets another place among those that wait, now if it waits (with
	// Waiting only then), or else when it does again.
	moved struct {
		Place   jobqueue.Place
		Waiting bool
	}
	// recovered: the broker has started again and the life is as journalled.
	recovered struct{}
	// unreadable: what was submitted cannot be read from the journal any more.
	unreadable struct{}
)

func (placed) attempt() int         { return -1 }
func (e awoke) attempt() int        { return e.Attempt }
func (e refused) attempt() int      { return e.Attempt }
func (e instantiated) attempt() int { return e.Attempt }
func (e unstarted) attempt() int    { return e.Attempt }
func (e reported) attempt() int     { return e.Attempt }
func (e terminated) attempt() int   { return e.Attempt }
func (e absent) attempt() int       { return e.Attempt }
func (e present) attempt() int      { return e.Attempt }
func (e lost) attempt() int         { return e.Attempt }
func (e rejoined) attempt() int     { return e.Attempt }
func (e answered) attempt() int     { return e.Attempt }
func (e saved) attempt() int        { return e.Attempt }
func (e elapsed) attempt() int      { return e.Attempt }
func (e changing) attempt() int     { return e.Attempt }
func (e changed) attempt() int      { return e.Attempt }
func (cancelled) attempt() int      { return -1 }
func (moved) attempt() int          { return -1 }
func (recovered) attempt() int      { return -1 }
func (unreadable) attempt() int     { return -1 }

// action is what the shell must do. Calls are started and not waited for: their
// answers come back as events.
type action interface{ action() }

type (
	// commit makes what it names durable, in one transaction where it fits.
	commit struct {
		Attempt bool          // the members, before the first Awaken, and that they are named live
		Go      bool          // the members' proxies, before the first Instantiate
		Report  *memberReport // a member's report
		Outcome bool          // what the attempt's end leads to
		Drop    []int         // members that are no longer named live
		Requeue bool          // the attempt is over, the job waits for room again
		Moved   bool          // where it waits
		End     bool          // the job is over
		Change  int64         // a change of this number, 0 for none: before any node hears of it,
		Changed bool          // or once it is no longer pending
		Set     bool          // the newest checkpoint of the whole job, or that there is none any more
	}
	awaken      struct{ Member int }
	instantiate struct{ Member int }
	terminate   struct {
		Member int
		Grace  time.Duration
		Reason string
	}
	// alter: make a change at the nodes.
	alter struct{ Number int64 }
	// snapshot: make a checkpoint of the whole job.
	snapshot struct{ Number int64 }
	// ask: ask all members at once whether they are quiet.
	ask struct{ Round int }
	// release: the member's slots are free again.
	release struct{ Member int }
	// wait: tell the life when the time is over. Timers end with the attempt.
	wait struct {
		Timer   timer
		For     time.Duration
		Members []int
		Turn    int // which of several waits for the same
	}
	// queue: the job waits for room, after a back-off that grows with Refusals.
	queue struct{ Refusals int }
	// reseat: where it stands among those that wait is another place now.
	reseat struct{}
	// done: the job is over and journalled.
	done struct{}
)

type memberReport struct {
	Member int
	Report report
}

func (commit) action()      {}
func (awaken) action()      {}
func (instantiate) action() {}
func (terminate) action()   {}
func (ask) action()         {}
func (snapshot) action()    {}
func (alter) action()       {}
func (release) action()     {}
func (wait) action()        {}
func (queue) action()       {}
func (reseat) action()      {}
func (done) action()        {}

// timer names what a life waits for.
type timer string

const (
	wallTimer   timer = "wall"   // the attempt has run too long
	dropTimer   timer = "drop"   // Terminate went unanswered for long
	expireTimer timer = "expire" // whoever was dropped has lost its lease
	flushTimer  timer = "flush"  // the last reports are not coming
	startTimer  timer = "start"  // nor are those of a node that had ended before the broker was back
	probeTimer  timer = "probe"  // it is time to ask again whether all is quiet
	holdTimer   timer = "hold"   // the job's end takes long: what it was to make durable is made so now
	absentTimer timer = "absent" // nor are those of a node that does not hold the attempt any more
)

// final says whether a phase is a job's end.
func final(phase wsdl.JobState) bool {
	switch phase {
	case wsdl.JobStateSucceeded, wsdl.JobStateFailed, wsdl.JobStateCancelled:
		return true
	}
	return false
}
