package mvm

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"sync"
	"time"

	"mvm/queuevm"
)

// wire is one end of the control socket.
type wire struct {
	reader *bufio.Reader // read by one goroutine

	mu     sync.Mutex // guards writer: one message at a time
	writer io.Writer
}

func newWire(both io.ReadWriter) *wire {
	return &wire{reader: bufio.NewReader(both), writer: both}
}

// message is what goes over the control socket.
type message interface{ visit(*fields) }

// send writes one message.
func (w *wire) send(m message) error {
	c := fields{data: make([]byte, 4, 512)}
	m.visit(&c)
	if c.failed != nil {
		return fmt.Errorf("encode a control message: %w", c.failed)
	}
	length := len(c.data) - 4
	if length > MaxMessage {
		return fmt.Errorf("a control message of %d bytes is over the %d that are allowed", length, MaxMessage)
	}
	binary.BigEndian.PutUint32(c.data, uint32(length))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.writer.Write(c.data)
	return err
}

// hurry has what is still to be sent fail after d: the other end may not read.
func (w *wire) hurry(d time.Duration) {
	if f, ok := w.writer.(*os.File); ok {
		_ = f.SetWriteDeadline(time.Now().Add(d)) // a socket has deadlines
	}
}

// receive reads one message. io.EOF means that the other end is gone.
func (w *wire) receive(m message) error {
	var head [4]byte
	if _, err := io.ReadFull(w.reader, head[:]); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length > MaxMessage {
		return fmt.Errorf("a control message claims %d bytes; %d are allowed", length, MaxMessage)
	}
	var body []byte
	for chunk := uint32(1 << 20); uint32(len(body)) < length; { // a claim alone takes no memory
		n := min(chunk, length-uint32(len(body)))
		body = append(body, make([]byte, n)...)
		if _, err := io.ReadFull(w.reader, body[uint32(len(body))-n:]); err != nil {
			return io.ErrUnexpectedEOF
		}
	}
	c := fields{data: body, reads: true}
	m.visit(&c)
	if c.failed == nil && len(c.data) > 0 {
		c.failed = fmt.Errorf("%d bytes are left over", len(c.data))
	}
	if c.failed != nil {
		return fmt.Errorf("decode a control message: %w", c.failed)
	}
	return nil
}

// fields writes or reads the fields of a message in the order in which visit
// names them, so that one visit says both. Numbers are varints, texts and lists
// have their length before them, what may be missing has a byte that says so. It
// is here because a short-lived process would make encoding/json learn every
// type from reflection anew, for a message or two: 1 ms of CPU for a trivial job.
type fields struct {
	data   []byte // written so far, or still to be read
	reads  bool
	failed error
}

var errTruncated = errors.New("it is truncated")

func (c *fields) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
	c.data = nil
}

func (c *fields) uint(v *uint64) {
	if !c.reads {
		c.data = binary.AppendUvarint(c.data, *v)
		return
	}
	value, n := binary.Uvarint(c.data)
	if n <= 0 {
		c.fail(errTruncated)
		return
	}
	*v, c.data = value, c.data[n:]
}

// integer is any signed number.
func integer[T ~int | ~int64](c *fields, v *T) {
	zigzag := uint64(*v)<<1 ^ uint64(int64(*v)>>63)
	c.uint(&zigzag)
	if c.reads {
		*v = T(int64(zigzag>>1) ^ -int64(zigzag&1))
	}
}

func (c *fields) bool(v *bool) {
	var bit uint64
	if *v {
		bit = 1
	}
	c.uint(&bit)
	*v = bit != 0
}

// length is of what has at least a byte for each of it.
func (c *fields) length(n int) int {
	length := uint64(n)
	c.uint(&length)
	if c.reads && length > uint64(len(c.data)) {
		c.fail(errTruncated)
		return 0
	}
	return int(length)
}

func (c *fields) string(v *string) {
	n := c.length(len(*v))
	if !c.reads {
		c.data = append(c.data, *v...)
		return
	}
	*v, c.data = string(c.data[:n]), c.data[n:]
}

func (c *fields) bytes(v *[]byte) {
	n := c.length(len(*v))
	if !c.reads {
		c.data = append(c.data, *v...)
		return
	}
	*v, c.data = append([]byte(nil), c.data[:n]...), c.data[n:]
}

func (c *fields) time(v *time.Time) {
	seconds, nanos := v.Unix(), int64(v.Nanosecond())
	integer(c, &seconds)
	integer(c, &nanos)
	if c.reads {
		*v = time.Unix(seconds, nanos)
	}
}

// list is of what each visits.
func list[T any](c *fields, v *[]T, each func(*fields, *T)) {
	n := c.length(len(*v))
	if !c.reads {
		for i := range *v {
			each(c, &(*v)[i])
		}
		return
	}
	for i := 0; i < n && c.failed == nil; i++ {
		var element T
		each(c, &element)
		*v = append(*v, element)
	}
}

// optional is what may be missing.
func optional[T any](c *fields, v **T, each func(*fields, *T)) {
	there := *v != nil
	c.bool(&there)
	if !there || c.failed != nil {
		return
	}
	if c.reads {
		*v = new(T)
	}
	each(c, *v)
}

// rare is a value that few jobs send, of types that others own: as JSON, or as
// nothing when it is the zero value.
func rare[T any](c *fields, v *T) {
	var text []byte
	if !c.reads && !reflect.ValueOf(v).Elem().IsZero() {
		var err error
		if text, err = json.Marshal(v); err != nil {
			c.fail(err)
			return
		}
	}
	c.bytes(&text)
	if c.reads && len(text) > 0 && c.failed == nil {
		if err := json.Unmarshal(text, v); err != nil {
			c.fail(err)
		}
	}
}

func (s *Start) visit(c *fields) {
	for _, v := range []*string{&s.Attempt, &s.Node, &s.WorkDir, &s.Listen, &s.Uplink, &s.Library, &s.Clients, &s.MemoryGroup, &s.TaskGroup} {
		c.string(v)
	}
	c.bool(&s.Plain)
	c.bool(&s.TaskUnified)
	list(c, &s.PlainLinks, (*fields).string)
	integer(c, &s.StreamMax)
	integer(c, &s.MemoryMiB)
	integer(c, &s.Threads)
	integer(c, &s.Confinement)
	integer(c, &s.LogicTime)
	integer(c, &s.Redial)
}

func (r *Ready) visit(c *fields) {
	for _, v := range []*string{&r.Error, &r.Address, &r.Fingerprint, &r.Cleaning} {
		c.string(v)
	}
}

func (r *Request) visit(c *fields) {
	c.uint(&r.ID)
	rare(c, &r.Build)
	optional(c, &r.Instantiate, func(c *fields, i *Instantiate) { i.visit(c) })
	optional(c, &r.Terminate, func(c *fields, t *Terminate) {
		integer(c, &t.Grace)
		c.string(&t.Reason)
	})
	nothing := func(*fields, *struct{}) {}
	optional(c, &r.Inspect, nothing)
	optional(c, &r.Enqueue, func(c *fields, e *Enqueue) {
		c.string(&e.Queue)
		integer(c, &e.ID)
		item(c, &e.Meta)
		list(c, &e.Items, (*fields).bytes)
		c.bool(&e.End)
		integer(c, &e.Timeout)
	})
	optional(c, &r.Dequeue, func(c *fields, d *Dequeue) {
		c.string(&d.Queue)
		integer(c, &d.ID)
		integer(c, &d.Limit)
		integer(c, &d.Timeout)
	})
	rare(c, &r.OpenSocket)
	optional(c, &r.Quiet, nothing)
	optional(c, &r.Lease, func(c *fields, l *Lease) { integer(c, &l.For) })
	optional(c, &r.Built, func(c *fields, b *Built) { b.visit(c) })
	rare(c, &r.Peek)
	rare(c, &r.Drain)
	rare(c, &r.Change)
	rare(c, &r.Moved)
}

func item(c *fields, i *queuevm.Item) {
	c.bytes(&i.Data)
	priority := int(i.Priority)
	integer(c, &priority)
	i.Priority = uint8(priority)
	c.bool(&i.Instruction)
}

func (i *Instantiate) visit(c *fields) {
	list(c, &i.Processes, func(c *fields, p *ProcessSpec) {
		integer(c, &p.ID)
		c.string(&p.Task)
		integer(c, &p.Index)
		integer(c, &p.Count)
		list(c, &p.Command, (*fields).string)
		list(c, &p.Environment, (*fields).string)
		integer(c, &p.MemoryMiB)
		c.bool(&p.Processor)
	})
	rare(c, &i.Channels)
	rare(c, &i.Queues)
	rare(c, &i.Logic)
	rare(c, &i.Peers)
	integer(c, &i.WallTime)
}

func (m *FromProcess) visit(c *fields) {
	optional(c, &m.Reply, func(c *fields, r *Reply) { r.visit(c) })
	optional(c, &m.Event, func(c *fields, e *Event) { e.visit(c) })
}

func (r *Reply) visit(c *fields) {
	c.uint(&r.ID)
	optional(c, &r.Error, func(c *fields, e *Error) {
		c.string(&e.Code)
		c.string(&e.Message)
		c.string(&e.Output)
	})
	rare(c, &r.Build)
	optional(c, &r.Inspect, func(c *fields, i *Inspection) {
		rare(c, &i.Channels)
		rare(c, &i.Queues)
		list(c, &i.Processes, func(c *fields, p *ProcessState) { p.visit(c) })
	})
	optional(c, &r.Dequeue, func(c *fields, d *Dequeued) {
		list(c, &d.Items, (*fields).bytes)
		c.bool(&d.End)
	})
	rare(c, &r.Socket)
	rare(c, &r.Quiet)
	list(c, &r.Items, item)
	list(c, &r.Sizes, func(c *fields, n *int) { integer(c, n) })
	c.bool(&r.More)
	rare(c, &r.Next)
	rare(c, &r.Change)
	integer(c, &r.Count)
}

func (e *Event) visit(c *fields) {
	optional(c, &e.Process, func(c *fields, p *ProcessState) { p.visit(c) })
	c.string(&e.Failure)
	optional(c, &e.Traffic, func(c *fields, t *Traffic) {
		integer(c, &t.Items)
		integer(c, &t.Bytes)
	})
	optional(c, &e.Build, func(c *fields, i *Instruction) { i.visit(c) })
	c.uint(&e.Quiet)
}

func (p *ProcessState) visit(c *fields) {
	integer(c, &p.ID)
	c.string(&p.State)
	integer(c, &p.PID)
	integer(c, &p.ExitCode)
	for _, v := range []*string{&p.Signal, &p.Message, &p.Unkept} {
		c.string(v)
	}
	integer(c, &p.User)
	integer(c, &p.System)
	integer(c, &p.MaxRSSKiB)
	c.time(&p.Started)
	c.time(&p.Ended)
}
