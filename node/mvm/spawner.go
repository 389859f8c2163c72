package mvm

import (
	"errors"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spawner starts every child of the MVM process and reaps every one, also the
// orphans that it inherits as PID 1 or as subreaper. Nothing else in the MVM
// process may wait for children.
type spawner struct {
	deathSignal syscall.Signal // what children get when the MVM process dies; 0 where the namespace sees to it
	works       chan func()    // done on one OS thread that never ends

	mu       sync.Mutex // guards what follows; held from before a fork until the child is known, and while one is reaped
	children map[int]func(syscall.WaitStatus, *syscall.Rusage)
	none     bool       // there was no child at all when the reaper last looked
	changed  *sync.Cond // none changed
}

func newSpawner(deathSignal syscall.Signal) *spawner {
	s := &spawner{
		deathSignal: deathSignal,
		works:       make(chan func()),
		children:    map[int]func(syscall.WaitStatus, *syscall.Rusage){},
		none:        true,
	}
	s.changed = sync.NewCond(&s.mu)
	go func() {
		runtime.LockOSThread()
		for work := range s.works {
			work()
		}
	}()
	go s.reap()
	return s
}

// do has work done on the thread that starts all children, and waits for it:
// the death signal follows the starting thread, and a change of threads for
// each of many starts would cost more than the start.
func (s *spawner) do(work func()) {
	done := make(chan struct{})
	s.works <- func() {
		defer close(done)
		work()
	}
	<-done
}

// start, called in do, runs a program in a session of its own. files become its descriptors 0,
// 1, ... ended is called once, after the program and what was left of its
// process group are gone; it must not wait for another child. before, unless
// nil, is called with the pid and a pidfd (closed afterwards) before ended can be.
func (s *spawner) start(argv, environment []string, dir string, files []uintptr, before func(pid, pidfd int), ended func(syscall.WaitStatus, *syscall.Rusage)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pidfd := -1
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: dir, Env: environment, Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: s.deathSignal, PidFD: &pidfd},
	})
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if err != nil {
		return err
	}
	if before != nil {
		before(pid, pidfd)
	}
	s.children[pid] = ended
	s.none = false
	s.changed.Broadcast()
	return nil
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
