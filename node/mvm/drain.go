package mvm

import (
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// drain empties the pipes behind every program's stdout and stderr into their
// files: one goroutine and one buffer for all, so that a program never waits
// for its reader and many programs cost no more than one.
type drain struct {
	epoll int
	file  *os.File // the same, which Go's poller waits for: a thread that sleeps in the kernel costs a silent program more than its output

	mu      sync.Mutex // guards what follows
	streams map[int32]*stream
	last    int32
}

// stream is one pipe and its keeper.
type stream struct {
	id int32 // among the drain's

	mu     sync.Mutex // guards what follows
	keeper *keeper
	pipe   int // the reading end, -1 when done
}

func newDrain() (*drain, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("fcntl", err)
	}
	d := &drain{epoll: epoll, file: os.NewFile(uintptr(epoll), "epoll"), streams: map[int32]*stream{}}
	waiter, err := d.file.SyscallConn()
	if err != nil {
		d.file.Close()
		return nil, err
	}
	go d.run(waiter)
	return d, nil
}

// open makes a stream that is kept at path; the caller hands writer to the
// program and closes its own copy.
func (d *drain) open(path string, max int64) (s *stream, writer int, err error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, os.NewSyscallError("pipe2", err)
	}
	s = &stream{keeper: newKeeper(path, max), pipe: pipe[0]}
	err = unix.SetNonblock(pipe[0], true) // the reading end only: the program's end blocks
	if err == nil {
		d.mu.Lock()
		d.last++
		s.id = d.last
		d.streams[s.id] = s
		d.mu.Unlock()
		err = unix.EpollCtl(d.epoll, unix.EPOLL_CTL_ADD, pipe[0], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: s.id})
	}
	if err != nil {
		d.finish(s)
		unix.Close(pipe[1])
		return nil, -1, err
	}
	return s, pipe[1], nil
}

func (d *drain) run(waiter syscall.RawConn) {
	var buffer []byte
	var events [64]unix.EpollEvent
	for {
		n := 0
		var failed error
		err := waiter.Read(func(fd uintptr) bool {
			n, failed = unix.EpollWait(int(fd), events[:], 0)
			return n != 0 && failed != unix.EINTR
		})
		if err != nil || failed != nil {
			return // the descriptor is closed: the end of the process
		}
		if buffer == nil {
			buffer = make([]byte, 64<<10)
		}
		for _, event := range events[:n] {
			d.mu.Lock()
			s := d.streams[event.Fd]
			d.mu.Unlock()
			if s != nil {
				d.empty(s, buffer)
			}
		}
	}
}

// empty reads what is there, up to four buffers so that no stream holds up the
// others.
func (d *drain) empty(s *stream, buffer []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range 4 {
		if s.pipe < 0 {
			return
		}
		n, err := unix.Read(s.pipe, buffer)
		switch {
		case n > 0:
			s.keeper.write(buffer[:n])
		case err == unix.EAGAIN || err == unix.EINTR:
			return
		default: // end of file
			d.close(s)
		}
		if n < len(buffer) && n > 0 {
			return
		}
	}
}

// finish keeps what the program had printed when it ended, and no more: who
// still holds the other end is killed, and must not hold up the end. The error
// is why not all of it could be kept.
func (d *drain) finish(s *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pipe < 0 {
		return s.keeper.broken
	}
	if waiting, err := unix.IoctlGetInt(s.pipe, unix.TIOCINQ); err == nil && waiting > 0 {
		buffer := make([]byte, waiting)
		if n, err := unix.Read(s.pipe, buffer); err == nil {
			s.keeper.write(buffer[:n])
		}
	}
	d.close(s)
	return s.keeper.broken
}

// close takes a stream out; s.mu is held. It is taken from epoll by name and
// first: closing alone would leave it there, ready for ever, for as long as a
// child that is just being started has a copy.
func (d *drain) close(s *stream) {
	_ = unix.EpollCtl(d.epoll, unix.EPOLL_CTL_DEL, s.pipe, nil)
	unix.Close(s.pipe)
	s.pipe = -1
	d.mu.Lock()
	delete(d.streams, s.id)
	d.mu.Unlock()
	s.keeper.finish()
}
