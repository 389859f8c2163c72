package osvm

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"
)

// The wire of a migration is frames over whatever connection it is given: kind
// u8, length u32, payload, and a CRC-32C over all frames of that direction so far,
// this one included, so that one that is lost, doubled or late is seen as well as
// one that was changed. Numbers are big-endian. The source speaks first:
//
//	hello    JSON: offer             →
//	         ← welcome | refuse
//	page     u32 first, content      → 1 to 64 pages from that one on
//	zero     u32 first, u32 count    → 1 to 64 pages that are zeros
//	round    u32 number              → this round's pages have been sent
//	         ← round u32             they are in place
//	disk     u32 disk, u64 at, bytes → of the file that has what the guest wrote;
//	                                   none: the file ends there
//	state    bytes                   → of processor and devices, in pieces
//	end                              → the machine stands still, and this was all
//	         ← ready                 it is loaded and could run
//	commit                           → the source runs it no more unless it hears refuse
//	         ← taken                 it is the target's
//	gone                             → the source has none any more
//
// Either side says refuse, with the reason in words, in place of anything, and
// that ends it; after commit the source cannot.
const (
	frameHello   = 'H'
	frameWelcome = 'W'
	framePage    = 'P'
	frameZero    = 'Z'
	frameRound   = 'R'
	frameDisk    = 'D'
	frameState   = 'S'
	frameEnd     = 'E'
	frameReady   = 'Y'
	frameCommit  = 'C'
	frameTaken   = 'T'
	frameGone    = 'G'
	frameRefuse  = 'X'

	wireVersion = 1
	frameHead   = 5
	frameSum    = 4
	frameMax    = chunkSize + diskHead
	diskHead    = 12
	helloMax    = 64 << 10
	wireBuffer  = 1 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// RefusedError is what the other side of a migration said: there is no such
// machine there, and there will not be.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string { return "the other host refuses: " + e.Reason }

// wire is one side of the connection. One goroutine reads; any may write.
type wire struct {
	conn     net.Conn
	patience time.Duration // that the other side has for each thing
	reader   *bufio.Reader
	inSum    uint32
	payload  []byte

	mu     sync.Mutex // guards what is written: a frame at a time
	writer *bufio.Writer
	outSum uint32
	sent   int64 // bytes
}

func newWire(conn net.Conn, patience time.Duration) *wire {
	return &wire{
		conn: conn, patience: patience, payload: make([]byte, frameMax),
		reader: bufio.NewReaderSize(conn, wireBuffer), writer: bufio.NewWriterSize(conn, wireBuffer),
	}
}

// put writes a frame whose payload is the pieces; it is sent with the next flush
// at the latest.
func (w *wire) put(kind byte, pieces ...[]byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var head [frameHead]byte
	length := 0
	for _, piece := range pieces {
		length += len(piece)
	}
	head[0] = kind
	binary.BigEndian.PutUint32(head[1:], uint32(length))
	_ = w.conn.SetWriteDeadline(time.Now().Add(w.patience))
	w.outSum = crc32.Update(w.outSum, castagnoli, head[:])
	_, err := w.writer.Write(head[:])
	for _, piece := range pieces {
		w.outSum = crc32.Update(w.outSum, castagnoli, piece)
		if err == nil {
			_, err = w.writer.Write(piece)
		}
	}
	if err == nil {
		_, err = w.writer.Write(binary.BigEndian.AppendUint32(nil, w.outSum))
	}
	w.sent += int64(frameHead + length + frameSum)
	return err
}

func (w *wire) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.conn.SetWriteDeadline(time.Now().Add(w.patience))
	return w.writer.Flush()
}

// say is put and flush.
func (w *wire) say(kind byte, pieces ...[]byte) error {
	return errors.Join(w.put(kind, pieces...), w.flush())
}

func (w *wire) sayJSON(kind byte, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return w.say(kind, text)
}

// refuse tells the other side why, as far as it still listens.
func (w *wire) refuse(reason error) {
	text := reason.Error()
	_ = w.say(frameRefuse, []byte(text[:min(len(text), helloMax)]))
}

// lingerTime is how long the other side has to hear a refusal and hang up.
const lingerTime = 5 * time.Second

// linger drops what the other side is still sending, until it hangs up: a connection
// that is closed with bytes unread is reset, which takes what was said last with it.
func (w *wire) linger() {
	_ = w.conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.Copy(io.Discard, w.conn)
}

// next reads a frame. The payload is good until the next call.
func (w *wire) next() (kind byte, payload []byte, err error) {
	_ = w.conn.SetReadDeadline(time.Now().Add(w.patience))
	var head [frameHead]byte
	if _, err := io.ReadFull(w.reader, head[:]); err != nil {
		return 0, nil, fmt.Errorf("the other host says nothing more: %w", err)
	}
	length := binary.BigEndian.Uint32(head[1:])
	if length > frameMax {
		return 0, nil, fmt.Errorf("the other host sends %d bytes in one frame, of at most %d", length, frameMax)
	}
	payload = w.payload[:length]
	var sum [frameSum]byte
	_, err = io.ReadFull(w.reader, payload)
	if err == nil {
		_, err = io.ReadFull(w.reader, sum[:])
	}
	if err != nil {
		return 0, nil, fmt.Errorf("the other host stops within a frame: %w", err)
	}
	w.inSum = crc32.Update(crc32.Update(w.inSum, castagnoli, head[:]), castagnoli, payload)
	if said := binary.BigEndian.Uint32(sum[:]); said != w.inSum {
		return 0, nil, fmt.Errorf("a frame %q has the sum %08x, and what came with it %08x: the connection changes what it carries", head[0], said, w.inSum)
	}
	if head[0] == frameRefuse {
		return 0, nil, &RefusedError{string(payload)}
	}
	return head[0], payload, nil
}

// expect reads the frame that must come now.
func (w *wire) expect(want byte) ([]byte, error) {
	kind, payload, err := w.next()
	if err == nil && kind != want {
		err = fmt.Errorf("the other host says %q where %q is expected", kind, want)
	}
	return payload, err
}
