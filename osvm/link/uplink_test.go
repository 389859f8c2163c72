package link

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// pair is a guest and its host over a pipe in place of a VM's port.
type pair struct {
	t       *testing.T
	port    *port
	inside  *Inside
	outside *Outside
	end     func() // the host's session
}

func newPair(t *testing.T, config OutsideConfig) *pair {
	p := &pair{t: t}
	p.inside = NewInside(func(conn net.Conn) {
		defer conn.Close()
		_, _ = conn.Write([]byte("the agent"))
	})
	p.port = serve(t, p.inside.Serve)
	var err error
	if p.outside, err = NewOutside(config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.outside.Close)
	p.connect()
	return p
}

// connect begins another session, as a host that came back.
func (p *pair) connect() {
	h := &host{p: p.port}
	ctx, cancel := context.WithTimeout(p.t.Context(), 20*time.Second)
	defer cancel()
	s, err := Begin(ctx, h)
	if err != nil {
		p.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); p.outside.Serve(s) }()
	p.end = sync.OnceFunc(func() { _ = h.Close(); <-done })
	p.t.Cleanup(p.end)
}

// echoServer answers each connection with what it got.
func echoServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, _ = io.Copy(conn, conn)
				_ = conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func tcp(ctx context.Context, address string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

func listenHere(_ int, known string) (net.Listener, error) { return Listener("127.0.0.1", known) }

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestTheGuestDialsThroughItsHost(t *testing.T) {
	relayed := make(chan string, 1)
	p := newPair(t, OutsideConfig{
		Relay: func(conn net.Conn) {
			text, _ := io.ReadAll(conn)
			relayed <- string(text)
			_ = conn.Close()
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			if strings.HasPrefix(address, "forbidden") {
				return nil, errors.New("not for this guest")
			}
			return tcp(ctx, address)
		},
	})
	address := echoServer(t)
	conn, err := p.inside.Dial(within(t), address)
	if err == nil {
		err = roundTrip(conn, 1<<20)
	}
	if err != nil {
		t.Fatal(err)
	}
	var refused *RefusedError
	if _, err := p.inside.Dial(within(t), "forbidden:1"); !errors.As(err, &refused) || !strings.Contains(err.Error(), "not for this guest") {
		t.Errorf("a dial that the host forbids: %v", err)
	}
	conn, err = p.inside.Dial(within(t), RelayAddress+":80")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("to the host"))
	_ = conn.Close()
	if text := <-relayed; text != "to the host" {
		t.Errorf("the host's relay got %q", text)
	}
	agent, err := p.outside.Agent(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := io.ReadAll(agent); string(text) != "the agent" {
		t.Errorf("the agent says %q, %v", text, err)
	}
}

// TestDialsOfOtherProcesses: a process of the guest speaks the same line on a
// socket of the agent's.
func TestDialsOfOtherProcesses(t *testing.T) {
	p := newPair(t, OutsideConfig{Dial: tcp})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "uplink"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = p.inside.ServeDials(l) }()
	defer func() { _ = l.Close(); <-done }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ask(within(t), conn, word{Dial: echoServer(t)}); err != nil {
		t.Fatal(err)
	}
	if err := roundTrip(conn, 300_000); err != nil {
		t.Error(err)
	}
	if conn, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := ask(within(t), conn, word{Dial: "127.0.0.1:1"}); err == nil {
		t.Error("a port where nobody listens was dialled")
	}
}

// TestPublished: what a guest publishes stays where it is while hosts come and go.
func TestPublished(t *testing.T) {
	p := newPair(t, OutsideConfig{Listen: listenHere})
	_, text, _ := net.SplitHostPort(echoServer(t)) // the guest's loopback is this one
	port, err := net.LookupPort("tcp", text)
	if err != nil {
		t.Fatal(err)
	}
	news := make(chan string, 1)
	moved := func(address string) { news <- address }
	address, err := p.inside.Publish(within(t), port, moved)
	if err != nil {
		t.Fatal(err)
	}
	visit := func() {
		t.Helper()
		conn, err := net.Dial("tcp", address)
		if err == nil {
			err = roundTrip(conn, 100_000)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	visit()
	if err := p.inside.Withdraw(within(t), port); err != nil {
		t.Fatal(err)
	}
	if conn, err := net.Dial("tcp", address); err == nil {
		_ = conn.Close()
		t.Error("what is withdrawn is there still")
	}
	if address, err = p.inside.Publish(within(t), port, moved); err != nil {
		t.Fatal(err)
	}
	visit()
	p.end()
	waiting := make(chan error, 1)
	go func() { // while nobody is there, who comes waits
		conn, err := net.Dial("tcp", address)
		if err == nil {
			err = roundTrip(conn, 1000)
		}
		waiting <- err
	}()
	p.connect()
	if err := <-waiting; err != nil {
		t.Error(err)
	}
	visit()
	if again, err := p.inside.Publish(within(t), port, moved); err != nil || again != address {
		t.Errorf("published again at %s, %v; it was at %s", again, err, address)
	}

	known := p.outside.Published()
	p.end()
	p.outside.Close()
	if p.outside, err = NewOutside(OutsideConfig{Listen: listenHere, Published: known}); err != nil {
		t.Fatal(err)
	}
	defer p.outside.Close()
	p.connect()
	visit()
	select {
	case address := <-news:
		t.Errorf("the same place is told as another: %s", address)
	default:
	}

	// Another host has no such port free, or another address.
	p.end()
	p.outside.Close()
	if p.outside, err = NewOutside(OutsideConfig{Listen: func(int, string) (net.Listener, error) { return net.Listen("tcp", "127.0.0.2:0") }}); err != nil {
		t.Fatal(err)
	}
	defer p.outside.Close()
	before := address
	p.connect()
	select {
	case address = <-news:
	case <-within(t).Done():
		t.Fatal("another host listens elsewhere, and the guest is not told")
	}
	if address == before {
		t.Errorf("told to have moved, it is still at %s", address)
	}
	visit()
	if again, err := p.inside.Publish(within(t), port, nil); err != nil || again != address {
		t.Errorf("published again at %s, %v; it was at %s", again, err, address)
	}

	// One that was restored is to believe that it is where it was.
	p.end()
	p.outside.Close()
	if p.outside, err = NewOutside(OutsideConfig{Listen: listenHere, Believed: map[int]string{port: address}}); err != nil {
		t.Fatal(err)
	}
	defer p.outside.Close()
	p.connect()
	if again, err := p.inside.Publish(within(t), port, nil); err != nil || again != address || p.outside.Published()[port] == address {
		t.Errorf("restored, it believes to be at %s, %v; it was at %s and is at %s", again, err, address, p.outside.Published()[port])
	}
	for port := range mostPorts {
		_, err = p.inside.Publish(within(t), 1+port, nil)
	}
	if err == nil {
		t.Error("a guest publishes as many ports as it likes")
	}
	if _, err := p.inside.Publish(within(t), 70000, nil); err == nil {
		t.Error("port 70000 is published")
	}
}

// TestFloodOfConnections: a guest that opens more connections than it may have
// does not keep the host from reaching it.
func TestFloodOfConnections(t *testing.T) {
	p := newPair(t, OutsideConfig{Dial: tcp})
	address := echoServer(t)
	var open []net.Conn
	for range 2 * mostStreams {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		conn, err := p.inside.Dial(ctx, address)
		cancel()
		if err != nil {
			break
		}
		open = append(open, conn)
	}
	if len(open) != mostStreams {
		t.Errorf("the guest has %d connections at once, of %d that it may", len(open), mostStreams)
	}
	if _, err := p.outside.Agent(within(t)); err != nil {
		t.Error(err)
	}
	for _, conn := range open {
		_ = conn.Close()
	}
	for ctx := within(t); ; {
		conn, err := p.inside.Dial(ctx, address)
		if err == nil {
			_ = conn.Close()
			break
		}
		if ctx.Err() != nil {
			t.Fatalf("after the flood: %v", err)
		}
	}
}

func TestWordsThatAreNone(t *testing.T) {
	p := newPair(t, OutsideConfig{})
	for _, text := range []string{"\n", "{}\n", "nonsense\n", `{"dial":7}` + "\n", strings.Repeat("x", 2*wordMax), `{"dial":"127.0.0.1:1"}` + "\n", `{"publish":80}` + "\n", `{"dial":"mvm.host"}` + "\n"} {
		var s *Session
		for deadline := time.Now().Add(20 * time.Second); s == nil && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			p.inside.mu.Lock() // the host may be quicker than the guest
			s = p.inside.session
			p.inside.mu.Unlock()
		}
		conn, err := s.Open()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = conn.Write([]byte(text))
		var answer reply
		if err := hear(conn, &answer); err != nil || answer.Error == "" {
			t.Errorf("%.40q is answered with %+v, %v", text, answer, err)
		}
		_ = conn.Close()
	}
}
