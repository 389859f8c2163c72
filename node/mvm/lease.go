package mvm

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lease ends the attempt when its node does not keep it. The node ends its
// attempts itself when no heartbeat was answered; one that stands still (a
// debugger, a frozen control group, SIGSTOP) cannot, and elsewhere the next
// attempt begins. The time is CLOCK_BOOTTIME's, as the node's is.
type lease struct{ file *os.File }

// leaseOver is why the attempt ends then.
const leaseOver = "its lease ran out, and its node, which stood still, did not end it"

func newLease() (*lease, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer for the lease: %w", os.NewSyscallError("timerfd_create", err))
	}
	return &lease{os.NewFile(uintptr(fd), "lease")}, nil
}

// keep lets the lease run out after d from now, and no sooner. Before the first
// keep it does not run.
func (l *lease) keep(d time.Duration) error {
	conn, err := l.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		// The zero duration would stop the timer.
		failed = unix.TimerfdSettime(int(fd), 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(d, 1)))}, nil)
	})
	if err == nil {
		err = os.NewSyscallError("timerfd_settime", failed)
	}
	return err
}

// over returns when the lease has run out. An error says that it never will.
func (l *lease) over() error {
	var count [8]byte
	for {
		// A keep between the timer's end and this read takes the end back.
		if n, err := l.file.Read(count[:]); err != nil || n == len(count) {
			return err
		}
	}
}
