// Package qmp speaks QEMU's machine protocol (docs/interop/qmp-spec.rst of
// QEMU) with one QEMU process over a stream socket.
//
// What always holds: each command has an id of its own and its own context;
// what a caller gets is a copy that nobody changes; a line may be as long as
// MaxLine; an event listener that does not listen holds up nobody. Monitor
// implements go-qemu's qmp.Monitor, whose own socket monitor has none of that,
// so that qemu.NewDomain runs on it.
//
// It must never decide anything about a VM: it carries commands and events.
package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"
)

// MaxLine bounds, in bytes, one message of QEMU's; the largest that are known,
// the answers to query-qmp-schema, have some 300 KB.
const MaxLine = 16 << 20

// greetingLimit is how long QEMU may take to greet. It serves one client at a
// time, and lets a second one connect and wait without a word.
const greetingLimit = 5 * time.Second

// ErrBusy is wrapped by Dial's and New's error when QEMU took the connection
// and did not greet: another client has the monitor, or QEMU hangs.
var ErrBusy = errors.New("QEMU does not greet: another client has its monitor, or it hangs")

// Error is QEMU's refusal of a command.
type Error struct {
	Command     string
	Class       string `json:"class"`
	Description string `json:"desc"`
}

func (e *Error) Error() string {
	return fmt.Sprintf("QEMU refuses %s: %s (%s)", e.Command, e.Description, e.Class)
}

// Monitor is a connection to one QEMU. All methods may be called from any
// goroutine.
type Monitor struct {
	conn    *net.UnixConn
	version qmp.Version
	closed  chan struct{} // when nothing will be read any more

	writing sync.Mutex // guards what goes out on conn: one command at a time, with its file

	mu      sync.Mutex // guards what follows
	last    uint64     // id given
	waiting map[uint64]chan<- []byte
	streams map[*stream]struct{}
	failure error // why the connection ended
}

var _ qmp.Monitor = (*Monitor)(nil)

// Dial connects to the unix socket at path. The error wraps ErrBusy when QEMU
// does not greet; else it says what is wrong with the socket or the greeting.
func Dial(ctx context.Context, path string) (*Monitor, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor at %s: %w", path, err)
	}
	m, err := New(ctx, conn.(*net.UnixConn))
	if err != nil {
		return nil, fmt.Errorf("connect to QEMU's monitor at %s: %w", path, err)
	}
	return m, nil
}

// New takes the connection, waits for the greeting and enters command mode. It
// closes the connection when it fails.
func New(ctx context.Context, conn *net.UnixConn) (*Monitor, error) {
	m := &Monitor{
		conn: conn, closed: make(chan struct{}),
		waiting: map[uint64]chan<- []byte{}, streams: map[*stream]struct{}{},
	}
	reader := bufio.NewReaderSize(conn, 64<<10)
	if err := m.greet(ctx, reader); err != nil {
		_ = conn.Close()
		return nil, err
	}
	go m.read(reader)
	if err := m.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		_ = m.Disconnect()
		return nil, err
	}
	return m, nil
}

func (m *Monitor) greet(ctx context.Context, reader *bufio.Reader) error {
	deadline := time.Now().Add(greetingLimit)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	_ = m.conn.SetReadDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { _ = m.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	text, err := line(reader)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return ErrBusy
	}
	if err != nil {
		return fmt.Errorf("QEMU's greeting: %w", err)
	}
	var greeting struct {
		QMP *struct {
			Version qmp.Version `json:"version"`
		}
	}
	if err := json.Unmarshal(text, &greeting); err != nil || greeting.QMP == nil {
		return fmt.Errorf("what answers is no QEMU: it greets with %q", shorten(text))
	}
	m.version = greeting.QMP.Version
	if !stop() {
		return context.Cause(ctx)
	}
	return m.conn.SetReadDeadline(time.Time{})
}

// Version is QEMU's, by its greeting.
func (m *Monitor) Version() qmp.Version { return m.version }

// Execute runs one command and decodes what it returns into result, unless that
// is nil. arguments is anything that JSON can hold; nil is none. The error is an
// *Error when QEMU refuses; when ctx ends first the command may still be carried
// out, and its answer is dropped.
func (m *Monitor) Execute(ctx context.Context, name string, arguments, result any) error {
	return m.ExecuteWithFile(ctx, name, arguments, result, nil)
}

// ExecuteWithFile is Execute with an open file that travels beside the command,
// as getfd and add-fd want it. The caller closes its own file.
func (m *Monitor) ExecuteWithFile(ctx context.Context, name string, arguments, result any, file *os.File) error {
	text, err := m.roundTrip(ctx, qmp.Command{Execute: name, Args: arguments}, file)
	if err != nil {
		return fmt.Errorf("ask QEMU for %s: %w", name, err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *Error          `json:"error"`
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return fmt.Errorf("QEMU answers %s with %q: %w", name, shorten(text), err)
	}
	if answer.Error != nil {
		answer.Error.Command = name
		return answer.Error
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Return, result); err != nil {
		return fmt.Errorf("QEMU answers %s with %q: %w", name, shorten(answer.Return), err)
	}
	return nil
}

// roundTrip sends a command under an id of its own and gives the answer's line.
func (m *Monitor) roundTrip(ctx context.Context, command qmp.Command, file *os.File) ([]byte, error) {
	answer := make(chan []byte, 1)
	m.mu.Lock()
	if m.failure != nil {
		m.mu.Unlock()
		return nil, m.failure
	}
	m.last++
	id := m.last
	m.waiting[id] = answer
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
	}()
	text, err := json.Marshal(struct {
		qmp.Command
		ID uint64 `json:"id"`
	}{command, id})
	if err != nil {
		return nil, err
	}
	if err := m.write(ctx, append(text, '\n'), file); err != nil {
		return nil, err
	}
	select {
	case text := <-answer:
		return text, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-m.closed:
		select {
		case text := <-answer: // it came last
			return text, nil
		default:
			return nil, m.why()
		}
	}
}

// write sends a command whole or ends the connection: half a command would be
// taken for the beginning of the next.
func (m *Monitor) write(ctx context.Context, text []byte, file *os.File) error {
	m.writing.Lock()
	defer m.writing.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = m.conn.SetWriteDeadline(deadline)
	} else {
		_ = m.conn.SetWriteDeadline(time.Time{})
	}
	var rights []byte
	if file != nil {
		rights = unix.UnixRights(int(file.Fd()))
	}
	n, _, err := m.conn.WriteMsgUnix(text, rights, nil)
	if err == nil && n < len(text) {
		_, err = m.conn.Write(text[n:])
	}
	if err != nil {
		m.fail(fmt.Errorf("write to QEMU's monitor: %w", err))
	}
	return err
}

// read takes in all that QEMU says until it hangs up.
func (m *Monitor) read(reader *bufio.Reader) {
	defer close(m.closed)
	for {
		text, err := line(reader)
		if err == nil {
			err = m.take(text)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("QEMU has ended, or closed its monitor")
			}
			m.fail(err)
			break
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for s := range m.streams {
		s.end()
	}
	clear(m.streams)
}

// take gives one message to whom it is for.
func (m *Monitor) take(text []byte) error {
	var head struct {
		ID    *uint64 `json:"id"`
		Event string  `json:"event"`
	}
	if err := json.Unmarshal(text, &head); err != nil {
		return fmt.Errorf("QEMU says %q: %w", shorten(text), err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if head.Event != "" {
		var event qmp.Event
		if err := json.Unmarshal(text, &event); err != nil {
			return fmt.Errorf("QEMU tells of an event as %q: %w", shorten(text), err)
		}
		for s := range m.streams {
			s.add(event)
		}
		return nil
	}
	if head.ID == nil {
		return fmt.Errorf("QEMU answers no command that was sent: %q", shorten(text))
	}
	if answer := m.waiting[*head.ID]; answer != nil { // else its caller has gone
		delete(m.waiting, *head.ID)
		answer <- text
	}
	return nil
}

// fail ends the connection; the first reason stays.
func (m *Monitor) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.failure == nil {
		m.failure = err
	}
	_ = m.conn.Close()
}

func (m *Monitor) why() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.failure
}

// Closed is closed when the connection has ended: QEMU is gone, or Disconnect
// was called.
func (m *Monitor) Closed() <-chan struct{} { return m.closed }

// Connect is part of go-qemu's Monitor. A Monitor is connected from the
// beginning, so it only tells whether it still is.
func (m *Monitor) Connect() error { return m.why() }

// Disconnect hangs up, ends all commands and event streams that wait, and
// returns when nothing runs any more. Calling it twice changes nothing.
func (m *Monitor) Disconnect() error {
	m.fail(errors.New("the monitor was disconnected"))
	<-m.closed
	return nil
}

// Run is part of go-qemu's Monitor: a command as JSON, the whole answer as JSON.
// It waits for as long as QEMU does; who has a context uses Execute.
func (m *Monitor) Run(command []byte) ([]byte, error) { return m.run(command, nil) }

// RunWithFile is Run with an open file, as qemu.Domain's callers send it.
func (m *Monitor) RunWithFile(command []byte, file *os.File) ([]byte, error) {
	return m.run(command, file)
}

func (m *Monitor) run(text []byte, file *os.File) ([]byte, error) {
	var command struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(text, &command); err != nil || command.Execute == "" {
		return nil, fmt.Errorf("%q is no command for QEMU's monitor: it wants a JSON object with execute and arguments", shorten(text))
	}
	request := qmp.Command{Execute: command.Execute}
	if len(command.Arguments) > 0 {
		request.Args = command.Arguments
	}
	answer, err := m.roundTrip(context.Background(), request, file)
	if err != nil {
		return nil, fmt.Errorf("ask QEMU for %s: %w", command.Execute, err)
	}
	var refused struct {
		Error *Error `json:"error"`
	}
	if err := json.Unmarshal(answer, &refused); err != nil {
		return nil, fmt.Errorf("QEMU answers %s with %q: %w", command.Execute, shorten(answer), err)
	}
	if refused.Error != nil {
		refused.Error.Command = command.Execute
		return nil, refused.Error
	}
	return answer, nil
}

// line is the next message without its line end, in memory of its own.
func line(reader *bufio.Reader) ([]byte, error) {
	var text []byte
	for {
		part, err := reader.ReadSlice('\n')
		text = append(text, part...)
		switch {
		case len(text) > MaxLine:
			return nil, fmt.Errorf("QEMU sends a message over %d bytes", MaxLine)
		case err == nil:
			return bytes.TrimSpace(text), nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && len(text) > 0:
			return nil, fmt.Errorf("QEMU ended in the middle of %q", shorten(text))
		default:
			return nil, err
		}
	}
}

// shorten keeps what of a message belongs into a sentence.
func shorten(text []byte) string {
	const most = 200
	if len(text) > most {
		return string(text[:most]) + "... (" + strconv.Itoa(len(text)) + " bytes)"
	}
	return string(text)
}
