package queuevm

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// oneSocket says whether channels 1 and 2 have one socket, on both VMs.
func oneSocket(t *testing.T, vms ...*VM) bool {
	t.Helper()
	one := 0
	for _, vm := range vms {
		vm.mu.Lock()
		there, back := vm.channels[1].direct, vm.channels[2].direct
		if there.fd < 0 || back.fd < 0 {
			t.Error("a channel has no socket")
		}
		if there.twin == back && back.twin == there {
			one++
		} else if there.twin != nil || back.twin != nil {
			t.Error("one of two channels takes the other's socket for its own")
		}
		vm.mu.Unlock()
	}
	if one != 0 && one != len(vms) {
		t.Error("the nodes do not agree on what has one socket")
	}
	return one > 0
}

// Two ways between the same two ports have one socket. Where they lead to two ports at
// one of the nodes they have two: who has a socket sees what comes on it.
func TestOneSocketForBothWays(t *testing.T) {
	at := func(process int, port string) Endpoint { return Endpoint{Process: process, Port: port} }
	for _, test := range []struct {
		name        string
		taker, back Endpoint // where channel 1 leads, and channel 2 comes from
		one         bool
	}{
		{"one port", at(1, "far"), at(1, "far"), true},
		{"two ports", at(1, "far"), at(1, "back"), false},
		{"two processes", at(1, "far"), at(2, "far"), false},
	} {
		for _, dialler := range []string{"a", "b"} { // of whose port there is one
			t.Run(test.name+"/"+dialler, func(t *testing.T) {
				a, b := bothPair(t)
				near, other := a, b
				if dialler == "b" {
					near, other = b, a
				}
				processes(t, near, 0)
				processes(t, other, 1, 2)
				wire(t, 1, 0, near, at(0, "far"), other, test.taker)
				wire(t, 2, 0, other, test.back, near, at(0, "far"))
				linked(t, a, b)
				if one := oneSocket(t, a, b); one != test.one {
					t.Errorf("one socket: %t, want %t", one, test.one)
				}
				x := spawn(t, near, 0, built.c, "both", "far", "far", "300", "9000")
				if test.back.Process == 2 {
					y := spawn(t, other, 1, built.c, "receive", "far", "9000")
					spawn(t, other, 2, built.c, "send", "far", "300", "9000").result()
					if got := y.result(); got != "300" {
						t.Errorf("got %q", got)
					}
				} else if got := spawn(t, other, 1, built.c, "both", test.back.Port, "far", "300", "9000").result(); got != "300" {
					t.Errorf("got %q", got)
				}
				if got := x.result(); got != "300" {
					t.Errorf("got %q", got)
				}
			})
		}
	}
}

// A process that ends without having read what came leaves what it sent whole, also
// while its peer sends on: its end of the socket must not answer with a reset.
func TestWayBackOutlivesTheTaker(t *testing.T) {
	for _, side := range []string{"a", "b"} {
		t.Run(side, func(t *testing.T) {
			a, b := bothPair(t)
			near, other, k, there, back := a, b, 0, uint32(1), uint32(2)
			if side == "b" {
				near, other, k, there, back = b, a, 1, 2, 1
			}
			duplex(t, a, b, 0)
			if !oneSocket(t, a, b) {
				t.Fatal("there are two sockets")
			}
			y := spawn(t, other, 1-k, built.c, "say", "far", "200", "1000")
			eventually(t, "all was said", func() bool { return state(other, back).ItemsIn == 200 })
			x := spawn(t, near, k, built.c, "shed", "far", "1000")
			eventually(t, "the other sends", func() bool { return state(near, there).ItemsIn > 0 })
			near.mu.Lock() // its process hears nothing
			must(t, y.cmd.Process.Kill())
			y.gone()
			eventually(t, "the end is known", func() bool { return state(other, there).TakerClosed })
			sent := &near.channels[there].ring.header.itemsIn
			before := atomic.LoadUint64(sent)
			eventually(t, "the other sends on", func() bool { return atomic.LoadUint64(sent) > before+10 })
			near.mu.Unlock()
			if got := x.result(); got != "200" {
				t.Errorf("got %q of what was sent before the end", got)
			}
			select {
			case lost := <-a.Lost():
				t.Errorf("reported: %v", lost)
			case lost := <-b.Lost():
				t.Errorf("reported: %v", lost)
			case <-time.After(2 * doubtTime):
			}
		})
	}
}

// A socket of both ways that is cut is told to both channels' ends.
func TestCutOfBothWays(t *testing.T) {
	for k, near := range languages() {
		t.Run(near.name, func(t *testing.T) {
			a, b := bothPair(t)
			duplex(t, a, b, 0)
			children := []*child{spawn(t, a, 0, near.program, "receive", "far", "5000"), spawn(t, b, 1, built.c, "both", "far", "far", "100000000", "5000")}
			eventually(t, "a few items are through", func() bool { return state(a, 2).ItemsOut > 50 })
			vm := []*VM{a, b}[k%2]
			vm.mu.Lock()
			must(t, unix.Shutdown(vm.channels[1].direct.fd, unix.SHUT_RDWR))
			vm.mu.Unlock()
			var lost PeerLost // by one side at least
			select {
			case lost = <-a.Lost():
			case lost = <-b.Lost():
			case <-time.After(time.Minute):
				t.Fatal("the cut is not reported")
			}
			if !strings.Contains(lost.Err.Error(), "direct channel") {
				t.Errorf("got %v", lost)
			}
			for _, c := range children {
				c.gone()
				if out := strings.ToLower(c.stderr.String() + c.stdout.String()); !strings.Contains(out, "lost") {
					t.Errorf("%v: got %q, not lost", c.cmd.Args, out)
				}
			}
			for id := range uint32(2) { // at the other node its process may have ended by then
				eventually(t, fmt.Sprintf("channel %d is lost", id+1), func() bool { return state(a, id+1).Lost || state(b, id+1).Lost })
			}
		})
	}
}
