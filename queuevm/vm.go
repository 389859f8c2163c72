// Package queuevm is the daemon's side of the queue-level VM: it runs inside
// the MVM process, makes the rings that a job's processes enqueue to and
// dequeue from, hands them over, carries remote channels through the proxy,
// and is the far end of channels that lead outside the job.
//
// What always holds: no child is trusted. Every word that a child can write is
// copied once and checked; base, capacity and the daemon's own index of a ring
// live in private memory. One goroutine on one locked OS thread (Run) does all
// the carrying; it never blocks on one ring or one peer.
//
// It must never import another room of MVM nor net/http: the MVM process is
// started once per job, and its start is paid by every job.
package queuevm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers tell apart with errors.Is. Each is wrapped in a sentence
// that names the process, port, queue or peer it is about.
var (
	ErrFull    = errors.New("the queue is full")                  // and its policy is to fail
	ErrClosed  = errors.New("END was said, or the taker is gone") // nobody will ever take what would be enqueued
	ErrLost    = errors.New("the link to the peer is lost")       // items may be missing: END would lie
	ErrTooBig  = errors.New("the item is too big")                // over Config.MaxItem
	ErrBroken  = errors.New("the ring's contents are garbage")    // a child wrote into its shared memory
	ErrUnknown = errors.New("unknown")                            // no such process, queue, port or peer
	ErrDown    = errors.New("the queue-level VM is closed")       // Close was called
)

// Config says how one queue-level VM runs. The zero value serves a job that is
// wholly on one node.
type Config struct {
	// Listen is the proxy's listen address, for example "127.0.0.1:0". Empty
	// means no proxy: no peers and no plain sockets.
	Listen string
	// Self is this node's id within the job group. Ids are compared as strings;
	// of two peers the lower one dials.
	Self string
	// Plain leaves the bytes between proxies unencrypted on connections whose
	// two ends are loopback addresses, when the peer does so too. All others are
	// encrypted, and peers prove their keys either way.
	Plain bool
	// PlainLinks are networks whose links are not encrypted either, when both ends
	// are in one of them and the peer agrees.
	PlainLinks []netip.Prefix
	// Dial makes the connections to peers where this machine is a guest whose
	// network is its host's; nil is TCP. Such links go as they are only where Plain
	// says so: what the addresses here look like means nothing then.
	Dial func(ctx context.Context, address string) (net.Conn, error)
	// Redial is how long a cut link may stay down before the peer is reported
	// lost, and how long, but 3 s at least, a peer may be silent before its link
	// is taken for cut. Zero means 10 s.
	Redial time.Duration
	// Cores is how many cores this VM, its processes, and those of its peers on
	// the same machine may count on to themselves: only when each can have one do
	// they spin before they yield. Zero means all of the machine's.
	Cores int
	// Reaper says that all children of this process belong to the job, also those
	// that are not Started programs: what a program left becomes one.
	Reaper bool
	// MaxItem bounds, in bytes, one item that leaves through an outside end or
	// comes in through a plain socket. Zero means 1 GiB.
	MaxItem int
	// Logf takes one line of diagnosis; nil discards it.
	Logf func(format string, args ...any)
}

// Process is one running instance of a task on this node.
type Process struct {
	ID    int    // names the process to this VM; chosen by the caller, unique
	Index int    // 0..Count-1 within its task, over all nodes
	Count int    // how many instances the task has, over all nodes
	Task  string // the role in the profile
}

// Endpoint is one end of a channel: exactly one of a local process's port, a
// remote peer (node id), an outside queue's name, or a served queue. A Peer
// endpoint marks the end that another node serves under the same channel id;
// Process and Port are then ignored, and Queue says which served queue it is
// that the peer is the home of, if any.
type Endpoint struct {
	Process int
	Port    string
	Peer    string
	Outside string
	Queue   int
}

// Channel is a directed fifo of items. Capacity is in bytes and is rounded up
// to a power of two of at least 4096 (0 means DefaultCapacity). ID is the same
// on both nodes of a remote channel and unique within the job. A port may have
// one outgoing and one incoming channel.
type Channel struct {
	ID       uint32
	Capacity int
	From, To Endpoint
	// Direct gives the two processes a socket of their own where they are on two
	// nodes, instead of the proxies' link (LAYOUT.md, section 7). Within a node it
	// changes nothing: nobody is between the two ends of a ring either.
	Direct bool
	// After is the channel that this one follows, where a port, or an outside end,
	// already leads that way: its producer goes on with this one when it is told to
	// (VM.Switch), its taker when it has taken all of the other.
	After uint32
	// Forward says that From is a port that a taker has left: its daemon enqueues, in
	// the order in which they came, all items that were left there and that still come
	// on the channels that lead there, and then ends this one. What the port itself
	// enqueues is not touched.
	Forward bool
	// Behind is, where To is a queue, a channel to it that must have ended before any
	// item of this one enters: it brings what this one's producer enqueued before.
	Behind uint32
	Label  string // what people call the producer; needed where To is a queue with a Converter
}

// Peer is another node of the job group: where its proxy listens and the
// fingerprint (hex sha256 of its SubjectPublicKeyInfo) of its throw-away key.
type Peer struct{ ID, Address, Fingerprint string }

// PeerLost reports that a peer's link stayed down for longer than
// Config.Redial, or broke the protocol. Its channels have ended with ErrLost.
type PeerLost struct {
	ID  string
	Err error
}

// ChannelState is what Inspect sees of one channel at one instant. Words that
// only a child writes (ItemsIn, ItemsOut where the child holds that end) are
// as honest as the child.
type ChannelState struct {
	ID           uint32
	From, To     Endpoint
	Capacity     int    // bytes
	Depth        int    // bytes waiting in this node's ring, record headers included
	ItemsIn      uint64 // items whose last byte was published
	ItemsOut     uint64 // items taken; where the proxy takes them, those that it sent
	BytesIn      uint64 // ring bytes, record headers and padding included
	BytesOut     uint64
	Carried      uint64 // bytes that crossed the proxy for this channel, without frame headers
	TakerWaits   bool   // a taker sleeps on the empty channel
	GiverWaits   bool   // a giver sleeps on the full channel
	GiverClosed  bool   // END is or will be in order
	TakerClosed  bool   // enqueue answers "closed"
	Broken, Lost bool
	Switch       SwitchState // how far its end by SWITCH is
}

// DefaultCapacity is a channel's capacity in bytes when none is given.
const DefaultCapacity = 1 << 20

// VM is one queue-level VM: the rings of one job attempt on one node, and the
// proxy that carries its remote channels. All methods may be called from any
// goroutine.
type VM struct {
	config   Config
	key      *key         // nil without a proxy
	listener net.Listener // nil without a proxy
	epoll    int
	poller   *os.File        // the same, for Go's poller; closes it
	dozer    syscall.RawConn // of poller
	bell     int             // an eventfd that the daemon's goroutines ring to end the loop's sleep
	door     int             // the same for children, who may do what they like with it
	began    time.Time
	lostPeer chan PeerLost
	refused  chan error
	done     chan struct{} // closed by Close
	told     chan struct{} // closed by Connect: who the peers are is known
	stopped  chan struct{} // closed when Run returns
	tasks    sync.WaitGroup
	handing  atomic.Int32 // plain sockets that are being given what they asked for

	mu         sync.Mutex // guards everything below; the loop holds it but for its sleeps
	processes  map[int]*process
	channels   map[uint32]*channel
	queues     map[int]*queue
	carried    []*channel          // those with an end that is the daemon's
	hot        []*channel          // those that the loop polls
	givers     map[string]*channel // outside queues into the job
	takers     map[string]*channel // outside queues out of the job
	moved      string              // where the proxy is reached, once that is not where it was at first
	peers      map[string]*peer
	links      []*peer // the same, for the loop's rounds
	tokens     map[string]token
	sources    map[int32]source
	turn       int // which hot channel goes first this round
	running    bool
	connected  bool
	linked     bool // every peer was proven once
	neighbours int  // peers on this machine
	closed     bool
	period     uint64 // of Quiet
	changes    uint64 // that were made while the VM ran
	removed    map[uint32]bool
	unmade     map[uint32]bool // taken back before a peer knew of them: of these none has heard yet
	visited    bool            // somebody from outside has come to a queue
	pending    []*channel      // whose producers were told to end them
	ending     []*channel      // that are over
	past       past
	rest       []uint64      // how far everything was when it was last quiet; nil when it was not
	flying     []*front      // whose links the loop must look after in time
	due        time.Duration // when the first of them, or a peer whose frame may be late
	clock      clock
	woken      bool          // this is the loop's first round after a sleep
	lateness   time.Duration // of the loop when its clock wakes it
}

// New makes a VM and, when Config.Listen is set, listens and makes the
// throw-away key. Nothing is carried until Run.
func New(config Config) (*VM, error) {
	if config.Redial <= 0 {
		config.Redial = 10 * time.Second
	}
	if config.Cores <= 0 {
		config.Cores = runtime.NumCPU()
	}
	if config.MaxItem <= 0 {
		config.MaxItem = 1 << 30
	}
	vm := &VM{
		config: config, epoll: -1, bell: -1, door: -1, began: time.Now(), due: never, clock: clock{-1, never, never}, lateness: 30 * time.Microsecond,
		lostPeer: make(chan PeerLost, 16), refused: make(chan error, 1),
		done: make(chan struct{}), told: make(chan struct{}), stopped: make(chan struct{}),
		processes: map[int]*process{}, channels: map[uint32]*channel{}, queues: map[int]*queue{},
		givers: map[string]*channel{}, takers: map[string]*channel{},
		removed: map[uint32]bool{}, unmade: map[uint32]bool{}, peers: map[string]*peer{}, tokens: map[string]token{}, sources: map[int32]source{},
	}
	if err := vm.setUp(); err != nil {
		_ = vm.Close()
		return nil, fmt.Errorf("start the queue-level VM: %w", err)
	}
	return vm, nil
}

func (vm *VM) setUp() (err error) {
	if vm.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if err := unix.SetNonblock(vm.epoll, true); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	vm.poller = os.NewFile(uintptr(vm.epoll), "epoll")
	if vm.dozer, err = vm.poller.SyscallConn(); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	for _, bell := range []*int{&vm.bell, &vm.door} {
		if *bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
		if err := vm.watch(*bell, unix.EPOLLIN, bellWatch{vm, *bell}); err != nil {
			return fmt.Errorf("epoll: %w", err)
		}
	}
	if vm.config.Listen == "" {
		return nil
	}
	if vm.key, err = newKey(); err != nil {
		return err
	}
	if vm.config.Dial != nil {
		vm.key.machine = nil // clones have one name for all of them
	}
	if vm.listener, err = net.Listen("tcp", vm.config.Listen); err != nil {
		return err
	}
	vm.tasks.Add(1)
	go vm.accept()
	return nil
}

// Address is the proxy's host:port, "" without a proxy.
func (vm *VM) Address() string {
	if vm.listener == nil {
		return ""
	}
	return vm.listener.Addr().String()
}

// Fingerprint is the hex sha256 of the throw-away public key
// (SubjectPublicKeyInfo), "" without a proxy.
func (vm *VM) Fingerprint() string {
	if vm.key == nil {
		return ""
	}
	return vm.key.fingerprint
}

// Lost delivers each lost peer once. The channel is never closed.
func (vm *VM) Lost() <-chan PeerLost { return vm.lostPeer }

func (vm *VM) logf(format string, args ...any) {
	if vm.config.Logf != nil {
		vm.config.Logf(format, args...)
	}
}

// Close stops Run, says goodbye to the peers, wakes every waiter and frees
// everything. Items still in rings are gone: children see "lost", callers of
// Enqueue and Dequeue ErrDown. Calling it twice changes nothing.
func (vm *VM) Close() error {
	vm.mu.Lock()
	if vm.closed {
		vm.mu.Unlock()
		return nil
	}
	vm.closed = true
	close(vm.done)
	for _, c := range vm.channels {
		c.ring.endProducer(stateClosed|stateLost, vm.bell)
		c.ring.endConsumer(stateClosed|stateLost, vm.bell)
		c.direct.shut(unix.SHUT_RDWR)
	}
	running := vm.running
	vm.mu.Unlock()
	if running {
		ring1(vm.bell)
		<-vm.stopped
	}
	if vm.listener != nil {
		_ = vm.listener.Close()
	}
	vm.mu.Lock()
	for _, p := range vm.peers {
		p.goodbye()
	}
	for _, c := range vm.channels {
		c.direct.close()
	}
	for _, p := range vm.processes {
		p.hangUp()
		if p.pidfd >= 0 {
			vm.unwatch(p.pidfd)
		}
	}
	vm.mu.Unlock()
	vm.tasks.Wait()
	for _, c := range vm.channels {
		for _, o := range []*outside{c.give, c.take} {
			if o != nil {
				o.turn <- struct{}{} // whoever is inside leaves, nobody enters again
			}
		}
		c.ring.free()
	}
	if vm.poller != nil {
		_ = vm.poller.Close()
	} else if vm.epoll >= 0 {
		_ = unix.Close(vm.epoll)
	}
	for _, fd := range []int{vm.bell, vm.door, vm.clock.fd} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	return nil
}
