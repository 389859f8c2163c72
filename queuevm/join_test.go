package queuevm

import (
	"testing"
	"time"
)

// Peers that were not there when the VM connected, or with none at all, are met
// while it runs; whichever side is told first waits for the other, and a link that
// is there stays.
func TestPeersMeetLater(t *testing.T) {
	a := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true})
	b := start(t, Config{Listen: "127.0.0.1:0", Self: "b", Plain: true})
	must(t, a.Connect(t.Context(), nil))
	told := make(chan error, 1)
	go func() {
		told <- a.AddPeers(within(t, 20*time.Second), []Peer{{"b", b.Address(), b.Fingerprint()}})
	}()
	time.Sleep(20 * time.Millisecond) // a dials one that does not know it yet: or not, which is as good
	must(t, b.AddPeers(within(t, 20*time.Second), []Peer{{"a", a.Address(), a.Fingerprint()}}))
	must(t, <-told)
	must(t, a.AddChannel(Channel{ID: 1, From: Endpoint{Outside: "in"}, To: Endpoint{Peer: "b"}}))
	must(t, b.AddChannel(Channel{ID: 1, From: Endpoint{Peer: "a"}, To: Endpoint{Outside: "out"}}))
	must(t, a.Enqueue(within(t, 10*time.Second), "in", []byte("hello")))
	must(t, a.AddPeers(within(t, time.Second), []Peer{{"b", b.Address(), b.Fingerprint()}}))
	got, err := b.Dequeue(within(t, 10*time.Second), "out")
	must(t, err)
	if string(got) != "hello" {
		t.Errorf("%q came through", got)
	}
	alone := start(t, Config{Self: "c"})
	if err := alone.AddPeers(t.Context(), []Peer{{"a", a.Address(), a.Fingerprint()}}); err == nil {
		t.Error("a VM without a proxy has a peer")
	}
	if err := a.AddPeers(t.Context(), []Peer{{"a", a.Address(), a.Fingerprint()}}); err == nil {
		t.Error("a VM is its own peer")
	}
}
