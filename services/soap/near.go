package soap

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// near is a Server in the same process as a Client. Calls to it are requests
// like any other (the same envelopes, checks, Guard, log, metrics and faults) but
// for the network: no connection carries them. A broker that is a worker spends
// half of a small job's SOAP calls on itself.
type near struct {
	base   string // http://host:port/
	host   string // host:port
	server *Server
}

// Near has calls to addresses below base, which is server's own, carried out in
// this process once server serves. Say so before the first call.
//
// A Guard sees them without TLS and with the remote address NearAddress, which
// no call from elsewhere can have.
func (c *Client) Near(base string, server *Server) {
	base = strings.TrimSuffix(base, "/")
	_, host, _ := strings.Cut(base, "://")
	c.near = &near{base + "/", host, server}
}

// NearAddress is the RemoteAddr of requests that came from the same process.
const NearAddress = "near"

// serves tells whether an address is the near server's, and that serves.
func (n *near) serves(address string) (calls context.Context, ok bool) {
	if n == nil || !strings.HasPrefix(address, n.base) {
		return nil, false
	}
	serving := n.server.calls.Load()
	if serving == nil || n.server.stopping.Load() {
		return nil, false // a connection is refused then, or waits
	}
	return *serving, true
}

// answer carries a request out as Serve would one from a connection: with a
// context that has nothing of the caller's but its end. Should the caller give
// up, nobody waits for the handler.
func (n *near) answer(ctx, calls context.Context, address string, header http.Header, body []byte) (*recorder, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	calls, end := context.WithCancel(calls)
	forget := context.AfterFunc(ctx, end)
	r := (&http.Request{
		Method: http.MethodPost, URL: &url.URL{Path: address[len(n.base)-1:]}, Host: n.host,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, RemoteAddr: NearAddress,
		Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}).WithContext(calls)
	w := &recorder{header: http.Header{}}
	done := make(chan bool, 1)
	go func() {
		whole := false
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				panic(p)
			}
			forget()
			end()
			done <- whole
		}()
		n.server.ServeHTTP(w, r)
		whole = true
	}()
	select {
	case whole := <-done:
		if !whole {
			return nil, errors.New("it did not answer")
		}
		return w, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// recorder keeps an answer. It takes as long as nobody's network.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (w *recorder) Header() http.Header { return w.header }

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *recorder) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}

// What http.ResponseController asks for, of no meaning here.
func (w *recorder) EnableFullDuplex() error          { return nil }
func (w *recorder) SetReadDeadline(time.Time) error  { return nil }
func (w *recorder) SetWriteDeadline(time.Time) error { return nil }
