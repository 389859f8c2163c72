package soap

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// conversation is a connection on which nothing but plain requests came so far
// (readHead). Those it answers as ServeHTTP would, to the byte, at half of the
// cost: on the one goroutine that reads, without a header map, a reader, a
// writer or a context of net/http's, and without a second goroutine that waits
// for the caller to hang up, unless the call's context is asked. With the first
// request that is not plain, all that was not answered is handed over to
// net/http, which keeps the connection from then on.
type conversation struct {
	*connection
	server *Server
	crew   *crew
	others *handovers
	conn   net.Conn
	raw    syscall.RawConn
	calls  context.Context // of all calls; it ends at a shutdown
	remote string
	begun  time.Time

	number  int64        // in its crew
	resting atomic.Bool  // nobody carries it on; who ends that has all but restBy to itself
	restBy  atomic.Int64 // ns since the crew began

	in      []byte  // what arrived and was not read yet
	kept    bool    // something was answered
	trimmed bool    // and line ends that do not count were dropped since
	patient bool    // a part of a request is there
	member  *member // who carries it on
	buffer  []byte  // that one's

	// What raw is given, made once.
	get func(fd uintptr) bool // reads into in
	got int
	err error

	writeBy time.Time // a deadline costs as much as a small system call: it is set for longer than it must be

	// The last media type, for callers do not change theirs.
	media   string
	version version
}

const (
	firstRead = 16 << 10               // bytes that are read at once
	headRoom  = 384                    // bytes of an answer's head at most
	inTime    = 100 * time.Millisecond // for a plain request to arrive whole; net/http has more patience
	rest      = time.Second            // by which a deadline may be late
)

// newConversation returns one that has not begun.
func (s *Server) newConversation(conn net.Conn, raw syscall.RawConn, k *connection, calls context.Context, w *crew, others *handovers) *conversation {
	c := &conversation{connection: k, server: s, crew: w, others: others, conn: conn, raw: raw, calls: calls, remote: conn.RemoteAddr().String(), begun: time.Now()}
	c.restBy.Store(w.since(c.begun.Add(s.limits.Header)))
	c.get = func(fd uintptr) bool {
		for {
			c.got, c.err = syscall.Read(int(fd), c.in[len(c.in):cap(c.in)])
			if c.err != syscall.EINTR {
				return true
			}
		}
	}
	return c
}

// What becomes of a conversation.
type outcome int

const (
	over   outcome = iota
	rests          // until more comes
	handed         // to net/http
)

// goOn carries the conversation on for as long as there is something to answer.
func (c *conversation) goOn(m *member, buffer []byte, r *registrar) {
	c.member, c.buffer = m, buffer
	switch c.converse() {
	case rests:
		if len(c.in) == 0 {
			c.in = nil
		} else if cap(c.in) <= len(buffer) {
			c.in = bytes.Clone(c.in)
		}
		c.member, c.buffer = nil, nil
		if !c.crew.rest(c, r, syscall.EPOLL_CTL_MOD) {
			c.end()
		}
	case handed:
		c.in = bytes.Clone(c.in)
		c.handOver()
	case over:
		c.end()
	}
}

// tired is called when nothing came for too long.
func (c *conversation) tired() {
	switch {
	case c.crew.since(time.Now()) < c.restBy.Load():
		// It was carried on between the look at its time and now.
		if !c.crew.again(c) {
			c.end()
		}
	case c.patient:
		c.handOver()
	default:
		c.end()
	}
}

// end ends the connection.
func (c *conversation) end() {
	c.crew.all.Delete(c.number)
	c.server.connections.end(c.conn)
}

// handOver leaves the connection to net/http, with what was not answered.
func (c *conversation) handOver() {
	c.crew.release(c)
	_ = c.conn.SetDeadline(time.Time{})
	r := &replayed{Conn: c.conn, said: c.in}
	if !c.kept {
		r.first = c.begun.Add(c.server.limits.Header)
	}
	if !c.others.give(r) {
		c.server.connections.end(c.conn)
	}
}

// converse reads what there is and answers the plain requests in it.
func (c *conversation) converse() (what outcome) {
	s := c.server
	defer func() {
		if p := recover(); p != nil {
			s.config.Log.WithFields(logrus.Fields{"remote": c.remote, "panic": p, "stack": string(debug.Stack())}).Error("panic")
			what = over
		}
	}()
	if cap(c.in) <= len(c.buffer) {
		c.in = append(c.buffer[:0], c.in...)
	}
	if err := c.raw.Read(c.get); err != nil {
		return over
	}
	switch {
	case s.stopping.Load():
		return over
	case c.err == syscall.EAGAIN:
		return rests
	case c.err != nil, c.got == 0:
		// The end. What there is before it net/http judges.
		if len(c.in) == 0 || c.kept && !c.trimmed {
			return over
		}
		return handed
	}
	c.in = c.in[:len(c.in)+c.got]
	for {
		if c.kept && !c.trimmed {
			// As net/http does: a few bytes are no request yet, and line ends
			// after a POST are none of it.
			if len(c.in) < 4 {
				return rests
			}
			c.drop(4 - len(bytes.TrimLeft(c.in[:4], "\r\n")))
			c.trimmed = true
		}
		h, found := c.readHead(c.in)
		size := len(c.in) + 1
		if found == whole {
			size = h.size + h.length
		}
		if found == odd || found == part && size > cap(c.in) {
			return handed
		}
		if len(c.in) < size {
			if size > cap(c.in) {
				c.in = append(make([]byte, 0, size), c.in...)
			}
			if !c.patient {
				c.patient = true
				c.restBy.Store(c.crew.since(time.Now().Add(inTime)))
			}
			return rests
		}
		c.patient = false
		ended, ok := c.call(h)
		if !ok || s.stopping.Load() {
			return over
		}
		c.enter(phaseIdle)
		c.kept, c.trimmed = true, false
		c.restBy.Store(c.crew.since(ended.Add(s.limits.Idle)))
	}
}

// drop forgets the first bytes, which were answered.
func (c *conversation) drop(bytes int) {
	left := c.in[bytes:]
	if cap(c.in) > len(c.buffer) && len(left) < len(c.buffer) {
		c.in = append(c.buffer[:0], left...)
		return
	}
	c.in = c.in[:copy(c.in[:cap(c.in)], left)]
}

// call carries out a call and sends its answer. False ends the connection.
func (c *conversation) call(h head) (ended time.Time, ok bool) {
	s := c.server
	s.flights.begin()
	defer s.flights.end()
	c.enter(phaseWorking)
	x := &exchange{server: s, connection: c.connection, method: http.MethodPost, remote: c.remote, service: h.service.contract.Name, operation: "unknown", started: time.Now()}
	x.life = life{base: c.calls, conn: c.conn, asker: c.member}
	x.Context = &x.life
	if x.id = string(h.id); !saneRequestID(x.id) {
		x.id = newRequestID()
	}
	s.metrics.flight.Inc()
	x.in.n = int64(h.length)
	answer := take[bytes.Buffer](&s.buffers)
	defer recycle(&s.buffers, answer)
	status, media := c.answer(x, h, answer)
	c.in = append(c.in, x.life.end()...)
	x.out.status, x.out.n = status, int64(answer.Len()-headRoom)
	last := s.stopping.Load()
	data := x.putHead(answer.Bytes(), media, last)
	c.enter(phaseAnswering)
	if len(data) <= smallBody {
		// The caller may look for what is said of its call once it has the answer.
		x.finish(false)
		return x.started.Add(x.took), c.send(data, x.started.Add(x.took)) && !last
	}
	ok = c.send(data, time.Now())
	x.finish(false)
	return x.started.Add(x.took), ok && !last
}

// answer carries out a call and writes the answer's body behind the room for
// its head.
func (c *conversation) answer(x *exchange, h head, answer *bytes.Buffer) (status int, media string) {
	defer func() {
		if p := recover(); p != nil {
			x.panicked(p)
			answer.Reset()
			answer.Write(make([]byte, headRoom))
			status, media = x.broken(answer, "a fault inside the node; its log says more under request id "+x.id)
		}
	}()
	answer.Write(make([]byte, headRoom))
	version, response, err := c.perform(x, h)
	return x.settle(answer, version, response, err)
}

// perform judges and carries out a call, as Server.perform does.
func (c *conversation) perform(x *exchange, h head) (version version, response any, err error) {
	defer x.fell(&err)
	version = h.version // also after a panic
	ctx, operation, version, request, err := c.decode(x, h)
	if err != nil {
		return version, nil, err
	}
	response, err = operation.Call(ctx, request)
	return version, response, err
}

// decode decodes a request, which is then forgotten.
func (c *conversation) decode(x *exchange, h head) (context.Context, *operation, version, any, error) {
	defer c.drop(h.size + h.length)
	x.head = c.in[:h.size]
	return c.server.decode(x, h.service, h.version, c.in[h.size:h.size+h.length])
}

// send sends a part of an answer after the other, with a time for each.
func (c *conversation) send(data []byte, now time.Time) bool {
	for {
		if by := now.Add(c.server.limits.Write); by.After(c.writeBy) {
			c.writeBy = by.Add(rest)
			_ = c.conn.SetWriteDeadline(c.writeBy)
		}
		n, err := c.conn.Write(data[:min(len(data), 1<<20)])
		if data = data[n:]; err != nil || len(data) == 0 {
			return err == nil
		}
		now = time.Now()
	}
}

// putHead puts the head of an answer into the end of the room that is left for
// it, as net/http writes it, and returns the answer from there on.
func (x *exchange) putHead(answer []byte, media string, last bool) []byte {
	var room [headRoom]byte
	b := append(room[:0], "HTTP/1.1 "...)
	b = strconv.AppendInt(b, int64(x.out.status), 10)
	b = append(b, ' ')
	b = append(b, http.StatusText(x.out.status)...)
	b = append(b, "\r\nContent-Length: "...)
	b = strconv.AppendInt(b, x.out.n, 10)
	b = append(b, "\r\nContent-Type: "...)
	b = append(b, media...)
	b = append(b, "\r\nX-Content-Type-Options: nosniff\r\nX-Request-Id: "...)
	b = append(b, x.id...)
	b = append(b, "\r\nDate: "...)
	b = append(b, x.server.date(time.Now())...)
	if last {
		b = append(b, "\r\nConnection: close"...)
	}
	b = append(b, "\r\n\r\n"...)
	answer = answer[headRoom-len(b):]
	copy(answer, b)
	return answer
}

// second is a moment as HTTP writes it.
type second struct {
	unix int64
	text string
}

// date formats a second once.
func (s *Server) date(now time.Time) string {
	d := s.second.Load()
	if d == nil || d.unix != now.Unix() {
		d = &second{now.Unix(), now.UTC().Format(http.TimeFormat)}
		s.second.Store(d)
	}
	return d.text
}

// asked is the request as net/http sees it, for the Guard.
func (x *exchange) asked() (*http.Request, error) {
	if x.request != nil {
		return x.request, nil
	}
	r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(x.head)))
	if err != nil {
		return nil, err
	}
	r.Body = http.NoBody
	r.RemoteAddr = x.remote
	x.request = r.WithContext(x)
	return x.request, nil
}

// life is the context of a call that came in a conversation. Nobody listens
// whether its caller hangs up until it is asked, and the call has taken so long
// that it may matter: most calls are over by then.
type life struct {
	base  context.Context
	conn  net.Conn
	asker *member // who carries the call out; nil in tests

	mu     sync.Mutex      // guards what follows
	over   bool            // the call has ended
	ctx    context.Context // nil until somebody asks
	cancel context.CancelFunc
	timer  *time.Timer
	looked chan struct{} // closed when the listener is done; nil while there is none
	next   [1]byte       // of the next request, once the listener is done
	n      int
}

// noMatter is for how long a call goes on although its caller may be gone.
const noMatter = 10 * time.Millisecond

func (l *life) asked() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		l.ctx, l.cancel = context.WithCancel(l.base)
		if l.over {
			l.cancel()
		} else {
			l.timer = time.AfterFunc(noMatter, l.listen)
			if l.asker != nil {
				l.asker.crew.without(l.asker)
			}
		}
	}
	return l.ctx
}

// Deadline implements context.Context.
func (l *life) Deadline() (time.Time, bool) { return l.base.Deadline() }

// Done implements context.Context.
func (l *life) Done() <-chan struct{} { return l.asked().Done() }

// Err implements context.Context.
func (l *life) Err() error { return l.asked().Err() }

// Value implements context.Context. It makes no use of Done.
func (l *life) Value(key any) any {
	l.mu.Lock()
	ctx := l.ctx
	l.mu.Unlock()
	if ctx == nil {
		ctx = l.base
	}
	return ctx.Value(key)
}

// listen reads on until the caller hangs up, or says something else, or the
// call is over.
func (l *life) listen() {
	l.mu.Lock()
	if l.over {
		l.mu.Unlock()
		return
	}
	l.looked = make(chan struct{})
	defer close(l.looked)
	l.mu.Unlock()
	n, err := l.conn.Read(l.next[:])
	if l.n = n; n == 0 && !errors.Is(err, os.ErrDeadlineExceeded) {
		l.cancel()
	}
}

// end ends the context and returns what came meanwhile.
func (l *life) end() (next []byte) {
	l.mu.Lock()
	l.over = true
	looked := l.looked
	if l.timer != nil {
		l.timer.Stop()
		l.cancel()
	}
	l.mu.Unlock()
	if looked == nil {
		return nil
	}
	_ = l.conn.SetReadDeadline(time.Unix(1, 0))
	<-looked
	_ = l.conn.SetReadDeadline(time.Time{})
	return l.next[:l.n]
}
