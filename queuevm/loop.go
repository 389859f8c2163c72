package queuevm

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"runtime"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	yields      = 32
	slowYield   = 1500 * time.Microsecond // a yield that took longer met a hog:
	yieldPause  = 100 * time.Millisecond  // no yields for this long
	lockRounds  = 16                      // rounds of work between two chances for others to take the lock
	eventsAtOne = 64
)

// source is what a watched descriptor belongs to. event runs on the loop's
// thread with VM.mu held, and must not block.
type source interface{ event(events uint32) }

// watch adds a descriptor to the loop. The caller holds VM.mu or is New.
func (vm *VM) watch(fd int, events uint32, s source) error {
	if err := unix.EpollCtl(vm.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return err
	}
	vm.sources[int32(fd)] = s
	return nil
}

// unwatch takes a descriptor from the loop and closes it.
func (vm *VM) unwatch(fd int) {
	delete(vm.sources, int32(fd))
	_ = unix.EpollCtl(vm.epoll, unix.EPOLL_CTL_DEL, fd, nil)
	_ = unix.Close(fd)
}

// heat has the loop poll a channel until it was idle once. The caller holds VM.mu.
func (vm *VM) heat(c *channel) {
	if !c.hot && (c.out != nil || c.in != nil || c.front != nil || c.back != nil) {
		c.hot = true
		vm.hot = append(vm.hot, c)
	}
}

// bellWatch is told that someone rang: a child whose ring we sleep on, or a
// goroutine that changed something.
type bellWatch struct {
	vm *VM
	fd int
}

func (b bellWatch) event(uint32) {
	// NOWAIT: a child may have made its bell blocking, and emptied it since.
	var word [8]byte
	_, _ = unix.Preadv2(b.fd, [][]byte{word[:]}, -1, unix.RWF_NOWAIT)
	b.vm.chase()
	if c := b.vm.channels[rung(binary.NativeEndian.Uint64(word[:]))]; c != nil && b.fd == b.vm.door {
		b.vm.answer(c)
		return
	}
	for _, q := range b.vm.queues { // what a guest brought has no channel to be stirred by
		q.converted(b.vm)
	}
	for _, c := range b.vm.carried {
		b.vm.answer(c)
	}
}

// answer looks after a channel for which a bell may have been rung.
func (vm *VM) answer(c *channel) {
	if c.stirred() {
		vm.heat(c)
	}
	c.give.nudged(&c.ring.header.producerWaits)
	c.take.nudged(&c.ring.header.consumerWaits)
}

// ringBits of a bell's word count who rang; above them is the sum of the channels'
// ids, each with 1 added: of one ring it says which channel to look at, and the search
// of a thousand costs 9 us.
const ringBits = 24

// rung is the one channel for which a bell was rung, or an id that none has.
func rung(word uint64) uint32 {
	if word&(1<<ringBits-1) != 1 {
		return noChannel
	}
	return uint32(word>>ringBits - 1)
}

// noChannel is an id that plans do not come to.
const noChannel = ^uint32(0)

// Run carries items until ctx ends or Close is called, and then returns nil.
// It locks its OS thread as soon as something is carried; call it once, on a goroutine of its own, before
// Connect and before the first child starts.
func (vm *VM) Run(ctx context.Context) error {
	vm.mu.Lock()
	if vm.closed || vm.running {
		defer vm.mu.Unlock()
		if vm.running {
			return errors.New("the queue-level VM runs once")
		}
		return nil
	}
	vm.running = true
	vm.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { ring1(vm.bell) })
	defer stop()
	defer runtime.UnlockOSThread()
	defer close(vm.stopped)
	vm.loop(ctx)
	return nil
}

// doze waits for events as any goroutine does. Until something is carried there
// is nothing to be quick about, and most jobs never carry anything: a thread for
// this alone would cost them more than their start.
func (vm *VM) doze(events []unix.EpollEvent) (n int, err error) {
	failed := vm.dozer.Read(func(fd uintptr) bool {
		n, err = unix.EpollWait(int(fd), events, 0)
		return n != 0 || err != nil
	})
	return n, cmp.Or(failed, err)
}

// loop polls hot channels and peers without blocking; when nothing moves it
// spins if cores are free, yields while yields are quick, announces its sleep
// to every ring, looks once more, and sleeps in epoll_wait.
func (vm *VM) loop(ctx context.Context) {
	var (
		events    [eventsAtOne]unix.EpollEvent
		idle      int
		busy      int
		locked    bool
		noYieldTo time.Time
	)
	vm.mu.Lock()
	defer vm.mu.Unlock()
	for !vm.closed && ctx.Err() == nil {
		carries := len(vm.carried) > 0 || len(vm.links) > 0
		if carries && !locked {
			runtime.LockOSThread()
			locked = true
		}
		if vm.due != never {
			vm.tick()
		}
		worked := vm.carry()
		vm.woken = false
		if vm.look(events[:]) || worked {
			idle = 0
			if busy++; busy%lockRounds == 0 { // others may want the lock
				vm.mu.Unlock()
				vm.mu.Lock()
			}
			continue
		}
		idle++
		spins, tries := vm.spins()/10, yields
		if !carries {
			spins, tries = 0, 0 // there is nothing to be quick about
		}
		if idle <= spins {
			continue
		}
		if idle <= spins+tries {
			now := time.Now()
			if now.After(noYieldTo) {
				vm.mu.Unlock()
				_, _, _ = syscall.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0)
				vm.mu.Lock()
				if took := time.Since(now); took > slowYield {
					noYieldTo = now.Add(took + yieldPause)
				}
				continue
			}
		}
		idle = 0
		vm.arm()
		if vm.carry() { // after the announcement: what came before it is seen here
			continue
		}
		if !vm.alarm() {
			continue
		}
		vm.cool()
		vm.clock.fired = never
		vm.mu.Unlock()
		var n int
		var err error
		if carries {
			n, err = unix.EpollWait(vm.epoll, events[:], -1)
		} else {
			n, err = vm.doze(events[:])
		}
		vm.mu.Lock()
		if err == nil {
			vm.dispatch(events[:n])
		}
		vm.woken = true
		if vm.clock.fired != never {
			vm.late(vm.now() - vm.clock.fired)
			vm.clock.fired = never
		}
	}
}

// look polls the descriptors without sleeping; true when one had something.
func (vm *VM) look(events []unix.EpollEvent) bool {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(vm.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	if errno != 0 || n == 0 {
		return false
	}
	vm.dispatch(events[:n])
	return true
}

func (vm *VM) dispatch(events []unix.EpollEvent) {
	for _, e := range events {
		if s := vm.sources[e.Fd]; s != nil {
			s.event(e.Events)
		}
	}
}

// carry moves what can be moved now from hot rings to peers.
func (vm *VM) carry() bool {
	vm.bury()
	worked := false
	vm.turn++ // so that no channel is always the last to find room in a batch
	for k := range vm.hot {
		if vm.hot[(k+vm.turn)%len(vm.hot)].step(vm) {
			worked = true
		}
	}
	for _, p := range vm.links {
		p.repeat()
		if p.flush() {
			worked = true
		}
	}
	return worked
}

// arm announces on every hot ring that the daemon is about to sleep.
func (vm *VM) arm() {
	for _, c := range vm.hot {
		c.arm()
	}
}

// cool stops polling every channel; the bell or a frame heats it again.
func (vm *VM) cool() {
	for _, c := range vm.hot {
		c.hot = false
	}
	vm.hot = vm.hot[:0]
}
