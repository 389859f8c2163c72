package image

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const childVariable = "MVM_IMAGE_TEST_CHILD"

// TestMain also is the program that TestKill kills: it stores and pins blob
// after blob, and prints each digest once that was acknowledged.
func TestMain(m *testing.M) {
	dir := os.Getenv(childVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	ctx := context.Background()
	s, err := New(Config{Dir: dir})
	for i := 0; err == nil; i++ {
		data, digest := random(200_000, uint64(i+os.Getpid()))
		if i%2 == 0 {
			_, _, err = s.Put(ctx, bytes.NewReader(data))
		} else {
			for at := 0; at < len(data) && err == nil; at += 50_000 {
				_, err = s.PutChunk(ctx, digest, int64(len(data)), int64(at), data[at:at+50_000])
			}
		}
		if err == nil {
			if err = s.Pin(fmt.Sprint("owner ", i%5), digest); err == nil {
				fmt.Println(digest)
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// After kill -9 every acknowledged blob is there, pinned and right, nothing else
// is half there, and the store goes on.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	var acknowledged []string
	for life := range 3 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childVariable+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged = append(acknowledged, lines.Text())
			if n == 20+7*life {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait() // it was killed
		s := newStore(t, dir)
		if _, err := s.Sweep(time.Now().Add(2 * DefaultLease)); err != nil {
			t.Fatal(err)
		}
		for _, digest := range acknowledged {
			f, _, err := s.Open(digest)
			if err != nil {
				t.Fatalf("acknowledged and pinned, but: %v", err)
			}
			f.Close()
		}
		all, err := s.List("", 1000)
		if err != nil {
			t.Fatal(err)
		}
		if len(all) > len(acknowledged)+life+1 {
			t.Fatalf("%d blobs, %d were acknowledged", len(all), len(acknowledged))
		}
		for _, b := range all {
			f, _, err := s.Open(b.Digest)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.New()
			_, err = io.Copy(sum, f)
			f.Close()
			if got := fmt.Sprintf("sha256:%x", sum.Sum(nil)); err != nil || got != b.Digest {
				t.Fatalf("%s holds %s, %v", b.Digest, got, err)
			}
		}
		if left := leftovers(t, s); len(left) > 0 {
			t.Fatalf("left behind: %v", left)
		}
	}
}

// Whoever is told that a blob is here can pin it, however often others sweep.
func TestSweepAgainstPin(t *testing.T) {
	var back atomic.Int64 // how far the store's clock is behind
	s, err := New(Config{Dir: t.TempDir(), Clock: func() time.Time { return time.Now().Add(-time.Duration(back.Load())) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	done := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			// Only what is long past its lease goes.
			if _, err := s.Sweep(time.Now()); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for i := range 200 {
		data := fmt.Sprint("blob ", i)
		// As if it had been here for long: it may go at any moment.
		back.Store(int64(2 * DefaultLease))
		digest, _, err := s.Put(ctx, strings.NewReader(data))
		if err != nil {
			t.Fatal(err)
		}
		back.Store(0)
		if !s.Has(digest) {
			continue
		}
		if err := s.Pin("me", digest); err != nil {
			t.Fatalf("told that it is here, then: %v", err)
		}
	}
	close(done)
	sweeper.Wait()
	if _, err := s.Sweep(time.Now().Add(2 * DefaultLease)); err != nil {
		t.Fatal(err)
	}
	for h := range s.pins["me"] {
		if _, _, err := s.Open(prefix + h); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d of 200 outran the sweeper", len(s.pins["me"]))
}

// FuzzUpload plays chunks in any order, right and wrong ones, restarts between
// them, against a model of what must be received.
func FuzzUpload(f *testing.F) {
	f.Add([]byte{0, 10, 10, 10, 20, 30})
	f.Add([]byte{0, 200, 0, 10, 255, 1, 10, 50})
	f.Fuzz(func(t *testing.T, moves []byte) {
		const size = 60
		data, digest := random(size, 1)
		dir := t.TempDir()
		s := newStore(t, dir)
		var received []byte
		for i := 0; i+1 < len(moves) && i < 40; i += 2 {
			offset, n := int(moves[i]), int(moves[i+1])
			if offset == 255 {
				s = newStore(t, dir)
				continue
			}
			wrong := n >= 128
			n %= 128
			var chunk []byte
			if offset <= size {
				chunk = bytes.Clone(data[offset:min(size, offset+n)])
				if wrong && len(chunk) > 0 {
					chunk[len(chunk)-1] ^= 1
				}
				if offset+n > size {
					chunk = append(chunk, make([]byte, offset+n-size)...)
				}
			}
			st, err := s.PutChunk(t.Context(), digest, size, int64(offset), chunk)
			switch {
			case offset > size || offset+n > size || offset > len(received):
				if err == nil {
					t.Fatalf("%d bytes at %d were taken after %d", n, offset, len(received))
				}
				continue
			case offset+n > len(received):
				received = append(received, chunk[len(received)-offset:]...)
			}
			right := bytes.Equal(received, data[:len(received)])
			switch {
			case len(received) < size:
				if err != nil || st.Complete || st.Received != int64(len(received)) {
					t.Fatalf("%+v, %v; expected %d received", st, err, len(received))
				}
			case right:
				if err != nil || !st.Complete || !s.Has(digest) {
					t.Fatalf("complete: %+v, %v", st, err)
				}
				return
			default:
				if err == nil || s.Has(digest) {
					t.Fatalf("wrong bytes became a blob: %+v", st)
				}
				received = nil
			}
		}
	})
}

func BenchmarkPin(b *testing.B) {
	s := newStore(b, b.TempDir())
	digest, _, err := s.Put(b.Context(), strings.NewReader("x"))
	if err != nil {
		b.Fatal(err)
	}
	var n atomic.Int64
	pin := func(b *testing.B) {
		if err := s.Pin(fmt.Sprint(n.Add(1)), digest); err != nil {
			b.Error(err)
		}
	}
	b.Run("alone", func(b *testing.B) {
		for b.Loop() {
			pin(b)
		}
	})
	b.Run("together", func(b *testing.B) {
		b.SetParallelism(16)
		b.RunParallel(func(p *testing.PB) {
			for p.Next() {
				pin(b)
			}
		})
	})
}
