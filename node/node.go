// Package node is the slim server of one machine in the grid: it registers,
// keeps its lease, and carries attempts of jobs through their life: it books
// room, has an MVM process started for each attempt, hands it what it needs,
// and reports what becomes of it.
//
// What always holds: nothing of an attempt runs without a lease that a
// heartbeat's answer gave, nor after its end; every call of a broker may come
// late, twice or out of order and changes nothing then; a report is on disk
// until the broker has it; whatever an attempt made on this machine is gone
// when its end is answered, and whatever an earlier life of the node left is
// gone before it registers. An idle node runs no MVM process and holds a few
// sleeping goroutines.
//
// It must never import the broker or the store: it meets them only through the
// contracts of package wsdl. It decides nothing about jobs.
package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"mvm/node/build"
	"mvm/node/mvm"
	"mvm/osvm"
	"mvm/queuevm"
	"mvm/services/image"
	"mvm/wsdl"
)

// Config says what a node is. Dir, URL, Caller and Images are required, and
// one of JoinURL and InformationURL.
type Config struct {
	// ID names the node for good; "" keeps the one in Dir, or makes one.
	ID   string
	Name string // for people; "" is the host's name
	// Dir is the node's own data folder. Work folders and cached programs run
	// from there.
	Dir     string
	URL     string // this node's base, http://host:port
	Roles   []wsdl.Role
	Version string
	Slots   int // processes at once; 0 = as many as cores, negative = none

	// JoinURL is the base of any node of the grid: it says where to register.
	JoinURL string
	// InformationURL is the information service, for a node that knows it.
	InformationURL string

	// BrokerURL is the broker service's address as it is now, "" while none is
	// known; nil is what the grid said when the node registered.
	BrokerURL func() string

	Caller wsdl.Caller
	HTTP   *http.Client // for blobs; nil is a client of its own
	Images *image.Store
	Log    *logrus.Logger // nil is logrus's standard logger

	// ProxyHost is where the proxies of attempts listen, or are published; "" is
	// URL's host. On a loopback address they speak plain TCP, else TLS.
	ProxyHost string
	// Publish, in a guest whose network is its host's, has what listens at a local
	// address reached under the one that it answers, until withdraw is called. URL is
	// such an address then. When the VM has moved to another host, moved is called with
	// the address that it is then. Nil is a machine that others reach as it is.
	Publish func(ctx context.Context, local string, moved func(public string)) (public string, withdraw func(), err error)
	// Uplink is the socket through which the proxies of such a guest dial.
	Uplink string
	// PeerID is what its proxies call themselves to others; "" is the node's id. A
	// guest that has an attempt for its host speaks for it.
	PeerID string
	// PlainLinks are networks, as CIDR: links of which both ends are in one of them
	// are not encrypted. Keys are proven all the same.
	PlainLinks []string
	// GoCache is where Go builds keep what they compiled of the standard
	// library; "" is a part of Dir. Nodes of one user on one machine may share
	// one, and then only the first of them pays for it.
	GoCache string
	// Compilers is the file in which the node remembers what this machine's
	// compilers are; "" is one in Dir. Nodes of one user on one machine may share
	// it, and then only the first of them has to ask.
	Compilers string
	// CacheMax bounds the builds that are kept, and what Go compiled, each, in
	// bytes: above it goes what was not used for longest. 0 is 4 GiB.
	CacheMax int64
	// VMBoot is how long the guest of a VM may take to answer as it boots; 0 is as
	// package osvm has it.
	VMBoot time.Duration

	// QueueLimits is the file in which this node says what the queues of jobs may
	// have (queueLimits of profile.xsd); "" is no limit.
	QueueLimits string
	// Accelerator is what OS-level VMs run with here: osvm.Auto, KVM or TCG; "" is a
	// node that has none.
	Accelerator osvm.Accelerator
	// VMTemplates is where the booted VMs are of which others are clones; "" is a
	// part of Dir. Nodes of one user on one machine may share it.
	VMTemplates string
	// EndVMs has the VMs that are left end with Run: what is in Dir is not needed
	// again. Without it they run on, for the node's next life.
	EndVMs bool
	// StreamMax is the bytes kept of each stdout and stderr; 0 is 1 MiB.
	StreamMax int64
}

// Node is one node. Its methods may be called from any goroutine.
type Node struct {
	id, incarnation string
	config          Config
	folders         folders
	lock            *os.File
	caller          wsdl.Caller
	http            *http.Client
	images          *image.Store
	log             *logrus.Entry
	clock           Clock
	alarm           Alarm
	launcher        launcher
	compilers       *build.Detector
	keys            build.Keys // the client files are laid by New and stay as they are
	cache           *cache
	shelf           *shelf
	spool           *spool
	total           room
	queueLimits     limits
	qemu            string
	host            *osvm.Host // nil where there are no VMs;
	hostless        string     // that is why
	living          context.Context
	stopLiving      context.CancelFunc
	plain           bool
	proxyListen     string
	streamMax       int64
	callTimeout     time.Duration
	arrivals        arrivals
	lodgers         lodgers
	beatNow         chan struct{}  // capacity 1
	afresh          chan struct{}  // capacity 1: register again
	running         sync.WaitGroup // runners' goroutines

	taking sync.Mutex // one at a time tells the ledger what VMs take; guards coming
	coming []*coming

	libraryOnce sync.Once
	libraryPath string

	mu       sync.Mutex // guards what follows
	ledger   *ledger
	runners  map[key]*runner
	calls    map[uint64]chan answer
	lastCall uint64
	url      string
	broker   string
	idle     *time.Timer // calls slim
	makings  map[string]*making
	networks map[key]*network // of VMs here
	lans     map[string]*lan  // by their tag
}

// parts are what tests replace.
type parts struct {
	clock    Clock
	launcher func(dir string, limits mvm.Limits, log *logrus.Entry) (launcher, error)
	clients  fs.FS         // the client library's files
	patience time.Duration // how long an Instantiate waits to be named live
	retry    time.Duration // the spool's first pause
	grace    time.Duration // for an earlier life's leftovers to end by themselves
}

func realParts() parts {
	return parts{
		clock: bootClock{},
		launcher: func(dir string, limits mvm.Limits, log *logrus.Entry) (launcher, error) {
			return newStarter(dir, limits, log)
		},
		clients:  queuevm.ClientFiles(),
		patience: 5 * time.Second,
		retry:    100 * time.Millisecond,
		grace:    2 * time.Second,
	}
}

// New opens the data folder, ends and removes what an earlier life left there,
// and finds out what the machine can do. Nothing is told to the grid until Run.
func New(config Config) (*Node, error) { return newNode(config, realParts()) }

func newNode(config Config, p parts) (_ *Node, err error) {
	switch {
	case config.Dir == "":
		return nil, errors.New("a node needs a data folder")
	case config.Caller == nil || config.Images == nil:
		return nil, errors.New("a node needs a caller and a blob store")
	case (config.JoinURL == "") == (config.InformationURL == ""):
		return nil, errors.New("a node needs either a node to join or the information service's address")
	}
	if config.CacheMax == 0 {
		config.CacheMax = 4 << 30
	}
	base, err := url.Parse(config.URL)
	if err != nil || base.Hostname() == "" {
		return nil, fmt.Errorf("%q is no base address of a node; it looks like http://host:port", config.URL)
	}
	f, err := foldersOf(config.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the node's data folder: %w", err)
	}
	if config.GoCache != "" {
		if f.goCache, err = filepath.Abs(config.GoCache); err != nil {
			return nil, fmt.Errorf("open the cache of Go builds: %w", err)
		}
	}
	if config.Compilers != "" {
		f.compilers = config.Compilers
	}
	n := &Node{
		config: config, folders: f, incarnation: random(8),
		caller: config.Caller, http: config.HTTP, images: config.Images,
		clock: p.clock, compilers: build.NewDetector("", f.compilers),
		streamMax: config.StreamMax, callTimeout: 30 * time.Second,
		beatNow: make(chan struct{}, 1), afresh: make(chan struct{}, 1),
		runners: map[key]*runner{}, calls: map[uint64]chan answer{}, makings: map[string]*making{},
		url: strings.TrimSuffix(config.URL, "/"),
	}
	if n.http == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.Proxy = nil // nodes reach each other directly
		n.http = &http.Client{Transport: transport}
	}
	n.living, n.stopLiving = context.WithCancel(context.Background())
	if n.lock, err = lockFolder(f.lock); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.lock.Close()
		}
		if d, failed := diskOf(f.root); isFull(err) && failed == nil {
			err = fmt.Errorf("%w (%s; free some space there, or choose another data folder)", err, d)
		}
	}()
	if n.id, err = identity(f.identity, config.ID); err != nil {
		return nil, fmt.Errorf("keep the node's id: %w", err)
	}
	log := config.Log
	if log == nil {
		log = logrus.StandardLogger()
	}
	n.log = log.WithField("node", n.id)
	if err := n.measure(); err != nil {
		return nil, err
	}
	if n.queueLimits, err = readLimits(config.QueueLimits); err != nil {
		return nil, err
	}
	if n.launcher, err = p.launcher(f.root, n.limits(), n.log); err != nil {
		return nil, fmt.Errorf("prepare to start MVM processes: %w", err)
	}
	if err := sweep(f, n.launcher, p.grace, n.log); err != nil {
		return nil, err
	}
	if err := layClients(f.clients, p.clients); err != nil {
		return nil, fmt.Errorf("lay out the client library: %w", err)
	}
	if n.shelf, err = openShelf(f.spare, n.total.Slots); err != nil {
		return nil, fmt.Errorf("open the shelf of work folders: %w", err)
	}
	if n.cache, err = openCache(f.builds, n.config.CacheMax); err != nil {
		return nil, fmt.Errorf("open the build cache: %w", err)
	}
	n.spool, err = openSpool(&spool{dir: f.spool, node: n.id, deliver: n.deliver, dropped: n.delivered, pause: p.retry, log: n.log})
	if err != nil {
		return nil, fmt.Errorf("open the spool of reports: %w", err)
	}
	if err := n.releaseOrphans(); err != nil {
		return nil, fmt.Errorf("release results that are delivered: %w", err)
	}
	host := config.ProxyHost
	if host == "" {
		host = base.Hostname()
	}
	n.proxyListen = net.JoinHostPort(host, "0")
	if config.Publish != nil {
		n.proxyListen = "127.0.0.1:0"
	}
	ip := net.ParseIP(host)
	n.plain = host == "localhost" || ip != nil && ip.IsLoopback()
	if n.alarm, err = n.clock.Alarm(); err != nil {
		return nil, err
	}
	if err := n.openHost(); err != nil {
		return nil, err
	}
	n.idle = time.AfterFunc(time.Hour, n.slim)
	n.idle.Stop()
	n.ledger = newLedger(n.id, n.incarnation, n.total, p.patience)
	n.ledger.machines, n.ledger.file = int(n.queueLimits.Machines), n.queueLimits.file
	n.ledger.vms = n.vmsTake().room
	return n, nil
}

// measure finds out what the machine has.
func (n *Node) measure() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("measure memory: %w", err)
	}
	n.total = room{Slots: n.config.Slots, Memory: int64(info.Totalram) * int64(info.Unit) >> 20, Cores: runtime.NumCPU()}
	if limit := mvm.OwnLimit(); limit > 0 { // in a container, say
		n.total.Memory = min(n.total.Memory, limit)
	}
	if n.total.Slots == 0 {
		n.total.Slots = n.total.Cores
	}
	n.total.Slots = max(n.total.Slots, 0)
	return nil
}

// limits is what one attempt may take whatever its profile claims: so much that
// no honest job meets it, and so little that the machine outlives the others.
func (n *Node) limits() mvm.Limits {
	l := mvm.Limits{MemoryMiB: n.total.Memory - max(n.total.Memory/16, 64), Tasks: 4096 + 64*n.total.Slots}
	if n.config.Publish != nil { // a guest's memory is bound by its host, and its kernel ends programs first
		l.MemoryMiB = 0
	}
	return l
}

// layClients writes the client library's files anew: they may be of another
// version than the last life's.
func layClients(dir string, files fs.FS) error {
	if err := removeTree(dir); err != nil {
		return err
	}
	return os.CopyFS(dir, files)
}

// releaseOrphans lets go of results whose report is no longer in the spool: the
// node died in between.
func (n *Node) releaseOrphans() error {
	wanted := n.spool.owners()
	for _, owner := range n.images.Owners() {
		if strings.HasPrefix(owner, ownerPrefix) && !wanted[owner] {
			if err := n.images.Unpin(owner); err != nil {
				return err
			}
		}
	}
	return nil
}

// reachable is a listening address as other machines reach it: one that listens
// everywhere is reached at the node's own host.
func (n *Node) reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsUnspecified() {
		return address
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	base, err := url.Parse(n.url)
	if err != nil {
		return address
	}
	return net.JoinHostPort(base.Hostname(), port)
}

// library is the shared client library that Python programs load, "" when
// there is none here. It is made at the first need.
func (n *Node) library(ctx context.Context) string {
	n.libraryOnce.Do(func() {
		path, err := build.SharedLibrary(context.WithoutCancel(ctx), n.folders.clients, n.folders.cache, n.compilers.Compilers(ctx))
		if err != nil {
			n.log.WithError(err).Warn("Python programs cannot use ports on this node")
			return
		}
		n.libraryPath = path
	})
	return n.libraryPath
}

// trimGo bounds what Go compiled. While anyone builds with it, it waits for
// another time.
func (n *Node) trimGo() {
	if err := build.TrimGoCache(n.folders.goCache, n.config.CacheMax); err != nil {
		n.log.WithError(err).Warn("the cache of Go builds is not trimmed")
	}
}

// ID is the node's id; stable over restarts with the same Dir.
func (n *Node) ID() string { return n.id }

// Incarnation is random at each New.
func (n *Node) Incarnation() string { return n.incarnation }

// Broker is the broker service's address as the grid told it, "" before that.
func (n *Node) Broker() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.broker
}

// brokerURL is the broker service's address as it is now, "" while none is known.
func (n *Node) brokerURL() string {
	if n.config.BrokerURL != nil {
		if broker := n.config.BrokerURL(); broker != "" {
			return broker
		}
	}
	return n.Broker()
}

// Run registers, keeps the lease and delivers reports until ctx ends; then it
// ends every attempt, delivers what it still can within a few seconds, and
// gives the data folder up. Call it once.
func (n *Node) Run(ctx context.Context) error {
	defer n.lock.Close()
	defer n.alarm.Close()
	spooling, stopSpooling := context.WithCancel(context.WithoutCancel(ctx))
	n.spool.start(spooling)
	var watch sync.WaitGroup
	watching, stopWatching := context.WithCancel(context.WithoutCancel(ctx))
	watch.Go(func() { n.watch(watching) })

	if n.host != nil {
		watch.Go(func() { n.settleDoubts(n.living) })
		n.attachAll()
	}

	n.keep(ctx)

	n.stopLiving()
	n.step(leave{})
	n.running.Wait()
	n.launcher.Close()
	n.closeHost()
	stopWatching()
	for deadline := time.Now().Add(2 * time.Second); !n.spool.empty() && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	stopSpooling()
	n.spool.wait()
	watch.Wait()
	n.http.CloseIdleConnections()
	return nil
}

// watch lets the ledger see that time passes, when it matters.
func (n *Node) watch(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.alarm.Rings():
			n.step(tick{n.clock.Now()})
		}
	}
}

// step tells the ledger an event and does what it orders.
func (n *Node) step(event any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stepLocked(event, nil)
}

// stepLocked is step for a caller that holds mu; request is what an awakenCall
// asks for.
func (n *Node) stepLocked(event any, request *wsdl.Awaken) {
	for _, action := range n.ledger.step(event) {
		switch a := action.(type) {
		case beat:
			select {
			case n.beatNow <- struct{}{}:
			default:
			}
		case answer:
			if c := n.calls[a.call]; c != nil {
				delete(n.calls, a.call)
				c <- a
			}
		case book:
			n.runners[a.key] = newRunner(n, a.key, request)
		case load:
			r := n.runners[a.key]
			r.busy.Add(1)
			n.running.Go(func() {
				fault := r.load()
				r.busy.Done()
				n.step(loaded{at: n.clock.Now(), key: r.key, fault: fault})
			})
		case spawn:
			r := n.runners[a.key]
			r.busy.Add(1)
			n.running.Go(func() {
				fault := r.spawn()
				r.busy.Done()
				n.step(spawned{key: r.key, fault: fault})
			})
		case end:
			r := n.runners[a.key]
			n.running.Go(func() {
				sequence, gone := r.end(a)
				if !gone {
					return
				}
				n.mu.Lock()
				defer n.mu.Unlock()
				delete(n.runners, r.key)
				n.stepLocked(removed{key: r.key, sequence: sequence}, nil)
			})
		case kill:
			n.runners[a.key].kill()
		}
	}
	n.alarm.Set(n.ledger.deadline())
	switch event.(type) {
	case removed, registered:
		if len(n.ledger.held) == 0 {
			n.idle.Reset(idleAfter)
		}
	case leave:
		n.idle.Stop()
	}
}

// unclean tells the ledger of what does not end, and says whether the node shuts
// down.
func (n *Node) unclean(k key, why error) (leaving bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stepLocked(unclean{k, why.Error()}, nil)
	return n.ledger.leaving
}

// idleAfter is how long a node holds nothing before it gives memory back.
const idleAfter = 2 * time.Second

// slim gives memory back unless work has come meanwhile.
func (n *Node) slim() {
	n.mu.Lock()
	busy := len(n.ledger.held) > 0
	n.mu.Unlock()
	if busy {
		return
	}
	if err := trim(); err != nil {
		n.log.WithError(err).Debug("memory could not be given back")
	}
}

// describe is the node as it tells the grid.
func (n *Node) describe(ctx context.Context) *wsdl.Node {
	name := n.config.Name
	if name == "" {
		name, _ = os.Hostname()
	}
	n.mu.Lock()
	free, vms, base := n.ledger.free(), n.ledger.vms, n.url
	n.mu.Unlock()
	d := &wsdl.Node{
		Id: n.id, Incarnation: n.incarnation, Name: name, Url: base, Version: n.config.Version,
		Os: runtime.GOOS, Arch: runtime.GOARCH, Cores: int32(n.total.Cores), Memory: n.total.Memory,
		Slots: wsdl.Of(int32(n.total.Slots)), FreeSlots: wsdl.Of(int32(free.Slots)),
		FreeMemory: wsdl.Of(free.Memory), FreeCores: wsdl.Of(int32(free.Cores)), VmMemory: vms.Memory, FreeDisk: n.freeDisk(),
		Qemu: n.qemu, Accelerator: n.accelerator(), Cleaning: n.launcher.Cleaning(),
	}
	d.Unconfined = n.launcher.Confinement().Missing
	d.QueueLimits = n.queueLimits.told(n.launcher.Confinement())
	for _, r := range n.config.Roles {
		d.Role = append(d.Role, wsdl.Of(r))
	}
	for _, c := range n.compilers.Compilers(ctx) {
		d.Compiler = append(d.Compiler, &wsdl.Compiler{Language: wsdl.Of(wsdl.Language(c.Language)), Command: filepath.Base(c.Command), Version: c.Version})
	}
	return d
}
