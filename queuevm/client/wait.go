package client

import (
	"slices"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	yields         = 32
	slowYield      = 1500 * time.Microsecond // a yield that took longer met a hog:
	yieldPenalty   = 100 * time.Millisecond  // none for this long
	maxWaitv       = 128
	clockMonotonic = 1
	sysWaitv       = 449 // futex_waitv, Linux 5.16; the same on every architecture
)

// deadline is a time on the monotonic clock, in nanoseconds since the start.
type deadline int64

const (
	never  deadline = -1
	atOnce deadline = 0
)

func now() int64 { return int64(time.Since(current.started)) }

func in(limit time.Duration) deadline {
	if limit <= 0 {
		return atOnce
	}
	return deadline(now() + int64(limit))
}

// left is what FUTEX_WAIT takes: nil for never; over is true when time is up.
func (d deadline) left() (t *syscall.Timespec, over bool) {
	if d == never {
		return nil, false
	}
	ns := int64(d) - now()
	if ns <= 0 {
		return nil, true
	}
	spec := syscall.NsecToTimespec(ns)
	return &spec, false
}

// waits is how a sleep is announced: MVM looks for deadlocks among those that
// nothing ends but the other end.
func (d deadline) waits() uint32 {
	if d == never {
		return waitsOnly
	}
	return waitsFutex
}

// wake ends the sleep that a waits word announces: of a process on the word
// itself, of the daemon on its bell.
func (e *end) wake(word *uint32) {
	value := atomic.LoadUint32(word)
	if value == awake || !atomic.CompareAndSwapUint32(word, value, awake) {
		return
	}
	if value != waitsDaemon {
		_, _, _ = syscall.RawSyscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 1 /* FUTEX_WAKE */, 1<<30, 0, 0, 0)
		return
	}
	e.ring()
}

// ring rings the daemon's bell, and says for which channel.
func (e *end) ring() {
	word := 1 + (uint64(e.channel)+1)<<24
	_, _, _ = syscall.RawSyscall(syscall.SYS_WRITE, uintptr(e.bell), uintptr(unsafe.Pointer(&word)), 8)
}

// hasBytes says whether waiting for need published bytes is over.
func (e *end) hasBytes(need uint64) (bool, error) {
	state := atomic.LoadUint32(&e.header.producerState) // before tail: END comes after what was published
	tail := atomic.LoadUint64(&e.header.tail)
	if tail-e.mine > e.capacity || tail&7 != 0 {
		return false, e.breaks()
	}
	e.theirs = tail
	if tail-e.mine >= need {
		return true, nil
	}
	if state == 0 {
		return false, nil
	}
	return false, e.ended(state)
}

// ended is what the producer's state means for who has taken all.
func (e *end) ended(state uint32) error {
	err := stateError(state, ErrEnd)
	if err == ErrEnd && atomic.LoadUint32(&e.header.next)&nextIn != 0 {
		err = errHeed
	}
	return err
}

func (e *end) hasRoom(need uint64) (bool, error) {
	if state := atomic.LoadUint32(&e.header.consumerState); state != 0 {
		if err := e.says(state); err != nil {
			return false, err
		}
	}
	head := atomic.LoadUint64(&e.header.head)
	if e.mine-head > e.capacity || head&7 != 0 {
		return false, e.breaks()
	}
	e.theirs = head
	return e.capacity-(e.mine-head) >= need, nil
}

func (e *end) awaitBytes(need uint64, until deadline) error {
	if e.theirs-e.mine >= need {
		return nil
	}
	return await(&e.header.consumerWaits, until, func() (bool, error) { return e.hasBytes(need) })
}

func (e *end) awaitRoom(need uint64, until deadline) error {
	if e.capacity-(e.mine-e.theirs) >= need {
		return nil
	}
	return await(&e.header.producerWaits, until, func() (bool, error) { return e.hasRoom(need) })
}

// linger looks again for a while before sleeping: a short spin if cores are
// free, then yields while they are quick.
func linger(enough func() (bool, error)) (bool, error) { return lingerFor(current.spin, enough) }

func lingerFor(looks int, enough func() (bool, error)) (bool, error) {
	for n := looks; n > 0; n-- {
		if ok, err := enough(); ok || err != nil {
			return ok, err
		}
	}
	before := now()
	if before < current.noYield.Load() {
		return false, nil
	}
	for range yields {
		_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
		if ok, err := enough(); ok || err != nil {
			return ok, err
		}
		after := now()
		if after-before > int64(slowYield) {
			current.noYield.Store(after + int64(yieldPenalty))
			break
		}
		before = after
	}
	return false, nil
}

// await waits until enough says so, sleeping on word in the end. The word is
// set before the last look: either that look sees the news, or who brings it
// sees the word.
func await(word *uint32, until deadline, enough func() (bool, error)) error {
	if ok, err := enough(); ok || err != nil {
		return err
	}
	if until == atOnce {
		return ErrAgain
	}
	settle()
	if ok, err := linger(enough); ok || err != nil {
		return err
	}
	defer atomic.StoreUint32(word, awake)
	waits := until.waits()
	for {
		atomic.StoreUint32(word, waits)
		if ok, err := enough(); ok || err != nil {
			return err
		}
		limit, over := until.left()
		if over {
			return ErrTimeout
		}
		_, _, _ = syscall.Syscall6(syscall.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 0 /* FUTEX_WAIT */, uintptr(waits), uintptr(unsafe.Pointer(limit)), 0, 0)
	}
}

// settle wakes producers that sleep on room this process made: they must not
// wait for it while it waits for them.
func settle() {
	s := &current
	if !s.owing.Swap(false) {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.ports {
		if e := &p.in; e.header != nil && e.owes.Swap(false) && atomic.LoadUint32(&e.header.producerWaits) != awake {
			e.wake(&e.header.producerWaits)
		}
	}
}

// ready says whether a dequeue would not have to wait long: a whole record, the
// start of a fragmented one, or an end.
func (p *Port) ready() bool {
	p.inMu.Lock()
	defer p.inMu.Unlock()
	return p.readyNow()
}

// readyNow is ready for who has the turn.
func (p *Port) readyNow() bool {
	e := &p.in
	if !p.leads(e) || e.finished || e.broken {
		return true
	}
	if e.direct != nil {
		_, err := e.directWhole(atOnce)
		if err == errHeed && p.goOn(e) == nil {
			return p.readyNow()
		}
		return err != ErrAgain
	}
	ok, err := e.hasBytes(recordHeader)
	if err == errHeed && p.goOn(e) == nil {
		return p.readyNow()
	}
	if !ok || err != nil {
		return err != nil
	}
	if e.served&servedDemand != 0 && e.nothing() {
		return false
	}
	at := e.at(e.mine, 4)
	word := uint32(at[0]) | uint32(at[1])<<8 | uint32(at[2])<<16 | uint32(at[3])<<24
	if word&^lengthMask != 0 || int(word&lengthMask) > e.largest() {
		return true
	}
	ok, err = e.hasBytes(recordSize(int(word & lengthMask)))
	if err == errHeed && p.goOn(e) == nil {
		return p.readyNow()
	}
	return ok || err != nil
}

// Wait waits until an item, or an end, can be dequeued from one of the ports,
// and returns the first such port; ErrTimeout after limit (negative: never).
// Kernels before 5.16, and over 128 ports, look every millisecond instead of
// sleeping. Nobody else may dequeue from the ports meanwhile. What a wait got from
// a queue that several take from is this process's: it must dequeue it.
func Wait(limit time.Duration, ports ...*Port) (*Port, error) {
	if len(ports) == 0 {
		return nil, ErrMisuse
	}
	until := never
	if limit >= 0 {
		until = in(limit)
	}
	found, err := wait(until, ports)
	if err == ErrTimeout {
		demandAll(ports, true)
	}
	return withdraw(ports, found, err)
}

// demandAll asks the served queues among the ports.
func demandAll(ports []*Port, now bool) {
	for _, p := range ports {
		if p.in.served&servedDemand != 0 && !p.ready() {
			p.inMu.Lock()
			p.in.demand(now)
			p.inMu.Unlock()
		}
	}
}

// withdraw settles what served queues still owe after a wait, and gives what it
// found, or the first port that an answer came to.
func withdraw(ports []*Port, found *Port, err error) (*Port, error) {
	for _, p := range ports {
		if p.in.asked && !p.ready() {
			p.inMu.Lock()
			p.in.demand(true)
			p.inMu.Unlock()
		}
	}
	for _, p := range ports {
		for p.in.asked && !p.ready() && p.in.asked { // the rest of a record, after its first bytes
			p.inMu.Lock()
			failed := p.in.awaitBytes(p.in.theirs-p.in.mine+8, never)
			p.inMu.Unlock()
			if failed != nil {
				break
			}
		}
		if err == ErrTimeout && p.in.served&servedDemand != 0 && p.ready() {
			found, err = p, nil
		}
	}
	return found, err
}

func wait(until deadline, ports []*Port) (*Port, error) {
	var found *Port
	look := func() (bool, error) {
		for _, p := range ports {
			if p.ready() {
				found = p
				return true, nil
			}
		}
		return false, nil
	}
	if ok, _ := look(); ok {
		return found, nil
	}
	if until == atOnce {
		return nil, ErrTimeout
	}
	demandAll(ports, false)
	settle()
	if ok, _ := linger(look); ok {
		return found, nil
	}
	announce := func(value uint32) {
		for _, p := range ports {
			if p.in.header != nil {
				atomic.StoreUint32(&p.in.header.consumerWaits, value)
			}
		}
	}
	defer announce(awake)
	for nap := 50 * time.Microsecond; ; nap = min(2*nap, time.Millisecond) {
		before := rings(ports)
		announce(until.waits())
		if ok, _ := look(); ok {
			return found, nil
		}
		if rings(ports) != before { // those that ports went on to were told nothing yet
			demandAll(ports, false)
			continue
		}
		if _, over := until.left(); over {
			return nil, ErrTimeout
		}
		if slices.ContainsFunc(ports, func(p *Port) bool { return p.in.direct != nil }) {
			sleepOnSockets(ports, until, nap)
		} else if !sleepOn(ports, until) {
			time.Sleep(nap)
		}
	}
}

// rings counts the rings that the ports went on to.
func rings(ports []*Port) (n uint64) {
	for _, p := range ports {
		n += p.hops
	}
	return n
}

// waiter is the kernel's struct futex_waitv.
type waiter struct {
	value, address  uint64
	flags, reserved uint32
}

// sleepOn sleeps until one port's word changes; false when the kernel cannot.
func sleepOn(ports []*Port, until deadline) bool {
	if len(ports) > maxWaitv {
		return false
	}
	waiters := make([]waiter, len(ports))
	for k, p := range ports {
		waiters[k] = waiter{uint64(until.waits()), uint64(uintptr(unsafe.Pointer(&p.in.header.consumerWaits))), 2 /* 32-bit, shared */, 0}
	}
	var limit *syscall.Timespec
	if until != never {
		var spec syscall.Timespec // the call wants a time of the kernel's clock
		_, _, _ = syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&spec)), 0)
		spec = syscall.NsecToTimespec(spec.Nano() + int64(until) - now())
		limit = &spec
	}
	_, _, errno := syscall.Syscall6(sysWaitv, uintptr(unsafe.Pointer(&waiters[0])), uintptr(len(waiters)), 0, uintptr(unsafe.Pointer(limit)), clockMonotonic, 0)
	return errno != syscall.ENOSYS
}
