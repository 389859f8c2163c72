package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/sirupsen/logrus"

	"mvm/node/build"
	"mvm/node/mvm"
	"mvm/queuevm"
	"mvm/wsdl"
)

// runner does what the ledger orders for one attempt: it owns the attempt's
// MVM process, work folder and reports. load, spawn and end are each ordered
// once; end waits for the others.
type runner struct {
	node    *Node
	key     key
	request *wsdl.Awaken
	work    string
	log     *logrus.Entry

	ctx    context.Context // ends when the attempt is to end
	cancel context.CancelFunc
	busy   sync.WaitGroup // load and spawn
	hard   chan struct{}  // closed when no grace is left
	harden sync.Once

	changing  sync.Mutex    // one live change's logic is built at a time
	mu        sync.Mutex    // guards what follows
	vm        *enclosure    // in which it runs, instead of process; nil = none
	until     time.Duration // its lease ends, on the node's clock
	told      time.Duration // when the MVM process was told that it does
	process   process
	answer    *wsdl.AwakenResponse
	elsewhere string            // where the proxy is reached, once the VM around this node has moved
	plan      *wsdl.Instantiate // nil until Instantiate came
	artifacts map[string]string // source -> folder
	held      []string          // keys of the builds that the cache must keep
	listening sync.WaitGroup    // the goroutine that reads events
	statuses  map[int]*wsdl.ProcessStatus
	unkept    map[int]string // of processes: what of their streams could not be kept
	specs     map[int]*wsdl.ProcessSpec
	sequence  int64
	starting  bool  // load or spawn is at work
	starved   error // that the disk became nearly full meanwhile, by this attempt
	traffic   mvm.Traffic
	untold    bool   // traffic changed since the last report
	quiet     uint64 // the quiet period that the next report tells of
	reason    string // why it ends, once it does
	ending    bool
	sketch    sketch // of the work folder before programs started, if another can have it
}

func newRunner(n *Node, k key, request *wsdl.Awaken) *runner {
	name := strings.Map(func(c rune) rune {
		if c < 0x80 && (unicode.IsLetter(c) || unicode.IsDigit(c) || c == '-') {
			return c
		}
		return '_'
	}, k.job)
	name = fmt.Sprintf("%.60s.%d.%s", name, k.number, random(4))
	r := &runner{
		node: n, key: k, request: request,
		work:      filepath.Join(n.folders.work, name),
		log:       n.log.WithField("attempt", k.String()),
		hard:      make(chan struct{}),
		artifacts: map[string]string{},
		statuses:  map[int]*wsdl.ProcessStatus{},
		unkept:    map[int]string{},
		specs:     map[int]*wsdl.ProcessSpec{},
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	return r
}

// attempt is the fence that reports carry.
func (r *runner) attempt() *wsdl.Attempt {
	return &wsdl.Attempt{Job: r.key.job, Number: int32(r.key.number), Node: r.node.id, Incarnation: r.node.incarnation}
}

// load makes the attempt ready: blobs, MVM process, builds.
func (r *runner) load() *wsdl.Fault {
	if r.request.Vm != nil {
		return r.enclose()
	}
	if d, err := diskOf(r.node.folders.work); err == nil && d.free < d.floor() {
		return r.noRoom(fmt.Errorf("%s must stay free", amount(d.floor())))
	}
	if err := r.node.shelf.take(r.work); err != nil {
		return r.fault("make its work folder", err)
	}
	r.begin()
	r.node.running.Go(r.guard)
	// The blobs come while the process starts.
	fetched := make(chan error, 1)
	go func() { fetched <- r.fetch(r.ctx) }()
	if err := r.launch(r.ctx); err != nil {
		r.cancel()
		<-fetched
		return r.fault("start its MVM process", err)
	}
	if err := <-fetched; err != nil {
		return r.fault("fetch its files", err)
	}
	answer := &wsdl.AwakenResponse{Fingerprint: r.process.Ready().Fingerprint}
	var err error
	if answer.Address, err = r.publish(r.ctx, r.process.Ready().Address); err != nil {
		return r.fault("publish its proxy", err)
	}
	builds := make([]*wsdl.BuildStatus, len(r.request.Build))
	failed := make([]error, len(builds))
	var all sync.WaitGroup
	for i, b := range r.request.Build {
		all.Go(func() { builds[i], failed[i] = r.build(r.ctx, i, b) })
	}
	all.Wait()
	for i, err := range failed {
		if err != nil {
			return r.fault("build source "+r.request.Build[i].Source, err)
		}
	}
	answer.Build = builds
	r.mu.Lock()
	answer.Address = cmp.Or(r.elsewhere, answer.Address)
	r.answer = answer
	r.mu.Unlock()
	return r.begun("load it")
}

// begin and begun stand around what has the disk's guard fail it, in place of
// ending the attempt.
func (r *runner) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting = true
}

func (r *runner) begun(what string) *wsdl.Fault {
	r.mu.Lock()
	r.starting = false
	starved := r.starved
	r.mu.Unlock()
	if starved != nil {
		return r.fault(what, starved)
	}
	return nil
}

// starve fails load or spawn where one is at work.
func (r *runner) starve(err error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.starting {
		r.starved = err
		r.cancel()
	}
	return r.starting
}

// publish is a proxy's address as others reach it.
func (r *runner) publish(ctx context.Context, local string) (string, error) {
	if r.node.config.Publish == nil || local == "" {
		return r.node.reachable(local), nil
	}
	public, withdraw, err := r.node.config.Publish(ctx, local, r.moved)
	if err == nil {
		context.AfterFunc(r.ctx, withdraw)
	}
	return public, err
}

// moved hears that others reach the proxy elsewhere from now on, since the VM has
// moved, and has the peers be told.
func (r *runner) moved(address string) {
	r.mu.Lock()
	r.elsewhere = address
	if r.answer != nil {
		r.answer.Address = address
	}
	p := r.process
	r.mu.Unlock()
	if p == nil {
		return
	}
	if _, err := p.Call(r.ctx, mvm.Request{Moved: &mvm.Moved{Address: address}}); err != nil && r.ctx.Err() == nil {
		r.log.WithError(err).Warn("the peers are not told that this node has moved")
	}
}

// fetch gets every blob that the attempt needs. The store keeps them for an
// hour from then without a pin; Instantiate comes long before.
func (r *runner) fetch(ctx context.Context) error {
	var digests []string
	for _, b := range r.request.Build {
		for _, f := range b.File {
			digests = append(digests, f.Digest)
		}
	}
	for _, f := range r.request.File {
		digests = append(digests, f.Digest)
	}
	return r.fetchAll(ctx, digests)
}

// fetchAll gets blobs that are not here yet.
func (r *runner) fetchAll(ctx context.Context, digests []string) error {
	slices.Sort(digests)
	digests = slices.Compact(digests)
	if len(digests) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	began := time.Now()
	work := make(chan string)
	failed := make(chan error, 4)
	var all sync.WaitGroup
	for range min(4, len(digests)) {
		all.Go(func() {
			for digest := range work {
				if err := r.node.images.Fetch(ctx, r.node.http, r.request.Image, digest); err != nil {
					failed <- err
					cancel()
					return
				}
			}
		})
	}
feed:
	for _, digest := range digests {
		select {
		case work <- digest:
		case <-ctx.Done():
			break feed
		}
	}
	close(work)
	all.Wait()
	select {
	case err := <-failed:
		return err
	default:
		r.log.WithFields(logrus.Fields{"blobs": len(digests), "micros": time.Since(began).Microseconds()}).Debug("blobs are here")
		return ctx.Err()
	}
}

// redialMost is the longest that a broker may have a cut link stay down.
const redialMost = time.Hour

// launch starts the MVM process and listens to it.
func (r *runner) launch(ctx context.Context) error {
	n := r.node
	start := mvm.Start{
		Attempt: r.key.String(), Node: cmp.Or(n.config.PeerID, n.id), Uplink: n.config.Uplink, WorkDir: r.work, Plain: n.plain, PlainLinks: n.config.PlainLinks,
		Library: n.library(ctx), Clients: n.folders.clients, StreamMax: n.streamMax,
		Confinement: n.launcher.Confinement().Level,
		Redial:      time.Duration(min(max(r.request.RedialMillis, 0), redialMost.Milliseconds())) * time.Millisecond,
	}
	if wsdl.Or(r.request.Proxy, false) {
		start.Listen = n.proxyListen
	}
	p, err := n.launcher.Launch(ctx, start)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.process = p
	r.mu.Unlock()
	r.listening.Go(func() { r.listen(p) })
	return nil
}

// build finds or makes the artifact of a source.
func (r *runner) build(ctx context.Context, i int, b *wsdl.Build) (*wsdl.BuildStatus, error) {
	began := time.Now()
	request := build.Request{Source: b.Source, Language: string(wsdl.Or(b.Language, "")), Flags: b.Flag}
	for _, f := range b.File {
		request.Files = append(request.Files, build.File{Name: f.Name, Digest: f.Digest})
	}
	made, err := r.artifact(ctx, fmt.Sprintf("build-%d", i), request, func(dir string) error { return lay(r.node.images, dir, b.File) })
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.artifacts[b.Source] = made.dir
	r.mu.Unlock()
	return &wsdl.BuildStatus{Source: b.Source, Digest: made.digest, Node: r.node.id, Cached: wsdl.Of(made.cached),
		Millis: wsdl.Of(time.Since(began).Milliseconds()), Output: made.output}, nil
}

// artifact is a finished build: its folder in the cache, its key there, and what
// the compiler printed, if it was built now.
type artifact struct {
	dir, digest, output string
	cached              bool
}

// artifact finds a build in the cache, which then keeps it while the attempt
// lives, or has the MVM process make it in a folder below the attempt's own, to
// which lay brings the files. The request says what to build, not where.
func (r *runner) artifact(ctx context.Context, folder string, request build.Request, lay func(dir string) error) (made artifact, err error) {
	n := r.node
	compiler, ok := build.For(request.Language, n.compilers.Compilers(ctx))
	if err := build.Check(request.Language, request.Flags, request.Files); err != nil {
		return made, wsdl.NewFault(wsdl.FaultCodeBuildFailed, fmt.Sprintf("source %s: %v", request.Source, err), advice(wsdl.FaultCodeBuildFailed))
	}
	if !ok {
		return made, wsdl.NewFault(wsdl.FaultCodeBuildFailed, fmt.Sprintf("source %s: node %s has no compiler for %s", request.Source, n.id, request.Language),
			"require the language, or install its compiler there")
	}
	folder = filepath.Join(r.work, folder)
	request.Dir, request.Out = filepath.Join(folder, "source"), filepath.Join(folder, "artifact")
	request.Compiler, request.Clients, request.Cache, request.GoCache = compiler, n.folders.clients, n.folders.cache, n.folders.goCache
	if made.digest, err = n.keys.Key(request); err != nil {
		return made, err
	}
	made.dir, made.cached, err = n.cache.get(ctx, made.digest, func() (string, error) {
		if err := lay(request.Dir); err != nil {
			return "", err
		}
		reply, err := r.process.Call(ctx, mvm.Request{Build: &request})
		if err != nil {
			return "", err
		}
		if reply.Build != nil {
			made.output = reply.Build.Output
		}
		return request.Out, nil
	})
	if err != nil {
		return made, err
	}
	r.mu.Lock()
	r.held = append(r.held, made.digest)
	r.mu.Unlock()
	if request.Language == build.Go && !made.cached {
		n.running.Go(n.trimGo)
	}
	return made, nil
}

// spawn sends the job instantiation message on to the MVM process.
func (r *runner) spawn() *wsdl.Fault {
	if e := r.enclosed(); e != nil {
		return e.instantiate()
	}
	r.begin()
	r.mu.Lock()
	plan, artifacts := r.plan, maps.Clone(r.artifacts)
	r.mu.Unlock()
	message := &mvm.Instantiate{WallTime: time.Duration(plan.WallTimeSeconds) * time.Second}
	for _, s := range plan.Process {
		spec, err := r.specify(s, artifacts)
		if err != nil {
			return r.fault(fmt.Sprintf("prepare process %d", wsdl.Or(s.Id, 0)), err)
		}
		message.Processes = append(message.Processes, spec)
	}
	for _, c := range plan.Channel {
		channel, err := channelOf(c)
		if err != nil {
			return r.fault("read a channel", err)
		}
		message.Channels = append(message.Channels, channel)
	}
	for _, q := range plan.Queue {
		queue, err := queueOf(q)
		if err != nil {
			return r.fault("read a queue", err)
		}
		message.Queues = append(message.Queues, queue)
	}
	message.Peers = peersOf(plan.Peer)
	var look sketch
	if len(plan.Process) == 1 && wsdl.Or(plan.Process[0].Id, 0) == 0 {
		look, _ = sketchOf(r.work) // it is removed otherwise
	}
	r.mu.Lock()
	r.sketch = look
	for _, s := range plan.Process {
		id := int(wsdl.Or(s.Id, 0))
		r.specs[id] = s
		r.statuses[id] = &wsdl.ProcessStatus{Id: wsdl.Of(int32(id)), Task: s.Task, Index: s.Index, Node: r.node.id, State: wsdl.Of(wsdl.ProcessStateWaiting)}
	}
	r.mu.Unlock()
	logic, err := logicOf(artifacts)
	if err != nil {
		return r.fault("prepare its registered codecs and rules", err)
	}
	message.Logic = logic
	if _, err := r.process.Call(r.ctx, mvm.Request{Instantiate: message, Lease: r.lease()}); err != nil {
		return r.fault("instantiate it", err)
	}
	return r.begun("instantiate it")
}

// keep tells the MVM process how long the attempt may go on, which is until the
// latest that keep was told, or a little less: should this process stand still,
// that one ends the attempt in its stead, a moment later than this one would.
func (r *runner) keep(until time.Duration) {
	r.mu.Lock()
	p := r.process
	// While jobs come and go there are many heartbeats, each for all attempts.
	enough := p == nil || until-r.told < leaseMargin/4
	r.until = max(r.until, until)
	r.mu.Unlock()
	if enough {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, leaseMargin)
	defer cancel()
	if _, err := p.Call(ctx, mvm.Request{Lease: r.lease()}); err != nil && r.ctx.Err() == nil {
		r.log.WithError(err).Warn("the MVM process was not told of its lease")
	}
}

// lease is what the MVM process is to be told, nil for nothing.
func (r *runner) lease() *mvm.Lease {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.until == 0 {
		return nil
	}
	r.told = r.until
	return &mvm.Lease{For: r.until + leaseMargin - r.node.clock.Now()}
}

// leaseMargin is well below what the broker waits beyond a lease: the grace of
// an end and the clocks' drift.
const leaseMargin = time.Second

// specify lays a process's input files and says how to start it.
func (r *runner) specify(s *wsdl.ProcessSpec, artifacts map[string]string) (mvm.ProcessSpec, error) {
	id := int(wsdl.Or(s.Id, 0))
	artifact, ok := artifacts[s.Source]
	processor := s.Source == ""
	if !ok && !processor {
		return mvm.ProcessSpec{}, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("process %d runs source %q, which Awaken did not name", id, s.Source), "name every source in Awaken")
	}
	command := s.Argument
	if !processor {
		var err error
		if command, err = build.Command(artifact, s.Argument); err != nil {
			return mvm.ProcessSpec{}, err
		}
	}
	if err := lay(r.node.images, processFolder(r.work, id), s.Input); err != nil {
		return mvm.ProcessSpec{}, err
	}
	spec := mvm.ProcessSpec{ID: id, Task: s.Task, Index: int(wsdl.Or(s.Index, 0)), Count: int(s.Count), Command: command, MemoryMiB: s.Memory, Processor: processor}
	for _, e := range s.Environment {
		spec.Environment = append(spec.Environment, e.Name+"="+e.Value)
	}
	return spec, nil
}

func endpoint(e *wsdl.ChannelEnd) queuevm.Endpoint {
	return queuevm.Endpoint{Process: int(wsdl.Or(e.Process, 0)), Port: e.Port, Peer: e.Peer, Outside: e.Outside, Queue: int(e.Queue)}
}

// end removes the attempt and returns the number of its last report. It is the
// one path for every ending. It returns when nothing is left; only a node that
// shuts down gives up before, and leaves the rest to its next life, which sweeps
// before it registers.
func (r *runner) end(order end) (sequence int64, gone bool) {
	r.mu.Lock()
	r.ending, r.reason = true, order.reason
	r.mu.Unlock()
	r.log.WithFields(logrus.Fields{"reason": order.reason, "grace": order.grace}).Info("attempt ends")
	if order.grace == 0 {
		r.kill()
	}
	r.cancel()
	r.busy.Wait()
	r.mu.Lock()
	p := r.process
	r.mu.Unlock()
	if p != nil {
		r.stop(p, order)
		r.listening.Wait()
	}
	e := r.enclosed()
	if e != nil {
		e.end(order)
	}
	r.finish(order)
	clean := func() error { return nil }
	switch {
	case e != nil:
		clean = e.remove
	case p != nil:
		clean = p.Clean
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		err := clean()
		if err == nil {
			break
		}
		r.log.WithError(err).Error("processes of it are left; trying again and again to end them")
		if r.node.unclean(r.key, err) {
			return 0, false
		}
		time.Sleep(pause)
	}
	r.clear(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range r.held {
		if err := r.node.cache.release(key); err != nil {
			r.log.WithError(err).Warn("an old build stays in the cache")
		}
	}
	return r.sequence, true
}

// clear gives the work folder to the shelf, or removes it.
func (r *runner) clear(p process) {
	r.mu.Lock()
	look := r.sketch
	r.mu.Unlock()
	// Only where the kernel has ended every process that could still have it open.
	if p != nil && p.Ready().Cleaning == mvm.PIDNamespace && r.node.shelf.put(r.work, look) {
		return
	}
	for delay := 10 * time.Millisecond; ; delay *= 2 {
		err := removeTree(r.work)
		if err == nil {
			return
		}
		if delay > 2*time.Second {
			r.log.WithError(err).Error("its work folder stays until the node starts again")
			return
		}
		time.Sleep(delay)
	}
}

// kill cuts the grace short.
func (r *runner) kill() { r.harden.Do(func() { close(r.hard) }) }

// politeness is how long an MVM process that was told to SIGKILL everything
// may take to say what became of it, before it is killed itself.
const politeness = 3 * time.Second

// patience is how long an MVM process may take to end its attempt as ordered. Without
// a grace it may leave those outside to take what is left.
func (o end) patience() time.Duration {
	if o.grace == 0 {
		return mvm.LeaveLimit + politeness
	}
	return o.grace + politeness
}

// stop ends the MVM process. Asked by the broker it first tells it to end its
// processes, so that their last words are heard; when the lease is over
// nothing may run any longer, and the kernel ends all at once.
func (r *runner) stop(p process, order end) {
	if order.asked {
		r.count(p)
		ctx, cancel := context.WithTimeout(context.Background(), order.patience())
		answered := make(chan struct{})
		go func() {
			defer close(answered)
			if _, err := p.Call(ctx, mvm.Request{Terminate: &mvm.Terminate{Grace: order.grace, Reason: order.reason}}); err != nil {
				r.log.WithError(err).Debug("the MVM process did not answer Terminate")
				return
			}
			select { // it exits by itself now
			case <-p.Done():
			case <-ctx.Done():
			}
		}()
		hard := r.hard
		if order.grace == 0 {
			hard = nil // it was told SIGKILL from the start
		}
		select {
		case <-answered:
		case <-hard:
		}
		cancel()
		<-answered
	}
	p.Kill()
	<-p.Done()
}

// count asks what the proxy has sent in all: items may have left after the last
// process ended.
func (r *runner) count(p process) {
	if !wsdl.Or(r.request.Proxy, false) {
		return // there is none
	}
	ctx, cancel := context.WithTimeout(context.Background(), politeness)
	defer cancel()
	reply, err := p.Call(ctx, mvm.Request{Inspect: &struct{}{}})
	if err != nil || reply.Inspect == nil {
		return // it is gone, or stuck: what is known will do
	}
	var sum mvm.Traffic
	for _, c := range reply.Inspect.Channels {
		if c.To.Peer != "" {
			items, bytes := crossed(c)
			sum.Items += items
			sum.Bytes += bytes
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if sum != r.traffic {
		r.traffic, r.untold = sum, true
	}
}

// noRoom refuses an attempt for want of room on a disk: it waits or goes
// elsewhere, as when slots are wanting.
func (r *runner) noRoom(why error) *wsdl.Fault {
	words := why.Error()
	if d, err := diskOf(r.node.folders.work); err == nil {
		words = fmt.Sprintf("%s, %s", d, words)
	}
	return wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s has no room for attempt %s on its disk: %s", r.node.id, r.key, words),
		"free some space there, or wait: it is tried again, there and elsewhere")
}

// fault makes of an error what the broker is told. A full disk is nobody's
// fault but the machine's: neither the source's nor the profile's.
func (r *runner) fault(what string, err error) *wsdl.Fault {
	var fault *wsdl.Fault
	var said *mvm.Error
	r.mu.Lock()
	starved := r.starved
	r.mu.Unlock()
	if starved != nil {
		if isFull(err) { // it says more
			what += ": " + err.Error()
		}
		return r.noRoom(fmt.Errorf("it could not %s: %w", what, starved))
	}
	if isFull(err) || errors.As(err, &said) && fullWords(said.Output) {
		return r.noRoom(fmt.Errorf("it could not %s: %w", what, err))
	}
	if errors.As(err, &fault) {
		return fault
	}
	var refused *mvm.Error
	if errors.As(err, &refused) {
		code := wsdl.FaultCode(refused.Code)
		if code == "" {
			code = wsdl.FaultCodeInternal
		}
		f := wsdl.NewFault(code, refused.Message, advice(code))
		f.Output = refused.Output
		return f
	}
	return r.internal(what, err)
}

// advice is what to do about an error that an MVM process answered.
func advice(code wsdl.FaultCode) string {
	switch code {
	case wsdl.FaultCodeBuildFailed:
		return "mend the source or its flags"
	case wsdl.FaultCodeNotFound:
		return "the job's status names its outside queues and their directions"
	case wsdl.FaultCodeTooLarge:
		return "send smaller items, or give the edge a larger capacity"
	case wsdl.FaultCodeConflict:
		return "ask the broker for the job's state: the queue is closed or the attempt is ending"
	case wsdl.FaultCodeUnavailable:
		return "ask the broker for the job's state: the attempt is ending, or has lost a node"
	case wsdl.FaultCodeTimeout:
		return "try again, or wait longer"
	}
	return "look into the node's log, or place the job elsewhere"
}

func (r *runner) internal(what string, err error) *wsdl.Fault {
	return wsdl.NewFault(wsdl.FaultCodeInternal, fmt.Sprintf("node %s could not %s for attempt %s: %v", r.node.id, what, r.key, err),
		"look into the node's log, or place the job elsewhere")
}
