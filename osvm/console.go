package osvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"
)

const (
	consoleTail  = 64 << 10               // bytes that are kept of what a guest wrote
	consoleRest  = 5 * time.Millisecond   // after each read that nobody waits for
	consoleEnd   = time.Second            // for the last words of a guest
	consolePause = 100 * time.Millisecond // between two tries to connect
)

// ErrDetached is what a View's holder hears once somebody took the console over,
// or it was closed.
var ErrDetached = errors.New("the console was taken over or closed")

// HeldError says who has a console that only one may have.
type HeldError struct{ By string }

func (e *HeldError) Error() string { return "the console is held by " + e.By }

// Console is a guest's serial port, read all the time, so that the last of what
// the guest wrote can be seen later, also after its end. One at a time sees it
// live and types.
//
// What always holds: it keeps consoleTail bytes however much the guest writes,
// and whoever is attached misses none of what comes meanwhile: a guest that
// writes quicker than it is read waits. One that nobody reads is slowed down to
// some MiB a second, for reading costs the host.
type Console struct {
	dial func(ctx context.Context) (net.Conn, error)
	stop context.CancelFunc

	mu      sync.Mutex // guards what follows
	changed *sync.Cond // any of it has
	tail    [consoleTail]byte
	total   int64    // bytes that the guest has written; the last of them are in tail, each at its number modulo its size
	port    net.Conn // nil while there is none
	view    *View    // nil while nobody is attached
	over    bool     // nothing more will come
}

// newConsole reads what dial connects to until the machine has ended or it is
// closed.
func newConsole(dial func(ctx context.Context) (net.Conn, error), ended <-chan struct{}) *Console {
	ctx, stop := context.WithCancel(context.Background())
	c := &Console{dial: dial, stop: stop}
	c.changed = sync.NewCond(&c.mu)
	go c.run(ctx, ended)
	return c
}

func (c *Console) run(ctx context.Context, ended <-chan struct{}) {
	defer c.close()
	for ctx.Err() == nil {
		if port, err := c.dial(ctx); err == nil {
			c.set(port)
			stop := context.AfterFunc(ctx, func() { _ = port.Close() })
			c.read(port) // also the last words of a machine that has ended
			stop()
			c.set(nil)
			_ = port.Close()
		}
		select {
		case <-ctx.Done():
		case <-ended:
			return
		case <-time.After(consolePause):
		}
	}
}

// close lets go of the port, for whoever adopts the machine.
func (c *Console) close() {
	c.stop()
	c.mu.Lock()
	c.over = true
	c.changed.Broadcast()
	c.mu.Unlock()
}

func (c *Console) set(port net.Conn) {
	c.mu.Lock()
	c.port = port
	c.changed.Broadcast()
	c.mu.Unlock()
}

// read takes in what the guest writes until the connection ends.
func (c *Console) read(port net.Conn) {
	var buffer [16 << 10]byte
	for {
		c.mu.Lock()
		room := c.room()
		for ; room == 0 && !c.over; room = c.room() {
			c.changed.Wait()
		}
		alone, over := c.view == nil, c.over
		c.mu.Unlock()
		if over {
			return
		}
		n, err := port.Read(buffer[:min(room, len(buffer))])
		c.mu.Lock()
		for rest := buffer[:n]; len(rest) > 0; {
			copied := copy(c.tail[c.total%consoleTail:], rest)
			c.total += int64(copied)
			rest = rest[copied:]
		}
		if c.view != nil { // one that came meanwhile and has not begun to read
			c.view.at = max(c.view.at, c.total-consoleTail)
		}
		c.changed.Broadcast()
		c.mu.Unlock()
		if err != nil {
			return
		}
		if alone && n == len(buffer) {
			time.Sleep(consoleRest)
		}
	}
}

// Last is the last of what the guest has written, at most 64 KiB.
func (c *Console) Last() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	from := max(0, c.total-consoleTail)
	last := make([]byte, 0, c.total-from)
	for at := from; at < c.total; {
		begin := at % consoleTail
		piece := c.tail[begin:min(consoleTail, begin+c.total-at)]
		last = append(last, piece...)
		at += int64(len(piece))
	}
	return last
}

// WithLastLine adds to an error what the guest has written last, if anything.
func (c *Console) WithLastLine(err error) error {
	last := bytes.TrimSpace(c.Last())
	if len(last) == 0 {
		return err
	}
	return fmt.Errorf("%w (the last line on its console is %.300q)", err, last[bytes.LastIndexByte(last, '\n')+1:])
}

// failure is how a line begins, after what names the time or the program, in which
// a kernel or a Go program says why it cannot go on.
var failure = regexp.MustCompile(`(?m)(Kernel panic - |Out of memory: |panic: |fatal error: |^SIG[A-Z]+: |BUG: |agent: ).*`)

const (
	failuresMost = 4 // lines that are quoted: the first ones, which the others follow from
	lineMost     = 300
)

// failures is what the guest said of its end, "" if nothing. It is for after QEMU's
// end, and waits a moment until what was written is read.
func (c *Console) failures() string {
	for begin := time.Now(); time.Since(begin) < consoleEnd; time.Sleep(time.Millisecond) {
		c.mu.Lock()
		read := c.port == nil
		c.mu.Unlock()
		if read {
			break
		}
	}
	var said []string
	for _, line := range failure.FindAllString(string(c.Last()), failuresMost) {
		said = append(said, strings.TrimSpace(line[:min(len(line), lineMost)]))
	}
	return strings.Join(said, "; ")
}

// room is how many bytes may be overwritten. The caller holds mu.
func (c *Console) room() int {
	if c.view == nil {
		return consoleTail
	}
	return consoleTail - int(c.total-c.view.at)
}

// Attach gives the console to who, with what is kept of it first; where another
// has it, a *HeldError, or with force that one's end.
func (c *Console) Attach(who string, force bool) (*View, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view != nil && !force {
		return nil, &HeldError{By: c.view.who}
	}
	if c.view != nil && c.port != nil {
		_ = c.port.SetWriteDeadline(time.Now()) // what the last one typed may be stuck
	}
	c.view = &View{console: c, who: who, at: max(0, c.total-consoleTail)}
	c.changed.Broadcast()
	return c.view, nil
}

// Holder is who is attached, "" when nobody is.
func (c *Console) Holder() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == nil {
		return ""
	}
	return c.view.who
}

// View is a console in somebody's hands. One goroutine may read while another
// writes and a third closes it.
type View struct {
	console *Console
	who     string
	at      int64 // bytes before it were read; guarded by console.mu
}

// Read implements io.Reader: what the guest writes, io.EOF when it never will again
// and ErrDetached once the view is another's.
func (v *View) Read(p []byte) (int, error) {
	c := v.console
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.view != v:
			return 0, ErrDetached
		case v.at < c.total:
			from := int(v.at % consoleTail)
			n := copy(p, c.tail[from:min(consoleTail, from+int(c.total-v.at))])
			v.at += int64(n)
			c.changed.Broadcast()
			return n, nil
		case c.over:
			return 0, io.EOF
		}
		c.changed.Wait()
	}
}

// Write implements io.Writer: it types. A guest that stands still or does not
// read makes it wait.
func (v *View) Write(p []byte) (int, error) {
	c := v.console
	c.mu.Lock()
	for c.view == v && c.port == nil && !c.over {
		c.changed.Wait()
	}
	port := c.port
	switch {
	case c.view != v:
		c.mu.Unlock()
		return 0, ErrDetached
	case port == nil:
		c.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	_ = port.SetWriteDeadline(time.Time{}) // under mu: it must not undo what ends this write
	c.mu.Unlock()
	n, err := port.Write(p)
	if err != nil {
		err = fmt.Errorf("type into the console: %w", err)
	}
	return n, err
}

// Close gives the console up. Whoever reads or writes is let go.
func (v *View) Close() error {
	c := v.console
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.view == v {
		c.view = nil
		if c.port != nil {
			_ = c.port.SetWriteDeadline(time.Now())
		}
		c.changed.Broadcast()
	}
	return nil
}
