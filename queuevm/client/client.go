// Package client is what a Go program of an MVM job calls: it opens ports by
// name and enqueues or dequeues items. Who is at the other end is decided
// outside the program.
//
//	next, err := client.Open("next")
//	...
//	err = next.Enqueue([]byte("hello"))
//
// What always holds: an item is any bytes of any length, it arrives whole and
// in order or not at all, and a word that another process wrote is checked
// before it is used. It imports the standard library only, since jobs are built
// from a copy of it without a network.
package client

import (
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What the calls fail with; tell them apart with errors.Is.
var (
	ErrEnd       = errors.New("end: the giver has finished and everything was taken")
	ErrClosed    = errors.New("closed: the taker is gone, the item will not be taken")
	ErrLost      = errors.New("lost: the link to the other end is gone, items may be missing")
	ErrTooBig    = errors.New("too big: the item does not fit the buffer or this form of the call")
	ErrAgain     = errors.New("again: this would have to wait")
	ErrTimeout   = errors.New("timeout: nothing happened in time")
	ErrBroken    = errors.New("broken: the channel's shared memory holds garbage")
	ErrDirection = errors.New("direction: the port does not lead that way")
	ErrFull      = errors.New("full: the queue is full and refuses the item")
	ErrMisuse    = errors.New("misuse: commit without reserve, release without peek, or a bad argument")
)

// session is this process's side of its talk with MVM.
type session struct {
	started time.Time
	owing   atomic.Bool  // some port's consumer end owes a look at its producer
	noYield atomic.Int64 // when yields may be tried again after one met a hog: a matter of the machine, so one word for all ports
	mu      sync.Mutex   // guards everything below
	ports   map[string]*Port
	bell    int // the daemon's eventfd, -1 before the first port
	control int // the socket to the daemon
	known   bool
	spin    int
}

// current is the one session that a process has: ports are the process's, as
// its descriptors and its environment are.
var current = session{started: time.Now(), ports: map[string]*Port{}, bell: -1}

// Port is one named port. While the job runs people may lead its edge elsewhere:
// the port goes on with it, between two items, and what LargestOut and LargestIn say
// may then be another; ErrEnd and ErrClosed stay until it is given an edge again. Any
// goroutine may use it; the calls of one direction
// take turns.
type Port struct {
	name  string
	outMu sync.Mutex // guards out
	out   end
	inMu  sync.Mutex // guards in, and hops while in a wait
	in    end
	hops  uint64 // rings that it went on to

	// What may be asked without the turn of a way.
	leadsOut, leadsIn     atomic.Bool
	largestOut, largestIn atomic.Int64
}

// Open opens a port by the name the topology gave it ("next", "dim0"...). The
// same name gives the same port again. It fails with a sentence that says why,
// for example that the program was not run by MVM.
func Open(name string) (*Port, error) {
	s := &current
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.ports[name]; p != nil {
		return p, nil
	}
	answer, fds, err := s.ask("open " + name)
	if err != nil {
		return nil, err
	}
	p := &Port{name: name}
	if err := s.adopt(p, answer, fds); err != nil {
		return nil, fmt.Errorf("the channels of port %q could not be mapped: %w", name, err)
	}
	if err := s.connectSockets(p); err != nil {
		return nil, err
	}
	s.ports[name] = p
	return p, nil
}

// adopt maps what the daemon sent and closes the descriptors.
func (s *session) adopt(p *Port, answer string, fds []int) error {
	defer func() {
		for _, fd := range fds {
			if fd != s.bell {
				_ = syscall.Close(fd)
			}
		}
	}()
	var sizes [2]uint64
	if n, err := fmt.Sscanf(answer, "ok %d %d", &sizes[0], &sizes[1]); n != 2 {
		return fmt.Errorf("the answer %q is not understood: %w", answer, err)
	}
	used := 1
	for k, e := range []*end{&p.out, &p.in} {
		if sizes[k] == 0 {
			continue
		}
		if used >= len(fds) {
			return errors.New("a descriptor is missing")
		}
		if err := e.open(fds[used], sizes[k]); err != nil {
			return err
		}
		used++
	}
	if s.bell < 0 && len(fds) > 0 {
		s.bell = fds[0]
	}
	// Where this process stands is in the ring: a port is opened again after exec.
	p.out.resume(true, s.bell)
	p.in.resume(false, s.bell)
	p.note(&p.out)
	p.note(&p.in)
	return nil
}

// ask puts one question to the daemon. The caller holds mu.
func (s *session) ask(question string) (string, []int, error) {
	if !s.known {
		control, err := strconv.Atoi(os.Getenv("MVM_CONTROL"))
		if err != nil {
			return "", nil, errors.New("not run by MVM: the program was started by hand, so it has no ports; run it with `mvm lab PROFILE`")
		}
		s.control, s.known = control, true
		s.spin, _ = strconv.Atoi(os.Getenv("MVM_SPIN"))
		syscall.CloseOnExec(control)
	}
	for {
		err := syscall.Sendmsg(s.control, []byte(question), nil, nil, syscall.MSG_NOSIGNAL)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return "", nil, fmt.Errorf("descriptor %d does not lead to MVM (%w): a program must not close what it inherits", s.control, err)
		}
		break
	}
	answer := make([]byte, 64<<10)
	rights := make([]byte, syscall.CmsgSpace(3*4))
	for {
		n, rn, _, _, err := syscall.Recvmsg(s.control, answer, rights, syscall.MSG_CMSG_CLOEXEC)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return "", nil, errors.New("MVM has gone away: the job is being ended")
		}
		var fds []int
		if messages, err := syscall.ParseSocketControlMessage(rights[:rn]); err == nil {
			for _, m := range messages {
				if got, err := syscall.ParseUnixRights(&m); err == nil {
					fds = append(fds, got...)
				}
			}
		}
		text := string(answer[:n])
		if !strings.HasPrefix(text, "ok") {
			return "", nil, errors.New(strings.TrimPrefix(text, "error "))
		}
		return text, fds, nil
	}
}

// Name is the name the port was opened by.
func (p *Port) Name() string { return p.name }

// CanEnqueue says whether the port leads out.
func (p *Port) CanEnqueue() bool { return p.leadsOut.Load() }

// CanDequeue says whether the port leads in.
func (p *Port) CanDequeue() bool { return p.leadsIn.Load() }

// LargestOut is the largest item, in bytes, that TryEnqueue, EnqueueTimed and
// Reserve take: half the channel's capacity less 8.
func (p *Port) LargestOut() int { return int(p.largestOut.Load()) }

// LargestIn is the same for TryDequeue, DequeueTimed and Peek.
func (p *Port) LargestIn() int { return int(p.largestIn.Load()) }

// Enqueue enqueues one item and blocks while there is no room. Items over
// LargestOut go in fragments and arrive as one. ErrClosed, ErrLost, ErrBroken,
// ErrDirection; where the topology has put a queue between: ErrFull from one that
// refuses items when it is full, ErrTooBig over its capacity.
func (p *Port) Enqueue(item []byte) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	return p.enqueue(item, never)
}

// Instruct is Enqueue for an instruction instead of data: source for a processor
// to build and to apply to the items after it (LAYOUT.md, "Instructions").
func (p *Port) Instruct(item []byte) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	p.out.meta |= kindInstruction
	defer func() { p.out.meta &^= kindMask }()
	return p.enqueue(item, never)
}

// TryEnqueue is Enqueue without waiting (ErrAgain), for items up to LargestOut
// (else ErrTooBig). Nothing is enqueued unless it returns nil. A queue that
// refuses items when it is full is asked, and its answer waited for.
func (p *Port) TryEnqueue(item []byte) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	return p.enqueue(item, atOnce)
}

// EnqueueTimed is TryEnqueue that waits up to limit (ErrTimeout).
func (p *Port) EnqueueTimed(item []byte, limit time.Duration) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	return p.enqueue(item, in(limit))
}

// Dequeue dequeues one item of any length, blocking until there is one. ErrEnd
// once the giver has finished and everything was taken, again and again until the
// port is given an edge again. ErrLost, ErrBroken, ErrDirection.
func (p *Port) Dequeue() ([]byte, error) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.dequeue(nil, false, never)
}

// DequeueInto is Dequeue into a buffer of the caller's; it returns the item's
// length. ErrTooBig when the item is longer than the buffer: it stays.
func (p *Port) DequeueInto(buffer []byte) (int, error) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	item, err := p.dequeue(buffer, true, never)
	return len(item), err
}

// IsInstruction says whether the item that was dequeued or peeked last is an
// instruction, not data.
func (p *Port) IsInstruction() bool {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.in.meta&kindMask == kindInstruction
}

// SetPriority is the priority of the items that are enqueued from now on, 0 to
// 255; 0 at first. A priority queue hands out the highest first; others ignore it.
func (p *Port) SetPriority(priority uint8) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	p.out.meta = p.out.meta&metaAwaits | uint32(priority)<<4
}

// TryDequeue is Dequeue without waiting (ErrAgain), for items up to LargestIn
// (else ErrTooBig). Where several may take from a queue it is asked each time, one
// trip to the node that keeps it, as DequeueTimed does once more when the time is
// over: nothing comes later to a port that gave up.
func (p *Port) TryDequeue() ([]byte, error) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.dequeue(nil, false, atOnce)
}

// DequeueTimed is TryDequeue that waits up to limit (ErrTimeout).
func (p *Port) DequeueTimed(limit time.Duration) ([]byte, error) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.dequeue(nil, false, in(limit))
}

// Items yields items until END. It stops early, without an error of its own,
// when the port fails: the next Dequeue says why.
func (p *Port) Items() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for {
			item, err := p.Dequeue()
			if err != nil || !yield(item) {
				return
			}
		}
	}
}

// Reserve gives room for length bytes within the channel, blocking until it is
// free: zero copy. Commit enqueues what was written there; nothing else may be
// enqueued in between. ErrTooBig over LargestOut.
func (p *Port) Reserve(length int) ([]byte, error) {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	var room []byte
	err := p.heeding(func() (err error) {
		room, err = p.out.reserve(length)
		return err
	})
	return room, err
}

// Commit enqueues the first length bytes of what Reserve gave.
func (p *Port) Commit(length int) error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	return p.out.commit(length)
}

// Peek gives the next item in place, blocking: zero copy. It is valid, and
// stays the next item, until Release. ErrTooBig over LargestIn.
func (p *Port) Peek() ([]byte, error) {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	var item []byte
	err := p.taking(func() (err error) {
		item, err = p.in.peek()
		return err
	})
	return item, err
}

// Release takes the peeked item off.
func (p *Port) Release() error {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.in.release()
}

// End finishes the way out: the taker gets END after what was enqueued.
func (p *Port) End() error {
	p.outMu.Lock()
	defer p.outMu.Unlock()
	if p.out.header == nil {
		return ErrDirection
	}
	p.out.finish(&p.out.header.producerState, &p.out.header.consumerWaits)
	return nil
}

// Close finishes the port for good, both ways: takers get END after what was
// enqueued, givers get "closed". It waits for calls on the port that are under
// way. The end of the program does the same.
func (p *Port) Close() error {
	if p.CanEnqueue() {
		_ = p.End()
	}
	if p.CanDequeue() {
		p.inMu.Lock()
		defer p.inMu.Unlock()
		p.in.finish(&p.in.header.consumerState, &p.in.header.producerWaits)
	}
	return nil
}

// Task is this process's task in the profile, "" outside a job.
func Task() string { return os.Getenv("MVM_TASK") }

// Index is this process's index within its task, over all nodes; -1 outside a job.
func Index() int { return number("MVM_INDEX") }

// Count is how many processes the task has, over all nodes; -1 outside a job.
func Count() int { return number("MVM_COUNT") }

func number(name string) int {
	n, err := strconv.Atoi(os.Getenv(name))
	if err != nil {
		return -1
	}
	return n
}

// Ports are the names of this process's ports.
func Ports() ([]string, error) {
	s := &current
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for total := 1; len(names) < total; {
		answer, _, err := s.ask("ports " + strconv.Itoa(len(names)))
		if err != nil {
			return nil, err
		}
		fields := strings.Fields(answer)
		if len(fields) < 2 {
			return nil, fmt.Errorf("the answer %q is not understood", answer)
		}
		if total, err = strconv.Atoi(fields[1]); err != nil {
			return nil, fmt.Errorf("the answer %q is not understood", answer)
		}
		if len(fields) == 2 {
			break
		}
		names = append(names, fields[2:]...)
	}
	return names, nil
}
