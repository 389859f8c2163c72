package broker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"mvm/wsdl"
)

const maxOutput = 1 << 20 // bytes of an answer

// GetOutputContext answers bytes of a process's stdout, stderr or output file:
// from the node while the process runs, and from the image store once its end
// was reported.
func (b *Service) GetOutputContext(ctx context.Context, request *wsdl.GetOutput) (*wsdl.GetOutputResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	j, err := b.job(request.Id)
	if err != nil {
		return nil, err
	}
	length := int(request.Length)
	if length <= 0 || length > maxOutput {
		length = maxOutput
	}
	if request.Offset < 0 {
		return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "the offset is %d, expected one from 0", request.Offset)
	}
	patience := min(max(0, time.Duration(request.WaitMillis)*time.Millisecond), maxWait)
	until := b.clock.Now().Add(patience)
	id := int(wsdl.Or(request.Process, 0))
	stream := request.Name == "stdout" || request.Name == "stderr"
	for {
		s, p, m, err := j.processAt(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, f := range p.Files {
			if f.Name == request.Name {
				return b.readBlob(f, request.Offset, length)
			}
		}
		left := until.Sub(b.clock.Now())
		switch {
		case p.ended() || final(s.Phase):
			if !stream {
				return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("process %d of job %s left no file %q", id, j.id, request.Name), "GetJob lists each process's files")
			}
			// Its end came without a report: nothing is left of what it wrote.
			return &wsdl.GetOutputResponse{Next: wsdl.Of(request.Offset), End: wsdl.Of(true)}, nil
		case stream && p.State == wsdl.ProcessStateRunning && m != nil:
			answer, err := b.readLive(ctx, j, s, m, request, id, length, left)
			if err == nil && !(wsdl.Or(answer.End, false) && answer.Data == nil) {
				// The end is told once it was reported: what is read until then may grow.
				answer.End = wsdl.Of(false)
				return answer, nil
			}
			// It has just ended, or its node is away: what comes next tells.
			if err != nil {
				b.log.WithError(err).WithField("job", j.id).Debug("a live stream could not be read")
			}
		}
		left = until.Sub(b.clock.Now())
		if left <= 0 {
			return &wsdl.GetOutputResponse{Next: wsdl.Of(request.Offset), End: wsdl.Of(false)}, nil
		}
		seen := s.Revision
		b.await(ctx, j, min(left, time.Second), func(s status) bool { return s.Revision > seen || final(s.Phase) })
		if err := ctx.Err(); err != nil {
			return nil, wsdl.Faultf(wsdl.FaultCodeTimeout, "the call was given up: %v", err)
		}
		if err := b.up(ctx); err != nil {
			return nil, err
		}
	}
}

// processAt reads one process and the member that runs it, nil after the end.
func (j *job) processAt(ctx context.Context, id int) (status, process, *member, error) {
	none := func(n int) error {
		return wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("job %s has no process %d", j.id, id), fmt.Sprintf("its processes are 0 to %d", n-1))
	}
	j.mu.Lock()
	s := j.shown
	if final(s.Phase) {
		j.mu.Unlock()
		r, err := j.results(ctx)
		switch {
		case err != nil:
			return s, process{}, nil, err
		case id < 0 || id >= len(r.Processes):
			return s, process{}, nil, none(len(r.Processes))
		}
		return s, r.Processes[id], nil, nil
	}
	defer j.mu.Unlock()
	if id < 0 || id >= len(j.life.Processes) {
		return s, process{}, nil, none(len(j.life.Processes))
	}
	p := j.life.Processes[id]
	for i := range j.life.Members {
		if slices.Contains(j.life.Members[i].Processes, id) {
			m := j.life.Members[i]
			return s, p, &m, nil
		}
	}
	return s, p, nil, nil
}

func (b *Service) readLive(ctx context.Context, j *job, s status, m *member, request *wsdl.GetOutput, id, length int, left time.Duration) (*wsdl.GetOutputResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, max(0, left)+5*time.Second)
	defer cancel()
	answer, err := b.queueOf(m).ReadStreamContext(ctx, &wsdl.ReadStream{
		Attempt: fence(j.id, s.Attempt, m), Process: wsdl.Of(int32(id)), Name: request.Name,
		Offset: request.Offset, Length: int32(length), WaitMillis: int32(max(0, left).Milliseconds()),
	})
	if err != nil {
		return nil, err
	}
	if answer.Data != nil && len(*answer.Data) == 0 {
		answer.Data = nil
	}
	return &wsdl.GetOutputResponse{Data: answer.Data, Next: wsdl.Of(wsdl.Or(answer.Next, request.Offset)), End: wsdl.Of(wsdl.Or(answer.End, false))}, nil
}

// readBlob reads a result. Offsets in a stream whose middle was left out count
// what the program printed, as they do while it runs: so whoever followed it
// goes on without a break.
func (b *Service) readBlob(f file, offset int64, length int) (*wsdl.GetOutputResponse, error) {
	answer := &wsdl.GetOutputResponse{Digest: f.Digest}
	at, total := offset, f.Size
	if f.Size > 0 {
		blob, size, err := b.images.Open(f.Digest)
		if err != nil {
			return nil, err
		}
		defer blob.Close()
		limit := size
		total = size
		if f.Dropped > 0 {
			at, offset, limit, total = gap(blob, size, f.Dropped, offset)
			length = max(length, 64) // the line that stands for the gap is whole
		}
		if at < limit {
			data := make(wsdl.Binary, min(int64(length), limit-at))
			if _, err := blob.ReadAt(data, at); err != nil && err != io.EOF {
				return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("file %q cannot be read: %v", f.Name, err), "ask again")
			}
			answer.Data = &data
			offset += int64(len(data))
		}
	}
	answer.Next, answer.End = wsdl.Of(offset), wsdl.Of(offset >= total)
	return answer, nil
}

// gap finds where in a blob the byte is that the program printed at offset. The
// blob is a head, a line that says how much was left out, and a tail, as the
// node wrote them. It returns the place in the blob, the offset from which the
// next one counts on, the end of the part of the blob that may be read in one,
// and the end of the stream. The line itself takes the place of what it speaks
// of. A blob made otherwise is read as it is.
func gap(blob io.ReaderAt, size, dropped, offset int64) (at, from, limit, total int64) {
	note := fmt.Appendf(nil, "\n[mvm: %d bytes left out]\n", dropped)
	line := int64(len(note))
	head := (size - line + 1) / 2
	there := make([]byte, line)
	if _, err := blob.ReadAt(there, max(0, head)); err != nil || !bytes.Equal(there, note) {
		return offset, offset, size, size
	}
	total = size - line + dropped
	switch {
	case offset < head:
		return offset, offset, head, total
	case offset < head+dropped:
		// The line is an answer of its own: it brings the reader to the tail.
		return head, head + dropped - line, head + line, total
	}
	return offset - dropped + line, offset, size, total
}
