package broker

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// A change is planned on a view of the attempt, and taken when no other came
// first; it is journalled before any node hears of it. It is made step by step at
// all nodes that take part, each call as often as it takes, and goes on after a
// restart of the broker. Pending changes end with the attempt.

const (
	mostChanges = 10_000 // of an attempt
	shownDone   = 100    // of those that are no longer pending, in a list
)

func changeKey(job string, number int, n int64) string {
	return fmt.Sprintf("%schange/%06d", attemptKey(job, number), n)
}

// parseChangeKey reads what parseAttemptKey left of a change's key.
func parseChangeKey(rest string) (n int64, ok bool) {
	text, ok := strings.CutPrefix(rest, "change/")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && n > 0
}

// changing takes a planned change, if it is the next one and there is still
// something to change.
func (l *life) changing(e changing) []action {
	if l.Phase != wsdl.JobStateRunning || e.Change.Number != int64(len(l.Changes))+1 {
		return nil
	}
	l.changes++
	l.Changes = append(l.Changes, e.Change)
	return []action{commit{Change: e.Change.Number}, alter{Number: e.Change.Number}}
}

// changed notes how far a change is. Only its end is worth a record.
func (l *life) changed(e changed) []action {
	if l.Phase != wsdl.JobStateRunning || e.Number < 1 || e.Number > int64(len(l.Changes)) {
		return nil
	}
	c := &l.Changes[e.Number-1]
	if c.State != wsdl.ChangeStatePending || e.State == c.State && e.Reason == c.Reason {
		return nil
	}
	l.changes++
	c.State, c.Reason = e.State, e.Reason
	if c.State == wsdl.ChangeStatePending {
		return nil
	}
	return []action{commit{Change: e.Number, Changed: true}}
}

// resume goes on with the changes that were under way.
func (l *life) resume() []action {
	var actions []action
	for i := range l.Changes {
		if l.Changes[i].State == wsdl.ChangeStatePending {
			actions = append(actions, alter{Number: l.Changes[i].Number})
		}
	}
	return actions
}

// pending says whether a change is under way: then nobody waits for ever.
func (l *life) pending() bool {
	return slices.ContainsFunc(l.Changes, func(c change) bool { return c.State == wsdl.ChangeStatePending })
}

// change plans a change, makes it durable and waits for it, as long as the caller
// wants to. One whose token the attempt has had is made already.
func (b *Service) change(ctx context.Context, id string, wait int32, token string, plan func(*wiring) (*change, error)) (*wsdl.ChangeStatus, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	if len(token) > maxToken {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the token has %d characters, expected at most %d", len(token), maxToken), "send a shorter one, or none")
	}
	j, err := b.job(id)
	if err != nil {
		return nil, err
	}
	if compiled := j.profile(); compiled != nil && compiled.Checkpoint > 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, "job "+id+" has checkpoints, which would not know of a change of its queues", "submit it without the policy's checkpoint to change it while it runs")
	}
	for {
		w, attempt, err := j.wiring()
		if err != nil {
			return nil, err
		}
		if token != "" {
			had := slices.IndexFunc(w.changes, func(c change) bool { return c.Token == token })
			if had >= 0 {
				// Behind its journalling, if that is still under way.
				if err := j.ask(ctx, changed{Attempt: attempt}); err != nil {
					return nil, b.unjournalled(ctx)
				}
				return b.awaitChange(ctx, j, attempt, w.changes[had].Number, wait)
			}
		}
		number := int64(len(w.changes)) + 1
		if number > mostChanges {
			return nil, wsdl.Faultf(wsdl.FaultCodeTooLarge, "attempt %d at job %s has had %d changes, which is the most", attempt, id, mostChanges)
		}
		c, err := plan(w)
		if err == nil && len(c.Sources) > 0 {
			err = w.compilers(c, b.scheduler.list())
		}
		if err != nil {
			return nil, err
		}
		c.Number, c.Token = number, token
		if err := j.ask(ctx, changing{Attempt: attempt, Change: *c}); err != nil {
			return nil, b.unjournalled(ctx)
		}
		if taken, err := j.taken(attempt, c); err != nil {
			return nil, err
		} else if !taken {
			continue // another came first
		}
		return b.awaitChange(ctx, j, attempt, number, wait)
	}
}

// unjournalled is for whoever cannot be told whether a change was journalled.
func (b *Service) unjournalled(ctx context.Context) error {
	if ctx.Err() != nil {
		return wsdl.NewFault(wsdl.FaultCodeTimeout, "the caller did not wait until the change was journalled", "see in the list of the job's queues whether it was")
	}
	return b.unwritten("the change could not be journalled", "see in the list of the job's queues whether it was, once the broker is back; or call again with the same token")
}

// taken says whether the job's change of this number is this one.
func (j *job) taken(attempt int, c *change) (bool, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mayChange(); err != nil {
		return false, err
	}
	if j.life.Attempt != attempt || int64(len(j.life.Changes)) < c.Number {
		return false, nil
	}
	same := j.life.Changes[c.Number-1]
	return same.What == c.What && same.Token == c.Token && len(same.Channels) == len(c.Channels) && slices.Equal(same.About, c.About), nil
}

// mayChange is nil while the job runs. j.mu is held.
func (j *job) mayChange() error {
	if j.life.Phase != wsdl.JobStateRunning || j.compiled == nil {
		return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("job %s is %s: only a running job has queues", j.id, j.life.Phase),
			"look at the job's state (`mvm job "+j.id+"`)")
	}
	return nil
}

// leaves says that the job's processes have all succeeded, and its nodes may still
// let those outside take what is left. j.mu is held.
func (j *job) leaves() bool {
	return j.life.Phase == wsdl.JobStateTerminating && j.life.Outcome == succeed && j.compiled != nil
}

// wiring is that of the job's running attempt, or the fault that says why there
// is none.
func (j *job) wiring() (w *wiring, attempt int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mayChange(); err != nil {
		return nil, 0, err
	}
	return j.wiringLocked()
}

// plannedWiring is wiring for who asks where a queue is, as long as it is anywhere.
func (j *job) plannedWiring() (w *wiring, attempt int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.mayChange(); err != nil && !j.leaves() {
		return nil, 0, err
	}
	return j.wiringLocked()
}

func (j *job) wiringLocked() (w *wiring, attempt int, err error) {
	w = newWiring(newLayout(j.compiled, j.life.Members, j.broker.url()), slices.Clone(j.life.Changes))
	for i := range j.life.Processes {
		if p := &j.life.Processes[i]; p.ended() {
			w.exited[p.ID] = true
		}
	}
	return w, j.life.Attempt, nil
}

// awaitChange answers a change once it is no longer pending, or after millis.
func (b *Service) awaitChange(ctx context.Context, j *job, attempt int, number int64, millis int32) (*wsdl.ChangeStatus, error) {
	over := make(chan struct{})
	defer b.clock.AfterFunc(min(max(0, time.Duration(millis)*time.Millisecond), maxWait), func() { close(over) })()
	for {
		j.mu.Lock()
		err, moved := j.mayChange(), j.changed
		if err == nil && (j.life.Attempt != attempt || number > int64(len(j.life.Changes))) {
			err = wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("attempt %d at job %s has no change %d", j.life.Attempt, j.id, number), "changes end with their attempt; ListQueues lists them")
		}
		var s *wsdl.ChangeStatus
		if err == nil {
			s = j.life.Changes[number-1].wire(attempt)
		}
		j.mu.Unlock()
		if err != nil || *s.State != wsdl.ChangeStatePending || millis <= 0 {
			return s, err
		}
		select {
		case <-moved:
		case <-over:
			millis = 0
		case <-ctx.Done():
			millis = 0
		case <-b.ctx.Done():
			return nil, b.stopping()
		}
	}
}

func (c *change) wire(attempt int) *wsdl.ChangeStatus {
	return &wsdl.ChangeStatus{Number: c.Number, Attempt: int32(attempt), What: clean(c.What), Queue: c.Queue, State: wsdl.Of(c.State), Reason: clean(c.Reason)}
}

// changesOf are those that a list shows: the newest first.
func (w *wiring) changesOf(attempt int) []*wsdl.ChangeStatus {
	var all []*wsdl.ChangeStatus
	done := 0
	for i := len(w.changes) - 1; i >= 0; i-- {
		c := &w.changes[i]
		if c.State != wsdl.ChangeStatePending {
			if done++; done > shownDone {
				continue
			}
		}
		all = append(all, c.wire(attempt))
	}
	return all
}

// Pauses between two questions how far a step is.
const (
	stepPause = 10 * time.Millisecond
	stepMost  = time.Second
)

// callChange makes a change at all nodes that take part, step by step.
func (j *job) callChange(number int, n int64) {
	b, ctx := j.broker, j.calls
	if ctx == nil {
		return // the attempt is over already
	}
	changes := slices.Clone(j.life.Changes)
	w := newWiring(j.layout, changes[:n])
	c := &changes[n-1]
	proxies := make([]proxyRecord, len(j.life.Members))
	for i := range j.life.Members {
		proxies[i] = j.life.Members[i].proxy()
	}
	b.spawn(func() {
		for step, members := range w.concerned(c) {
			for pause, patient := stepPause, true; patient; pause = min(2*pause, stepMost) {
				waits, made, err := b.makeStep(ctx, w, j.id, number, c, step, members, proxies)
				switch {
				case ctx.Err() != nil:
					return
				case err != nil && !transient(wsdl.CodeOf(err)):
					message := err.Error()
					if f := faultOf(err); f != nil {
						message = f.Message
					}
					if undone := c.undone(w, step, members, made); len(undone) > 0 && !j.takeBack(ctx, w, number, c, undone, message) {
						return
					}
					j.post(changed{Attempt: number, Number: n, State: wsdl.ChangeStateFailed, Reason: message}, nil)
					return
				case err != nil:
					waits = "for an answer: " + err.Error()
				}
				if patient = waits != ""; !patient {
					break
				}
				if pause >= stepMost/2 { // it takes long enough to be told
					j.post(changed{Attempt: number, Number: n, State: wsdl.ChangeStatePending, Reason: clip(clean(waits), maxMessage)}, nil)
				}
				if !b.sleepIn(ctx, b.jitter(pause)) {
					return
				}
			}
		}
		j.post(changed{Attempt: number, Number: n, State: wsdl.ChangeStateDone}, nil)
	})
}

// undone are the members who take back what a change has made so far, when it is refused
// in a step that some of them, or none, may have made. From where items may have begun
// to move nothing is taken back: they would be lost.
func (c *change) undone(w *wiring, step int, members []int, made bool) []int {
	switch {
	case step == makeStep:
		return members
	case len(c.Channels) == 0 || made, step != leaveStep && (step != switchStep || len(c.Forward) > 0):
		return nil
	}
	all := slices.Concat(w.concerned(c)[makeStep], members)
	slices.Sort(all)
	return slices.Compact(all)
}

// takeBack has members discard what they made, or are still to make, of a change that
// one of them refused: else ports would lead to rings that nobody else knows. False
// when the attempt is over.
func (j *job) takeBack(ctx context.Context, w *wiring, number int, c *change, members []int, why string) bool {
	b := j.broker
	for pause := stepPause; ; pause = min(2*pause, stepMost) {
		_, _, err := b.makeStep(ctx, w, j.id, number, c, discardStep, members, nil)
		if err == nil || ctx.Err() == nil && !transient(wsdl.CodeOf(err)) { // who cannot has nothing left of the attempt
			return true
		}
		if pause >= stepMost/2 {
			j.post(changed{Attempt: number, Number: c.Number, State: wsdl.ChangeStatePending, Reason: clip(clean("it failed, and is taken back: "+why), maxMessage)}, nil)
		}
		if !b.sleepIn(ctx, b.jitter(pause)) {
			return false
		}
	}
}

// makeStep asks members at once to make one step, and says what is still waited
// for: "" when all have made it. made says that one of them may have.
func (b *Service) makeStep(ctx context.Context, w *wiring, job string, attempt int, c *change, step int, members []int, proxies []proxyRecord) (waits string, made bool, err error) {
	answers, failed := make([]*wsdl.ApplyChangeResponse, len(members)), make([]error, len(members))
	var all sync.WaitGroup
	for k, i := range members {
		all.Go(func() {
			request := w.applyChange(job, attempt, c, step, i, proxies)
			try, cancel := context.WithTimeout(ctx, b.config.InstantiateTimeout)
			defer cancel()
			b.pass("before ApplyChange")
			answers[k], failed[k] = b.queueOf(&w.plan.members[i]).ApplyChangeContext(try, request)
			b.pass("after ApplyChange")
		})
	}
	all.Wait()
	for k, i := range members {
		name := w.plan.members[i].label()
		made = made || failed[k] == nil || transient(wsdl.CodeOf(failed[k]))
		switch {
		case failed[k] != nil:
			// What will not pass counts before what may.
			if err == nil || transient(wsdl.CodeOf(err)) {
				err = failed[k]
				if f := faultOf(err); f != nil {
					told := *f
					told.Message = "node " + name + ": " + f.Message
					err = &told
				}
			}
		case !wsdl.Or(answers[k].Done, false) && waits == "":
			waits = w.unswitched(answers[k].Switch_)
			if waits == "" {
				waits = "node " + name + " has not made it yet"
			}
		}
	}
	return waits, made, err
}

// unswitched says which producer has not ended its edge yet.
func (w *wiring) unswitched(states []*wsdl.SwitchState) string {
	for _, s := range states {
		if id := wsdl.Or(s.Channel, -1); !wsdl.Or(s.Written, false) && id >= 0 && int(id) < len(w.channels) {
			return w.label(w.channels[id].From) + " has not come to it yet: a producer does between two items, when it enqueues next"
		}
	}
	return ""
}

// applyChange is one member's part in one step of a change.
func (w *wiring) applyChange(job string, attempt int, c *change, step, i int, proxies []proxyRecord) *wsdl.ApplyChange {
	r := &wsdl.ApplyChange{Attempt: w.plan.fence(job, attempt, i), Number: c.Number, Step: int32(step)}
	if step == makeStep || step == alterStep {
		r.QueueLimits = w.wants(i)
	}
	switch step {
	case meetStep:
		met := map[int]bool{}
		for k := range c.Channels {
			from, to := w.ends(&c.Channels[k])
			if other := from + to - i; from != to && (from == i || to == i) && !met[other] {
				met[other] = true
				peer := &w.plan.members[other]
				r.Peer = append(r.Peer, &wsdl.Peer{Node: peer.peer(), Address: proxies[other].Address, Fingerprint: proxies[other].Fingerprint})
			}
		}
	case makeStep, leaveStep:
		w.makes(r, c, step, i)
	case discardStep:
		r.Discard = &wsdl.Discard{}
		for k := range c.Channels {
			r.Discard.Channel = append(r.Discard.Channel, &wsdl.Switch{Channel: wsdl.Of(int32(c.Channels[k].ID))})
		}
		for _, q := range c.Queues {
			r.Discard.Queue = append(r.Discard.Queue, &wsdl.ServedQueueChange{Id: int32(q.ID)})
		}
	case alterStep, followStep:
		a := c.Alter
		alter := &wsdl.ServedQueueChange{Id: int32(a.Queue.ID)}
		if a.Type {
			alter.Type_ = wsdl.Of(wsdl.QueueType(a.Queue.Type))
		}
		if a.Full {
			alter.Full = wsdl.Of(wsdl.FullPolicy(a.Queue.Full))
		}
		if a.Capacity {
			alter.Capacity = int32(a.Queue.Capacity)
		}
		if a.Steps {
			alter.Encoders = &wsdl.EncoderChain{Encoder: encodersOf(a.Queue.Steps)}
		}
		if a.Rule {
			alter.Rule = &a.Queue.Rule
		}
		if step == alterStep {
			r.Build = w.builds(c, a.Queue.ID)
		}
		if a.Link {
			if alter.Link = a.Queue.Link.Document(); alter.Link == nil {
				alter.Link = &wsdl.Link{}
			}
		}
		r.Alter = append(r.Alter, alter)
	case switchStep:
		for _, s := range c.Switches {
			if from, _ := w.ends(&w.channels[s.Channel]); from != i {
				continue
			}
			one := &wsdl.Switch{Channel: wsdl.Of(int32(s.Channel))}
			if s.Next >= 0 {
				one.Next = wsdl.Of(int32(s.Next))
			}
			r.Switch_ = append(r.Switch_, one)
		}
	}
	return r
}

// makes adds what member i has to make in a step: its ends of channels, and the
// queues at their ends. The channel of what a taker left is made before it is filled.
func (w *wiring) makes(r *wsdl.ApplyChange, c *change, step, i int) {
	y := w.plan
	end := func(e, other profile.End) *wsdl.ChannelEnd {
		switch holder := w.holder(e, other); {
		case e.Outside != "":
			return &wsdl.ChannelEnd{Outside: e.Outside}
		case holder != i:
			return &wsdl.ChannelEnd{Peer: y.members[holder].peer(), Queue: int32(e.Queue)}
		case e.Queue > 0:
			return &wsdl.ChannelEnd{Queue: int32(e.Queue)}
		}
		return &wsdl.ChannelEnd{Process: wsdl.Of(int32(e.Process)), Port: e.Port}
	}
	queues := map[int]bool{}
	for k, q := range c.Queues {
		if c.Homes[k] == i && step == makeStep {
			queues[q.ID] = true
			r.Build = append(r.Build, w.builds(c, q.ID)...)
		}
	}
	for k := range c.Channels {
		made := &c.Channels[k]
		from, to := w.ends(made)
		late := slices.Contains(c.Forward, made.ID) && from == i && to != i
		if from != i && to != i || late != (step == leaveStep) {
			continue
		}
		channel := &wsdl.Channel{Id: wsdl.Of(int32(made.ID)), Capacity: int32(made.Capacity), From: end(made.From, made.To), To: end(made.To, made.From)}
		if made.To.Queue > 0 && made.From.Queue == 0 {
			channel.Label = y.label(made.From)
		}
		if before, there := c.AfterOut[made.ID]; there && from == i {
			channel.AfterOut = wsdl.Of(int32(before))
		}
		if before, there := c.AfterIn[made.ID]; there && to == i {
			channel.AfterIn = wsdl.Of(int32(before))
		}
		channel.Forward = slices.Contains(c.Forward, made.ID)
		r.Channel = append(r.Channel, channel)
		if q := made.From.Queue + made.To.Queue; q > 0 {
			queues[q] = true
		}
	}
	for _, id := range c.Resume {
		if from, _ := w.ends(&w.channels[id]); from == i && step == leaveStep {
			r.Resume = append(r.Resume, &wsdl.Switch{Channel: wsdl.Of(int32(id))})
		}
	}
	for id := range w.queues {
		if queues[id+1] {
			r.Queue = append(r.Queue, served(&w.queues[id]))
		}
	}
}

// wants is what the job's queues and channels ask of member i once the change is made.
func (w *wiring) wants(i int) *wsdl.QueueLimits {
	var channels []int
	for id := range w.channels {
		if _, over := w.ended[id]; over && !w.forwards[id] {
			continue
		}
		if from, to := w.ends(&w.channels[id]); from == i || to == i {
			channels = append(channels, id)
		}
	}
	return wants(i, w.channels, channels, w.queues, w.homes)
}

// compilers says which member that keeps a queue cannot build what a change has
// registered for it.
func (w *wiring) compilers(c *change, nodes []*wsdl.Node) error {
	queues, homes := c.Queues, c.Homes
	if c.Alter != nil {
		queues, homes = []profile.Queue{c.Alter.Queue}, []int{w.homes[c.Alter.Queue.ID-1]}
	}
	for k := range queues {
		m := &w.plan.members[homes[k]]
		at := slices.IndexFunc(nodes, func(n *wsdl.Node) bool { return n.Id == m.Node })
		if at < 0 {
			continue // it answers for itself
		}
		names := queues[k].Programs()
		for _, s := range c.Sources {
			has := slices.ContainsFunc(nodes[at].Compiler, func(c *wsdl.Compiler) bool { return c != nil && string(wsdl.Or(c.Language, "")) == s.Language })
			if slices.Contains(names, s.Name) && !has {
				f := conflictf("node %s keeps the queue %s and cannot build %s: it has no compiler for %s", m.label(), queues[k].Name, s.Name, s.Language)
				f.Advice = "register it in a language that the node has (`mvm nodes`)"
				return f
			}
		}
	}
	return nil
}

// builds are the registered codecs and rule that a queue's home needs.
func (w *wiring) builds(c *change, queue int) (builds []*wsdl.Build) {
	names := w.queues[queue-1].Programs()
	for _, s := range c.Sources {
		if slices.Contains(names, s.Name) {
			builds = append(builds, buildOf(s))
		}
	}
	return builds
}

// restoreChanges puts journalled changes into a life, in their order.
func (l *life) restoreChanges(found map[int64]change) error {
	for n := int64(1); n <= int64(len(found)); n++ {
		c, there := found[n]
		if !there || c.Number != n {
			return fmt.Errorf("broker: journal: attempt %d has %d changes, and none is number %d", l.Attempt, len(found), n)
		}
		l.Changes = append(l.Changes, c)
	}
	return nil
}
