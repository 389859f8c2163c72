package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/wsdl"
)

// memory is a Registry that forgets when the test ends.
type memory struct {
	mu       sync.Mutex // guards all
	last     map[string]int
	versions map[string]map[int][]byte
	fail     error // of every AddVersion, which then does what it says it did not
}

func (r *memory) LastVersion(_ context.Context, _, name string) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last[name], nil
}

func (r *memory) AddVersion(_ context.Context, _, name string, number int, value []byte) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if number != r.last[name]+1 {
		return false, nil
	}
	if r.versions[name] == nil {
		r.versions[name] = map[int][]byte{}
	}
	r.last[name], r.versions[name][number] = number, value
	return r.fail == nil, r.fail
}

func (r *memory) RemoveVersion(_ context.Context, _, name string, number int) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, there := r.versions[name][number]
	delete(r.versions[name], number)
	return there, nil
}

func (r *memory) Versions(_ context.Context, _, name string) (map[string]map[int][]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[string]map[int][]byte{}
	for n, versions := range r.versions {
		if name == "" || name == n {
			all[n] = map[int][]byte{}
			for number, value := range versions {
				all[n][number] = value
			}
		}
	}
	return all, nil
}

// over calls a service as SOAP would.
type over struct{ service *Service }

func (o over) Call(ctx context.Context, _, operation string, request, response any) error {
	switch request := request.(type) {
	case *wsdl.PutBlob:
		return answer(response, func() (*wsdl.PutBlobResponse, error) { return o.service.PutBlobContext(ctx, request) })
	case *wsdl.StatBlob:
		return answer(response, func() (*wsdl.StatBlobResponse, error) { return o.service.StatBlobContext(ctx, request) })
	case *wsdl.RegisterImage:
		return answer(response, func() (*wsdl.RegisterImageResponse, error) { return o.service.RegisterImageContext(ctx, request) })
	case *wsdl.GetImage:
		return answer(response, func() (*wsdl.GetImageResponse, error) { return o.service.GetImageContext(ctx, request) })
	case *wsdl.ListImages:
		return answer(response, func() (*wsdl.ListImagesResponse, error) { return o.service.ListImagesContext(ctx, request) })
	case *wsdl.RemoveImage:
		return answer(response, func() (*wsdl.RemoveImageResponse, error) { return o.service.RemoveImageContext(ctx, request) })
	}
	return errors.New(operation)
}

func answer[T any](response any, call func() (*T, error)) error {
	r, err := call()
	if err == nil {
		*response.(*T) = *r
	}
	return err
}

// put makes an image of random bytes in a store.
func put(t *testing.T, s *Store, name string, seed uint64) (m *Manifest, digest string) {
	t.Helper()
	m = &Manifest{Format: ManifestFormat, Name: name, Description: "a Trial", Architecture: "amd64", LeastMemory: 80, Languages: []string{"c"}}
	for i, part := range []Part{Kernel, Initrd} {
		data, d := random(100_000+i, seed+uint64(i)<<8)
		if _, _, err := s.Put(t.Context(), bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, File{Part: part, Digest: d, Size: int64(len(data))})
	}
	data, digest, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.Put(t.Context(), bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	return m, digest
}

func TestImages(t *testing.T) {
	ctx := t.Context()
	now := time.Now()
	store, err := New(Config{Dir: t.TempDir(), Clock: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	registry := &memory{last: map[string]int{}, versions: map[string]map[int][]byte{}}
	home := NewService(store, func() string { return "http://home:1" }, Images{Registry: registry})
	worker := newStore(t, t.TempDir())
	away := NewService(worker, func() string { return "http://away:1" }, Images{Home: func() string { return "http://home:1/services/image" }, Caller: over{home}})
	lost := NewService(worker, func() string { return "http://away:1" }, Images{Home: func() string { return "" }})

	m, first := put(t, store, "one", 1)
	register := func(s *Service, name, digest string, want int32) {
		t.Helper()
		r, err := s.RegisterImageContext(ctx, &wsdl.RegisterImage{Name: name, Digest: digest})
		if err != nil || r.Version != want || r.Digest != digest {
			t.Fatalf("register: %+v, %v; expected version %d", r, err, want)
		}
	}
	register(home, "", first, 1)
	register(home, "one", first, 1)
	register(away, "two", first, 1)
	_, err = lost.RegisterImageContext(ctx, &wsdl.RegisterImage{Digest: first})
	wantCode(t, err, wsdl.FaultCodeUnavailable)

	// What only the asked node has it gives to the one that keeps images.
	_, second := put(t, worker, "one", 2)
	register(away, "", second, 2)
	got, err := away.GetImageContext(ctx, &wsdl.GetImage{Name: "one"})
	if err != nil || got.Image.Digest != second || got.Image.Version != 2 || len(got.Image.File) != 2 || got.Source[0] != "http://home:1" {
		t.Fatalf("%+v, %v", got, err)
	}
	if got, err := home.GetImageContext(ctx, &wsdl.GetImage{Name: "one", Version: 1}); err != nil || got.Image.Digest != first {
		t.Fatalf("%+v, %v", got, err)
	}
	for _, search := range []struct {
		text  string
		count int
	}{{"", 3}, {"trial", 3}, {"ONE", 2}, {"three", 0}} {
		if list, err := away.ListImagesContext(ctx, &wsdl.ListImages{Search: search.text}); err != nil || len(list.Image) != search.count {
			t.Errorf("%q: %d images, %v", search.text, len(list.Image), err)
		}
	}

	// Registered images stay, others go.
	now = now.Add(2 * DefaultLease)
	if _, err := store.Sweep(now); err != nil || !store.Has(m.Files[0].Digest) || !store.Has(second) {
		t.Fatal("swept away while registered", err)
	}
	removed, err := away.RemoveImageContext(ctx, &wsdl.RemoveImage{Name: "one"})
	if err != nil || strings.Join(removed.Removed, " ") != "one@1 one@2" {
		t.Fatalf("%+v, %v", removed, err)
	}
	now = now.Add(2 * DefaultLease)
	if _, err := store.Sweep(now); err != nil || !store.Has(m.Files[0].Digest) || store.Has(second) {
		t.Error("of two@1, which is registered, and one@2, which is not, the wrong one is left", err)
	}
	_, err = home.RemoveImageContext(ctx, &wsdl.RemoveImage{Name: "one"})
	wantCode(t, err, wsdl.FaultCodeNotFound)
	_, err = home.GetImageContext(ctx, &wsdl.GetImage{Name: "two", Version: 7})
	wantCode(t, err, wsdl.FaultCodeNotFound)
	register(home, "one", first, 3)

	// Nothing is registered of which a part is missing, or is not what it is said
	// to be.
	for _, file := range []File{{Part: Kernel, Digest: "sha256:" + strings.Repeat("0", 64), Size: 1}, {Part: Kernel, Digest: m.Files[0].Digest, Size: 1}} {
		bad := *m
		bad.Files = []File{file}
		data, digest, err := bad.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := store.Put(ctx, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		if _, err := home.RegisterImageContext(ctx, &wsdl.RegisterImage{Digest: digest}); err == nil {
			t.Errorf("registered with a kernel of %+v", file)
		}
	}
	_, err = home.RegisterImageContext(ctx, &wsdl.RegisterImage{Digest: m.Files[0].Digest})
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)
	_, err = home.RegisterImageContext(ctx, &wsdl.RegisterImage{Digest: first, Name: "../one"})
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)

	// A node that dies in between is settled at its next start, whichever way it
	// went.
	_, third := put(t, store, "three", 3)
	registry.fail = errors.New("no answer")
	_, err = home.RegisterImageContext(ctx, &wsdl.RegisterImage{Digest: third})
	wantCode(t, err, wsdl.FaultCodeUnavailable)
	if err := store.Pin(imageOwner+"sha256:dangling", first); err != nil {
		t.Fatal(err)
	}
	if err := home.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	if owners := store.Owners(); len(owners) != 2 {
		t.Errorf("pinned after that: %q, expected one and three", owners)
	}
}

// TestImagesTogether registers the same and other images from many sides.
func TestImagesTogether(t *testing.T) {
	store := newStore(t, t.TempDir())
	registry := &memory{last: map[string]int{}, versions: map[string]map[int][]byte{}}
	home := NewService(store, func() string { return "" }, Images{Registry: registry})
	var group sync.WaitGroup
	for i := range 4 {
		_, digest := put(t, store, "one", uint64(i))
		for range 3 {
			group.Go(func() {
				if _, err := home.RegisterImageContext(t.Context(), &wsdl.RegisterImage{Digest: digest}); err != nil {
					t.Error(err)
				}
			})
		}
	}
	group.Wait()
	list, err := home.ListImagesContext(t.Context(), &wsdl.ListImages{})
	if err != nil || len(list.Image) < 4 || len(list.Image) > 12 {
		t.Fatalf("%d versions of 4 images, %v", len(list.Image), err)
	}
	for i, image := range list.Image {
		if int(image.Version) != i+1 {
			t.Errorf("version %d is number %d", i+1, image.Version)
		}
	}
}

// TestFiles makes an image of one node files of another one, from nodes of which
// one sends wrong bytes.
func TestFiles(t *testing.T) {
	ctx := t.Context()
	have, node := newStore(t, t.TempDir()), newStore(t, t.TempDir())
	m, digest := put(t, have, "one", 1)
	good := base(t, have.Handler().ServeHTTP)
	lies := base(t, func(w http.ResponseWriter, r *http.Request) {
		file, size, err := have.Open(filepath.Base(r.URL.Path))
		if err != nil {
			http.NotFound(w, r)
			return
		}
		defer file.Close()
		data := make([]byte, size)
		if _, err := file.ReadAt(data, 0); err != nil {
			t.Error(err)
		}
		data[size/2] ^= 1
		w.Header().Set("Content-Length", fmt.Sprint(size))
		_, _ = w.Write(data)
	})
	if _, err := node.Files(ctx, http.DefaultClient, []string{lies}, digest, "vm:one"); err == nil || len(node.Owners()) != 0 {
		t.Fatalf("from a node that lies: %v, pinned for %q", err, node.Owners())
	}
	files, err := node.Files(ctx, http.DefaultClient, []string{lies, good}, digest, "vm:one")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Files {
		content, err := os.ReadFile(files.Path(f.Part))
		if err != nil || int64(len(content)) != f.Size {
			t.Errorf("%s: %d bytes, %v", f.Part, len(content), err)
		}
	}
	if files.Path(Disk) != "" || files.Manifest.Name != "one" {
		t.Errorf("%+v", files)
	}
	later := time.Now().Add(2 * DefaultLease)
	if _, err := node.Sweep(later); err != nil || !node.Has(m.Files[1].Digest) {
		t.Fatal("in use, and swept away", err)
	}
	if err := node.Unpin("vm:one"); err != nil {
		t.Fatal(err)
	}
	if _, err := node.Sweep(later.Add(2 * DefaultLease)); err != nil || node.Has(m.Files[1].Digest) {
		t.Error("unused, and left", err)
	}
	_, err = node.Files(ctx, http.DefaultClient, []string{good}, m.Files[0].Digest, "vm:two")
	wantCode(t, err, wsdl.FaultCodeInvalidRequest)
}

func TestManifest(t *testing.T) {
	good := func() *Manifest {
		d := "sha256:" + strings.Repeat("ab", 32)
		return &Manifest{Format: ManifestFormat, Name: "one", Architecture: "amd64", LeastMemory: 80, Languages: []string{"c", "shell"}, Files: []File{
			{Part: Kernel, Digest: d, Size: 1}, {Part: Initrd, Digest: d, Size: 2}, {Part: Disk, Digest: d, Size: 3, Format: QCOW2}, {Part: Base, Digest: d, Size: 4, Format: Raw}, {Part: Seed, Digest: d, Size: 5, Format: Raw}}}
	}
	data, digest, err := good().Encode()
	if err != nil {
		t.Fatal(err)
	}
	m, err := ParseManifest(data)
	if err != nil || m.Size() != 15 {
		t.Fatal(m, err)
	}
	if _, again, err := m.Encode(); again != digest || err != nil {
		t.Errorf("written again it is %s, not %s: %v", again, digest, err)
	}
	for want, spoil := range map[string]func(m *Manifest){
		"its format":             func(m *Manifest) { m.Format = "oci" },
		"cannot be named":        func(m *Manifest) { m.Name = "../x" },
		"its architecture":       func(m *Manifest) { m.Architecture = "pdp11" },
		"MiB of memory":          func(m *Manifest) { m.LeastMemory = 0 },
		"its command line":       func(m *Manifest) { m.CommandLine = "quiet\ninit=/bin/sh" },
		"its description":        func(m *Manifest) { m.Description = strings.Repeat("x", maxText+1) },
		"is no language":         func(m *Manifest) { m.Languages = []string{"c", "c"} },
		"is no part":             func(m *Manifest) { m.Files[0].Part = "../kernel" },
		"one for each part":      func(m *Manifest) { m.Files[1] = m.Files[0] },
		"the digest of":          func(m *Manifest) { m.Files[0].Digest = "../../etc/passwd" },
		"-1 bytes":               func(m *Manifest) { m.Files[0].Size = -1 },
		"the format of its disk": func(m *Manifest) { m.Files[2].Format = "vmdk" },
		"the format of its kern": func(m *Manifest) { m.Files[0].Format = Raw },
		"neither a kernel nor":   func(m *Manifest) { m.Files = nil },
		"and no kernel":          func(m *Manifest) { m.Files = m.Files[1:] },
		"it has a base":          func(m *Manifest) { m.Files[2].Format = Raw },
		"it has a seed":          func(m *Manifest) { m.Files[4].Format = QCOW2 },
	} {
		m := good()
		spoil(m)
		if _, _, err := m.Encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected a fault with %q, got %v", want, err)
		}
	}
	for want, text := range map[string]string{
		"unexpected EOF":     string(data[:100]),
		"written otherwise":  string(data) + " ",
		"unknown field":      strings.Replace(string(data), `"name"`, `"evil"`, 1),
		"cannot unmarshal":   strings.Replace(string(data), `"one"`, `1`, 1),
		"more than 65536":    strings.Repeat(" ", maxManifest+1),
		"its format is \"\"": "{}",
	} {
		if _, err := ParseManifest([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("expected a fault with %q, got %v", want, err)
		}
	}
}

// FuzzManifest holds that what is taken is written again as it was.
func FuzzManifest(f *testing.F) {
	d := "sha256:" + strings.Repeat("ab", 32)
	m := &Manifest{Format: ManifestFormat, Name: "one", Description: "a <b> & c", Architecture: "arm64", LeastMemory: 80, Files: []File{{Part: Kernel, Digest: d, Size: 1}}}
	data, _, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseManifest(data)
		if err != nil {
			return
		}
		again, _, err := m.Encode()
		if err != nil || !bytes.Equal(again, data) {
			t.Errorf("%q was taken, and written again as %q: %v", data, again, err)
		}
	})
}
