package image

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"mvm/wsdl"
)

func newStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := New(Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// random returns n bytes that do not compress, and their digest.
func random(n int, seed uint64) ([]byte, string) {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	data := make([]byte, n)
	rand.NewChaCha8(key).Read(data)
	return data, Digest(sha256.Sum256(data))
}

func wantCode(t *testing.T, err error, code wsdl.FaultCode) {
	t.Helper()
	if wsdl.CodeOf(err) != code {
		t.Fatalf("expected a fault %s, got %v", code, err)
	}
}

func wantBlob(t *testing.T, s *Store, digest string, data []byte) {
	t.Helper()
	f, size, err := s.Open(digest)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := io.ReadAll(f)
	if err != nil || size != int64(len(data)) || !bytes.Equal(got, data) {
		t.Fatalf("blob %s: %d bytes read, size %d, expected %d: %v", digest, len(got), size, len(data), err)
	}
	if _, err := f.Write([]byte("x")); err == nil {
		t.Fatal("a blob could be written to")
	}
}

// leftovers are the files in partial/.
func leftovers(t *testing.T, s *Store) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(s.dir, "partial", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestPut(t *testing.T) {
	s := newStore(t, t.TempDir())
	for _, n := range []int{0, 1, 256 << 10, 1<<20 + 7} {
		data, want := random(n, 1)
		for range 2 {
			digest, size, err := s.Put(t.Context(), iotest.HalfReader(bytes.NewReader(data)))
			if err != nil || digest != want || size != int64(n) {
				t.Fatalf("put %d bytes: %s, %d, %v", n, digest, size, err)
			}
			wantBlob(t, s, digest, data)
		}
	}
	broken := errors.New("broken")
	if _, _, err := s.Put(t.Context(), io.MultiReader(strings.NewReader("some"), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Fatalf("a reader's failure: %v", err)
	}
	if left := leftovers(t, s); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestUploadInChunks(t *testing.T) {
	dir := t.TempDir()
	s, ctx := newStore(t, dir), t.Context()
	data, digest := random(100_000, 2)
	size := int64(len(data))
	put := func(from, to int) (Status, error) {
		return s.PutChunk(ctx, digest, size, int64(from), data[from:to])
	}
	if st, err := put(0, 10_000); err != nil || st.Received != 10_000 || st.Complete {
		t.Fatalf("first chunk: %+v, %v", st, err)
	}
	_, err := put(20_000, 30_000)
	wantCode(t, err, wsdl.FaultCodeConflict)
	if !strings.Contains(err.Error(), "offset 10000") {
		t.Fatalf("no advice where to go on: %v", err)
	}
	if st, err := put(5_000, 15_000); err != nil || st.Received != 15_000 {
		t.Fatalf("an overlapping chunk: %+v, %v", st, err)
	}
	if st, err := put(0, 1_000); err != nil || st.Received != 15_000 {
		t.Fatalf("a repeated chunk: %+v, %v", st, err)
	}
	_, err = s.PutChunk(ctx, digest, size+1, 15_000, data[15_000:16_000])
	wantCode(t, err, wsdl.FaultCodeConflict)
	_, err = s.PutChunk(ctx, digest, size, size-1, []byte("xx"))
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)
	if s.Has(digest) {
		t.Fatal("half a blob is there")
	}
	if _, _, err := s.Open(digest); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Fatalf("half a blob opens: %v", err)
	}

	s = newStore(t, dir) // a restart
	if st, err := s.Stat(digest); err != nil || st.Received != 15_000 || st.Size != size || st.Complete {
		t.Fatalf("after a restart: %+v, %v", st, err)
	}
	if st, err := put(15_000, 100_000); err != nil || !st.Complete {
		t.Fatalf("last chunk: %+v, %v", st, err)
	}
	wantBlob(t, s, digest, data)
	if st, err := put(0, 10_000); err != nil || !st.Complete || st.Received != size {
		t.Fatalf("a chunk of what is complete: %+v, %v", st, err)
	}
	_, err = s.PutChunk(ctx, digest, size+1, 0, nil)
	wantCode(t, err, wsdl.FaultCodeConflict)
	if left := leftovers(t, s); len(left) > 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestWrongBytesAreDropped(t *testing.T) {
	s, ctx := newStore(t, t.TempDir()), t.Context()
	data, digest := random(1000, 3)
	wrong := bytes.Clone(data)
	wrong[10] ^= 1
	if _, err := s.PutChunk(ctx, digest, 1000, 0, wrong[:500]); err != nil {
		t.Fatal(err)
	}
	_, err := s.PutChunk(ctx, digest, 1000, 500, wrong[500:])
	wantCode(t, err, wsdl.FaultCodeConflict)
	if left := leftovers(t, s); len(left) > 0 || s.Has(digest) {
		t.Fatalf("wrong bytes were kept: %v", left)
	}
	if st, err := s.PutChunk(ctx, digest, 1000, 0, data); err != nil || !st.Complete {
		t.Fatalf("the right bytes after the wrong: %+v, %v", st, err)
	}
}

func TestEmptyBlob(t *testing.T) {
	s := newStore(t, t.TempDir())
	_, digest := random(0, 0)
	if st, err := s.PutChunk(t.Context(), digest, 0, 0, nil); err != nil || !st.Complete {
		t.Fatalf("%+v, %v", st, err)
	}
	wantBlob(t, s, digest, nil)
	_, other := random(5, 0)
	if st, err := s.PutChunk(t.Context(), other, 5, 0, nil); err != nil || st.Complete || st.Received != 0 {
		t.Fatalf("asking by an empty chunk: %+v, %v", st, err)
	}
	if st, err := s.Stat(other); err != nil || st.Size != -1 {
		t.Fatalf("asking began an upload: %+v, %v", st, err)
	}
}

func TestDigestsOnly(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, filepath.Join(dir, "store"))
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, good := random(1, 1)
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	for _, bad := range []string{
		"", "sha256:", "../../secret", "sha256:../../../secret", "sha256:" + strings.Repeat("../", 21) + "x",
		strings.ToUpper(good), "sha256:" + strings.ToUpper(good[7:]), good + "0", good[:70], "md5:" + good[7:], good[7:],
		good[:20] + "/" + good[21:], good[:20] + "\x00" + good[21:],
	} {
		if _, _, err := s.Open(bad); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("open %q: %v", bad, err)
		}
		if _, err := s.PutChunk(t.Context(), bad, 1, 0, []byte("x")); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("put %q: %v", bad, err)
		}
		if err := s.Pin("o", bad); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("pin %q: %v", bad, err)
		}
		request := httptest.NewRequest("GET", "/services/image/blobs/x", nil)
		request.URL.Path = "/services/image/blobs/" + bad
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, request)
		if w.Code != 400 {
			t.Errorf("GET %q: %d %s", bad, w.Code, w.Body)
		}
	}
	if err := s.Pin("../../x", good); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		t.Errorf("pinning what is not here: %v", err)
	}
}

// Many upload one blob at once, some of them wrong bytes: the right ones get
// through, and only right ones become a blob.
func TestConcurrentUploads(t *testing.T) {
	s, ctx := newStore(t, t.TempDir()), t.Context()
	data, digest := random(300_000, 4)
	wrong := bytes.Clone(data)
	wrong[150_000] ^= 1
	var workers sync.WaitGroup
	for i := range 8 {
		mine := data
		if i%4 == 3 {
			mine = wrong
		}
		workers.Go(func() {
			for offset, tries := 0, 0; ; {
				n := min(7_001, len(mine)-offset)
				st, err := s.PutChunk(ctx, digest, int64(len(mine)), int64(offset), mine[offset:offset+n])
				switch {
				case err == nil && st.Complete:
					return
				case err == nil:
					offset = int(st.Received)
				case wsdl.CodeOf(err) != wsdl.FaultCodeConflict:
					t.Error(err)
					return
				default:
					if tries++; i%4 == 3 || tries > 20 {
						return // the wrong ones give up
					}
					offset = 0
				}
			}
		})
	}
	workers.Wait()
	for i := 0; !s.Has(digest) && i < 2; i++ {
		if _, err := s.PutChunk(ctx, digest, int64(len(data)), 0, data); err != nil {
			t.Log(err)
		}
	}
	wantBlob(t, s, digest, data)
}

func TestPinsAndSweep(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	clock := func() time.Time { return now }
	s, err := New(Config{Dir: dir, Clock: clock})
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	var digests []string
	for i := range 4 {
		data, digest := random(100, uint64(10+i))
		if _, _, err := s.Put(ctx, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest)
	}
	half, halfDigest := random(100, 20)
	if _, err := s.PutChunk(ctx, halfDigest, 100, 0, half[:50]); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin("job/j-1 ü", digests[0]); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin("job/j-1 ü", digests[0], digests[1]); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin("node", digests[1], halfDigest); wsdl.CodeOf(err) != wsdl.FaultCodeNotFound || !strings.Contains(err.Error(), halfDigest) {
		t.Fatalf("pinning half a blob: %v", err)
	}
	if swept, err := s.Sweep(now.Add(59 * time.Minute)); err != nil || swept != (Swept{}) {
		t.Fatalf("swept within the lease: %+v, %v", swept, err)
	}
	now = now.Add(90 * time.Minute)
	if !s.Has(digests[2]) { // renews
		t.Fatal("a blob is gone")
	}
	// Left by a crash between the file's name and its bytes: it pins nothing.
	if err := os.WriteFile(filepath.Join(dir, "pins", "of-torn"), []byte(digests[3]+"\n"+digests[3][:30]), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = New(Config{Dir: dir, Clock: clock}); err != nil { // a restart
		t.Fatal(err)
	}
	swept, err := s.Sweep(now.Add(time.Minute))
	if err != nil || swept.Blobs != 1 || swept.Partials != 1 || swept.Bytes != 150 {
		t.Fatalf("swept %+v, %v", swept, err)
	}
	for i, want := range []bool{true, true, true, false} {
		if _, err := os.Stat(s.path(digests[i][7:])); (err == nil) != want {
			t.Errorf("blob %d: %v", i, err)
		}
	}
	if owners := s.Owners(); len(owners) != 1 || owners[0] != "job/j-1 ü" {
		t.Fatalf("owners %q", owners)
	}
	for range 2 {
		if err := s.Unpin("job/j-1 ü"); err != nil {
			t.Fatal(err)
		}
	}
	if swept, err := s.Sweep(now.Add(2 * time.Hour)); err != nil || swept.Blobs != 3 {
		t.Fatalf("swept %+v, %v", swept, err)
	}
	if list, err := s.List("", 10); err != nil || len(list) != 0 {
		t.Fatalf("left: %v, %v", list, err)
	}
}

func TestServiceLists(t *testing.T) {
	store, ctx := newStore(t, t.TempDir()), t.Context()
	for i := range 25 {
		if _, _, err := store.Put(ctx, strings.NewReader(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	s := NewService(store, func() string { return "http://n:1" }, Images{})
	seen := map[string]bool{}
	after := ""
	for {
		page, err := s.ListBlobsContext(ctx, &wsdl.ListBlobs{After: after, Limit: 7})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Blob) == 0 {
			break
		}
		for _, b := range page.Blob {
			if b.Digest <= after || seen[b.Digest] || !*b.Complete || b.Url != "http://n:1/services/image/blobs/"+b.Digest {
				t.Fatalf("after %s: %+v", after, b)
			}
			seen[b.Digest], after = true, b.Digest
		}
	}
	if len(seen) != 25 {
		t.Fatalf("%d blobs listed", len(seen))
	}
	got, err := s.GetBlobContext(ctx, &wsdl.GetBlob{Digest: after, Offset: 1, Length: 1})
	if err != nil || len(*got.Data) > 1 || *got.Blob.Size > 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err = s.GetBlobContext(ctx, &wsdl.GetBlob{Digest: after, Offset: 1 << 40}); err != nil || len(*got.Data) != 0 {
		t.Fatalf("beyond the end: %+v, %v", got, err)
	}
}

func TestPlainGet(t *testing.T) {
	s := newStore(t, t.TempDir())
	data, digest := random(10_000, 5)
	if _, _, err := s.Put(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(s.Handler())
	defer server.Close()
	get := func(method, digest string, header ...string) (*http.Response, []byte) {
		t.Helper()
		request, _ := http.NewRequest(method, BlobURL(server.URL, digest), nil)
		for i := 0; i < len(header); i += 2 {
			request.Header.Set(header[i], header[i+1])
		}
		response, err := server.Client().Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, body
	}
	r, body := get("GET", digest)
	if r.StatusCode != 200 || !bytes.Equal(body, data) || r.Header.Get("ETag") != `"`+digest+`"` ||
		r.Header.Get("Content-Type") != "application/octet-stream" || r.Header.Get("X-Content-Type-Options") != "nosniff" ||
		!strings.Contains(r.Header.Get("Cache-Control"), "immutable") || r.Header.Get("Last-Modified") != "" {
		t.Fatalf("GET: %v %v", r.Status, r.Header)
	}
	if r, body := get("HEAD", digest); r.StatusCode != 200 || len(body) != 0 || r.ContentLength != 10_000 {
		t.Fatalf("HEAD: %v %d", r.Status, r.ContentLength)
	}
	if r, body := get("GET", digest, "Range", "bytes=9000-"); r.StatusCode != 206 || !bytes.Equal(body, data[9000:]) {
		t.Fatalf("range: %v", r.Status)
	}
	if r, _ := get("GET", digest, "If-None-Match", `"`+digest+`"`); r.StatusCode != 304 {
		t.Fatalf("If-None-Match: %v", r.Status)
	}
	if r, _ := get("GET", digest, "Range", "bytes=20000-"); r.StatusCode != 416 {
		t.Fatalf("range beyond the end: %v", r.Status)
	}
	_, missing := random(1, 99)
	if r, body := get("GET", missing); r.StatusCode != 404 || !bytes.Contains(body, []byte(missing)) {
		t.Fatalf("missing: %v %s", r.Status, body)
	}
	if r, _ := get("POST", digest); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
		t.Fatalf("POST: %v", r.Status)
	}
}

// A full disk refuses a chunk in words, keeps what was received, and goes on
// once there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("NOT TESTED: a full disk needs a small file system, which cannot be mounted here: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
	s, ctx := newStore(t, dir), t.Context()
	data, digest := random(700<<10, 8)
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 600<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	put := func(from, to int) (Status, error) {
		return s.PutChunk(ctx, digest, int64(len(data)), int64(from), data[from:to])
	}
	if _, err := put(0, 200<<10); err != nil {
		t.Fatal(err)
	}
	_, err := put(200<<10, 700<<10)
	wantCode(t, err, wsdl.FaultCodeUnavailable)
	for _, words := range []string{"full", "KiB of 1 MiB are free in " + dir} {
		if !strings.Contains(err.Error(), words) || !IsFull(err) {
			t.Fatalf("not clear: %v", err)
		}
	}
	// Who fetches is told of this disk, not of those who have the blob.
	there := newStore(t, t.TempDir())
	if _, _, err := there.Put(ctx, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(there.Handler())
	defer server.Close()
	if err := s.Fetch(ctx, server.Client(), []string{server.URL, server.URL}, digest); !IsFull(err) || !strings.Contains(err.Error(), "image store is full") {
		t.Fatalf("Fetch: %v", err)
	}
	if _, _, err := s.Put(ctx, bytes.NewReader(data)); wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable {
		t.Fatalf("Put: %v", err)
	}
	st, err := s.Stat(digest)
	if err != nil || st.Received < 200<<10 {
		t.Fatalf("what was received is lost: %+v, %v", st, err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if st, err := put(200<<10, 700<<10); err != nil || !st.Complete {
		t.Fatalf("with room again: %+v, %v", st, err)
	}
	wantBlob(t, s, digest, data)
}

func FuzzDigest(f *testing.F) {
	_, good := random(1, 1)
	f.Add(good)
	f.Add("sha256:../" + good[10:])
	f.Fuzz(func(t *testing.T, digest string) {
		h, err := hexOf(digest)
		if err != nil {
			return
		}
		s := &Store{dir: "/d"}
		if p := s.path(h); !filepath.IsLocal(p[3:]) || filepath.Clean(p) != p || len(p) != len("/d/blobs/")+65 {
			t.Fatalf("%q leads to %q", digest, p)
		}
	})
}

func BenchmarkPutChunk(b *testing.B) {
	s := newStore(b, b.TempDir())
	data, _ := random(64<<20, 9)
	b.SetBytes(int64(len(data)))
	for i := 0; b.Loop(); i++ {
		data[0], data[1], data[2] = byte(i), byte(i>>8), byte(i>>16)
		digest := Digest(sha256.Sum256(data)) // counts too: it is what the uploader does
		for at := 0; at < len(data); at += maxChunk {
			if _, err := s.PutChunk(b.Context(), digest, int64(len(data)), int64(at), data[at:at+maxChunk]); err != nil {
				b.Fatal(err)
			}
		}
	}
}
