// Package profile turns a job profile, the XML document in which a person
// says what to build, run and wire, into a Job in which nothing is left open:
// every process, port and channel has a number, every parameter its value,
// every registered profile is merged in, every file is a digest.
//
// What always holds: Compile either returns a Job that can run as it stands
// or a *wsdl.Fault that lists every problem found, each with its element,
// what was found and what was expected. Sizes are computed before anything is
// expanded, so no document can ask for more memory than MaxProcesses and
// MaxChannels allow. The same document, arguments and registered profiles
// give the same Job for ever, random graphs included.
//
// The package is pure: it opens no file and calls no service. Whoever uses it
// hands in functions that do (Lookup, the file and read functions).
package profile

import (
	"strconv"
	"strings"
	"time"

	"mvm/queuevm/codec"
	"mvm/wsdl"
)

// Bounds of one job. A profile that asks for more is refused before anything
// is expanded.
const (
	MaxProcesses = 100_000
	MaxChannels  = 1_000_000
	MaxSteps     = 16    // of one queue's encoders
	MaxNetwork   = 1_000 // processes in VMs with a network: each VM's host speaks to each
)

// DefaultCapacity is a channel's capacity in bytes where no queue says
// otherwise; MinCapacity and MaxCapacity bound what a queue may say.
const (
	DefaultCapacity = 256 << 10
	MinCapacity     = 4 << 10
	MaxCapacity     = 1 << 30
)

// Job is a profile with everything resolved: what the broker places, journals
// and hands to the nodes. Slices in it may be shared between processes of a
// task; treat it as read-only.
type Job struct {
	Name        string
	Description string
	Sources     []Source   // as the document orders them; then registered codecs and rules, as codec:NAME@VERSION and rule:NAME@VERSION
	Tasks       []Task     // as the document orders them
	Processes   []Process  // by ID: task by task, then by index
	Channels    []Channel  // by ID
	Queues      []Queue    // those that are served at a home, by ID
	Kinds       []Queue    // the queue elements, as the document orders them: what a queue of their name is like; without an ID
	Topologies  []Topology // what the channels were made from, for drawing
	WallTime    time.Duration
	Retries     int
	Priority    int    // 0 to 100
	Queue       string // of the broker's, in which it waits; "" where the profile names none
	Nodes       int    // spread over at least so many nodes
	VM          *VM    // the OS-level VMs in which all processes run; nil = the nodes themselves

	Checkpoint time.Duration // from one checkpoint of the whole job in VMs to the next; 0 = none
}

// VM is what a job's VMs are begun from. Compile knows only what the profile
// names; who looks that up says the rest.
type VM struct {
	Image     string   // NAME, NAME@VERSION or the digest of its manifest
	Name      string   // for people
	Most      int      // processes in one; 0 = all that a node gets
	MemoryMiB int64    // that each has, beside what its processes claim
	Languages []string // that it can build and run
	Blobs     []string // of the image, its manifest the first
	Network   bool     // an Ethernet of the job's own joins them
	Limits    VMLimits // of each
}

// VMLimits is what one VM may take of its machine; 0 is as much as that lets it.
type VMLimits struct {
	CPUPercent  int64 // of one core
	DiskMiB     int64
	DiskRate    int64 // KiB a second
	NetworkRate int64 // KiB a second
}

// Source is one program to build.
type Source struct {
	Name     string
	Language string // c, cpp, go, python or shell
	Flags    []string
	Files    []File // the first is the one that an interpreter runs
}

// File is a blob under the name that it gets where it is used.
type File struct {
	Name   string // relative, slash-separated, without ".."
	Digest string // sha256: and 64 hexadecimal digits
}

// Task is a role: its processes are Job.Processes[First : First+Count].
type Task struct {
	Name   string
	Source string
	First  int
	Count  int
}

// Process is one running instance of a task.
type Process struct {
	ID          int    // its place in Job.Processes
	Task        string // name of its task
	Index       int    // 0 to Count-1 within the task
	Count       int    // of the task
	Source      string // name of its source
	Arguments   []string
	Environment []Variable
	Inputs      []File
	Outputs     []Output
	Need        Resources
	Ports       []string // in natural order (dim2 before dim10)
}

// Label is the process's name for people: task[index], or task alone where
// the task has one process.
func (p *Process) Label() string {
	if p.Count == 1 {
		return p.Task
	}
	return p.Task + "[" + strconv.Itoa(p.Index) + "]"
}

// Variable is one environment variable.
type Variable struct{ Name, Value string }

// Output is a file that the process leaves in its working folder.
type Output struct {
	Name     string
	Optional bool // its absence is no failure
}

// Resources is what one process needs of its node, besides a slot.
type Resources struct {
	Cores     int   // kept for it alone; 0 = it shares
	MemoryMiB int64 // 0 = no claim
	Require   []Requirement
}

// Requirement is a property the node must have: the text Equals, or, where
// Equals is empty, a number of at least Minimum.
type Requirement struct {
	Property string // a wsdl.NodeProperty
	Equals   string
	Minimum  int64
}

// Queue is a served queue: one that is more than a fifo between two ends. A
// channel leads to it from each producer, and from it to each taker.
type Queue struct {
	ID       int    // its place in Job.Queues and 1: no End has 0
	Name     string // as the document names it; #2... for the next of its kind
	Type     string // a wsdl.QueueType
	Full     string // a wsdl.FullPolicy
	Capacity int    // bytes, a power of two
	Steps    []codec.Step
	Link     *Link  // nil imposes nothing
	Rule     string // NAME@VERSION of a registered one, "" for the type's own
}

// Served says that such a queue is more than a fifo between two ends, and so needs
// a home.
func (q *Queue) Served() bool {
	return q.Type != string(wsdl.QueueTypeFifo) || q.Full != string(wsdl.FullPolicyBlock) || len(q.Steps) > 0 || q.Rule != "" || q.Link != nil
}

// What a queue needs its node to allow.
const (
	NeedsType       = "type"
	NeedsCodec      = "codec"
	NeedsRegistered = "registered"
	NeedsRule       = "rule"
)

// Need is one thing that a queue needs its node to allow, by its name.
type Need struct{ Kind, Name string }

// Needs lists what the queue needs its node to allow.
func (q *Queue) Needs() []Need {
	needs := []Need{{NeedsType, q.Type}}
	for _, s := range q.Steps {
		if name, _, registered := strings.Cut(s.Program, "@"); registered {
			needs = append(needs, Need{NeedsRegistered, name})
		} else {
			needs = append(needs, Need{NeedsCodec, s.Codec})
		}
	}
	if name, _, ruled := strings.Cut(q.Rule, "@"); ruled {
		needs = append(needs, Need{NeedsRule, name})
	}
	return needs
}

// Programs names the sources of the queue's registered codecs and rule.
func (q *Queue) Programs() (names []string) {
	for _, s := range q.Steps {
		if s.Program != "" {
			names = append(names, LogicSource(wsdl.ProfileKindCodec, s.Program))
		}
	}
	if q.Rule != "" {
		names = append(names, LogicSource(wsdl.ProfileKindRule, q.Rule))
	}
	return names
}

// QueueEnds lists, for each served queue, the processes that give to it or take
// from it, once for each channel.
func (j *Job) QueueEnds() [][]int {
	ends := make([][]int, len(j.Queues))
	for i := range j.Channels {
		c := &j.Channels[i]
		if q := c.To.Queue; q > 0 && c.From.Process >= 0 {
			ends[q-1] = append(ends[q-1], c.From.Process)
		}
		if q := c.From.Queue; q > 0 && c.To.Process >= 0 {
			ends[q-1] = append(ends[q-1], c.To.Process)
		}
	}
	return ends
}

// Channel is a directed fifo of items between two ends.
type Channel struct {
	ID       int // its place in Job.Channels
	From, To End
	Capacity int  // bytes, a power of two
	Direct   bool // a socket of the two processes' own where they are on two nodes
}

// End is one end of a channel: a process's port, the name of a queue that
// people and programs outside the job reach, or a served queue; Process is -1
// for the latter two.
type End struct {
	Process int
	Port    string
	Outside string
	Queue   int
}

// Topology is one pattern laid over processes, as it was resolved. Members
// are process IDs in the pattern's numbering.
type Topology struct {
	Kind          string // a wsdl.TopologyKind
	Prefix        string // before each of its port names
	Members       []int
	Columns       int // mesh, torus: lengths, 1 for a dimension not used
	Rows          int
	Layers        int
	Arity         int    // tree, fatTree
	Levels        int    // fatTree
	Masters       int    // farm: so many of the first members
	Graph         string // graph: the digest of its text, which compiling it again needs
	First, Length int    // its channels are Job.Channels[First : First+Length]
}
