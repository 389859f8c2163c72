package broker

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"mvm/broker/jobqueue"
	"mvm/broker/place"
	"mvm/broker/profile"
	"mvm/services/information"
	"mvm/services/store"
	"mvm/wsdl"
)

// scheduler holds the jobs that wait for room and what live attempts have
// booked. It looks again when something changed that may make room: a job came,
// slots became free, a node came or went, a back-off is over. It never polls.
//
// Jobs wait in queues, which take turns by their weights, and in each by its
// type: in the default one by priority, then by age. A job that does not fit
// lets later ones go ahead; nothing is reserved for it.
type scheduler struct {
	broker *Service
	wake   chan struct{} // holds a token when it is worth to look

	mu      sync.Mutex           // guards all below
	queues  *jobqueue.Set[*job]  // the jobs that wait
	booked  map[string][]booking // by job
	nodes   []node               // workers that live, by id
	known   map[string]node      // every node, by id
	later   time.Time            // a look is due then, for reasons' sake; zero: none is
	looked  time.Time            // when all that wait were last looked at
	avoided map[string]refusal   // nodes that refused an attempt
}

// booking is what an attempt holds on a node.
type booking struct {
	node   string
	part   int // of the member's
	slots  int
	cores  int
	memory int64

	attempts int // whose these are
}

// node is a node as the information service knows it.
type node struct {
	id, name, incarnation, url string
	alive                      bool
	record                     *wsdl.Node
	raw, load                  []byte
	held                       map[store.Attempt]bool // nil: not told
	vms                        int64                  // MiB that VMs have which are no attempt's
	disk                       *int64                 // MiB that may be filled of it; nil: not told
}

// view is the node as placement sees it, less what is held of it.
func (n *node) view(held booking) place.Node {
	held.memory += n.vms
	v := viewOf(n.record, held)
	v.FreeDiskMiB = n.disk
	return v
}

// holds says whether an attempt is among those that the node's last heartbeat
// named; told is false when that is not known.
func (n *node) holds(job string, number int) (yes, told bool) {
	return n.held[store.Attempt{Job: job, Number: number, Node: n.id, Incarnation: n.incarnation}], n.held != nil
}

// heldBy reads what a node's last heartbeat named.
func heldBy(r store.NodeRecord) map[store.Attempt]bool {
	attempts, told := information.Held(r)
	if !told {
		return nil
	}
	held := make(map[store.Attempt]bool, len(attempts))
	for _, a := range attempts {
		held[a] = true
	}
	return held
}

// refusal says for how long a node is left alone.
type refusal struct {
	pause time.Duration
	until time.Time
}

const (
	avoidance = 2 * time.Second  // how long a node that cannot take an attempt is left alone
	fresh     = time.Second      // how long a reason is not worked out anew
	glance    = time.Second / 10 // how long those that wait are not all looked at again where there is no room
	detailed  = 50               // jobs a round that are told step by step why they do not fit
)

func newScheduler(b *Service) *scheduler {
	return &scheduler{broker: b, wake: make(chan struct{}, 1), queues: jobqueue.New[*job](), booked: map[string][]booking{}, known: map[string]node{}, avoided: map[string]refusal{}}
}

// kick makes the scheduler look again.
func (s *scheduler) kick() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// add lets a job wait for room.
func (s *scheduler) add(j *job) {
	s.enter(j, true, false)
	s.kick()
}

// enter puts a job into its queue. One that is not ready is not placed until it
// is; one that is paid for comes back from an attempt that never ran.
func (s *scheduler) enter(j *job, ready, paid bool) {
	since := s.broker.clock.Now()
	if j.status().Attempt == 0 {
		since = j.fixed.Submitted
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// Its place is read under the lock: a move comes before or after.
	s.queues.Enter(&jobqueue.Job[*job]{ID: j.id, Place: j.place(), Size: j.fixed.Size, Since: since, Ready: ready, Paid: paid, Value: j})
}

// ready lets a job be placed whose back-off is over.
func (s *scheduler) ready(j *job) {
	s.mu.Lock()
	s.queues.Ready(j.id)
	s.mu.Unlock()
	s.kick()
}

// reseat puts a job, if it waits, where it is to wait now.
func (s *scheduler) reseat(j *job) {
	s.mu.Lock()
	s.queues.Move(j.id, j.place())
	s.mu.Unlock()
	s.kick()
}

// release frees what a job has booked for a member, or for all with nil. With nil
// the job does not wait for room any more either.
func (s *scheduler) release(id string, of *member) {
	s.mu.Lock()
	if of == nil {
		delete(s.booked, id)
		s.queues.Leave(id)
	} else {
		s.booked[id] = slices.DeleteFunc(s.booked[id], func(b booking) bool { return b.node == of.Node && b.part == of.Part })
	}
	waiting := s.queues.Len() > 0
	s.mu.Unlock()
	if waiting {
		s.kick()
	}
}

// book notes what a job's members hold.
func (s *scheduler) book(id string, members []member) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bookLocked(id, members)
}

func (s *scheduler) bookLocked(id string, members []member) {
	held := make([]booking, 0, len(members))
	for _, m := range members {
		held = append(held, booking{node: m.Node, part: m.Part, slots: m.Slots, cores: m.Cores, memory: m.Memory})
	}
	s.booked[id] = held
}

// untaken frees what a round has booked for a job that did not want it any
// more: its attempt holds what it held.
func (s *scheduler) untaken(id string, members []member) {
	if len(members) == 0 {
		s.release(id, nil)
		return
	}
	s.book(id, slices.DeleteFunc(slices.Clone(members), func(m member) bool { return m.Gone }))
}

// avoid leaves a node alone for a moment after it refused an attempt, so that
// the next plan is another one where there is another.
func (s *scheduler) avoid(node string, code wsdl.FaultCode) {
	pause := avoidance
	switch code {
	case wsdl.FaultCodeBusy:
		pause = avoidance / 10
	case wsdl.FaultCodeBuildFailed:
		return // that is the job's fault
	}
	s.mu.Lock()
	s.avoided[node] = refusal{pause, s.broker.clock.Now().Add(pause)}
	s.mu.Unlock()
	s.broker.clock.AfterFunc(pause, s.kick)
}

// queue lets a job wait for room again, after a back-off that grows with how
// often nodes refused it.
func (b *Service) queue(j *job, refusals int) {
	if refusals == 0 {
		b.scheduler.add(j)
		return
	}
	pause := b.config.Backoff
	for range refusals - 1 {
		if pause = 2 * pause; pause >= b.config.BackoffMax {
			pause = b.config.BackoffMax
			break
		}
	}
	b.scheduler.enter(j, false, true)
	b.clock.AfterFunc(b.jitter(pause), func() { b.scheduler.ready(j) })
}

// run looks again whenever something changed, until ctx ends.
func (s *scheduler) run(ctx context.Context, changes <-chan struct{}) {
	s.kick()
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-changes:
			if !open {
				<-ctx.Done() // the store was closed before the broker ended
				return
			}
			if err := s.refresh(ctx); err != nil && ctx.Err() == nil {
				s.broker.log.WithError(err).Error("the nodes cannot be read")
			}
		case <-s.wake:
			s.round()
		}
	}
}

// refresh reads the nodes and tells every attempt whose node was lost or came
// back as another incarnation. Only the scheduler's goroutine calls it (and
// recover, before that runs): an attempt is placed either before, and is then
// told, or after, and then with what was read.
func (s *scheduler) refresh(ctx context.Context) error {
	records, err := s.broker.journal.Nodes(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	known := make(map[string]node, len(records))
	var nodes []node
	changed := len(records) != len(s.known)
	moved := false // what nodes hold is another
	for _, r := range records {
		was, there := s.known[r.ID]
		n := node{id: r.ID, incarnation: r.Incarnation, alive: r.Alive, raw: r.Value, load: r.Load}
		if there && bytes.Equal(was.raw, r.Value) {
			n.record = was.record
		} else if n.record, err = information.Decode(r); err != nil {
			s.broker.log.WithError(err).WithField("node", r.ID).Error("a node's record cannot be read")
			continue
		}
		if there && was.alive && n.alive && was.incarnation == n.incarnation && bytes.Equal(was.load, r.Load) {
			n.held, n.vms, n.disk = was.held, was.vms, was.disk
		} else {
			n.held = heldBy(r)
			n.vms, n.disk = information.Told(r)
			changed = changed || n.vms < was.vms || wsdl.Or(n.disk, 0) > wsdl.Or(was.disk, 0) // there is room
			moved = moved || (was.held == nil) != (n.held == nil) || !maps.Equal(was.held, n.held)
		}
		n.name, n.url = cmp.Or(n.record.Name, r.ID), n.record.Url
		known[r.ID] = n
		if !there || was.alive != n.alive || was.incarnation != n.incarnation || n.record != was.record {
			changed = true
		}
		if n.alive && worker(n.record) {
			nodes = append(nodes, n)
		}
	}
	s.known, s.nodes = known, nodes
	s.mu.Unlock()
	if changed || moved {
		for _, j := range s.broker.activeJobs() {
			j.compare(known)
		}
	}
	if changed {
		s.kick()
	}
	return nil
}

// tell tells an attempt what is known of its nodes by now.
func (s *scheduler) tell(j *job) {
	s.mu.Lock()
	known := s.known // never changed, only replaced
	s.mu.Unlock()
	j.compare(known)
}

// compare tells the life which of its members are lost, or back as others, or
// do not hold the attempt any more.
func (j *job) compare(known map[string]node) {
	j.mu.Lock()
	number := j.life.Attempt
	var events []event
	for i := range j.life.Members {
		m := &j.life.Members[i]
		switch n, there := known[m.Node]; {
		case m.Gone:
		case there && n.incarnation != m.Incarnation:
			events = append(events, rejoined{Attempt: number, Member: i})
		case !there || !n.alive:
			if !m.Lost {
				events = append(events, lost{Attempt: number, Member: i})
			}
		case j.life.Phase == wsdl.JobStateRunning:
			switch yes, told := n.holds(m.job(j.id), number); {
			case !told || yes != m.Absent:
			case yes:
				events = append(events, present{Attempt: number, Member: i})
			default:
				events = append(events, absent{Attempt: number, Member: i})
			}
		}
	}
	j.mu.Unlock()
	for _, e := range events {
		j.post(e, nil)
	}
}

func worker(n *wsdl.Node) bool {
	if len(n.Role) == 0 {
		return true
	}
	return slices.ContainsFunc(n.Role, func(r *wsdl.Role) bool { return r != nil && *r == wsdl.RoleWorker })
}

// held is what is booked of each node. s.mu is held.
func (s *scheduler) held() map[string]booking {
	held := map[string]booking{}
	for _, bookings := range s.booked {
		for _, b := range bookings {
			sum := held[b.node]
			held[b.node] = booking{node: b.node, slots: sum.slots + b.slots, cores: sum.cores + b.cores, memory: sum.memory + b.memory, attempts: sum.attempts + 1}
		}
	}
	return held
}

// free is what the nodes have left beside what is booked. s.mu is held.
func (s *scheduler) free() ([]node, []place.Node) {
	held := s.held()
	now := s.broker.clock.Now()
	var nodes []node
	var views []place.Node
	for _, n := range s.nodes {
		v := n.view(held[n.id])
		if r, there := s.avoided[n.id]; there && now.Before(r.until) {
			// It is known all the same: a reason must not say otherwise.
			v.Shunned, v.FreeSlots = fmt.Sprintf("left alone for %v after a refusal", r.pause), 0
		} else {
			delete(s.avoided, n.id)
		}
		nodes = append(nodes, n)
		views = append(views, v)
	}
	return nodes, views
}

// round places every waiting job that fits now.
func (s *scheduler) round() {
	type fitting struct {
		job     *job
		members []member
	}
	var chosen []fitting
	reasons := map[*job]string{}
	s.mu.Lock()
	nodes, views := s.free()
	room, at := 0, make(map[string]int, len(views))
	for i, v := range views {
		room += v.FreeSlots
		at[v.ID] = i
	}
	told := 0
	now := s.broker.clock.Now()
	// While hundreds wait, to look at each of them whenever something changed would
	// be a tenth of the work of a short job.
	all := now.Sub(s.looked) >= glance
	if all {
		s.looked = now
		// A job may end while it comes to wait.
		s.queues.Drop(func(j *job) bool { return j.profile() == nil })
	}
	s.queues.Round(func(w *jobqueue.Job[*job]) jobqueue.Answer {
		j, size := w.Value, w.Size
		if room <= 0 && !all {
			s.lookLater(glance)
			return jobqueue.Enough
		}
		if size > room && now.Sub(j.explained) < fresh {
			s.lookLater(fresh)
			return jobqueue.Passed
		}
		if size > room && told >= detailed {
			j.explained = now
			reasons[j] = fmt.Sprintf("it needs %d slots and waits behind other jobs", size)
			return jobqueue.Passed
		}
		if told == 10*detailed {
			return jobqueue.Enough
		}
		compiled := j.profile()
		if compiled == nil { // it ends just now
			s.lookLater(glance)
			return jobqueue.Passed
		}
		of := j.newestSet()
		plan, reason, ok := fit(compiled, of, views)
		if !ok {
			told++
			j.explained = now
			reasons[j] = reason
			return jobqueue.Passed
		}
		members := membersOf(compiled, of, plan, nodes)
		s.bookLocked(j.id, members)
		for i := range members {
			m := &members[i]
			v := &views[at[m.Node]]
			v.FreeSlots -= m.Slots
			v.FreeCores -= m.Cores
			v.FreeMemoryMiB -= m.Memory
		}
		room -= size
		chosen = append(chosen, fitting{j, members})
		return jobqueue.Placed
	})
	for _, w := range s.queues.HeldBack() {
		reasons[w.Value] = "its queue " + w.Queue() + " is held"
	}
	s.mu.Unlock()
	for _, f := range chosen {
		f.job.post(placed{Members: f.members}, nil)
	}
	for j, reason := range reasons {
		j.wait(reason)
	}
}

// lookLater has a round look at all that wait when so much time is over: some are
// to be told why they do, or what they were told is no longer fresh. s.mu is held.
func (s *scheduler) lookLater(after time.Duration) {
	due := s.broker.clock.Now().Add(after)
	if !s.later.IsZero() && !due.Before(s.later) {
		return
	}
	s.later = due
	s.broker.clock.AfterFunc(after, func() {
		s.mu.Lock()
		if s.later.Equal(due) {
			s.later = time.Time{}
		}
		s.mu.Unlock()
		s.kick()
	})
}

// profile is the compiled job, nil once it has ended.
func (j *job) profile() *profile.Job {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.compiled
}
