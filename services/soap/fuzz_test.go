package soap

import (
	"bufio"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/wsdl"
)

// Whatever is sent, the answer is well-formed, of a status that was foreseen,
// and never a fault of the server's own.
func FuzzServer(f *testing.F) {
	grid := &fakeGrid{base: func() string { return "http://x" }, jobs: map[string]*wsdl.SubmitJob{}, blobs: map[string][]byte{}}
	var contracts []wsdl.Contract
	for _, c := range []wsdl.Contract{wsdl.BootstrapContract(grid), wsdl.BrokerContract(grid), wsdl.ImageContract(grid), wsdl.QueueContract(grid), wsdl.InformationContract(grid), wsdl.VMContract(nil)} {
		for i := range c.Operations {
			o := &c.Operations[i]
			o.Call = func(context.Context, any) (any, error) {
				return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "reached "+o.Name, "")
			}
		}
		contracts = append(contracts, c)
	}
	server, err := NewServer(Config{Contracts: contracts, Limits: Limits{Body: 1 << 16}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("bootstrap", "text/xml", envelope11(getBroker))
	f.Add("broker", "application/soap+xml;charset=utf-8", envelope12(`<ListJobs xmlns="urn:mvm:1"><limit>5</limit></ListJobs>`))
	f.Add("broker", "text/xml", `<e:Envelope xmlns:e="`+namespace11+`"><e:Header><a:b xmlns:a="urn:a" e:mustUnderstand="1"/></e:Header><e:Body/></e:Envelope>`)
	f.Add("image", "text/xml", envelope11(`<PutBlob xmlns="urn:mvm:1"><digest/><size>1</size><data>QQ==</data></PutBlob>`))
	f.Add("queue", "text/xml", `<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>`)
	f.Fuzz(func(t *testing.T, service, media, body string) {
		r := httptest.NewRequest("POST", "http://x/services/x", strings.NewReader(body))
		r.URL.Path = "/services/" + service
		r.Header.Set("Content-Type", media)
		w := httptest.NewRecorder()
		server.ServeHTTP(w, r)
		said := w.Body.String()
		switch w.Code {
		case 301, 404, 413, 415: // plain text
			return
		case 400, 500:
			if strings.Contains(said, "<code>internal</code>") || !strings.Contains(said, "Fault>") {
				t.Fatalf("%d: %s", w.Code, said)
			}
		default:
			t.Fatalf("%d: %s", w.Code, said)
		}
		if err := xml.Unmarshal([]byte(said), new(struct{})); err != nil {
			t.Fatalf("%v: %s", err, said)
		}
	})
}

// Whatever a server answers, the client neither panics nor takes it for more
// than it is.
func FuzzClient(f *testing.F) {
	c := NewClient(ClientConfig{Strict: true})
	f.Add([]byte(envelope11(`<GetJobResponse xmlns="urn:mvm:1"><job><id>x</id></job></GetJobResponse>`)))
	f.Add([]byte(envelope11(`<e:Fault><faultcode>e:Client</faultcode><faultstring>no</faultstring><detail><GridFault xmlns="urn:mvm:1"><code>busy</code><message>m</message></GridFault></detail></e:Fault>`)))
	f.Add([]byte(envelope12(`<e:Fault><e:Code><e:Value>e:Receiver</e:Value></e:Code><e:Reason><e:Text xml:lang="en">no</e:Text></e:Reason></e:Fault>`)))
	f.Fuzz(func(t *testing.T, data []byte) {
		response := new(wsdl.GetJobResponse)
		err := c.answer("GetJob", data, response)
		var fault *wsdl.Fault
		if err == nil && response.Job == nil {
			t.Fatal("an answer without its content was taken")
		}
		if errors.As(err, &fault) && (fault.Code == nil || wsdl.CodeOf(err) == "") {
			t.Fatalf("a fault without a code: %+v", fault)
		}
	})
}

var _ http.Handler = (*Server)(nil)

// Whatever bytes come in on a connection, whole HTTP answers go out, of
// statuses that were foreseen, and others are served afterwards. They are the
// same whether a conversation begins the connection or net/http.
func FuzzHTTP(f *testing.F) {
	grid := &fakeGrid{base: func() string { return "http://x" }, jobs: map[string]*wsdl.SubmitJob{}, blobs: map[string][]byte{}}
	// Not TCP: the ends of so many connections would use up the ports.
	serve := func(wrap func(net.Listener) net.Listener) (path string) {
		server, err := NewServer(Config{Contracts: []wsdl.Contract{wsdl.BootstrapContract(grid)}, Limits: Limits{Body: 1 << 16}})
		if err != nil {
			f.Fatal(err)
		}
		path = filepath.Join(f.TempDir(), "socket")
		listener, err := net.Listen("unix", path)
		if err != nil {
			f.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- server.Serve(ctx, wrap(listener)) }()
		f.Cleanup(func() {
			stop()
			if err := <-done; err != nil {
				f.Error(err)
			}
		})
		return path
	}
	plain := serve(func(l net.Listener) net.Listener { return l })
	mute := serve(func(l net.Listener) net.Listener { return muteListener{l} })
	type answer struct {
		status int
		said   string
		cut    bool
	}
	exchange := func(t *testing.T, path string, sent []byte) (answers []answer) {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		go func() {
			_, _ = conn.Write(sent)
			_ = conn.(*net.UnixConn).CloseWrite()
		}()
		from := bufio.NewReader(conn)
		for {
			if _, err := from.Peek(1); err != nil {
				var late net.Error
				if errors.As(err, &late) && late.Timeout() {
					t.Fatal("the connection stays open")
				}
				return answers
			}
			got, err := http.ReadResponse(from, nil)
			if err != nil {
				t.Fatalf("no HTTP: %v", err)
			}
			said, err := io.ReadAll(got.Body)
			// net/http gives up on a head that is no HTTP with what followed
			// it unread, and the kernel tells the sender so.
			cut := got.StatusCode == http.StatusBadRequest && errors.Is(err, syscall.ECONNRESET)
			if err != nil && !cut || strings.Contains(string(said), "<code>internal</code>") {
				t.Fatalf("%s, %v: %s", got.Status, err, said)
			}
			got.Header.Del("Date")
			text := fmt.Sprint(got.Header, string(said))
			if id := got.Header.Get("X-Request-Id"); id != "" {
				text = strings.ReplaceAll(text, id, "ID")
			}
			if answers = append(answers, answer{got.StatusCode, text, cut}); cut {
				return answers
			}
		}
	}
	call := envelope11(getBroker)
	head := "POST /services/bootstrap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\n"
	length := fmt.Sprintf("Content-Length: %d\r\n", len(call))
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(call), call)
	f.Add([]byte(head + length + "\r\n" + call + head + length + "\r\n" + call))
	f.Add([]byte(head + length + "X-Request-Id: a\r\n\r\n" + call + "\r\n" + head + length + "\r\n" + call + "GET"))
	f.Add([]byte(head + length + "\r\n" + call + "\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + head + length + "\r\n" + call))
	f.Add([]byte(head + "Transfer-Encoding: chunked\r\n\r\n" + chunked))
	f.Add([]byte(head + length + "Transfer-Encoding: chunked\r\n\r\n" + chunked + "GET /services HTTP/1.1\r\nHost: y\r\n\r\n"))
	f.Add([]byte(head + length + length + "Expect: 100-continue\r\n\r\n" + call))
	f.Add([]byte("GET /services/bootstrap?wsdl HTTP/1.0\r\n\r\n"))
	f.Add([]byte("GET http://a/services/bootstrap?xsd=../x HTTP/1.1\nHost : x\n a\n\n"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		if strings.HasPrefix(strings.ToUpper(string(sent)), "HEAD") || strings.Contains(string(sent), "HEAD") {
			return // whose answer has no body, which only who asked knows
		}
		ours := exchange(t, plain, sent)
		for _, a := range ours {
			switch a.status {
			case 100, 200, 301, 400, 404, 405, 408, 413, 415, 417, 431, 500, 501, 503, 505:
			default:
				t.Fatalf("%d", a.status)
			}
		}
		theirs := exchange(t, mute, sent)
		for i := range max(len(ours), len(theirs)) {
			if i >= len(ours) || i >= len(theirs) {
				t.Fatalf("%d answers, and %d of net/http", len(ours), len(theirs))
			}
			if ours[i].status != theirs[i].status || !ours[i].cut && !theirs[i].cut && ours[i].said != theirs[i].said {
				t.Fatalf("%+v, and of net/http %+v", ours[i], theirs[i])
			}
		}
		for _, path := range []string{plain, mute} {
			if after := exchange(t, path, []byte("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")); len(after) != 1 || after[0].status != 200 {
				t.Fatalf("afterwards: %v", after)
			}
		}
	})
}
