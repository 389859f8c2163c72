package broker

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"mvm/services/image"
	"mvm/services/information"
	"mvm/services/store"
	"mvm/wsdl"
)

// grid is a broker over a real state store and a real image store, and nodes
// that are fakes: they keep the node's half of the rules, and run processes
// that are goroutines.
type grid struct {
	t      testing.TB
	store  *store.Store
	images *image.Store
	info   *information.Service
	config Config
	ttl    time.Duration // of the nodes' leases

	mu      sync.Mutex // guards all below
	broker  *Service
	cancel  context.CancelFunc
	stopped chan struct{}
	nodes   map[string]*fakeNode // by base URL
	running map[string]int       // job -> attempt whose processes run somewhere
	count   map[string]int       // job -> how many processes run
	starts  map[string]int       // job -> how many processes ever ran
	overlap []string             // two attempts at one job at once: never
	fault   func(node, operation string) error
	apply   func(*wsdl.ApplyChange) error
	rng     *rand.Rand
	chaos   bool // delay, drop, duplicate calls
}

const brokerURL = "http://broker"

func newGrid(t testing.TB, change func(*Config)) *grid {
	t.Helper()
	return newGridOver(t, openStore(t, store.Config{Dir: t.TempDir()}), change)
}

func openStore(t testing.TB, c store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// startEtcd runs an etcd that is nobody's in particular, as --state names one.
func startEtcd(t testing.TB) (endpoint string) {
	t.Helper()
	somewhere := []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	c := embed.NewConfig()
	c.Dir = t.TempDir()
	c.ListenClientUrls, c.AdvertiseClientUrls = somewhere, somewhere
	c.ListenPeerUrls, c.AdvertisePeerUrls = somewhere, somewhere
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return e.Clients[0].Addr().String()
}

func newGridOver(t testing.TB, s *store.Store, change func(*Config)) *grid {
	t.Helper()
	images, err := image.New(image.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	info, err := information.New(information.Config{Store: s})
	if err != nil {
		t.Fatal(err)
	}
	g := &grid{t: t, ttl: 10 * time.Second, store: s, images: images, info: info, nodes: map[string]*fakeNode{}, running: map[string]int{}, count: map[string]int{}, starts: map[string]int{}, rng: rand.New(rand.NewPCG(1, 2))}
	g.config = Config{
		Journal: s, Blobs: images, Caller: g, URL: func() string { return brokerURL },
		Lease: 2 * time.Second, Grace: 20 * time.Millisecond, Drift: 20 * time.Millisecond, Drop: 300 * time.Millisecond, Flush: 300 * time.Millisecond,
		Patience: 200 * time.Millisecond, Backoff: 5 * time.Millisecond, BackoffMax: 100 * time.Millisecond,
		TerminateTimeout: 300 * time.Millisecond,
	}
	if change != nil {
		change(&g.config)
	}
	t.Cleanup(g.stop)
	return g
}

// start runs a broker over the stores.
func (g *grid) start() *Service {
	g.t.Helper()
	b, err := New(g.config)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan struct{})
	g.mu.Lock()
	g.broker, g.cancel, g.stopped = b, cancel, stopped
	g.mu.Unlock()
	go func() {
		defer close(stopped)
		if err := b.Run(ctx); err != nil && ctx.Err() == nil && !errors.As(err, new(*deposed)) {
			g.t.Errorf("the broker does not run: %v", err)
		}
	}()
	return b
}

// stop ends the broker where it is, as a crash would.
func (g *grid) stop() {
	g.mu.Lock()
	cancel, stopped := g.cancel, g.stopped
	g.broker, g.cancel = nil, nil
	g.mu.Unlock()
	if cancel != nil {
		cancel()
		<-stopped
	}
}

func (g *grid) crash() {
	g.mu.Lock()
	cancel := g.cancel
	g.broker = nil
	g.mu.Unlock()
	if cancel != nil {
		cancel()
	}
}

// Call is the wire: it carries calls to nodes and reports to the broker.
func (g *grid) Call(ctx context.Context, url, operation string, request, response any) error {
	times := 1
	g.mu.Lock()
	var delay time.Duration
	drop := 0 // 1: the call is lost, 2: the answer is
	if g.chaos {
		delay = time.Duration(g.rng.IntN(2000)) * time.Microsecond
		switch g.rng.IntN(12) {
		case 0:
			drop = 1
		case 1:
			drop = 2
		case 2:
			times = 2
		}
	}
	node, fault := g.nodes[strings.TrimSuffix(url, "/services/queue")], g.fault
	g.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	if drop == 1 {
		return wsdl.Faultf(wsdl.FaultCodeUnavailable, "%s does not answer", url)
	}
	var err error
	for range times {
		if strings.HasPrefix(url, brokerURL) {
			g.mu.Lock()
			b := g.broker
			g.mu.Unlock()
			if b == nil {
				return wsdl.Faultf(wsdl.FaultCodeUnavailable, "%s does not answer", url)
			}
			var answer *wsdl.ReportResponse
			if answer, err = b.ReportContext(ctx, request.(*wsdl.Report)); err == nil {
				*response.(*wsdl.ReportResponse) = *answer
			}
			continue
		}
		if node == nil {
			return wsdl.Faultf(wsdl.FaultCodeUnavailable, "%s does not answer", url)
		}
		if fault != nil {
			if err := fault(node.id, operation); err != nil {
				return err
			}
		}
		err = node.call(ctx, request, response)
	}
	if drop == 2 {
		return wsdl.Faultf(wsdl.FaultCodeUnavailable, "the answer of %s was lost", url)
	}
	return err
}

// fakeNode keeps the node's half of the rules.
type fakeNode struct {
	grid  *grid
	id    string
	slots int

	mu          sync.Mutex // guards all below
	incarnation string
	attempts    map[string]*fakeAttempt // by job
	fenced      map[string]int          // job -> highest attempt that ended or is here
	free        int
	vms         int64              // MiB that VMs have which are no attempt's
	disk        *int64             // MiB of its disk that are free
	cancel      context.CancelFunc // ends its heartbeats
	dead        bool
	calls       map[string]int
}

type fakeAttempt struct {
	number   int
	slots    int
	ctx      context.Context
	end      context.CancelFunc
	started  bool
	restored string // what it goes on from
	taken    int64  // the set that it stands still for
	takes    int
	second   chan struct{} // closed when a second one is taken
	work     sync.WaitGroup
	mu       sync.Mutex // guards all below
	sequence int64
	spool    []*wsdl.Report // made and not acknowledged
	sending  bool
	mute     bool // what it would report is lost
}

// node adds a node to the grid.
func (g *grid) node(id string, slots int) *fakeNode {
	g.t.Helper()
	n := &fakeNode{grid: g, id: id, slots: slots, calls: map[string]int{}, fenced: map[string]int{}}
	g.mu.Lock()
	g.nodes["http://"+id] = n
	g.mu.Unlock()
	n.join()
	g.t.Cleanup(n.die)
	return n
}

// several are nodes alike, by their ids.
func (g *grid) several(slots int, ids ...string) map[string]*fakeNode {
	g.t.Helper()
	nodes := map[string]*fakeNode{}
	for _, id := range ids {
		nodes[id] = g.node(id, slots)
	}
	return nodes
}

var incarnations atomic.Int64

// join registers the node under a new incarnation, with nothing on it.
func (n *fakeNode) join() {
	n.grid.t.Helper()
	n.mu.Lock()
	n.incarnation = fmt.Sprintf("i%d", incarnations.Add(1))
	n.attempts, n.free, n.dead = map[string]*fakeAttempt{}, n.slots, false
	incarnation := n.incarnation
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.mu.Unlock()
	record, err := json.Marshal(&wsdl.Node{Id: n.id, Incarnation: incarnation, Name: n.id, Url: "http://" + n.id, Cores: int32(n.slots), Memory: 1 << 20,
		Slots: wsdl.Of(int32(n.slots)), Os: "linux", Accelerator: "tcg", Role: []*wsdl.Role{wsdl.Of(wsdl.RoleWorker)},
		Compiler: []*wsdl.Compiler{{Language: wsdl.Of(wsdl.LanguageShell), Command: "sh", Version: "1"}}})
	if err != nil {
		n.grid.t.Fatal(err)
	}
	if err := n.grid.store.PutNode(ctx, n.id, incarnation, record, []byte("{}"), n.grid.ttl); err != nil {
		n.grid.t.Fatal(err)
	}
	go func() {
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
				beat := &wsdl.Heartbeat{Node: n.id, Incarnation: incarnation}
				n.mu.Lock()
				beat.VmMemory, beat.FreeDisk = n.vms, n.disk
				for job, a := range n.attempts {
					beat.Attempt = append(beat.Attempt, &wsdl.Attempt{Job: job, Number: int32(a.number), Node: n.id, Incarnation: incarnation})
				}
				n.mu.Unlock()
				_, _ = n.grid.info.HeartbeatContext(ctx, beat)
			}
		}
	}()
}

// die ends the node and all its processes without a word.
func (n *fakeNode) die() {
	n.mu.Lock()
	n.dead = true
	n.cancel()
	var all []*fakeAttempt
	for _, a := range n.attempts {
		all = append(all, a)
	}
	n.mu.Unlock()
	for _, a := range all {
		a.end()
		a.work.Wait()
	}
}

func stale(format string, args ...any) error {
	return wsdl.Faultf(wsdl.FaultCodeStale, format, args...)
}

func (n *fakeNode) fence(a *wsdl.Attempt) error {
	switch {
	case n.dead:
		return wsdl.Faultf(wsdl.FaultCodeUnavailable, "node %s does not answer", n.id)
	case a.Node != n.id || a.Incarnation != n.incarnation:
		return stale("node %s is incarnation %s, not %s", n.id, n.incarnation, a.Incarnation)
	}
	return nil
}

func (n *fakeNode) call(ctx context.Context, request, response any) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls[strings.TrimPrefix(fmt.Sprintf("%T", request), "*wsdl.")]++
	switch r := request.(type) {
	case *wsdl.Awaken:
		if err := n.fence(r.Attempt); err != nil {
			return err
		}
		number := int(r.Attempt.Number)
		a := n.attempts[r.Attempt.Job]
		switch {
		case a != nil && a.number == number:
		case number <= n.fenced[r.Attempt.Job]:
			return stale("attempt %d at %s is over", number, r.Attempt.Job)
		case int(r.Slots) > n.free:
			return wsdl.Faultf(wsdl.FaultCodeBusy, "node %s has %d free slots, needs %d", n.id, n.free, r.Slots)
		default:
			for _, b := range r.Build {
				for _, f := range b.File {
					if !n.grid.images.Has(f.Digest) {
						return wsdl.Faultf(wsdl.FaultCodeUnavailable, "blob %s is nowhere", f.Digest)
					}
				}
			}
			if r.Restore != "" && !n.grid.images.Has(r.Restore) {
				return wsdl.Faultf(wsdl.FaultCodeNotFound, "blob %s is nowhere", r.Restore)
			}
			n.fenced[r.Attempt.Job] = number
			n.free -= int(r.Slots)
			a = &fakeAttempt{number: number, slots: int(r.Slots), restored: r.Restore, second: make(chan struct{})}
			a.ctx, a.end = context.WithCancel(context.Background())
			n.attempts[r.Attempt.Job] = a
		}
		*response.(*wsdl.AwakenResponse) = wsdl.AwakenResponse{Address: n.id + ":1", Fingerprint: "f" + n.id,
			Build: []*wsdl.BuildStatus{{Source: "s", Digest: "d", Cached: wsdl.Of(true), Millis: wsdl.Of(int64(1))}}}
	case *wsdl.Instantiate:
		if err := n.fence(r.Attempt); err != nil {
			return err
		}
		a := n.attempts[r.Attempt.Job]
		if a == nil || a.number != int(r.Attempt.Number) || a.ctx.Err() != nil {
			return stale("attempt %d at %s is not here", r.Attempt.Number, r.Attempt.Job)
		}
		if !a.started {
			a.started = true
			for _, p := range r.Process {
				n.grid.enter(r.Attempt.Job, a.number)
				a.work.Add(1)
				go n.run(a, r.Attempt, p)
			}
		}
		*response.(*wsdl.InstantiateResponse) = wsdl.InstantiateResponse{Processes: int32(len(r.Process))}
	case *wsdl.ApplyChange:
		n.grid.mu.Lock()
		apply := n.grid.apply
		n.grid.mu.Unlock()
		if apply == nil {
			return errors.New("no change is to be made")
		}
		if err := apply(r); err != nil {
			return err
		}
		*response.(*wsdl.ApplyChangeResponse) = wsdl.ApplyChangeResponse{Done: wsdl.Of(true)}
	case *wsdl.Terminate:
		if err := n.fence(r.Attempt); err != nil {
			return err
		}
		number := int(r.Attempt.Number)
		n.fenced[r.Attempt.Job] = max(n.fenced[r.Attempt.Job], number)
		answer := wsdl.TerminateResponse{Sequence: wsdl.Of(int64(0))}
		if a := n.attempts[r.Attempt.Job]; a != nil && a.number <= number {
			a.end()
			n.mu.Unlock()
			a.work.Wait()
			n.mu.Lock()
			a.mu.Lock()
			answer.Sequence = wsdl.Of(a.sequence)
			a.mu.Unlock()
			if n.attempts[r.Attempt.Job] == a {
				delete(n.attempts, r.Attempt.Job)
				n.free += a.slots
			}
		}
		*response.(*wsdl.TerminateResponse) = answer
	case *wsdl.CheckpointAttempt:
		if err := n.fence(r.Attempt); err != nil {
			return err
		}
		a := n.attempts[r.Attempt.Job]
		if a == nil || a.number != int(r.Attempt.Number) {
			return stale("attempt %d at %s is not here", r.Attempt.Number, r.Attempt.Job)
		}
		answer := response.(*wsdl.CheckpointAttemptResponse)
		switch *r.Step {
		case wsdl.CheckpointStepTake:
			if a.takes++; a.taken != r.Set && a.takes == 2 {
				close(a.second)
			}
			a.taken = r.Set
		case wsdl.CheckpointStepDrop:
			a.taken = 0
		default:
			if a.taken != r.Set {
				return wsdl.Faultf(wsdl.FaultCodeConflict, "set %d was not taken", r.Set)
			}
			a.taken = 0
			record, _, err := n.grid.images.Put(ctx, strings.NewReader(fmt.Sprint(r.Attempt.Job, a.number, n.id, r.Set)))
			if err != nil {
				return err
			}
			same, _, err := n.grid.images.Put(ctx, strings.NewReader("what never changes"))
			if err != nil {
				return err
			}
			*answer = wsdl.CheckpointAttemptResponse{Record: record, Address: n.id + ":1", Blob: []string{record, same}}
		}
	case *wsdl.ReadStream:
		if err := n.fence(r.Attempt); err != nil {
			return err
		}
		data := wsdl.Binary("live\n")
		if r.Offset > 0 {
			data = nil
		}
		*response.(*wsdl.ReadStreamResponse) = wsdl.ReadStreamResponse{Data: &data, Next: wsdl.Of(int64(5)), End: wsdl.Of(false)}
	default:
		return fmt.Errorf("%T is not served", request)
	}
	return nil
}

// enter and leave watch that no two attempts at one job run at once.
func (g *grid) enter(job string, attempt int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.count[job] > 0 && g.running[job] != attempt {
		g.overlap = append(g.overlap, fmt.Sprintf("%s: attempts %d and %d", job, g.running[job], attempt))
	}
	g.running[job] = attempt
	g.count[job]++
	g.starts[job]++
}

func (g *grid) leave(job string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count[job]--
}

// run is a process: its arguments say what it does.
func (n *fakeNode) run(a *fakeAttempt, fence *wsdl.Attempt, p *wsdl.ProcessSpec) {
	exit, signal, stderr := 0, "", ""
	for _, argument := range p.Argument {
		verb, value, _ := strings.Cut(argument, "=")
		switch verb {
		case "exit":
			exit, _ = strconv.Atoi(value)
			stderr = "first\nlast words\n"
		case "once": // fails in the first attempt only
			if a.number == 1 {
				exit = 7
			}
		case "unrestored": // runs until its attempt is one that goes on from a checkpoint
			if a.restored == "" {
				<-a.ctx.Done()
			}
		case "relapse": // fails once there may be a checkpoint, unless it goes on from one
			if exit = 0; a.restored == "" {
				exit = 7
				select {
				case <-a.ctx.Done():
				case <-a.second:
				}
			}
		case "hang":
			<-a.ctx.Done()
		case "sleep":
			d, _ := time.ParseDuration(value)
			select {
			case <-a.ctx.Done():
			case <-time.After(d):
			}
		}
	}
	state := wsdl.ProcessStateExited
	if a.ctx.Err() != nil {
		state, signal, exit = wsdl.ProcessStateKilled, "SIGTERM", 0
	}
	status := &wsdl.ProcessStatus{Id: p.Id, State: &state, Signal: signal, UserMicros: 5,
		File: []*wsdl.File{inline("stdout", "hello from "+p.Task+"\n"), inline("stderr", stderr)}}
	if signal == "" {
		status.ExitCode = wsdl.Of(int32(exit))
	}
	a.mu.Lock()
	// What comes while another report is under way is one report.
	if n := len(a.spool); n > 1 {
		a.spool[n-1].Process = append(a.spool[n-1].Process, status)
	} else {
		a.sequence++
		a.spool = append(a.spool, &wsdl.Report{Attempt: fence, Sequence: a.sequence, Process: []*wsdl.ProcessStatus{status}})
	}
	if a.mute {
		a.spool = nil
	}
	send := !a.sending
	a.sending = true
	a.mu.Unlock()
	n.grid.leave(fence.Job)
	a.work.Done()
	if send {
		n.deliver(a)
	}
}

// forget lets go of an attempt, and of what it has to report too when reports.
func (n *fakeNode) forget(job string, reports bool) {
	n.mu.Lock()
	a := n.attempts[job]
	delete(n.attempts, job)
	n.free += a.slots
	n.mu.Unlock()
	if reports {
		a.mu.Lock()
		a.mute = true
		a.mu.Unlock()
	}
	a.end()
}

// deliver sends what is spooled, in order, until each was acknowledged.
func (n *fakeNode) deliver(a *fakeAttempt) {
	for {
		n.mu.Lock()
		dead := n.dead
		n.mu.Unlock()
		a.mu.Lock()
		if len(a.spool) == 0 || dead {
			a.sending = false
			a.mu.Unlock()
			return
		}
		report := *a.spool[0] // the first is never added to
		a.mu.Unlock()
		err := n.grid.Call(context.Background(), brokerURL+"/services/broker", "Report", &report, new(wsdl.ReportResponse))
		switch wsdl.CodeOf(err) {
		case "", wsdl.FaultCodeStale:
			a.mu.Lock()
			a.spool = a.spool[1:]
			a.mu.Unlock()
		case wsdl.FaultCodeUnavailable:
			time.Sleep(5 * time.Millisecond)
		default:
			n.grid.t.Errorf("a report was refused: %v", err)
			return
		}
	}
}

func inline(name, text string) *wsdl.File {
	data := wsdl.Binary(text)
	return &wsdl.File{Name: name, Digest: image.Digest(sha256.Sum256(data)), Size: wsdl.Of(int64(len(data))), Data: &data}
}

// profileOf is a job with one shell source; each task is name, count and
// arguments.
func profileOf(name string, tasks ...*wsdl.Task) *wsdl.Job {
	return &wsdl.Job{Name: name,
		Source: []*wsdl.Source{{Name: "s", Language: wsdl.Of(wsdl.LanguageShell), File: []*wsdl.SourceFile{{Name: "s.sh", Text: "true\n"}}}},
		Task:   tasks}
}

func task(name string, count int, arguments ...string) *wsdl.Task {
	return &wsdl.Task{Name: name, Source: "s", Count: wsdl.Of(wsdl.Number(strconv.Itoa(count))), Argument: arguments}
}

func (g *grid) submit(b *Service, token string, j *wsdl.Job) string {
	g.t.Helper()
	answer, err := b.SubmitJobContext(context.Background(), &wsdl.SubmitJob{Token: token, Job: j})
	if err != nil {
		g.t.Fatalf("the job is refused: %v", err)
	}
	return answer.Id
}

func (g *grid) wait(b *Service, id string) *wsdl.JobStatus {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for {
		answer, err := b.WaitJobContext(ctx, &wsdl.WaitJob{Id: id})
		if err != nil {
			g.t.Fatalf("waiting for %s: %v", id, err)
		}
		if final(*answer.Job.State) {
			return answer.Job
		}
		if ctx.Err() != nil {
			g.t.Fatalf("job %s has not ended: %s %q", id, *answer.Job.State, answer.Job.Reason)
		}
	}
}

// settled checks what must hold once every job has ended.
func (g *grid) settled() {
	g.t.Helper()
	g.mu.Lock()
	for _, o := range g.overlap {
		g.t.Errorf("two attempts ran at once: %s", o)
	}
	for job, n := range g.count {
		if n != 0 {
			g.t.Errorf("job %s has ended and %d processes run", job, n)
		}
	}
	g.mu.Unlock()
	ctx := context.Background()
	ledger, err := Audit(ctx, g.store, g.images)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, problem := range ledger.Problems {
		g.t.Error(problem)
	}
	for _, j := range ledger.Jobs {
		if !final(j.State) {
			g.t.Errorf("job %s is %s", j.ID, j.State)
		}
	}
}

var errCrash = errors.New("the broker crashes here")
