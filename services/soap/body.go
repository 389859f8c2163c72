package soap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// smallBody is up to how many bytes a request is read without asking for
// memory, so that small calls never wait behind large ones.
const smallBody = 64 << 10

// readBody reads the whole request into body, within the limits. c is its
// claim to the memory for requests, to be released also after an error.
//
// What a request announces counts for nothing: it holds 64 KiB or twice what
// has arrived of it, and that only while it goes on arriving.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, body *bytes.Buffer) (c *claim, err error) {
	c = s.memory.claim()
	tooLarge := func() error {
		return &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d bytes", s.limits.Body)}
	}
	if r.ContentLength > s.limits.Body {
		return c, tooLarge()
	}
	x := exchangeOf(r.Context())
	x.connection.enter(phaseIdle)
	defer x.connection.enter(phaseWorking)
	late := x.started.Add(s.limits.Read)
	expected := r.ContentLength
	if expected < 0 {
		expected = s.limits.Body
	}
	from := http.MaxBytesReader(w, r.Body, s.limits.Body)
	room := int64(smallBody) // bytes that it may hold
	var paced *pace          // from the second read on: most requests come in one
	why := ""                // it was cut off
	defer func() {
		if paced != nil {
			paced.stop()
		}
	}()
	for err == nil {
		have := int64(body.Len())
		if have > 0 && paced == nil {
			paced = s.newPace(x, have)
			_ = x.out.control.SetReadDeadline(late) // a recorder in a test has none
		}
		if have > room { // by one byte, which shows that more comes
			more := min(room, expected-room)
			paced.hold(true)
			if !c.take(r.Context(), more, min(s.limits.Wait, time.Until(late))) {
				return c, &refusal{http.StatusServiceUnavailable, "too many large requests at once; try again later"}
			}
			paced.hold(false)
			room += more
			x.connection.enter(phaseSending)
		}
		body.Grow(bytes.MinRead)
		p := body.AvailableBuffer()
		p = p[:min(int64(cap(p)), room+1-have)]
		var n int
		n, err = from.Read(p)
		body.Write(p[:n])
		if paced != nil {
			paced.got(n)
		}
	}
	if paced != nil {
		why = paced.stop()
	}
	var over *http.MaxBytesError
	switch {
	case err == io.EOF:
		return c, nil
	case errors.As(err, &over):
		return c, tooLarge()
	case why != "":
		return c, &refusal{http.StatusRequestTimeout, why}
	case isTimeout(err) && paced == nil:
		return c, &refusal{http.StatusRequestTimeout, stalled(s.limits)}
	case isTimeout(err):
		return c, &refusal{http.StatusRequestTimeout, fmt.Sprintf("the request did not arrive within %s", s.limits.Read)}
	}
	return c, &refusal{http.StatusBadRequest, "the request's body ended too early"}
}

// linger reads on for a while after an answer that did not need the request's
// body, and keeps nothing: a client that sends its whole request before it
// reads gets to read the answer, rather than a broken connection (RFC 9112,
// section 9.6). Once the sender pauses it must have got it.
func (s *Server) linger(x *exchange) {
	if x.in.ended || x.request.ContentLength == 0 || x.aborted {
		return
	}
	if x.request.Header.Get("Expect") != "" && x.in.n == 0 {
		return // it waits to be asked, and reading would ask it
	}
	x.connection.enter(phaseIdle)
	if x.out.control.Flush() != nil {
		return
	}
	const most, pause = 10 * time.Second, 2 * time.Second
	buffer := make([]byte, 32<<10)
	for end := time.Now().Add(most); !x.in.ended && time.Now().Before(end) && x.request.Context().Err() == nil; {
		if x.out.control.SetReadDeadline(time.Now().Add(pause)) != nil {
			return // a recorder in a test
		}
		_, _ = x.in.Read(buffer)
	}
}
