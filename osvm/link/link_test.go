package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// port is a virtio-serial port as a guest sees it: one pipe for good, at whose
// other end one host after another connects, in the middle of anything. What no
// host reads is kept, up to a bound, after which the guest's write waits.
type port struct {
	mu      sync.Mutex // guards all below
	changed *sync.Cond
	in, out []byte
	closed  bool
}

func newPort() *port {
	p := &port{}
	p.changed = sync.NewCond(&p.mu)
	return p
}

// pass appends to one way of the port, and take is its other end.
func (p *port) pass(way *[]byte, from []byte, gone func() bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(*way) > 64<<10 && !p.closed && !gone() {
		p.changed.Wait()
	}
	if p.closed || gone() {
		return 0, io.ErrClosedPipe
	}
	*way = append(*way, from...)
	p.changed.Broadcast()
	return len(from), nil
}

func (p *port) take(way *[]byte, into []byte, gone func() bool) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(*way) == 0 && !p.closed && !gone() {
		p.changed.Wait()
	}
	if p.closed || gone() {
		return 0, io.ErrClosedPipe
	}
	n := copy(into, *way)
	*way = (*way)[n:]
	p.changed.Broadcast()
	return n, nil
}

func never() bool { return false }

func (p *port) Read(into []byte) (int, error)  { return p.take(&p.in, into, never) }
func (p *port) Write(from []byte) (int, error) { return p.pass(&p.out, from, never) }
func (p *port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	p.changed.Broadcast()
	return nil
}

// host is one host's end; it writes in pieces, so that closing it cuts a frame.
type host struct {
	p    *port
	gone bool // guarded by p.mu
}

func (h *host) isGone() bool                  { return h.gone }
func (h *host) Read(into []byte) (int, error) { return h.p.take(&h.p.out, into, h.isGone) }
func (h *host) Write(from []byte) (n int, err error) {
	for n < len(from) && err == nil {
		var m int
		m, err = h.p.pass(&h.p.in, from[n:min(n+1000, len(from))], h.isGone)
		n += m
	}
	return n, err
}
func (h *host) Close() error {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	h.gone = true
	h.p.changed.Broadcast()
	return nil
}

// echoes answers each connection with what it got.
func echoes(s *Session) {
	for {
		conn, err := s.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn)
		}()
	}
}

func serve(t *testing.T, handle func(*Session)) *port { return serveWith(t, nil, handle) }

func serveWith(t *testing.T, first func([]byte) error, handle func(*Session)) *port {
	p := newPort()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = Serve(p, first, handle)
	}()
	t.Cleanup(func() { _ = p.Close(); <-done })
	return p
}

func begin(t *testing.T, p *port) *Session {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := Begin(ctx, &host{p: p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func roundTrip(conn net.Conn, size int) error {
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	stream := func() io.Reader { return io.LimitReader(rand.NewChaCha8([32]byte{byte(size)}), int64(size)) }
	go func() { _, _ = io.Copy(conn, stream()) }()
	want, got := sha256.New(), sha256.New()
	_, _ = io.Copy(want, stream())
	if _, err := io.CopyN(got, conn, int64(size)); err != nil {
		return err
	}
	if !bytes.Equal(want.Sum(nil), got.Sum(nil)) {
		return errors.New("what came back is not what was sent")
	}
	return conn.Close()
}

func TestManyConnections(t *testing.T) {
	s := begin(t, serve(t, echoes))
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			conn, err := s.Open()
			if err == nil {
				err = roundTrip(conn, 1+i*100_000)
			}
			if err != nil {
				t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	group.Wait()
}

// TestHostAfterHost has hosts vanish in the middle of a word, either way, and
// proves that each next one gets a session without a byte of the one before.
func TestHostAfterHost(t *testing.T) {
	p := serve(t, echoes)
	for range 30 {
		h := &host{p: p}
		s, err := Begin(t.Context(), h)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		go func() { _, _ = io.CopyN(conn, rand.NewChaCha8([32]byte{}), 10<<20) }()
		if _, err := io.CopyN(io.Discard, conn, int64(rand.IntN(200_000))); err != nil {
			t.Fatal(err)
		}
		_ = h.Close() // as a killed node: nothing is said to the guest
		<-s.Ended()
		next := begin(t, p)
		if conn, err = next.Open(); err == nil {
			err = roundTrip(conn, 100_000)
		}
		if err != nil {
			t.Fatal(err)
		}
		_ = next.Close()
	}
}

func TestTheGuestOpens(t *testing.T) {
	p := serve(t, func(s *Session) {
		if conn, err := s.Open(); err == nil {
			_, _ = conn.Write([]byte("from the guest"))
			_ = conn.Close()
		}
	})
	conn, err := begin(t, p).Accept()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(conn); err != nil || string(text) != "from the guest" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestAGuestThatIsNone(t *testing.T) {
	silent := newPort()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := Begin(ctx, &host{p: silent}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("silence: %v", err)
	}
	babble := newPort()
	go func() {
		for stream := rand.NewChaCha8([32]byte{}); ; {
			if _, err := io.CopyN(babble, stream, 1<<16); err != nil {
				return
			}
		}
	}()
	defer babble.Close()
	if _, err := Begin(t.Context(), &host{p: babble}); err == nil {
		t.Error("a session with noise")
	}
}

// FuzzGuest has any bytes come before a host's first word, and after its last:
// the next session is as good as ever.
func FuzzGuest(f *testing.F) {
	f.Add([]byte(hail))
	f.Add([]byte(hail + "1234ML\x00\x05" + "1234hello"))
	f.Add([]byte(hail + hail[:3]))
	f.Add(append([]byte(hail+"1234ML\xff\xff1234"), make([]byte, 70000)...))
	f.Fuzz(func(t *testing.T, before []byte) {
		p := newPort()
		done := make(chan struct{})
		go func() { defer close(done); _ = Serve(p, nil, echoes) }()
		defer func() { _ = p.Close(); <-done }()
		first := &host{p: p}
		if _, err := first.Write(before); err != nil {
			t.Fatal(err)
		}
		_ = first.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		s, err := Begin(ctx, &host{p: p})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		conn, err := s.Open()
		if err == nil {
			err = roundTrip(conn, 1000)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

// TestFirstWords has hosts say something before all else: to a guest that takes
// it, to the same in the middle of another's frame, to one that is against it, and
// to one that knows of no first word.
func TestFirstWords(t *testing.T) {
	took := make(chan string, 1)
	takes := serveWith(t, func(word []byte) error {
		if len(word) == 3 {
			return errors.New("it has three bytes")
		}
		took <- string(word)
		return nil
	}, echoes)
	knows := serve(t, echoes)
	for round := range 10 {
		for _, c := range []struct {
			p     *port
			word  string
			taken bool
		}{{takes, "a word", true}, {takes, "the longest" + string(make([]byte, firstMax-11)), true}, {takes, "one", true}, {knows, "a word", false}} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			h := &host{p: c.p}
			s, taken, err := BeginWith(ctx, h, []byte(c.word))
			var refused *RefusedError
			switch {
			case taken != c.taken:
				t.Errorf("a first word is taken: %v, expected %v", taken, c.taken)
			case c.word == "one":
				if !errors.As(err, &refused) || refused.Message != "it has three bytes" {
					t.Errorf("one that the guest is against: %v", err)
				}
			case err != nil:
				t.Fatal(err)
			case taken && <-took != c.word:
				t.Error("the guest has another word than was said")
			default:
				conn, err := s.Open()
				if err == nil {
					err = roundTrip(conn, 100_000)
				}
				if err != nil {
					t.Error(err)
				}
				if conn, err = s.Open(); err != nil {
					t.Fatal(err)
				}
				go func() { _, _ = conn.Write(make([]byte, 1<<20)) }()
				if round%2 == 0 {
					_, _ = io.ReadFull(conn, make([]byte, 10_000)) // it is in the middle of a frame
				}
				_ = h.Close()
				_ = s.Close()
			}
			cancel()
		}
	}
	for _, word := range [][]byte{nil, make([]byte, firstMax+1)} {
		if _, _, err := BeginWith(t.Context(), &host{p: takes}, word); err == nil {
			t.Errorf("a first word of %d bytes was said", len(word))
		}
	}
}
