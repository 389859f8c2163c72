package osvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestOverlay holds overlays to what QEMU's own tool says of them.
func TestOverlay(t *testing.T) {
	for _, size := range []int64{512, 1 << 20, 513 << 20, diskMost} {
		path := filepath.Join(t.TempDir(), "overlay")
		file, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := writeOverlay(file, size); err != nil {
			t.Fatal(err)
		}
		file.Close()
		info, err := ProbeDisk(path)
		if err != nil || info != (DiskInfo{QCOW2, size, false}) {
			t.Errorf("%+v, %v; expected a qcow2 file of %d bytes", info, err, size)
		}
		tool, err := exec.LookPath("qemu-img")
		if err != nil {
			t.Skip("SKIPPED: overlays were not compared with what qemu-img says: ", err)
		}
		if said, err := exec.Command(tool, "check", path).CombinedOutput(); err != nil || !strings.Contains(string(said), "No errors were found") {
			t.Errorf("%d bytes: qemu-img check: %s, %v", size, said, err)
		}
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "overlay"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	for _, size := range []int64{0, -512, 513, diskMost + 512} {
		if err := writeOverlay(file, size); !errors.Is(err, ErrDisk) {
			t.Errorf("an overlay of %d bytes: %v", size, err)
		}
	}
}

func TestProbeDisk(t *testing.T) {
	var good bytes.Buffer
	overlay := &sparse{&good}
	if err := writeOverlay(overlay, 1<<20); err != nil {
		t.Fatal(err)
	}
	big := binary.BigEndian
	for want, spoil := range map[string]func(b []byte) []byte{
		"of version 4":         func(b []byte) []byte { big.PutUint32(b[4:], 4); return b },
		"of version 3":         func(b []byte) []byte { return b[:80] },
		"a disk of":            func(b []byte) []byte { big.PutUint64(b[24:], 1<<63+512); return b },
		"a disk of 100 bytes":  func(b []byte) []byte { big.PutUint64(b[24:], 100); return b },
		"clusters of 2^60":     func(b []byte) []byte { big.PutUint32(b[20:], 60); return b },
		"it is encrypted":      func(b []byte) []byte { big.PutUint32(b[32:], 2); return b },
		"is cut off":           func(b []byte) []byte { return b[:3*cluster] },
		"are in another file":  func(b []byte) []byte { big.PutUint64(b[72:], 4); return b },
		"is marked as corrupt": func(b []byte) []byte { big.PutUint64(b[72:], 2); return b },
		"not known here":       func(b []byte) []byte { big.PutUint64(b[72:], 1<<40); return b },
		"of its 700 bytes":     func([]byte) []byte { return make([]byte, 700) },
		"of its 0 bytes":       func([]byte) []byte { return nil },
	} {
		path := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(path, spoil(bytes.Clone(good.Bytes())), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := ProbeDisk(path); !errors.Is(err, ErrDisk) || !strings.Contains(err.Error(), want) {
			t.Errorf("expected an error with %q, got %v", want, err)
		}
	}

	// What a disk is said to be it must be: a guest could else name its host's files.
	folder := t.TempDir()
	lay := func(name string, content []byte) string {
		path := filepath.Join(folder, name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	backed := bytes.Clone(good.Bytes())
	big.PutUint64(backed[8:], 200)
	big.PutUint32(backed[16:], 11)
	copy(backed[200:], "/etc/passwd")
	plain, over, raw := lay("plain", good.Bytes()), lay("over", backed), lay("raw", make([]byte, 512))
	for i, d := range []struct {
		Disk
		want string
	}{
		{Disk{Path: plain, Format: QCOW2}, ""},
		{Disk{Path: raw, Format: Raw}, ""},
		{Disk{Path: over, Format: QCOW2, Base: raw, BaseFormat: Raw}, ""},
		{Disk{Path: over, Format: QCOW2, Base: plain, BaseFormat: QCOW2}, ""},
		{Disk{Path: over, Format: QCOW2}, "differences from another file"},
		{Disk{Path: plain, Format: Raw}, "said to be raw"},
		{Disk{Path: raw, Format: QCOW2}, `said to be "qcow2"`},
		{Disk{Path: raw, Format: "vmdk"}, `said to be "vmdk"`},
		{Disk{Path: over, Format: QCOW2, Base: over, BaseFormat: QCOW2}, "its base is"},
		{Disk{Path: over, Format: QCOW2, Base: plain, BaseFormat: Raw}, "its base is"},
		{Disk{Path: raw, Format: Raw, Base: raw, BaseFormat: Raw}, "its base is"},
		{Disk{Path: raw + "none", Format: Raw}, "no such file"},
	} {
		if _, err := d.probe(); d.want == "" && err != nil || d.want != "" && (err == nil || !strings.Contains(err.Error(), d.want)) {
			t.Errorf("%d: expected %q, got %v", i, d.want, err)
		}
	}
}

// sparse writes what is written in order, with zeros between.
type sparse struct{ *bytes.Buffer }

func (s *sparse) WriteAt(p []byte, at int64) (int, error) {
	s.Write(make([]byte, at-int64(s.Len())))
	return s.Write(p)
}

func FuzzProbeDisk(f *testing.F) {
	var good bytes.Buffer
	if err := writeOverlay(&sparse{&good}, 1<<20); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes()[:qcow2Header], int64(good.Len()))
	f.Add(make([]byte, 512), int64(512))
	f.Fuzz(func(t *testing.T, head []byte, end int64) {
		info, err := probeDisk(bytes.NewReader(head), end)
		if err == nil && (info.Size <= 0 || info.Size%diskSector != 0 || info.Format != Raw && info.Format != QCOW2) {
			t.Errorf("%+v", info)
		}
	})
}
