package soap

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"mvm/wsdl"
)

// The ratio to net/http alone, which echoes as many bytes over as many
// connections, is what to look at: bare times differ from machine to machine.
func BenchmarkCall(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	floor := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		_, _ = w.Write(data)
	})}
	go func() { _ = floor.Serve(listener) }()
	defer floor.Close()
	body := strings.Repeat("x", 1000)
	b.Run("nethttp", func(b *testing.B) {
		for b.Loop() {
			answer, err := http.Post("http://"+listener.Addr().String(), "text/plain", strings.NewReader(body))
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, answer.Body)
			answer.Body.Close()
		}
	})
	v := start(b, Config{})
	c := NewClient(ClientConfig{})
	defer c.Close()
	broker := wsdl.NewBrokerClient(c, v.url+"/services/broker")
	id, err := broker.SubmitJob(&wsdl.SubmitJob{Token: "t", Job: testJob()})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("soap", func(b *testing.B) {
		for b.Loop() {
			if _, err := broker.GetJob(&wsdl.GetJob{Id: id.Id}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
