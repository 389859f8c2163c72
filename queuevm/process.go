package queuevm

import (
	"fmt"
	"os"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// controlMessage bounds one message on a child's control socket, either way.
const controlMessage = 32 << 10

// process is one local process as the VM sees it. Guarded by VM.mu.
type process struct {
	Process
	vm      *VM
	ports   map[string]*port
	names   []string // of ports, in the order in which they came
	control int      // our end of the control socket, -1 before Child and after the end
	pidfd   int      // -1 when not watched
	pid     int      // as this process sees it, 0 until someone asked (see number)
	started bool
	ended   bool
}

// port is where a process's channels meet under one name.
// The first of each way is the one that it stands at, the others follow.
type port struct{ outs, ins []*channel }

func (p *process) port(name string) *port {
	q := p.ports[name]
	if q == nil {
		q = &port{}
		p.ports[name] = q
		p.names = append(p.names, name)
	}
	return q
}

// AddProcess makes a process known. Its channels are added after it.
func (vm *VM) AddProcess(p Process) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return ErrDown
	}
	if vm.processes[p.ID] != nil {
		return fmt.Errorf("process %d of task %q: the id is taken", p.ID, p.Task)
	}
	vm.processes[p.ID] = &process{Process: p, vm: vm, ports: map[string]*port{}, control: -1, pidfd: -1}
	return nil
}

// Child returns the file that must become descriptor 3 of the process's
// program, and the environment that tells the client library about it. The
// caller closes the file once the program is started. One program per process.
func (vm *VM) Child(id int) (*os.File, []string, error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	p, err := vm.process(id)
	if err != nil {
		return nil, nil, err
	}
	if p.started {
		return nil, nil, fmt.Errorf("process %d: a program was already made ready for it", id)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("process %d: make its control socket: %w", id, err)
	}
	if err := vm.watch(pair[0], unix.EPOLLIN, p); err != nil {
		_ = unix.Close(pair[0])
		_ = unix.Close(pair[1])
		return nil, nil, fmt.Errorf("process %d: watch its control socket: %w", id, err)
	}
	p.control, p.started = pair[0], true
	env := []string{
		"MVM_CONTROL=3",
		"MVM_TASK=" + p.Task,
		"MVM_INDEX=" + strconv.Itoa(p.Index),
		"MVM_COUNT=" + strconv.Itoa(p.Count),
		"MVM_SPIN=" + strconv.Itoa(vm.spins()),
	}
	return os.NewFile(uintptr(pair[1]), "mvm-control"), env, nil
}

// spins is how often a process looks again before it yields; the loop, whose
// look is a system call, a tenth of it. None unless every process, and the loop
// when it has work, can have a core of its own: the peers on this machine take
// their share of them. Where the nodes of a lab each took both of two cores for
// theirs, a hop cost several times as much: who spins there keeps whom it waits
// for from running.
func (vm *VM) spins() int {
	busy := len(vm.processes)
	if vm.listener != nil || len(vm.queues) > 0 {
		busy++
	}
	if busy > vm.config.Cores/(1+vm.neighbours) {
		return 0
	}
	return 200
}

func (vm *VM) process(id int) (*process, error) {
	if vm.closed {
		return nil, ErrDown
	}
	p := vm.processes[id]
	if p == nil {
		return nil, fmt.Errorf("process %d: %w", id, ErrUnknown)
	}
	return p, nil
}

// Started hands over a pidfd of the process's program (the VM duplicates it).
// When the program dies, the ends it held are closed as by Ended.
func (vm *VM) Started(id int, pidfd int) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	p, err := vm.process(id)
	if err != nil {
		return err
	}
	own, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = vm.watch(own, unix.EPOLLIN, pidWatch{p})
	}
	if err != nil {
		return fmt.Errorf("process %d: watch its pidfd: %w", id, err)
	}
	p.pidfd = own
	return nil
}

// number is the pid of the process's program, 0 when it is not known. Few ask, so
// that no start pays for the answer. vm.mu is held.
func (p *process) number() int {
	if p.pid == 0 && p.pidfd >= 0 {
		p.pid = pidOf(p.pidfd)
	}
	return p.pid
}

// pidOf is the number behind a pidfd, 0 when the kernel does not tell.
func pidOf(pidfd int) int {
	text, _ := os.ReadFile("/proc/self/fdinfo/" + strconv.Itoa(pidfd))
	for line := range strings.Lines(string(text)) {
		if number, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, _ := strconv.Atoi(strings.TrimSpace(number))
			return max(pid, 0)
		}
	}
	return 0
}

// Ended closes every end that the process held: takers get what was published
// whole and then END; givers get "closed". Calling it twice changes nothing.
func (vm *VM) Ended(id int) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if p, err := vm.process(id); err == nil {
		p.end()
	}
}

func (p *process) end() {
	if p.ended {
		return
	}
	p.ended = true
	for _, q := range p.ports {
		for _, c := range q.outs {
			if c.told { // in its producer's place
				c.ring.endProducer(stateClosed|stateSwitched, p.vm.bell)
			} else {
				c.ring.endProducer(stateClosed, p.vm.bell)
			}
			c.direct.shut(unix.SHUT_WR)
			p.vm.heat(c)
			p.vm.review(c)
		}
		for _, c := range q.ins {
			c.ring.endConsumer(stateClosed, p.vm.bell)
			c.direct.leave()
			p.vm.heat(c)
			p.vm.review(c)
		}
	}
	p.hangUp()
	if p.pidfd >= 0 {
		p.vm.unwatch(p.pidfd)
		p.pidfd = -1
	}
	ring1(p.vm.bell)
}

func (p *process) hangUp() {
	if p.control >= 0 {
		p.vm.unwatch(p.control)
		p.control = -1
	}
}

// pidWatch is told of a process's death.
type pidWatch struct{ p *process }

func (w pidWatch) event(uint32) { w.p.end() }

// event answers one question on the control socket. A child that does not read
// its answers loses the socket.
func (p *process) event(uint32) {
	buffer := make([]byte, 512)
	n, _, err := unix.Recvfrom(p.control, buffer, unix.MSG_DONTWAIT)
	if err == unix.EAGAIN || err == unix.EINTR {
		return
	}
	if err != nil || n == 0 {
		p.hangUp()
		return
	}
	p.reply(p.answer(string(buffer[:n])))
}

// reply sends an answer, or nothing where there is none yet.
func (p *process) reply(answer string, fds []int) {
	if answer == "" || p.control < 0 {
		return
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := unix.Sendmsg(p.control, []byte(answer), rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err != nil {
		p.vm.logf("process %d: answer on its control socket: %v", p.ID, err)
		p.hangUp()
	}
}

func (p *process) answer(question string) (string, []int) {
	verb, rest, _ := strings.Cut(question, " ")
	switch verb {
	case "open":
		q := p.ports[rest]
		if q == nil {
			return p.noPort(rest), nil
		}
		fds := []int{p.vm.door}
		var sizes [2]uint64
		out, in := p.current(q)
		for k, c := range []*channel{out, in} {
			if c != nil {
				sizes[k] = c.ring.capacity
				fds = append(fds, int(c.ring.file.Fd()))
			}
		}
		return fmt.Sprintf("ok %d %d", sizes[0], sizes[1]), fds
	case "direct":
		q := p.ports[rest]
		if q == nil {
			return p.noPort(rest), nil
		}
		return q.sockets(p, rest)
	case "next":
		return p.nextRing(rest)
	case "ports":
		from, err := strconv.Atoi(rest)
		if err != nil || from < 0 || from > len(p.names) {
			return "error ports: from where?", nil
		}
		var b strings.Builder
		fmt.Fprintf(&b, "ok %d", len(p.names))
		for _, name := range p.names[from:] {
			if b.Len()+1+len(name) > controlMessage {
				break
			}
			b.WriteString(" " + name)
		}
		return b.String(), nil
	}
	return "error unknown question: the client library and MVM differ in version", nil
}

func (p *process) noPort(name string) string {
	names := append([]string(nil), p.names...)
	sort.Strings(names)
	list := strings.Join(names, ", ")
	if len(list) > 200 {
		list = list[:200] + "..."
	}
	if list == "" {
		list = "none: the topology gives it no edge"
	}
	if len(name) > 64 {
		name = name[:64] + "..."
	}
	return fmt.Sprintf("error there is no port %q; process %d of task %s has: %s", name, p.Index, p.Task, list)
}
