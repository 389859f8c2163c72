package soap

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"

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
