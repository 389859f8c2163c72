package soap

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// Whoever opens connections and keeps them takes none from others: what is
// silent for the longest goes first, and what is at work never.
func TestConnectionsAreBounded(t *testing.T) {
	const most = 8
	v := start(t, Config{Limits: Limits{Connections: most}})
	http.DefaultClient.CloseIdleConnections()
	shape := func(want string) {
		t.Helper()
		until(t, "connections as "+want, func() bool {
			v.connections.mu.Lock()
			defer v.connections.mu.Unlock()
			var n [phaseWorking + 1]int
			for _, k := range v.connections.open {
				n[k.phase()]++
			}
			return want == fmt.Sprintf("%d idle, %d sending, %d answering, %d working", n[phaseIdle], n[phaseSending], n[phaseAnswering], n[phaseWorking])
		})
	}
	call := func() string {
		t.Helper()
		conn := v.dial(t, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		said, err := io.ReadAll(conn)
		if err != nil {
			t.Fatalf("%q, %v", said, err)
		}
		return string(said)
	}
	// One polls, one sends, the others say nothing or not enough.
	poll := envelope11(`<WaitJob xmlns="urn:mvm:1"><id>forever</id></WaitJob>`)
	head := func(length int) string {
		return fmt.Sprintf("POST /services/broker HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n", length)
	}
	v.dial(t, head(len(poll))+poll)
	<-v.grid.polls
	v.dial(t, head(200_000)+strings.Repeat(" ", 100_000))
	little := v.dial(t, head(1000)+"<")
	silent := v.dial(t, "")
	half := v.dial(t, "GET /healthz HT")
	shape("3 idle, 1 sending, 0 answering, 1 working")
	for range 3 * most {
		if said := call(); !strings.HasPrefix(said, "HTTP/1.1 200") {
			t.Fatalf("beside %d connections: %q", most, said)
		}
	}
	for range 2 * most {
		v.dial(t, "")
	}
	for name, conn := range map[string]net.Conn{"silent": silent, "half": half, "little": little} {
		if said, err := io.ReadAll(conn); len(said) > 0 {
			t.Errorf("%s: %q, %v", name, said, err)
		}
	}
	shape(fmt.Sprintf("%d idle, 1 sending, 0 answering, 1 working", most-2))
	// When all are at work, the next one is told.
	for range most - 1 {
		v.dial(t, head(len(poll))+poll)
		<-v.grid.polls
	}
	shape(fmt.Sprintf("0 idle, 0 sending, 0 answering, %d working", most))
	conn := v.dial(t, "")
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || answer.StatusCode != http.StatusServiceUnavailable || answer.Header.Get("Retry-After") == "" {
		t.Fatalf("%v, %v", answer, err)
	}
	if said, err := io.ReadAll(answer.Body); err != nil || !strings.Contains(string(said), "busy") {
		t.Errorf("%q, %v", said, err)
	}
	shape(fmt.Sprintf("0 idle, 0 sending, 0 answering, %d working", most))
	begin := time.Now()
	if err := v.stop(); err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("shut down: %v after %s", err, time.Since(begin))
	}
	shape("0 idle, 0 sending, 0 answering, 0 working")
}

// Whoever fills the places with uploads, which are dropped after what is
// silent, leaves newcomers the time that they need to send a request.
func TestUploadsDoNotCrowdNewcomersOut(t *testing.T) {
	const most = 8
	v := start(t, Config{Limits: Limits{Connections: most}})
	http.DefaultClient.CloseIdleConnections()
	upload := "POST /services/broker HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 200000\r\n\r\n" + strings.Repeat(" ", 100_000)
	for range most {
		v.dial(t, upload)
	}
	until(t, "uploads in every place", func() bool {
		v.connections.mu.Lock()
		defer v.connections.mu.Unlock()
		sending := 0
		for _, k := range v.connections.open {
			if k.phase() == phaseSending {
				sending++
			}
		}
		return sending == most
	})
	first := v.dial(t, "")
	v.dial(t, "")
	if _, err := io.WriteString(first, "GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(first); err != nil || !strings.HasPrefix(string(said), "HTTP/1.1 200") {
		t.Errorf("the newcomer got %q, %v", said, err)
	}
}
