// Package mvm is the MVM process, which a node starts for each attempt at a job
// and which dies with it: it builds the sources, holds the queue-level VM and
// the proxy, spawns the programs and reaps them. Launch and Handle are the
// node's side of it, ReadStream reads what programs printed.
//
// What always holds: nothing that an attempt starts outlives its MVM process,
// whichever way that ends, and the MVM process does not outlive its node. Only
// its spawner waits for children. It writes below Start.WorkDir only.
//
// It must never import the grid's services, net/http or etcd: its start is paid
// by every job.
package mvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"mvm/node/confine"
	"mvm/queuevm"
)

// ProcessName is argv[0] of an MVM process, also when the program is the whole
// of mvm.
const ProcessName = "mvm-process"

// Levels of cleaning: how an MVM process ends what programs leave.
const (
	PIDNamespace = "pidNamespace" // it is PID 1 of a namespace, which the kernel ends with it
	CGroup       = "cgroup"       // it lives with all that it starts in a control group, which the node ends after it; a program gets out only with the right to move itself to another
	Subreaper    = "subreaper"    // it inherits orphans and searches /proc; a program can hide from the node when the MVM process itself is killed
)

// IsProcess reports whether a program was started to be the MVM process, and
// so must call Main before anything else.
func IsProcess(args []string) bool {
	return len(args) > 0 && (filepath.Base(args[0]) == ProcessName || len(args) > 1 && args[0] == processorPath && args[1] == processorWord)
}

// Main is the MVM process: it serves the node at the other end of ControlFD
// until Terminate or end of file, and returns the exit code. args[1] is the
// level of cleaning, followed by "=" and the control group to enter if it needs
// one; with a third argument it only tries whether that works, or how programs can be
// confined.
func Main(args []string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, ProcessName+":", err)
		return 1
	}
	if len(args) < 2 {
		return fail(errors.New("a node starts this program; it is not for the command line"))
	}
	if args[1] == limitedWord {
		fail(runLimited(args[2:]))
		return 127 // as shells say that a program cannot be run
	}
	if args[1] == confinedWord {
		fail(confine.Main(args[2:]))
		return 127
	}
	if args[1] == processorWord {
		return runProcessor(args[2:])
	}
	// It would be called by the number of the descriptor it was run from.
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData(ProcessName+"\x00"))), 0, 0, 0)
	cleaning := args[1]
	isolated := isolate(cleaning)
	if len(args) > 2 {
		if isolated != nil {
			return fail(isolated)
		}
		if args[2] == confineWord {
			if err := tryConfinement(os.NewFile(ControlFD, "answer")); err != nil {
				return fail(err)
			}
		}
		return 0
	}
	// Programs get four descriptors, whatever the node inherited from whoever
	// started it. Kernels before 5.11 cannot do it at once; the node's own are
	// marked so anyway.
	unix.CloseOnExec(ControlFD)
	_ = unix.CloseRange(ControlFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	if err := unix.SetNonblock(ControlFD, true); err != nil { // so that Go's poller waits for it
		return fail(fmt.Errorf("the control socket, descriptor %d: %w", ControlFD, err))
	}
	control := os.NewFile(ControlFD, "control")
	w := newWire(control)
	var start Start
	if err := w.receive(&start); err != nil {
		return fail(fmt.Errorf("read what to start: %w", err))
	}
	p, err := newProcess(start, w, cleaning)
	if err = errors.Join(isolated, err); err != nil {
		w.send(&Ready{Error: err.Error()})
		return fail(err)
	}
	if err := w.send(&Ready{Address: p.vm.Address(), Fingerprint: p.vm.Fingerprint(), Cleaning: cleaning}); err != nil {
		return fail(err)
	}
	return p.serve()
}

// isolate makes this process the one that ends all others.
func isolate(cleaning string) error {
	if err := deaf(); err != nil {
		return err
	}
	// Go ends a program that writes to a broken pipe as its descriptor 2.
	if fd, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, ControlFD+1); err == nil {
		os.Stderr = os.NewFile(uintptr(fd), "stderr")
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	switch cleaning {
	case Subreaper, CGroup:
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("become the reaper of orphans: %w", err)
		}
		return nil
	case PIDNamespace:
		if os.Getpid() != 1 {
			return fmt.Errorf("not alone in a PID namespace: this is process %d", os.Getpid())
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("make the mounts private: %w", err)
		}
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /proc of the namespace: %w", err)
		}
		// What programs leave there goes with the namespace.
		if err := unix.Mount("shm", "/dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("mount a /dev/shm of its own: %w", err)
		}
		return nil
	}
	return fmt.Errorf("the level of cleaning %q is none of %s, %s, %s", cleaning, PIDNamespace, CGroup, Subreaper)
}

// signals are those that a program might send, and that say nothing of this one.
func signals() []unix.Signal {
	return []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGPIPE, unix.SIGALRM, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2,
		unix.SIGSTKFLT, unix.SIGXCPU, unix.SIGXFSZ, unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR}
}

func newProcess(start Start, w *wire, cleaning string) (*process, error) {
	if !filepath.IsAbs(start.WorkDir) {
		return nil, fmt.Errorf("the work folder %q is no absolute path", start.WorkDir)
	}
	if start.MemoryMiB > 0 && start.MemoryGroup == "" {
		if err := limitOwnData(uint64(start.MemoryMiB)); err != nil {
			return nil, err
		}
	}
	var plain []netip.Prefix
	for _, text := range start.PlainLinks {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("plain links: %w", err)
		}
		plain = append(plain, network)
	}
	var dial func(context.Context, string) (net.Conn, error)
	if start.Uplink != "" {
		dial = uplink(start.Uplink).dial
	}
	vm, err := queuevm.New(queuevm.Config{Listen: start.Listen, Dial: dial, Redial: start.Redial, Self: start.Node, Plain: start.Plain, PlainLinks: plain, MaxItem: itemMax, Reaper: true,
		Logf: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%s %s: %s\n", ProcessName, start.Attempt, fmt.Sprintf(format, args...))
		}})
	if err != nil {
		return nil, err
	}
	p := &process{start: start, namespace: cleaning == PIDNamespace, mark: os.Getenv(markName),
		vm: vm, wire: w, programs: map[int]*program{}, logic: map[string]Logic{}, changes: map[int64]int{}, discarded: map[int64]bool{}, queues: map[int]bool{}, builds: make(chan struct{}, concurrentBuilds()), wired: make(chan struct{})}
	if p.lease, err = newLease(); err != nil {
		return nil, err
	}
	p.workshops = &workshops{tell: p.tell, waiting: map[uint64]chan *Built{}}
	p.idle = sync.NewCond(&p.mu)
	p.life, p.die = context.WithCancel(context.Background())
	if p.null, err = os.Open(os.DevNull); err != nil {
		return nil, err
	}
	if p.drain, err = newDrain(); err != nil {
		return nil, err
	}
	var deathSignal syscall.Signal
	if !p.namespace {
		deathSignal = syscall.SIGKILL
	}
	var tasks *cell
	if start.TaskGroup != "" {
		tasks = &cell{groups: groups{filepath.Dir(start.TaskGroup), start.TaskUnified}, path: start.TaskGroup}
	}
	p.spawner = newSpawner(deathSignal, tasks)
	return p, nil
}

// serve answers requests until the attempt is over.
func (p *process) serve() int {
	carrying := make(chan error, 1)
	go func() { carrying <- p.vm.Run(context.Background()) }()
	go p.watchPeers()
	over := make(chan struct{}) // Terminate was answered
	lost := make(chan error, 1) // the node is gone
	go func() {
		for {
			var r Request
			if err := p.wire.receive(&r); err != nil {
				lost <- err
				return
			}
			answered := func() {}
			if r.fromOutside() {
				answered = p.called()
			}
			go func() {
				p.answer(&r, over)
				answered()
			}()
		}
	}()
	forsaken := make(chan struct{}, 1)
	go func() {
		if p.lease.over() == nil {
			forsaken <- struct{}{}
		}
	}()
	var failed error
	select {
	case <-over:
		p.answered()
	case <-forsaken:
		p.wire.hurry(tellLimit)
		failed = errors.New(leaseOver)
		p.tell(Event{Failure: failed.Error()}) // for a node that goes on, and finds this one gone
		failed = errors.Join(failed, p.end(leaseOver, 0))
	case <-lost:
		failed = p.end("the node is gone", 0)
	case err := <-carrying:
		failed = fmt.Errorf("the queue-level VM stopped: %w", err)
		p.tell(Event{Failure: failed.Error()})
		p.end(failed.Error(), 0)
	}
	if err := p.vm.Close(); failed == nil {
		failed = err
	}
	if failed != nil {
		fmt.Fprintf(os.Stderr, "%s %s: %v\n", ProcessName, p.start.Attempt, failed)
		return 1
	}
	return 0
}

// answer serves one request.
func (p *process) answer(r *Request, over chan<- struct{}) {
	reply := &Reply{ID: r.ID}
	var err error
	if r.Lease != nil { // alone, or with what it is for
		err = p.lease.keep(r.Lease.For)
	}
	switch {
	case err != nil:
	case r.Build != nil:
		reply.Build, err = p.build(p.life, r.Build)
	case r.Instantiate != nil:
		reply.Count, err = p.instantiate(r.Instantiate)
	case r.Terminate != nil:
		if r.Terminate.Grace == 0 {
			p.linger()
		}
		err = p.end(r.Terminate.Reason, r.Terminate.Grace)
		defer func() { over <- struct{}{} }()
	case r.Inspect != nil:
		reply.Inspect = p.inspect()
	case r.Enqueue != nil:
		reply.Count, err = p.enqueue(r.Enqueue)
	case r.Dequeue != nil:
		reply.Dequeue, err = p.dequeue(r.Dequeue)
	case r.OpenSocket != nil:
		reply.Socket, err = p.openSocket(r.OpenSocket)
	case r.Quiet != nil:
		reply.Quiet = new(p.quiet())
	case r.Built != nil:
		p.workshops.answer(r.Built)
	case r.Peek != nil:
		reply.Items, reply.Sizes, reply.Next, err = p.peek(r.Peek)
	case r.Drain != nil:
		reply.Items, reply.More, err = p.drained(r.Drain)
	case r.Change != nil:
		reply.Change, err = p.change(r.Change)
	case r.Moved != nil:
		p.vm.Moved(r.Moved.Address)
	case r.Lease != nil:
	default:
		err = &Error{Code: "internal", Message: fmt.Sprintf("request %d asks for nothing that this MVM process knows", r.ID)}
	}
	if err != nil {
		reply.Error = toError(err)
	}
	if err := p.wire.send(&FromProcess{Reply: reply}); err != nil {
		// Too long to send, or the node is gone, which its reader notices too.
		_ = p.wire.send(&FromProcess{Reply: &Reply{ID: r.ID, Error: &Error{Code: "internal", Message: err.Error()}}})
	}
}
