package queuevm

import (
	"context"
	"testing"
	"time"
)

// gone ends a relay as a host's does from which a VM has moved.
func (r *relay) gone() {
	_ = r.listener.Close()
	r.cut(true)
}

// TestMoved has two nodes exchange items while the places at which their proxies
// are reached change: first that of the one which is dialled, then the dialler's,
// then the other's again, which only its greeting can have told.
func TestMoved(t *testing.T) {
	config := Config{Plain: true, Listen: "127.0.0.1:0", Self: "a", Redial: 30 * time.Second}
	a := start(t, config)
	config.Self = "b"
	b := start(t, config)
	for id, way := range map[uint32][2]*VM{1: {a, b}, 2: {b, a}} {
		from, to := way[0], way[1]
		must(t, from.AddChannel(Channel{ID: id, Capacity: 16 << 10, From: Endpoint{Outside: "in"}, To: Endpoint{Peer: to.config.Self}}))
		must(t, to.AddChannel(Channel{ID: id, Capacity: 16 << 10, From: Endpoint{Peer: from.config.Self}, To: Endpoint{Outside: "out"}}))
	}
	atA, atB := newRelay(t, a.Address()), newRelay(t, b.Address())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	other := make(chan error, 1)
	go func() { other <- b.Connect(ctx, []Peer{{"a", atA.listener.Addr().String(), a.Fingerprint()}}) }()
	must(t, a.Connect(ctx, []Peer{{"b", atB.listener.Addr().String(), b.Fingerprint()}}))
	must(t, <-other)

	wait := func(what string, done func() bool) {
		for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("not within 30 s: %s", what)
				return
			}
		}
	}
	// move has a node be reached elsewhere, and waits until the other knows.
	move := func(vm, other *VM, from *relay) *relay {
		from.gone()
		to := newRelay(t, vm.Address())
		address := to.listener.Addr().String()
		vm.Moved(address)
		wait(vm.config.Self+" tells where it is", func() bool {
			vm.mu.Lock()
			told := !vm.peers[other.config.Self].untold
			vm.mu.Unlock()
			other.mu.Lock()
			defer other.mu.Unlock()
			return told && other.peers[vm.config.Self].Address == address
		})
		return to
	}
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		atB = move(b, a, atB) // which must dial
		atA = move(a, b, atA)
		atB = move(b, a, atB)                 // which must dial where a said that it is
		wait("a dials as ever", func() bool { // each cut, until one has found the link whole
			atA.cut(false)
			return atB.connections() > 0
		})
	}()
	sent := floods(t, a, b, 1<<30, 2000, stop)
	t.Logf("%v items", sent)
}
