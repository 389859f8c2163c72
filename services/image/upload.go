package image

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/wsdl"
)

// partial is a blob that is being uploaded: partial/HEX.SIZE. What is received
// has been hashed; after a restart it is hashed again when more comes.
type partial struct {
	hex  string
	path string
	size int64

	mu       sync.Mutex // guards all below; held while a chunk is written
	received int64
	touched  time.Time // when something came
	hash     hash.Hash // of what is received; nil: not yet read again
	over     bool      // it has become a blob, or was dropped
	complete bool      // it has become a blob
}

const temporary = "put-" // begins the names of files that Put writes

// resume finds the uploads that an earlier life left, and removes its
// unfinished Puts.
func (s *Store) resume() error {
	files, err := os.ReadDir(filepath.Join(s.dir, "partial"))
	if err != nil {
		return err
	}
	for _, file := range files {
		if strings.HasPrefix(file.Name(), copying) {
			if err := s.tear(file.Name()); err != nil {
				return err
			}
			continue
		}
		path := filepath.Join(s.dir, "partial", file.Name())
		h, size, ok := strings.Cut(file.Name(), ".")
		n, err := strconv.ParseInt(size, 10, 64)
		if _, bad := hexOf(prefix + h); !ok || err != nil || bad != nil || s.partials[h] != nil {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		info, err := file.Info()
		if err != nil {
			return err
		}
		s.partials[h] = &partial{hex: h, path: path, size: n, received: info.Size(), touched: info.ModTime()}
	}
	return nil
}

func (s *Store) partialNow(h string) *partial {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.partials[h]
}

// lockPartial returns the upload of a blob, locked; it begins one when there is
// none. It refuses another size than the one that the upload began with.
func (s *Store) lockPartial(h string, size int64) (*partial, error) {
	for {
		s.mu.Lock()
		p := s.partials[h]
		if p == nil {
			p = &partial{hex: h, size: size, hash: sha256.New(), touched: s.clock(),
				path: filepath.Join(s.dir, "partial", h+"."+strconv.FormatInt(size, 10))}
			s.partials[h] = p
		}
		s.mu.Unlock()
		p.mu.Lock()
		if p.over {
			p.mu.Unlock()
			continue
		}
		if p.size != size {
			p.mu.Unlock()
			return nil, wsdl.NewFault(wsdl.FaultCodeConflict,
				fmt.Sprintf("blob %s%s is being uploaded with %d bytes, not %d", prefix, h, p.size, size),
				"check the size; an upload that is not continued is dropped after its lease")
		}
		return p, nil
	}
}

// drop forgets an upload and its bytes, and returns err, or why it could not.
// p.mu is held.
func (s *Store) drop(p *partial, err error) error {
	p.over = true
	s.mu.Lock()
	delete(s.partials, p.hex)
	s.mu.Unlock()
	if gone := os.Remove(p.path); gone != nil && !errors.Is(gone, fs.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("image store: %w", gone))
	}
	return err
}

// Drop forgets what was received of a blob that is not complete.
func (s *Store) Drop(digest string) error {
	h, err := hexOf(digest)
	if err != nil {
		return err
	}
	p := s.partialNow(h)
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return nil
	}
	return s.drop(p, nil)
}

// PutChunk adds data at offset of a blob of size bytes and says what is there
// then. It is idempotent: what was received already is skipped. A chunk beyond
// what was received, or another size, is a conflict. The chunk that completes
// the blob verifies it: bytes that do not hash to the digest are a conflict, and
// all that was received is dropped. An upload goes on where it was after a
// restart, and after a full disk.
func (s *Store) PutChunk(ctx context.Context, digest string, size, offset int64, data []byte) (Status, error) {
	for {
		st, err := s.putChunk(ctx, digest, size, offset, data, s.publish)
		if err != nil || !st.Complete || s.onDisk(strings.TrimPrefix(digest, prefix)) {
			return st, err
		}
	}
}

// publisher makes the verified file at path the blob h.
type publisher func(f *os.File, path, h string) error

// putChunk is PutChunk for those who leave it to publish what a complete blob is.
func (s *Store) putChunk(ctx context.Context, digest string, size, offset int64, data []byte, publish publisher) (Status, error) {
	h, err := hexOf(digest)
	if err != nil {
		return Status{}, err
	}
	if size < 0 || offset < 0 || offset > size || int64(len(data)) > size-offset {
		return Status{}, wsdl.NewFault(wsdl.FaultCodeInvalidRequest,
			fmt.Sprintf("blob %s: %d bytes at offset %d do not fit into %d bytes", digest, len(data), offset, size),
			"give the size of the whole blob, and chunks inside it")
	}
	p, there, err := s.begin(h, size)
	if err != nil {
		return Status{}, err
	}
	if p == nil {
		return there, nil
	}
	defer p.mu.Unlock()
	if offset > p.received {
		return Status{}, wsdl.NewFault(wsdl.FaultCodeConflict,
			fmt.Sprintf("blob %s: the chunk begins at %d, but only %d bytes were received", digest, offset, p.received),
			fmt.Sprintf("go on at offset %d", p.received))
	}
	if err := s.extend(ctx, p, data[min(int64(len(data)), p.received-offset):], publish); err != nil {
		return Status{}, err
	}
	return s.status(p), nil
}

// begin returns the upload of a blob, locked, or what is there when it needs
// none.
func (s *Store) begin(h string, size int64) (*partial, Status, error) {
	p, err := s.lockPartial(h, size)
	if err != nil {
		return nil, Status{}, err
	}
	// Under the upload's lock, so that none can complete it unseen.
	had, here, err := s.renew(h)
	if err == nil && here && had != size {
		err = wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("blob %s%s has %d bytes, not %d", prefix, h, had, size), "check the size")
	}
	if err != nil || here {
		err = s.drop(p, err)
		p.mu.Unlock()
		return nil, Status{Digest: prefix + h, Size: size, Received: size, Complete: true}, err
	}
	return p, Status{}, nil
}

func (s *Store) status(p *partial) Status {
	return Status{Digest: prefix + p.hex, Size: p.size, Received: p.received, Complete: p.complete}
}

// extend writes data after what was received, and completes the blob when that
// is all of it. p.mu is held.
func (s *Store) extend(ctx context.Context, p *partial, data []byte, publish publisher) error {
	if len(data) == 0 && p.received < p.size {
		if p.received == 0 {
			return s.drop(p, nil) // whoever only asks begins no upload
		}
		return nil
	}
	f, err := os.OpenFile(p.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return s.diskError(err)
	}
	defer f.Close()
	if p.hash == nil {
		if err := p.rehash(ctx, f); err != nil {
			return err
		}
	}
	// Hashing and writing take about as long as each other.
	hashed := make(chan struct{})
	go func() {
		p.hash.Write(data)
		close(hashed)
	}()
	_, err = f.WriteAt(data, p.received)
	<-hashed
	if err != nil {
		p.hash = nil
		return s.diskError(errors.Join(err, f.Truncate(p.received)))
	}
	p.received += int64(len(data))
	p.touched = s.clock()
	if p.received < p.size {
		return nil
	}
	var sum [32]byte
	if p.hash.Sum(sum[:0]); Digest(sum) != prefix+p.hex {
		return s.drop(p, wsdl.NewFault(wsdl.FaultCodeConflict,
			fmt.Sprintf("the %d bytes received as %s%s hash to %s", p.size, prefix, p.hex, Digest(sum)),
			"nothing of them was kept; hash the file again and upload it from the start"))
	}
	if err := publish(f, p.path, p.hex); err != nil {
		return err
	}
	p.complete = true
	return s.drop(p, nil)
}

// rehash reads again what an earlier life received.
func (p *partial) rehash(ctx context.Context, f *os.File) error {
	sum := sha256.New()
	buffer := make([]byte, 1<<20)
	for done := int64(0); done < p.received; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buffer[:min(int64(len(buffer)), p.received-done)], done)
		sum.Write(buffer[:n])
		done += int64(n)
		if err != nil && done < p.received {
			return fmt.Errorf("image store: reading %s again: %w", p.path, err)
		}
	}
	p.hash = sum
	return nil
}

// publish makes the verified file at path the blob h: on disk before it can be
// seen, and seen on disk before this returns.
func (s *Store) publish(f *os.File, path, h string) error {
	s.onDisk(h) // a copy of it whose mark is still there would take this one with it
	if err := f.Sync(); err != nil {
		return s.diskError(err)
	}
	made, err := s.show(f, path, h)
	if err != nil {
		return err
	}
	folder := filepath.Dir(s.path(h))
	err = syncDir(folder)
	if made {
		err = errors.Join(err, syncDir(filepath.Dir(folder)))
	}
	if err != nil {
		return s.diskError(err)
	}
	return nil
}

// show makes the verified file at path the blob h for all to see, and tells
// whether a folder was made for it.
func (s *Store) show(f *os.File, path, h string) (made bool, err error) {
	now := s.clock()
	if err := errors.Join(f.Chmod(0o444), os.Chtimes(path, now, now)); err != nil {
		return false, s.diskError(err)
	}
	err = os.Mkdir(filepath.Dir(s.path(h)), 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return false, s.diskError(err)
	}
	made = err == nil
	s.lend(h, now)
	s.sweeping.RLock() // a sweep that found an old blob there must not remove this one
	defer s.sweeping.RUnlock()
	if err := os.Rename(path, s.path(h)); err != nil {
		return made, s.diskError(err)
	}
	return made, nil
}

// Put stores everything that r gives, until io.EOF, and returns its digest and
// size in bytes. When it fails, nothing is kept.
func (s *Store) Put(ctx context.Context, r io.Reader) (digest string, size int64, err error) {
	f, err := os.CreateTemp(filepath.Join(s.dir, "partial"), temporary+"*")
	if err != nil {
		return "", 0, s.diskError(err)
	}
	defer os.Remove(f.Name()) // it is renamed, or of no use
	defer f.Close()
	sum := sha256.New()
	buffer := make([]byte, 256<<10)
	for err == nil {
		var n int
		if err = ctx.Err(); err == nil {
			n, err = io.ReadFull(r, buffer)
		}
		if n > 0 {
			sum.Write(buffer[:n])
			size += int64(n)
			if _, err := f.Write(buffer[:n]); err != nil {
				return "", 0, s.diskError(err)
			}
		}
	}
	if err != io.EOF && err != io.ErrUnexpectedEOF {
		return "", 0, fmt.Errorf("image store: reading what is to be stored: %w", err)
	}
	h := fmt.Sprintf("%x", sum.Sum(nil))
	for {
		_, here, err := s.renew(h)
		if err != nil || here && s.onDisk(h) {
			return prefix + h, size, err
		}
		if !here {
			break
		}
	}
	if err := s.publish(f, f.Name(), h); err != nil {
		return "", 0, err
	}
	return prefix + h, size, nil
}
