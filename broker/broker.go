// Package broker takes job profiles and drives each job to its end: it
// journals it, picks its job group, awakens the nodes, instantiates the
// processes, listens to their reports, terminates the group and keeps the
// results (paper, section 4, a to g).
//
// What always holds: a job whose id was returned is in the journal and ends
// exactly once, with its results or a reason; of two attempts at a job, the
// second begins only when nothing of the first can run any more; what decides
// is a pure state machine (life), and whatever it decides is durable before
// anything is done about it; no slow node holds up another job.
//
// It must never import node: the two meet through the WSDL contracts only, also
// when they share a process.
package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/wsdl"
)

// Config says what a broker works with and how patient it is. The durations
// and counts have defaults.
type Config struct {
	Journal Journal
	Blobs   Blobs
	Caller  wsdl.Caller
	// URL is this node's base, http://host:port. Nodes report to its broker
	// service, fetch blobs from it and push results to it.
	URL func() string
	Log *logrus.Logger // nil: discarded

	// Lease must be what the information service gives nodes: how long after it
	// sent a heartbeat a node may keep what the answer named. Default 10 s.
	Lease time.Duration
	// Grace is how long a program has between SIGTERM and SIGKILL. Default 2 s.
	Grace time.Duration
	// Drift is what two machines' clocks may disagree by over a Lease. Default 1 s.
	Drift time.Duration
	// Drop is how long, beyond Grace, Terminate may go unanswered before the
	// attempt's lease is left to run out. Default 3 s.
	Drop time.Duration
	// Flush is how long a terminated node's last reports are waited for: longer
	// than a node pauses between two tries, up to 6 s, or a job that ended well
	// while the broker was away would be called failed. Default 8 s.
	Flush time.Duration
	// Slack is how long beyond a job's wall time its nodes may take to end it
	// themselves. Default 10 s.
	Slack time.Duration

	AwakenTimeout      time.Duration // fetch and build included; default 15 min
	InstantiateTimeout time.Duration // default 60 s
	TerminateTimeout   time.Duration // of one try; default 15 s
	Patience           time.Duration // how long an unreachable node is called again; default 3 s
	Backoff            time.Duration // before a refused job is placed again, doubled with each; default 100 ms
	BackoffMax         time.Duration // default 10 s

	KeepJobs int           // ended jobs that are remembered; default 10,000
	KeepFor  time.Duration // and for how long; 0 = as long as KeepJobs allows

	// Clock and Jitter are for tests; the defaults are the real ones. Jitter
	// returns a duration in [d/2, d].
	Clock  Clock
	Jitter func(d time.Duration) time.Duration
	// Pass, if set, is told each point of Points that the broker passes, on the
	// goroutine that does, and may end the process there. It is for tests.
	Pass func(point string)
}

// Clock tells the time and wakes. The real one counts monotonic time, which
// stands still while the machine sleeps: waits only become longer by that.
type Clock interface {
	Now() time.Time
	// AfterFunc calls f on its own goroutine after d, unless stop is called first.
	AfterFunc(d time.Duration, f func()) (stop func())
}

type realClock struct{}

func (realClock) Now() time.Time { return time.Now() }

func (realClock) AfterFunc(d time.Duration, f func()) func() {
	t := time.AfterFunc(d, f)
	return func() { t.Stop() }
}

func realJitter(d time.Duration) time.Duration {
	if d <= 1 {
		return d
	}
	return d/2 + rand.N(d/2+1)
}

// Service is the broker. Its methods may be called concurrently; they wait
// until Run has read the journal.
type Service struct {
	wsdl.BrokerWithoutContext
	config  Config
	rules   rules
	journal Journal
	images  Blobs
	caller  wsdl.Caller
	url     func() string
	log     *logrus.Logger
	clock   Clock
	jitter  func(time.Duration) time.Duration

	ready chan struct{}   // closed when the journal has been read
	over  chan struct{}   // closed when Run returns
	ctx   context.Context // ends with Run; set before ready is closed

	stop      context.CancelCauseFunc
	epoch     int64 // revision of epochKey when this broker took over
	scheduler *scheduler
	profiles  *registry
	pins      *pins
	kept      *bag // what registered profiles refer to

	work sync.WaitGroup // every goroutine of the broker; see spawn

	admin sync.Mutex // one change to the queues of jobs, or move in them, at a time

	mu     sync.Mutex         // guards all below
	jobs   map[string]*job    // by id
	order  []string           // ids, ascending
	tokens map[string]*accept // by the client's token
	ended  int                // how many jobs of order have ended
	active map[*job]struct{}  // jobs with members
	last   uint64             // the newest id, as a number
	closed bool               // Run returns: no goroutine begins any more
	prune  chan struct{}      // holds a token when jobs may be forgotten
}

// accept is a submission that a token stands for: done is closed once id or err
// is set.
type accept struct {
	done chan struct{}
	id   string
	err  error
}

var (
	_ wsdl.BrokerContext  = (*Service)(nil)
	_ wsdl.BrokerPortType = (*Service)(nil)
)

// New makes a broker. It serves once Run has read the journal.
func New(c Config) (*Service, error) {
	switch {
	case c.Journal == nil:
		return nil, errors.New("broker: it needs a journal")
	case c.Blobs == nil:
		return nil, errors.New("broker: it needs an image store")
	case c.Caller == nil:
		return nil, errors.New("broker: it needs a caller")
	case c.URL == nil:
		return nil, errors.New("broker: it needs this node's address")
	}
	for _, d := range []struct {
		value *time.Duration
		or    time.Duration
	}{
		{&c.Lease, 10 * time.Second}, {&c.Grace, 2 * time.Second}, {&c.Drift, time.Second},
		{&c.Drop, 3 * time.Second}, {&c.Flush, 8 * time.Second}, {&c.Slack, 10 * time.Second},
		{&c.AwakenTimeout, 15 * time.Minute}, {&c.InstantiateTimeout, time.Minute},
		{&c.TerminateTimeout, 15 * time.Second}, {&c.Patience, 3 * time.Second},
		{&c.Backoff, 100 * time.Millisecond}, {&c.BackoffMax, 10 * time.Second},
	} {
		if *d.value <= 0 {
			*d.value = d.or
		}
	}
	if c.KeepJobs <= 0 {
		c.KeepJobs = 10_000
	}
	if c.Clock == nil {
		c.Clock = realClock{}
	}
	if c.Jitter == nil {
		c.Jitter = realJitter
	}
	if c.Log == nil {
		c.Log = logrus.New()
		c.Log.SetOutput(io.Discard)
	}
	b := &Service{
		config:  c,
		rules:   rules{Lease: c.Lease, Grace: c.Grace, Drift: c.Drift, Drop: c.Drop, Flush: c.Flush, Slack: c.Slack},
		journal: c.Journal,
		images:  c.Blobs,
		caller:  c.Caller,
		url:     c.URL,
		log:     c.Log,
		clock:   c.Clock,
		jitter:  c.Jitter,
		ready:   make(chan struct{}),
		over:    make(chan struct{}),
		jobs:    map[string]*job{},
		tokens:  map[string]*accept{},
		active:  map[*job]struct{}{},
		prune:   make(chan struct{}, 1),
	}
	b.Server = b
	b.pins = &pins{images: c.Blobs, entries: map[string]*pin{}}
	b.kept = &bag{pins: b.pins}
	b.scheduler = newScheduler(b)
	b.profiles = &registry{broker: b, newest: map[registryKey]int32{}, known: map[registryKey]map[int32]*registered{}}
	return b, nil
}

// Run reads the journal, goes on with every job that has not ended, and serves
// until ctx ends. It then stops where it is, as a crash would: what the journal
// holds is enough to go on. It returns an error when the journal cannot be read,
// or when another broker has taken it over. Call it once.
func (b *Service) Run(ctx context.Context) error {
	ctx, stop := context.WithCancelCause(ctx)
	b.stop = stop
	defer close(b.over)
	defer func() {
		stop(nil)
		b.mu.Lock()
		b.closed = true
		b.mu.Unlock()
		b.work.Wait()
	}()
	b.ctx = ctx
	changes := b.journal.WatchNodes(ctx)
	if err := b.takeOver(ctx); err != nil {
		stop(err)
		return err
	}
	if err := b.recover(ctx); err != nil {
		return err
	}
	b.pass("recovered")
	close(b.ready)
	b.spawn(func() { b.forget(ctx) })
	b.scheduler.run(ctx, changes)
	if d := new(deposed); errors.As(context.Cause(ctx), &d) {
		return d
	}
	return nil
}

// spawn runs f on a goroutine that Run waits for; it is false, and f does not
// run, once Run returns.
func (b *Service) spawn(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.work.Go(f)
	return true
}

// up waits until the broker can answer.
func (b *Service) up(ctx context.Context) error {
	select {
	case <-b.ready:
	case <-b.over:
		return b.stopping()
	case <-ctx.Done():
		return wsdl.NewFault(wsdl.FaultCodeUnavailable, "the broker is still reading its journal", "call again in a moment")
	}
	if b.ctx.Err() != nil {
		return b.stopping()
	}
	return nil
}

// stopping is the fault of a broker that has ended, or is about to.
func (b *Service) stopping() error {
	if d := new(deposed); errors.As(context.Cause(b.ctx), &d) {
		return d.fault()
	}
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, "the broker is stopping", "call again in a moment")
}

// unwritten is the fault for what could not be journalled.
func (b *Service) unwritten(what, advice string) error {
	if b.ctx.Err() != nil {
		return b.stopping()
	}
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, what, advice)
}

// sleep waits for d; it is false when the broker ended before.
func (b *Service) sleep(d time.Duration) bool { return b.sleepIn(b.ctx, d) }

func (b *Service) sleepIn(ctx context.Context, d time.Duration) bool {
	over := make(chan struct{})
	stop := b.clock.AfterFunc(d, func() { close(over) })
	defer stop()
	select {
	case <-over:
		return true
	case <-ctx.Done():
		return false
	}
}

// job returns the job with this id, or a fault.
func (b *Service) job(id string) (*job, error) {
	b.mu.Lock()
	j := b.jobs[id]
	b.mu.Unlock()
	if j == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("no job %q is known", id),
			"look at the ids that ListJobs answers (`mvm jobs`); jobs that ended long ago are forgotten")
	}
	return j, nil
}

// add makes a job known.
func (b *Service) add(j *job) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.jobs[j.id] = j
	if n := len(b.order); n == 0 || b.order[n-1] < j.id {
		b.order = append(b.order, j.id)
	} else {
		at, _ := slices.BinarySearch(b.order, j.id)
		b.order = slices.Insert(b.order, at, j.id)
	}
	if final(j.status().Phase) {
		b.ended++
	}
}

// setActive keeps track of the jobs whose members' fate matters.
func (b *Service) setActive(j *job, active bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if active {
		b.active[j] = struct{}{}
	} else {
		delete(b.active, j)
	}
}

func (b *Service) activeJobs() []*job {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := make([]*job, 0, len(b.active))
	for j := range b.active {
		all = append(all, j)
	}
	return all
}

// forget removes the oldest ended jobs until ctx ends.
func (b *Service) forget(ctx context.Context) {
	for {
		stop := func() {}
		if b.config.KeepFor > 0 {
			stop = b.clock.AfterFunc(b.config.KeepFor/8, b.pruneSoon)
		}
		select {
		case <-ctx.Done():
			stop()
			return
		case <-b.prune:
			stop()
		}
		for _, j := range b.forgettable() {
			if err := b.forgetJob(j); err != nil {
				if ctx.Err() == nil {
					b.log.WithError(err).WithField("job", j.id).Error("an old job could not be forgotten")
				}
				break
			}
		}
	}
}

func (b *Service) forgettable() []*job {
	b.mu.Lock()
	defer b.mu.Unlock()
	tooMany := b.ended - b.config.KeepJobs
	now := b.clock.Now()
	var old []*job
	for _, id := range b.order {
		if tooMany <= 0 && b.config.KeepFor <= 0 {
			break
		}
		j := b.jobs[id]
		s := j.status()
		if !final(s.Phase) {
			continue
		}
		aged := b.config.KeepFor > 0 && now.Sub(s.Ended) > b.config.KeepFor
		if tooMany <= 0 && !aged {
			break
		}
		tooMany--
		old = append(old, j)
	}
	return old
}
