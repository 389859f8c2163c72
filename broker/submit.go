package broker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"mvm/broker/jobqueue"
	"mvm/broker/profile"
	"mvm/services/store"
	"mvm/wsdl"
)

const maxToken = 200 // characters of a submission's token

// SubmitJobContext accepts a job: validated completely, its blobs pinned, and
// durable before the id is returned. The same token gets the same id again,
// whatever comes with it.
func (b *Service) SubmitJobContext(ctx context.Context, request *wsdl.SubmitJob) (*wsdl.SubmitJobResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	if request.Token == "" || len(request.Token) > maxToken {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the token has %d characters, expected 1 to %d", len(request.Token), maxToken),
			"choose one at random for each job, and send the same again when an answer did not come")
	}
	for {
		b.mu.Lock()
		a := b.tokens[request.Token]
		mine := a == nil
		if mine {
			a = &accept{done: make(chan struct{})}
			b.tokens[request.Token] = a
		}
		b.mu.Unlock()
		if mine {
			a.id, a.err = b.accept(ctx, request)
			if a.err != nil {
				b.mu.Lock()
				delete(b.tokens, request.Token)
				b.mu.Unlock()
			}
			close(a.done)
		}
		select {
		case <-a.done:
		case <-ctx.Done():
			return nil, wsdl.Faultf(wsdl.FaultCodeTimeout, "the job was not accepted in time; the same token may be sent again")
		}
		switch {
		case a.err == nil:
			return &wsdl.SubmitJobResponse{Id: a.id}, nil
		case mine:
			return nil, a.err
		}
		// The one that came first failed, perhaps only because its caller left.
	}
}

func (b *Service) accept(ctx context.Context, request *wsdl.SubmitJob) (string, error) {
	r, err := b.resolve(ctx, request.Job, request.Profile, request.Version, request.Argument)
	if err != nil {
		return "", err
	}
	queue, err := b.jobQueueOf(request.Queue, r.compiled)
	if err != nil {
		return "", err
	}
	leave, err := b.scheduler.reserve(queue)
	if err != nil {
		return "", err
	}
	defer leave()
	for range 100 {
		now := b.clock.Now()
		id := b.newID(now)
		j := b.newJob(id, r.compiled, status{
			Name: r.compiled.Name, Token: request.Token, Priority: r.compiled.Priority, Queue: queue, Size: len(r.compiled.Processes),
			Submitted: now, Arguments: r.arguments,
		})
		if err := b.keep(ctx, j.blobs, r); err != nil {
			_ = j.blobs.drop() // at the latest, the next start does
			return "", err
		}
		err := b.journalJob(ctx, j, &spec{Job: r.job, Arguments: r.arguments, Profiles: r.pinned, Owner: wsdl.PrincipalOf(ctx).Name})
		if err == nil {
			b.add(j)
			b.scheduler.add(j)
			return id, nil
		}
		// Not there, or there and not known to be: the journal says which.
		var known string
		switch got := b.load(b.ctx, tokenKey(request.Token), &known); {
		case got == nil && known == id:
			b.add(j)
			b.scheduler.add(j)
			return id, nil
		case errors.Is(got, store.ErrNotFound) || got == nil:
			if err := j.blobs.drop(); err != nil {
				b.log.WithError(err).WithField("job", id).Warn("blobs of a job that was not accepted stay pinned until the next start")
			}
		}
		if known != "" && known != id {
			// It was accepted before, by a try whose answer was lost.
			return known, b.adopt(known)
		}
		if !errors.Is(err, store.ErrConflict) {
			return "", b.unwritten("the job could not be journalled: "+err.Error(), "send it again with the same token")
		}
		if err := b.reign(ctx); err != nil {
			return "", err
		}
		// The id is taken: the next one.
	}
	return "", wsdl.Faultf(wsdl.FaultCodeUnavailable, "no free job id was found")
}

// journalJob makes an accepted job durable, in one transaction.
func (b *Service) journalJob(ctx context.Context, j *job, s *spec) error {
	what, err := b.pack(ctx, j.blobs, s)
	if err != nil {
		return err
	}
	now := j.record()
	now.Blobs = j.blobs.list()
	stands, err := b.pack(ctx, j.blobs, now)
	if err != nil {
		return err
	}
	token := j.fixed.Token
	b.pass("before submit")
	err = b.commit(ctx,
		store.IfAbsent(tokenKey(token)), store.IfAbsent(jobsPrefix+j.id),
		store.Put(jobsPrefix+j.id, what), store.Put(tokenKey(token), []byte(`"`+j.id+`"`)), store.Put(statusPrefix+j.id, stands))
	b.pass("after submit")
	return err
}

// newJob is a job that waits for room.
func (b *Service) newJob(id string, compiled *profile.Job, fixed status) *job {
	j := &job{broker: b, id: id, compiled: compiled, fixed: fixed, changed: make(chan struct{}), blobs: &bag{pins: b.pins}}
	j.life = life{Job: id, Rules: b.rules, Phase: wsdl.JobStatePending, Gone: true,
		Place: jobqueue.Place{Queue: fixed.Queue, Priority: fixed.Priority, Arrival: cmp.Or(fixed.Arrival, bornOf(id))}}
	if compiled != nil {
		j.outside = outsideOf(compiled)
		j.life.WallTime, j.life.Retries, j.life.Every = compiled.WallTime, compiled.Retries, compiled.Checkpoint
		j.life.Processes = make([]process, len(compiled.Processes))
		for i, p := range compiled.Processes {
			j.life.Processes[i] = process{ID: p.ID, Task: p.Task, Index: p.Index, Count: p.Count, State: wsdl.ProcessStateWaiting}
		}
	}
	j.shown = j.record()
	return j
}

// resolved is a submission after validation.
type resolved struct {
	job       *wsdl.Job // every file by digest
	compiled  *profile.Job
	arguments map[string]string
	pinned    []pinned
	blobs     map[string][]byte // what came inline, by digest
}

// resolve finds the profile that is meant, turns what came inline into blobs,
// and compiles.
func (b *Service) resolve(ctx context.Context, given *wsdl.Job, name string, version int32, assignments []*wsdl.Assignment) (*resolved, error) {
	r := &resolved{job: given, arguments: map[string]string{}}
	switch {
	case given != nil && name != "":
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "both a job and the name of a registered one are given", "give one of them")
	case given == nil && name == "":
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "neither a job nor the name of a registered one is given", "give one of them")
	case given == nil:
		p, err := b.profiles.find(wsdl.ProfileKindJob, name, version)
		if err != nil {
			return nil, err
		}
		r.job = p.Job
		r.pinned = append(r.pinned, pinned{string(wsdl.ProfileKindJob), name, int(version), int(p.Version)})
	default:
		blobs, err := profile.Blobs(given, nil)
		if err != nil {
			return nil, err
		}
		r.blobs = blobs
	}
	for _, a := range assignments {
		if a == nil {
			continue
		}
		if _, twice := r.arguments[a.Name]; twice {
			return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "the argument %q is given twice", a.Name)
		}
		r.arguments[a.Name] = a.Value
	}
	lookup := func(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error) {
		p, err := b.profiles.find(kind, name, version)
		if err == nil {
			r.pinned = append(r.pinned, pinned{string(kind), name, int(version), int(p.Version)})
		}
		return p, err
	}
	compiled, err := profile.Compile(r.job, r.arguments, lookup, b.reader(r.blobs))
	if err != nil {
		return nil, err
	}
	r.compiled = compiled
	if compiled.VM != nil {
		if err := b.settleImage(ctx, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

const maxGraph = 64 << 20 // bytes of a topology's graph file

// reader reads what came inline, or a blob that is here.
func (b *Service) reader(inline map[string][]byte) func(reference string) ([]byte, error) {
	return func(reference string) ([]byte, error) {
		if data, there := inline[reference]; there {
			return data, nil
		}
		f, size, err := b.images.Open(reference)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if size > maxGraph {
			return nil, fmt.Errorf("it has %d bytes, expected at most %d", size, maxGraph)
		}
		return io.ReadAll(f)
	}
}

// keep stores what came inline and holds everything the job needs.
func (b *Service) keep(ctx context.Context, to *bag, r *resolved) error {
	for digest, data := range r.blobs {
		if err := b.put(ctx, to, digest, data); err != nil {
			return err
		}
	}
	err := to.add(slices.Sorted(maps.Keys(digestsOf(r.compiled)))...)
	switch {
	case err == nil:
		return nil
	case faultOf(err) != nil:
		return faultOf(err)
	}
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, "the job's files could not be kept: "+err.Error(), "send it again with the same token")
}

// putBlob stores bytes unless they are here already.
func (b *Service) putBlob(ctx context.Context, digest string, data []byte) error {
	if b.images.Has(digest) {
		return nil
	}
	got, _, err := b.images.Put(ctx, bytes.NewReader(data))
	switch {
	case err != nil && faultOf(err) != nil:
		return faultOf(err)
	case err != nil:
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "a file could not be kept: "+err.Error(), "send it again")
	case got != digest:
		return wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "a file's bytes have the digest %s, expected %s", got, digest)
	}
	return nil
}

// digestsOf are the blobs that must be here for as long as the job is not over.
func digestsOf(j *profile.Job) map[string]bool {
	digests := map[string]bool{}
	for _, s := range j.Sources {
		for _, f := range s.Files {
			digests[f.Digest] = true
		}
	}
	for i := range j.Processes {
		for _, f := range j.Processes[i].Inputs {
			digests[f.Digest] = true
		}
	}
	if j.VM != nil {
		for _, digest := range j.VM.Blobs {
			digests[digest] = true
		}
	}
	for _, t := range j.Topologies {
		if t.Graph != "" {
			digests[t.Graph] = true // compiled anew after a restart
		}
	}
	return digests
}

// PlanJobContext is a dry run: where each process would go now.
func (b *Service) PlanJobContext(ctx context.Context, request *wsdl.PlanJob) (*wsdl.PlanJobResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	r, err := b.resolve(ctx, request.Job, request.Profile, request.Version, request.Argument)
	if err != nil {
		return nil, err
	}
	if _, err := b.jobQueueOf(request.Queue, r.compiled); err != nil {
		return nil, err
	}
	return b.scheduler.plan(r.compiled), nil
}

// faultOf is the fault in err's chain, or nil.
func faultOf(err error) *wsdl.Fault {
	var f *wsdl.Fault
	if errors.As(err, &f) {
		return f
	}
	return nil
}
