package node

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"

	"github.com/sirupsen/logrus"

	"mvm/wsdl"
)

// TestReportIsSecured: what the broker does not acknowledge soon is synced, and
// what the disk does not take then is written anew.
func TestReportIsSecured(t *testing.T) {
	var up atomic.Bool
	delivered := make(chan string, 9)
	s, err := openSpool(&spool{
		dir: t.TempDir(), node: "n", pause: soon / 10, log: logrus.NewEntry(logrus.New()),
		deliver: func(_ context.Context, r *spooled) (int64, error) {
			if !up.Load() {
				return 0, errors.New("nobody is there")
			}
			delivered <- r.Report.Failure
			return r.Report.Sequence, nil
		},
		dropped: func(*spooled) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	s.start(ctx)
	a := &wsdl.Attempt{Job: "j", Number: 1, Node: "n", Incarnation: "i"}
	for i, failure := range []string{"first", "second"} {
		if err := s.put(&spooled{Report: &wsdl.Report{Attempt: a, Sequence: int64(i + 1), Failure: failure}}, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(pathOf(s.dir, laneName(a), 2)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both reports are synced or written anew", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		l := s.lanes[laneName(a)]
		_, err := s.read(laneName(a), 2)
		return len(l.unsure)+len(l.memory) == 0 && err == nil
	})
	up.Store(true)
	for _, want := range []string{"first", "second"} {
		if got := <-delivered; got != want {
			t.Errorf("delivered is %q, not %q", got, want)
		}
	}
	eventually(t, "the spool is empty", s.empty)
	stop()
	s.wait()
}
