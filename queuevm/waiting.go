package queuevm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the kernel says of threads, and so of whole programs, whatever they were
// written in: /proc/PID/task/TID/syscall names the call that a blocked thread
// is in (proc(5)), and "running" for one that is about to run.

const sysFutexWaitv = 449 // the same on every architecture

// ringEnd names a waits word.
type ringEnd struct {
	channel *channel
	out     bool // the producer's
}

// waiting says whether every thread of every program, and of all that they
// started, is blocked, at one moment, where only another one of them or the other end of a
// channel lets it go on, and each live process waits on a channel. It gives the
// waits on channels.
//
// A program that reads, sleeps, computes or waits with a limit is not waiting,
// nor is one that the kernel does not let us look at.
func (vm *VM) waiting() ([]Wait, bool) {
	inodes := map[uint64]*channel{}
	vm.mu.Lock()
	for _, c := range vm.channels {
		inodes[c.ring.inode] = c
	}
	var roots []int
	known := true
	for _, p := range vm.processes {
		if !p.ended {
			roots = append(roots, p.number())
			known = known && p.pid > 0
		}
	}
	vm.mu.Unlock()
	if !known {
		return nil, false
	}
	look := func() map[int][]int { return threadsBelow(os.Getpid(), roots, vm.config.Reaper) }
	threads := look()
	before, ok := switches(threads)
	if !ok {
		return nil, false
	}
	var found []program
	for _, pid := range sortedKeys(threads) {
		p := program{pid: pid, inodes: inodes}
		for _, tid := range threads[pid] {
			if !p.blocked(tid) {
				return nil, false
			}
		}
		if !p.clockless() {
			return nil, false
		}
		found = append(found, p)
	}
	// Whoever has not been switched away since the first look, and was blocked
	// in between, was blocked from the first look until then: there was a moment
	// at which all were.
	after, ok := switches(threads)
	if !ok || !slices.Equal(before, after) || !sameThreads(threads, look()) {
		return nil, false
	}
	return vm.settleWaits(found)
}

// settleWaits makes Waits of what was found and sees that every live process
// has one. Whoever was woken meanwhile, and did not run yet, has its word taken
// back.
func (vm *VM) settleWaits(found []program) ([]Wait, bool) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return nil, false
	}
	waiting := map[int]bool{}
	var waits []Wait
	for _, p := range found {
		golang := false
		for _, e := range p.waits {
			h := e.channel.ring.header
			if h == nil { // it was removed meanwhile
				return nil, false
			}
			w := Wait{Channel: e.channel.ID, Out: e.out, Capacity: e.channel.Capacity}
			end, word := e.channel.To, &h.consumerWaits
			if e.out {
				end, word = e.channel.From, &h.producerWaits
			}
			announced := atomic.LoadUint32(word)
			if !end.local() || !endless(announced) {
				return nil, false
			}
			golang = golang || announced == waitsOnlyGo
			w.Process = end.Process
			if depth := atomic.LoadUint64(&h.tail) - atomic.LoadUint64(&h.head); depth <= e.channel.ring.capacity {
				w.Depth = int(depth)
			}
			waiting[w.Process] = true
			waits = append(waits, w)
		}
		if (p.timed > 0 || p.alarm) && !golang {
			return nil, false
		}
	}
	for id, p := range vm.processes {
		if !p.ended && !waiting[id] {
			return nil, false
		}
	}
	slices.SortFunc(waits, func(a, b Wait) int {
		if a.Process != b.Process {
			return a.Process - b.Process
		}
		return int(a.Channel) - int(b.Channel)
	})
	return waits, true
}

// program is one process of the machine, as its threads are looked at.
type program struct {
	pid    int
	inodes map[uint64]*channel
	areas  []area // where its memory is, once that was asked
	asked  bool
	waits  []ringEnd
	timed  int  // threads with a limit
	alarm  bool // it has a handler for SIGALRM, as Go's runtime has for all signals
}

// clockless says that no timer of the program's will interrupt it with a
// signal. Whether alarm(2) is set the kernel does not tell: alarm says whether
// there is a handler for it.
func (p *program) clockless() bool {
	timers, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/timers")
	if len(timers) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) { // kernels may lack it
		return false
	}
	status, err := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/status")
	if err != nil {
		return false
	}
	caught, err := strconv.ParseUint(statusOf(status, "SigCgt"), 16, 64)
	p.alarm = caught>>(unix.SIGALRM-1)&1 != 0
	return err == nil
}

// blocked says whether a thread is blocked as waiting says.
func (p *program) blocked(tid int) bool {
	text, err := os.ReadFile(taskFile(p.pid, tid, "syscall"))
	if err != nil {
		return false
	}
	call, args, ok := parseSyscall(string(text))
	if !ok {
		return false
	}
	switch call {
	case unix.SYS_WAIT4, unix.SYS_WAITID: // for a child, which is looked at too
		return true
	case unix.SYS_FUTEX:
		const command, private, wait, waitBitset = 0x7f, 0x80, 0, 9
		if op := args[1] & command; op != wait && op != waitBitset {
			return false
		}
		if args[1]&private == 0 {
			if a, ok := p.area(args[0]); !ok || a.shared {
				return ok && p.onRing(a, args[0])
			}
		}
		// Its own memory: another thread of it must do something. One timer
		// does no harm: Go's runtime always keeps a thread with one, for itself;
		// those of the program make it sleep in epoll_wait.
		if args[3] != 0 {
			p.timed++
		}
		return p.timed <= 1
	case sysFutexWaitv:
		return p.onRings(args[0], int(min(args[1], 1<<16)))
	}
	return false
}

// onRing says whether an address is a waits word, and keeps which.
func (p *program) onRing(a area, address uint64) bool {
	if a.ring == nil {
		return false
	}
	e := ringEnd{channel: a.ring}
	switch address - a.from + a.offset {
	case uint64(unsafe.Offsetof(ringHeader{}.producerWaits)):
		e.out = true
	case uint64(unsafe.Offsetof(ringHeader{}.consumerWaits)):
	default:
		return false
	}
	p.waits = append(p.waits, e)
	return true
}

// onRings is onRing for all that a futex_waitv waits on.
func (p *program) onRings(vector uint64, n int) bool {
	const size = 24 // struct futex_waitv: value, address, flags, reserved
	buffer := make([]byte, n*size)
	if n == 0 {
		return false
	}
	local := []unix.Iovec{{Base: &buffer[0]}}
	local[0].SetLen(len(buffer))
	got, err := unix.ProcessVMReadv(p.pid, local, []unix.RemoteIovec{{Base: uintptr(vector), Len: len(buffer)}}, 0)
	if err != nil || got != len(buffer) {
		return false
	}
	for ; len(buffer) > 0; buffer = buffer[size:] {
		address := binary.LittleEndian.Uint64(buffer[8:])
		if a, ok := p.area(address); !ok || !p.onRing(a, address) {
			return false
		}
	}
	return true
}

// area is a part of a program's memory.
type area struct {
	from, to, offset uint64
	shared           bool
	ring             *channel // whose memory it is, nil if none's
}

func (p *program) area(address uint64) (area, bool) {
	for _, a := range p.memory() {
		if a.from <= address && address < a.to {
			return a, true
		}
	}
	return area{}, false
}

func (p *program) memory() []area {
	if !p.asked {
		p.asked = true
		text, _ := os.ReadFile("/proc/" + strconv.Itoa(p.pid) + "/maps")
		for line := range strings.Lines(string(text)) {
			if a, inode, ok := parseArea(line); ok {
				if strings.Contains(line, "/memfd:mvm-ring") {
					a.ring = p.inodes[inode]
				}
				p.areas = append(p.areas, a)
			}
		}
	}
	return p.areas
}

// parseArea reads a line of /proc/PID/maps:
// "7f5c2000-7f5c3000 rw-s 00000000 00:01 1042  /memfd:mvm-ring (deleted)".
func parseArea(line string) (a area, inode uint64, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 5 || len(fields[1]) != 4 {
		return a, 0, false
	}
	from, to, _ := strings.Cut(fields[0], "-")
	var errs [4]error
	a.from, errs[0] = strconv.ParseUint(from, 16, 64)
	a.to, errs[1] = strconv.ParseUint(to, 16, 64)
	a.offset, errs[2] = strconv.ParseUint(fields[2], 16, 64)
	inode, errs[3] = strconv.ParseUint(fields[4], 10, 64)
	a.shared = fields[1][3] == 's'
	return a, inode, errs == [4]error{}
}

// parseSyscall reads /proc/PID/task/TID/syscall: the call's number, its six
// arguments, stack pointer and program counter; or "running", or "-1 ..." for a
// thread that is blocked elsewhere.
func parseSyscall(text string) (call int, args [6]uint64, ok bool) {
	fields := strings.Fields(text)
	if len(fields) < 7 {
		return 0, args, false
	}
	call, err := strconv.Atoi(fields[0])
	if err != nil || call < 0 {
		return 0, args, false
	}
	for k := range args {
		if args[k], err = strconv.ParseUint(strings.TrimPrefix(fields[k+1], "0x"), 16, 64); err != nil {
			return 0, args, false
		}
	}
	return call, args, true
}

// switches is how often each thread was switched away from its processor.
func switches(threads map[int][]int) ([]uint64, bool) {
	var counts []uint64
	for _, pid := range sortedKeys(threads) {
		for _, tid := range threads[pid] {
			status, err := os.ReadFile(taskFile(pid, tid, "status"))
			if err != nil {
				return nil, false
			}
			for _, name := range []string{"voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"} {
				n, err := strconv.ParseUint(statusOf(status, name), 10, 64)
				if err != nil {
					return nil, false
				}
				counts = append(counts, n)
			}
		}
	}
	return counts, true
}

// statusOf is a value of /proc/PID/status, "" when it is not there.
func statusOf(status []byte, name string) string {
	_, rest, _ := bytes.Cut(status, []byte("\n"+name+":"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return string(bytes.TrimSpace(line))
}

// threadsBelow lists the threads of some children of a process, or of all, and
// of everything that descends from them, but for zombies.
func threadsBelow(self int, roots []int, all bool) map[int][]int {
	children := map[int][]int{}
	for _, pid := range numbersIn("/proc") {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		// The second field, in brackets, is what the program calls itself:
		// anything, also brackets.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
			continue
		}
		if parent, err := strconv.Atoi(fields[1]); err == nil {
			children[parent] = append(children[parent], pid)
		}
	}
	next := slices.Clone(roots)
	if all {
		next = append(next, children[self]...)
	}
	threads := map[int][]int{}
	for len(next) > 0 {
		pid := next[len(next)-1]
		next = next[:len(next)-1]
		if _, seen := threads[pid]; !seen { // numbers that are used again can make a circle
			tids := numbersIn("/proc/" + strconv.Itoa(pid) + "/task")
			slices.Sort(tids)
			threads[pid] = tids
			next = append(next, children[pid]...)
		}
	}
	return threads
}

func sameThreads(a, b map[int][]int) bool {
	if len(a) != len(b) {
		return false
	}
	for pid, threads := range a {
		if !slices.Equal(threads, b[pid]) {
			return false
		}
	}
	return true
}

func sortedKeys(m map[int][]int) []int {
	keys := make([]int, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func numbersIn(dir string) []int {
	f, err := os.Open(dir)
	if err != nil {
		return nil
	}
	defer f.Close()
	names, _ := f.Readdirnames(-1)
	var all []int
	for _, name := range names {
		if n, err := strconv.Atoi(name); err == nil {
			all = append(all, n)
		}
	}
	return all
}

func taskFile(pid, tid int, name string) string {
	return "/proc/" + strconv.Itoa(pid) + "/task/" + strconv.Itoa(tid) + "/" + name
}
