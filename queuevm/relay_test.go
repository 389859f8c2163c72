package queuevm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"
)

// soak says that the long loops are wanted, which `make soak` runs.
func soak() bool { return os.Getenv("MVM_SOAK") != "" }

// relay stands between two proxies and does to their link what a test wants.
type relay struct {
	t        testing.TB
	listener net.Listener
	to       string

	mu    sync.Mutex // guards what follows
	live  map[net.Conn]bool
	down  bool
	conns int
	// filter sees every piece of a connection, the number of which it is told,
	// and gives what goes on in its place. cut ends the connection after that.
	filter func(conn int, forth bool, before int64, piece []byte) (out []byte, cut bool)
}

func newRelay(t testing.TB, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	r := &relay{t: t, listener: l, to: to, live: map[net.Conn]bool{}}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	t.Cleanup(func() { _ = l.Close(); r.cut(true) })
	return r
}

func (r *relay) serve(near net.Conn) {
	far, err := net.Dial("tcp", r.to)
	if err != nil {
		_ = near.Close()
		return
	}
	r.mu.Lock()
	if r.down {
		r.mu.Unlock()
		_, _ = near.Close(), far.Close()
		return
	}
	r.live[near], r.live[far] = true, true
	n, filter := r.conns, r.filter
	r.conns++
	r.mu.Unlock()
	var both sync.WaitGroup
	pump := func(forth bool, from, to net.Conn) {
		defer func() { _, _ = near.Close(), far.Close() }()
		buffer := make([]byte, 16<<10)
		var before int64
		for {
			k, err := from.Read(buffer)
			if err != nil {
				return
			}
			out, cut := buffer[:k], false
			if filter != nil {
				out, cut = filter(n, forth, before, out)
			}
			before += int64(k)
			if _, err := to.Write(out); err != nil || cut {
				return
			}
		}
	}
	both.Go(func() { pump(true, near, far) })
	pump(false, far, near)
	both.Wait()
	r.mu.Lock()
	delete(r.live, near)
	delete(r.live, far)
	r.mu.Unlock()
}

// connections is how many there were.
func (r *relay) connections() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conns
}

// cut ends every connection; down refuses new ones too, until it is called again.
func (r *relay) cut(down bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = down
	for c := range r.live {
		_ = c.Close()
	}
}

// throughRelay is two VMs whose link leads over a relay, with a queue from
// outside to outside in each direction.
func throughRelay(t testing.TB, config Config, capacity int, filter func(int, bool, int64, []byte) ([]byte, bool)) (a, b *VM, r *relay) {
	t.Helper()
	a, b, r = besideRelay(t, config, capacity, filter)
	meet(t, a, b, r)
	return a, b, r
}

// besideRelay is throughRelay before the two have met.
func besideRelay(t testing.TB, config Config, capacity int, filter func(int, bool, int64, []byte) ([]byte, bool)) (a, b *VM, r *relay) {
	t.Helper()
	config.Listen, config.Self = "127.0.0.1:0", "a"
	a = start(t, config)
	config.Self = "b"
	b = start(t, config)
	r = newRelay(t, b.Address())
	r.mu.Lock()
	r.filter = filter
	r.mu.Unlock()
	for id, way := range map[uint32][2]*VM{1: {a, b}, 2: {b, a}} {
		from, to := way[0], way[1]
		must(t, from.AddChannel(Channel{ID: id, Capacity: capacity, From: Endpoint{Outside: "in"}, To: Endpoint{Peer: to.config.Self}}))
		must(t, to.AddChannel(Channel{ID: id, Capacity: capacity, From: Endpoint{Peer: from.config.Self}, To: Endpoint{Outside: "out"}}))
	}
	return a, b, r
}

func meet(t testing.TB, a, b *VM, r *relay) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	other := make(chan error, 1)
	go func() { other <- b.Connect(ctx, []Peer{{"a", a.Address(), a.Fingerprint()}}) }()
	must(t, a.Connect(ctx, []Peer{{"b", r.listener.Addr().String(), b.Fingerprint()}}))
	must(t, <-other)
}

// floods sends items both ways until stop is closed, or count are sent, and
// checks that all of them come, in order. It gives how many.
func floods(t testing.TB, a, b *VM, count int, most int, stop <-chan struct{}) (sent [2]int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 120*time.Second)
	defer cancel()
	var all sync.WaitGroup
	fail := make(chan error, 4)
	for k, way := range [][2]*VM{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		all.Go(func() {
			n := 0
			for ; n < count; n++ {
				select {
				case <-stop:
				default:
					if err := from.Enqueue(ctx, "in", numbered(n, most)); err != nil {
						fail <- fmt.Errorf("enqueue %d: %w", n, err)
						return
					}
					continue
				}
				break
			}
			sent[k] = n
			if err := from.CloseOutside("in"); err != nil {
				fail <- err
			}
		})
		all.Go(func() {
			for n := 0; ; n++ {
				item, err := to.Dequeue(ctx, "out")
				if err == io.EOF {
					return
				}
				if err == nil && !bytes.Equal(item, numbered(n, most)) {
					err = fmt.Errorf("item %d is wrong: %d bytes that begin % x", n, len(item), item[:min(len(item), 16)])
				}
				if err != nil {
					fail <- fmt.Errorf("dequeue %d: %w", n, err)
					cancel()
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case err := <-fail:
		t.Fatal(err)
	default:
	}
	for k, way := range [][2]*VM{{a, b}, {b, a}} {
		if got := state(way[1], uint32(k+1)).ItemsOut; int(got) != sent[k] {
			t.Errorf("%d items went in and %d came out", sent[k], got)
		}
	}
	return sent
}

func numbered(n, most int) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(n)*0x9E3779B97F4A7C15)
	for len(b) < 8+n%(most+1) {
		b = append(b, byte(n+len(b)))
	}
	return b
}

// A link that is cut at any byte, of the greeting, of a frame's header or of its
// payload, in either direction, loses and doubles nothing.
func TestLinkCutAtEveryByte(t *testing.T) {
	for _, plain := range []bool{true, false} {
		t.Run(fmt.Sprint("plain=", plain), func(t *testing.T) {
			// Every second connection lives longer, so that the pauses between
			// dials do not grow. TLS hides where frames are: a few will do.
			span, step := int64(600), int64(1)
			if !plain {
				span, step = 3000, 37
			} else if !soak() {
				step = 1 + rand.Int64N(3)
			}
			stop := make(chan struct{})
			var once sync.Once
			filter := func(conn int, forth bool, before int64, piece []byte) ([]byte, bool) {
				at := int64(conn/4) * step
				if conn%2 == 1 {
					at = 6000
				} else if at >= span {
					once.Do(func() { close(stop) })
					return piece, false
				}
				if (conn/2%2 == 0) == forth && before+int64(len(piece)) > at {
					return piece[:max(0, at-before)], true
				}
				return piece, false
			}
			a, b, r := throughRelay(t, Config{Plain: plain}, 4096, nil)
			r.mu.Lock()
			r.filter = filter
			r.mu.Unlock()
			r.cut(false)
			sent := floods(t, a, b, 1<<30, 50, stop)
			t.Logf("%d connections, %v items", r.connections(), sent)
			if int64(r.connections()) < 4*span/step {
				t.Errorf("only %d connections: the test proves little", r.connections())
			}
		})
	}
}

// Cut, refused for a while and made again, at random, under two floods: in short frames,
// and in the middle of long ones.
func TestLinkCutAndRestored(t *testing.T) {
	for _, capacity := range []int{64 << 10, 4 << 20} {
		t.Run(fmt.Sprint(capacity), func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			a, b, r := throughRelay(t, Config{Plain: true}, capacity, nil)
			stop := make(chan struct{})
			go func() {
				defer close(stop)
				length := 1500 * time.Millisecond
				if soak() {
					length = time.Minute
				}
				for end := time.Now().Add(length); time.Now().Before(end); {
					time.Sleep(time.Duration(random.IntN(50)) * time.Millisecond)
					r.cut(random.IntN(2) == 0)
					time.Sleep(time.Duration(random.IntN(100)) * time.Millisecond)
					r.cut(false)
				}
			}()
			sent := floods(t, a, b, 1<<30, 20000, stop)
			t.Logf("%d connections, %v items", r.connections(), sent)
			if r.connections() < 5 {
				t.Errorf("only %d connections: the test proves little", r.connections())
			}
		})
	}
}

// A link that crawls is slow, and that is all.
func TestLinkThatCrawls(t *testing.T) {
	a, b, r := throughRelay(t, Config{Plain: true, Redial: time.Second}, 4096, func(_ int, _ bool, _ int64, piece []byte) ([]byte, bool) {
		time.Sleep(time.Duration(len(piece)) * time.Second / 20000)
		return piece, false
	})
	sent := floods(t, a, b, 300, 100, nil)
	if sent != [2]int{300, 300} || r.connections() != 1 {
		t.Errorf("%v items over %d connections", sent, r.connections())
	}
}

// A link that stalls, and goes on, loses nothing.
func TestLinkThatStalls(t *testing.T) {
	var stalled sync.Once
	a, b, _ := throughRelay(t, Config{Plain: true}, 4096, func(_ int, _ bool, before int64, piece []byte) ([]byte, bool) {
		if before > 20000 {
			stalled.Do(func() { time.Sleep(700 * time.Millisecond) })
		}
		return piece, false
	})
	if sent := floods(t, a, b, 3000, 100, nil); sent != [2]int{3000, 3000} {
		t.Error(sent)
	}
}

// What has come whole of a long frame is taken, though the rest is on its way for
// ever so long: also where it is less than what is worth a wake-up of a near link.
func TestLongFrameThatStalls(t *testing.T) {
	const most, count = 2000, 1500
	for _, comes := range []int64{60_000, 400_000, 900_000} {
		t.Run(fmt.Sprint(comes), func(t *testing.T) {
			goOn := make(chan struct{})
			let := sync.OnceFunc(func() { close(goOn) })
			a, b, r := besideRelay(t, Config{Plain: true, Redial: time.Minute}, 4<<20, func(_ int, forth bool, before int64, piece []byte) ([]byte, bool) {
				if forth && before > comes {
					<-goOn
				}
				return piece, false
			})
			t.Cleanup(let)
			ctx := within(t, 30*time.Second)
			for n := range count {
				must(t, a.Enqueue(ctx, "in", numbered(n, most)))
			}
			meet(t, a, b, r)
			bytes := int64(2000) // of greetings, headers and one item
			for n := range count {
				if bytes += 16 + int64(len(numbered(n, most))); bytes > comes {
					let()
				}
				item, err := b.Dequeue(ctx, "out")
				if err != nil || string(item) != string(numbered(n, most)) {
					t.Fatalf("item %d of the %d bytes that came: %d bytes, %v", n, bytes, len(item), err)
				}
			}
		})
	}
}

// Garbage in an encrypted link is found out by TLS, and is like a cut. In a
// plain one, which only loopback has, it breaks the protocol sooner or later:
// the peer is given up and the takers hear "lost", not END.
func TestLinkWithGarbage(t *testing.T) {
	garbage := func(every int) func(int, bool, int64, []byte) ([]byte, bool) {
		return func(conn int, forth bool, before int64, piece []byte) ([]byte, bool) {
			if conn < every && before > 8000 && len(piece) > 2 && forth == (conn%2 == 0) {
				at := rand.IntN(len(piece))
				noise := make([]byte, 1+rand.IntN(100))
				for k := range noise {
					noise[k] = byte(rand.IntN(256))
				}
				return append(append(append([]byte(nil), piece[:at]...), noise...), piece[at:]...), false
			}
			return piece, false
		}
	}
	t.Run("encrypted", func(t *testing.T) {
		a, b, r := throughRelay(t, Config{}, 16<<10, garbage(10))
		if sent := floods(t, a, b, 5000, 500, nil); sent != [2]int{5000, 5000} || r.connections() < 10 {
			t.Errorf("%v items over %d connections", sent, r.connections())
		}
	})
	t.Run("plain", func(t *testing.T) {
		a, b, _ := throughRelay(t, Config{Plain: true, Redial: time.Second}, 16<<10, garbage(1<<30))
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		for _, vm := range []*VM{a, b} {
			go func() {
				for n := 0; vm.Enqueue(ctx, "in", numbered(n, 100)) == nil; n++ {
				}
			}()
			go func() {
				for {
					if _, err := vm.Dequeue(ctx, "out"); err != nil {
						return
					}
				}
			}()
		}
		select {
		case <-a.Lost():
		case <-b.Lost():
		case <-ctx.Done():
			t.Error("nobody noticed")
		}
		for _, vm := range []*VM{a, b} {
			if _, err := vm.Dequeue(ctx, "out"); err == io.EOF {
				t.Error("END, as if nothing were missing")
			}
		}
	})
}
