package mvm

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"mvm/node/build"
)

// spawner starts every child of the MVM process and reaps every one, also the
// orphans that it inherits as PID 1 or as subreaper. Nothing else in the MVM
// process may wait for children.
type spawner struct {
	deathSignal syscall.Signal // what children get when the MVM process dies; 0 where the namespace sees to it
	tasks       *cell          // limits how many all children have together; nil if nothing does
	rank        *os.File       // this process's oom_score_adj (proc(5)); nil where it cannot be written
	own         []byte         // what that is while no child is born

	mu       sync.Mutex              // guards what follows; held from before a fork until the child is known, and while one is reaped
	works    chan func(barred error) // done on one OS thread that never ends; nil until there is need for one
	thread   int                     // that thread
	leave    func() error            // takes that thread out of the cell that it is stuck in; nil while it is in none
	children map[int]func(syscall.WaitStatus, *syscall.Rusage)
	none     bool       // there was no child at all when the reaper last looked
	changed  *sync.Cond // none changed
}

func newSpawner(deathSignal syscall.Signal, tasks *cell) *spawner {
	s := &spawner{
		deathSignal: deathSignal,
		tasks:       tasks,
		children:    map[int]func(syscall.WaitStatus, *syscall.Rusage){},
		none:        true,
	}
	s.changed = sync.NewCond(&s.mu)
	if rank, err := os.OpenFile("/proc/self/oom_score_adj", os.O_RDWR, 0); err == nil {
		own := make([]byte, 16)
		if n, _ := rank.ReadAt(own, 0); n > 0 {
			s.rank, s.own = rank, own[:n]
		} else {
			_ = rank.Close()
		}
	}
	go s.reap()
	return s
}

// work has one OS thread for itself. It is not the first one of the process,
// which must not enter a cell: that one is kept from everyone, so that it is not
// taken again. It is within the limit of tasks for good.
func (s *spawner) work(works <-chan func(barred error)) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		go s.work(works)
		select {}
	}
	var barred error
	if s.visits() {
		_, barred = s.tasks.enter(nil)
	}
	for work := range works {
		work(barred)
	}
}

// visits tells whether a thread must be in the cell that limits tasks to start a
// child there, as in version 1. No other thread of this process ever is, which is
// to go on when its programs have used all tasks up: Go never has a locked thread
// make another one.
func (s *spawner) visits() bool { return s.tasks != nil && !s.tasks.unified }

// do has work done that starts children, and waits for it. With cells of version 1,
// or where there is a death signal, which follows the starting thread, it is done
// on a thread that is for this alone. Everyone else does without: it costs as much
// as the start. An error means that work was not done.
func (s *spawner) do(cells bool, work func()) error {
	s.mu.Lock()
	if s.works == nil && (cells || s.deathSignal != 0) {
		s.works = make(chan func(error))
		go s.work(s.works)
	}
	works := s.works
	s.mu.Unlock()
	if works == nil {
		return s.visit(work)
	}
	done := make(chan error)
	works <- func(barred error) {
		if barred == nil {
			work()
		}
		done <- barred
	}
	return <-done
}

// visit has work done within the limit of tasks, on the caller's thread.
func (s *spawner) visit(work func()) error {
	if !s.visits() {
		work()
		return nil
	}
	runtime.LockOSThread()
	leave, err := s.tasks.enter(nil)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	work()
	if leave() == nil { // or the thread ends with this goroutine
		runtime.UnlockOSThread()
	}
	return nil
}

// child is a program to start, in a process group of its own. Not in a session of
// its own: the kernel's autogroups would take each for an interactive user's, and
// sched_yield, by which the programs of one job wait for each other, leads to no
// other group. 64 processes on 2 cores took four times as long so.
type child struct {
	path        string // "" is argv's first
	argv        []string
	environment []string
	dir         string
	files       []uintptr           // become its descriptors 0, 1, ...
	cell        *cell               // to be born in, or nil
	attributes  syscall.SysProcAttr // besides what start sets
}

// errNoCell says that a child cannot be born in its cell; it was not started.
var errNoCell = errors.New("no program can be born in its control group")

// start, called in do, starts a child. ended is called once, after the program
// and what was left of its process group are gone; it must not wait for another
// child. before, unless nil, is called before ended can be, with the pid and a
// pidfd (closed afterwards).
func (s *spawner) start(c child, before func(pid, pidfd int), ended func(syscall.WaitStatus, *syscall.Rusage)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pidfd := -1
	sys := c.attributes
	sys.Setpgid, sys.Pdeathsig, sys.PidFD = true, s.deathSignal, &pidfd
	attributes := &syscall.ProcAttr{Dir: c.dir, Env: c.environment, Files: c.files, Sys: &sys}
	// A child of a thread that is stuck would share another program's limit.
	if err := s.outside(); err != nil {
		return err
	}
	if s.tasks != nil && s.tasks.unified && (c.cell == nil || !c.cell.unified) { // the other is below it
		leave, err := s.tasks.enter(&sys)
		if err != nil {
			return err
		}
		defer leave()
	}
	if c.cell != nil {
		leave, err := c.cell.enter(attributes.Sys)
		if err != nil {
			return fmt.Errorf("%w: %w", errNoCell, err)
		}
		s.leave, s.thread = leave, unix.Gettid()
	}
	var pid int
	err := s.expendable(func() error {
		return slackened(programSlack, func() (err error) {
			pid, err = syscall.ForkExec(cmp.Or(c.path, c.argv[0]), c.argv, attributes)
			return err
		})
	})
	stuck := s.outside() // no fault of a child that was born well: the next start says it
	if err != nil {
		if s.tasks != nil && errors.Is(err, unix.EAGAIN) {
			err = fmt.Errorf("the limit of tasks that a job may have on this node is reached: %w", err)
		}
		if c.cell != nil {
			err = fmt.Errorf("%w: %w", errNoCell, err)
		}
		return errors.Join(err, stuck)
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if s.rank == nil {
		build.RankForKilling(pid)
	}
	if before != nil {
		before(pid, pidfd)
	}
	s.children[pid] = ended
	s.none = false
	s.changed.Broadcast()
	return nil
}

// expendable has the child that start makes be ended first when the machine is out of
// memory, and whatever it starts, from its first instruction on: a process is born with
// its parent's rank. For that moment this process has it too, among whom the kernel
// takes the biggest. s.mu is held.
func (s *spawner) expendable(start func() error) error {
	if s.rank == nil {
		return start()
	}
	_, raised := s.rank.WriteAt([]byte(build.FirstToKill), 0)
	err := start()
	if raised == nil {
		if _, failed := s.rank.WriteAt(s.own, 0); failed != nil {
			fmt.Fprintln(os.Stderr, "the MVM process stays ranked as its programs are:", failed)
		}
	}
	return err
}

// outside brings the thread that starts children out of every cell. s.mu is held.
func (s *spawner) outside() error {
	if s.leave == nil || unix.Gettid() != s.thread {
		return nil
	}
	err := s.leave()
	if err == nil {
		s.leave = nil
	}
	return err
}

// reap collects the dead, one at a time and for ever.
func (s *spawner) reap() {
	for {
		_, err := nextDead(0)
		if err == unix.EINTR {
			continue
		}
		s.mu.Lock()
		if err != nil { // no child at all
			// A child may have been started since nextDead looked; it is in
			// children then, and orphans come from children only.
			if len(s.children) == 0 {
				s.none = true
				s.changed.Broadcast()
				for s.none {
					s.changed.Wait()
				}
			}
			s.mu.Unlock()
			continue
		}
		// Again, now that no start is under way: a failed start reaps its own.
		pid, err := nextDead(unix.WNOHANG)
		if err != nil || pid == 0 {
			s.mu.Unlock()
			continue
		}
		ended, known := s.children[pid]
		if known {
			// While the dead leader keeps its number, its group can be ended
			// without hitting another.
			unix.Kill(-pid, unix.SIGKILL)
		}
		var status syscall.WaitStatus
		var usage syscall.Rusage
		syscall.Wait4(pid, &status, 0, &usage)
		delete(s.children, pid)
		s.mu.Unlock()
		if known {
			ended(status, &usage)
		}
	}
}

// nextDead waits for a child to die and gives its pid, and leaves it unreaped.
// With WNOHANG it does not wait, and the pid may be 0.
func nextDead(options int) (int, error) {
	var info unix.Siginfo
	err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT|options, nil)
	if err != nil {
		return 0, err
	}
	// siginfo_t: three ints, then a union that begins with the pid and is
	// aligned like a pointer.
	offset := (3*unsafe.Sizeof(int32(0)) + unsafe.Sizeof(uintptr(0)) - 1) &^ (unsafe.Sizeof(uintptr(0)) - 1)
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), offset))), nil
}

// killAll ends every process below this one, whatever it did to get away, and
// returns when none is left or after limit (a process that hangs in the kernel).
func (s *spawner) killAll(namespace bool, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	// Whoever is in the namespace descends from its PID 1, so when that has no
	// child it is alone. To look for others, the kernel goes through all processes
	// of the machine.
	s.mu.Lock()
	alone := namespace && s.none
	s.mu.Unlock()
	if alone {
		return nil
	}
	for {
		if namespace {
			unix.Kill(-1, unix.SIGKILL) // everyone in the namespace but its PID 1
		} else {
			killDescendants(unix.Getpid())
		}
		s.mu.Lock()
		if !s.none {
			// It broadcasts under the lock, so not before the wait.
			again := time.AfterFunc(5*time.Millisecond, func() {
				s.mu.Lock()
				defer s.mu.Unlock()
				s.changed.Broadcast()
			})
			s.changed.Wait()
			again.Stop()
		}
		none := s.none
		s.mu.Unlock()
		if none {
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("some processes do not end although they were killed")
		}
	}
}
