package mvm

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestKeeper writes streams of many lengths in many pieces and reads them in
// many pieces.
func TestKeeper(t *testing.T) {
	text := make([]byte, 5000)
	for i := range text {
		text[i] = byte('a' + i%23)
	}
	for _, max := range []int64{1, 2, 7, 100, 1001} {
		for _, length := range []int{0, 1, 50, 100, 101, 999, 1001, 1002, 1500, 5000} {
			for _, piece := range []int{1, 64, 600, 5000} {
				dir := t.TempDir()
				k := newKeeper(streamPath(dir, 0, "stdout"), max)
				for at := 0; at < length; at += piece {
					k.write(text[at:min(at+piece, length)])
				}
				k.finish()
				if k.broken != nil {
					t.Fatal(k.broken)
				}
				if files, err := os.ReadDir(dir); err != nil || length == 0 && len(files) > 0 {
					t.Fatalf("an empty stream has files: %v, %v", files, err)
				}
				for _, step := range []int64{1, 13, 10000} {
					var got []byte
					offset, left, rounds := int64(0), int64(0), 0
					for end := false; !end; rounds++ {
						data, next, over, dropped, err := ReadStream(dir, 0, "stdout", offset, step)
						if err != nil || next < offset || rounds > 10000 {
							t.Fatal(err, offset, next)
						}
						if dropped > 0 {
							head, tail, ok := strings.Cut(string(data), "bytes left out]\n")
							if !ok {
								t.Fatalf("dropped %d, no note in %q", dropped, data)
							}
							head, _, _ = strings.Cut(head, "\n[mvm: ")
							data = append([]byte(head), tail...)
							left += dropped
						}
						got, offset, end = append(got, data...), next, over || length == 0 // which has no file
					}
					head, tail := min(length, int((max+1)/2)), 0
					if length > head {
						tail = min(length-head, int(max/2))
					}
					want := append(bytes.Clone(text[:head]), text[length-tail:length]...)
					if tail == 0 && length > head { // nothing of the tail is kept, and nobody counts it
						length = head
					}
					if !bytes.Equal(got, want) || left != int64(length-head-tail) || offset != int64(length) {
						t.Fatalf("max %d, length %d, piece %d, step %d: got %d bytes, want %d; left out %d, ends at %d", max, length, piece, step, len(got), len(want), left, offset)
					}
				}
			}
		}
	}
}

func TestReadStreamRefusesTampering(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := streamPath(dir, 1, "stdout")
	read := func() (string, error) {
		data, _, _, _, err := ReadStream(dir, 1, "stdout", 0, 100)
		return string(data), err
	}
	if got, err := read(); got != "" || err != nil {
		t.Errorf("before there is a file: %q, %v", got, err)
	}
	os.Symlink(secret, path)
	if got, err := read(); got != "" || err == nil {
		t.Errorf("a symbolic link is followed: %q", got)
	}
	os.Remove(path)
	os.Mkdir(path, 0o755)
	if _, err := read(); err == nil {
		t.Error("a folder passes for a stream")
	}
	os.Remove(path)
	os.WriteFile(path, []byte("head"), 0o644)
	for _, tail := range []string{"garbage that is long enough to be a header", tailMagic + strings.Repeat("\xff", 24) + "data", tailMagic + strings.Repeat("\x00", 24)} {
		os.WriteFile(path+".tail", []byte(tail), 0o644)
		if _, err := read(); err == nil {
			t.Errorf("a tail of %q passes", tail)
		}
	}
	for _, bad := range []struct {
		name           string
		offset, length int64
	}{{"../secret", 0, 1}, {"stdin", 0, 1}, {"stdout", -1, 1}, {"stdout", 0, 0}} {
		if _, _, _, _, err := ReadStream(dir, 1, bad.name, bad.offset, bad.length); err == nil {
			t.Errorf("%+v is answered", bad)
		}
	}
}

// FuzzTail: whatever a program writes into the tail, reading it ends, in
// bounds.
func FuzzTail(f *testing.F) {
	header := func(size, begun, done uint64, data string) []byte {
		b := []byte(tailMagic)
		for _, n := range []uint64{size, begun, done} {
			b = binary.LittleEndian.AppendUint64(b, n)
		}
		return append(b, data...)
	}
	f.Add(header(8, 20, 20, "abcdefgh"), int64(0), int64(100))
	f.Add(header(8, 1<<59, 3, "abcdefgh"), int64(1<<62), int64(1<<20))
	f.Add(header(1<<39, 1<<59, 1<<59, ""), int64(5), int64(1<<20))
	f.Fuzz(func(t *testing.T, file []byte, offset, length int64) {
		dir := t.TempDir()
		path := streamPath(dir, 0, "stderr")
		os.WriteFile(path, []byte("head"), 0o644)
		os.WriteFile(path+".tail", file, 0o644)
		data, next, _, dropped, err := ReadStream(dir, 0, "stderr", offset, length%(1<<20))
		if err == nil && (next < offset || dropped < 0 || int64(len(data)) > length+100) {
			t.Errorf("%d bytes, next %d, dropped %d", len(data), next, dropped)
		}
	})
}

// FuzzReceive: whatever the other end sends, receive ends with a message or an
// error and takes no memory on a mere claim.
func FuzzReceive(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x02\x00\x00"))
	f.Add([]byte("\x00\x00\x00\x05\x00\x01\x01\x00\x90"))
	f.Add([]byte("\x03\xff\xff\xff{"))
	f.Add([]byte("\xff\xff\xff\xff{}"))
	f.Fuzz(func(t *testing.T, sent []byte) {
		w := newWire(bytes.NewBuffer(sent))
		for w.receive(new(FromProcess)) == nil {
		}
		w = newWire(bytes.NewBuffer(sent))
		for w.receive(new(Request)) == nil {
		}
	})
}
