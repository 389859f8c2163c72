package queuevm

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

// socketMagic begins the hello of a plain socket: "MVM1 TOKEN [words]\n".
const (
	socketMagic = "MVM1 "
	helloMax    = 256
	endLength   = 0xFFFFFFFF // in place of an item's length: END
	lingerTime  = time.Second
)

// token lets one plain socket use one outside queue, until its time is over.
type token struct {
	queue string
	until time.Time
}

// OpenSocket makes a token with which one plain TCP connection to address may
// enqueue to, dequeue from or inspect the outside queue, as LAYOUT.md
// specifies. The token is void after its first use or after ttl.
func (vm *VM) OpenSocket(queue string, ttl time.Duration) (address, name string, err error) {
	if vm.listener == nil {
		return "", "", fmt.Errorf("open a socket to queue %q: this queue-level VM has no proxy: set Config.Listen", queue)
	}
	secret := make([]byte, 16)
	if _, err := rand.Read(secret); err != nil {
		return "", "", fmt.Errorf("make a token: %w", err)
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return "", "", ErrDown
	}
	if vm.givers[queue] == nil && vm.takers[queue] == nil {
		return "", "", fmt.Errorf("outside queue %q: %w", queue, ErrUnknown)
	}
	now := time.Now()
	for other, t := range vm.tokens {
		if now.After(t.until) {
			delete(vm.tokens, other)
		}
	}
	name = hex.EncodeToString(secret)
	vm.tokens[name] = token{queue, now.Add(ttl)}
	return vm.Address(), name, nil
}

// hello is what a plain socket asked for.
type hello struct {
	token string
	words []string
}

func parseHello(line string) (hello, error) {
	fields := strings.Fields(line)
	if len(fields) == 0 {
		return hello{}, errors.New(`say "MVM1 TOKEN" and a newline`)
	}
	for _, w := range fields[1:] {
		if !slices.Contains([]string{"lines", "end", "enqueue", "dequeue", "inspect"}, w) {
			return hello{}, fmt.Errorf("unknown word %q; known are lines, end, enqueue, dequeue, inspect", w)
		}
	}
	return hello{fields[0], fields[1:]}, nil
}

func (h hello) says(word string) bool { return slices.Contains(h.words, word) }

// readLine reads up to a newline, which it takes off, and at most limit bytes.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit+1 {
			return nil, fmt.Errorf("a line is longer than %d bytes", limit)
		}
		line = append(line, part...)
		if err == bufio.ErrBufferFull {
			continue
		}
		if err == io.EOF && len(line) > 0 {
			return line, nil
		}
		if err != nil {
			return nil, err
		}
		return line[:len(line)-1], nil
	}
}

// serveSocket speaks with a plain socket whose first bytes were socketMagic.
func (vm *VM) serveSocket(conn net.Conn, proven func()) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 64<<10)
	w := bufio.NewWriterSize(conn, 64<<10)
	h, way, queue, err := vm.admit(r)
	proven()
	if err == nil {
		_ = conn.SetDeadline(time.Time{})
		select {
		case <-vm.done:
			return
		default:
		}
		err = vm.talk(r, w, h, way, queue)
	}
	if err != nil && !errors.Is(err, net.ErrClosed) {
		fmt.Fprintf(w, "ERROR %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	_ = w.Flush()
	// Bytes left unread would turn the close into a reset that overtakes the answer.
	if tcp, ok := conn.(*net.TCPConn); ok && tcp.CloseWrite() == nil {
		_ = conn.SetDeadline(time.Now().Add(lingerTime))
		_, _ = io.CopyN(io.Discard, conn, 1<<20)
	}
}

func (vm *VM) admit(r *bufio.Reader) (h hello, way, queue string, err error) {
	line, err := readLine(r, helloMax)
	if err != nil {
		return h, "", "", err
	}
	if h, err = parseHello(string(line)); err != nil {
		return h, "", "", err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	t, ok := vm.tokens[h.token]
	delete(vm.tokens, h.token)
	if !ok || time.Now().After(t.until) {
		return h, "", "", errors.New("the token is unknown, used or over; open another socket with the queue service")
	}
	in, out := vm.givers[t.queue] != nil, vm.takers[t.queue] != nil
	switch {
	case h.says("inspect"):
		way = "inspect"
	case in && (!out || h.says("enqueue")) && !h.says("dequeue"):
		way = "enqueue"
	case out && (!in || h.says("dequeue")) && !h.says("enqueue"):
		way = "dequeue"
	default:
		return h, "", "", fmt.Errorf("queue %q: say enqueue or dequeue, as the queue leads", t.queue)
	}
	return h, way, t.queue, nil
}

func (vm *VM) talk(r *bufio.Reader, w *bufio.Writer, h hello, way, queue string) error {
	fmt.Fprintf(w, "OK %s\n", way)
	if err := w.Flush(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	switch way {
	case "inspect":
		for _, s := range vm.Inspect() {
			if s.From.Outside == queue || s.To.Outside == queue {
				fmt.Fprintf(w, "channel=%d capacity=%d depth=%d items_in=%d items_out=%d bytes_in=%d bytes_out=%d giver_closed=%t taker_closed=%t\n",
					s.ID, s.Capacity, s.Depth, s.ItemsIn, s.ItemsOut, s.BytesIn, s.BytesOut, s.GiverClosed, s.TakerClosed)
			}
		}
		return nil
	case "enqueue":
		n, ended, err := vm.feed(ctx, r, h, queue)
		if err != nil {
			return fmt.Errorf("after %d items: %w", n, err)
		}
		if ended || h.says("end") {
			if err := vm.CloseOutside(queue); err != nil {
				return err
			}
		}
		fmt.Fprintf(w, "OK %d\n", n)
		return nil
	}
	return vm.hand(ctx, cancel, r, w, h, queue)
}

// feed enqueues what the socket sends until it says END or stops sending.
func (vm *VM) feed(ctx context.Context, r *bufio.Reader, h hello, queue string) (n int, ended bool, err error) {
	for {
		var item []byte
		if h.says("lines") {
			item, err = readLine(r, vm.config.MaxItem)
		} else {
			item, ended, err = readItem(r, vm.config.MaxItem)
		}
		if err == io.EOF || ended {
			return n, ended, nil
		}
		if err == nil {
			err = vm.Enqueue(ctx, queue, item)
		}
		if err != nil {
			return n, false, err
		}
		n++
	}
}

// readItem reads one length-prefixed item. io.EOF only between items. Memory
// grows as bytes come, not as the length claims.
func readItem(r io.Reader, limit int) (item []byte, ended bool, err error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, false, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == endLength {
		return nil, true, nil
	}
	if uint64(n) > uint64(limit) {
		return nil, false, fmt.Errorf("%w: %d bytes, at most %d", ErrTooBig, n, limit)
	}
	for uint32(len(item)) < n {
		from := len(item)
		item = append(item, make([]byte, min(int(n)-from, 1<<20))...)
		if _, err := io.ReadFull(r, item[from:]); err != nil {
			return nil, false, io.ErrUnexpectedEOF
		}
	}
	return item, false, nil
}

// hand dequeues for the socket, as many items as it asks for: nothing is taken
// that nobody asked for.
func (vm *VM) hand(ctx context.Context, cancel context.CancelFunc, r *bufio.Reader, w *bufio.Writer, h hello, queue string) error {
	demands := make(chan int)
	go func() { // also notices a socket that goes away while nothing comes
		defer cancel()
		for {
			line, err := readLine(r, 20)
			if err != nil {
				close(demands)
				if err != io.EOF { // a socket that stops asking may still take what it asked for
					return
				}
				<-ctx.Done()
				return
			}
			n, err := strconv.Atoi(strings.TrimSpace(string(line)))
			if err != nil || n < 0 {
				close(demands)
				return
			}
			select {
			case demands <- n:
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		n, ok := 0, false
		select {
		case n, ok = <-demands:
		case <-vm.done:
			return ErrDown
		}
		if !ok {
			return nil
		}
		over, err := vm.give(ctx, n, w, h, queue)
		if over || err != nil {
			return err
		}
	}
}

// give hands the socket as many items as it asked for, or END.
func (vm *VM) give(ctx context.Context, n int, w *bufio.Writer, h hello, queue string) (over bool, err error) {
	vm.handing.Add(1)
	defer vm.handing.Add(-1)
	for ; n > 0; n-- {
		item, err := vm.Dequeue(ctx, queue)
		if err == io.EOF {
			if !h.says("lines") {
				_ = binary.Write(w, binary.BigEndian, uint32(endLength))
			}
			return true, w.Flush()
		}
		if err != nil {
			return false, err
		}
		if h.says("lines") {
			_, _ = w.Write(append(item, '\n'))
		} else {
			_ = binary.Write(w, binary.BigEndian, uint32(len(item)))
			_, _ = w.Write(item)
		}
		if err := w.Flush(); err != nil {
			return false, err
		}
	}
	return false, nil
}
