package mvm

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSlack: an MVM process may wake late, and none of its programs.
func TestSlack(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.run(sh(0, "exec cat /proc/self/timerslack_ns"))
		l.await(0)
		if got := l.printed(0, "stdout"); got != fmt.Sprintln(programSlack.Nanoseconds()) {
			t.Errorf("a program's slack is %q", got)
		}
		own, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", l.PID()))
		if err != nil || string(own) != fmt.Sprintln(processSlack.Nanoseconds()) {
			t.Errorf("the MVM process's slack is %q, %v", own, err)
		}
		l.terminate()
	})
}

// TestSlackIsTheThreadsAgain: whoever starts something has its own slack afterwards,
// also when nothing was started.
func TestSlackIsTheThreadsAgain(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	slack := func() int {
		t.Helper()
		n, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := slack()
	for _, want := range []error{nil, errors.New("not started")} {
		err := slackened(2*processSlack, func() error {
			if n := slack(); n != int(2*processSlack.Nanoseconds()) {
				t.Errorf("while it starts something, the thread's slack is %d", n)
			}
			return want
		})
		if n := slack(); n != before || err != want {
			t.Errorf("the thread's slack was %d and is %d, %v", before, n, err)
		}
	}
}
