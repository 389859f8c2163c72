package queuevm

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A ring whose every byte came from a hostile child: the reader ends, in
// bounds, after no more steps than the ring has records.
func FuzzReaderOfARing(f *testing.F) {
	f.Add(uint64(16), uint64(0), []byte{3, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c', 0, 0, 0, 0, 0})
	f.Add(uint64(4096), uint64(0), []byte{0, 0, 0, 0x80})
	f.Add(uint64(8), uint64(0), []byte{0xff, 0xff, 0xff, 0xff})
	f.Add(^uint64(7), uint64(0), []byte{})
	f.Add(uint64(24), uint64(8), []byte{8, 0, 0, 0x80, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	vm, err := New(Config{MaxItem: 1 << 20})
	if err != nil {
		f.Fatal(err)
	}
	defer vm.Close()
	f.Fuzz(func(t *testing.T, tail, state uint64, data []byte) {
		r, err := newRing(1, minCapacity, true)
		if err != nil {
			t.Skip("no shared memory:", err)
		}
		defer r.free()
		copy(r.data[:r.capacity], data)
		r.header.tail, r.header.producerState = tail, uint32(state)|stateClosed
		for _, from := range []uint64{0, 16, tail - 32} {
			seen, err := r.peek(from, 50, 1<<20)
			size := seen.Rest
			for _, item := range seen.Items {
				size += len(item.Data)
			}
			if size-seen.Rest > minCapacity || seen.Rest < 0 || size > 1<<20 || len(seen.Items) > 50 || err == nil && seen.end-from > 2*minCapacity {
				t.Fatalf("a look from %d on sees %d items, %d bytes and %d more, up to %d", from, len(seen.Items), size, seen.Rest, seen.end)
			}
		}
		c := &channel{ring: r}
		o := newOutside(c)
		for step := 0; ; step++ {
			if step > minCapacity/recordHeader {
				t.Fatal("the reader does not end")
			}
			item, err := o.get(context.Background(), vm)
			if err != nil {
				break
			}
			if len(item.Data) > minCapacity {
				t.Fatalf("%d bytes out of a ring of %d", len(item.Data), minCapacity)
			}
		}
		g := giver{ring: r, tail: 64}
		r.header.head = tail
		if free, err := g.free(); err == nil && free > r.capacity {
			t.Fatalf("%d bytes free of %d", free, r.capacity)
		}
	})
}

func FuzzFrame(f *testing.F) {
	for _, fr := range []frame{
		{kind: frameData, channel: 7, offset: 64, length: 8, items: 1},
		{kind: frameAck, channel: 1, offset: 8, length: 4096, flags: stateClosed},
		{kind: frameEnd, offset: 8, flags: stateClosed},
		{kind: frameBye},
		{kind: frameGone, channel: 9},
	} {
		f.Add(fr.append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < frameSize {
			t.Skip("shorter than a frame: the caller waits for more")
		}
		fr, err := parseFrame(b)
		if err == nil && string(fr.append(nil)) != string(b[:frameSize]) {
			t.Fatalf("% x parses to %+v, which is % x", b[:frameSize], fr, fr.append(nil))
		}
	})
}

// hostilePeer is a VM, not running, with one channel each way to a peer whose
// bytes the test writes to the descriptor.
func hostilePeer(t testing.TB) (vm *VM, p *peer, wire int) {
	vm, err := New(Config{Listen: "127.0.0.1:0", Self: "a", Plain: true})
	must(t, err)
	must(t, vm.AddProcess(Process{ID: 1}))
	must(t, vm.AddChannel(Channel{ID: 1, Capacity: 4096, From: Endpoint{Peer: "b"}, To: Endpoint{Process: 1, Port: "in"}}))
	must(t, vm.AddChannel(Channel{ID: 2, Capacity: 4096, From: Endpoint{Process: 1, Port: "out"}, To: Endpoint{Peer: "b"}}))
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	p = vm.peers["b"]
	p.fd = fds[0]
	p.buffer = make([]byte, receiveSize)
	must(t, vm.watch(p.fd, unix.EPOLLIN, p))
	vm.carry() // acknowledges channel 1: there is room for 4096 bytes
	return vm, p, fds[1]
}

func FuzzProxyWire(f *testing.F) {
	data := append(frame{kind: frameData, channel: 1, length: 16, items: 1}.append(nil), make([]byte, 16)...)
	f.Add(data)
	f.Add(append(data, frame{kind: frameEnd, channel: 1, offset: 16, flags: stateClosed}.append(nil)...))
	f.Add(append(data, frame{kind: frameEnd, channel: 1, offset: 16, flags: stateClosed | stateSwitched}.append(nil)...))
	f.Add(append(data, frame{kind: frameGone, channel: 1}.append(nil)...))
	f.Add(frame{kind: frameAck, channel: 2, length: 4096, flags: stateClosed | stateSwitched}.append(nil))
	f.Add(frame{kind: frameAck, channel: 2, length: 4096}.append(nil))
	f.Add(frame{kind: frameAck, channel: 2, offset: 1 << 40, length: 4096}.append(nil))
	f.Add(frame{kind: frameAck, channel: 99, length: 4096}.append(nil))
	f.Add(frame{kind: frameData, channel: 1, length: maxFrameData}.append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		vm, p, wire := hostilePeer(t)
		defer vm.Close()
		b = b[:min(len(b), 64<<10)]
		for len(b) > 0 {
			n, err := unix.Write(wire, b)
			if err != nil {
				break
			}
			b = b[n:]
			for range 4 {
				p.event(unix.EPOLLIN)
				vm.carry()
			}
		}
		_ = unix.Close(wire)
		p.event(unix.EPOLLIN)
		if s := vm.Inspect()[0]; s.BytesIn > 4096 {
			t.Fatalf("%d bytes in a ring of 4096 that nobody took from", s.BytesIn)
		}
	})
}

func TestPeerThatBreaksTheProtocolIsCut(t *testing.T) {
	data := func(offset uint64, n uint32) []byte {
		return append(frame{kind: frameData, channel: 1, offset: offset, length: n}.append(nil), make([]byte, n)...)
	}
	for name, bytes := range map[string][]byte{
		"a gap":            data(8, 8),
		"over its credit":  data(0, 4104),
		"the wrong way":    append(frame{kind: frameData, channel: 2, length: 8}.append(nil), make([]byte, 8)...),
		"unknown channel":  append(frame{kind: frameData, channel: 3, length: 8}.append(nil), make([]byte, 8)...),
		"twice":            append(data(0, 8), data(0, 8)...),
		"acks the unsent":  frame{kind: frameAck, channel: 2, offset: 8, length: 8}.append(nil),
		"END too early":    frame{kind: frameEnd, channel: 1, offset: 8, flags: stateClosed}.append(nil),
		"gone, wrong way":  frame{kind: frameGone, channel: 2}.append(nil),
		"gone, unknown":    frame{kind: frameGone, channel: 3}.append(nil),
		"data after gone":  append(frame{kind: frameGone, channel: 1}.append(nil), data(0, 8)...),
		"data after END":   append(frame{kind: frameEnd, channel: 1, flags: stateClosed}.append(nil), data(0, 8)...),
		"no frame at all":  []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"unaligned length": append(frame{kind: frameData, channel: 1, length: 9}.append(nil), make([]byte, 9)...),
	} {
		t.Run(name, func(t *testing.T) {
			vm, p, wire := hostilePeer(t)
			defer vm.Close()
			defer unix.Close(wire)
			_, err := unix.Write(wire, bytes)
			must(t, err)
			p.event(unix.EPOLLIN)
			if p.fd >= 0 || !errors.Is(p.failure, errProtocol) {
				t.Errorf("fd %d, failure %v", p.fd, p.failure)
			}
		})
	}
}

// Children that scribble over all of their shared memory, all the time: the
// daemon goes on serving others, on the same node and across the proxy.
func TestScribblersHarmOnlyThemselves(t *testing.T) {
	a, b := pair(t, Config{Plain: true})
	processes(t, a, 0, 1)
	processes(t, b, 2, 3)
	var scribbled []*ring
	id := uint32(100)
	add := func(from *VM, fromEnd Endpoint, to *VM, toEnd Endpoint) {
		wire(t, id, 4096, from, fromEnd, to, toEnd)
		for _, vm := range []*VM{from, to} {
			vm.mu.Lock()
			scribbled = append(scribbled, vm.channels[id].ring)
			vm.mu.Unlock()
		}
		id++
	}
	for k := range 4 {
		name := string(rune('a' + k))
		add(a, Endpoint{Process: 0, Port: name}, b, Endpoint{Process: 2, Port: name})
		add(b, Endpoint{Process: 2, Port: name}, a, Endpoint{Process: 0, Port: name})
		add(a, Endpoint{Process: 0, Port: "o" + name}, a, Endpoint{Outside: name})
		add(a, Endpoint{Outside: name}, a, Endpoint{Process: 0, Port: "o" + name})
	}
	wire(t, 1, 8192, a, Endpoint{Process: 1, Port: "next"}, b, Endpoint{Process: 3, Port: "prev"})
	var stop atomic.Bool
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		random := rand.New(rand.NewPCG(1, 2))
		for n := 0; !stop.Load(); n++ {
			r := scribbled[random.IntN(len(scribbled))]
			words := unsafe.Slice((*uint64)(unsafe.Pointer(r.header)), (headerSize+r.capacity)/8)
			at := random.IntN(len(words))
			if random.IntN(2) == 0 { // the words that matter
				at = []int{16, 17, 32, 33, 48, 64, 512, 513}[random.IntN(8)]
			}
			value := random.Uint64()
			if random.IntN(2) == 0 { // and nearly right ones
				value = atomic.LoadUint64(&words[at]) + uint64(random.IntN(5))*8
			}
			atomic.StoreUint64(&words[at], value)
			if n%64 == 0 {
				ring1(a.bell)
				ring1(b.bell)
			}
		}
	}()
	users := make(chan struct{})
	go func() {
		defer close(users)
		for !stop.Load() {
			for _, name := range []string{"a", "b", "c", "d"} {
				ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
				_, _ = a.Dequeue(ctx, name)
				_ = a.Enqueue(ctx, name, make([]byte, 100))
				cancel()
			}
			_, _ = a.Inspect(), b.Inspect()
		}
	}()
	r := spawn(t, b, 3, built.c, "receive", "prev", "9000")
	spawn(t, a, 1, built.c, "send", "next", "3000", "9000")
	got := r.result()
	stop.Store(true)
	<-finished
	<-users
	if got != "3000" {
		t.Errorf("the honest received %q of 3000", got)
	}
	broken := 0
	for _, s := range a.Inspect() {
		if s.Broken {
			broken++
		}
	}
	if broken == 0 {
		t.Error("no channel is reported broken")
	}
}

func TestRecordThatSaysTooMuchBreaksItsChannelOnly(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 1)
	wire(t, 1, 4096, vm, Endpoint{Process: 1, Port: "a"}, vm, Endpoint{Outside: "q"})
	vm.mu.Lock()
	h := vm.channels[1].ring
	vm.mu.Unlock()
	binary.LittleEndian.PutUint32(h.data, 1<<20)
	atomic.StoreUint64(&h.header.tail, 16)
	if _, err := vm.Dequeue(within(t, time.Second), "q"); !errors.Is(err, ErrBroken) {
		t.Errorf("got %v, not broken", err)
	}
	if !state(vm, 1).Broken {
		t.Error("Inspect does not say so")
	}
}

// A child that makes the shared bell blocking and empties it cannot make the
// daemon block on it.
func TestBellThatAChildSpoils(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 1)
	wire(t, 1, 4096, vm, Endpoint{Outside: "in"}, vm, Endpoint{Outside: "out"})
	must(t, unix.SetNonblock(vm.door, false))
	for range 200 {
		ring1(vm.door)
		_, _ = unix.Preadv2(vm.door, [][]byte{make([]byte, 8)}, -1, unix.RWF_NOWAIT)
		must(t, vm.Enqueue(within(t, 10*time.Second), "in", []byte("x")))
		_, err := vm.Dequeue(within(t, 10*time.Second), "out")
		must(t, err)
	}
}

// FuzzControlSocket: whatever a program asks gets a sentence, and at most the
// descriptors of its own rings.
func FuzzControlSocket(f *testing.F) {
	vm := start(f, Config{})
	processes(f, vm, 0, 1)
	wire(f, 1, 4096, vm, Endpoint{Process: 0, Port: "x"}, vm, Endpoint{Process: 1, Port: "y"})
	wire(f, 2, 4096, vm, Endpoint{Process: 1, Port: "v"}, vm, Endpoint{Process: 1, Port: "w"})
	vm.mu.Lock()
	own := []int{vm.door, int(vm.channels[1].ring.file.Fd())}
	vm.mu.Unlock()
	for _, text := range []string{"open x", "open y", "open v", "next out 1 x", "next out 3 x", "next out 2 v", "next in 1 y", "next out 99999999999 x", "next", "open", "ports 0", "ports 1", "ports -1", "ports 99999999999999999999", "", " ", "open \x00"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, question string) {
		vm.mu.Lock()
		answer, fds := vm.processes[0].answer(question)
		vm.mu.Unlock()
		if !strings.HasPrefix(answer, "ok ") && !strings.HasPrefix(answer, "error ") || len(answer) > controlMessage+64 {
			t.Errorf("%q is answered %q", question, answer)
		}
		for _, fd := range fds {
			if !slices.Contains(own, fd) {
				t.Errorf("%q gets a descriptor that is not its process's", question)
			}
		}
	})
}
