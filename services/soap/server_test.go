package soap

import (
	"bufio"
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

const getBroker = `<GetBroker xmlns="urn:mvm:1"/>`

func TestServerAnswersInTheVersionAsked(t *testing.T) {
	v := start(t, Config{})
	for _, c := range []struct {
		name, media, body string
		status            int
		wantMedia         string
		want              []string
	}{
		{"1.1", "text/xml", envelope11(getBroker), 200, media11, []string{namespace11, "GetBrokerResponse", v.url + "/services/broker"}},
		{"1.2", "application/soap+xml; charset=UTF-8; action=\"x\"", envelope12(getBroker), 200, media12, []string{namespace12, "GetBrokerResponse"}},
		{"1.2 as text/xml", "text/xml", envelope12(getBroker), 200, media12, []string{namespace12, "GetBrokerResponse"}},
		{"prefixes, comments, instructions, BOM", "text/xml;charset=utf-8",
			"\xef\xbb\xbf<?xml version='1.0' encoding='utf-8'?><!-- a --><?b c?><S:Envelope xmlns:S='" + namespace11 + "' xmlns:m='urn:mvm:1'>\n<!-- d --><S:Header><o:x xmlns:o='urn:o' S:mustUnderstand='0'>t</o:x></S:Header>\n<S:Body> <?e f?> <m:GetBroker><!-- g --></m:GetBroker>\n </S:Body><!-- h --></S:Envelope><!-- i -->\n",
			200, media11, []string{"GetBrokerResponse"}},
		{"white space in an empty element", "text/xml", envelope11("<GetBroker xmlns='urn:mvm:1'>\n</GetBroker>"), 200, media11, []string{"GetBrokerResponse"}},
		{"a header for somebody else", "text/xml",
			`<e:Envelope xmlns:e="` + namespace11 + `"><e:Header><a:b xmlns:a="urn:a" e:mustUnderstand="1" e:actor="urn:else"/></e:Header><e:Body>` + getBroker + `</e:Body></e:Envelope>`,
			200, media11, []string{"GetBrokerResponse"}},

		{"unknown operation 1.1", "text/xml", envelope11(`<GetBrokre xmlns="urn:mvm:1"/>`), 500, media11, []string{"<faultcode>soap:Client</faultcode>", "<code>invalidRequest</code>", "GetBroker, Join, ListServices", "<requestId>"}},
		{"unknown operation 1.2", media12, envelope12(`<GetBrokre xmlns="urn:mvm:1"/>`), 400, media12, []string{"<soap:Value>soap:Sender</soap:Value>", "m:invalidRequest", "<soap:Detail><GridFault"}},
		{"operation without namespace", "text/xml", envelope11(`<GetBroker/>`), 500, media11, []string{"invalidRequest", "urn:mvm:1"}},
		{"operation of another service", "text/xml", envelope11(`<ListJobs xmlns="urn:mvm:1"/>`), 500, media11, []string{"no operation {urn:mvm:1}ListJobs"}},
		{"must understand 1.1", "text/xml",
			`<e:Envelope xmlns:e="` + namespace11 + `"><e:Header><a:b xmlns:a="urn:a" e:mustUnderstand="1"/></e:Header><e:Body>` + getBroker + `</e:Body></e:Envelope>`,
			500, media11, []string{"<faultcode>soap:MustUnderstand</faultcode>", "{urn:a}b"}},
		{"must understand 1.2", media12,
			`<e:Envelope xmlns:e="` + namespace12 + `"><e:Header><a:b xmlns:a="urn:a" e:mustUnderstand="true"/><c:d xmlns:c="urn:c"/></e:Header><e:Body>` + getBroker + `</e:Body></e:Envelope>`,
			500, media12, []string{"soap:MustUnderstand", `<soap:NotUnderstood qname="n:b" xmlns:n="urn:a"/>`}},
		{"version 1.1", "text/xml", strings.ReplaceAll(envelope11(getBroker), namespace11, "urn:soap13"), 500, media11, []string{"soap:VersionMismatch", "urn:soap13"}},
		{"version 1.2", media12, strings.ReplaceAll(envelope11(getBroker), namespace11, "urn:soap13"), 500, media12, []string{"soap:VersionMismatch", "<soap:Upgrade>", namespace11}},
		{"no envelope", "text/xml", getBroker, 500, media11, []string{"not a SOAP Envelope"}},
		{"no body", "text/xml", `<e:Envelope xmlns:e="` + namespace11 + `"/>`, 500, media11, []string{"has no Body"}},
		{"empty body", "text/xml", envelope11(""), 500, media11, []string{"Body is empty"}},
		{"two children", "text/xml", envelope11(getBroker + getBroker), 500, media11, []string{"the Body has a further child"}},
		{"after the body", "text/xml", strings.Replace(envelope11(getBroker), "</e:Body>", "</e:Body><e:x/>", 1), 500, media11, []string{"the Envelope has a further child"}},
		{"after the envelope", "text/xml", envelope11(getBroker) + "<x/>", 500, media11, []string{"second root"}},
		{"text after the envelope", "text/xml", envelope11(getBroker) + "x", 500, media11, []string{"text outside"}},
		{"two documents", "text/xml", `<?xml version="1.0"?>` + envelope11(getBroker) + `<?xml version="1.0"?>` + envelope11(getBroker), 500, media11, []string{"more than one document"}},
		{"truncated", "text/xml", envelope11(getBroker)[:120], 500, media11, []string{"invalidRequest", "line 1"}},
		{"nothing", "text/xml", "", 500, media11, []string{"ends before its root"}},
		{"DTD", "text/xml", `<!DOCTYPE a [<!ENTITY b "c">]>` + envelope11(getBroker), 500, media11, []string{"document type declarations are refused"}},
		{"entity", "text/xml", envelope11(`<GetBroker xmlns="urn:mvm:1">&b;</GetBroker>`), 500, media11, []string{"invalid character entity"}},
		{"UTF-16", "text/xml", "\xff\xfe<\x00a\x00", 500, media11, []string{"UTF-16"}},
		{"declared Latin-1", "text/xml", `<?xml version="1.0" encoding="ISO-8859-1"?>` + envelope11(getBroker), 500, media11, []string{"send UTF-8"}},
		{"not UTF-8", "text/xml", envelope11("<GetBroker xmlns='urn:mvm:1'>\xff</GetBroker>"), 500, media11, []string{"is not UTF-8"}},
		{"unknown prefix", "text/xml", envelope11("<m:GetBroker/>"), 500, media11, []string{"no namespace declaration"}},
		{"depth", "text/xml", envelope11(strings.Repeat("<a>", 100) + strings.Repeat("</a>", 100)), 500, media11, []string{"tooLarge", "64 deep"}},
		{"attributes", "text/xml", envelope11("<a" + manyAttributes(100) + "/>"), 500, media11, []string{"tooLarge", "64 attributes"}},
		{"long name", "text/xml", envelope11("<" + strings.Repeat("a", 1000) + "/>"), 500, media11, []string{"tooLarge", "256 bytes"}},
		{"schema", "text/xml", envelope11(`<Join xmlns="urn:mvm:1"><node><cores>x</cores></node></Join>`), 500, media11,
			[]string{"invalidRequest", "<line>1</line><element>Join/node/cores</element>", "Join/node/id", "Join/node/url"}},

		{"no media type", "", envelope11(getBroker), 415, "text/plain", []string{"application/soap+xml"}},
		{"form", "application/x-www-form-urlencoded", "a=b", 415, "text/plain", []string{"application/soap+xml"}},
		{"MIME parts", `multipart/related; type="text/xml"; boundary=b`, "--b\r\n\r\n--b--", 415, "text/plain", nil},
		{"charset", "text/xml; charset=utf-16", envelope11(getBroker), 415, "text/plain", []string{"UTF-8"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := v.post(t, "bootstrap", c.media, c.body)
			if got.status != c.status || !strings.HasPrefix(got.header.Get("Content-Type"), c.wantMedia+";") {
				t.Errorf("status %d, %s; want %d, %s\n%s", got.status, got.header.Get("Content-Type"), c.status, c.wantMedia, got.body)
			}
			for _, want := range c.want {
				if !strings.Contains(got.body, want) {
					t.Errorf("no %q in\n%s", want, got.body)
				}
			}
			if c.wantMedia != "text/plain" {
				if err := xml.Unmarshal([]byte(got.body), new(struct{})); err != nil {
					t.Errorf("the answer is malformed: %v", err)
				}
			}
			if got.header.Get("X-Request-Id") == "" {
				t.Error("no request id")
			}
		})
	}
}

func manyAttributes(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, ` a%d="x"`, i)
	}
	return b.String()
}

func TestServerRefusesWhatItDoesNotServe(t *testing.T) {
	v := start(t, Config{Limits: Limits{Body: 1000}})
	if got := v.post(t, "bootstrap", "text/xml", envelope11(getBroker), "Content-Encoding", "gzip"); got.status != 415 {
		t.Errorf("gzip: %+v", got)
	}
	if got := v.post(t, "bootstrap", "text/xml", strings.Repeat(" ", 2000)); got.status != 413 || !strings.Contains(got.body, "1000 bytes") {
		t.Errorf("declared too large: %+v", got)
	}
	// Undeclared: chunked and endless.
	pr, pw := io.Pipe()
	go func() {
		for {
			if _, err := pw.Write(make([]byte, 512)); err != nil {
				return
			}
		}
	}()
	r, _ := http.NewRequest("POST", v.url+"/services/bootstrap", pr)
	r.Header.Set("Content-Type", "text/xml")
	if got := do(t, r); got.status != 413 {
		t.Errorf("endless: %+v", got)
	}
	pr.Close()
	for _, method := range []string{"PUT", "DELETE", "PATCH", "OPTIONS"} {
		r, _ := http.NewRequest(method, v.url+"/services/bootstrap", nil)
		if got := do(t, r); got.status != 405 || got.header.Get("Allow") == "" {
			t.Errorf("%s: %+v", method, got)
		}
	}
	if got := v.get(t, "/nothing"); got.status != 404 || got.header.Get("X-Request-Id") == "" {
		t.Errorf("/nothing: %+v", got)
	}
	if got := v.post(t, "nothing", "text/xml", envelope11(getBroker)); got.status != 404 {
		t.Errorf("no service: %+v", got)
	}
	if got := v.post(t, "bootstrap", "text/xml", envelope11(getBroker), "X-Request-Id", "a\tb c"); got.status != 200 || len(got.header.Get("X-Request-Id")) != 16 {
		t.Errorf("a request id unfit for a log: %+v", got)
	}
}

// Senders that are too slow, while others are served.
func TestServerBoundsSlowSenders(t *testing.T) {
	v := start(t, Config{Limits: Limits{Header: 200 * time.Millisecond, Grace: 100 * time.Millisecond, Body: 1 << 20, Bodies: 1 << 20}})
	slow := []net.Conn{v.dial(t, announce(1_000_000)+"<a"), v.dial(t, announce(1_000_000)+"<a"), v.dial(t, announce(1_000_000)+"<a")}
	if got := v.post(t, "bootstrap", "text/xml", envelope11(getBroker)); got.status != 200 {
		t.Errorf("a small request beside slow large ones: %+v", got)
	}
	if got := v.get(t, "/healthz"); got.status != 200 || got.body != "ok\n" {
		t.Errorf("/healthz: %+v", got)
	}
	for _, conn := range slow {
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || answer.StatusCode != 408 {
			t.Errorf("slow body: %v, %v", answer, err)
		}
	}
	if got := v.post(t, "bootstrap", "text/xml", padded(900_000)); got.status != 200 {
		t.Errorf("afterwards: %+v", got)
	}
	conn := v.dial(t, "GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
	if data, err := io.ReadAll(conn); err != nil || !strings.Contains(string(data), "200 OK") {
		t.Errorf("a body that nobody wants and nobody sends: %q, %v", data, err)
	}
	conn = v.dial(t, "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nX-A:")
	if data, err := io.ReadAll(conn); err != nil || strings.Contains(string(data), "200 OK") {
		t.Errorf("slow headers: %q, %v", data, err)
	}
	conn = v.dial(t, "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 1000\r\n\r\n<a")
	_ = conn.(*net.TCPConn).CloseWrite()
	if answer, err := http.ReadResponse(bufio.NewReader(conn), nil); err != nil || answer.StatusCode != 400 {
		t.Errorf("cut off: %v, %v", answer, err)
	}
}

// The time to send a request is not the time to answer it.
func TestLongPollsOutlastTheReadLimit(t *testing.T) {
	v := start(t, Config{Limits: Limits{Read: 50 * time.Millisecond}})
	c := NewClient(ClientConfig{})
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 400*time.Millisecond)
	defer cancel()
	_, err := wsdl.NewBrokerClient(c, v.url+"/services/broker").WaitJobContext(ctx, &wsdl.WaitJob{Id: "forever"})
	if wsdl.CodeOf(err) != wsdl.FaultCodeTimeout {
		t.Errorf("the long poll ended with %v", err)
	}
}

func TestServerDescribesItself(t *testing.T) {
	v := start(t, Config{})
	dir := t.TempDir()
	for _, name := range []string{"bootstrap", "broker", "image", "queue", "information"} {
		got := v.get(t, "/services/"+name+"?wsdl")
		self := v.url + "/services/" + name
		if got.status != 200 || strings.Count(got.body, `address location="`+self+`"`) != 2 || !strings.Contains(got.body, `schemaLocation="`+self+`?xsd=grid.xsd"`) {
			t.Errorf("%s?wsdl: %d\n%s", name, got.status, got.body)
		}
		page := v.get(t, "/services/"+name)
		if page.status != 200 || !strings.Contains(page.body, self+"?wsdl") {
			t.Errorf("%s: %+v", name, page)
		}
	}
	for _, name := range []string{"grid.xsd", "profile.xsd"} {
		got := v.get(t, "/services/broker?xsd="+name)
		if got.status != 200 || name == "grid.xsd" && !strings.Contains(got.body, `schemaLocation="`+v.url+`/services/broker?xsd=profile.xsd"`) {
			t.Errorf("?xsd=%s: %+v", name, got)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(got.body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"/services/broker?xsd=../wsdl.go", "/services/broker?xsd=broker.wsdl", "/services/broker?xsd=", "/services/broker?x"} {
		if got := v.get(t, path); got.status != 404 {
			t.Errorf("%s: %+v", path, got)
		}
	}
	head, err := http.Head(v.url + "/services/broker?wsdl")
	if err != nil || head.StatusCode != 200 || head.ContentLength < 1000 {
		t.Errorf("HEAD: %+v, %v", head, err)
	}
	if got := v.get(t, "/services"); !strings.Contains(got.body, v.url+"/services/broker\n") {
		t.Errorf("/services: %+v", got)
	}

	request := func(host, forwarded string) reply {
		r, _ := http.NewRequest("GET", v.url+"/services/broker?wsdl", nil)
		r.Host = host
		r.Header.Set("X-Forwarded-Host", forwarded)
		return do(t, r)
	}
	if got := request("grid.example:81", "evil.example"); !strings.Contains(got.body, `location="http://grid.example:81/services/broker"`) || strings.Contains(got.body, "evil") {
		t.Errorf("Host: %s", got.body)
	}
	if got := request("[::1]:81", ""); !strings.Contains(got.body, `location="http://[::1]:81/services/broker"`) {
		t.Errorf("Host: %s", got.body)
	}
	for _, bad := range []string{`a"b`, "a<b", "a:b:c", "-a"} {
		if got := request(bad, ""); got.status != 400 {
			t.Errorf("Host %q: %+v", bad, got)
		}
	}
}

func TestServerShutsDown(t *testing.T) {
	v := start(t, Config{Limits: Limits{Drain: 20 * time.Millisecond}})
	c := NewClient(ClientConfig{})
	defer c.Close()
	broker := wsdl.NewBrokerClient(c, v.url+"/services/broker")
	errs := make(chan error, 1)
	go func() {
		_, err := broker.WaitJob(&wsdl.WaitJob{Id: "forever"})
		errs <- err
	}()
	<-v.grid.polls
	// A connection that never says anything must not hold it up.
	idle, err := net.Dial("tcp", strings.TrimPrefix(v.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	begin := time.Now()
	if err := v.stop(); err != nil {
		t.Errorf("Serve returned %v", err)
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("the shutdown took %s", took)
	}
	if err := <-errs; wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable || !strings.Contains(err.Error(), "shutting down") {
		t.Errorf("the long poll ended with %v", err)
	}
	if _, err := broker.GetJob(&wsdl.GetJob{Id: "x"}); wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable {
		t.Errorf("after the shutdown: %v", err)
	}
}

type guardFunc func(ctx context.Context, r *http.Request, operation string) (context.Context, error)

func (f guardFunc) Guard(ctx context.Context, r *http.Request, operation string) (context.Context, error) {
	return f(ctx, r, operation)
}

func TestGuardSeesEveryRequest(t *testing.T) {
	seen := make(chan string, 10)
	v := start(t, Config{Guard: guardFunc(func(ctx context.Context, r *http.Request, operation string) (context.Context, error) {
		seen <- operation
		if r.Header.Get("X-Name") == "panic" {
			panic("oops")
		}
		if r.Header.Get("X-Name") == "" {
			return ctx, wsdl.NewFault(wsdl.FaultCodeUnauthenticated, "who are you?", "say so")
		}
		return wsdl.WithPrincipal(ctx, wsdl.Principal{Name: r.Header.Get("X-Name")}), nil
	})})
	if got := v.post(t, "broker", "text/xml", envelope11(`<ListJobs xmlns="urn:mvm:1"><rubbish/></ListJobs>`)); got.status != 500 || !strings.Contains(got.body, "<code>unauthenticated</code>") {
		t.Errorf("refused call: %+v", got)
	}
	if op := <-seen; op != "broker/ListJobs" {
		t.Errorf("the guard saw %q", op)
	}
	if got := v.get(t, "/services/broker?wsdl"); got.status != 401 {
		t.Errorf("refused GET: %+v", got)
	}
	if op := <-seen; op != "GET /services/{service}" {
		t.Errorf("the guard saw %q", op)
	}
	if got := v.post(t, "broker", "text/xml", envelope11(`<ListJobs xmlns="urn:mvm:1"/>`), "X-Name", "ada"); got.status != 200 {
		t.Errorf("allowed call: %+v", got)
	}
	if got := v.post(t, "broker", "text/xml", envelope11(`<ListJobs xmlns="urn:mvm:1"/>`), "X-Name", "panic"); got.status != 500 || !strings.Contains(got.body, "<code>internal</code>") || strings.Contains(got.body, "oops") {
		t.Errorf("a guard that panics: %+v", got)
	}
}

func TestMetricsAndLog(t *testing.T) {
	v := start(t, Config{Quiet: []string{"bootstrap/GetBroker", "GET /healthz"}})
	v.Router().HandleFunc("/extra/{name}", func(w http.ResponseWriter, r *http.Request) { panic("oops") }).Methods("GET")
	v.post(t, "bootstrap", "text/xml", envelope11(getBroker))
	v.post(t, "bootstrap", "text/xml", envelope11(`<Nope/>`))
	v.get(t, "/healthz")
	if got := v.get(t, "/extra/x"); got.status != 500 || strings.Contains(got.body, "oops") {
		t.Errorf("a panic in a plain handler: %+v", got)
	}
	got := v.get(t, "/metrics")
	for _, want := range []string{
		`mvm_requests_total{code="ok",operation="GetBroker",service="bootstrap"} 1`,
		`mvm_requests_total{code="invalidRequest",operation="unknown",service="bootstrap"} 1`,
		`mvm_requests_total{code="500",operation="GET /extra/{name}",service=""} 1`,
		`mvm_request_seconds_count{operation="GetBroker",service="bootstrap"} 1`,
		"mvm_requests_in_flight 1", "mvm_request_bytes_total", "go_goroutines", "process_resident_memory_bytes",
	} {
		if !strings.Contains(got.body, want) {
			t.Errorf("no %s in /metrics", want)
		}
	}
	log := v.log.String()
	for _, want := range []string{`"code":"invalidRequest"`, `"fault":"the bootstrap service has no operation`, `"micros":`, `"remote":"127.0.0.1:`, `"panic":"oops"`, "server_test.go", `"operation":"GET /extra/{name}"`} {
		if !strings.Contains(log, want) {
			t.Errorf("no %s in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, `"operation":"GetBroker"`) || strings.Contains(log, "healthz") {
		t.Error("a quiet operation is in the log")
	}
}

// A download may take longer than one write may.
func TestLongDownloads(t *testing.T) {
	v := start(t, Config{})
	path := filepath.Join(t.TempDir(), "f")
	want := strings.Repeat("0123456789abcdef", 1<<18)
	if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
		t.Fatal(err)
	}
	v.Router().HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, path) })
	if got := v.get(t, "/file"); got.body != want {
		t.Errorf("got %d bytes, want %d", len(got.body), len(want))
	}
	v.Router().HandleFunc("/part", func(w http.ResponseWriter, r *http.Request) {
		if n, err := io.CopyN(w, strings.NewReader(want), 3_000_000); n != 3_000_000 || err != nil {
			t.Errorf("copied %d bytes: %v", n, err)
		}
	})
	if got := v.get(t, "/part"); got.body != want[:3_000_000] {
		t.Errorf("got %d bytes, want 3000000", len(got.body))
	}
	r, _ := http.NewRequest("GET", v.url+"/file", nil)
	r.Header.Set("Range", "bytes=3000000-3000015")
	if got := do(t, r); got.status != 206 || got.body != want[3000000:3000016] {
		t.Errorf("a range: %+v", got)
	}
}
