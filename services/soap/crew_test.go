package soap

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"testing"
	"time"

	"mvm/wsdl"
)

// Calls that take long hold up no others, whether they ask for their caller or
// not, and in the end the crew is what it was.
func TestCrewOutlastsLongCalls(t *testing.T) {
	for _, asks := range []bool{true, false} {
		begun, release := make(chan struct{}), make(chan struct{})
		crews := make(chan *crew, 100)
		v := start(t, Config{Contracts: []wsdl.Contract{{Name: "bootstrap", Operations: []wsdl.Operation{
			{Name: "ListServices", NewRequest: func() any { return new(wsdl.ListServices) }, Call: func(ctx context.Context, _ any) (any, error) {
				begun <- struct{}{}
				if asks {
					select {
					case <-release:
					case <-ctx.Done():
					}
				} else {
					<-release
				}
				return &wsdl.ListServicesResponse{}, nil
			}},
			{Name: "GetBroker", NewRequest: func() any { return new(wsdl.GetBroker) }, Call: func(ctx context.Context, _ any) (any, error) {
				crews <- exchangeOf(ctx).life.asker.crew
				return &wsdl.GetBrokerResponse{}, nil
			}},
		}}}})
		const long = 20
		slow := plainCall("bootstrap", envelope11(`<ListServices xmlns="urn:mvm:1"/>`))
		var conns []net.Conn
		for range long {
			conns = append(conns, v.dial(t, slow))
			<-begun
		}
		for range 50 {
			conn := v.dial(t, plainCall("bootstrap", envelope11(getBroker)))
			_ = conn.(*net.TCPConn).CloseWrite()
			if data, err := io.ReadAll(conn); err != nil || len(data) == 0 {
				t.Fatalf("asking %v: beside long calls: %q, %v", asks, data, err)
			}
		}
		close(release)
		for _, conn := range conns {
			_ = conn.(*net.TCPConn).CloseWrite()
			if data, err := io.ReadAll(conn); err != nil || len(data) == 0 {
				t.Fatalf("asking %v: a long call: %q, %v", asks, data, err)
			}
		}
		w := <-crews
		until(t, "the crew as it was", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.here == w.hands && len(w.members) == w.hands
		})
		if err := v.stop(); err != nil {
			t.Error(err)
		}
		until(t, "everyone home", func() bool {
			w.mu.Lock()
			defer w.mu.Unlock()
			return len(w.members) == 0
		})
	}
}

// A connection that rests costs no goroutine, and is forgotten when it ends,
// whoever ends it.
func TestCrewForgetsWhatIsOver(t *testing.T) {
	v := start(t, Config{Limits: Limits{Connections: 150}})
	before := runtime.NumGoroutine()
	for i := range 300 {
		conn := v.dial(t, "")
		if i%3 == 0 {
			conn.Close()
		}
	}
	until(t, "few goroutines", func() bool { return runtime.NumGoroutine() < before+20 })
	if got := v.get(t, "/healthz"); got.status != 200 {
		t.Error(fmt.Sprint("beside those: ", got))
	}
}

// talk calls once and returns the conversation, which rests, and its connection.
func talk(t *testing.T) (c *conversation, conn net.Conn, from *bufio.Reader) {
	t.Helper()
	crews := make(chan *crew, 1)
	v := start(t, Config{Contracts: []wsdl.Contract{{Name: "bootstrap", Operations: []wsdl.Operation{
		{Name: "GetBroker", NewRequest: func() any { return new(wsdl.GetBroker) }, Call: func(ctx context.Context, _ any) (any, error) {
			select {
			case crews <- exchangeOf(ctx).life.asker.crew:
			default:
			}
			return &wsdl.GetBrokerResponse{}, nil
		}},
	}}}})
	conn = v.dial(t, plainCall("bootstrap", envelope11(getBroker)))
	from = bufio.NewReader(conn)
	answered(t, from)
	(<-crews).all.Range(func(_, each any) bool { c = each.(*conversation); return true })
	until(t, "a conversation that rests", c.resting.Load)
	return c, conn, from
}

func answered(t *testing.T, from *bufio.Reader) {
	t.Helper()
	answer, err := http.ReadResponse(from, nil)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != 200 {
		t.Fatalf("%s %s, %v", answer.Status, data, err)
	}
}

// Who saw that a conversation had rested for too long, and gets it only after it
// was carried on, leaves it as it is.
func TestCrewSparesWhoWasCarriedOn(t *testing.T) {
	c, conn, from := talk(t)
	for range 3 {
		if !c.resting.CompareAndSwap(true, false) {
			t.Fatal("it does not rest")
		}
		c.tired()
		if _, err := io.WriteString(conn, plainCall("bootstrap", envelope11(getBroker))); err != nil {
			t.Fatal(err)
		}
		answered(t, from)
		until(t, "a conversation that rests", c.resting.Load)
	}
}

// How long a connection may rest does not depend on what the clock on the wall
// says, which may be set: an hour on would end all of them, an hour back leave
// those who send nothing their places.
func TestCrewKeepsItsOwnTime(t *testing.T) {
	c, _, _ := talk(t)
	if by := time.Duration(c.restBy.Load()); by <= 0 || by > c.server.limits.Idle+time.Hour {
		t.Errorf("it may rest until %v since the crew began: that is no time of its own", by)
	}
}
