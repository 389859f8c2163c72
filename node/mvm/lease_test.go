package mvm

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An attempt whose lease is not kept ends, also when its node stands still and
// takes no more words of it: here an end that cannot be told comes first.
func TestLeaseThatIsNotKept(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		dir, mark := t.TempDir(), fmt.Sprintf("lease-%d", time.Now().UnixNano())
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(pair[0]), "control"), os.NewFile(uintptr(pair[1]), "control")
		process, err := begin(&LaunchConfig{Binary: slim(t), Cleaning: Subreaper, Mark: mark}, nil, theirs)
		if err != nil {
			t.Fatal(err)
		}
		theirs.Close()
		over := make(chan struct{})
		go func() {
			defer close(over)
			_, _ = process.Wait()
		}()
		w := newWire(ours)
		send := func(m message) {
			t.Helper()
			if err := w.send(m); err != nil {
				t.Fatal(err)
			}
		}
		send(&Start{Attempt: "lease/1", Node: "a", WorkDir: dir})
		send(&Request{ID: 1, Instantiate: &Instantiate{Processes: []ProcessSpec{sh(0, "until [ -e ../stop ]; do sleep 0.02; done"), sh(1, "sleep 1000")}}})
		eventually(t, "the programs run", func() bool { _, err := os.Stat(dir + "/process-1"); return err == nil && len(withMark(mark)) >= 3 })
		if stuck {
			for id := range uint64(4000) { // whose replies nobody takes
				send(&Request{ID: 2 + id, Inspect: &struct{}{}})
			}
			eventually(t, "they pile up", func() bool {
				n, err := unix.IoctlGetInt(pair[0], unix.TIOCINQ)
				return err == nil && n > 20_000
			})
		}
		if err := os.WriteFile(dir+"/stop", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		eventually(t, "one has ended", func() bool {
			return !slices.ContainsFunc(withMark(mark), func(p string) bool { return strings.Contains(p, "stop") })
		})
		send(&Request{ID: 1 << 40, Lease: &Lease{For: 300 * time.Millisecond}})
		select {
		case <-over:
		case <-time.After(20 * time.Second):
			t.Errorf("stuck %t: these still run: %q", stuck, withMark(mark))
		}
		ours.Close()
		if _, err := Sweep(mark, 0); err != nil {
			t.Error(err)
		}
		<-over
	}
}
