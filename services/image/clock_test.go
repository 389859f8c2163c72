package image

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// However the machine's clock is set, an upload, a blob that was uploaded or
// asked for keeps its lease, and no more. The times of files show the clock as
// it was set when they were written.
func TestClockJumps(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 5 * time.Hour, "back": -5 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			now := time.Now()
			dir := t.TempDir()
			s, err := New(Config{Dir: dir, Clock: func() time.Time { return now }})
			if err != nil {
				t.Fatal(err)
			}
			data, digest := random(100, 1)
			if _, _, err := s.Put(t.Context(), bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			half, halfDigest := random(100, 2)
			if _, err := s.PutChunk(t.Context(), halfDigest, 100, 0, half[:50]); err != nil {
				t.Fatal(err)
			}
			old, oldDigest := random(100, 3)
			if _, _, err := s.Put(t.Context(), bytes.NewReader(old)); err != nil {
				t.Fatal(err)
			}
			sweep := func(at time.Duration, blobs, partials int) {
				t.Helper()
				swept, err := s.Sweep(now.Add(at))
				if err != nil || swept.Blobs != blobs || swept.Partials != partials {
					t.Errorf("after %v: swept %+v, %v; want %d blobs and %d uploads", at, swept, err, blobs, partials)
				}
			}
			// The clock is set now: what was written before bears a strange time.
			strange := now.Add(-jump)
			for _, path := range []string{s.path(digest[7:]), s.partialNow(halfDigest[7:]).path, s.path(oldDigest[7:])} {
				if err := os.Chtimes(path, strange, strange); err != nil {
					t.Fatal(err)
				}
			}
			sweep(time.Minute, 0, 0)
			sweep(59*time.Minute, 0, 0)
			if !s.Has(digest) {
				t.Fatal("the blob is gone")
			}
			now = now.Add(30 * time.Minute)
			s.Has(digest)
			sweep(31*time.Minute, 1, 1) // not what was asked for
			sweep(61*time.Minute, 1, 0)

			// What an earlier life left behind a clock that was set back has a
			// lease of this life, and an end.
			if _, _, err := s.Put(t.Context(), bytes.NewReader(data)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(s.path(digest[7:]), strange, strange); err != nil {
				t.Fatal(err)
			}
			if s, err = New(Config{Dir: dir, Clock: func() time.Time { return now }}); err != nil {
				t.Fatal(err)
			}
			if jump < 0 {
				sweep(0, 0, 0)
				sweep(59*time.Minute, 0, 0)
			}
			sweep(61*time.Minute, 1, 0)
		})
	}
}
