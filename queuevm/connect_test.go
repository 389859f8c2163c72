package queuevm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestPeersAreWhoTheBrokerNamed(t *testing.T) {
	for _, plain := range []bool{true, false} {
		a := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: plain})
		b := start(t, Config{Listen: "127.0.0.1:0", Self: "b", Plain: plain})
		impostor := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: plain})
		if len(a.Fingerprint()) != 64 || a.Fingerprint() == impostor.Fingerprint() {
			t.Fatalf("fingerprints %q and %q", a.Fingerprint(), impostor.Fingerprint())
		}
		// The impostor dials b as "a"; b was told a's key.
		ctx := within(t, 300*time.Millisecond)
		results := make(chan error, 2)
		go func() {
			results <- impostor.Connect(ctx, []Peer{{"b", b.Address(), b.Fingerprint()}})
		}()
		go func() { results <- b.Connect(ctx, []Peer{{"a", a.Address(), a.Fingerprint()}}) }()
		for range 2 {
			if err := <-results; err == nil {
				t.Error("a link to an impostor is made")
			}
		}
		// And a dialler notices that the one who answers is not b.
		c := start(t, Config{Listen: "127.0.0.1:0", Self: "b", Plain: plain})
		ctx = within(t, 300*time.Millisecond)
		go func() { _ = c.Connect(ctx, []Peer{{"a", a.Address(), a.Fingerprint()}}) }()
		if err := a.Connect(ctx, []Peer{{"b", c.Address(), b.Fingerprint()}}); err == nil {
			t.Error("a link to another than b is made")
		}
	}
}

// outward is an address of this machine that is none of the loopback.
func outward(t *testing.T) string {
	addresses, err := net.InterfaceAddrs()
	must(t, err)
	for _, a := range addresses {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && !ip.IP.IsLoopback() {
			return ip.IP.String()
		}
	}
	t.Skip("SKIPPED: this machine has no IPv4 address but the loopback's")
	return ""
}

// TestLinksAreEncryptedEachForItself: plain only where the bytes stay on the
// machine and both sides say so, and a group of all kinds connects.
func TestLinksAreEncryptedEachForItself(t *testing.T) {
	out := outward(t) + ":0"
	group := map[string]*VM{
		"a": start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true}),
		"b": start(t, Config{Listen: out, Self: "b"}),
		"c": start(t, Config{Listen: "127.0.0.1:0", Self: "c", Plain: true}),
		"d": start(t, Config{Listen: "127.0.0.1:0", Self: "d"}),
		"e": start(t, Config{Listen: out, Self: "e", Plain: true}),
		"f": start(t, Config{Listen: out, Self: "f", Plain: true}),
	}
	join(t, group)
	for one, a := range group {
		for other := range group {
			if one == other {
				continue
			}
			a.mu.Lock()
			fd := a.peers[other].fd
			name, err := unix.Getsockname(fd)
			a.mu.Unlock()
			must(t, err)
			_, encrypted := name.(*unix.SockaddrUnix) // the socket pair before TLS
			if want := !strings.Contains("a c", one) || !strings.Contains("a c", other); encrypted != want {
				t.Errorf("%s to %s: encrypted is %v", one, other, encrypted)
			}
		}
	}
}

func TestLowerIdDialsWithRetryAndItemsWait(t *testing.T) {
	a := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true})
	late := start(t, Config{Listen: "127.0.0.1:0", Self: "b", Plain: true})
	must(t, a.AddChannel(Channel{ID: 1, From: Endpoint{Outside: "in"}, To: Endpoint{Peer: "b"}}))
	must(t, a.Enqueue(within(t, time.Second), "in", []byte("early")))
	// b is to be reached where nobody listens yet: a's first tries fail.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	address := l.Addr().String()
	must(t, l.Close())
	connected := make(chan error, 1)
	ctx := within(t, 20*time.Second)
	go func() { connected <- a.Connect(ctx, []Peer{{"b", address, late.Fingerprint()}}) }()
	if l, err = net.Listen("tcp", address); err != nil {
		t.Skip("LOUD: another program took the port in between, so the retry is not shown:", err)
	}
	defer l.Close()
	go func() {
		near, err := l.Accept()
		if err != nil {
			return
		}
		far, err := net.Dial("tcp", late.Address())
		if err != nil {
			return
		}
		go func() { _, _ = io.Copy(far, near) }()
		_, _ = io.Copy(near, far)
	}()
	must(t, late.Connect(ctx, []Peer{{"a", a.Address(), a.Fingerprint()}}))
	must(t, <-connected)
	// The channel comes last at b: the order of things does not matter.
	must(t, late.AddChannel(Channel{ID: 1, From: Endpoint{Peer: "a"}, To: Endpoint{Outside: "out"}}))
	got, err := late.Dequeue(within(t, 10*time.Second), "out")
	if err != nil || string(got) != "early" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestGoodbyeIsNoLossWhenAllWasSaid(t *testing.T) {
	a, b := pair(t, Config{Plain: true})
	wire(t, 1, 4096, a, Endpoint{Outside: "in"}, b, Endpoint{Outside: "out"})
	must(t, a.Enqueue(within(t, time.Second), "in", []byte("last words")))
	must(t, a.CloseOutside("in"))
	if got, err := b.Dequeue(within(t, 10*time.Second), "out"); err != nil || string(got) != "last words" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := b.Dequeue(within(t, 10*time.Second), "out"); err != io.EOF {
		t.Errorf("got %v, not END", err)
	}
	must(t, a.Close())
	eventually(t, "b knows that a left", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.peers["a"].gone
	})
	select {
	case lost := <-b.Lost():
		t.Errorf("%+v is reported", lost)
	default:
	}
}

func TestChannelsThatMakeNoSenseAreRefused(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 1)
	good := Channel{ID: 1, From: Endpoint{Process: 1, Port: "a"}, To: Endpoint{Outside: "q"}}
	must(t, vm.AddChannel(good))
	for what, c := range map[string]Channel{
		"taken":    good,
		"leads":    {ID: 2, From: Endpoint{Process: 1, Port: "a"}, To: Endpoint{Outside: "r"}},
		"outside":  {ID: 3, From: Endpoint{Process: 1, Port: "b"}, To: Endpoint{Outside: "q"}},
		"unknown":  {ID: 4, From: Endpoint{Process: 2, Port: "b"}, To: Endpoint{Outside: "r"}},
		"name":     {ID: 5, From: Endpoint{Process: 1, Port: "b c"}, To: Endpoint{Outside: "r"}},
		"proxy":    {ID: 6, From: Endpoint{Process: 1, Port: "b"}, To: Endpoint{Peer: "x"}},
		"capacity": {ID: 7, Capacity: maxCapacity + 1, From: Endpoint{Process: 1, Port: "b"}, To: Endpoint{Outside: "r"}},
		"neither":  {ID: 8, From: Endpoint{Peer: "x"}, To: Endpoint{Peer: "y"}},
	} {
		if err := vm.AddChannel(c); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestNothingIsLeftAfterClose(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		must(t, err)
		return len(entries)
	}
	maps := func() int {
		b, err := os.ReadFile("/proc/self/maps")
		must(t, err)
		return bytes.Count(b, []byte("mvm-ring"))
	}
	round := func() {
		group := map[string]*VM{}
		for _, id := range []string{"a", "b"} {
			vm, err := New(Config{Listen: "127.0.0.1:0", Self: id})
			must(t, err)
			go func() { _ = vm.Run(context.Background()) }()
			group[id] = vm
		}
		join(t, group)
		a, b := group["a"], group["b"]
		processes(t, a, 1)
		wire(t, 1, 4096, a, Endpoint{Process: 1, Port: "x"}, b, Endpoint{Outside: "q"})
		s := spawn(t, a, 1, built.c, "send", "x", "100", "500")
		_, err := b.Dequeue(within(t, 10*time.Second), "q")
		must(t, err)
		must(t, a.Close())
		must(t, b.Close())
		<-s.done
	}
	round() // what the runtime keeps for itself is open now
	fds, mapped := count(), maps()
	for range 5 {
		round()
	}
	eventually(t, "descriptors and mappings are as before", func() bool { return count() <= fds && maps() <= mapped })
}

func FuzzHello(f *testing.F) {
	f.Add("0123 lines end enqueue")
	f.Add("")
	f.Fuzz(func(t *testing.T, line string) {
		h, err := parseHello(line)
		if err == nil && h.token == "" {
			t.Error("a hello without a token")
		}
	})
}

func FuzzSocketItem(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 'a', 'b', 'c'})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add([]byte{0x3f, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		item, ended, err := readItem(bytes.NewReader(b), 1<<30)
		if err == nil && !ended && len(item) != len(b[4:4+len(item)]) {
			t.Error("an item that was not sent")
		}
		if errors.Is(err, io.EOF) && len(b) > 0 && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("% x ends as if between items", b)
		}
	})
}

func FuzzGreeting(f *testing.F) {
	k, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	for _, purpose := range []greeting{{}, {direct: []uint32{7}}, {direct: []uint32{7, 8}}, {address: []byte("127.0.0.1:1")}} {
		g, err := k.greeting("node", purpose)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(g.whole)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		g, err := readGreeting(bytes.NewReader(b))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, g.whole) || !bytes.Contains(g.whole, g.id) {
			t.Error("a greeting that was not sent")
		}
		if g.proves([]byte("anything"), make([]byte, 64)) {
			t.Error("an empty signature proves something")
		}
	})
}
