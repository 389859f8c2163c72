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

// dial opens a connection and says something on it.
func (v *running) dial(t *testing.T, said string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(v.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, said); err != nil {
		t.Fatal(err)
	}
	return conn
}

// announce is the head of a call with a body of so many bytes.
func announce(bytes int) string {
	return fmt.Sprintf("POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n", bytes)
}

// padded is a call of so many bytes.
func padded(bytes int) string {
	call := func(space string) string { return envelope11("<GetBroker xmlns='urn:mvm:1'>" + space + "</GetBroker>") }
	return call(strings.Repeat(" ", bytes-len(call(""))))
}

// until waits for something that happens in the server.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 10 s", what)
		}
	}
}

// What is announced takes nothing from others: only what arrives does.
func TestIdleSendersBlockNobody(t *testing.T) {
	v := start(t, Config{Limits: Limits{Body: 1 << 20, Bodies: 2 << 20}})
	const senders = 20
	for range senders {
		v.dial(t, announce(1<<20)+"<")
	}
	until(t, "idle senders in flight", func() bool {
		return strings.Contains(v.get(t, "/metrics").body, fmt.Sprintf("mvm_requests_in_flight %d\n", senders+1))
	})
	client := http.Client{Timeout: 2 * time.Second}
	answer, err := client.Post(v.url+"/services/bootstrap", "text/xml", strings.NewReader(padded(300_000)))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		t.Errorf("a large call beside idle senders: %s", answer.Status)
	}
}

// A client that sends all before it reads anything reads the refusal.
func TestRefusalReachesWhoSendsAllFirst(t *testing.T) {
	// Far more than is answered for, and little enough to be sent within the ten
	// seconds that the server reads on, on the busiest machine.
	const limit = 64 << 10
	const sent = 128 * limit
	v := start(t, Config{Limits: Limits{Body: limit}})
	for name, head := range map[string]string{
		"announced": announce(sent),
		"chunked": "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n" +
			fmt.Sprintf("%x\r\n", sent),
	} {
		conn := v.dial(t, head)
		if _, err := io.WriteString(conn, strings.Repeat(" ", sent)); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if name == "chunked" {
			_, _ = io.WriteString(conn, "\r\n0\r\n\r\n")
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if said, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(said), "larger") {
			t.Errorf("%s: %s %q, %v", name, answer.Status, said, err)
		}
	}
	// Who asks first is told not to send.
	conn := v.dial(t, strings.Replace(announce(limit+1), "\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n", 1))
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "413") {
		t.Errorf("asked first: %q, %v", line, err)
	}
}

// A sender that stops is cut off after the grace; one that goes on slowly is
// not, however long it takes, while nobody waits for what it holds.
func TestStalledSendersAreCutOff(t *testing.T) {
	v := start(t, Config{Limits: Limits{Body: 1 << 20, Bodies: 2 << 20, Slow: 8 << 10, Rate: 1 << 40, Grace: 50 * time.Millisecond}})
	for name, said := range map[string]string{
		"at once":     announce(1 << 20),
		"small":       announce(1000) + "<",
		"large":       announce(1<<20) + strings.Repeat(" ", 300_000),
		"chunked":     "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\n",
		"in a chunk":  "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nTransfer-Encoding: chunked\r\n\r\nfff\r\n<",
		"plain route": "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 5\r\n\r\n<",
	} {
		begin := time.Now()
		conn := v.dial(t, said)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if said, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(said), "8192 bytes a second; this one did not for 250ms") {
			t.Errorf("%s: %s %q, %v", name, answer.Status, said, err)
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("%s: cut off after %s", name, took)
		}
	}
	v.memoryIsFree(t)

	call := padded(300_000)
	begin := time.Now()
	if answer := v.slowly(t, call); answer.StatusCode != http.StatusOK {
		t.Errorf("steady: %s", answer.Status)
	}
	if took := time.Since(begin); took < 10*v.limits.Grace {
		t.Errorf("took only %s, which tests nothing", took)
	}
}

// slowly sends a call at 400 kB a second at most, and returns the answer.
func (v *running) slowly(t *testing.T, call string) *http.Response {
	t.Helper()
	conn := v.dial(t, announce(len(call)))
	for len(call) > 0 {
		part := call[:min(len(call), 8_000)]
		call = call[len(part):]
		if _, err := io.WriteString(conn, part); err != nil {
			break // the answer says why
		}
		time.Sleep(20 * time.Millisecond) // the pace that is tested
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// Whoever is slow gives way to those who wait for the memory that it holds.
func TestSlowSendersGiveWay(t *testing.T) {
	v := start(t, Config{Limits: Limits{Body: 1 << 20, Bodies: 1 << 20, Rate: 1 << 40, Wait: 10 * time.Second, Grace: 50 * time.Millisecond}})
	slow := make(chan *http.Response, 1)
	go func() { slow <- v.slowly(t, padded(800_000)) }()
	until(t, "the slow one holding memory", func() bool {
		v.memory.mu.Lock()
		defer v.memory.mu.Unlock()
		return v.memory.favoured != nil
	})
	if got := v.post(t, "bootstrap", "text/xml", padded(900_000)); got.status != http.StatusOK {
		t.Errorf("a fast one: %+v", got)
	}
	answer := <-slow
	if said, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != http.StatusRequestTimeout || !strings.Contains(string(said), "others wait for the memory") {
		t.Errorf("the slow one: %s %q, %v", answer.Status, said, err)
	}
	v.memoryIsFree(t)
}

// memoryIsFree waits for all memory for large requests to be given back.
func (v *running) memoryIsFree(t *testing.T) {
	t.Helper()
	until(t, "memory given back", func() bool {
		v.memory.mu.Lock()
		defer v.memory.mu.Unlock()
		return v.memory.free == v.limits.Bodies-v.limits.Body && v.memory.favoured == nil && len(v.memory.waiting) == 0
	})
}

// Requests that hold a part of the memory each and need more than there is are
// carried out one after the other.
func TestHalfReadBodiesDoNotBlockEachOther(t *testing.T) {
	v := start(t, Config{Limits: Limits{Body: 1 << 20, Bodies: 3 << 20, Wait: 20 * time.Second, Grace: 20 * time.Second}})
	call := padded(1 << 20)
	const senders, half = 12, 400_000
	var conns []net.Conn
	for range senders {
		conns = append(conns, v.dial(t, announce(len(call))+call[:half]))
	}
	until(t, "half-read bodies that wait", func() bool {
		v.memory.mu.Lock()
		defer v.memory.mu.Unlock()
		return v.memory.favoured != nil && len(v.memory.waiting) > 0
	})
	failed := make(chan error, senders)
	for _, conn := range conns {
		go func() {
			if _, err := io.WriteString(conn, call[half:]); err != nil {
				failed <- err
				return
			}
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err == nil && answer.StatusCode != http.StatusOK {
				err = fmt.Errorf("answered with %s", answer.Status)
			}
			failed <- err
		}()
	}
	for range conns {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	v.memoryIsFree(t)
}

// When the memory stays taken, others hear soon that they should come again.
func TestLargeRequestsAreRefusedWhileMemoryIsTaken(t *testing.T) {
	v := start(t, Config{Limits: Limits{Body: 1 << 20, Bodies: 1 << 20, Wait: 50 * time.Millisecond}})
	other := v.memory.claim()
	if !other.take(t.Context(), 1<<20, time.Second) {
		t.Fatal("the first got nothing")
	}
	got := v.post(t, "bootstrap", "text/xml", padded(900_000))
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a large call: %+v", got)
	}
	if got := v.post(t, "bootstrap", "text/xml", padded(smallBody)); got.status != http.StatusOK {
		t.Errorf("a small call: %+v", got)
	}
	other.release()
	if got := v.post(t, "bootstrap", "text/xml", padded(900_000)); got.status != http.StatusOK {
		t.Errorf("a large call afterwards: %+v", got)
	}
}

func TestMemoryGoesToTheEarliest(t *testing.T) {
	m := newMemory(30, 10) // 20 for all, 10 set aside
	a, b, c, d := m.claim(), m.claim(), m.claim(), m.claim()
	take := func(who *claim, bytes int64) chan bool {
		got := make(chan bool, 1)
		go func() { got <- who.take(t.Context(), bytes, 10*time.Second) }()
		return got
	}
	waits := func(n int) {
		until(t, fmt.Sprintf("%d wait", n), func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.waiting) == n
		})
	}
	for _, who := range []*claim{a, b, d} {
		if !who.take(t.Context(), 6, 0) || who.held != 6 {
			t.Fatal("there was enough")
		}
	}
	if !d.take(t.Context(), 4, 10*time.Second) || m.favoured != d {
		t.Fatal("what is set aside was not used")
	}
	second := take(c, 5)
	waits(1)
	first := take(b, 4)
	waits(2)
	// The favoured one never waits, whoever else does.
	if !d.take(t.Context(), 4, 10*time.Second) {
		t.Fatal("the favoured one was refused")
	}
	// Who gives up goes away without a trace.
	if a.take(t.Context(), 4, time.Millisecond) || len(m.waiting) != 2 {
		t.Fatalf("%d wait", len(m.waiting))
	}
	d.release() // 8 are free: 4 for b, and c is favoured now
	if !<-first || !<-second || b.held != 10 || m.favoured != c {
		t.Errorf("b holds %d, c %d", b.held, c.held)
	}
	third := take(a, 5)
	waits(1)
	c.release()
	if !<-third || m.favoured != a {
		t.Errorf("nobody came after the favoured one")
	}
	a.release()
	b.release()
	if m.free != 20 || m.favoured != nil {
		t.Errorf("%d bytes are free in the end", m.free)
	}
}
