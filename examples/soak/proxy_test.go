package soak

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// proxy stands before a node and treats the calls to it as a bad network does.
// Bytes of blobs (GET) pass untouched.
type proxy struct {
	name    string
	address string // host:port
	target  string
	chance  *chance
	client  *http.Client
	life    context.Context // ends with the test
	copies  sync.WaitGroup  // late copies on their way

	trouble atomic.Uint64 // calls in 1000 that something happens to
	fates   [fates]atomic.Int64

	mu   sync.Mutex // guards seen
	seen func(operation string, answered bool)
}

// What can happen to a call.
const (
	passes     = iota
	isLost     // before it arrives
	answerLost // it arrives, and the caller never learns
	isDelayed  // both it and those behind it take another order
	isTwice    // at the same time
	isRepeated // a copy of it arrives once more, after seconds
	fates
)

var fateNames = [fates]string{"passed", "lost", "answer lost", "delayed", "twice at once", "repeated later"}

func newProxy(t testing.TB, name, target string, c *chance) *proxy {
	t.Helper()
	address := freePort(t)
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	life, end := context.WithCancel(context.Background())
	p := &proxy{name: name, address: address, target: target, chance: c, life: life,
		client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64, IdleConnTimeout: 10 * time.Second, DisableCompression: true}}}
	server := &http.Server{Handler: p}
	go server.Serve(listener)
	t.Cleanup(func() {
		end()
		server.Close()
		p.copies.Wait()
		p.client.CloseIdleConnections()
	})
	return p
}

// watch has seen called for each call: when it comes, and when it was answered.
func (p *proxy) watch(seen func(operation string, answered bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = seen
}

func (p *proxy) tell(operation string, answered bool) {
	p.mu.Lock()
	seen := p.seen
	p.mu.Unlock()
	if seen != nil {
		seen(operation, answered)
	}
}

var bodyName = regexp.MustCompile(`<(?:\w+:)?Body[^>]*>\s*<(?:\w+:)?(\w+)`)

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	operation := ""
	if m := bodyName.FindSubmatch(body[:min(len(body), 4096)]); m != nil {
		operation = string(m[1])
	}
	fate := passes
	if r.Method == http.MethodPost && p.chance.n(1000) < int(p.trouble.Load()) {
		fate = 1 + p.chance.n(fates-1)
	}
	p.fates[fate].Add(1)
	p.tell(operation, false)
	switch fate {
	case isLost:
		panic(http.ErrAbortHandler)
	case answerLost:
		if response, err := p.forward(r.Context(), r, body); err == nil {
			response.Body.Close()
		}
		panic(http.ErrAbortHandler)
	case isDelayed:
		p.sleep(p.chance.between(50*time.Millisecond, 2*time.Second))
	case isTwice:
		p.again(r, body, 0)
	case isRepeated:
		p.again(r, body, p.chance.between(100*time.Millisecond, 8*time.Second))
	}
	response, err := p.forward(r.Context(), r, body)
	if err != nil {
		panic(http.ErrAbortHandler) // as the node itself would
	}
	defer response.Body.Close()
	p.tell(operation, true)
	for name, values := range response.Header {
		w.Header()[name] = values
	}
	w.WriteHeader(response.StatusCode)
	if _, err := io.Copy(w, response.Body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

func (p *proxy) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-p.life.Done():
	}
}

// again sends a copy of a call that nobody waits for.
func (p *proxy) again(r *http.Request, body []byte, after time.Duration) {
	p.copies.Go(func() {
		p.sleep(after)
		ctx, cancel := context.WithTimeout(p.life, 30*time.Second)
		defer cancel()
		if response, err := p.forward(ctx, r, body); err == nil {
			io.Copy(io.Discard, response.Body)
			response.Body.Close()
		}
	})
}

func (p *proxy) forward(ctx context.Context, r *http.Request, body []byte) (*http.Response, error) {
	u := *r.URL
	u.Scheme, u.Host = "http", p.target
	request, err := http.NewRequestWithContext(ctx, r.Method, u.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header = r.Header.Clone()
	return p.client.Do(request)
}
