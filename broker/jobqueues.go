package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"mvm/broker/jobqueue"
	"mvm/broker/profile"
	"mvm/queuevm"
	"mvm/services/store"
	"mvm/wsdl"
)

// The broker's own queues, in which jobs wait: the operations of the controller
// that name no job come here. The broker is up when they do.
//
// A queue's settings are in the journal, and so is the place of each job, with
// where the job stands; what a restart forgets is only how much room each queue
// has had.

const (
	peekDefault = 10
	mostItems   = 1000 // of an answer
)

// jobQueueOf is the name of the queue in which a job will wait, "" for the default
// one: the one that was asked for, or else its profile's.
func (b *Service) jobQueueOf(asked string, compiled *profile.Job) (string, error) {
	name := cmp.Or(asked, compiled.Queue, jobqueue.Default)
	there := b.scheduler.names()
	if !slices.Contains(there, name) {
		what, names := fmt.Sprintf("there is no queue %q in which jobs wait", clip(name, 80)), strings.Join(there, ", ")
		if asked != "" {
			return "", wsdl.NewFault(wsdl.FaultCodeInvalidRequest, what, "name one of "+names)
		}
		f := wsdl.NewFault(wsdl.FaultCodeInvalidProfile, "the job profile is refused: "+what, "name one of "+names)
		f.Problem = []*wsdl.Problem{{Element: "job/policy/@queue", Found: name, Expected: names, Message: "job/policy/@queue: " + what + ", but " + names}}
		return "", f
	}
	if name == jobqueue.Default {
		name = ""
	}
	return name, nil
}

// reserve keeps a place for a job that is being accepted, until leave.
func (s *scheduler) reserve(name string) (leave func(), err error) {
	name = cmp.Or(name, jobqueue.Default)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch err := s.queues.Reserve(name); {
	case errors.Is(err, jobqueue.ErrFull):
		state, _ := s.queues.State(name)
		return nil, wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("the queue %s is full: %d jobs wait, and it takes %d", name, state.Depth, state.Capacity),
			"submit it again later, or to another queue")
	case errors.Is(err, jobqueue.ErrShut):
		return nil, wsdl.NewFault(wsdl.FaultCodeBusy, "the queue "+name+" is just being removed", "submit it again, to another queue")
	case err != nil:
		return nil, noQueue(name, s.queues.Names())
	}
	return func() {
		s.mu.Lock()
		s.queues.Unreserve(name)
		s.mu.Unlock()
	}, nil
}

// names are the queues, in order.
func (s *scheduler) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queues.Names()
}

func noQueue(name string, there []string) error {
	return wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("there is no queue %q in which jobs wait", clip(name, 80)), "there are "+strings.Join(there, ", "))
}

// jobQueue is a queue as it is now.
func (b *Service) jobQueue(name string) (jobqueue.State, error) {
	s := b.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	state, there := s.queues.State(name)
	if !there {
		return state, noQueue(name, s.queues.Names())
	}
	return state, nil
}

// readQueue reads a queue's record.
func readQueue(images Blobs, kv store.KV) (name string, settings jobqueue.Settings, err error) {
	name, err = url.PathUnescape(strings.TrimPrefix(kv.Key, queuesPrefix))
	if err == nil {
		err = unpack(images, kv.Value, &settings)
	}
	return name, settings, err
}

// recoverQueues makes the queues that the journal has.
func (b *Service) recoverQueues(ctx context.Context) error {
	all, err := b.journal.List(ctx, queuesPrefix)
	if err != nil {
		return err
	}
	s := b.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, kv := range all {
		name, settings, err := readQueue(b.images, kv)
		if err == nil {
			err = settings.Check()
		}
		if err == nil && s.queues.Has(name) {
			err = s.queues.Change(name, settings)
		} else if err == nil {
			err = s.queues.Make(name, settings)
		}
		if err != nil {
			return fmt.Errorf("broker: journal: the key %q: %w", kv.Key, err)
		}
	}
	return nil
}

// journalQueue makes a change to the queues durable. b.admin is held.
func (b *Service) journalQueue(ctx context.Context, op store.Op) error {
	b.pass("before queue")
	err := b.commit(ctx, op)
	b.pass("after queue")
	if errors.Is(err, store.ErrConflict) {
		if err := b.reign(ctx); err != nil {
			return err
		}
	}
	if err != nil {
		return b.unwritten("the change could not be journalled: "+err.Error(), "ask for it again")
	}
	return nil
}

// settle journals what a queue is to be, and makes it so. b.admin is held.
func (b *Service) settle(ctx context.Context, name string, settings jobqueue.Settings) error {
	value, err := b.pack(ctx, b.kept, settings)
	if err != nil {
		return b.unwritten("the change could not be journalled: "+err.Error(), "ask for it again")
	}
	if err := b.journalQueue(ctx, store.Put(queueKey(name), value)); err != nil {
		return err
	}
	s := b.scheduler
	s.mu.Lock()
	if s.queues.Has(name) {
		err = s.queues.Change(name, settings)
	} else {
		err = s.queues.Make(name, settings)
	}
	s.mu.Unlock()
	s.kick()
	return err
}

func invalid(format string, args ...any) error {
	return wsdl.Faultf(wsdl.FaultCodeInvalidRequest, format, args...)
}

// only refuses what means nothing for a queue of jobs.
func only(full *wsdl.FullPolicy) error {
	if full != nil && *full != wsdl.FullPolicyFail {
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a queue of jobs cannot %s when it is full", *full),
			"leave it out, or say fail: SubmitJob is refused then. A call cannot wait for room, and a job that was accepted is never dropped")
	}
	return nil
}

func (b *Service) makeJobQueue(ctx context.Context, r *wsdl.MakeQueue) (*wsdl.MakeQueueResponse, error) {
	settings := jobqueue.Settings{Type: queuevm.QueueType(wsdl.Or(r.Type_, wsdl.QueueTypeFifo)), Capacity: int(r.Capacity), Weight: int(cmp.Or(r.Weight, 1)), Held: r.Held}
	if !wsdl.ValidName(r.Name) {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a queue cannot be named %q", clip(r.Name, 80)),
			"write a letter, then up to 62 letters, digits, '_', '.' or '-'")
	}
	if err := cmp.Or(only(r.Full), asFault(settings.Check())); err != nil {
		return nil, err
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	switch state, err := b.jobQueue(r.Name); {
	case err == nil && state.Settings != settings:
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, "there is a queue "+r.Name+" already, and it is another: "+describeQueue(state.Settings), "change that one with ChangeQueue (`mvm queue set`), or choose another name")
	case err != nil:
		if there := b.scheduler.names(); len(there) >= jobqueue.MaxQueues {
			return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("there are %d queues already, and there may be no more", len(there)), "remove one that nobody needs")
		}
		if err := b.settle(ctx, r.Name, settings); err != nil {
			return nil, err
		}
	}
	state, err := b.jobQueue(r.Name)
	if err != nil {
		return nil, err
	}
	return &wsdl.MakeQueueResponse{Queue: b.queueStatus(r.Name, state, nil)}, nil
}

func asFault(err error) error {
	if err == nil {
		return nil
	}
	return invalid("%v", err)
}

func (b *Service) changeJobQueue(ctx context.Context, r *wsdl.ChangeQueue) (*wsdl.ChangeQueueResponse, error) {
	switch {
	case r.Encoders != nil || r.Rule != nil || r.RuleVersion != 0 || r.Link != nil || r.Served:
		return nil, invalid("a queue of jobs has a type, a capacity, a weight, and may be held; it has no encoders, registered rules or links")
	case r.Capacity != nil && (*r.Capacity < 0 || *r.Capacity > jobqueue.MaxCapacity):
		return nil, invalid("a queue of jobs has the capacity %d, expected 1 to %d jobs, or 0 for any number", *r.Capacity, jobqueue.MaxCapacity)
	}
	if err := only(r.Full); err != nil {
		return nil, err
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	state, err := b.jobQueue(r.Queue)
	if err != nil {
		return nil, err
	}
	settings := state.Settings
	if r.Type_ != nil {
		settings.Type = queuevm.QueueType(*r.Type_)
	}
	settings.Capacity = int(wsdl.Or(r.Capacity, int64(settings.Capacity)))
	settings.Weight = int(cmp.Or(r.Weight, int32(settings.Weight)))
	settings.Held = wsdl.Or(r.Held, settings.Held)
	if err := settings.Check(); err != nil {
		return nil, asFault(err)
	}
	if settings != state.Settings {
		if err := b.settle(ctx, r.Queue, settings); err != nil {
			return nil, err
		}
	}
	return &wsdl.ChangeQueueResponse{Change: &wsdl.ChangeStatus{
		What: "queue " + r.Queue + ": " + describeQueue(settings), Queue: r.Queue, State: wsdl.Of(wsdl.ChangeStateDone),
	}}, nil
}

// describeQueue says in words what a queue is.
func describeQueue(s jobqueue.Settings) string {
	text := string(s.Type)
	if s.Capacity > 0 {
		text += fmt.Sprintf(", at most %d jobs", s.Capacity)
	}
	text += fmt.Sprintf(", weight %d", s.Weight)
	if s.Held {
		text += ", held"
	}
	return text
}

func (b *Service) removeJobQueue(ctx context.Context, r *wsdl.RemoveQueue) (*wsdl.RemoveQueueResponse, error) {
	b.admin.Lock()
	defer b.admin.Unlock()
	if _, err := b.jobQueue(r.Name); err != nil {
		return nil, err
	}
	switch {
	case r.Name == jobqueue.Default:
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, "the queue default stays: jobs that name no queue wait in it", "hold it with ChangeQueue (`mvm queue set default --hold`), or drain it")
	case r.Into == r.Name:
		return nil, invalid("the jobs of %s cannot move into itself", r.Name)
	}
	if r.Into != "" {
		if _, err := b.jobQueue(r.Into); err != nil {
			return nil, err
		}
	}
	s := b.scheduler
	shut := func(shut bool) {
		s.mu.Lock()
		s.queues.Shut(r.Name, shut)
		s.mu.Unlock()
	}
	shut(true)
	defer shut(false) // where it is still there
	jobs := b.jobsOf(r.Name)
	if len(jobs) > 0 && r.Into == "" {
		what := fmt.Sprintf("%d jobs that have not ended belong to the queue %s, %s among them", len(jobs), r.Name, jobs[0].id)
		if len(jobs) == 1 {
			what = fmt.Sprintf("job %s, which has not ended, belongs to the queue %s", jobs[0].id, r.Name)
		}
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, what,
			"name a queue into which they go (`mvm queue remove "+r.Name+" --into default`), or drain it and wait for those that run")
	}
	for _, j := range jobs {
		to := j.place()
		to.Queue = journalName(r.Into)
		if err := j.ask(ctx, moved{Place: to}); err != nil {
			return nil, b.unwritten("job "+j.id+" could not be moved: "+err.Error(), "ask for it again")
		}
	}
	s.mu.Lock()
	busy := s.queues.InUse(r.Name)
	s.mu.Unlock()
	if busy {
		return nil, wsdl.NewFault(wsdl.FaultCodeBusy, "a job is just being submitted to the queue "+r.Name, "ask for it again")
	}
	if err := b.journalQueue(ctx, store.Delete(queueKey(r.Name))); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.queues.Remove(r.Name); err != nil {
		return nil, err
	}
	return &wsdl.RemoveQueueResponse{}, nil
}

// journalName is how a job's record has the name of its queue.
func journalName(queue string) string {
	if queue == jobqueue.Default {
		return ""
	}
	return queue
}

// jobsOf are the jobs that have not ended and belong to a queue, by age.
func (b *Service) jobsOf(queue string) []*job {
	b.mu.Lock()
	defer b.mu.Unlock()
	var jobs []*job
	for _, id := range b.order {
		if j := b.jobs[id]; j.place().Queue == journalName(queue) && !final(j.status().Phase) {
			jobs = append(jobs, j)
		}
	}
	return jobs
}

func (b *Service) moveJob(ctx context.Context, r *wsdl.MoveJob) (*wsdl.MoveJobResponse, error) {
	j, err := b.job(r.Job)
	if err != nil {
		return nil, err
	}
	if p := r.Priority; p != nil && (*p < 0 || *p > 100) {
		return nil, invalid("the priority %d, expected 0 to 100", *p)
	}
	b.admin.Lock()
	defer b.admin.Unlock()
	to := j.place()
	queue := cmp.Or(r.Queue, to.Queue, jobqueue.Default)
	state, err := b.jobQueue(queue)
	if err != nil {
		return nil, err
	}
	to.Queue = journalName(queue)
	to.Priority = int(wsdl.Or(r.Priority, int32(to.Priority)))
	if r.Place != nil && state.Depth > 0 {
		switch *r.Place {
		case wsdl.JobPlaceFirst:
			to.Arrival = min(to.Arrival, state.First-1)
		case wsdl.JobPlaceLast:
			to.Arrival = max(to.Arrival, state.Last+1)
		}
	}
	if s := j.status(); s.Phase != wsdl.JobStatePending {
		return nil, notWaiting(j)
	}
	if err := j.ask(ctx, moved{Place: to, Waiting: true}); err != nil {
		return nil, b.unwritten("the move could not be journalled", "move it again")
	}
	s := b.scheduler
	s.mu.Lock()
	at := s.queues.Position(j.id)
	s.mu.Unlock()
	if at == 0 {
		return nil, notWaiting(j) // placed meanwhile, or ended
	}
	return &wsdl.MoveJobResponse{Queue: queue, Place: int32(at)}, nil
}

func notWaiting(j *job) error {
	return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("job %s does not wait: it is %s", j.id, j.status().Phase), "only jobs that are pending can be moved")
}

func (b *Service) listJobQueues(ctx context.Context, r *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	sample := time.Duration(r.SampleMillis) * time.Millisecond
	if sample < 0 || sample > mostSample {
		return nil, invalid("a sample of %d ms, expected at most %d", r.SampleMillis, mostSample.Milliseconds())
	}
	var before map[string]jobqueue.State
	var began time.Time
	if sample > 0 {
		before, began = b.jobQueues(), b.clock.Now()
		if !b.sleepIn(ctx, sample) {
			return nil, wsdl.Faultf(wsdl.FaultCodeTimeout, "the queues could not be watched for so long")
		}
	}
	now := b.jobQueues()
	response := &wsdl.ListQueuesResponse{}
	for _, name := range b.scheduler.names() {
		state, there := now[name]
		if !there || r.Queue != "" && name != r.Queue {
			continue
		}
		var flow *wsdl.QueueFlow
		if was, there := before[name]; there {
			flow = &wsdl.QueueFlow{Micros: b.clock.Now().Sub(began).Microseconds(), ItemsIn: wsdl.Of(int64(state.In - was.In)), ItemsOut: wsdl.Of(int64(state.Out - was.Out)),
				BytesIn: wsdl.Of(int64(0)), BytesOut: wsdl.Of(int64(0))}
		}
		response.Queue = append(response.Queue, b.queueStatus(name, state, flow))
	}
	if r.Queue != "" && response.Queue == nil {
		return nil, noQueue(r.Queue, b.scheduler.names())
	}
	return response, nil
}

// jobQueues are all queues as they are now.
func (b *Service) jobQueues() map[string]jobqueue.State {
	s := b.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]jobqueue.State{}
	for _, name := range s.queues.Names() {
		all[name], _ = s.queues.State(name)
	}
	return all
}

func (b *Service) queueStatus(name string, s jobqueue.State, flow *wsdl.QueueFlow) *wsdl.QueueStatus {
	running := 0
	for _, j := range b.activeJobs() {
		if cmp.Or(j.place().Queue, jobqueue.Default) == name {
			running++
		}
	}
	status := &wsdl.QueueStatus{
		Name: name, Served: wsdl.Of(true), Type_: wsdl.Of(wsdl.QueueType(s.Type)), Full: wsdl.Of(wsdl.FullPolicyFail),
		Capacity: wsdl.Of(int64(s.Capacity)), Weight: int32(s.Weight), Held: wsdl.Of(s.Held), Running: wsdl.Of(int32(running)),
		Items: wsdl.Of(int64(s.Depth)), ItemsIn: wsdl.Of(int64(s.In)), ItemsOut: wsdl.Of(int64(s.Out)), Refused: wsdl.Of(int64(s.Refused)), Flow: flow,
	}
	if s.Depth > 0 {
		status.OldestMillis = wsdl.Of(max(0, b.clock.Now().Sub(s.Oldest)).Milliseconds())
	}
	return status
}

// limitOf is how many items an answer may have.
func limitOf(limit int32, otherwise int) (int, error) {
	switch {
	case limit < 0:
		return 0, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a limit of %d jobs", limit), "leave it out, or give at least 1")
	case limit == 0:
		return otherwise, nil
	}
	return min(int(limit), mostItems), nil
}

// firstOf are the first jobs that wait in a queue.
func (b *Service) firstOf(queue string, limit int) ([]*job, error) {
	s := b.scheduler
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.queues.Has(queue) {
		return nil, noQueue(queue, s.queues.Names())
	}
	var jobs []*job
	for _, w := range s.queues.Peek(queue, limit) {
		jobs = append(jobs, w.Value)
	}
	return jobs, nil
}

// item is a job as an item of its queue.
func (j *job) item() *wsdl.QueueItem {
	s := j.brief()
	return &wsdl.QueueItem{Job: j.id, Name: s.Name, Priority: int32(s.Priority), State: wsdl.Of(s.Phase), Reason: clean(s.Reason)}
}

func (b *Service) peekJobQueue(_ context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	limit, err := limitOf(r.Limit, peekDefault)
	if err != nil {
		return nil, err
	}
	jobs, err := b.firstOf(r.Queue, limit)
	if err != nil {
		return nil, err
	}
	response := &wsdl.PeekQueueResponse{}
	for _, j := range jobs {
		response.Item = append(response.Item, j.item())
	}
	return response, nil
}

// drainJobQueue takes jobs out that wait: they end cancelled. What is placed
// meanwhile is not drained.
func (b *Service) drainJobQueue(ctx context.Context, r *wsdl.DrainQueue) (*wsdl.DrainQueueResponse, error) {
	limit, err := limitOf(r.Limit, mostItems)
	if err != nil {
		return nil, err
	}
	jobs, err := b.firstOf(r.Queue, limit)
	if err != nil {
		return nil, err
	}
	response := &wsdl.DrainQueueResponse{}
	for _, j := range jobs {
		if err := j.ask(ctx, cancelled{Reason: "taken out of the queue " + r.Queue, Waiting: true}); err != nil {
			return nil, b.unwritten("the queue could not be drained to its end: "+err.Error(), "drain it again; jobs that were taken out are cancelled")
		}
		if j.status().Phase == wsdl.JobStateCancelled {
			response.Item = append(response.Item, j.item())
		}
	}
	state, err := b.jobQueue(r.Queue)
	response.More = wsdl.Of(err == nil && state.Depth > 0)
	return response, nil
}
