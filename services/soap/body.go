package soap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

const (
	// smallBody is up to how many bytes a request is read without asking for
	// memory, so that small calls never wait behind large ones.
	smallBody = 64 << 10

	// drainTime is for how long a refused request is still read.
	drainTime = 500 * time.Millisecond
)

// readBody reads the whole request into body, within the limits. c is its
// claim to the memory for requests, to be released also after an error.
//
// What a request announces counts for nothing: it holds 64 KiB or twice what
// has arrived of it, and keeps more than 64 KiB only while it goes on arriving.
func (s *Server) readBody(w http.ResponseWriter, r *http.Request, body *bytes.Buffer) (c *claim, err error) {
	c = s.memory.claim()
	tooLarge := &refusal{http.StatusRequestEntityTooLarge, fmt.Sprintf("the request is larger than %d bytes", s.limits.Body)}
	if r.ContentLength > s.limits.Body {
		return c, tooLarge
	}
	x := exchangeOf(r.Context())
	late := x.started.Add(s.limits.Read)
	expected := r.ContentLength
	if expected < 0 {
		expected = s.limits.Body
	}
	from := http.MaxBytesReader(w, r.Body, s.limits.Body)
	room := int64(smallBody) // bytes that it may hold
	paced := false           // whether it must keep up the rate
	missing := int64(0)      // bytes that must arrive in this grace
	for err == nil {
		have := int64(body.Len())
		if have > room { // by one byte, which shows that more comes
			more := min(room, expected-room)
			if !c.take(r.Context(), more, min(s.limits.Wait, time.Until(late))) {
				return c, &refusal{http.StatusServiceUnavailable, "too many large requests at once; try again later"}
			}
			room += more
			paced, missing = true, 0 // the time it waited is not the sender's
		}
		if paced && missing <= 0 {
			missing = int64(float64(s.limits.Rate) * s.limits.Grace.Seconds())
			due := time.Now().Add(s.limits.Grace)
			if due.After(late) {
				due = late
			}
			_ = x.out.control.SetReadDeadline(due) // a recorder in a test has none
		}
		body.Grow(bytes.MinRead)
		p := body.AvailableBuffer()
		p = p[:min(int64(cap(p)), room+1-have)]
		var n int
		n, err = from.Read(p)
		body.Write(p[:n])
		missing -= int64(n)
	}
	var over *http.MaxBytesError
	switch {
	case err == io.EOF:
		return c, nil
	case errors.As(err, &over):
		return c, tooLarge
	case isTimeout(err) && time.Now().Before(late):
		return c, &refusal{http.StatusRequestTimeout, fmt.Sprintf("a request of more than %d bytes must arrive at %d bytes a second; this one did not for %s", smallBody, s.limits.Rate, s.limits.Grace)}
	case isTimeout(err):
		return c, &refusal{http.StatusRequestTimeout, fmt.Sprintf("the request did not arrive within %s", s.limits.Read)}
	}
	return c, &refusal{http.StatusBadRequest, "the request's body ended too early"}
}

// drain reads on for a little while, to twice the size a request may have, and
// keeps nothing, so that a client that sends its whole request before it reads
// gets to read why it was refused, rather than a broken connection.
func (s *Server) drain(x *exchange) {
	if x.request.Header.Get("Expect") != "" && x.in.n == 0 {
		return // it waits to be asked, and reading would ask it
	}
	_ = x.out.control.SetReadDeadline(time.Now().Add(drainTime)) // a recorder in a test has none
	_, _ = io.CopyN(io.Discard, &x.in, 2*s.limits.Body-x.in.n)
}
