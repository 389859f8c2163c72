// Package link carries many connections over one byte pipe between a VM's host
// and its guest: a virtio-serial port, which has no beginning and no end. The
// guest may be in the middle of a word to a host that is no more (the node was
// killed, the VM was cloned, restored or moved), so each host begins a session
// of its own, which the guest recognises wherever in the stream it stands.
//
// What always holds: bytes of one session never reach another; when a session
// ends, all its connections do. Within a session yamux has the streams.
//
// It must never trust what comes out of a guest: all is bounded and checked.
package link

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/yamux"
)

// A session begins with the host's word: as many zeros as the guest may still
// take for the rest of an old frame, then hail and the session's number. The
// guest, which finds it by looking at every byte where no frame begins, answers
// with echo and the number; what the host reads before that is an old session's.
// After it, either side sends frames: mark, u16 length, u32 session, payload;
// numbers are big-endian.
//
// A host may have something to say before all else, which the guest is to take
// while there is no session yet: in a clone whose instructions are translated, all
// that it does for the first time costs it much, and a connection with a call on it
// is long. Such a hail is greet, the number, u16 length, and the first word; the
// answer is heard, the number, u16 length, and what the guest has against it. The
// same number's plain hail follows, for guests that know of no first word; to the
// others it is the session that they have.
const (
	hail     = "\xd3MVM-LINK-HAIL\x9a\x01"
	echo     = "\xd3MVM-LINK-ECHO\x9a\x01"
	greet    = "\xd3MVM-LINK-HAIL\x9a\x02"
	heard    = "\xd3MVM-LINK-ECHO\x9a\x02"
	firstMax = 16 << 10 // bytes of a first word
	mark     = "ML"
	frameMax = 32 << 10
	headSize = 8
	syncSize = len(hail) + 4
	staleMax = 16 << 20       // bytes of an old session that the host reads past
	patience = 24 * time.Hour // of one word to a guest that is stopped
)

// ErrOver is what is wrong with a session that a newer one has replaced.
var ErrOver = errors.New("the host has begun another session")

// Session is one host's time with the guest.
type Session struct {
	streams *yamux.Session
	framed  *framed
}

// Open makes a connection to the other side, which must begin with a word.
func (s *Session) Open() (net.Conn, error) { return s.streams.Open() }

// Agent makes a connection from the host to the guest's agent.
func (s *Session) Agent(ctx context.Context) (net.Conn, error) {
	return s.begin(ctx, word{To: toAgent})
}

// begin makes a connection that says what it is for. A guest that is stopped
// takes some of them before they wait.
func (s *Session) begin(ctx context.Context, w word) (net.Conn, error) {
	type opened struct {
		conn net.Conn
		err  error
	}
	begun := make(chan opened, 1)
	go func() {
		conn, err := s.Open()
		if err == nil {
			if err = tell(conn, w); err != nil {
				_ = conn.Close()
			}
		}
		begun <- opened{conn, err}
	}()
	select {
	case o := <-begun:
		return o.conn, o.err
	case <-ctx.Done():
		go func() {
			if o := <-begun; o.err == nil {
				_ = o.conn.Close()
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// Accept waits for one that the other side makes.
func (s *Session) Accept() (net.Conn, error) { return s.streams.Accept() }

// Ended is closed when the session is over.
func (s *Session) Ended() <-chan struct{} { return s.streams.CloseChan() }

// Close ends the session with all its connections; the host's pipe as well.
func (s *Session) Close() error { return s.streams.Close() }

func newSession(f *framed, host bool) (*Session, error) {
	config := yamux.DefaultConfig()
	config.LogOutput = io.Discard
	config.AcceptBacklog = 64 // what a guest may open before this side looks
	// A guest may be stopped for an hour, and then go on as if nothing had been: no
	// time ends a session. That QEMU is gone shows as end of file.
	config.EnableKeepAlive = false
	config.ConnectionWriteTimeout = patience
	config.StreamOpenTimeout = 0
	side := yamux.Server
	if host {
		side = yamux.Client
	}
	streams, err := side(f, config)
	if err != nil {
		return nil, err
	}
	return &Session{streams: streams, framed: f}, nil
}

// Begin begins a session from the host's side. The pipe is closed with the
// session, and when ctx ends before the guest has answered.
func Begin(ctx context.Context, pipe io.ReadWriteCloser) (*Session, error) {
	s, _, err := meet(ctx, pipe, nil)
	return s, err
}

// BeginWith is Begin with a first word, which must be something. taken is false
// for a guest that knows of none: it has not got it. The error is a *RefusedError
// where the guest has got it and has something against it.
func BeginWith(ctx context.Context, pipe io.ReadWriteCloser, first []byte) (s *Session, taken bool, err error) {
	if len(first) == 0 || len(first) > firstMax {
		_ = pipe.Close()
		return nil, false, fmt.Errorf("begin a session on the guest's link: a first word of %d bytes: it has 1 to %d", len(first), firstMax)
	}
	return meet(ctx, pipe, first)
}

func meet(ctx context.Context, pipe io.ReadWriteCloser, first []byte) (s *Session, taken bool, err error) {
	var number [4]byte
	_, _ = rand.Read(number[:])
	opening := make([]byte, frameMax)
	if first != nil {
		opening = append(append(opening, greet...), number[:]...)
		opening = append(binary.BigEndian.AppendUint16(opening, uint16(len(first))), first...)
	}
	opening = append(append(opening, hail...), number[:]...)
	stop := context.AfterFunc(ctx, func() { _ = pipe.Close() })
	defer stop()
	reader := bufio.NewReaderSize(pipe, frameMax+headSize)
	failed := make(chan error, 1)
	go func() { // beside the reading: a guest in the middle of a word reads when it was heard
		_, err := pipe.Write(opening)
		failed <- err
	}()
	which, err := find(reader, append([]byte(echo), number[:]...), append([]byte(heard), number[:]...))
	taken = which == 1
	if err == nil && taken {
		err = objection(reader)
	}
	var refused *RefusedError
	if err == nil {
		err = <-failed
	}
	if !stop() && !errors.As(err, &refused) {
		return nil, false, fmt.Errorf("the guest does not answer on its link: %w", context.Cause(ctx))
	}
	if err != nil {
		_ = pipe.Close()
		return nil, taken, fmt.Errorf("begin a session on the guest's link: %w", err)
	}
	s, err = newSession(&framed{pipe: pipe, reader: reader, session: binary.BigEndian.Uint32(number[:]), host: true}, true)
	return s, taken, err
}

// find reads up to and with one of two words of the same length, and says which.
func find(reader *bufio.Reader, words ...[]byte) (which int, err error) {
	var window []byte
	for range staleMax {
		b, err := reader.ReadByte()
		if err != nil {
			return 0, err
		}
		if window = append(window, b); len(window) > len(words[0]) {
			window = window[1:]
		}
		for which, word := range words {
			if bytes.Equal(window, word) {
				return which, nil
			}
		}
	}
	return 0, fmt.Errorf("the guest sent %d bytes and no answer", staleMax)
}

// objection reads what the guest has against the first word.
func objection(reader io.Reader) error {
	var length [2]byte
	if _, err := io.ReadFull(reader, length[:]); err != nil {
		return err
	}
	text := make([]byte, min(int(binary.BigEndian.Uint16(length[:])), wordMax))
	if _, err := io.ReadFull(reader, text); err != nil || len(text) == 0 {
		return err
	}
	return &RefusedError{string(text)}
}

// Serve takes part in one session after another from the guest's side: each is
// handed to handle, in a goroutine of its own, and closed when the next begins.
// first takes the first words of those that have one, or says what is against it;
// nil takes none. It returns when the pipe fails.
func Serve(pipe io.ReadWriteCloser, first func([]byte) error, handle func(*Session)) error {
	g := &guest{pipe: pipe, first: first, reader: bufio.NewReaderSize(pipe, frameMax+headSize)}
	defer g.over(io.ErrClosedPipe)
	for {
		word, err := g.reader.Peek(len(mark))
		if err != nil {
			return err
		}
		if g.current != nil && string(word) == mark && g.frame() {
			continue
		}
		begun, err := g.hailed()
		if err != nil {
			return err
		}
		if begun != nil {
			go handle(begun)
		}
	}
}

// guest is the reading side in the guest: one goroutine, which gives each frame
// to the session that it is of.
type guest struct {
	pipe    io.ReadWriteCloser
	reader  *bufio.Reader
	first   func([]byte) error
	current *framed
	session *Session
	greeted bool // current has begun with a first word, and its plain hail is to come
}

// frame takes one frame of the current session; false: what is there is none.
func (g *guest) frame() bool {
	head, err := g.reader.Peek(headSize)
	if err != nil {
		return false
	}
	length := int(binary.BigEndian.Uint16(head[2:]))
	if length == 0 || length > frameMax || binary.BigEndian.Uint32(head[4:]) != g.current.session {
		return false
	}
	payload := make([]byte, length)
	_, _ = g.reader.Discard(headSize)
	if _, err := io.ReadFull(g.reader, payload); err != nil {
		return false
	}
	g.current.give(payload)
	return true
}

// hailed moves past a hail, which begins a session, or on to where one or a frame
// may begin.
func (g *guest) hailed() (*Session, error) {
	word, err := g.reader.Peek(1)
	if err != nil {
		return nil, err
	}
	if word[0] == hail[0] {
		if word, err = g.reader.Peek(syncSize); err != nil {
			return nil, err
		}
	}
	var kind string
	if len(word) == syncSize {
		kind = string(word[:len(hail)])
	}
	if kind != hail && (kind != greet || g.first == nil) {
		here, _ := g.reader.Peek(g.reader.Buffered())
		_, err := g.reader.Discard(1 + nothing(here[1:]))
		return nil, err
	}
	number := bytes.Clone(word[len(hail):])
	_, _ = g.reader.Discard(syncSize)
	if kind == hail && g.current != nil && g.greeted && g.current.session == binary.BigEndian.Uint32(number) {
		g.greeted = false
		return nil, nil
	}
	g.over(ErrOver)
	g.greeted = kind == greet
	answer := append([]byte(echo), number...)
	if kind == greet {
		against, err := g.hear()
		if err != nil {
			return nil, err
		}
		answer = append(append([]byte(heard), number...), against...)
	}
	if _, err := g.pipe.Write(answer); err != nil {
		return nil, err
	}
	g.current = newFed(g.pipe, binary.BigEndian.Uint32(number))
	g.session, err = newSession(g.current, false)
	return g.session, err
}

// hear takes a first word, and gives the end of the answer.
func (g *guest) hear() ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(g.reader, length[:]); err != nil {
		return nil, err
	}
	first := make([]byte, min(int(binary.BigEndian.Uint16(length[:])), firstMax))
	if _, err := io.ReadFull(g.reader, first); err != nil {
		return nil, err
	}
	against := ""
	if err := g.first(first); err != nil {
		against = err.Error()
		against = against[:min(len(against), wordMax)]
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(against))), against...), nil
}

// nothing counts the bytes before the first at which a hail or a frame may begin.
// Nearly all of a hail is zeros, and to look at each by itself is slow in a guest
// whose instructions are translated.
func nothing(bytesRead []byte) int {
	for _, first := range []byte{hail[0], mark[0]} {
		if i := bytes.IndexByte(bytesRead, first); i >= 0 {
			bytesRead = bytesRead[:i]
		}
	}
	return len(bytesRead)
}

// over ends the session that there is.
func (g *guest) over(reason error) {
	if g.current != nil {
		g.current.end(reason)
		_ = g.session.Close()
		g.current = nil
	}
}

// framed is a session's bytes as yamux reads and writes them.
type framed struct {
	pipe    io.ReadWriteCloser
	session uint32
	host    bool

	reader *bufio.Reader // the host's; read by one goroutine
	left   int           // bytes of the frame that is being read

	fed *feed // the guest's, which has one reader for all sessions

	mu   sync.Mutex // guards what is written: a frame at a time
	dead bool       // a session that is over writes no more
}

func newFed(pipe io.ReadWriteCloser, session uint32) *framed {
	return &framed{pipe: pipe, session: session, fed: newFeed()}
}

func (f *framed) give(payload []byte) { f.fed.give(payload) }

func (f *framed) end(reason error) {
	f.fed.end(reason)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = true
}

func (f *framed) Read(into []byte) (int, error) {
	if f.fed != nil {
		return f.fed.Read(into)
	}
	if f.left == 0 {
		var head [headSize]byte
		if _, err := io.ReadFull(f.reader, head[:]); err != nil {
			return 0, err
		}
		f.left = int(binary.BigEndian.Uint16(head[2:]))
		if string(head[:2]) != mark || f.left == 0 || f.left > frameMax || binary.BigEndian.Uint32(head[4:]) != f.session {
			return 0, fmt.Errorf("the guest's link carries % x where a frame of this session begins", head)
		}
	}
	n, err := f.reader.Read(into[:min(len(into), f.left)])
	f.left -= n
	return n, err
}

func (f *framed) Write(from []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	written := 0
	for written < len(from) {
		if f.dead {
			return written, ErrOver
		}
		payload := from[written:min(len(from), written+frameMax)]
		frame := make([]byte, headSize, headSize+len(payload))
		copy(frame, mark)
		binary.BigEndian.PutUint16(frame[2:], uint16(len(payload)))
		binary.BigEndian.PutUint32(frame[4:], f.session)
		if _, err := f.pipe.Write(append(frame, payload...)); err != nil {
			return written, err
		}
		written += len(payload)
	}
	return written, nil
}

// Close ends the host's pipe; the guest's is for the next session.
func (f *framed) Close() error {
	if f.host {
		return f.pipe.Close()
	}
	f.end(io.ErrClosedPipe)
	return nil
}
