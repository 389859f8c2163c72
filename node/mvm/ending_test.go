package mvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
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

// leaver enqueues to out what it gets from in, and ends.
const leaver = `
import mvm
out = mvm.open("out")
for item in mvm.open("in"): out.enqueue(bytes(item))`

// leaving launches a program that ends well with items in an outside queue, and has
// the attempt ended as the broker does then. ended tells what came of that.
func leaving(t *testing.T, binary *os.File, served bool, items ...string) (l *launched, ended <-chan error) {
	t.Helper()
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is needed for a program with ports; install it")
	}
	clients, library, _ := clients(t)
	l = launch(t, binary, Probe(binary), func(s *Start) { s.Listen, s.Plain, s.Clients, s.Library = "127.0.0.1:0", true, clients, library })
	port := func(name string) queuevm.Endpoint { return queuevm.Endpoint{Process: 0, Port: name} }
	plan := &Instantiate{
		Processes: []ProcessSpec{{ID: 0, Task: "t", Count: 1, Command: []string{python, "-c", leaver}}},
		Channels: []queuevm.Channel{
			{ID: 1, From: queuevm.Endpoint{Outside: "in"}, To: port("in")},
			{ID: 2, From: port("out"), To: queuevm.Endpoint{Outside: "out"}},
		},
	}
	if served {
		plan.Queues = []Queue{{Queue: queuevm.Queue{ID: 7, Name: "between", Type: queuevm.QueueFifo, Full: queuevm.FullBlock}}}
		plan.Channels[1].To = queuevm.Endpoint{Queue: 7}
		plan.Channels = append(plan.Channels, queuevm.Channel{ID: 3, From: queuevm.Endpoint{Queue: 7}, To: queuevm.Endpoint{Outside: "out"}})
	}
	l.must(Request{Instantiate: plan})
	var data [][]byte
	for _, item := range items {
		data = append(data, []byte(item))
	}
	if n := l.must(Request{Enqueue: &Enqueue{Queue: "in", Items: data, End: true, Timeout: time.Minute}}).Count; n != len(items) {
		t.Fatalf("%d items were taken, want %d", n, len(items))
	}
	if s := l.await(0); s.ExitCode != 0 {
		t.Fatalf("%+v\n%s", s, l.printed(0, "stderr"))
	}
	over := make(chan error, 1)
	go func() {
		_, err := l.call(Request{Terminate: &Terminate{}})
		over <- err
	}()
	time.Sleep(50 * time.Millisecond) // it is about who comes late
	return l, over
}

// TestTakenLate: what programs that ended well left for those outside is there for a
// moment longer, and so is END. On a busy machine the moment may be over once.
func TestTakenLate(t *testing.T) {
	binary := slim(t)
	often := func(name string, served bool, take func(l *launched) (string, error)) {
		t.Run(name, func(t *testing.T) {
			got, err := "", error(nil)
			for range 4 {
				l, ended := leaving(t, binary, served, "one", "two")
				got, err = take(l)
				if failed := <-ended; failed != nil {
					t.Error(failed)
				}
				l.over()
				if err == nil {
					break
				}
			}
			if err != nil || got != "one\ntwo\n" {
				t.Errorf("%q came, %v", got, err)
			}
		})
	}
	dequeue := func(l *launched) (got string, err error) {
		for end := false; !end; {
			reply, err := l.call(Request{Dequeue: &Dequeue{Queue: "out", Limit: 1, Timeout: time.Minute}})
			if err != nil {
				return got, err
			}
			for _, item := range reply.Dequeue.Items {
				got += string(item) + "\n"
			}
			end = reply.Dequeue.End
		}
		return got, nil
	}
	often("bare", false, dequeue)
	often("served", true, dequeue)
	often("socket", false, func(l *launched) (string, error) {
		reply, err := l.call(Request{OpenSocket: &OpenSocket{Queue: "out", TTL: time.Minute}})
		if err != nil {
			return "", err
		}
		conn, err := net.Dial("tcp", reply.Socket.Address)
		if err != nil {
			return "", err
		}
		defer conn.Close()
		fmt.Fprintf(conn, "MVM1 %s lines\n9\n", reply.Socket.Token)
		all, err := io.ReadAll(conn)
		got, ok := strings.CutPrefix(string(all), "OK dequeue\n")
		if err == nil && !ok {
			err = fmt.Errorf("the answer is %q", all)
		}
		return got, err
	})
}

// TestNobodyTakes: an attempt does not wait for long, and not at all where it failed
// or is ended with a grace.
func TestNobodyTakes(t *testing.T) {
	vm, err := queuevm.New(queuevm.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer vm.Close()
	if err := vm.AddProcess(queuevm.Process{ID: 1, Count: 1, Task: "t"}); err != nil {
		t.Fatal(err)
	}
	if err := vm.AddChannel(queuevm.Channel{ID: 1, Capacity: 4096, From: queuevm.Endpoint{Process: 1, Port: "p"}, To: queuevm.Endpoint{Outside: "q"}}); err != nil {
		t.Fatal(err)
	}
	p := &process{vm: vm, instantiated: true, programs: map[int]*program{1: {state: ProcessState{State: "exited"}}}}
	p.life, p.die = context.WithCancel(context.Background())
	defer p.die()
	took := func() time.Duration {
		began := time.Now()
		p.linger()
		return time.Since(began)
	}
	if d := took(); d < comeLimit {
		t.Errorf("it waits for %v, and %v for whoever may come", d, comeLimit)
	}
	least := func(limit time.Duration) (d time.Duration) { // a busy machine may stand still for a while
		for range 5 {
			if d = took(); d < limit {
				break
			}
		}
		return d
	}
	if d := least(takeLimit); d >= takeLimit {
		t.Errorf("it waits for %v where nobody came", d)
	}
	if err := vm.LeadsIn("none"); err == nil {
		t.Error("a queue that there is not")
	}
	if d := took(); d < takeLimit {
		t.Errorf("it waits for %v, and %v for who has come", d, takeLimit)
	}
	p.programs[1].state.ExitCode = 1
	if d := least(comeLimit); d >= comeLimit {
		t.Errorf("it waits for %v where a program failed", d)
	}
	p.programs[1].state.ExitCode, p.ending = 0, "cancelled"
	if d := least(comeLimit); d >= comeLimit {
		t.Errorf("it waits for %v where it is to end", d)
	}
	p.ending = ""
	p.die()
	if d := least(comeLimit); d >= comeLimit {
		t.Errorf("it waits for %v where its lease is over", d)
	}
}
