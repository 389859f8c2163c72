package broker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"mvm/wsdl"

	"github.com/hooklift/gowsdl/soap"
)

// ReportContext takes what a node says became of its part of an attempt. When
// it is acknowledged, every terminal report is in the journal and its files are
// in the image store; a repeated one changes nothing. Reports of old attempts,
// other incarnations and forgotten jobs are refused as stale.
func (b *Service) ReportContext(ctx context.Context, request *wsdl.Report) (*wsdl.ReportResponse, error) {
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	a := request.Attempt
	if a == nil || request.Sequence < 1 {
		return nil, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "a report names its attempt and has a sequence from 1")
	}
	stale := func(why string) error {
		return wsdl.NewFault(wsdl.FaultCodeStale, fmt.Sprintf("a report on attempt %d at job %s from node %s is refused: %s", a.Number, a.Job, a.Node, why),
			"end the attempt; nothing more of it is wanted")
	}
	id, part := jobPart(a.Job)
	b.mu.Lock()
	j := b.jobs[id]
	b.mu.Unlock()
	if j == nil {
		return nil, stale("no such job is known")
	}
	j.mu.Lock()
	l := &j.life
	i := slices.IndexFunc(l.Members, func(m member) bool { return m.Node == a.Node && m.Part == part })
	var why string
	switch {
	case l.Gone || int(a.Number) != l.Attempt:
		why = fmt.Sprintf("it is over; the newest attempt is %d", l.Attempt)
	case i < 0:
		why = "the node has no part in it"
	case l.Members[i].Incarnation != a.Incarnation:
		why = "the attempt is with another incarnation of the node"
	}
	var known int64
	var mine []int
	if why == "" {
		known, mine = l.Members[i].Reported, l.Members[i].Processes
		if l.Held != nil && l.Held.Member == i {
			known = l.Held.Report.Sequence - 1 // what is held is not to be acknowledged yet
		}
	}
	j.mu.Unlock()
	switch {
	case why != "":
		return nil, stale(why)
	case request.Sequence <= known:
		return &wsdl.ReportResponse{Acknowledged: known}, nil
	}
	r, err := b.take(ctx, j, request, mine)
	if err != nil {
		return nil, err
	}
	if err := j.ask(ctx, reported{Attempt: int(a.Number), Member: i, Report: r}); err != nil {
		return nil, b.unwritten("the report could not be journalled", "report again")
	}
	return &wsdl.ReportResponse{Acknowledged: request.Sequence}, nil
}

// take checks a report and brings its files into the image store.
func (b *Service) take(ctx context.Context, j *job, request *wsdl.Report, mine []int) (report, error) {
	r := report{Sequence: request.Sequence, Failure: clip(request.Failure, maxMessage), Lost: request.Lost, ProxyBytes: request.ProxyBytes, ProxyItems: request.ProxyItems, Quiet: max(request.Quiet, 0)}
	for _, s := range request.Process {
		if s == nil || s.Id == nil || s.State == nil {
			return r, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "a reported process has an id and a state")
		}
		id := int(*s.Id)
		if _, there := slices.BinarySearch(mine, id); !there {
			return r, wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "process %d of job %s is not on the node that reports it", id, j.id)
		}
		p := process{ID: id, State: *s.State, Signal: s.Signal, Message: clip(s.Message, maxMessage),
			UserMicros: s.UserMicros, SystemMicros: s.SystemMicros, MaxResidentKiB: s.MaxResidentKiB,
			Started: timeOf(s.Started), Ended: timeOf(s.Ended)}
		if s.ExitCode != nil {
			p.ExitCode = wsdl.Of(int(*s.ExitCode))
		}
		for _, f := range s.File {
			if f == nil {
				continue
			}
			kept, err := b.takeFile(ctx, j.blobs, f)
			if err != nil {
				return r, err
			}
			p.Files = append(p.Files, kept)
			if f.Name == "stderr" && p.failed() {
				p.Tail = b.tail(kept)
			}
		}
		r.Processes = append(r.Processes, p)
	}
	return r, nil
}

// takeFile makes sure that a result is in the image store, and stays.
func (b *Service) takeFile(ctx context.Context, to *bag, f *wsdl.File) (file, error) {
	kept := file{Name: f.Name, Digest: f.Digest, Size: wsdl.Or(f.Size, 0), Dropped: f.Dropped}
	var err error
	switch {
	case f.Data != nil:
		kept.Size = int64(len(*f.Data))
		err = b.put(ctx, to, f.Digest, *f.Data)
	case kept.Size == 0:
		err = b.put(ctx, to, f.Digest, nil)
	default:
		err = to.add(f.Digest)
	}
	switch {
	case err == nil:
		return kept, nil
	case wsdl.CodeOf(err) == wsdl.FaultCodeNotFound:
		return kept, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("the blob %s of file %q is not here", f.Digest, f.Name), "push it to the image service first, then report again")
	case faultOf(err) != nil:
		return kept, faultOf(err)
	}
	return kept, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("file %q could not be kept: %v", f.Name, err), "report again")
}

const (
	maxMessage = 4 << 10 // bytes of a node's words about a process
	tailLines  = 5
	tailBytes  = 600
)

// tail is the last lines of a stream, whole ones, for the reason of a failure.
func (b *Service) tail(f file) string {
	blob, size, err := b.images.Open(f.Digest)
	if err != nil {
		return ""
	}
	defer blob.Close()
	data := make([]byte, min(size, 4*tailBytes))
	n, err := blob.ReadAt(data, size-int64(len(data)))
	if err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	text := string(data[:n])
	if int64(len(data)) < size {
		// The first line is cut, unless it is all there is.
		if _, rest, ok := strings.Cut(strings.TrimRight(text, "\n"), "\n"); ok {
			text = rest
		}
	}
	text = strings.TrimRight(strings.TrimLeft(clean(text), "\n"), "\n\t ")
	lines := strings.Split(text, "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	for left := len(strings.Join(lines, "\n")); left > tailBytes && len(lines) > 1; lines = lines[1:] {
		left -= len(lines[0]) + 1
	}
	text = strings.Join(lines, "\n")
	if len(text) > tailBytes {
		text = "..." + strings.ToValidUTF8(text[len(text)-tailBytes:], "")
	}
	return text
}

// clean leaves what XML and a terminal can carry.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return r
		case r < ' ' || r == 0x7f || r == 0xFFFE || r == 0xFFFF:
			return -1
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

func clip(text string, limit int) string {
	if len(text) > limit {
		text = strings.ToValidUTF8(text[:limit], "") + "..."
	}
	return text
}

func timeOf(d *soap.XSDDateTime) time.Time {
	if d == nil {
		return time.Time{}
	}
	return d.ToGoTime()
}
