package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/wsdl"
)

// enclosed is a node with limits that holds an attempt whose VM is still starting.
func enclosed(t *testing.T, limits string) (*queue, *wsdl.Attempt) {
	t.Helper()
	l, err := readLimits(limitsFile(t, limits))
	if err != nil {
		t.Fatal(err)
	}
	n := &Node{id: "n", queueLimits: l, ledger: newLedger("n", "i", room{}, 0)}
	k := key{"j", 1}
	r := &runner{node: n, key: k}
	r.vm = &enclosure{runner: r, id: "n.vm", peers: map[string]string{}}
	n.runners = map[key]*runner{k: r}
	return &queue{node: n}, &wsdl.Attempt{Job: "j", Number: 1, Node: "n", Incarnation: "i"}
}

// TestLimitsOfEnclosedChanges: what a node's file forbids a live change does not
// bring to an attempt in a VM either, whose guest has no such file.
func TestLimitsOfEnclosedChanges(t *testing.T) {
	q, attempt := enclosed(t, `<queueLimits xmlns="urn:mvm:1" types="fifo"/>`)
	_, err := q.ApplyChangeContext(t.Context(), &wsdl.ApplyChange{Attempt: attempt, Number: 1, Step: 2, QueueLimits: &wsdl.QueueLimits{Types: "lifo"}})
	if wsdl.CodeOf(err) != wsdl.FaultCodeConflict || !strings.Contains(err.Error(), "does not let its queues have queues of type lifo") {
		t.Errorf("%v", err)
	}
}

// TestCallsBeforeAGuestIsUp: who is early for an attempt in a VM is told so.
func TestCallsBeforeAGuestIsUp(t *testing.T) {
	q, attempt := enclosed(t, `<queueLimits xmlns="urn:mvm:1"/>`)
	for name, call := range map[string]func() error{
		"a change": func() error {
			_, err := q.ApplyChangeContext(t.Context(), &wsdl.ApplyChange{Attempt: attempt, Number: 1, Step: 2})
			return err
		},
		"a look whether it is quiet": func() error {
			_, err := q.GetQuietContext(t.Context(), &wsdl.GetQuiet{Attempt: attempt})
			return err
		},
		"a stream": func() error {
			_, err := q.ReadStreamContext(t.Context(), &wsdl.ReadStream{Attempt: attempt, Process: wsdl.Of(int32(0)), Name: "stdout"})
			return err
		},
	} {
		if err := call(); wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable || !strings.Contains(err.Error(), "still awakening") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWithin: what is done for an attempt's checkpoint is given up when the attempt
// ends, also where whoever asked for it still waits.
func TestWithin(t *testing.T) {
	r := &runner{}
	r.ctx, r.cancel = context.WithCancel(t.Context())
	ctx, stop := r.within(t.Context())
	defer stop()
	if ctx.Err() != nil {
		t.Fatal("it is over before the attempt is")
	}
	r.cancel()
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Error("it goes on after the attempt's end")
	}
}

// TestSilentGuest: a guest that has said nothing for too long is given up, with what is
// known of it, wherever its machine is; one whose machine was made to stand is not.
func TestSilentGuest(t *testing.T) {
	n := &Node{id: "n", caller: deaf{}}
	now := time.Now()
	for _, c := range []struct {
		state  osvm.State
		silent time.Duration
		lost   bool
	}{
		{osvm.Running, guestSilent, false},
		{osvm.Running, guestSilent + time.Second, true},
		{osvm.Suspended, 2 * guestSilent, false},
	} {
		e := &enclosure{runner: &runner{node: n}, heard: now.Add(-c.silent)}
		e.moving.away = &away{node: n, at: "there", state: c.state}
		said := make(chan error, 1)
		go func() { said <- e.listen(t.Context(), e.whereabouts(), now) }()
		select {
		case err := <-said:
			if (err != nil) != c.lost {
				t.Errorf("%s and silent for %v: %v", c.state, c.silent, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s and silent for %v: nothing is said", c.state, c.silent)
		}
	}
}

// deaf answers no call.
type deaf struct{}

func (deaf) Call(context.Context, string, string, any, any) error {
	return errors.New("it does not answer")
}
