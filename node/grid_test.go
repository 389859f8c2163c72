package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/node/mvm"
	"mvm/services/image"
	"mvm/services/soap"
	"mvm/wsdl"
)

// The test program is also the MVM process, as an mvm without the slim one is.
func TestMain(m *testing.M) {
	if mvm.IsProcess(os.Args) {
		os.Exit(mvm.Main(os.Args))
	}
	if join := os.Getenv("MVM_TEST_JOIN"); join != "" {
		fmt.Fprintln(os.Stderr, serveAlone(join, os.Args[1]))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serveAlone is a node in a process of its own, to be killed.
func serveAlone(join, dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	images, err := image.New(image.Config{Dir: filepath.Join(dir, "blobs")})
	if err != nil {
		return err
	}
	p := quickParts()
	if cleaning := os.Getenv("MVM_TEST_CLEANING"); cleaning != "" {
		real := p.launcher
		p.launcher = func(dir string, limits mvm.Limits, log *logrus.Entry) (launcher, error) {
			l, err := real(dir, limits, log)
			if err == nil {
				l.(*starter).cleaning = cleaning
			}
			return l, err
		}
	}
	config := Config{Dir: dir, URL: "http://" + listener.Addr().String(), JoinURL: join, Images: images, Slots: 4, Caller: soap.NewClient(soap.ClientConfig{})}
	n, err := newNode(config, p)
	if err != nil {
		return err
	}
	server, err := soap.NewServer(soap.Config{Contracts: []wsdl.Contract{wsdl.QueueContract(n.Queue())}})
	if err != nil {
		return err
	}
	go server.Serve(context.Background(), listener)
	return n.Run(context.Background())
}

// alone starts a node in a process of its own, with this way of cleaning or, "",
// the best there is.
func (g *grid) alone(dir, cleaning string) (*exec.Cmd, *member) {
	t := g.t
	t.Helper()
	f, err := foldersOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	before := len(g.nodes())
	c := exec.Command(os.Args[0], dir)
	c.Env = append(os.Environ(), "MVM_TEST_JOIN="+g.url, "MVM_TEST_CLEANING="+cleaning)
	log := &bytes.Buffer{}
	c.Stderr = log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if _, err := mvm.Sweep(markOf(f.root), 0); err != nil { // as its next life would
			t.Errorf("left of the node in %s: %v", dir, err)
		}
		if t.Failed() {
			t.Logf("log of the node in %s:\n%s", dir, log)
		}
	})
	eventually(t, "the node has joined", func() bool { return len(g.nodes()) > before })
	d := g.nodes()[before]
	return c, &member{t: t, grid: g, Node: &Node{id: d.Id, incarnation: d.Incarnation, folders: f}, queue: wsdl.NewQueueClient(g.caller, d.Url+"/services/queue")}
}

// grid is a backend and a front-end in one, as a node sees them: real SOAP and
// a real blob store, with a bookkeeping that the test writes.
type grid struct {
	wsdl.BootstrapWithoutContext
	t      testing.TB
	url    string
	images *image.Store
	caller *soap.Client
	lease  time.Duration
	beat   time.Duration

	mu         sync.Mutex // guards what follows
	live       map[key]bool
	registered []*wsdl.Node
	heartbeats int
	disk       int64    // MiB that the last heartbeat told to be free
	told       []string // jobs that heartbeats spoke of
	down       bool     // the information service does not answer
	forgotten  bool     // it does not know the node: register again
	brokerDown bool
	refuse     *wsdl.Fault                    // what Report is answered with
	judge      func(*wsdl.Report) *wsdl.Fault // if set, says whether a report is taken
	reports    []*wsdl.Report
	duplicates int
	acked      map[string]int64
	queues     map[string]*wsdl.QueueStatus // what the broker knows, by name
}

// front is the queue service of the broker's node.
type front struct {
	wsdl.QueueContext // what is not the broker's to say
	*grid
}

func (f front) ListQueuesContext(_ context.Context, r *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if q := f.queues[r.Queue]; q != nil && r.Planned {
		return &wsdl.ListQueuesResponse{Queue: []*wsdl.QueueStatus{q}}, nil
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("the job has no queue %q", r.Queue), "there are others")
}

type information struct{ *grid }
type broker struct {
	wsdl.BrokerContext // what a node never calls
	*grid
}

func newGrid(t testing.TB) *grid {
	g := &grid{t: t, live: map[key]bool{}, acked: map[string]int64{}, lease: 2 * time.Second, beat: 100 * time.Millisecond}
	g.Server = g
	var err error
	if g.images, err = image.New(image.Config{Dir: filepath.Join(t.TempDir(), "blobs")}); err != nil {
		t.Fatal(err)
	}
	g.caller = soap.NewClient(soap.ClientConfig{})
	t.Cleanup(g.caller.Close)
	url := serve(t, g.images, wsdl.BootstrapContract(g), wsdl.InformationContract(information{g}), wsdl.BrokerContract(broker{grid: g}), wsdl.QueueContract(front{grid: g}))
	g.set(func() { g.url = url }) // a node in another process is no witness of an order
	return g
}

// serve publishes contracts and a blob store on a free port.
func serve(t testing.TB, images *image.Store, contracts ...wsdl.Contract) string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://" + listener.Addr().String()
	if images != nil {
		contracts = append(contracts, wsdl.ImageContract(image.NewService(images, func() string { return url }, image.Images{})))
	}
	server, err := soap.NewServer(soap.Config{Contracts: contracts})
	if err != nil {
		t.Fatal(err)
	}
	if images != nil {
		server.Router().Handle("/services/image/blobs/{digest}", images.Handler())
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return url
}

func (g *grid) GetBrokerContext(context.Context, *wsdl.GetBroker) (*wsdl.GetBrokerResponse, error) {
	return nil, wsdl.Faultf(wsdl.FaultCodeUnsupported, "nodes do not ask")
}

func (g *grid) ListServicesContext(context.Context, *wsdl.ListServices) (*wsdl.ListServicesResponse, error) {
	return nil, wsdl.Faultf(wsdl.FaultCodeUnsupported, "nodes do not ask")
}

func (g *grid) JoinContext(context.Context, *wsdl.Join) (*wsdl.JoinResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return &wsdl.JoinResponse{Broker: g.url + "/services/broker", Information: g.url + "/services/information", Image: g.url + "/services/image"}, nil
}

func (i information) RegisterContext(_ context.Context, r *wsdl.Register) (*wsdl.RegisterResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down {
		return nil, wsdl.Faultf(wsdl.FaultCodeUnavailable, "away")
	}
	i.forgotten = false
	i.registered = append(i.registered, r.Node)
	return &wsdl.RegisterResponse{LeaseMillis: i.lease.Milliseconds(), HeartbeatMillis: i.beat.Milliseconds()}, nil
}

func (i information) HeartbeatContext(_ context.Context, r *wsdl.Heartbeat) (*wsdl.HeartbeatResponse, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, a := range r.Attempt {
		i.told = append(i.told, a.Job)
	}
	if i.down {
		return nil, wsdl.Faultf(wsdl.FaultCodeUnavailable, "away")
	}
	if i.forgotten {
		return nil, wsdl.Faultf(wsdl.FaultCodeStale, "register again")
	}
	i.heartbeats++
	i.disk = wsdl.Or(r.FreeDisk, -1)
	answer := &wsdl.HeartbeatResponse{LeaseMillis: i.lease.Milliseconds(), HeartbeatMillis: i.beat.Milliseconds()}
	for k := range i.live {
		answer.Attempt = append(answer.Attempt, &wsdl.Attempt{Job: k.job, Number: int32(k.number), Node: r.Node, Incarnation: r.Incarnation})
	}
	return answer, nil
}

func (i information) QueryContext(context.Context, *wsdl.Query) (*wsdl.QueryResponse, error) {
	return nil, wsdl.Faultf(wsdl.FaultCodeUnsupported, "nodes do not ask")
}

// beaten tells whether a heartbeat has spoken of a job.
func (g *grid) beaten(job string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Contains(g.told, job)
}

func (b broker) ReportContext(_ context.Context, r *wsdl.Report) (*wsdl.ReportResponse, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.brokerDown {
		return nil, wsdl.Faultf(wsdl.FaultCodeUnavailable, "away")
	}
	if b.refuse != nil {
		return nil, b.refuse
	}
	if b.judge != nil {
		if f := b.judge(r); f != nil {
			return nil, f
		}
	}
	for _, digest := range blobsOf(r) {
		if !b.images.Has(digest) {
			b.t.Errorf("report %d of %s came before its blob %s", r.Sequence, r.Attempt.Job, digest)
		}
	}
	lane := laneName(r.Attempt)
	switch {
	case r.Sequence <= b.acked[lane]:
		b.duplicates++
	case r.Sequence > b.acked[lane]+1:
		b.t.Errorf("report %d of %s came after %d", r.Sequence, lane, b.acked[lane])
	default:
		b.acked[lane] = r.Sequence
		b.reports = append(b.reports, r)
	}
	return &wsdl.ReportResponse{Acknowledged: b.acked[lane]}, nil
}

func (g *grid) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

// status is what the grid knows of a process, nil when nothing.
func (g *grid) status(job string, process int) *wsdl.ProcessStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	var last *wsdl.ProcessStatus
	for _, r := range g.reports {
		for _, s := range r.Process {
			if r.Attempt.Job == job && int(wsdl.Or(s.Id, 0)) == process {
				last = s
			}
		}
	}
	return last
}

func (g *grid) failures(job string) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var all []string
	for _, r := range g.reports {
		if r.Attempt.Job == job && r.Failure != "" {
			all = append(all, r.Failure)
		}
	}
	return strings.Join(all, "\n")
}

// blob puts bytes into the grid's store.
func (g *grid) blob(text string) string {
	g.t.Helper()
	digest, _, err := g.images.Put(context.Background(), strings.NewReader(text))
	if err != nil {
		g.t.Fatal(err)
	}
	return digest
}

// text is a result's bytes, from the report or from the grid's store.
func (g *grid) text(s *wsdl.ProcessStatus, name string) string {
	g.t.Helper()
	for _, f := range s.File {
		if f.Name != name {
			continue
		}
		if f.Data != nil {
			if d := image.Digest(sha256.Sum256(*f.Data)); d != f.Digest {
				g.t.Errorf("%s has digest %s, its bytes have %s", name, f.Digest, d)
			}
			return string(*f.Data)
		}
		file, _, err := g.images.Open(f.Digest)
		if err != nil {
			g.t.Fatal(err)
		}
		defer file.Close()
		data, err := io.ReadAll(file)
		if err != nil {
			g.t.Fatal(err)
		}
		return string(data)
	}
	g.t.Fatalf("process %d has no file %s, only %v", wsdl.Or(s.Id, 0), name, s.File)
	return ""
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still not so: %s", what)
		}
	}
}

// member is a real node in the grid, served by real SOAP.
type member struct {
	*Node
	t     testing.TB
	grid  *grid
	dir   string
	queue *wsdl.QueueClient
	stop  func()
	log   *bytes.Buffer
}

func quickParts() parts {
	p := realParts()
	p.patience, p.retry, p.grace = time.Second, 10*time.Millisecond, 200*time.Millisecond
	return p
}

// with starts a node with these parts; change may alter its configuration.
func (g *grid) with(dir string, p parts, change func(*Config)) *member {
	t := g.t
	t.Helper()
	images, err := image.New(image.Config{Dir: filepath.Join(dir, "blobs")})
	if err != nil {
		t.Fatal(err)
	}
	m := &member{t: t, grid: g, dir: dir, log: &bytes.Buffer{}}
	log := logrus.New()
	log.SetOutput(&lockedWriter{w: m.log})
	log.SetLevel(logrus.DebugLevel)
	late := &lateQueue{}
	base := serve(t, images, wsdl.QueueContract(late))
	config := Config{Dir: dir, URL: base, JoinURL: g.url, Caller: g.caller, Images: images, Log: log, Slots: 4, Roles: []wsdl.Role{wsdl.RoleWorker}, Version: "test"}
	if change != nil {
		change(&config)
	}
	if m.Node, err = newNode(config, p); err != nil {
		t.Fatal(err)
	}
	late.QueueContext = m.Queue()
	m.queue = wsdl.NewQueueClient(g.caller, base+"/services/queue")
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.stop = sync.OnceFunc(func() {
		stop()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run does not end")
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", m.id, m.log)
		}
	})
	t.Cleanup(m.stop)
	eventually(t, "the node has joined", func() bool {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.ledger.lease > 0
	})
	return m
}

// lateQueue is a queue service that is set after its port is known, before any
// call.
type lateQueue struct{ wsdl.QueueContext }

type lockedWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

func (g *grid) nodes() []*wsdl.Node {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.registered)
}

func (g *grid) node() *member { return g.with(g.t.TempDir(), quickParts(), nil) }

func (m *member) attempt(job string, number int) *wsdl.Attempt {
	return &wsdl.Attempt{Job: job, Number: int32(number), Node: m.id, Incarnation: m.incarnation}
}

// source is a build of one file.
func (m *member) source(name string, language wsdl.Language, text string) *wsdl.Build {
	file := map[wsdl.Language]string{wsdl.LanguageC: "main.c", wsdl.LanguageShell: "main.sh", wsdl.LanguagePython: "main.py"}[language]
	return &wsdl.Build{Source: name, Language: &language, File: []*wsdl.FileRef{{Name: file, Digest: m.grid.blob(text)}}}
}

// awaken declares the attempt live and awakens it.
func (m *member) awaken(job string, number int, slots int, builds ...*wsdl.Build) (*wsdl.AwakenResponse, error) {
	m.grid.set(func() { m.grid.live[key{job, number}] = true })
	return m.queue.AwakenContext(context.Background(), &wsdl.Awaken{Attempt: m.attempt(job, number), Broker: m.grid.url + "/services/broker",
		Image: []string{m.grid.url}, Slots: int32(slots), Proxy: wsdl.Of(false), Build: builds})
}

func spec(id int, source string, arguments ...string) *wsdl.ProcessSpec {
	return &wsdl.ProcessSpec{Id: wsdl.Of(int32(id)), Task: "work", Index: wsdl.Of(int32(id)), Count: 8, Source: source, Argument: arguments}
}

func (m *member) instantiate(job string, number int, processes ...*wsdl.ProcessSpec) error {
	_, err := m.queue.InstantiateContext(context.Background(), &wsdl.Instantiate{Attempt: m.attempt(job, number), Process: processes})
	return err
}

func (m *member) terminate(job string, number int, grace time.Duration) int64 {
	m.t.Helper()
	answer, err := m.queue.TerminateContext(context.Background(), &wsdl.Terminate{Attempt: m.attempt(job, number), GraceMillis: grace.Milliseconds(), Reason: "the test is over"})
	if err != nil {
		m.t.Fatal(err)
	}
	return wsdl.Or(answer.Sequence, -1)
}

// run awakens and instantiates a shell program with one process.
func (m *member) run(job, script string) {
	m.t.Helper()
	if _, err := m.awaken(job, 1, 1, m.source("main", wsdl.LanguageShell, script)); err != nil {
		m.t.Fatal(err)
	}
	if err := m.instantiate(job, 1, spec(0, "main")); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) started(job string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	_, ok := m.runners[key{job, 1}]
	return ok
}

// clean fails unless nothing of any attempt is left on the node.
func (m *member) clean() {
	m.t.Helper()
	entries, err := os.ReadDir(m.folders.work)
	if err != nil || len(entries) > 0 {
		m.t.Errorf("%s still holds %v (%v)", m.folders.work, entries, err)
	}
	left, err := processesUnder(m.folders.work)
	if err != nil || len(left) > 0 {
		m.t.Errorf("processes %v are left (%v)", left, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if free := m.ledger.free(); free != m.total || len(m.runners) > 0 || len(m.calls) > 0 {
		m.t.Errorf("free is %+v of %+v, with %d attempts and %d calls", free, m.total, len(m.runners), len(m.calls))
	}
}

// pids is the processes that carry a mark in their command line.
func pids(t testing.TB, mark string) []string {
	t.Helper()
	names, err := fs.Glob(os.DirFS("/proc"), "[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, name := range names {
		line, err := os.ReadFile(filepath.Join("/proc", name))
		if err == nil && bytes.Contains(line, []byte(mark)) {
			found = append(found, filepath.Dir(name))
		}
	}
	return found
}

func code(err error) string { return fmt.Sprint(wsdl.CodeOf(err)) }
