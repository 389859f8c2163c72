package image

import (
	"bytes"
	"context"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// What Fetch got is whole and can be used before the disk has it; once it has,
// nothing else is left of the copying.
func TestCopy(t *testing.T) {
	data, digest := random(3<<20, 1)
	from := newStore(t, t.TempDir())
	if _, _, err := from.Put(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(from.Handler())
	defer server.Close()
	to := newStore(t, t.TempDir())
	if err := to.Fetch(t.Context(), server.Client(), []string{server.URL}, digest); err != nil {
		t.Fatal(err)
	}
	if got := read(t, to, digest); !bytes.Equal(got, data) {
		t.Fatal("the copy is not what was fetched")
	}
	to.onDisk(strings.TrimPrefix(digest, prefix))
	if left := leftovers(t, to); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func read(t *testing.T, s *Store, digest string) []byte {
	t.Helper()
	f, size, err := s.Open(digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	data := make([]byte, size)
	if _, err := f.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	return data
}

// A machine that lost its power while the disk caught up has a mark, and a blob
// of which anything may be missing: it must not be taken for the blob.
func TestCopyTornByPowerLoss(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	data, digest := random(100_000, 2)
	kept, keptDigest := random(1000, 3)
	for _, d := range [][]byte{data, kept} {
		if _, _, err := s.Put(t.Context(), bytes.NewReader(d)); err != nil {
			t.Fatal(err)
		}
	}
	h := strings.TrimPrefix(digest, prefix)
	if err := os.Chmod(s.path(h), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(s.path(h), 4096); err != nil {
		t.Fatal(err)
	}
	for _, mark := range []string{copying + h, copying + strings.Repeat("0", 64), copying + "../../x"[6:]} {
		if err := os.WriteFile(filepath.Join(dir, "partial", mark), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = newStore(t, dir)
	if s.Has(digest) {
		t.Fatal("a torn copy is taken for the blob")
	}
	if got := read(t, s, keptDigest); !bytes.Equal(got, kept) {
		t.Fatal("another blob went with it")
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

// Whoever uploads, asks for or pins a blob that is here as a copy is answered
// when the disk has it, not before.
func TestCopyIsAwaited(t *testing.T) {
	data, digest := random(1000, 4)
	h := strings.TrimPrefix(digest, prefix)
	for name, call := range map[string]func(*Store) error{
		"Put":      func(s *Store) error { _, _, err := s.Put(context.Background(), bytes.NewReader(data)); return err },
		"PutChunk": func(s *Store) error { _, err := s.PutChunk(context.Background(), digest, 1000, 0, data); return err },
		"Stat":     func(s *Store) error { _, err := s.Stat(digest); return err },
		"Pin":      func(s *Store) error { return s.Pin("job", digest) },
	} {
		s := newStore(t, t.TempDir())
		if _, _, err := s.Put(t.Context(), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		caughtUp := make(chan struct{})
		s.copies[h] = caughtUp
		var onDisk atomic.Bool
		answered := make(chan bool)
		go func() {
			if err := call(s); err != nil {
				t.Error(name, err)
			}
			answered <- onDisk.Load()
		}()
		select {
		case <-answered:
			t.Errorf("%s answers before the disk has the blob", name)
			continue
		case <-time.After(5 * time.Millisecond): // it is given the chance to be wrong
		}
		onDisk.Store(true)
		s.mu.Lock()
		delete(s.copies, h)
		s.mu.Unlock()
		close(caughtUp)
		if !<-answered {
			t.Errorf("%s answers before the disk has the blob", name)
		}
	}
}
