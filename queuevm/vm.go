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
	"os"
	"time"
)

// Errors that callers tell apart with errors.Is. Each is wrapped in a sentence
// that names the process, port, queue or peer it is about.
var (
	ErrClosed  = errors.New("the taker is gone")               // nobody will ever take what would be enqueued
	ErrLost    = errors.New("the link to the peer is lost")    // items may be missing: END would lie
	ErrTooBig  = errors.New("the item is too big")             // over Config.MaxItem
	ErrBroken  = errors.New("the ring's contents are garbage") // a child wrote into its shared memory
	ErrUnknown = errors.New("unknown")                         // no such process, queue, port or peer
	ErrDown    = errors.New("the queue-level VM is closed")    // Close was called
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
	// Plain leaves the bytes between proxies unencrypted (loopback, or where the
	// domain says so). Peers prove their keys either way.
	Plain bool
	// Redial is how long a cut link may stay down before the peer is reported
	// lost. Zero means 10 s.
	Redial time.Duration
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
// remote peer (node id), or an outside queue's name. A Peer endpoint marks the
// end that another node serves under the same channel id; Process and Port are
// then ignored.
type Endpoint struct {
	Process int
	Port    string
	Peer    string
	Outside string
}

// Channel is a directed fifo of items. Capacity is in bytes and is rounded up
// to a power of two of at least 4096 (0 means DefaultCapacity). ID is the same
// on both nodes of a remote channel and unique within the job. A port may have
// one outgoing and one incoming channel.
type Channel struct {
	ID       uint32
	Capacity int
	From, To Endpoint
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
	ItemsOut     uint64 // items taken
	BytesIn      uint64 // ring bytes, record headers and padding included
	BytesOut     uint64
	Carried      uint64 // bytes that crossed the proxy for this channel, without frame headers
	TakerWaits   bool   // a taker sleeps on the empty channel
	GiverWaits   bool   // a giver sleeps on the full channel
	GiverClosed  bool   // END is or will be in order
	TakerClosed  bool   // enqueue answers "closed"
	Broken, Lost bool
}

// DefaultCapacity is a channel's capacity in bytes when none is given.
const DefaultCapacity = 1 << 20

var errUnbuilt = errors.New("queuevm: not built into this binary")

// VM is one queue-level VM: the rings of one job attempt on one node, and the
// proxy that carries its remote channels. All methods may be called from any
// goroutine.
type VM struct {
	config Config
}

// New makes a VM and, when Config.Listen is set, listens and makes the
// throw-away key. Nothing is carried until Run.
func New(config Config) (*VM, error) { return &VM{config: config}, nil }

// Run carries items until ctx ends or Close is called, and then returns nil.
// It locks its OS thread; call it once, on a goroutine of its own, before
// Connect and before the first child starts.
func (vm *VM) Run(ctx context.Context) error { return errUnbuilt }

// Address is the proxy's host:port, "" without a proxy.
func (vm *VM) Address() string { return "" }

// Fingerprint is the hex sha256 of the throw-away public key
// (SubjectPublicKeyInfo), "" without a proxy.
func (vm *VM) Fingerprint() string { return "" }

// AddProcess makes a process known. Its channels may be added before or after.
func (vm *VM) AddProcess(p Process) error { return errUnbuilt }

// AddChannel makes the channel's ring on this node. Processes that it names
// must be known; a peer need not be connected yet: early items wait.
func (vm *VM) AddChannel(c Channel) error { return errUnbuilt }

// Connect makes the links to the peers and returns when every one of them has
// proven its key, or with the first failure. Of two nodes the one with the
// lower id dials, again and again until ctx ends; the other waits for it. Call
// it once with the whole group.
func (vm *VM) Connect(ctx context.Context, peers []Peer) error { return errUnbuilt }

// Lost delivers each lost peer once. The channel is never closed.
func (vm *VM) Lost() <-chan PeerLost { return nil }

// Child returns the file that must become descriptor 3 of the process's
// program, and the environment that tells the client library about it. The
// caller closes the file once the program is started. One program per process.
func (vm *VM) Child(process int) (file *os.File, env []string, err error) {
	return nil, nil, errUnbuilt
}

// Started hands over a pidfd of the process's program (the VM duplicates it).
// When the program dies, the ends it held are closed as by Ended.
func (vm *VM) Started(process int, pidfd int) error { return errUnbuilt }

// Ended closes every end that the process held: takers get what was published
// whole and then END; givers get "closed". Calling it twice changes nothing.
func (vm *VM) Ended(process int) {}

// Enqueue puts one item into an outside queue (a channel whose From is Outside)
// and blocks while it is full. An item over half the capacity goes in
// fragments and is no longer given up when ctx ends. ErrClosed when the taker
// is gone.
func (vm *VM) Enqueue(ctx context.Context, queue string, item []byte) error { return errUnbuilt }

// Dequeue takes one item from an outside queue (a channel whose To is Outside),
// waiting for it until ctx ends. io.EOF is END, and stays.
func (vm *VM) Dequeue(ctx context.Context, queue string) ([]byte, error) { return nil, errUnbuilt }

// CloseOutside says END on an outside queue that leads into the job.
func (vm *VM) CloseOutside(queue string) error { return errUnbuilt }

// OpenSocket makes a token with which one plain TCP connection to address may
// enqueue to or dequeue from the outside queue, as LAYOUT.md specifies. The
// token is void after its first use or after ttl.
func (vm *VM) OpenSocket(queue string, ttl time.Duration) (address, token string, err error) {
	return "", "", errUnbuilt
}

// Inspect reports every channel of this node, ordered by id.
func (vm *VM) Inspect() []ChannelState { return nil }

// Close stops Run, says goodbye to the peers, wakes every waiter with ErrDown
// and frees everything. Items still in rings are gone.
func (vm *VM) Close() error { return nil }
