package osvm

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// heap is a store of blobs in memory.
type heap map[string][]byte

func (h heap) Has(digest string) bool { return h[digest] != nil }

func (h heap) Put(_ context.Context, digest string, content []byte) error {
	h[digest] = bytes.Clone(content)
	return nil
}

func (h heap) Get(_ context.Context, digest string, _ int) ([]byte, error) {
	if content := h[digest]; content != nil {
		return content, nil
	}
	return nil, fmt.Errorf("blob %s is not here", digest)
}

// anArchive is a checkpoint whose chunks are any bytes, and what Export makes of
// it.
func anArchive(t testing.TB) (heap, string, []byte) {
	t.Helper()
	blobs, c := heap{}, aCheckpoint()
	put := func(content string) string {
		digest := digestOf([]byte(content))
		_ = blobs.Put(t.Context(), digest, []byte(content))
		return digest
	}
	c.State[0] = put("state")
	c.Memory[3], c.Memory[5], c.Memory[9] = put("three"), put("five"), put("three")
	text, _ := json.Marshal(c)
	digest := put(string(text))
	var out bytes.Buffer
	if err := Export(t.Context(), blobs, digest, &out); err != nil {
		t.Fatal(err)
	}
	return blobs, digest, out.Bytes()
}

func TestArchive(t *testing.T) {
	blobs, digest, text := anArchive(t)
	elsewhere := heap{}
	got, c, err := Import(t.Context(), elsewhere, bytes.NewReader(text))
	if err != nil || got != digest || c.Memory[9] != c.Memory[3] {
		t.Fatalf("imported %s: %v", got, err)
	}
	if len(elsewhere) != len(blobs) {
		t.Errorf("%d blobs came, of %d", len(elsewhere), len(blobs))
	}
	for name, content := range blobs {
		if !bytes.Equal(elsewhere[name], content) {
			t.Errorf("%s came as %q", name, elsewhere[name])
		}
	}
	var again bytes.Buffer
	if err := Export(t.Context(), elsewhere, digest, &again); err != nil || !bytes.Equal(again.Bytes(), text) {
		t.Errorf("exported again it is another file: %v", err)
	}
	delete(elsewhere, c.Memory[5])
	if err := Export(t.Context(), elsewhere, digest, io.Discard); err == nil || !strings.Contains(err.Error(), c.Memory[5]) {
		t.Errorf("exported without a blob: %v", err)
	}
}

// entries takes a tar apart, and joined puts one together.
func entries(t testing.TB, text []byte) (names []string, contents []string) {
	t.Helper()
	for archive := tar.NewReader(bytes.NewReader(text)); ; {
		head, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		content, _ := io.ReadAll(archive)
		names, contents = append(names, head.Name), append(contents, string(content))
	}
}

func joined(names, contents []string) []byte {
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for i, name := range names {
		_ = archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(contents[i])), Mode: 0o444})
		_, _ = archive.Write([]byte(contents[i]))
	}
	_ = archive.Close()
	return out.Bytes()
}

func TestArchivesThatAreNone(t *testing.T) {
	_, digest, text := anArchive(t)
	refused := func(what string, text []byte) error {
		t.Helper()
		into := heap{}
		got, _, err := Import(t.Context(), into, bytes.NewReader(text))
		if err == nil || !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: imported as %s, %v", what, got, err)
		}
		if into[digest] != nil {
			t.Errorf("%s: refused, and yet the manifest is there", what)
		}
		return err
	}
	names, contents := entries(t, text)
	last := len(names) - 1
	end := len(joined(names[:last], contents[:last])) - 1024 + 512 + len(contents[last]) // what then follows is empty, and may be missing
	for cut := 0; cut < end; cut += 97 {
		refused(fmt.Sprint("cut at ", cut), text[:cut])
	}
	for what, spoil := range map[string]func(names, contents []string) ([]string, []string){
		"it begins with": func(n, c []string) ([]string, []string) { return n[1:], c[1:] },
		"is where":       func(n, c []string) ([]string, []string) { n[1], n[2] = n[2], n[1]; return n, c },
		"other bytes":    func(n, c []string) ([]string, []string) { c[2] = "spoilt"; return n, c },
		"is no file of at most": func(n, c []string) ([]string, []string) {
			c[2] = strings.Repeat("x", packedMost+1)
			return n, c
		},
		"more than its manifest": func(n, c []string) ([]string, []string) { return append(n, n[1]), append(c, c[1]) },
		"the first of them":      func(n, c []string) ([]string, []string) { return n[:2], c[:2] },
		"its manifest":           func(n, c []string) ([]string, []string) { c[0] = "{}"; return n, c },
	} {
		spoilt, content := spoil(append([]string{}, names...), append([]string{}, contents...))
		if err := refused(what, joined(spoilt, content)); err != nil && !strings.Contains(err.Error(), what) {
			t.Errorf("error %v, want one with %q", err, what)
		}
	}
	refused("no tar", []byte("no tar at all"))
	full := errors.New("no space left on device")
	if _, _, err := Import(t.Context(), fullHeap{heap{}, full}, bytes.NewReader(text)); !errors.Is(err, full) || errors.Is(err, ErrCorrupt) {
		t.Errorf("imported on a full disk: %v", err)
	}
}

type fullHeap struct {
	heap
	err error
}

func (f fullHeap) Put(context.Context, string, []byte) error { return f.err }

func FuzzArchive(f *testing.F) {
	_, _, text := anArchive(f)
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		into := heap{}
		digest, c, err := Import(t.Context(), into, bytes.NewReader(text))
		if err != nil {
			return
		}
		for _, blob := range append(c.Blobs(), digest) {
			if digestOf(into[blob]) != blob {
				t.Errorf("imported with %s as %q", blob, into[blob])
			}
		}
	})
}
