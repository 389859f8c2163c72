package soap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// muteListener hides what its connections are, so that net/http gets them all
// from the beginning.
type muteListener struct{ net.Listener }

func (l muteListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	return struct{ net.Conn }{conn}, err
}

// plainCall is a call as SOAP stacks send it.
func plainCall(service, body string, fields ...string) string {
	return fmt.Sprintf("POST /services/%s HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n%s\r\n%s", service, len(body), strings.Join(fields, ""), body)
}

var itsOwn = regexp.MustCompile(`(X-Request-Id: |<requestId>|request id )[0-9a-f]{16}|Date: [^\r]*|micros":[0-9]+|127\.0\.0\.1:[0-9]+|"time":"[^"]*"|"request":"[0-9a-f]{16}"`)

// A conversation's answers are net/http's, to the byte, and so are what the log
// says and what the Guard sees.
func TestConversationAnswersAsNetHTTPDoes(t *testing.T) {
	seen := make(chan string, 10)
	config := Config{Guard: guardFunc(func(ctx context.Context, r *http.Request, operation string) (context.Context, error) {
		if operation == "broker/GetOutput" {
			panic("oops")
		}
		seen <- fmt.Sprintf("%s %s %s %s %d %v %v", operation, r.Method, r.URL, r.Host, r.ContentLength, r.Header, RequestID(r.Context()) == RequestID(ctx))
		return ctx, nil
	})}
	plain := start(t, config)
	mute := start(t, config, func(v *running) { v.mute = true })
	mute.grid.base = plain.grid.base
	for name, sent := range map[string]string{
		"a call":                 plainCall("bootstrap", envelope11(getBroker)),
		"of SOAP 1.2":            strings.Replace(plainCall("bootstrap", envelope12(getBroker)), media11, media12+`; charset=utf-8; action="a"`, 1),
		"with all fields":        plainCall("bootstrap", envelope11(getBroker), "soapaction: \"a\"\r\nUSER-AGENT:x\r\n", "Accept:  */* \r\nAccept-Encoding: gzip\r\nConnection: Keep-Alive\r\nX-Request-Id: my-own\r\n"),
		"with an id that is odd": plainCall("bootstrap", envelope11(getBroker), "X-Request-Id: my own\r\n"),
		"a fault":                plainCall("broker", envelope11(`<GetJob xmlns="urn:mvm:1"><id>nope</id></GetJob>`)),
		"a fault of SOAP 1.2":    plainCall("broker", envelope12(`<GetJob xmlns="urn:mvm:1"><id>nope</id></GetJob>`)),
		"no operation":           plainCall("broker", envelope11(`<Nope/>`)),
		"no envelope":            plainCall("broker", "x"),
		"a panic":                plainCall("broker", envelope11(`<PlanJob xmlns="urn:mvm:1"/>`)),
		"a panic of the guard":   plainCall("broker", envelope11(`<GetOutput xmlns="urn:mvm:1"><id>x</id></GetOutput>`)),
		"no answer":              plainCall("broker", envelope11(`<ListJobs xmlns="urn:mvm:1"><name>nothing</name></ListJobs>`)),
		"a large answer":         plainCall("bootstrap", envelope11(getBroker+strings.Repeat("<a/>", 2000))),
		"a large request":        plainCall("bootstrap", envelope11("<GetBroker xmlns='urn:mvm:1'>"+strings.Repeat(" ", 50_000)+"</GetBroker>")),
		"too large for it":       plainCall("bootstrap", envelope11("<GetBroker xmlns='urn:mvm:1'>"+strings.Repeat(" ", 80_000)+"</GetBroker>")),
		"a line end too many":    plainCall("bootstrap", envelope11(getBroker)) + "\r\n\r\n",
		"half a request behind":  plainCall("bootstrap", envelope11(getBroker)) + "GET /hea",
		"three bytes behind":     plainCall("bootstrap", envelope11(getBroker)) + "GET",
		"another behind it":      plainCall("bootstrap", envelope11(getBroker)) + "GET /services/bootstrap?wsdl HTTP/1.1\r\nHost: x\r\n\r\n" + plainCall("bootstrap", envelope11(getBroker)),
		"a body cut off":         strings.TrimSuffix(plainCall("bootstrap", envelope11(getBroker)), "Envelope>"),
		"a head cut off":         "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nConte",
		"nothing":                "",
	} {
		var said, saw, logged [2]string
		for i, v := range []*running{plain, mute} {
			before := len(v.log.String())
			conn := v.dial(t, sent)
			_ = conn.(*net.TCPConn).CloseWrite()
			answer, err := io.ReadAll(conn)
			if err != nil && !strings.Contains(name, "large") { // a refusal may end with a reset
				t.Errorf("%s: %v", name, err)
			}
			until(t, "calls that end", func() bool {
				v.flights.mu.Lock()
				defer v.flights.mu.Unlock()
				return v.flights.n == 0
			})
			said[i] = itsOwn.ReplaceAllString(string(answer), "$1")
			said[i] = strings.ReplaceAll(said[i], mute.url, plain.url)
			logged[i] = itsOwn.ReplaceAllString(v.log.String()[before:], "")
			if strings.Contains(name, "panic") {
				logged[i] = "" // where the stacks differ
			}
			for done := false; !done; {
				select {
				case s := <-seen:
					saw[i] += s + "\n"
				default:
					done = true
				}
			}
		}
		if said[0] != said[1] {
			t.Errorf("%s: it was answered\n%s\nand by net/http\n%s", name, said[0], said[1])
		}
		if logged[0] != logged[1] {
			t.Errorf("%s: logged\n%s\nand for net/http\n%s", name, logged[0], logged[1])
		}
		if saw[0] != saw[1] {
			t.Errorf("%s: the guard saw\n%s\nand with net/http\n%s", name, saw[0], saw[1])
		}
	}
}

// Requests that are sent without waiting for answers are answered in turn, in
// whatever pieces they come, up to where net/http goes on.
func TestConversationKeepsTheOrder(t *testing.T) {
	v := start(t, Config{})
	var sent strings.Builder
	var want []string
	for i := range 300 {
		id := fmt.Sprintf("id-%d", i)
		field := fmt.Sprintf("X-Request-Id: %s\r\n", id)
		if i >= 250 && i%7 == 0 {
			field += "X-Odd: 1\r\n"
		}
		sent.WriteString(plainCall("bootstrap", envelope11(getBroker), field))
		want = append(want, id)
	}
	for _, piece := range []int{1, 99, 4096, 5000, 1 << 20} {
		conn := v.dial(t, "")
		go func() {
			for rest := sent.String(); rest != ""; {
				n := min(piece, len(rest))
				if _, err := io.WriteString(conn, rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
			}
		}()
		from := bufio.NewReader(conn)
		for _, id := range want {
			answer, err := http.ReadResponse(from, nil)
			if err != nil {
				t.Fatal(err)
			}
			data, err := io.ReadAll(answer.Body)
			if err != nil || answer.StatusCode != 200 || answer.Header.Get("X-Request-Id") != id || !bytes.Contains(data, []byte("GetBrokerResponse")) {
				t.Fatalf("in pieces of %d: %s %v, want %s: %s, %v", piece, answer.Status, answer.Header, id, data, err)
			}
		}
		conn.Close()
	}
}

// A call whose caller hangs up is told, if it asks; one whose caller says the
// next thing is not, and that is answered afterwards.
func TestConversationHearsTheCallerHangUp(t *testing.T) {
	v := start(t, Config{})
	poll := plainCall("broker", envelope11(`<WaitJob xmlns="urn:mvm:1"><id>forever</id></WaitJob>`))
	none := func() bool {
		v.flights.mu.Lock()
		defer v.flights.mu.Unlock()
		return v.flights.n == 0
	}
	conn := v.dial(t, poll)
	<-v.grid.polls
	conn.Close()
	until(t, "the call ended", none)

	conn = v.dial(t, poll)
	<-v.grid.polls
	time.Sleep(2 * noMatter) // until somebody listens
	if _, err := io.WriteString(conn, plainCall("bootstrap", envelope11(getBroker))); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * noMatter)
	if none() {
		t.Error("the call ended although its caller is still there")
	}
	go func() { _ = v.stop() }()
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	if data, _ := io.ReadAll(answer.Body); !answer.Close || !bytes.Contains(data, []byte("shutting down")) {
		t.Errorf("at the shutdown: %v %s", answer.Header, data)
	}
}

// What is said while a call listens for its caller is the next request.
func TestConversationGoesOnAfterListening(t *testing.T) {
	v := start(t, Config{Contracts: []wsdl.Contract{{Name: "bootstrap", Operations: []wsdl.Operation{{
		Name: "GetBroker", NewRequest: func() any { return new(wsdl.GetBroker) },
		Call: func(ctx context.Context, _ any) (any, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(5 * noMatter):
				return &wsdl.GetBrokerResponse{}, nil
			}
		},
	}}}}})
	conn := v.dial(t, "")
	from := bufio.NewReader(conn)
	call := plainCall("bootstrap", envelope11(getBroker))
	for i := range 5 {
		if i == 0 {
			_, _ = io.WriteString(conn, call)
		}
		time.Sleep(2 * noMatter)
		_, _ = io.WriteString(conn, call) // while the one before is carried out
		answer, err := http.ReadResponse(from, nil)
		if err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != 200 {
			t.Fatalf("%s %s, %v", answer.Status, data, err)
		}
	}
}

// Contexts that were derived from a call's end with it.
func TestLifeOfACall(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	type key struct{}
	base, stop := context.WithCancelCause(context.WithValue(context.Background(), key{}, "v"))
	defer stop(nil)
	l := &life{base: base, conn: ours}
	if l.Value(key{}) != "v" || l.ctx != nil {
		t.Errorf("a value: %v", l.Value(key{}))
	}
	derived, cancel := context.WithCancel(l)
	defer cancel()
	if l.ctx == nil || l.Err() != nil || derived.Err() != nil {
		t.Errorf("%v, %v", l.Err(), derived.Err())
	}
	if l.end(); !errors.Is(derived.Err(), context.Canceled) || l.Err() == nil {
		t.Errorf("after its end: %v, %v", l.Err(), derived.Err())
	}
	late := &life{base: base, conn: ours}
	late.end()
	if !errors.Is(late.Err(), context.Canceled) {
		t.Errorf("asked after its end: %v", late.Err())
	}
	hung := &life{base: base, conn: ours}
	done := hung.Done()
	theirs.Close()
	<-done
	hung.end()
	stop(errStopping)
	other := &life{base: base, conn: ours}
	if context.Cause(other) != errStopping {
		t.Errorf("after a shutdown: %v", context.Cause(other))
	}
	other.end()
}

// A connection that rests is closed after its time, and at a shutdown at once.
func TestConversationRests(t *testing.T) {
	v := start(t, Config{Limits: Limits{Idle: 50 * time.Millisecond, Header: 100 * time.Millisecond}})
	for name, sent := range map[string]string{"after a call": plainCall("bootstrap", envelope11(getBroker)), "silent": "", "half a head": "POST /serv"} {
		begin := time.Now()
		conn := v.dial(t, sent)
		if data, err := io.ReadAll(conn); err != nil || strings.Contains(string(data), "200 OK") != (name == "after a call") {
			t.Errorf("%s: %q, %v", name, data, err)
		}
		if took := time.Since(begin); took < v.limits.Idle || took > 10*time.Second {
			t.Errorf("%s: closed after %s", name, took)
		}
	}
	v = start(t, Config{})
	conn := v.dial(t, plainCall("bootstrap", envelope11(getBroker)))
	from := bufio.NewReader(conn)
	if _, err := http.ReadResponse(from, nil); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := v.stop(); err != nil {
		t.Error(err)
	}
	if _, err := io.Copy(io.Discard, from); err != nil || time.Since(begin) > 5*time.Second {
		t.Errorf("closed %s after the shutdown: %v", time.Since(begin), err)
	}
}

// What readHead takes, net/http takes with the same meaning.
func FuzzHead(f *testing.F) {
	grid := &fakeGrid{base: func() string { return "http://x" }}
	server, err := NewServer(Config{Contracts: []wsdl.Contract{wsdl.BootstrapContract(grid)}})
	if err != nil {
		f.Fatal(err)
	}
	call := plainCall("bootstrap", "<a/>", "SOAPAction: \"b\"\r\nUser-Agent: c\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nX-Request-Id: d\r\n")
	f.Add([]byte(call))
	for from, to := range map[string]string{
		"text/xml":        "application/soap+xml; charset=utf-8; action=\"x\"",
		"Host":            "hOST",
		"Content-Length:": "Content-Length: 0004\r\nContent-Length:",
		"Host: x":         "Host: [::1]:80",
		": 4":             ":  000004  ",
		"keep-alive":      "close",
		"User-Agent":      "Transfer-Encoding",
		"Accept: */*":     "Expect: 100-continue",
		"\r\n\r\n":        "\n\n",
		" HTTP/1.1":       "?a HTTP/1.1",
		"User-Agent:":     "User-Agent :",
		"User-Agent: c":   "User-Agent: c\r\n d",
	} {
		f.Add([]byte(strings.Replace(call, from, to, 1)))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := &conversation{server: server}
		h, found := c.readHead(data)
		for i := range data[:min(len(data), 300)] {
			// The beginning of a plain head is never refused, and no head.
			if _, early := (&conversation{server: server}).readHead(data[:i]); found == whole && i < h.size && early != part {
				t.Fatalf("%q is found to be %d", data[:i], early)
			}
		}
		if found != whole {
			return
		}
		from := bytes.NewReader(data)
		buffered := bufio.NewReader(from)
		r, err := http.ReadRequest(buffered)
		if err != nil {
			t.Fatalf("net/http does not take %q: %v", data, err)
		}
		if used := len(data) - from.Len() - buffered.Buffered(); used != h.size {
			t.Fatalf("net/http reads %d bytes of head, not %d", used, h.size)
		}
		v, err := versionOf(r)
		if err != nil || v != h.version {
			t.Errorf("version %v, want %v (%v)", h.version, v, err)
		}
		if r.Method != "POST" || r.URL.String() != "/services/"+h.service.contract.Name || !r.ProtoAtLeast(1, 1) || r.Close || r.Host == "" ||
			len(r.TransferEncoding) > 0 || r.ContentLength != int64(h.length) || h.length < 1 || r.Header.Get("X-Request-Id") != string(h.id) {
			t.Errorf("%+v is not %+v", r, h)
		}
		for name, values := range r.Header {
			switch name {
			case "Accept", "Accept-Charset", "Accept-Encoding", "Accept-Language", "Connection", "Content-Length", "Content-Type", "Soapaction", "User-Agent", "X-Request-Id":
			default:
				t.Errorf("the field %s: %q", name, values)
			}
		}
		body, _ := io.ReadAll(r.Body)
		if !reflect.DeepEqual(body, data[h.size:min(len(data), h.size+h.length)]) {
			t.Errorf("the body is %q", body)
		}
	})
}
