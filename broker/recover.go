package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"mvm/broker/profile"
	"mvm/services/store"
	"mvm/wsdl"
)

// recover reads the journal and goes on with every job that has not ended.
func (b *Service) recover(ctx context.Context) error {
	if err := b.recoverProfiles(ctx); err != nil {
		return err
	}
	if err := b.recoverQueues(ctx); err != nil {
		return err
	}
	all, err := b.journal.List(ctx, statusPrefix)
	if err != nil {
		return err
	}
	attempts, err := b.journal.List(ctx, attemptsPrefix)
	if err != nil {
		return err
	}
	if err := b.scheduler.refresh(ctx); err != nil {
		return err
	}
	byJob := map[string][]store.KV{}
	for _, kv := range attempts {
		id, _, _, ok := parseAttemptKey(kv.Key)
		if !ok {
			return fmt.Errorf("broker: journal: the key %q is none of the broker's", kv.Key)
		}
		byJob[id] = append(byJob[id], kv)
	}
	live := map[store.Attempt]bool{}
	var unended []*job
	for _, kv := range all {
		id := strings.TrimPrefix(kv.Key, statusPrefix)
		j, err := b.restore(ctx, id, kv.Value, byJob[id])
		if err != nil {
			return err
		}
		if n, ok := parseID(id); ok {
			b.last = max(b.last, n)
		}
		b.tokens[j.fixed.Token] = known(id)
		b.add(j)
		if final(j.shown.Phase) {
			continue
		}
		unended = append(unended, j)
		for _, m := range j.life.Members {
			live[store.Attempt{Job: m.job(id), Number: j.life.Attempt, Node: m.Node, Incarnation: m.Incarnation}] = true
		}
	}
	if err := b.sweep(ctx, live); err != nil {
		return err
	}
	if err := b.sweepSets(unended); err != nil {
		return err
	}
	for _, j := range unended {
		b.scheduler.book(j.id, j.life.Members)
		if len(j.life.Members) > 0 {
			b.setActive(j, true)
		}
		switch {
		case j.compiled == nil:
			j.post(unreadable{}, nil)
		case j.shown.Phase == wsdl.JobStatePending:
			// As recovered would; but who asks for the queues finds it there.
			b.scheduler.add(j)
		default:
			j.post(recovered{}, nil)
		}
		j.compare(b.scheduler.known)
	}
	return nil
}

// known is a submission that was accepted before.
func known(id string) *accept {
	a := &accept{done: make(chan struct{}), id: id}
	close(a.done)
	return a
}

// sweep removes what a crash between two transactions has left: attempts that
// are named live and are none, and pins of jobs that were never accepted.
func (b *Service) sweep(ctx context.Context, live map[store.Attempt]bool) error {
	var ops []store.Op
	for id := range b.scheduler.known {
		attempts, err := b.journal.LiveOn(ctx, id)
		if err != nil {
			return err
		}
		for _, a := range attempts {
			if !live[a] {
				ops = append(ops, store.Drop(a.Node, a.Job, a.Number))
			}
		}
	}
	if len(ops) > 0 {
		if err := b.write(ctx, ops); err != nil {
			return err
		}
	}
	return b.pins.sweep()
}

// again holds what the journal says is referred to. What is not here any more
// is told when it is needed.
func (b *Service) again(to *bag, value []byte, digests ...string) {
	if digest, ok := strings.CutPrefix(string(value), "@"); ok {
		digests = append(digests, digest)
	}
	for _, digest := range digests {
		if err := to.add(digest); err != nil {
			b.log.WithError(err).WithField("blob", digest).Warn("a blob that the journal refers to cannot be kept")
		}
	}
}

// adopt makes a job known that the journal has and this broker does not.
func (b *Service) adopt(id string) error {
	b.mu.Lock()
	_, here := b.jobs[id]
	b.mu.Unlock()
	if here {
		return nil
	}
	value, _, err := b.journal.Get(b.ctx, statusPrefix+id)
	if err != nil {
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "job "+id+" cannot be read: "+err.Error(), "send it again with the same token")
	}
	j, err := b.restore(b.ctx, id, value, nil)
	if err != nil {
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "job "+id+" cannot be read: "+err.Error(), "send it again with the same token")
	}
	b.add(j)
	j.post(recovered{}, nil)
	return nil
}

// restore makes a job as the journal has it.
func (b *Service) restore(ctx context.Context, id string, value []byte, attempts []store.KV) (*job, error) {
	var s status
	if err := b.unpack(value, &s); err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	fixed := status{Name: s.Name, Token: s.Token, Priority: s.Priority, Queue: s.Queue, Arrival: s.Arrival, Size: s.Size, Submitted: s.Submitted, Arguments: s.Arguments}
	if final(s.Phase) {
		j := b.newJob(id, nil, fixed)
		j.life.Phase, j.life.Attempt = s.Phase, s.Attempt
		b.again(j.blobs, value, s.Blobs...)
		s.Blobs = nil
		j.shown = s
		return j, nil
	}
	submitted, err := b.submitted(ctx, id)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	var compiled *profile.Job
	if err == nil {
		compiled, err = b.recompile(submitted)
	}
	if err != nil {
		b.log.WithError(err).WithField("job", id).Error("a job's profile cannot be read any more")
	}
	j := b.newJob(id, compiled, fixed)
	b.again(j.blobs, value, s.Blobs...)
	l := &j.life
	l.Phase, l.Reason = wsdl.JobStatePending, s.Reason
	l.Started, l.Attempt, l.Failures, l.Losses = s.Started, s.Attempt, s.Failures, s.Losses
	if err := b.restoreAttempt(j, s, attempts); err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if err := b.restoreSet(ctx, j); err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	j.shown = j.record()
	j.shown.Revision = j.nextRevision()
	return j, nil
}

// restoreAttempt brings the life to where the journal's records of its newest
// attempt end.
func (b *Service) restoreAttempt(j *job, s status, records []store.KV) error {
	l := &j.life
	var reports []memberReport
	var start *goRecord
	changes := map[int64]change{}
	for _, kv := range records {
		_, number, rest, _ := parseAttemptKey(kv.Key)
		if number < s.Attempt || number == s.Attempt && s.Gone {
			continue // of an attempt that is over: the end of its removal was cut off
		}
		b.again(j.blobs, kv.Value)
		switch {
		case rest == "attempt":
			var record attemptRecord
			if err := b.unpack(kv.Value, &record); err != nil {
				return err
			}
			members := make([]member, len(record.Members))
			for i, m := range record.Members {
				members[i] = m.member()
				for _, p := range m.Processes {
					if limit := cmp.Or(len(l.Processes), profile.MaxProcesses); p < 0 || p >= limit {
						return fmt.Errorf("broker: journal: attempt %d has a process %d of %d", number, p, limit)
					}
				}
			}
			l.Attempt = number - 1
			if j.compiled == nil {
				l.Processes = blank(members)
			}
			l.placed(placed{Members: members})
			if record.Base != "" && record.Base != b.url() {
				l.Former = record.Base
			}
		case rest == "go":
			start = new(goRecord)
			if err := b.unpack(kv.Value, start); err != nil {
				return err
			}
		case strings.HasPrefix(rest, "change/"):
			n, ok := parseChangeKey(rest)
			if !ok {
				return fmt.Errorf("broker: journal: the key %q is none of the broker's", kv.Key)
			}
			var c change
			if err := b.unpack(kv.Value, &c); err != nil {
				return err
			}
			changes[n] = c
		default:
			i, _, ok := parseReportKey(rest)
			if !ok {
				return fmt.Errorf("broker: journal: the key %q is none of the broker's", kv.Key)
			}
			r := memberReport{Member: i}
			if err := b.unpack(kv.Value, &r.Report); err != nil {
				return err
			}
			for _, p := range r.Report.Processes {
				for _, f := range p.Files {
					b.again(j.blobs, nil, f.Digest)
				}
			}
			reports = append(reports, r)
		}
	}
	if l.Phase != wsdl.JobStateAwakening {
		return nil
	}
	if start != nil {
		if len(start.Proxies) != len(l.Members) {
			return fmt.Errorf("broker: journal: attempt %d has %d members and %d proxies", l.Attempt, len(l.Members), len(start.Proxies))
		}
		l.Phase, l.Running, l.Started, l.Builds = wsdl.JobStateRunning, true, start.Started, start.Builds
		l.Begun, l.Used = cmp.Or(start.Begun, start.Started), start.Used
		for i := range l.Members {
			m := &l.Members[i]
			p := start.Proxies[i]
			m.Awake, m.Address, m.Fingerprint, m.Trunk, m.TrunkKey = true, p.Address, p.Fingerprint, p.Trunk, p.TrunkKey
		}
	}
	for i := range l.Members {
		l.Members[i].Resumed = true
	}
	if err := l.restoreChanges(changes); err != nil {
		return err
	}
	slices.SortStableFunc(reports, func(a, b memberReport) int { return cmp.Compare(a.Report.Sequence, b.Report.Sequence) })
	for _, r := range reports {
		if r.Member >= len(l.Members) || !within(r.Report, len(l.Processes)) {
			return fmt.Errorf("broker: journal: attempt %d has a report of what is not in it", l.Attempt)
		}
		// What it led to was durable with it, and is repeated by recovered.
		l.step(s.Submitted, reported{Attempt: l.Attempt, Member: r.Member, Report: r.Report})
	}
	l.Held = nil // it is durable
	if s.Outcome != undecided && s.Attempt == l.Attempt {
		l.Phase, l.Outcome, l.Cause, l.Reason, l.Failures = wsdl.JobStateTerminating, s.Outcome, s.Cause, s.Reason, s.Failures
	}
	return nil
}

func within(r report, processes int) bool {
	for _, p := range r.Processes {
		if p.ID < 0 || p.ID >= processes {
			return false
		}
	}
	return true
}

// blank are processes of which only the number is known.
func blank(members []member) []process {
	n := 0
	for _, m := range members {
		for _, p := range m.Processes {
			n = max(n, p+1)
		}
	}
	processes := make([]process, n)
	for i := range processes {
		processes[i] = process{ID: i, Task: "process", Index: i, Count: n, State: wsdl.ProcessStateWaiting}
	}
	return processes
}

// submitted reads what a job was submitted as. A journal that does not answer says
// nothing of the job: this process may have been stopped for longer than the store
// waits. It is asked again, and then the error is not ErrNotFound.
func (b *Service) submitted(ctx context.Context, id string) (value []byte, err error) {
	for range 3 {
		value, _, err = b.journal.Get(ctx, jobsPrefix+id)
		if err == nil || errors.Is(err, store.ErrNotFound) || ctx.Err() != nil {
			break
		}
		b.log.WithError(err).WithField("job", id).Warn("the journal does not answer what was submitted; it is asked again")
	}
	return value, err
}

// recompile makes a job's plan again, with the versions of registered profiles
// that it was accepted with.
func (b *Service) recompile(submitted []byte) (*profile.Job, error) {
	var s spec
	if err := b.unpack(submitted, &s); err != nil {
		return nil, err
	}
	compiled, err := profile.Compile(s.Job, s.Arguments, func(kind wsdl.ProfileKind, name string, version int32) (*wsdl.Profile, error) {
		for _, p := range s.Profiles {
			if p.Kind == string(kind) && p.Name == name && p.Wanted == int(version) {
				return b.profiles.find(kind, name, int32(p.Version))
			}
		}
		return nil, noProfile(kind, name, version)
	}, b.reader(nil))
	if err != nil {
		return nil, err
	}
	return compiled, b.enclose(compiled)
}

func (b *Service) recoverProfiles(ctx context.Context) error {
	all, err := b.journal.List(ctx, profilesPrefix)
	if err != nil {
		return err
	}
	for _, kv := range all {
		parts := strings.Split(strings.TrimPrefix(kv.Key, profilesPrefix), "/")
		bad := errors.New("expected kind/name/version")
		var name string
		var version int
		if len(parts) == 3 {
			if name, bad = url.PathUnescape(parts[1]); bad == nil {
				version, bad = strconv.Atoi(parts[2])
			}
		}
		if bad != nil {
			return fmt.Errorf("broker: journal: the key %q: %w", kv.Key, bad)
		}
		p := new(registered)
		if err := b.unpack(kv.Value, p); err != nil {
			return err
		}
		if err := b.profiles.put(wsdl.ProfileKind(parts[0]), name, int32(version), p); err != nil {
			return err
		}
		b.again(b.kept, kv.Value, digestsIn(p.profile)...)
	}
	return nil
}
