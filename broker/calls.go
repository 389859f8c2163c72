package broker

import (
	"context"
	"sync"
	"time"

	"mvm/wsdl"
)

// queueOf is the queue service of a member.
func (b *Service) queueOf(m *member) *wsdl.QueueClient {
	return wsdl.NewQueueClient(b.caller, b.scheduler.queueURL(m))
}

// transient says whether the same call may work later: nobody answered, or
// nobody could.
func transient(code wsdl.FaultCode) bool {
	return code == wsdl.FaultCodeUnavailable || code == wsdl.FaultCodeTimeout
}

// insist makes a call again and again while it fails transiently, for as long
// as patience lasts. Every call to a node is idempotent.
func (b *Service) insist(ctx context.Context, patience, timeout time.Duration, call func(context.Context) error) error {
	patient := true
	over := make(chan struct{})
	defer b.clock.AfterFunc(patience, func() { close(over) })()
	pause := 20 * time.Millisecond
	for {
		try, cancel := context.WithTimeout(ctx, timeout)
		err := call(try)
		late := try.Err() != nil // whatever the caller made of it
		cancel()
		if err == nil || ctx.Err() != nil || !transient(wsdl.CodeOf(err)) && !late {
			return err
		}
		select {
		case <-over:
			patient = false
		default:
		}
		if !patient || !b.sleepIn(ctx, b.jitter(pause)) {
			return err
		}
		pause = min(2*pause, time.Second)
	}
}

func (j *job) callAwaken(number, i int) {
	b, ctx, y := j.broker, j.calls, j.layout
	b.spawn(func() {
		var answer *wsdl.AwakenResponse
		err := b.insist(ctx, b.config.Patience, b.config.AwakenTimeout, func(ctx context.Context) (err error) {
			b.pass("before Awaken")
			request := y.awaken(j.id, number, i)
			if y.job.Checkpoint > 0 {
				request.RedialMillis = b.config.redial().Milliseconds()
			}
			answer, err = b.queueOf(&y.members[i]).AwakenContext(ctx, request)
			b.pass("after Awaken")
			return err
		})
		switch {
		case ctx.Err() != nil:
			return // the attempt is over already
		case err != nil:
			e := refused{Attempt: number, Member: i, Code: wsdl.CodeOf(err), Message: err.Error()}
			if f := faultOf(err); f != nil {
				e.Message, e.Output = f.Message, f.Output
			}
			b.scheduler.avoid(y.members[i].Node, e.Code)
			j.post(e, nil)
			return
		}
		e := awoke{Attempt: number, Member: i, Address: answer.Address, Fingerprint: answer.Fingerprint}
		if t := answer.Trunk; t != nil {
			e.Trunk, e.TrunkKey = t.Address, t.Fingerprint
		}
		for _, s := range answer.Build {
			if s != nil {
				e.Builds = append(e.Builds, build{Source: s.Source, Digest: s.Digest, Node: y.members[i].Node,
					Cached: wsdl.Or(s.Cached, false), Millis: wsdl.Or(s.Millis, 0), Output: s.Output})
			}
		}
		j.post(e, nil)
	})
}

func (j *job) callInstantiate(number, i int) {
	b, ctx, y := j.broker, j.calls, j.layout
	// Only what Awaken answered, and the journal has, is in the life by now.
	proxies := make([]proxyRecord, len(j.life.Members))
	for k := range j.life.Members {
		proxies[k] = j.life.Members[k].proxy()
	}
	b.spawn(func() {
		request := y.instantiate(j.id, number, i, proxies)
		// A node that does not answer for a whole lease is lost, and told so.
		err := b.insist(ctx, b.config.Lease, b.config.InstantiateTimeout, func(ctx context.Context) error {
			b.pass("before Instantiate")
			_, err := b.queueOf(&y.members[i]).InstantiateContext(ctx, request)
			b.pass("after Instantiate")
			return err
		})
		switch {
		case ctx.Err() != nil:
		case err != nil:
			message := err.Error()
			if f := faultOf(err); f != nil {
				message = f.Message
			}
			j.post(unstarted{Attempt: number, Member: i, Code: wsdl.CodeOf(err), Message: message}, nil)
		default:
			j.post(instantiated{Attempt: number, Member: i}, nil)
		}
	})
}

// callTerminate calls until the node acknowledges or the life has done with it
// otherwise: its lease ran out, or it is back under another incarnation.
func (j *job) callTerminate(number int, a terminate) {
	b, ctx := j.broker, j.ends
	m := j.life.Members[a.Member]
	b.spawn(func() {
		request := &wsdl.Terminate{Attempt: fence(j.id, number, &m), GraceMillis: a.Grace.Milliseconds(), Reason: a.Reason}
		pause := 50 * time.Millisecond
		for ctx.Err() == nil {
			try, cancel := context.WithTimeout(ctx, a.Grace+b.config.TerminateTimeout)
			b.pass("before Terminate")
			answer, err := b.queueOf(&m).TerminateContext(try, request)
			b.pass("after Terminate")
			cancel()
			if err == nil {
				j.post(terminated{Attempt: number, Member: a.Member, Sequence: wsdl.Or(answer.Sequence, 0)}, nil)
				return
			}
			if ctx.Err() == nil {
				b.log.WithError(err).WithFields(map[string]any{"job": j.id, "attempt": number, "node": m.Node}).Warn("a node did not acknowledge that the attempt is over; calling again")
			}
			if !b.sleepIn(ctx, b.jitter(pause)) {
				return
			}
			pause = min(2*pause, 2*time.Second)
		}
	})
}

// callQuiet asks all members at once, and posts their answers together: a second
// round must not begin before all of the first are in.
func (j *job) callQuiet(number int, a ask) {
	b, ctx, y := j.broker, j.calls, j.layout
	if y == nil || ctx == nil {
		return // the attempt is over already
	}
	b.spawn(func() {
		e := answered{Attempt: number, Round: a.Round, Answers: make([]quiet, len(y.members))}
		var all sync.WaitGroup
		for i := range y.members {
			all.Go(func() {
				try, cancel := context.WithTimeout(ctx, b.config.InstantiateTimeout)
				defer cancel()
				answer, err := b.queueOf(&y.members[i]).GetQuietContext(try, &wsdl.GetQuiet{Attempt: y.fence(j.id, number, i), Waits: a.Round == 2})
				if err != nil {
					e.Answers[i].Failed = true
					return
				}
				e.Answers[i] = quiet{Quiet: wsdl.Or(answer.Quiet, false), Period: wsdl.Or(answer.Period, 0),
					Sent: wsdl.Or(answer.Sent, 0), Received: wsdl.Or(answer.Received, 0), Waits: y.waits(answer.Wait)}
			})
		}
		all.Wait()
		if ctx.Err() == nil {
			j.post(e, nil)
		}
	})
}

// waits names the ports and processes that a member's words are about. A node
// may say anything: what makes no sense is left out.
func (y *layout) waits(told []*wsdl.Wait) []waiting {
	var all []waiting
	for _, w := range told {
		if w == nil {
			continue
		}
		id := int(wsdl.Or(w.Channel, -1))
		if id < 0 || id >= len(y.job.Channels) {
			continue
		}
		c := &y.job.Channels[id]
		mine, other := c.To, c.From
		if wsdl.Or(w.Enqueues, false) {
			mine, other = c.From, c.To
		}
		if mine.Process < 0 || mine.Process != int(wsdl.Or(w.Process, -1)) {
			continue
		}
		queue := ""
		if other.Queue > 0 {
			queue = y.job.Queues[other.Queue-1].Name
		}
		all = append(all, waiting{Queue: queue, Process: mine.Process, Port: mine.Port, Enqueues: wsdl.Or(w.Enqueues, false),
			Depth: wsdl.Or(w.Depth, 0), Capacity: wsdl.Or(w.Capacity, 0), Other: other.Process})
	}
	return all
}
