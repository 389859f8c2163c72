package mvm

import (
	"fmt"
	"os"
	"testing"
)

// TestSlack: an MVM process may wake late, and none of its programs.
func TestSlack(t *testing.T) {
	before, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
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
	if after, err := os.ReadFile("/proc/self/timerslack_ns"); string(after) != string(before) {
		t.Errorf("the launching thread's slack was %q and is %q, %v", before, after, err)
	}
}
