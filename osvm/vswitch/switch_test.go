package vswitch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

const limit = 30 * time.Second

var all = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func mac(n int) MAC { return MAC{0x02, 0, 0, 0, byte(n >> 8), byte(n)} }

// pair is a connection as QEMU has one.
func pair(t testing.TB) (ours, theirs net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
	}
	t.Cleanup(func() { _ = ends[0].Close(); _ = ends[1].Close() })
	return ends[0], ends[1]
}

// guest is a network card.
type guest struct {
	t    testing.TB
	mac  MAC
	conn net.Conn
	port *Port
}

func (s *Switch) plug(t testing.TB, m MAC) *guest { return s.plugAt(t, m, Rate{}) }

func (s *Switch) plugAt(t testing.TB, m MAC, rate Rate) *guest {
	t.Helper()
	ours, theirs := pair(t)
	p, err := s.Guest(Card{Name: fmt.Sprint("guest ", m), MAC: m, Rate: rate}, ours)
	if err != nil {
		t.Fatal(err)
	}
	return &guest{t, m, theirs, p}
}

func newSwitch(t testing.TB, config Config) *Switch {
	s := New(config)
	t.Cleanup(s.Close)
	return s
}

// frame is one with a text in it.
func frame(to, from MAC, text string) []byte {
	b := append(append(append([]byte(nil), to[:]...), from[:]...), 0x88, 0xb5) // for experiments (802)
	return append(b, text...)
}

func framed(f []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
}

func (g *guest) send(to MAC, text string) { g.raw(framed(frame(to, g.mac, text))) }

func (g *guest) raw(b []byte) {
	g.t.Helper()
	_ = g.conn.SetWriteDeadline(time.Now().Add(limit))
	if _, err := g.conn.Write(b); err != nil {
		g.t.Fatal(err)
	}
}

// next is the text of the next frame that comes.
func (g *guest) next() string {
	g.t.Helper()
	_ = g.conn.SetReadDeadline(time.Now().Add(limit))
	var head [lengthSize]byte
	if _, err := io.ReadFull(g.conn, head[:]); err != nil {
		g.t.Fatalf("%v: %v", g.mac, err)
	}
	f := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(g.conn, f); err != nil {
		g.t.Fatalf("%v: %v", g.mac, err)
	}
	return string(f[headSize:])
}

func (g *guest) expect(text string) {
	g.t.Helper()
	if got := g.next(); got != text {
		g.t.Errorf("%v gets %q, and not %q", g.mac, got, text)
	}
}

// waitFor polls for what comes soon.
func waitFor(t testing.TB, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

// TestSwitch: what is for one goes to that one, what is for all to all others. What
// went elsewhere would come before the frame that each gets last.
func TestSwitch(t *testing.T) {
	s := newSwitch(t, Config{})
	a, b, c := s.plug(t, mac(1)), s.plug(t, mac(2)), s.plug(t, mac(3))
	a.send(all, "who is there")
	b.expect("who is there")
	c.expect("who is there")
	b.send(a.mac, "I am")
	a.expect("I am")
	c.send(a.mac, "I, too")
	a.expect("I, too")
	a.send(a.mac, "to myself")
	a.send(MAC{0x01, 0x80, 0xc2, 0, 0, 0x0e}, "no switch passes that on")
	a.send(mac(9), "nobody knows whose that is")
	b.expect("nobody knows whose that is")
	c.expect("nobody knows whose that is")
	b.send(a.mac, "end")
	a.expect("end")
	if got := a.port.Counts(); got != (Counts{In: 4, Out: 3}) {
		t.Errorf("a's port counts %+v", got)
	}
}

// TestOneAddress: a guest that speaks by another address than its own is not heard,
// and nothing is learnt of it.
func TestOneAddress(t *testing.T) {
	s := newSwitch(t, Config{Addresses: 8})
	a, b, c := s.plug(t, mac(1)), s.plug(t, mac(2)), s.plug(t, mac(3))
	const many = 10_000
	for i := range many { // what fills the table of other switches
		a.raw(framed(frame(all, mac(1000+i), "flood")))
	}
	a.raw(framed(frame(c.mac, b.mac, "I am b")))
	a.send(c.mac, "I am a")
	c.expect("I am a") // the switch has seen all before it
	c.send(b.mac, "to b")
	b.expect("to b")
	if got := a.port.Counts().Spoofed; got != many+1 {
		t.Errorf("%d frames were seen to be false", got)
	}
	if len(s.known) != 0 {
		t.Errorf("%d addresses were learnt from a guest", len(s.known))
	}
	for _, m := range []MAC{a.mac, all, {}} {
		ours, _ := pair(t)
		if _, err := s.Guest(Card{Name: "another", MAC: m}, ours); err == nil {
			t.Errorf("a second guest has the address %v", m)
		}
	}
}

// mesh joins switches, each with each.
func mesh(t testing.TB, switches ...*Switch) {
	for i, a := range switches {
		for j, b := range switches[:i] {
			x, y := pair(t)
			if _, err := a.Trunk(fmt.Sprint("to ", j), x); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Trunk(fmt.Sprint("to ", i), y); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestMesh: over a full mesh of four nodes with two guests each, every frame to all
// comes once, and one that is for a guest only there.
func TestMesh(t *testing.T) {
	var switches []*Switch
	var guests []*guest
	for range 4 {
		switches = append(switches, newSwitch(t, Config{}))
	}
	mesh(t, switches...)
	for i := range 8 {
		guests = append(guests, switches[i/2].plug(t, mac(i)))
	}
	for _, from := range guests {
		text := fmt.Sprint("from ", from.mac)
		from.send(all, text)
		for _, g := range guests {
			if g != from {
				g.expect(text)
			}
		}
	}
	for _, from := range guests {
		for _, g := range guests {
			if g != from {
				text := fmt.Sprint("from ", from.mac, " to ", g.mac)
				from.send(g.mac, text)
				g.expect(text)
			}
		}
	}
	for i, s := range switches {
		s.mu.Lock()
		if len(s.known) != 6 {
			t.Errorf("switch %d knows %d addresses elsewhere", i, len(s.known))
		}
		s.mu.Unlock()
	}
}

// TestTrunkAgain: a trunk that is made anew takes the old one's place; what was lost
// with the old one does not come by the new one, and nothing twice.
func TestTrunkAgain(t *testing.T) {
	a, b := newSwitch(t, Config{}), newSwitch(t, Config{})
	left, right := a.plug(t, mac(1)), b.plug(t, mac(2))
	last := -1
	for round := range 5 {
		x, y := pair(t)
		old, _ := a.Trunk("b", x)
		if _, err := b.Trunk("a", y); err != nil {
			t.Fatal(err)
		}
		for i := range 50 {
			left.send(right.mac, fmt.Sprint(round*1000+i))
		}
		left.send(right.mac, fmt.Sprint(round*1000+999))
		for {
			var n int
			_, _ = fmt.Sscan(right.next(), &n)
			if n <= last {
				t.Fatalf("frame %d comes after %d", n, last)
			}
			if last = n; n == round*1000+999 {
				break
			}
		}
		if round%2 == 0 { // a cut, as a network makes it
			_ = x.Close()
			<-old.Done()
		}
	}
}

// TestTrunkSpeaksForNoGuest: who is on this node is not spoken for by another.
func TestTrunkSpeaksForNoGuest(t *testing.T) {
	s := newSwitch(t, Config{})
	a, b := s.plug(t, mac(1)), s.plug(t, mac(2))
	ours, theirs := pair(t)
	p, err := s.Trunk("other", ours)
	if err != nil {
		t.Fatal(err)
	}
	trunk := &guest{t, mac(3), theirs, p}
	trunk.raw(framed(frame(b.mac, a.mac, "I am a")))
	trunk.send(b.mac, "I am behind the trunk")
	b.expect("I am behind the trunk")
	if got := p.Counts().Spoofed; got != 1 {
		t.Errorf("%d frames were seen to be false", got)
	}
}

// TestSlowPort: a guest that takes nothing loses what comes for it, and keeps nobody
// else waiting.
func TestSlowPort(t *testing.T) {
	s := newSwitch(t, Config{})
	a, b, slow := s.plug(t, mac(1)), s.plug(t, mac(2)), s.plug(t, mac(3))
	text := string(bytes.Repeat([]byte("x"), MTU))
	const many = 2000 // 18 MB
	for i := range many {
		a.send(slow.mac, text)
		if i%50 == 0 {
			a.send(b.mac, fmt.Sprint(i))
			b.expect(fmt.Sprint(i))
		}
	}
	a.send(b.mac, "end") // the switch has seen all before it
	b.expect("end")
	got := slow.port.Counts()
	if got.Dropped == 0 || got.Dropped+got.Out != many {
		t.Errorf("of %d frames %d were sent on and %d dropped", many, got.Out, got.Dropped)
	}
	slow.port.mu.Lock()
	defer slow.port.mu.Unlock()
	if len(slow.port.waiting) > queueMost {
		t.Errorf("%d bytes wait for it", len(slow.port.waiting))
	}
}

// TestStorm: one guest may send so much to all, and to each as much as it likes.
func TestStorm(t *testing.T) {
	var now atomic.Int64
	s := newSwitch(t, Config{
		Now:   func() time.Time { return time.Unix(now.Load(), 0) },
		After: func(time.Duration) <-chan time.Time { c := make(chan time.Time); close(c); return c },
	})
	a, b := s.plug(t, mac(1)), s.plug(t, mac(2))
	heard := make(chan int)
	go func() {
		for n := 0; ; n++ {
			if b.next() == "end" {
				heard <- n
				return
			}
		}
	}()
	for range 3 * floodBurst {
		a.send(all, "storm")
	}
	a.send(b.mac, "end")
	if n := <-heard; n != floodBurst {
		t.Errorf("%d frames to all came through at once", n)
	}
	now.Add(1)
	a.send(all, "after a second")
	b.expect("after a second")
	if got := a.port.Counts().Stormed; got != 2*floodBurst {
		t.Errorf("%d frames to all are counted as too many", got)
	}
}

// TestRate: what a guest sends above its rate waits with it, and all of it arrives. The
// time is the test's.
func TestRate(t *testing.T) {
	const frames, size = 4000, 1000
	for _, of := range []struct {
		name  string
		rate  Rate
		to    MAC
		takes time.Duration
	}{
		{"bytes", Rate{Bytes: 1_000_000}, mac(2), frames * size * time.Second / 1_000_000},
		{"frames", Rate{Frames: 1000}, mac(2), frames * time.Second / 1000},
		{"frames, each to two", Rate{Frames: 1000}, all, 2 * frames * time.Second / 1000},
		{"false ones", Rate{Frames: 1000}, mac(2), frames * time.Second / 1000},
		{"as any port", Rate{Bytes: 1 << 40, Frames: 1 << 40}, mac(2), frames * time.Second / framesMost},
	} {
		t.Run(of.name, func(t *testing.T) {
			var mu sync.Mutex // guards what follows
			now, rests := time.Unix(0, 0), 0
			s := newSwitch(t, Config{
				Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now },
				After: func(d time.Duration) <-chan time.Time {
					mu.Lock()
					defer mu.Unlock()
					now = now.Add(d)
					rests++
					c := make(chan time.Time, 1)
					c <- now
					return c
				},
			})
			a, b, c := s.plugAt(t, mac(1), of.rate), s.plug(t, mac(2)), s.plug(t, mac(3))
			source := a.mac
			if of.name == "false ones" {
				source = mac(9)
			}
			one := framed(frame(of.to, source, string(make([]byte, size-headSize))))
			for range frames {
				a.raw(one)
				switch {
				case of.to == all:
					b.next()
					c.next()
				case source == a.mac:
					b.next()
				}
			}
			a.raw(framed(frame(b.mac, a.mac, "end")))
			b.expect("end")
			mu.Lock()
			defer mu.Unlock()
			took := now.Sub(time.Unix(0, 0))
			if most := of.takes + rateCredit; took > most || took < of.takes-rateCredit-rateRest {
				t.Errorf("it takes %v, and not %v", took, of.takes)
			}
			if most := int(took/rateRest) + 1; rests > most || rests == 0 {
				t.Errorf("it has waited %d times in %v", rests, took)
			}
		})
	}
}

// TestRateEnds: a port that waits ends at once.
func TestRateEnds(t *testing.T) {
	waits := make(chan struct{}, 1)
	s := newSwitch(t, Config{After: func(time.Duration) <-chan time.Time {
		select {
		case waits <- struct{}{}:
		default:
		}
		return nil
	}})
	a := s.plugAt(t, mac(1), Rate{Frames: 1})
	a.send(mac(2), "the first")
	a.send(mac(2), "the second")
	<-waits
	a.port.Close()
	<-a.port.Done()
	s.plug(t, mac(1))
}

// TestMoved: what is for a guest that has come from another node goes to where it is
// now, before it has said anything there; also where a trunk is made later.
func TestMoved(t *testing.T) {
	from, to, third := newSwitch(t, Config{}), newSwitch(t, Config{}), newSwitch(t, Config{})
	mesh(t, from, to, third)
	far, near := third.plug(t, mac(1)), from.plug(t, mac(3))
	guest := from.plug(t, mac(2))
	guest.send(far.mac, "from where it was")
	far.expect("from where it was")
	guest.port.Close()
	<-guest.port.Done()
	guest = to.plug(t, mac(2))
	for _, s := range []*Switch{from, third} {
		waitFor(t, "the guest is known where it is", func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			at := s.find(guest.mac)
			return at != nil && at.name == "to 1"
		})
	}
	before := far.port.Counts().Out + near.port.Counts().Out
	far.send(guest.mac, "from afar")
	guest.expect("from afar")
	near.send(guest.mac, "from where it was")
	guest.expect("from where it was")
	if got := far.port.Counts().Out + near.port.Counts().Out - before; got != 0 {
		t.Errorf("the others have had %d frames of that", got)
	}

	late := newSwitch(t, Config{})
	x, y := pair(t)
	for s, conn := range map[*Switch]net.Conn{late: x, to: y} {
		if _, err := s.Trunk("late", conn); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the guest is known over the new trunk", func() bool {
		late.mu.Lock()
		defer late.mu.Unlock()
		return late.find(guest.mac) != nil
	})
}

// TestAnnounced: a switch hears of each guest of the others what is said of it, also of
// one that is here yet, when a card or a trunk comes, and when it is retracted. No guest
// can say so.
func TestAnnounced(t *testing.T) {
	said := make(chan string, 10)
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-said:
			if got != want {
				t.Errorf("it hears %q, and not %q", got, want)
			}
		case <-time.After(limit):
			t.Fatalf("it does not hear %q", want)
		}
	}
	far, hears := newSwitch(t, Config{}), newSwitch(t, Config{Heard: func(_ *Port, m MAC, note string) { said <- fmt.Sprint(m[5], " ", note) }})
	plug := func(n int, note string) *Port {
		t.Helper()
		ours, theirs := pair(t)
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		p, err := far.Guest(Card{Name: note, MAC: mac(n), Note: note}, ours)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	plug(1, "one")
	near := hears.plug(t, mac(2))
	x, y := net.Pipe() // it takes nothing that is not read
	for s, conn := range map[*Switch]net.Conn{far: x, hears: y} {
		if _, err := s.Trunk("trunk", conn); err != nil {
			t.Fatal(err)
		}
	}
	expect("1 one")
	plug(2, "two")
	expect("2 two")
	near.raw(framed(announcement(isHere, near.mac, "I am two")))
	far.Retract(mac(1))
	far.Retract(mac(2))
	expect("1 ")
	expect("2 ")
	hears.mu.Lock()
	at := hears.find(mac(1))
	hears.mu.Unlock()
	if at != nil {
		t.Error("a guest that is no more has a place")
	}
	full := &Port{}
	full.filled = sync.NewCond(&full.mu)
	for full.Counts().Dropped == 0 {
		full.put(make([]byte, headSize))
	}
	if full.announce(announcement(isGone, mac(1), "")); full.Counts().Dropped != 1 {
		t.Error("a port that takes no more frames loses what the other switch is to hear")
	}
	ours, _ := pair(t)
	if _, err := far.Guest(Card{Name: "long", MAC: mac(3), Note: string(make([]byte, noteMost+1))}, ours); err == nil {
		t.Error("so much may be said of a guest")
	}
}

// TestKnown: what is known of addresses elsewhere is bounded, and forgotten.
func TestKnown(t *testing.T) {
	var now atomic.Int64
	s := newSwitch(t, Config{Addresses: 10, Now: func() time.Time { return time.Unix(now.Load(), 0) }})
	b := s.plug(t, mac(1))
	ours, theirs := pair(t)
	if _, err := s.Trunk("other", ours); err != nil {
		t.Fatal(err)
	}
	trunk := &guest{t: t, conn: theirs}
	say := func(from MAC) {
		t.Helper()
		trunk.mac = from
		trunk.send(b.mac, "I am here")
		b.expect("I am here")
	}
	has := func(m MAC) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.find(m) != nil
	}
	for i := range 100 {
		say(mac(100 + i))
	}
	if !has(mac(100)) || has(mac(199)) || len(s.known) != 10 {
		t.Errorf("of 100 addresses %d are known", len(s.known))
	}
	now.Add(int64(ageDefault/time.Second) + 1)
	if has(mac(100)) {
		t.Error("an address that was not heard of is known still")
	}
	say(mac(300))
	if !has(mac(300)) || len(s.known) != 1 {
		t.Errorf("%d addresses are known, those that are too old among them", len(s.known))
	}
	_ = theirs.Close()
	waitFor(t, "what was behind the trunk is forgotten", func() bool { return !has(mac(300)) })
}

// TestGarbage: frames that the network does not have are lost; what is no frame at
// all ends the port, with the reason.
func TestGarbage(t *testing.T) {
	s := newSwitch(t, Config{})
	a, b := s.plug(t, mac(1)), s.plug(t, mac(2))
	for _, size := range []int{1, headSize - 1, FrameMost + 1, lengthMost} {
		a.raw(framed(append(frame(b.mac, a.mac, ""), make([]byte, lengthMost)...)[:size]))
	}
	a.raw(framed(frame(b.mac, a.mac, string(make([]byte, FrameMost-headSize))))) // with a tag
	a.raw(framed(frame(b.mac, a.mac, "")))                                       // an empty one
	if got := len(b.next()); got != FrameMost-headSize {
		t.Errorf("a long frame comes with %d bytes", got)
	}
	b.expect("")
	if got := a.port.Counts(); got.Malformed != 4 || got.In != 2 {
		t.Errorf("its port counts %+v", got)
	}
	a.raw([]byte("GET / HTTP/1.1\r\n\r\n"))
	<-a.port.Done()
	if err := a.port.Err(); !errors.Is(err, ErrGarbage) {
		t.Errorf("its port ends by %v", err)
	}
	again := s.plug(t, a.mac) // the address is free
	again.send(b.mac, "back")
	b.expect("back")
	c := s.plug(t, mac(3))
	c.raw([]byte{0, 0, 0, 100, 1, 2, 3})
	_ = c.conn.Close()
	<-c.port.Done()
	if err := c.port.Err(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a port that ends within a frame ends by %v", err)
	}
	s.Close()
	<-b.port.Done()
	ours, _ := pair(t)
	if _, err := s.Trunk("late", ours); !errors.Is(err, ErrClosed) {
		t.Errorf("a switch that is closed takes a port: %v", err)
	}
}

// TestApart: two switches without a trunk have nothing of each other.
func TestApart(t *testing.T) {
	one, other := newSwitch(t, Config{}), newSwitch(t, Config{})
	a, b := one.plug(t, mac(1)), one.plug(t, mac(2))
	x, y := other.plug(t, mac(1)), other.plug(t, mac(2)) // the same addresses
	var sent sync.WaitGroup
	for _, g := range []*guest{a, x} {
		sent.Go(func() {
			for range 100 {
				g.send(all, map[*guest]string{a: "one", x: "other"}[g])
			}
		})
	}
	for range 100 {
		b.expect("one")
		y.expect("other")
	}
	sent.Wait()
}

// FuzzFrames: whatever comes, the reader gives the frames that are there, and ends.
func FuzzFrames(f *testing.F) {
	good := framed(frame(mac(1), mac(2), "hello"))
	f.Add(good)
	f.Add(append(append([]byte{0, 0, 0, 3, 1, 2, 3}, good...), 0, 1, 2))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Add(append([]byte{0, 1, 0x10, 0}, make([]byte, lengthMost)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		var got [][]byte
		err := frames(bytes.NewReader(stream), func(f []byte) { got = append(got, bytes.Clone(f)) })
		var want [][]byte
		rest, garbage := stream, false
		for len(rest) >= lengthSize {
			n := int(binary.BigEndian.Uint32(rest))
			if garbage = n == 0 || n > lengthMost; garbage || len(rest) < lengthSize+n {
				break
			}
			whole := rest[lengthSize : lengthSize+n]
			if n < headSize || n > FrameMost {
				whole = nil
			}
			want, rest = append(want, whole), rest[lengthSize+n:]
		}
		if len(got) != len(want) {
			t.Fatalf("%d frames, and not %d", len(got), len(want))
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) || (got[i] == nil) != (want[i] == nil) {
				t.Fatalf("frame %d is % x, and not % x", i, got[i], want[i])
			}
		}
		switch {
		case garbage != errors.Is(err, ErrGarbage), !garbage && len(rest) == 0 != (err == io.EOF), !garbage && len(rest) > 0 != (err == io.ErrUnexpectedEOF):
			t.Fatalf("it ends by %v, with %d bytes left", err, len(rest))
		}
	})
}

// BenchmarkFrames is frames from one guest to another, through sockets: the time of
// the switch and of both ends.
func BenchmarkFrames(b *testing.B) {
	for _, size := range []int{64, MTU + headSize} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			s := newSwitch(b, Config{})
			from, to := s.plug(b, mac(1)), s.plug(b, mac(2))
			one := framed(frame(to.mac, from.mac, string(make([]byte, size-headSize))))
			const batch = 64 // few enough for the queue
			many := bytes.Repeat(one, batch)
			b.SetBytes(int64(size))
			into := make([]byte, len(many))
			for left := b.N; left > 0; left -= batch {
				n := min(left, batch) * len(one)
				from.raw(many[:n])
				if _, err := io.ReadFull(to.conn, into[:n]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkForward is what the switch itself takes for a frame.
func BenchmarkForward(b *testing.B) {
	s := newSwitch(b, Config{})
	from, to := s.plug(b, mac(1)), s.plug(b, mac(2))
	go func() { _, _ = io.Copy(io.Discard, to.conn) }()
	f := frame(to.mac, from.mac, string(make([]byte, MTU)))
	for b.Loop() {
		s.forward(from.port, f)
	}
}
