package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"mvm/services/store"
	"mvm/wsdl"
)

const (
	maxWait = time.Minute // of a long poll
	maxPage = 1000        // jobs of an answer
)

// GetJobContext answers a job as it is now.
func (b *Service) GetJobContext(ctx context.Context, request *wsdl.GetJob) (*wsdl.GetJobResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	j, err := b.job(request.Id)
	if err != nil {
		return nil, err
	}
	s, err := j.describe(ctx)
	if err != nil {
		return nil, err
	}
	return &wsdl.GetJobResponse{Job: s}, nil
}

// WaitJobContext answers once the job has changed or ended.
func (b *Service) WaitJobContext(ctx context.Context, request *wsdl.WaitJob) (*wsdl.WaitJobResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	j, err := b.job(request.Id)
	if err != nil {
		return nil, err
	}
	limit := time.Duration(request.TimeoutMillis) * time.Millisecond
	if limit <= 0 || limit > maxWait {
		limit = maxWait
	}
	b.await(ctx, j, limit, func(s status) bool {
		return final(s.Phase) || request.Revision > 0 && s.Revision > request.Revision
	})
	if b.ctx.Err() != nil && !final(j.status().Phase) {
		return nil, b.stopping() // what is known here may be old
	}
	s, err := j.describe(ctx)
	if err != nil {
		return nil, err
	}
	return &wsdl.WaitJobResponse{Job: s}, nil
}

// await returns when enough says so, or limit, ctx or the broker is over. It
// costs the caller's goroutine and one timer.
func (b *Service) await(ctx context.Context, j *job, limit time.Duration, enough func(status) bool) {
	over := make(chan struct{})
	defer b.clock.AfterFunc(limit, func() { close(over) })()
	for {
		j.mu.Lock()
		s, changed := j.shown, j.changed
		j.mu.Unlock()
		if enough(s) {
			return
		}
		select {
		case <-changed:
		case <-over:
			return
		case <-ctx.Done():
			return
		case <-b.ctx.Done():
			return
		}
	}
}

// ListJobsContext answers a page of jobs, newest first.
func (b *Service) ListJobsContext(ctx context.Context, request *wsdl.ListJobs) (*wsdl.ListJobsResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	limit := int(request.Limit)
	if limit < 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("ListJobs: a limit of %d jobs", limit), "leave it out, or give at least 1")
	}
	if limit == 0 || limit > maxPage {
		limit = maxPage
	}
	b.mu.Lock()
	ids := b.order
	if request.Before != "" {
		at, _ := slices.BinarySearch(ids, request.Before)
		ids = ids[:at]
	}
	ids = slices.Clone(ids)
	b.mu.Unlock()
	response := &wsdl.ListJobsResponse{}
	for i := len(ids) - 1; i >= 0 && len(response.Job) < limit; i-- {
		j, err := b.job(ids[i])
		if err != nil {
			continue // forgotten meanwhile
		}
		s := j.brief()
		if request.State != nil && *request.State != s.Phase || !strings.Contains(s.Name, request.Name) {
			continue
		}
		response.Job = append(response.Job, s.wire(j.id))
	}
	return response, nil
}

// brief is where the job stands, with why it waits.
func (j *job) brief() status {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.briefLocked()
}

func (j *job) briefLocked() status {
	s := j.shown
	if s.Phase == wsdl.JobStatePending && j.why != "" {
		if s.Reason != "" {
			s.Reason += "; "
		}
		s.Reason += j.why
	}
	return s
}

// describe is the job in full. What has ended is read from the journal.
func (j *job) describe(ctx context.Context) (*wsdl.JobStatus, error) {
	j.mu.Lock()
	s := j.briefLocked()
	r := result{Processes: slices.Clone(j.life.Processes), Builds: slices.Clone(j.life.Builds)}
	var queues []*wsdl.OutsideQueue
	if s.Phase == wsdl.JobStateRunning && j.compiled != nil || j.leaves() {
		queues = j.queues()
	}
	j.mu.Unlock()
	if final(s.Phase) {
		var err error
		if r, err = j.results(ctx); err != nil {
			return nil, err
		}
	}
	w := s.wire(j.id)
	w.Process = make([]*wsdl.ProcessStatus, len(r.Processes))
	for i := range r.Processes {
		w.Process[i] = r.Processes[i].wire()
	}
	for _, x := range r.Builds {
		w.Build = append(w.Build, &wsdl.BuildStatus{Source: x.Source, Digest: x.Digest, Node: x.Node,
			Cached: wsdl.Of(x.Cached), Millis: wsdl.Of(x.Millis), Output: clean(x.Output)})
	}
	w.Outside = queues
	return w, nil
}

// results is how an ended job's processes ended.
func (j *job) results(ctx context.Context) (result, error) {
	var r result
	err := j.broker.load(ctx, resultsPrefix+j.id, &r)
	if errors.Is(err, store.ErrNotFound) {
		_, err = j.broker.job(j.id) // forgotten meanwhile
		return r, err
	}
	if err != nil {
		return r, wsdl.NewFault(wsdl.FaultCodeUnavailable, "the results of job "+j.id+" cannot be read: "+err.Error(), "ask again")
	}
	return r, nil
}

// queues are the job's ends outside, and where they are served. j.mu is held.
func (j *job) queues() []*wsdl.OutsideQueue {
	if len(j.life.Changes) > 0 {
		return newWiring(newLayout(j.compiled, j.life.Members, j.broker.url()), slices.Clone(j.life.Changes)).outside()
	}
	var queues []*wsdl.OutsideQueue
	for _, o := range j.outside {
		i := homeOf(o.ends, func(process int) int {
			return slices.IndexFunc(j.life.Members, func(m member) bool { return slices.Contains(m.Processes, process) })
		})
		if i < 0 {
			continue
		}
		m := &j.life.Members[i]
		direction := "out"
		if o.in {
			direction = "in"
		}
		queues = append(queues, &wsdl.OutsideQueue{Name: o.name, Direction: direction, Node: m.Node, Url: m.URL + "/services/queue"})
	}
	return queues
}

func (s status) wire(id string) *wsdl.JobStatus {
	w := &wsdl.JobStatus{
		Id: id, Name: s.Name, State: wsdl.Of(s.Phase), Revision: s.Revision, Reason: clean(s.Reason),
		Attempt: wsdl.Of(int32(s.Attempt)), Priority: wsdl.Of(int32(s.Priority)), Queue: s.Queue,
		Submitted: *wsdl.Date(s.Submitted), Started: wsdl.Date(s.Started), Ended: wsdl.Date(s.Ended),
		ProxyBytes: wsdl.Of(s.ProxyBytes), ProxyItems: wsdl.Of(s.ProxyItems),
	}
	for _, name := range slices.Sorted(maps.Keys(s.Arguments)) {
		w.Argument = append(w.Argument, &wsdl.Assignment{Name: name, Value: s.Arguments[name]})
	}
	return w
}

func (p *process) wire() *wsdl.ProcessStatus {
	w := &wsdl.ProcessStatus{
		Id: wsdl.Of(int32(p.ID)), Task: p.Task, Index: wsdl.Of(int32(p.Index)), Node: p.Node, State: wsdl.Of(p.State),
		Signal: p.Signal, Message: clean(p.Message), UserMicros: p.UserMicros, SystemMicros: p.SystemMicros,
		MaxResidentKiB: p.MaxResidentKiB, Started: wsdl.Date(p.Started), Ended: wsdl.Date(p.Ended),
	}
	if p.ExitCode != nil {
		w.ExitCode = wsdl.Of(int32(*p.ExitCode))
	}
	for _, f := range p.Files {
		w.File = append(w.File, &wsdl.File{Name: f.Name, Digest: f.Digest, Size: wsdl.Of(f.Size), Dropped: f.Dropped})
	}
	return w
}

// CancelJobContext ends a job. It answers when the decision is durable; the
// job's processes may still be ending then. Cancelling an ended job, or one
// whose end is decided, changes nothing.
func (b *Service) CancelJobContext(ctx context.Context, request *wsdl.CancelJob) (*wsdl.CancelJobResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	j, err := b.job(request.Id)
	if err != nil {
		return nil, err
	}
	if !final(j.status().Phase) {
		if err := j.ask(ctx, cancelled{Reason: clip(clean(request.Reason), maxMessage)}); err != nil {
			return nil, b.unwritten("the cancel could not be journalled", "cancel again")
		}
	}
	return &wsdl.CancelJobResponse{State: wsdl.Of(j.status().Phase)}, nil
}

// ListNodesContext answers the nodes that are known, with what the broker's own
// bookings leave free.
func (b *Service) ListNodesContext(ctx context.Context, _ *wsdl.ListNodes) (*wsdl.ListNodesResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	response := &wsdl.ListNodesResponse{Node: b.scheduler.list()}
	slices.SortFunc(response.Node, func(x, y *wsdl.Node) int {
		return cmp.Or(cmp.Compare(x.Name, y.Name), cmp.Compare(x.Id, y.Id))
	})
	return response, nil
}
