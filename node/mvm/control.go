package mvm

import (
	"mvm/node/build"
	"mvm/queuevm"
	"mvm/queuevm/codec"
	"time"
)

// The control protocol between a node and the MVM process that it starts for
// one attempt. It runs over an inherited Unix stream socket (ControlFD); each
// message is a 4-byte big-endian length and that many bytes, at most MaxMessage,
// as its visit names them (wire.go). The first message is the node's Start, which the MVM process
// answers with Ready. After that the node sends Requests and the MVM process
// sends Replies (in any order, matched by ID) and Events.
//
// End of file on the socket means that the node is gone: the MVM process
// removes all that it made and exits.
const (
	ControlFD  = 3
	MaxMessage = 64 << 20
)

// Start is the first message: what this MVM process is for.
type Start struct {
	Attempt    string        // for logs: job/number
	Node       string        // this node's id, and its name among the proxies
	WorkDir    string        // made by the node, private to the attempt; the process may write below it only
	Listen     string        // proxy address to listen on, "" for no proxy
	Plain      bool          // raw TCP between proxies (all on loopback)
	PlainLinks []string      // networks, as CIDR, within which it is raw TCP too
	Uplink     string        // the socket through which peers are dialled, "" for the network itself
	Redial     time.Duration // queuevm.Config.Redial
	Library    string        // libmvm.so for Python programs, "" if there is none
	Clients    string        // folder with the client files (queuevm.ClientFiles), read-only
	StreamMax  int64         // bytes kept of each stdout and stderr (half head, half tail)

	// Launch sets these: what LaunchConfig.Limits said of memory, the control group
	// that has that limit, "" where there can be none; the one that limits tasks,
	// which all that is started is to be born in, and whether that is of version 2;
	// and how many threads may run Go at once when there is something to carry.
	MemoryMiB   int64
	MemoryGroup string
	TaskGroup   string
	TaskUnified bool
	Threads     int

	Confinement int           // level at which registered codecs and rules are confined, of Confinement
	LogicTime   time.Duration // that one may take over an item; 0 is 30 s
}

// Ready answers Start.
type Ready struct {
	Error       string // "" = ready
	Address     string // the proxy's host:port
	Fingerprint string
	Cleaning    string // how leftovers are ended here: pidNamespace, cgroup or subreaper
}

// Request is one call from the node. Exactly one of the pointers is set.
type Request struct {
	ID          uint64
	Build       *build.Request
	Instantiate *Instantiate
	Terminate   *Terminate
	Inspect     *struct{}
	Enqueue     *Enqueue
	Dequeue     *Dequeue
	OpenSocket  *OpenSocket
	Quiet       *struct{}
	Lease       *Lease
	Built       *Built
	Peek        *Peek
	Drain       *Drain
	Change      *Change
	Moved       *Moved
}

// Moved says where the proxy is reached from now on.
type Moved struct{ Address string }

// fromOutside says that somebody outside the job waits for the answer.
func (r *Request) fromOutside() bool {
	return r.Enqueue != nil || r.Dequeue != nil || r.OpenSocket != nil || r.Peek != nil || r.Drain != nil
}

// Reply answers the Request with the same ID.
type Reply struct {
	ID      uint64
	Error   *Error
	Build   *build.Result
	Inspect *Inspection
	Dequeue *Dequeued
	Socket  *Socket
	Quiet   *queuevm.Quiet
	Items   []queuevm.Item // Peek, Drain
	Sizes   []int          // of these: bytes of each item, of which Peek gives the first
	More    bool           // Drain: something waits still
	Next    *uint64        // Peek: what may wait at the producer's node begins there
	Change  *Changed
	Count   int // Enqueue: items taken; Instantiate: processes running
}

// Error is a failure of a request. Code is one of the wsdl fault codes that
// the node passes on (buildFailed, notFound, timeout, conflict, internal).
type Error struct {
	Code    string
	Message string
	Output  string // what a compiler printed
}

func (e *Error) Error() string { return e.Message }

// Instantiate spawns the processes (paper, section 4 f). It is answered when
// every peer is connected and every process runs, or none does.
type Instantiate struct {
	Processes []ProcessSpec
	Channels  []queuevm.Channel
	Queues    []Queue // that the channels lead to or from; how many is counted here
	Logic     []Logic // registered codecs and rules of the queues that are kept here
	Peers     []queuevm.Peer
	WallTime  time.Duration // 0 = no limit
}

// Queue is a served queue, the steps that convert its items, and the registered
// rule that orders them.
type Queue struct {
	queuevm.Queue
	Steps   []Step
	Program string // NAME@VERSION of the rule, "" for its type's own
}

// Step is one conversion; codec.Step says more.
type Step = codec.Step

// ProcessSpec is one process to run. Its working folder is
// WorkDir/process-ID, where the node has already put its input files.
type ProcessSpec struct {
	ID          int
	Task        string
	Index       int
	Count       int
	Command     []string // from build.Command: program and arguments
	Environment []string // NAME=value
	MemoryMiB   int64    // 0 = no limit
	Processor   bool     // a bare processor: Command has only the arguments of the programs that it builds
}

// Lease says for how long from now the node may keep the attempt. When that is
// over and no other Lease came, the MVM process ends all as if the node were
// gone. Without any it keeps the attempt for as long as the node is there.
type Lease struct{ For time.Duration }

// Terminate ends every process: SIGTERM, then SIGKILL after Grace. It is
// answered when none is left; the MVM process then exits.
type Terminate struct {
	Grace  time.Duration
	Reason string
}

// Enqueue puts items from outside the job into an outside queue. The answer
// counts those that are in when Timeout ends, from the first; END follows only
// the last.
type Enqueue struct {
	Queue   string
	ID      int          // of a served queue that is kept here, instead of Queue
	Meta    queuevm.Item // the priority and kind of all Items
	Items   [][]byte
	End     bool
	Timeout time.Duration
}

// Dequeue takes up to Limit items from an outside queue; it waits up to
// Timeout for the first, and then answers that there is none.
type Dequeue struct {
	Queue   string
	ID      int // of a served queue that is kept here, instead of Queue
	Limit   int
	Timeout time.Duration
}

// Dequeued answers Dequeue.
type Dequeued struct {
	Items [][]byte
	End   bool
}

// OpenSocket asks for a one-time token for the proxy's plain socket.
type OpenSocket struct {
	Queue string
	TTL   time.Duration
}

// Peek copies the first items that wait in a served queue that is kept here, or,
// with no Queue, in the Channel whose taker is here: up to Bytes of each.
type Peek struct {
	Queue   int
	Channel uint32
	Limit   int
	Bytes   int
	After   *uint64 // of a channel to another node: what waits here, from this offset on
}

// Drain takes up to Limit items out of a served queue that is kept here.
type Drain struct {
	Queue int
	Limit int
}

// Change is this node's part in one step of a live change. What was made already
// is not made again; the answer says how far its switches are.
type Change struct {
	Number   int64
	Step     int
	Logic    []Logic
	Peers    []queuevm.Peer
	Queues   []Queue
	Channels []Link
	Resume   []uint32 // channels from here whose taker has left, and has what they hold forwarded
	Alter    []Alteration
	Switches []Switch
	Discard  *Discard // the change has failed elsewhere: what it made here, or would make, goes
}

// Discard is what a change that failed would have made.
type Discard struct {
	Channels []uint32
	Queues   []int
}

// Link is a channel to make, and the channels that it follows at its ports.
type Link struct {
	queuevm.Channel
	AfterOut, AfterIn *uint32
}

// Alteration is what becomes of a served queue; nil leaves a thing as it is.
type Alteration struct {
	ID       int
	Type     *queuevm.QueueType
	Full     *queuevm.FullPolicy
	Capacity *int
	Steps    *[]Step
	Rule     *string
	Link     *queuevm.Link
}

// Switch ends a channel at its producer, who goes on with Next, or with nothing.
type Switch struct {
	Channel uint32
	Next    *uint32
}

// Changed answers Change.
type Changed struct {
	Done     bool
	Switches []SwitchState
}

// SwitchState is how far a switch is.
type SwitchState struct {
	Channel       uint32
	Written, Read bool
}

// Socket answers OpenSocket.
type Socket struct{ Address, Token string }

// Inspection is what the attempt looks like now.
type Inspection struct {
	Channels  []queuevm.ChannelState
	Queues    []queuevm.QueueState // served here
	Processes []ProcessState
}

// ProcessState is a process as it is now or as it ended.
type ProcessState struct {
	ID        int
	State     string // running, exited or killed
	PID       int
	ExitCode  int
	Signal    string
	Message   string // e.g. "wall time of 10s exceeded"
	Unkept    string // what of its output streams could not be kept, and why; "" = nothing
	User      time.Duration
	System    time.Duration
	MaxRSSKiB int64
	Started   time.Time
	Ended     time.Time
}

// Event is what the MVM process tells unasked. Exactly one field is set.
type Event struct {
	Process *ProcessState // it started or ended, told the moment it happens
	Failure string        // the attempt cannot go on: a peer was lost, the wall time passed
	Traffic *Traffic      // once, after the last process ended
	Build   *Instruction  // a processor has an instruction: Built must answer it
	Quiet   uint64        // the queue-level VM has been quiet for a while: the period; told once for each
}

// Traffic is what this node's proxy sent to peers.
type Traffic struct{ Items, Bytes int64 }

// FromProcess is one message from the MVM process after Ready.
type FromProcess struct {
	Reply *Reply
	Event *Event
}
