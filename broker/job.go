package broker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/broker/jobqueue"
	"mvm/broker/profile"
	"mvm/services/store"
	"mvm/wsdl"
)

// job is the shell around a life: it takes events one at a time, makes durable
// what the life wants durable, makes the calls, and tells readers. It has a
// goroutine only while there are events.
type job struct {
	broker   *Service
	id       string
	compiled *profile.Job // nil once the job has ended, and when it cannot be compiled any more
	outside  []outside    // its ends outside
	blobs    *bag         // what it refers to
	sets     string       // under which its newest checkpoint is pinned; of the goroutine that drains
	fixed    status       // what never changes of it: name, token, size, submitted, arguments

	explained time.Time // when it was last told why it waits; guarded by scheduler.mu

	// Only the goroutine that drains the inbox writes life, under mu; it may
	// read it without.
	mu       sync.Mutex // guards all below
	life     life
	shown    status        // what readers see of life: never ahead of the journal
	why      string        // why it waits for room, from the scheduler
	changed  chan struct{} // closed, and made anew, at each change
	inbox    []posted
	held     []func(error) // whoever waits until life.Held is durable
	draining bool
	dead     bool   // the broker ended in the middle; only its successor knows better
	coming   string // the checkpoint that is made and pinned, and not yet journalled

	// The goroutine that drains uses these alone.
	layout *layout
	timers []func()
	start  context.CancelFunc // ends the calls that start the attempt
	ending context.CancelFunc // ends the calls that end it
	calls  context.Context
	ends   context.Context
}

// posted is an event on its way, and whom to tell when all it led to is done.
type posted struct {
	event event
	done  func(error)
}

var errEnded = errors.New("broker: it has ended")

// post hands the life an event.
func (j *job) post(e event, done func(error)) {
	j.mu.Lock()
	if j.dead {
		j.mu.Unlock()
		if done != nil {
			done(errEnded)
		}
		return
	}
	j.inbox = append(j.inbox, posted{e, done})
	start := !j.draining
	j.draining = true
	j.mu.Unlock()
	if start && !j.broker.spawn(j.drain) {
		j.mu.Lock()
		j.dead = true
		j.mu.Unlock()
		j.drain() // refuses what is waiting
	}
}

// ask posts an event and waits for what it leads to.
func (j *job) ask(ctx context.Context, e event) error {
	done := make(chan error, 1)
	j.post(e, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-j.broker.ctx.Done():
		return errEnded
	}
}

func (j *job) drain() {
	for {
		j.mu.Lock()
		if len(j.inbox) == 0 || j.dead {
			rest := j.inbox
			if j.dead {
				for _, done := range j.held {
					rest = append(rest, posted{done: done})
				}
				j.held = nil
			}
			j.inbox, j.draining = nil, false
			j.mu.Unlock()
			for _, p := range rest {
				if p.done != nil {
					p.done(errEnded)
				}
			}
			return
		}
		p := j.inbox[0]
		j.inbox = j.inbox[1:]
		before := j.life.changes
		actions := j.life.step(j.broker.clock.Now(), p.event)
		moved := j.life.changes != before
		j.mu.Unlock()

		if _, planned := p.event.(placed); planned && actions == nil {
			j.broker.scheduler.untaken(j.id, j.life.Members)
		}
		err := j.perform(actions)
		tell := []func(error){p.done}
		j.mu.Lock()
		_, told := p.event.(reported)
		switch {
		case err != nil:
			j.dead = true
		case j.life.Held != nil && told:
			j.held, tell = append(j.held, p.done), nil
		case j.life.Held == nil:
			tell, j.held = append(tell, j.held...), nil
		}
		if err == nil && moved && j.life.Held == nil {
			j.show()
		}
		j.mu.Unlock()
		for _, done := range tell {
			if done != nil {
				done(err)
			}
		}
	}
}

// show lets readers see the life as it is. j.mu is held.
func (j *job) show() {
	l := &j.life
	s := j.record()
	s.Revision = j.nextRevision()
	j.shown = s
	if l.Phase != wsdl.JobStatePending {
		j.why = ""
	}
	close(j.changed)
	j.changed = make(chan struct{})
	if final(l.Phase) {
		// The results are in the journal; a job that has ended costs little.
		j.life = life{Job: l.Job, Phase: l.Phase, Attempt: l.Attempt, Place: l.Place, Gone: true}
		j.compiled, j.layout = nil, nil
	}
}

// nextRevision grows over restarts too, since it follows the clock. j.mu is held.
func (j *job) nextRevision() int64 {
	return max(j.shown.Revision+1, j.broker.clock.Now().UnixMicro())
}

// place is where the job waits, or would.
func (j *job) place() jobqueue.Place {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.life.Place
}

// wait says why the job waits for room.
func (j *job) wait(reason string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.shown.Phase != wsdl.JobStatePending || j.why == reason {
		return
	}
	j.why = reason
	j.shown.Revision = j.nextRevision()
	close(j.changed)
	j.changed = make(chan struct{})
}

// status is where the job stands, as readers see it.
func (j *job) status() status {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.shown
}

// perform does what the life wants. An error means that the broker has ended.
func (j *job) perform(actions []action) error {
	b, l := j.broker, &j.life
	for _, a := range actions {
		switch a := a.(type) {
		case commit:
			if err := j.commit(a); err != nil {
				return err
			}
			j.tell(a)
			if a.Set || a.End {
				j.keepSet()
			}
			if a.Go {
				// What nodes hold matters from now on.
				b.scheduler.tell(j)
			}
		case awaken:
			if j.calls == nil {
				j.begin()
			}
			j.callAwaken(l.Attempt, a.Member)
		case instantiate:
			if j.calls == nil {
				j.begin()
			}
			j.callInstantiate(l.Attempt, a.Member)
		case terminate:
			if j.start != nil {
				j.start()
				j.start, j.calls = nil, nil
			}
			if j.ends == nil {
				j.ends, j.ending = context.WithCancel(b.ctx)
			}
			j.callTerminate(l.Attempt, a)
		case ask:
			j.callQuiet(l.Attempt, a)
		case snapshot:
			j.callSnapshot(l.Attempt, a.Number)
		case alter:
			if j.calls == nil {
				j.begin()
			}
			j.callChange(l.Attempt, a.Number)
		case release:
			b.scheduler.release(j.id, &l.Members[a.Member])
		case wait:
			e := elapsed{Attempt: l.Attempt, Timer: a.Timer, Members: a.Members, Turn: a.Turn}
			j.timers = append(j.timers, b.clock.AfterFunc(a.For, func() { j.post(e, nil) }))
		case queue:
			j.rest()
			b.scheduler.release(j.id, nil)
			b.queue(j, a.Refusals)
		case reseat:
			b.scheduler.reseat(j)
		case done:
			j.rest()
			b.scheduler.release(j.id, nil)
			b.jobEnded()
		}
	}
	return nil
}

// tell writes the log's line on a step in the job's life.
func (j *job) tell(c commit) {
	l := &j.life
	line := j.broker.log.WithFields(logrus.Fields{"job": j.id, "name": j.fixed.Name, "attempt": l.Attempt})
	switch {
	case c.Attempt:
		nodes := map[string]bool{}
		for _, m := range l.Members {
			nodes[m.Node] = true
		}
		line = line.WithFields(logrus.Fields{"nodes": len(nodes), "processes": len(l.Processes)})
		if len(nodes) < len(l.Members) {
			line = line.WithField("vms", len(l.Members))
		}
		line.Info("job is placed")
	case c.Go:
		line.Info("job starts")
	case c.Requeue:
		line.WithField("reason", l.Reason).Info("job waits again")
	case c.End:
		line.WithFields(logrus.Fields{"state": l.Phase, "reason": l.Reason}).Info("job has ended")
	}
}

// begin prepares the calls that start an attempt.
func (j *job) begin() {
	j.calls, j.start = context.WithCancel(j.broker.ctx)
	j.layout = newLayout(j.compiled, j.life.Members, j.broker.url())
	j.broker.setActive(j, true)
	// What became of a node between the plan and now was not yet told.
	j.broker.scheduler.tell(j)
}

// rest ends everything that was for an attempt.
func (j *job) rest() {
	for _, stop := range j.timers {
		stop()
	}
	if j.start != nil {
		j.start()
	}
	if j.ending != nil {
		j.ending()
	}
	j.timers, j.start, j.ending, j.calls, j.ends, j.layout = nil, nil, nil, nil, nil, nil
	j.broker.setActive(j, false)
}

func (j *job) commit(c commit) error {
	// A failure to pack is a full disk: it passes, or the broker ends.
	pause := 10 * time.Millisecond
	for {
		ops, err := j.ops(c)
		if err == nil {
			j.broker.pass("before " + c.point())
			err = j.broker.persist(ops)
			j.broker.pass("after " + c.point())
			return err
		}
		if j.broker.ctx.Err() != nil {
			return j.broker.ctx.Err()
		}
		j.broker.log.WithError(err).WithField("job", j.id).Error("the journal does not take a record; trying again")
		if !j.broker.sleep(pause) {
			return j.broker.ctx.Err()
		}
		pause = min(2*pause, 2*time.Second)
	}
}

// record is where the life stands.
func (j *job) record() status {
	l := &j.life
	s := j.fixed
	s.Priority, s.Queue, s.Arrival = l.Place.Priority, l.Place.Queue, l.Place.Arrival
	if s.Arrival == bornOf(j.id) {
		s.Arrival = 0
	}
	s.Revision = j.broker.clock.Now().UnixMicro()
	s.Started, s.Ended = l.Started, l.Ended
	s.Phase, s.Reason = l.Phase, l.Reason
	s.Attempt, s.Failures, s.Losses = l.Attempt, l.Failures, l.Losses
	s.Outcome, s.Cause, s.Gone = l.Outcome, l.Cause, l.Gone
	for i := range l.Members {
		s.ProxyBytes += l.Members[i].ProxyBytes
		s.ProxyItems += l.Members[i].ProxyItems
	}
	return s
}

// result is how the job ended, as the journal gets it.
func (j *job) result() result {
	return result{Processes: j.life.Processes, Builds: j.life.Builds}
}

// jobEnded counts an ended job, and has old ones forgotten when there are many.
func (b *Service) jobEnded() {
	b.mu.Lock()
	b.ended++
	b.mu.Unlock()
	b.pruneSoon()
}

func (b *Service) pruneSoon() {
	select {
	case b.prune <- struct{}{}:
	default:
	}
}

// forgetJob removes an ended job for good.
func (b *Service) forgetJob(j *job) error {
	s := j.status()
	// What it refers to is in the journal only, since it ended.
	var full status
	if err := b.load(b.ctx, statusPrefix+j.id, &full); err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	err := b.write(b.ctx, []store.Op{
		store.Delete(jobsPrefix + j.id), store.Delete(tokenKey(s.Token)),
		store.Delete(statusPrefix + j.id), store.Delete(resultsPrefix + j.id),
	})
	if err != nil {
		return err
	}
	b.mu.Lock()
	delete(b.jobs, j.id)
	delete(b.tokens, s.Token)
	if at, there := slices.BinarySearch(b.order, j.id); there {
		b.order = slices.Delete(b.order, at, at+1)
	}
	b.ended--
	b.mu.Unlock()
	if err := j.blobs.add(full.Blobs...); err != nil {
		return err
	}
	return j.blobs.drop()
}
