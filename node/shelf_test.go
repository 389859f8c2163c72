package node

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// A work folder that was changed in any way is not given to another attempt.
func TestShelf(t *testing.T) {
	dir := t.TempDir()
	s, err := openShelf(filepath.Join(dir, "spare"), 2)
	if err != nil {
		t.Fatal(err)
	}
	made := 0
	take := func() (string, sketch) {
		t.Helper()
		made++
		work := filepath.Join(dir, "work", string(rune('a'+made)))
		if err := os.MkdirAll(filepath.Dir(work), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.take(work); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(processFolder(work, 0), 0o700); err != nil {
			t.Fatal(err)
		}
		k, err := sketchOf(work)
		if err != nil {
			t.Fatal(err)
		}
		return work, k
	}
	inode := func(dir string) uint64 {
		t.Helper()
		var s unix.Stat_t
		if err := unix.Lstat(dir, &s); err != nil {
			t.Fatal(err)
		}
		return s.Ino
	}
	work, k := take()
	first := []uint64{inode(work), inode(processFolder(work, 0))}
	if !s.put(work, k) {
		t.Fatal("an unchanged folder is not kept")
	}
	work, k = take()
	if again := []uint64{inode(work), inode(processFolder(work, 0))}; !slices.Equal(again, first) {
		t.Errorf("another folder is given: %v, not %v", again, first)
	}
	if !s.put(work, k) {
		t.Error("it is not kept a second time")
	}
	for name, change := range map[string]func(work, process string) error{
		"file":      func(_, p string) error { return os.WriteFile(p+"/f", nil, 0o600) },
		"file gone": func(_, p string) error { _ = os.WriteFile(p+"/f", nil, 0o600); return os.Remove(p + "/f") },
		"beside":    func(w, _ string) error { return os.WriteFile(w+"/process-0.stdout", nil, 0o600) },
		"mode":      func(_, p string) error { return os.Chmod(p, 0o777) },
		"attribute": func(_, p string) error { return unix.Setxattr(p, "user.x", []byte("y"), 0) },
		"link":      func(_, p string) error { _ = os.Remove(p); return os.Symlink("/etc", p) },
		"other":     func(_, p string) error { _ = os.Remove(p); return os.Mkdir(p, 0o700) },
		"gone":      func(_, p string) error { return os.Remove(p) },
	} {
		work, k := take()
		if err := change(work, processFolder(work, 0)); err != nil {
			t.Logf("SKIPPED: %s: %v", name, err)
			continue
		}
		kept := s.put(work, k)
		// A file that came and went within one grain of time has left nothing.
		if kept && name != "file gone" && name != "other" {
			t.Errorf("%s: a changed folder is kept", name)
		}
	}
	if s.put(work, sketch{}) {
		t.Error("a folder that was not sketched is kept")
	}
	var held []string
	for range 4 {
		work, _ := take()
		held = append(held, work)
	}
	kept := 0
	for _, work := range held {
		if k, err := sketchOf(work); err != nil {
			t.Fatal(err)
		} else if s.put(work, k) {
			kept++
		}
	}
	if kept != s.most {
		t.Errorf("%d folders are kept, not %d", kept, s.most)
	}
}
