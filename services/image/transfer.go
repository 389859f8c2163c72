package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"mvm/wsdl"
)

const (
	stall  = 15 * time.Second // without a byte, then the next base is asked
	buffer = 1 << 20          // bytes read at a time
)

// Fetch gets a blob that is missing from the first of bases that gives it, by
// plain HTTP, and returns once it is verified and here. What one base gave before
// it failed is kept, and the next goes on from there; a later Fetch does too. A
// base that gives wrong bytes costs a new start, no more. bases are base
// addresses of nodes, or of their image services.
func (s *Store) Fetch(ctx context.Context, client *http.Client, bases []string, digest string) error {
	h, err := hexOf(digest)
	if err != nil {
		return err
	}
	for {
		s.mu.Lock()
		other := s.fetching[h]
		if other == nil {
			s.fetching[h] = make(chan struct{})
		}
		s.mu.Unlock()
		if other == nil {
			break
		}
		select {
		case <-other:
		case <-ctx.Done():
			return fmt.Errorf("fetching blob %s: %w", digest, context.Cause(ctx))
		}
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		close(s.fetching[h])
		delete(s.fetching, h)
	}()
	if s.Has(digest) {
		return nil
	}
	var errs []error
	for _, base := range bases {
		err := s.fetchAll(ctx, client, base, digest)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("fetching blob %s: %w", digest, context.Cause(ctx))
		}
		if IsFull(err) { // no other base would help
			return err
		}
		errs = append(errs, err)
	}
	fault := wsdl.NewFault(wsdl.FaultCodeUnavailable, "blob "+digest+" could not be fetched from "+strings.Join(bases, ", "),
		"check that these nodes run and that one of them has it")
	if len(bases) == 0 {
		fault = wsdl.NewFault(wsdl.FaultCodeNotFound, "blob "+digest+" is not here and no node was named that has it", "upload it")
	}
	for _, err := range errs {
		fault.Problem = append(fault.Problem, &wsdl.Problem{Message: err.Error()})
	}
	return fault
}

// fetchAll asks one base again while that helps: after a broken line, as long as
// there were more bytes; and from the start, when what others gave before turns
// out to be wrong.
func (s *Store) fetchAll(ctx context.Context, client *http.Client, base, digest string) error {
	for anew := false; ; {
		before, err := s.Stat(digest)
		if err != nil || before.Complete {
			return err
		}
		if err = s.fetchFrom(ctx, client, base, digest, before); err == nil || ctx.Err() != nil {
			return err
		}
		after, bad := s.Stat(digest)
		switch {
		case bad != nil:
			return bad
		case after.Received > before.Received:
		case after.Received == 0 && before.Received > 0 && !anew:
			anew = true
		default:
			return err
		}
	}
}

// fetchFrom makes one request for what is missing, given what is here.
func (s *Store) fetchFrom(ctx context.Context, client *http.Client, base, digest string, had Status) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%s sent nothing for %v", base, stall)) })
	defer watchdog.Stop()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, BlobURL(base, digest), nil)
	if err != nil {
		return err
	}
	var from int64
	if had.Received > 0 && had.Received < had.Size {
		from = had.Received
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-", from))
	}
	// Compressed bytes would neither hash nor resume.
	request.Header.Set("Accept-Encoding", "identity")
	response, err := client.Do(request)
	if err != nil {
		return reason(ctx, err)
	}
	defer response.Body.Close()
	size := response.ContentLength
	switch response.StatusCode {
	case http.StatusOK:
		from = 0
	case http.StatusPartialContent:
		start, total, ok := contentRange(response.Header.Get("Content-Range"))
		if !ok || start != from {
			return fmt.Errorf("%s answered with the range %q, not from byte %d", base, response.Header.Get("Content-Range"), from)
		}
		size = total
	default:
		text, _ := io.ReadAll(io.LimitReader(response.Body, 200))
		return fmt.Errorf("%s answered %s: %s", base, response.Status, strings.TrimSpace(string(text)))
	}
	if size < 0 {
		return fmt.Errorf("%s does not say how many bytes %s has", base, digest)
	}
	if had.Received > 0 && had.Size != size {
		// One of the bases lies about the size; the digest will tell which.
		if err := s.Drop(digest); err != nil {
			return err
		}
		if from > 0 {
			return fmt.Errorf("%s says that %s has %d bytes, another said %d", base, digest, size, had.Size)
		}
	}
	if err := s.receive(ctx, watched{response.Body, watchdog}, digest, size, from); err != nil {
		return fmt.Errorf("%s: %w", base, err)
	}
	return nil
}

// receive stores a body that begins at offset from, reading ahead while it
// writes.
func (s *Store) receive(ctx context.Context, body io.Reader, digest string, size, from int64) error {
	type piece struct {
		data []byte
		err  error
	}
	pieces, empty := make(chan piece), make(chan []byte, 2)
	empty <- make([]byte, buffer)
	empty <- make([]byte, buffer)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for left := size - from; ; {
			var data []byte
			select {
			case data = <-empty:
			case <-stop:
				return
			}
			n, err := io.ReadFull(body, data[:min(int64(len(data)), left)])
			left -= int64(n)
			if err == nil && left == 0 {
				err = io.EOF
			}
			select {
			case pieces <- piece{data[:n], err}:
			case <-stop:
				return
			}
			if err != nil {
				return
			}
		}
	}()
	for {
		p := <-pieces
		st, err := s.putChunk(ctx, digest, size, from, p.data, s.publishCopy)
		if err != nil || st.Complete {
			return err
		}
		if p.err != nil {
			return fmt.Errorf("after %d of %d bytes: %w", from+int64(len(p.data)), size, reason(ctx, p.err))
		}
		from += int64(len(p.data))
		empty <- p.data[:cap(p.data)]
	}
}

// watched puts off a watchdog with every read that returns.
type watched struct {
	io.Reader
	watchdog *time.Timer
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	w.watchdog.Reset(stall)
	return n, err
}

// reason prefers why ctx ended over the error that followed from it.
func reason(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// contentRange reads "bytes 5-9/10".
func contentRange(header string) (start, total int64, ok bool) {
	unit, rest, ok := strings.Cut(header, " ")
	if !ok || unit != "bytes" {
		return 0, 0, false
	}
	span, whole, ok1 := strings.Cut(rest, "/")
	first, last, ok2 := strings.Cut(span, "-")
	start, err1 := strconv.ParseInt(first, 10, 64)
	end, err2 := strconv.ParseInt(last, 10, 64)
	total, err3 := strconv.ParseInt(whole, 10, 64)
	ok = ok1 && ok2 && errors.Join(err1, err2, err3) == nil && 0 <= start && start <= end && end < total
	return start, total, ok
}

// Push uploads a blob of this store to another node, by SOAP, in chunks; it
// sends only what is missing there. base is that node's base address, or the
// address of its image service. When it returns nil the blob is verified and on
// disk there. A blob that has changed on this disk is removed from it: the fault
// invalidRequest says so, and pushing it again is of no use.
func (s *Store) Push(ctx context.Context, caller wsdl.Caller, base, digest string) error {
	f, size, err := s.Open(digest)
	if err != nil {
		return err
	}
	defer f.Close()
	to := wsdl.NewImageClient(caller, nodeBase(base)+servicePath)
	stat, err := to.StatBlobContext(ctx, &wsdl.StatBlob{Digest: digest})
	if err != nil {
		return fmt.Errorf("pushing blob %s to %s: %w", digest, base, err)
	}
	there := stat.Blob
	data := make(wsdl.Binary, min(size, maxChunk))
	for refused := 0; ; {
		if there != nil && wsdl.Or(there.Complete, false) {
			return nil
		}
		var offset int64
		if there != nil {
			offset = min(max(0, wsdl.Or(there.Received, 0)), size)
		}
		n, err := f.ReadAt(data[:min(int64(len(data)), size-offset)], offset)
		if err != nil && !errors.Is(err, io.EOF) {
			return s.diskError(err)
		}
		chunk := data[:n]
		answer, err := to.PutBlobContext(ctx, &wsdl.PutBlob{Digest: digest, Size: &size, Offset: offset, Data: &chunk})
		if err != nil {
			// Another's upload of the same blob may have failed and taken ours
			// with it; then this one begins again.
			if refused++; wsdl.CodeOf(err) != wsdl.FaultCodeConflict || refused > 3 {
				return fmt.Errorf("pushing blob %s to %s: %w", digest, base, err)
			}
			if err := s.sound(f, digest, size); err != nil {
				return err
			}
			if stat, err = to.StatBlobContext(ctx, &wsdl.StatBlob{Digest: digest}); err != nil {
				return fmt.Errorf("pushing blob %s to %s: %w", digest, base, err)
			}
			there = stat.Blob
			continue
		}
		if there = answer.Blob; there == nil || wsdl.Or(there.Received, 0) <= offset && size > 0 && !wsdl.Or(there.Complete, false) {
			return fmt.Errorf("pushing blob %s to %s: %d bytes at %d were accepted, but not received", digest, base, n, offset)
		}
	}
}

// sound reads a blob of this store again, and removes it when its bytes are not
// what they were.
func (s *Store) sound(f *os.File, digest string, size int64) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, size)); err != nil {
		return s.diskError(err)
	}
	got := prefix + hex.EncodeToString(sum.Sum(nil))
	if got == digest {
		return nil
	}
	h, err := hexOf(digest)
	if err != nil {
		return err
	}
	s.sweeping.Lock() // as a sweep removes blobs
	err = os.Remove(s.path(h))
	s.sweeping.Unlock()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return s.diskError(err)
	}
	return wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "the blob %s has changed on this node's disk, its %d bytes hash to %s now: it is removed", digest, size, got)
}
