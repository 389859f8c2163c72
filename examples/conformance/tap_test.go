package conformance

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
)

// keptBody is how many bytes of a body are kept: enough for all but blobs.
const keptBody = 128 << 10

// exchange is one HTTP request and its answer, as they went over the wire.
type exchange struct {
	request      *http.Request
	requestBody  []byte // nil if it was larger than is kept
	response     *http.Response
	responseBody []byte
}

// records is what went through taps. It may be used concurrently.
type records struct {
	mu        sync.Mutex // guards exchanges
	exchanges []exchange
}

func (r *records) all() []exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exchanges[:len(r.exchanges):len(r.exchanges)]
}

// tap listens for target and passes every byte on, both ways, as it comes. It
// returns where it listens.
func (r *records) tap(t *testing.T, target string) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			from, err := listener.Accept()
			if err != nil {
				return
			}
			go r.carry(from.(*net.TCPConn), target)
		}
	}()
	return listener.Addr().String()
}

func (r *records) carry(from *net.TCPConn, target string) {
	defer from.Close()
	c, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	to := c.(*net.TCPConn)
	defer to.Close()
	asked, answered := newStream(), newStream()
	go r.read(bufio.NewReader(asked), bufio.NewReader(answered))
	var both sync.WaitGroup
	both.Go(func() { pass(to, from, asked) })
	both.Go(func() { pass(from, to, answered) })
	both.Wait()
}

func pass(to, from *net.TCPConn, copied *stream) {
	defer copied.Close()
	defer to.CloseWrite()
	io.Copy(to, io.TeeReader(from, copied))
}

// read takes a connection's exchanges out of its bytes.
func (r *records) read(asked, answered *bufio.Reader) {
	for {
		x := exchange{}
		var err error
		if x.request, err = http.ReadRequest(asked); err != nil {
			return
		}
		if x.requestBody, err = keep(x.request.Body); err != nil {
			return
		}
		for x.response == nil || x.response.StatusCode/100 == 1 { // 100 Continue comes before
			if x.response, err = http.ReadResponse(answered, x.request); err != nil {
				return
			}
		}
		if x.responseBody, err = keep(x.response.Body); err != nil {
			return
		}
		r.mu.Lock()
		r.exchanges = append(r.exchanges, x)
		r.mu.Unlock()
	}
}

func keep(body io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(body, keptBody+1))
	if err == nil && len(data) > keptBody {
		_, err = io.Copy(io.Discard, body)
		data = nil
	}
	return data, err
}

// stream is a pipe whose writer never waits: what watches a connection must not
// hold it up.
type stream struct {
	mu     sync.Mutex // guards what follows
	more   *sync.Cond
	data   bytes.Buffer
	closed bool
}

func newStream() *stream {
	s := &stream{}
	s.more = sync.NewCond(&s.mu)
	return s
}

func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.more.Signal()
	return s.data.Write(p)
}

func (s *stream) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.data.Len() == 0 && !s.closed {
		s.more.Wait()
	}
	return s.data.Read(p)
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.more.Signal()
	s.closed = true
	return nil
}
