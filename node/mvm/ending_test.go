package mvm

import (
	"context"
	"errors"
	"testing"
	"time"

	"mvm/queuevm"
)

// TestDequeueFromAnEndingAttempt: an attempt ends as soon as its programs have,
// and whoever waits outside for what they enqueued gets it, and END after it.
func TestDequeueFromAnEndingAttempt(t *testing.T) {
	vm, err := queuevm.New(queuevm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- vm.Run(t.Context()) }()
	defer func() {
		vm.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	q := queuevm.Endpoint{Outside: "q"}
	if err := vm.AddChannel(queuevm.Channel{ID: 1, Capacity: 4096, From: q, To: q}); err != nil {
		t.Fatal(err)
	}
	if err := vm.Enqueue(t.Context(), "q", []byte("last")); err != nil {
		t.Fatal(err)
	}
	p := &process{vm: vm, wired: make(chan struct{})}
	close(p.wired)
	p.life, p.die = context.WithCancel(context.Background())
	p.die()
	dequeue := func() (*Dequeued, error) { return p.dequeue(&Dequeue{Queue: "q", Limit: 1, Timeout: time.Minute}) }
	if got, err := dequeue(); err != nil || len(got.Items) != 1 || string(got.Items[0]) != "last" {
		t.Fatalf("%+v, %v: the item is lost", got, err)
	}
	if got, err := dequeue(); !errors.Is(err, context.Canceled) {
		t.Fatalf("%+v, %v: there is neither an item nor END", got, err)
	}
	if err := vm.CloseOutside("q"); err != nil {
		t.Fatal(err)
	}
	if got, err := dequeue(); err != nil || !got.End {
		t.Fatalf("%+v, %v: END is lost", got, err)
	}
}
