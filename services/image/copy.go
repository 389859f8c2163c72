package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// A copy is a blob that Fetch got from another node. Its bytes are verified and
// can be used at once; that the disk has them too takes longer than the whole
// transfer, and whoever waits for an input should not wait for that. Until then
// a file "copy-HEX" in partial says so: a store that starts and finds one
// removes the blob, which is torn if the machine lost its power, and is fetched
// again. Whoever needs to be told that a blob is on disk waits (onDisk).

const copying = "copy-" // begins the names of the files that say so

// publishCopy makes the verified file at path the blob h, and has the disk catch
// up.
func (s *Store) publishCopy(f *os.File, path, h string) error {
	s.onDisk(h) // an earlier copy of it may have been swept away since
	mark := filepath.Join(s.dir, "partial", copying+h)
	if err := os.WriteFile(mark, nil, 0o600); err != nil {
		return s.diskError(err)
	}
	caughtUp := make(chan struct{})
	s.mu.Lock()
	s.copies[h] = caughtUp
	s.mu.Unlock()
	done := func() {
		os.Remove(mark)
		s.mu.Lock()
		delete(s.copies, h)
		s.mu.Unlock()
		close(caughtUp)
	}
	if _, err := s.show(f, path, h); err != nil {
		done()
		return err
	}
	// It outlives the call, and nobody waits for it at the end: the mark tells
	// the store's next life.
	go func() {
		defer done()
		if err := s.sync(h); err != nil && !errors.Is(err, fs.ErrNotExist) {
			os.Remove(s.path(h)) // of no use to anyone, and fetched again
		}
	}()
	return nil
}

// sync waits until the disk has a blob and its name.
func (s *Store) sync(h string) error {
	f, err := os.Open(s.path(h))
	if err != nil {
		return err
	}
	defer f.Close()
	folder := filepath.Dir(s.path(h))
	return errors.Join(f.Sync(), syncDir(folder), syncDir(filepath.Dir(folder)))
}

// onDisk waits until what is here of a blob is on disk. It tells whether there
// was nothing to wait for: otherwise whoever has looked for the blob before must
// look again. s.mu is not held.
func (s *Store) onDisk(h string) bool {
	s.mu.Lock()
	caughtUp := s.copies[h]
	s.mu.Unlock()
	if caughtUp == nil {
		return true
	}
	<-caughtUp
	return false
}

// tear removes the copies that the disk may not have whole.
func (s *Store) tear(mark string) error {
	h := strings.TrimPrefix(mark, copying)
	if _, err := hexOf(prefix + h); err == nil {
		if err := os.Remove(s.path(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing a copy that may be torn: %w", err)
		}
	}
	return os.Remove(filepath.Join(s.dir, "partial", mark))
}
