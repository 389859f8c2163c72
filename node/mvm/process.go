package mvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mvm/node/build"
	"mvm/queuevm"
)

// Limits of one attempt that no profile changes.
const (
	connectLimit = 30 * time.Second       // for every peer to be proven
	wallGrace    = 2 * time.Second        // from SIGTERM to SIGKILL when the wall time is over
	endLimit     = 10 * time.Second       // for killed processes to be gone
	tellLimit    = 100 * time.Millisecond // for a node that has not kept the lease to be told what ended
	itemMax      = 32 << 20               // bytes of an item from or to outside: it travels in one message
	batchMax     = 8 << 20                // bytes of items in one Dequeued, unless one is bigger
	wireLimit    = 10 * time.Second       // for who reaches a queue before Instantiate made it
	takeLimit    = 2 * time.Second        // for those outside to take what is left when all programs have succeeded,
	comeLimit    = time.Second / 2        // if nobody has come so far
	callLimit    = time.Second            // for calls from outside to be answered when all is over
)

// LeaveLimit is for how long a Terminate without a grace may leave those outside to
// take what is left, and calls from there to be answered: on top of what it takes to
// end what runs.
const LeaveLimit = takeLimit + callLimit

// process is the MVM process: one attempt's queue-level VM and programs.
type process struct {
	start     Start
	namespace bool   // this is PID 1 of a PID namespace
	mark      string // what LaunchConfig.Mark said
	vm        *queuevm.VM
	wire      *wire
	spawner   *spawner
	drain     *drain
	lease     *lease
	null      *os.File
	workshops *workshops
	builds    chan struct{}   // one token for each build that may run at once
	life      context.Context // ends with the attempt
	die       context.CancelFunc
	wired     chan struct{} // closed when the channels are made

	mu           sync.Mutex // guards what follows
	instantiated bool
	spawned      bool   // every program was started
	ending       string // why no process may be started any more, "" while they may
	programs     map[int]*program
	running      int     // programs that run
	left         int     // programs that run or are to be started
	calls        int     // from outside, that are being answered
	told         bool    // the traffic
	groups       *groups // nil until a program has a limit
	kills        int     // processes ended for the memory of all, as far as programs were told so
	lastBuild    int
	lastLogic    int
	logic        map[string]Logic // that was built, by its source's name
	changing     sync.Mutex       // one live change at a time; guards changes and queues
	queues       map[int]bool     // served ones that are known here
	changes      map[int64]int    // the last step made of each live change
	discarded    map[int64]bool   // those of which nothing is to be made any more
	idle         *sync.Cond       // running or calls fell to 0
	wall         *time.Timer
}

// program is one running instance of a task. Guarded by process.mu.
type program struct {
	state   ProcessState
	streams [2]*stream // stdout and stderr
	group   string     // its control group, if it has one
	limit   int64      // of that, in MiB
}

// instantiate makes the channels, connects the peers and starts the programs:
// all of them, or none.
func (p *process) instantiate(r *Instantiate) (int, error) {
	p.mu.Lock()
	switch {
	case p.ending != "":
		p.mu.Unlock()
		return 0, &Error{Code: "conflict", Message: "the attempt is ending: " + p.ending}
	case p.instantiated:
		p.mu.Unlock()
		return 0, &Error{Code: "conflict", Message: "the attempt is instantiated already"}
	}
	p.instantiated = true
	p.left = len(r.Processes)
	p.mu.Unlock()
	for _, s := range r.Processes {
		if err := p.vm.AddProcess(queuevm.Process{ID: s.ID, Index: s.Index, Count: s.Count, Task: s.Task}); err != nil {
			return 0, fmt.Errorf("instantiate: %w", err)
		}
	}
	p.know(r.Logic)
	if err := p.lay(r.Queues, r.Channels); err != nil {
		return 0, fmt.Errorf("instantiate: %w", err)
	}
	close(p.wired)
	if len(r.Channels)+len(r.Queues)+len(r.Peers) > 0 {
		p.spread()
	}
	if len(r.Peers) > 0 {
		ctx, cancel := context.WithTimeout(p.life, connectLimit)
		defer cancel()
		if err := p.vm.Connect(ctx, r.Peers); err != nil {
			return 0, fmt.Errorf("connect the peers: %w", err)
		}
	}
	var failed error
	limited := slices.ContainsFunc(r.Processes, func(s ProcessSpec) bool { return s.MemoryMiB > 0 })
	err := p.spawner.do(limited, func() {
		// Held over all starts: an end is told after them, and the reaper does
		// not compete with them for the processors.
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, s := range r.Processes {
			if err := p.spawn(s); err != nil {
				failed = fmt.Errorf("start process %d (task %s, %s): %w", s.ID, s.Task, strings.Join(s.Command, " "), err)
				return
			}
		}
	})
	if failed = cmp.Or(failed, err); failed != nil {
		p.mu.Lock()
		p.left = p.running
		p.mu.Unlock()
		p.end("not every process could be started", 0)
		return 0, failed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.spawned = true
	go p.watchQuiet()
	if r.WallTime > 0 && p.ending == "" && p.left > 0 {
		p.wall = time.AfterFunc(r.WallTime, func() {
			reason := fmt.Sprintf("wall time of %v exceeded", r.WallTime)
			p.tell(Event{Failure: reason})
			p.end(reason, wallGrace)
		})
	}
	return len(r.Processes), nil
}

// lay makes queues and the channels that lead to and from them.
func (p *process) lay(queues []Queue, channels []queuevm.Channel) error {
	producers, takers := map[int]int{}, map[int]int{}
	for _, c := range channels {
		if c.To.Peer == "" {
			producers[c.To.Queue]++
		}
		if c.From.Peer == "" {
			takers[c.From.Queue]++
		}
	}
	for _, q := range queues {
		q.Producers, q.Takers = producers[q.ID], takers[q.ID]
		converter, err := p.converter(q)
		if err != nil {
			return fmt.Errorf("queue %s: %w", q.Name, err)
		}
		q.Converter = converter
		q.Rule = p.rule(q)
		if q.Producers+q.Takers > 0 { // it is kept here
			if err := p.begin(&q.Converter, &q.Rule); err != nil {
				return fmt.Errorf("queue %s: %w", q.Name, err)
			}
		}
		if err := p.vm.AddQueue(q.Queue); err != nil {
			return err
		}
		p.queues[q.ID] = true
	}
	for _, c := range channels {
		if err := p.vm.AddChannel(c); err != nil {
			return err
		}
	}
	return nil
}

// spread lets goroutines run on as many processors as the node's do: what is
// carried, by the loop that polls or by those that encrypt, must not wait for
// its turn.
func (p *process) spread() { runtime.GOMAXPROCS(max(p.start.Threads, 1)) }

// spawn starts one program; it is called in spawner.do, and p.mu is held.
func (p *process) spawn(s ProcessSpec) error {
	if s.Processor {
		s.Command = append([]string{processorPath, processorWord}, s.Command...)
	}
	if len(s.Command) == 0 || !filepath.IsAbs(s.Command[0]) {
		return errors.New("its command is no absolute path")
	}
	dir := filepath.Join(p.start.WorkDir, fmt.Sprintf("process-%d", s.ID))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	file, told, err := p.vm.Child(s.ID)
	if err != nil {
		return err
	}
	defer file.Close()
	workshop := -1
	if s.Processor {
		if workshop, err = p.workshops.open(s.ID); err != nil {
			return err
		}
		defer unix.Close(workshop)
	}
	var streams [2]*stream
	var writers [2]int
	for i, name := range []string{"stdout", "stderr"} {
		streams[i], writers[i], err = p.drain.open(streamPath(p.start.WorkDir, s.ID, name), p.start.StreamMax)
		if err != nil {
			if i == 1 {
				unix.Close(writers[0])
				p.drain.finish(streams[0])
			}
			return err
		}
	}
	defer unix.Close(writers[0])
	defer unix.Close(writers[1])
	files := []uintptr{p.null.Fd(), uintptr(writers[0]), uintptr(writers[1]), file.Fd()}
	if s.Processor {
		files = append(files, uintptr(workshop))
	}
	program := &program{streams: streams, state: ProcessState{ID: s.ID, State: "running"}}
	if p.ending != "" {
		err = errors.New("the attempt is ending: " + p.ending)
	} else {
		var refused error
		c := child{argv: s.Command, environment: p.environment(dir, s.Environment, told), dir: dir, files: files, cell: p.memoryCell(strconv.Itoa(s.ID), s.MemoryMiB)}
		begin := func() error {
			return p.spawner.start(c, func(pid, pidfd int) {
				program.state.PID, program.state.Started = pid, time.Now()
				if c.cell != nil {
					program.group, program.limit = c.cell.path, s.MemoryMiB
				}
				if refused = p.vm.Started(s.ID, pidfd); refused != nil {
					unix.Kill(pid, unix.SIGKILL)
				}
			}, func(status syscall.WaitStatus, usage *syscall.Rusage) { p.ended(program, status, usage) })
		}
		if s.MemoryMiB > 0 && c.cell == nil {
			err = c.limitData(s.MemoryMiB)
		}
		if err == nil {
			err = begin()
		}
		if errors.Is(err, errNoCell) {
			_ = os.Remove(c.cell.path) // or the node does
			c.cell = nil
			if err = c.limitData(s.MemoryMiB); err == nil {
				err = begin()
			}
		}
		if err == nil {
			p.programs[s.ID] = program
			p.running++
			p.tell(Event{Process: new(program.state)})
			err = refused
		}
	}
	if err != nil && program.state.PID == 0 {
		p.drain.finish(streams[0])
		p.drain.finish(streams[1])
		p.vm.Ended(s.ID)
	}
	return err
}

// environment is all that a program is told. What the profile sets wins over
// the machine's, and MVM's own over both.
func (p *process) environment(dir string, profile, told []string) []string {
	all := map[string]string{}
	set := func(variables ...string) {
		for _, v := range variables {
			if name, value, ok := strings.Cut(v, "="); ok && name != "" {
				all[name] = value
			}
		}
	}
	set(build.Environment(dir)...)
	set(profile...)
	if p.start.Clients != "" {
		path := filepath.Join(p.start.Clients, "python")
		if more := all["PYTHONPATH"]; more != "" {
			path += ":" + more
		}
		set("PYTHONPATH=" + path)
	}
	if p.start.Library != "" {
		set("MVM_LIBRARY=" + p.start.Library)
	}
	set(told...)
	set(markName + "=" + p.mark)
	list := make([]string, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, name+"="+all[name])
	}
	return list
}

// ended is called by the reaper when a program is gone.
func (p *process) ended(program *program, status syscall.WaitStatus, usage *syscall.Rusage) {
	p.vm.Ended(program.state.ID)
	var unkept []string
	for i, name := range []string{"stdout", "stderr"} {
		if err := p.drain.finish(program.streams[i]); err != nil {
			unkept = append(unkept, fmt.Sprintf("its %s could not be kept whole: %v", name, err))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s := &program.state
	s.Unkept = strings.Join(unkept, "; ")
	// What the clock was set to meanwhile must not make it end before it began.
	s.State, s.ExitCode, s.Ended = "exited", status.ExitStatus(), s.Started.Add(time.Since(s.Started))
	if status.Signaled() {
		s.State, s.ExitCode, s.Signal = "killed", build.Status(status), unix.SignalName(status.Signal())
		s.Message = "ended by " + s.Signal
	} else if s.ExitCode != 0 {
		s.Message = fmt.Sprintf("exit status %d", s.ExitCode)
	}
	if why := p.exceeded(program, status.Signaled() || s.ExitCode != 0); why != "" {
		s.Message = why
	}
	if program.group != "" {
		_ = os.Remove(program.group) // or the node does, when what the program left is gone too
	}
	if p.ending != "" {
		s.Message = p.ending
	}
	s.User = time.Duration(usage.Utime.Nano())
	s.System = time.Duration(usage.Stime.Nano())
	s.MaxRSSKiB = usage.Maxrss
	p.tell(Event{Process: new(*s)})
	p.running--
	p.left--
	if p.running == 0 {
		p.idle.Broadcast()
	}
	if p.left == 0 {
		if p.wall != nil {
			p.wall.Stop()
		}
		go p.settle()
	}
}

// settle waits, for a second at most, until the proxy has carried what the
// programs left in the rings, and then tells the traffic.
func (p *process) settle() {
	for wait := time.Millisecond; wait < time.Second/2 && p.life.Err() == nil; wait *= 2 {
		pending := slices.ContainsFunc(p.vm.Inspect(), func(c queuevm.ChannelState) bool {
			return c.To.Peer != "" && c.Depth > 0 && !c.TakerClosed && !c.Lost && !c.Broken
		})
		if !pending {
			break
		}
		select {
		case <-time.After(wait):
		case <-p.life.Done():
		}
	}
	p.tellTraffic()
}

// tellTraffic sums what went to peers and tells it, once.
func (p *process) tellTraffic() {
	p.mu.Lock()
	told := p.told
	p.told = true
	p.mu.Unlock()
	if told {
		return
	}
	items, bytes := p.vm.Traffic()
	p.tell(Event{Traffic: &Traffic{Items: int64(items), Bytes: int64(bytes)}})
}

// end ends every program: SIGTERM, and after grace SIGKILL, and then whatever
// they left. It returns when nothing is left.
func (p *process) end(reason string, grace time.Duration) error {
	p.mu.Lock()
	if p.ending == "" {
		p.ending = reason
	}
	p.die() // a Connect, builds and waits from outside are over
	if grace > 0 && p.running > 0 {
		p.signal(unix.SIGTERM)
		over := false
		timer := time.AfterFunc(grace, func() {
			p.mu.Lock()
			over = true
			p.mu.Unlock()
			p.idle.Broadcast()
		})
		for p.running > 0 && !over {
			p.idle.Wait()
		}
		timer.Stop()
	}
	p.signal(unix.SIGKILL)
	p.mu.Unlock()
	err := p.spawner.killAll(p.namespace, endLimit)
	p.mu.Lock()
	for err == nil && p.running > 0 { // reaped, but not yet told
		p.idle.Wait()
	}
	instantiated := p.instantiated
	p.mu.Unlock()
	if instantiated {
		p.tellTraffic()
	}
	return err
}

// signal reaches the process group of every running program; p.mu is held.
func (p *process) signal(signal unix.Signal) {
	for _, program := range p.programs {
		if program.state.State == "running" {
			unix.Kill(-program.state.PID, signal)
		}
	}
}

func (p *process) inspect() *Inspection {
	found := &Inspection{Channels: p.vm.Inspect(), Queues: p.vm.InspectQueues()}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(p.programs)) {
		found.Processes = append(found.Processes, p.programs[id].state)
	}
	return found
}

// watchPeers reports lost links until the attempt is over: once no program is
// left, peers may go as they like. An item that cannot be converted matters for
// as long as anybody anywhere may want it.
func (p *process) watchPeers() {
	for {
		select {
		case lost := <-p.vm.Lost():
			p.mu.Lock()
			matters := p.left > 0 && p.ending == ""
			p.mu.Unlock()
			if matters {
				p.tell(Event{Failure: fmt.Sprintf("the link to node %s is lost: %v", lost.ID, lost.Err)})
			}
		case err := <-p.vm.Refused():
			p.tell(Event{Failure: err.Error()})
		case <-p.life.Done():
			return
		}
	}
}

// tell sends an event. That the node is gone shows where its messages are read.
func (p *process) tell(e Event) { _ = p.wire.send(&FromProcess{Event: &e}) }
