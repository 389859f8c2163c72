package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mvm/wsdl"
)

// base is a node that serves what respond says.
func base(t *testing.T, respond http.HandlerFunc) string {
	server := httptest.NewServer(respond)
	t.Cleanup(server.Close)
	return server.URL
}

func TestFetch(t *testing.T) {
	data, digest := random(5<<20+3, 6)
	have := newStore(t, t.TempDir())
	if _, _, err := have.Put(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	var sent atomic.Int64
	good := base(t, func(w http.ResponseWriter, r *http.Request) {
		counted := &countingWriter{ResponseWriter: w, n: &sent}
		have.Handler().ServeHTTP(counted, r)
	})
	part := func(w http.ResponseWriter, r *http.Request, data []byte, n int) { // breaks off after n bytes
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data[:n])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
	wrong := bytes.Clone(data)
	wrong[100] ^= 1
	missing := base(t, http.NotFound)
	breaks := base(t, func(w http.ResponseWriter, r *http.Request) { part(w, r, data, 3<<20+17) })
	liesAndBreaks := base(t, func(w http.ResponseWriter, r *http.Request) { part(w, r, wrong, 2<<20) })
	lies := base(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(wrong)))
		w.Write(wrong)
	})
	liesOnSize := base(t, func(w http.ResponseWriter, r *http.Request) { part(w, r, append(data[:3<<20:3<<20], 1), 2<<20) })
	ignoresRange := base(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		w.Write(data)
	})
	nowhere := "http://127.0.0.1:1"

	for _, c := range []struct {
		name  string
		bases []string
		most  int // bytes that the good base sends
	}{
		{"from one", []string{good}, len(data)},
		{"from the address of the image service", []string{good + "/services/image"}, len(data)},
		{"past nodes that do not answer or have it", []string{nowhere, missing, good}, len(data)},
		{"on from where another broke off", []string{breaks, good}, len(data) - 3<<20},
		{"past wrong bytes", []string{lies, good}, len(data)},
		{"past wrong bytes that break off", []string{liesAndBreaks, good}, 2 * len(data)},
		{"past a wrong size", []string{liesOnSize, good}, 2 * len(data)},
		{"when ranges are not served", []string{breaks, ignoresRange}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t, t.TempDir())
			sent.Store(0)
			var together sync.WaitGroup
			for range 3 {
				together.Go(func() {
					if err := s.Fetch(t.Context(), http.DefaultClient, c.bases, digest); err != nil {
						t.Error(err)
					}
				})
			}
			together.Wait()
			wantBlob(t, s, digest, data)
			if sent.Load() > int64(c.most) {
				t.Errorf("%d bytes were sent, expected at most %d", sent.Load(), c.most)
			}
		})
	}

	s := newStore(t, t.TempDir())
	err := s.Fetch(t.Context(), http.DefaultClient, []string{nowhere, missing, lies}, digest)
	wantCode(t, err, wsdl.FaultCodeUnavailable)
	if !strings.Contains(err.Error(), "404") || !strings.Contains(err.Error(), "refused") || !strings.Contains(err.Error(), "hash to") {
		t.Fatalf("reasons are missing: %v", err)
	}
	if s.Has(digest) {
		t.Fatal("wrong bytes became a blob")
	}
	wantCode(t, s.Fetch(t.Context(), http.DefaultClient, nil, digest), wsdl.FaultCodeNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	hangs := base(t, func(w http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if err := s.Fetch(ctx, http.DefaultClient, []string{hangs, good}, digest); !errors.Is(err, context.Canceled) {
		t.Fatalf("a cancelled fetch: %v", err)
	}
}

type countingWriter struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// direct calls a service without a network, and fails as told.
type direct struct {
	service *Service
	fail    func(operation string) error
	chunks  int
}

func (d *direct) Call(ctx context.Context, url, operation string, request, response any) error {
	if d.fail != nil {
		if err := d.fail(operation); err != nil {
			return err
		}
	}
	if !strings.HasSuffix(url, "http://n:1/services/image") {
		return fmt.Errorf("called at %s", url)
	}
	switch operation {
	case "StatBlob":
		r, err := d.service.StatBlobContext(ctx, request.(*wsdl.StatBlob))
		if err == nil {
			*response.(*wsdl.StatBlobResponse) = *r
		}
		return err
	case "PutBlob":
		d.chunks++
		r, err := d.service.PutBlobContext(ctx, request.(*wsdl.PutBlob))
		if err == nil {
			*response.(*wsdl.PutBlobResponse) = *r
		}
		return err
	}
	return errors.New(operation)
}

func TestPush(t *testing.T) {
	from, to, ctx := newStore(t, t.TempDir()), newStore(t, t.TempDir()), t.Context()
	d := &direct{service: NewService(to, func() string { return "http://n:1" }, Images{})}
	data, digest := random(10<<20, 7)
	if _, _, err := from.Put(ctx, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	broken := errors.New("broken")
	d.fail = func(string) error {
		if d.chunks == 1 {
			return broken
		}
		return nil
	}
	if err := from.Push(ctx, d, "http://n:1", digest); !errors.Is(err, broken) {
		t.Fatalf("through a broken line: %v", err)
	}
	d.fail = nil
	if err := from.Push(ctx, d, "http://n:1/services/image", digest); err != nil {
		t.Fatal(err)
	}
	wantBlob(t, to, digest, data)
	if d.chunks != 3 {
		t.Errorf("%d chunks for 10 MiB in chunks of 4", d.chunks)
	}
	if err := from.Push(ctx, d, "http://n:1/", digest); err != nil || d.chunks != 3 {
		t.Errorf("pushed again what is there: %d chunks, %v", d.chunks, err)
	}
	_, missing := random(3, 77)
	wantCode(t, from.Push(ctx, d, "http://n:1", missing), wsdl.FaultCodeNotFound)

	// What has changed on the disk is found out, and is not pushed for ever.
	data, digest = random(5<<20, 8)
	if _, _, err := from.Put(ctx, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	rotten := from.path(strings.TrimPrefix(digest, prefix))
	if err := os.Chmod(rotten, 0o600); err != nil {
		t.Fatal(err)
	}
	data[3<<20] ^= 1
	if err := os.WriteFile(rotten, data, 0o600); err != nil {
		t.Fatal(err)
	}
	err := from.Push(ctx, d, "http://n:1", digest)
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)
	if !strings.Contains(err.Error(), "has changed on this node's disk") || from.Has(digest) || to.Has(digest) {
		t.Errorf("it says %v; the blob is here: %v, there: %v", err, from.Has(digest), to.Has(digest))
	}
}

func FuzzContentRange(f *testing.F) {
	f.Add("bytes 5-9/10")
	f.Add("bytes */10")
	f.Fuzz(func(t *testing.T, header string) {
		if start, total, ok := contentRange(header); ok && (start < 0 || start >= total) {
			t.Fatalf("%q: %d of %d", header, start, total)
		}
	})
}

// BenchmarkFetch moves 256 MiB over loopback into a verified blob; beside it
// stands what it replaces: writing the same body to a file, then hashing that.
func BenchmarkFetch(b *testing.B) {
	data, digest := random(256<<20, 9)
	have := newStore(b, b.TempDir())
	if _, _, err := have.Put(b.Context(), bytes.NewReader(data)); err != nil {
		b.Fatal(err)
	}
	server := httptest.NewServer(have.Handler())
	defer server.Close()
	b.Run("verified", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			s := newStore(b, b.TempDir())
			if err := s.Fetch(b.Context(), server.Client(), []string{server.URL}, digest); err != nil {
				b.Fatal(err)
			}
			s.Sweep(time.Now().Add(2 * time.Hour))
		}
	})
	b.Run("savedThenHashed", func(b *testing.B) {
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			f, err := os.CreateTemp(b.TempDir(), "")
			if err != nil {
				b.Fatal(err)
			}
			response, err := server.Client().Get(BlobURL(server.URL, digest))
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(f, response.Body); err != nil {
				b.Fatal(err)
			}
			response.Body.Close()
			f.Seek(0, 0)
			sum := sha256.New()
			if _, err := io.Copy(sum, f); err != nil {
				b.Fatal(err)
			}
			f.Close()
			os.Remove(f.Name())
			if fmt.Sprintf("sha256:%x", sum.Sum(nil)) != digest {
				b.Fatal("wrong")
			}
		}
	})
}
