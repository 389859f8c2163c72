package mvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// LaunchConfig says which MVM process to start, and how.
type LaunchConfig struct {
	// Binary is the program to run, from Executable or opened read-only. nil
	// means this program itself, whose main must then ask IsProcess first.
	Binary *os.File
	// Start is the first message.
	Start Start
	// Cleaning is what Probe answered; "" tries the better levels first.
	Cleaning string
	// Mark is put into the environment of all that is started, for Sweep. ""
	// means a random one. No mark may begin with another that is in use.
	Mark string
	// Limits are of all that is started.
	Limits Limits
	// Places, if given, need not be found anew for each launch, and groups not be made:
	// from NewPlaces, with a beginning of Mark.
	Places *Places
	// Stderr takes the MVM process's own diagnosis; nil means this program's.
	Stderr *os.File
	// ReadyLimit bounds the start; 0 means 10 s.
	ReadyLimit time.Duration
}

// Probe finds the best level of cleaning that works on this machine. It starts
// the program once or twice; ask once and keep the answer.
func Probe(binary *os.File) string {
	for _, cleaning := range []string{PIDNamespace, CGroup} {
		if Works(binary, cleaning) {
			return cleaning
		}
	}
	return Subreaper
}

// Works tells whether a level of cleaning works on this machine.
func Works(binary *os.File, cleaning string) (works bool) {
	config := &LaunchConfig{Binary: binary, Cleaning: cleaning, Mark: "probe." + rand.Text()}
	around, err := (*Places)(nil).enclose(config.Mark, cleaning == CGroup, Limits{})
	if err == nil {
		if p, err := begin(config, around.birth, nil, "probe"); err == nil {
			state, err := p.Wait()
			works = err == nil && state.Success()
		}
	}
	if cleaning == CGroup {
		works = endGroups(groupName(config.Mark), time.Now().Add(endLimit)) == nil && works
	}
	return works
}

// begin starts the program in the namespaces that its level of cleaning needs,
// and in cells.
//
// It begins with one processor for its goroutines (see process.spread): waking a
// second thread for each of its few steps took a tenth of a trivial job's CPU.
//
// There is no parent death signal: it follows the OS thread that started the
// program, and Go's threads come and go. That the node died shows as end of
// file on the control socket, and what is left even so is for Sweep.
func begin(config *LaunchConfig, cells []*cell, control *os.File, arguments ...string) (*os.Process, error) {
	path := "/proc/self/exe"
	if config.Binary != nil {
		// A number that the child's own descriptors 0 to 3 do not take.
		fd, err := unix.FcntlInt(config.Binary.Fd(), unix.F_DUPFD_CLOEXEC, 64)
		if err != nil {
			return nil, fmt.Errorf("start the MVM process: %w", os.NewSyscallError("fcntl", err))
		}
		defer unix.Close(fd)
		path = fmt.Sprintf("/proc/self/fd/%d", fd)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	stderr := config.Stderr
	if stderr == nil {
		stderr = os.Stderr
	}
	attributes := func() *os.ProcAttr {
		a := &os.ProcAttr{
			Dir: "/",
			Env: []string{markName + "=" + config.Mark, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOMAXPROCS=1"},
			// A session of its own: what a terminal signals is for the node.
			Files: []*os.File{null, null, stderr},
			Sys:   &syscall.SysProcAttr{Setsid: true},
		}
		if without != "" {
			a.Env = append(a.Env, without)
		}
		if control != nil {
			a.Files = append(a.Files, control)
		}
		return a
	}
	argv := append([]string{ProcessName, config.Cleaning}, arguments...)
	start := func(a *os.ProcAttr) (p *os.Process, err error) {
		err = within(cells, a.Sys, func() error {
			return slackened(processSlack, func() (err error) {
				p, err = os.StartProcess(path, argv, a)
				return err
			})
		})
		return p, err
	}
	if config.Cleaning != PIDNamespace {
		return start(attributes())
	}
	a := attributes()
	a.Sys.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC
	p, err := start(a)
	if err == nil || !errors.Is(err, unix.EPERM) {
		return p, err
	}
	// Without the right to make namespaces, a user namespace gives it.
	a = attributes()
	a.Sys.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER
	a.Sys.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	a.Sys.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	return start(a)
}

// Handle is the node's end of one MVM process. All methods may be called from
// any goroutine.
type Handle struct {
	ready   Ready
	mark    string
	places  *Places
	around  enclosure
	process *os.Process
	control *os.File
	wire    *wire
	events  chan Event
	done    chan struct{}

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]chan *Reply // nil when nothing can be answered any more
	failed  error
	used    time.Duration
	backlog []Event
	closing bool          // no event will be added to the backlog
	fresh   chan struct{} // the backlog or closing changed
}

// Launch starts an MVM process and returns when it has answered Ready. The
// caller makes Start.WorkDir before and removes it after Done.
func Launch(config LaunchConfig) (*Handle, error) {
	if config.Mark == "" {
		config.Mark = rand.Text()
	}
	if config.ReadyLimit <= 0 {
		config.ReadyLimit = 10 * time.Second
	}
	if config.Cleaning == "" {
		config.Cleaning = Probe(config.Binary)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("start the MVM process: %w", os.NewSyscallError("socketpair", err))
	}
	theirs := os.NewFile(uintptr(pair[1]), "control")
	defer theirs.Close()
	if err := unix.SetNonblock(pair[0], true); err != nil {
		unix.Close(pair[0])
		return nil, fmt.Errorf("start the MVM process: %w", err)
	}
	control := os.NewFile(uintptr(pair[0]), "control")
	around, err := config.Places.enclose(config.Mark, config.Cleaning == CGroup, config.Limits)
	config.Start.MemoryMiB, config.Start.MemoryGroup = config.Limits.MemoryMiB, around.memory
	config.Start.TaskGroup, config.Start.TaskUnified = "", false
	if around.tasks != nil {
		config.Start.TaskGroup, config.Start.TaskUnified = around.tasks.path, around.tasks.unified
	}
	config.Start.Threads = runtime.GOMAXPROCS(0)
	var process *os.Process
	if err == nil {
		process, err = begin(&config, around.birth, theirs)
	}
	if err != nil {
		control.Close()
		_ = endGroups(groupName(config.Mark), time.Now())
		return nil, fmt.Errorf("start the MVM process (cleaning %s): %w", config.Cleaning, err)
	}
	theirs.Close() // or its end would not show as end of file
	h := &Handle{
		mark: config.Mark, places: config.Places, around: around, process: process, control: control, wire: newWire(control),
		events: make(chan Event), done: make(chan struct{}), fresh: make(chan struct{}, 1), waiting: map[uint64]chan *Reply{},
	}
	control.SetDeadline(time.Now().Add(config.ReadyLimit))
	err = h.wire.send(&config.Start)
	if err == nil {
		err = h.wire.receive(&h.ready)
	}
	if err == nil && h.ready.Error != "" {
		err = errors.New(h.ready.Error)
	}
	if err != nil {
		process.Kill()
		process.Wait()
		control.Close()
		sweep(markName+"="+config.Mark, time.Now().Add(time.Second))
		_ = endGroups(groupName(config.Mark), time.Now().Add(time.Second))
		return nil, fmt.Errorf("start the MVM process: it does not become ready: %w", err)
	}
	control.SetDeadline(time.Time{})
	go h.pump()
	go h.receive()
	return h, nil
}

// Ready is what the MVM process answered to Start.
func (h *Handle) Ready() Ready { return h.ready }

// PID is the MVM process's number as this process sees it.
func (h *Handle) PID() int { return h.process.Pid }

// Call sends one request and waits for its reply. A failure of the request is
// an *Error; that the MVM process is gone, or ctx ended first, is another
// error. The request's ID is set here.
func (h *Handle) Call(ctx context.Context, r Request) (Reply, error) {
	answer := make(chan *Reply, 1)
	h.mu.Lock()
	if h.waiting == nil {
		h.mu.Unlock()
		return Reply{}, errGone
	}
	h.last++
	r.ID = h.last
	h.waiting[r.ID] = answer
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		delete(h.waiting, r.ID)
		h.mu.Unlock()
	}()
	if err := h.wire.send(&r); err != nil {
		return Reply{}, fmt.Errorf("%w: %w", errGone, err)
	}
	select {
	case reply := <-answer:
		if reply == nil {
			return Reply{}, errGone
		}
		if reply.Error != nil {
			return *reply, reply.Error
		}
		return *reply, nil
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
}

var errGone = errors.New("the MVM process is gone")

// Events delivers every event in order; it is closed after the last one, when
// the MVM process is gone. Not reading it holds up nothing else.
func (h *Handle) Events() <-chan Event { return h.events }

// Done is closed when the MVM process and all that it started are gone.
func (h *Handle) Done() <-chan struct{} { return h.done }

// Err says how the MVM process ended: nil after Terminate. It waits for Done.
func (h *Handle) Err() error {
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.failed
}

// Used is the CPU time, user and system, that the MVM process and all that it
// reaped have taken. It waits for Done.
func (h *Handle) Used() time.Duration {
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.used
}

// Kill ends the MVM process and all that it started, at once. Done tells when.
func (h *Handle) Kill() { _ = h.process.Kill() }

// receive delivers what the MVM process sends until it is gone, and then
// cleans up after it.
func (h *Handle) receive() {
	var failed error
	for {
		var m FromProcess
		if failed = h.wire.receive(&m); failed != nil {
			break
		}
		h.mu.Lock()
		if m.Reply != nil {
			if answer := h.waiting[m.Reply.ID]; answer != nil {
				answer <- m.Reply
				delete(h.waiting, m.Reply.ID)
			}
		}
		if m.Event != nil {
			h.backlog = append(h.backlog, *m.Event)
		}
		h.mu.Unlock()
		h.stir()
	}
	h.mu.Lock()
	for _, answer := range h.waiting {
		answer <- nil
	}
	h.waiting = nil
	h.closing = true
	h.mu.Unlock()
	h.stir()

	// Its end of the socket is closed: it is ending, or out of order.
	overdue := time.AfterFunc(endLimit+time.Second, func() { h.process.Kill() })
	state, err := h.process.Wait()
	overdue.Stop()
	h.control.Close()
	if err == nil && !state.Success() {
		err = fmt.Errorf("the MVM process ended with %s", state)
	}
	err = errors.Join(err, h.places.endCells(h.mark, h.around, time.Now().Add(endLimit)))
	if h.ready.Cleaning != PIDNamespace {
		_, left := sweep(markName+"="+h.mark, time.Now().Add(endLimit))
		err = errors.Join(err, left)
	}
	h.mu.Lock()
	h.failed = err
	if state != nil {
		h.used = state.UserTime() + state.SystemTime()
	}
	h.mu.Unlock()
	close(h.done)
}

func (h *Handle) stir() {
	select {
	case h.fresh <- struct{}{}:
	default:
	}
}

// pump hands the backlog on at the reader's pace.
func (h *Handle) pump() {
	defer close(h.events)
	for {
		h.mu.Lock()
		backlog, closing := h.backlog, h.closing
		h.backlog = nil
		h.mu.Unlock()
		for _, e := range backlog {
			h.events <- e
		}
		if closing {
			return
		}
		<-h.fresh
	}
}
