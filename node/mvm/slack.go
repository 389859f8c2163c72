package mvm

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// How late the kernel may wake a thread that sleeps (PR_SET_TIMERSLACK, prctl(2)),
// where it need not be sooner. Go's monitor sleeps for 20 us, fifty times in a row each
// time that a program goes from idle to busy. In the short life of an MVM process that is
// a hundred interrupts that nothing comes of; woken with others, they cost nothing.
// What an MVM process must do in time it does by timerfd, which has no slack.
const (
	processSlack = 250 * time.Microsecond
	programSlack = 50 * time.Microsecond // the kernel's own
)

// slackened has a process started whose threads, and their children, have this
// slack: they inherit it.
func slackened(slack time.Duration, start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err == nil && unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(slack), 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(own), 0, 0, 0)
	}
	return start()
}
