package mvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What a program prints is kept in two files. WorkDir/process-ID.NAME holds the
// first half of what may be kept, as it is. When that is full, the rest goes
// round and round in process-ID.NAME.tail, behind a header:
//
//	0  8 bytes "MVMTAIL1"
//	8  uint64, little-endian: capacity of the round part
//	16 uint64: bytes whose writing has begun
//	24 uint64: bytes whose writing is done
//	32 the round part; the byte with number n (from 0) is at 32 + n mod capacity
//
// A reader in another process takes the bytes from begun-capacity to done, and
// looks at begun again after reading: what was written over meanwhile is void.
// So a reader needs no help from the writer and what is kept outlives it. A
// complete stream's first file has no write permission left. A stream without a
// byte has no file: a file system where files come and go in their thousands may
// look for a long time until it has a free one (ext4 passes by all that were
// removed in the last minute), which cost a silent program more than its start.
const (
	tailMagic  = "MVMTAIL1"
	tailHeader = 32
)

// DefaultStreamMax is what is kept of a stream, in bytes, when Start.StreamMax
// is 0.
const DefaultStreamMax = 1 << 20

// streamPath is where a process's stream is kept; name is stdout or stderr.
func streamPath(workDir string, process int, name string) string {
	return filepath.Join(workDir, fmt.Sprintf("process-%d.%s", process, name))
}

// keeper keeps the head and the tail of one stream. Not for several goroutines
// at once.
type keeper struct {
	path   string
	head   *os.File
	room   int64 // left in head
	tail   *os.File
	size   int64  // of the round part
	count  uint64 // bytes given to the round part
	broken error  // the disk is full or the like: what follows is dropped
}

func newKeeper(path string, max int64) *keeper {
	if max <= 0 {
		max = DefaultStreamMax
	}
	return &keeper{path: path, room: (max + 1) / 2, size: max / 2}
}

// open makes the first file, when there is something to keep.
func (k *keeper) open() {
	if k.head == nil && k.broken == nil {
		k.head, k.broken = os.OpenFile(k.path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	}
}

// write takes all of p, whatever becomes of it.
func (k *keeper) write(p []byte) {
	k.open()
	if n := min(k.room, int64(len(p))); n > 0 && k.broken == nil {
		_, k.broken = k.head.Write(p[:n])
		k.room -= n
		p = p[n:]
	}
	if len(p) == 0 || k.size == 0 || k.broken != nil {
		return
	}
	if k.tail == nil {
		k.broken = k.openTail()
	}
	skip := max(0, len(p)-int(k.size))
	begun := k.count + uint64(len(p))
	k.mark(16, begun)
	at := k.count + uint64(skip)
	for rest := p[skip:]; len(rest) > 0 && k.broken == nil; {
		offset := int64(at % uint64(k.size))
		n := min(int64(len(rest)), k.size-offset)
		_, k.broken = k.tail.WriteAt(rest[:n], tailHeader+offset)
		rest, at = rest[n:], at+uint64(n)
	}
	k.count = begun
	k.mark(24, begun)
}

func (k *keeper) openTail() (err error) {
	k.tail, err = os.OpenFile(k.path+".tail", os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	header := append([]byte(tailMagic), make([]byte, tailHeader-len(tailMagic))...)
	binary.LittleEndian.PutUint64(header[8:], uint64(k.size))
	_, err = k.tail.WriteAt(header, 0)
	return err
}

func (k *keeper) mark(offset int64, count uint64) {
	if k.broken == nil {
		_, k.broken = k.tail.WriteAt(binary.LittleEndian.AppendUint64(nil, count), offset)
	}
}

// finish declares the stream complete.
func (k *keeper) finish() {
	if k.head != nil {
		k.head.Chmod(0o444)
		k.head.Close()
	}
	if k.tail != nil {
		k.tail.Close()
	}
}

// ReadStream reads what a process printed, from any process that may read
// WorkDir, also while the program runs and after the MVM process is gone. name
// is stdout or stderr; offset counts the bytes that the program printed.
//
// It returns at most length bytes from offset on (and, where bytes were left
// out, a line that says how many: dropped is that number, else 0), the offset
// to ask for next, and whether the stream is complete and next is its end. A
// stream that has no byte yet reads as empty and incomplete, also when its
// program has ended: whoever knows that it had ended before knows that nothing
// will come. A damaged one is an error: the program can write there.
func ReadStream(workDir string, process int, name string, offset, length int64) (data []byte, next int64, end bool, dropped int64, err error) {
	if offset < 0 || length <= 0 || name != "stdout" && name != "stderr" {
		return nil, offset, false, 0, fmt.Errorf("read %s of process %d from %d, %d bytes: no such part of a stream", name, process, offset, length)
	}
	path := streamPath(workDir, process, name)
	next = offset
	// The tail first: if there is none now, the head's size below is all there
	// is, and if there is one, the head is full.
	tail, err := openRegular(path + ".tail")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, next, false, 0, err
	}
	if tail != nil {
		defer tail.Close()
	}
	head, err := openRegular(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, next, false, 0, nil
	} else if err != nil {
		return nil, next, false, 0, err
	}
	defer head.Close()
	info, err := head.Stat()
	if err != nil {
		return nil, next, false, 0, err
	}
	complete, full := info.Mode().Perm()&0o222 == 0, info.Size()
	if complete && tail == nil { // it may have come between the two looks
		if tail, err = openRegular(path + ".tail"); err == nil {
			defer tail.Close()
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, next, false, 0, err
		}
	}
	if offset < full {
		data = make([]byte, min(length, full-offset))
		n, err := head.ReadAt(data, offset)
		if err != nil && err != io.EOF {
			return nil, next, false, 0, err
		}
		data, next = data[:n], offset+int64(n)
	}
	if tail == nil {
		return data, next, complete && next >= full, 0, nil
	}
	rest, from, last, err := readTail(tail, next-full, length-int64(len(data)))
	if err != nil {
		return nil, offset, false, 0, fmt.Errorf("%s.tail: %w", path, err)
	}
	if next < full { // a short read of the head
		return data, next, false, 0, nil
	}
	if dropped = from + full - next; dropped > 0 && len(rest) > 0 {
		data = fmt.Appendf(data, "\n[mvm: %d bytes left out]\n", dropped)
	} else {
		dropped = 0
	}
	if len(rest) > 0 {
		data, next = append(data, rest...), full+from+int64(len(rest))
	}
	return data, next, complete && next >= full+last, dropped, nil
}

// readTail reads up to length bytes of the round part, beginning with byte
// number offset or the oldest still there; from is the number of the first byte
// returned, last the number after the last one written.
func readTail(tail *os.File, offset, length int64) (data []byte, from, last int64, err error) {
	for range 100 {
		size, begun, done, err := readHeader(tail)
		if err != nil {
			return nil, 0, 0, err
		}
		last = done
		from = max(offset, begun-size, 0)
		if from >= done || length <= 0 {
			return nil, from, last, nil
		}
		data = make([]byte, min(length, done-from))
		for at := int64(0); at < int64(len(data)); {
			position := (from + at) % size
			n := min(int64(len(data))-at, size-position)
			if _, err := tail.ReadAt(data[at:at+n], tailHeader+position); err != nil {
				return nil, 0, 0, fmt.Errorf("damaged: %w", err)
			}
			at += n
		}
		if _, begun, _, err = readHeader(tail); err != nil {
			return nil, 0, 0, err
		}
		if void := begun - size - from; void <= 0 {
			return data, from, last, nil
		} else if void < int64(len(data)) {
			return data[void:], from + void, last, nil
		} // all was written over meanwhile
	}
	return nil, offset, last, nil // too fast to follow; the caller asks again
}

func readHeader(tail *os.File) (size, begun, done int64, err error) {
	var header [tailHeader]byte
	if _, err := tail.ReadAt(header[:], 0); err == io.EOF {
		return 1, 0, 0, nil // just made
	} else if err != nil {
		return 0, 0, 0, err
	}
	size = int64(binary.LittleEndian.Uint64(header[8:]))
	begun = int64(binary.LittleEndian.Uint64(header[16:]))
	done = int64(binary.LittleEndian.Uint64(header[24:]))
	if string(header[:8]) != tailMagic || size <= 0 || size > 1<<40 || done < 0 || begun < done || begun > 1<<60 {
		return 0, 0, 0, errors.New("damaged: its header makes no sense")
	}
	return size, begun, done, nil
}

// openRegular opens a file that a program may have tampered with.
func openRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no regular file any more", path)
	}
	return f, nil
}
