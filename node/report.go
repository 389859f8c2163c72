package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"mvm/node/mvm"
	"mvm/wsdl"
)

// company is how long news that is not pressing waits for more: a program that
// ends at once then makes one report, not two.
const company = 50 * time.Millisecond

// pressing tells whether an event is to be reported the moment it happens.
func pressing(e mvm.Event) bool {
	return e.Failure != "" || e.Process != nil && e.Process.State != "running"
}

// listen makes reports of what the MVM process tells: of each end the moment it
// happens. Events that come together make one report.
func (r *runner) listen(p process) {
	events := p.Events()
	for event := range events {
		batch := []mvm.Event{event}
		press := pressing(event)
		late := time.NewTimer(company)
		for more := true; more && len(batch) < 1000; {
			var e mvm.Event
			if press {
				select {
				case e, more = <-events:
				default:
					more = false
				}
			} else {
				select {
				case e, more = <-events:
				case <-late.C:
					more = false
				}
			}
			if more {
				batch = append(batch, e)
				press = press || pressing(e)
			}
		}
		late.Stop()
		r.take(batch)
	}
	r.mu.Lock()
	ending := r.ending
	r.mu.Unlock()
	if !ending {
		r.node.step(lost{key: r.key, reason: "its MVM process ended unexpectedly"})
	}
}

// take applies events and reports them.
func (r *runner) take(batch []mvm.Event) {
	var changed []*wsdl.ProcessStatus
	var failures []string
	durable := false
	r.mu.Lock()
	for _, e := range batch {
		switch {
		case e.Process != nil:
			s := r.statuses[e.Process.ID]
			if s == nil || terminal(s) {
				continue
			}
			set(s, e.Process)
			if e.Process.Unkept != "" {
				r.unkept[e.Process.ID] = e.Process.Unkept
			}
			changed = append(changed, s)
		case e.Failure != "":
			failures = append(failures, e.Failure)
		case e.Traffic != nil:
			r.untold = r.untold || r.traffic != *e.Traffic
			r.traffic = *e.Traffic
		case e.Build != nil:
			r.listening.Go(func() { r.instruct(e.Build) }) // of which this goroutine is one
		case e.Quiet != 0:
			r.quiet, r.untold = e.Quiet, true
		}
	}
	untold := r.untold
	r.mu.Unlock()
	slices.SortFunc(changed, func(a, b *wsdl.ProcessStatus) int { return int(*a.Id - *b.Id) })
	changed = slices.Compact(changed)
	for _, s := range changed {
		if terminal(s) {
			durable = true
			failures = append(failures, r.gather(s)...)
		}
	}
	if len(changed) > 0 || len(failures) > 0 || untold {
		r.report(changed, strings.Join(failures, "; "), durable)
	}
}

func terminal(s *wsdl.ProcessStatus) bool {
	switch wsdl.Or(s.State, "") {
	case wsdl.ProcessStateExited, wsdl.ProcessStateKilled, wsdl.ProcessStateLost:
		return true
	}
	return false
}

// set copies what the MVM process says of a process.
func set(s *wsdl.ProcessStatus, p *mvm.ProcessState) {
	s.State = wsdl.Of(wsdl.ProcessState(p.State))
	s.Message = p.Message
	s.Started = wsdl.Date(p.Started)
	if !terminal(s) {
		return
	}
	if *s.State == wsdl.ProcessStateExited {
		s.ExitCode = wsdl.Of(int32(p.ExitCode))
	}
	s.Signal = p.Signal
	s.UserMicros, s.SystemMicros, s.MaxResidentKiB = p.User.Microseconds(), p.System.Microseconds(), p.MaxRSSKiB
	s.Ended = wsdl.Date(p.Ended)
}

// gather keeps an ended process's results and says what of them is missing,
// which fails the attempt. Only one that ended by itself, and well, owes
// outputs.
func (r *runner) gather(s *wsdl.ProcessStatus) (failures []string) {
	id := int(*s.Id)
	r.mu.Lock()
	spec, unkept := r.specs[id], r.unkept[id]
	r.mu.Unlock()
	files, missing, trouble := r.collect(s, spec)
	if unkept != "" {
		missing = append(missing, unkept)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	s.File = files
	if *s.State == wsdl.ProcessStateExited && wsdl.Or(s.ExitCode, 0) == 0 && len(missing) > 0 {
		failures = append(failures, fmt.Sprintf("process %d (task %s, index %d): %s", id, s.Task, wsdl.Or(s.Index, 0), strings.Join(missing, "; ")))
		trouble = append(missing, trouble...)
	}
	if len(trouble) > 0 {
		if s.Message != "" {
			trouble = append([]string{s.Message}, trouble...)
		}
		s.Message = clip(strings.Join(trouble, "; "))
	}
	return failures
}

// patienceForRoom is how long results wait for room on the node's disk.
const patienceForRoom = 10 * time.Minute

// collect gathers an ended process's results. While the disk is too full to keep
// them they wait where they are, unless the attempt ends meanwhile.
func (r *runner) collect(s *wsdl.ProcessStatus, spec *wsdl.ProcessSpec) (files []*wsdl.File, missing, trouble []string) {
	began := time.Now()
	for pause, told := 100*time.Millisecond, false; ; pause = min(2*pause, 2*time.Second) {
		var full error
		files, missing, trouble, full = collect(context.Background(), r.node.images, r.work, spec)
		if full == nil || r.ctx.Err() != nil || time.Since(began) > patienceForRoom {
			return files, missing, trouble
		}
		if !told {
			told = true
			r.log.WithError(full).Error("results wait until there is room for them")
			r.mu.Lock()
			waiting := *s
			r.mu.Unlock()
			waiting.State, waiting.Ended, waiting.ExitCode = wsdl.Of(wsdl.ProcessStateRunning), nil, nil
			waiting.Message = clip(fmt.Sprintf("it has ended; its results wait for room on node %s: %v", r.node.id, full))
			r.report([]*wsdl.ProcessStatus{&waiting}, "", false)
		}
		select {
		case <-r.ctx.Done():
		case <-time.After(pause):
		}
	}
}

// clip bounds words whose number a job decides.
func clip(words string) string {
	if len(words) > mostWords {
		words = strings.ToValidUTF8(words[:mostWords], "") + "..."
	}
	return words
}

// finish reports what became of the processes that nobody spoke for. It is a
// failure that the attempt ends unasked, unless all of them had ended before:
// then their reports say all that there is to say.
func (r *runner) finish(order end) {
	var changed []*wsdl.ProcessStatus
	r.mu.Lock()
	owing := len(r.statuses) == 0
	for _, s := range r.statuses {
		owing = owing || !terminal(s)
		if terminal(s) || *s.State == wsdl.ProcessStateWaiting && order.asked {
			continue
		}
		s.State, s.Message = wsdl.Of(wsdl.ProcessStateLost), order.reason
		changed = append(changed, s)
	}
	untold, failure := r.untold, ""
	if owing && !order.asked {
		failure = order.reason
	}
	r.mu.Unlock()
	slices.SortFunc(changed, func(a, b *wsdl.ProcessStatus) int { return int(*a.Id - *b.Id) })
	for _, s := range changed {
		r.gather(s)
	}
	if len(changed) > 0 || failure != "" || untold {
		r.reportAll(changed, failure, failure != "", true)
	}
}

const (
	// reportBytes bounds a report, about. A server takes messages of 16 MiB.
	reportBytes = 4 << 20
	// reportProcesses bounds the processes in one report.
	reportProcesses = 256
	// mostWords bounds each text in a report, in bytes.
	mostWords = 4 << 10
)

// report spools what is to be told: as one report, or as several when it is
// much. The first one carries the failure, so that nobody takes the attempt for
// well before it is told.
func (r *runner) report(processes []*wsdl.ProcessStatus, failure string, durable bool) {
	r.reportAll(processes, failure, false, durable)
}

// reportAll is report; lost is of the failure.
func (r *runner) reportAll(processes []*wsdl.ProcessStatus, failure string, lost, durable bool) {
	for first := true; first || len(processes) > 0; first = false {
		n := portion(processes)
		r.reportOne(processes[:n], clip(failure), lost, durable)
		processes, failure, lost = processes[n:], "", false
	}
}

// portion is how many processes, from the first, fit into one report.
func portion(processes []*wsdl.ProcessStatus) int {
	size := 0
	for i, s := range processes {
		size += 1024 + 2*len(s.Message)
		for _, f := range s.File {
			size += 256 + 2*len(f.Name)
			if f.Data != nil {
				size += len(*f.Data) * 4 / 3 // base64
			}
		}
		if i > 0 && size > reportBytes || i == reportProcesses {
			return i
		}
	}
	return len(processes)
}

// reportOne spools one report.
func (r *runner) reportOne(processes []*wsdl.ProcessStatus, failure string, lost, durable bool) {
	r.mu.Lock()
	r.sequence++
	r.untold = false
	out := &spooled{
		Broker: r.request.Broker,
		Image:  r.request.Image,
		Report: &wsdl.Report{
			Attempt: r.attempt(), Sequence: r.sequence, Failure: failure, Lost: lost,
			ProxyBytes: r.traffic.Bytes, ProxyItems: r.traffic.Items, Quiet: int64(r.quiet),
		},
	}
	r.quiet = 0
	for _, s := range processes {
		copied := *s
		out.Report.Process = append(out.Report.Process, &copied)
	}
	r.mu.Unlock()
	if digests := blobsOf(out.Report); len(digests) > 0 {
		out.Owner = ownerPrefix + random(12)
		if err := r.node.images.Pin(out.Owner, digests...); err != nil {
			r.log.WithError(err).Error("results cannot be pinned")
		}
	}
	if err := r.node.spool.put(out, durable); err != nil {
		r.log.WithError(err).Error("a report is not on disk: it is lost if this node stops before the broker has it")
	}
}

// ownerPrefix begins the names under which reports pin their results.
const ownerPrefix = "report:"

// blobsOf is the results that do not travel inside the report.
func blobsOf(report *wsdl.Report) []string {
	var digests []string
	for _, p := range report.Process {
		for _, f := range p.File {
			if f.Data == nil {
				digests = append(digests, f.Digest)
			}
		}
	}
	return digests
}

// deliver is the spool's way to the broker: the results first, then the report.
func (n *Node) deliver(ctx context.Context, s *spooled) (int64, error) {
	for _, digest := range blobsOf(s.Report) {
		if len(s.Image) == 0 {
			withdraw(s.Report, digest, "no image service was named to take it")
		} else if !n.images.Has(digest) {
			withdraw(s.Report, digest, "it is not on node "+n.id+" any more")
		} else if err := n.images.Push(ctx, n.caller, s.Image[0], digest); refusal(err) && wsdl.CodeOf(err) != wsdl.FaultCodeConflict { // that is another's upload
			withdraw(s.Report, digest, err.Error())
		} else if err != nil {
			return 0, err
		}
	}
	broker := s.Broker
	if broker == "" { // of an earlier life's report nothing but its number is left
		broker = n.Broker()
	}
	for range 3 { // as far as it is sent on
		ctx, cancel := context.WithTimeout(ctx, n.callTimeout)
		answer, err := wsdl.NewBrokerClient(n.caller, broker).ReportContext(ctx, s.Report)
		cancel()
		var fault *wsdl.Fault
		switch {
		case err == nil:
			return answer.Acknowledged, nil
		case wsdl.CodeOf(err) == wsdl.FaultCodeStale:
			return 0, fmt.Errorf("%w: %w", errStale, err)
		case refusal(err):
			return 0, fmt.Errorf("%w (%s): %w", errRefused, wsdl.CodeOf(err), err)
		case wsdl.CodeOf(err) == wsdl.FaultCodeWrongNode:
			if errors.As(err, &fault) && fault.Address != "" && fault.Address != broker {
				broker = fault.Address
				continue
			}
		}
		return 0, err
	}
	return 0, fmt.Errorf("report %d is sent on in circles", s.Report.Sequence)
}

// refusal tells whether the same message would be refused again, by whoever
// takes such messages. That something is not found is none: a broker that does
// not know the job says stale, and a 404 comes from a server that is no broker
// (yet).
func refusal(err error) bool {
	switch wsdl.CodeOf(err) {
	case wsdl.FaultCodeInvalidRequest, wsdl.FaultCodeTooLarge, wsdl.FaultCodeConflict, wsdl.FaultCodeUnsupported, wsdl.FaultCodeForbidden:
		return true
	}
	return false
}

// substitute is the small report that goes in the place of one that cannot be
// delivered: what that one said has ended is lost. It needs why put in.
func substitute(s *spooled) *spooled {
	old := s.Report
	report := &wsdl.Report{Attempt: old.Attempt, Sequence: old.Sequence, ProxyBytes: old.ProxyBytes, ProxyItems: old.ProxyItems}
	for _, p := range old.Process {
		if terminal(p) {
			report.Process = append(report.Process, &wsdl.ProcessStatus{Id: p.Id, Task: p.Task, Index: p.Index, Node: p.Node,
				State: wsdl.Of(wsdl.ProcessStateLost), Started: p.Started, Ended: p.Ended})
		}
	}
	if len(report.Process) > 0 || old.Failure != "" {
		report.Failure = fmt.Sprintf("report %d of node %s is lost", old.Sequence, old.Attempt.Node)
		if old.Failure != "" {
			report.Failure = clip(old.Failure) + "; " + report.Failure
		}
	}
	return &spooled{Broker: s.Broker, Owner: s.Owner, Report: report}
}

// because puts into a substitute why it is sent.
func (s *spooled) because(why error) {
	words := clip(why.Error())
	if s.Report.Failure != "" {
		s.Report.Failure += ": " + words
	}
	for _, p := range s.Report.Process {
		p.Message = "what became of it is lost: " + words
	}
}

// withdraw takes a result that cannot be delivered out of a report and says so:
// what else the report tells must still arrive.
func withdraw(report *wsdl.Report, digest, why string) {
	for _, p := range report.Process {
		p.File = slices.DeleteFunc(p.File, func(f *wsdl.File) bool {
			if f.Data != nil || f.Digest != digest {
				return false
			}
			what := fmt.Sprintf("process %d: its %s is lost: %s", wsdl.Or(p.Id, 0), f.Name, why)
			if report.Failure != "" {
				what = report.Failure + "; " + what
			}
			report.Failure = what
			return true
		})
	}
}

// delivered lets go of a report's results.
func (n *Node) delivered(s *spooled) {
	if s.Owner == "" {
		return
	}
	if err := n.images.Unpin(s.Owner); err != nil {
		n.log.WithError(err).Warn("a delivered report's results stay pinned")
	}
}
