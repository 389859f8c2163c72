package mvm

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// wire is one end of the control socket.
type wire struct {
	reader io.Reader // read by one goroutine

	mu     sync.Mutex // guards writer: one message at a time
	writer io.Writer
}

// send writes one message.
func (w *wire) send(message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return fmt.Errorf("encode a control message: %w", err)
	}
	if len(body) > MaxMessage {
		return fmt.Errorf("a control message of %d bytes is over the %d that are allowed", len(body), MaxMessage)
	}
	frame := append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(body)), uint32(len(body))), body...)
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err = w.writer.Write(frame)
	return err
}

// hurry has what is still to be sent fail after d: the other end may not read.
func (w *wire) hurry(d time.Duration) {
	if f, ok := w.writer.(*os.File); ok {
		_ = f.SetWriteDeadline(time.Now().Add(d)) // a socket has deadlines
	}
}

// receive reads one message. io.EOF means that the other end is gone.
func (w *wire) receive(message any) error {
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
	if err := json.Unmarshal(body, message); err != nil {
		return fmt.Errorf("decode a control message: %w", err)
	}
	return nil
}
