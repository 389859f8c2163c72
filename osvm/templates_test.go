package osvm

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestTemplatesWithinBounds has more templates than are kept: the last used stay,
// and the one that was just made.
func TestTemplatesWithinBounds(t *testing.T) {
	all, err := newTemplates(t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	const more = 3
	begin := time.Now().Add(-time.Hour)
	for i := range templatesMax + more {
		folder := filepath.Join(all.folder, fmt.Sprintf("%02d", i))
		if err := os.Mkdir(folder, 0o700); err != nil {
			t.Fatal(err)
		}
		at := begin.Add(time.Duration(i) * time.Minute)
		if err := os.Chtimes(folder, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if !all.find("01").there() { // used now
		t.Fatal("a template is not there")
	}
	all.trim("00")
	left, err := os.ReadDir(all.folder)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if len(names) != templatesMax || !slices.Contains(names, "00") || !slices.Contains(names, "01") || slices.Contains(names, "02") {
		t.Errorf("left: %v", names)
	}
	for i := range templatesInMemory + more {
		all.find(fmt.Sprint(i))
	}
	if len(all.known) != templatesInMemory {
		t.Errorf("%d templates may be in memory", len(all.known))
	}
}

// TestTemplatesElsewhere: templates may be in another file system than machines, and
// what they have on disk is counted, disks too.
func TestTemplatesElsewhere(t *testing.T) {
	const size = 1 << 20
	content := make([]byte, size)
	copy(content[size/2:], "written")
	here, there := t.TempDir(), t.TempDir()
	if shm, err := os.MkdirTemp("/dev/shm", "mvm-test-"); err == nil {
		t.Cleanup(func() { _ = os.RemoveAll(shm) })
		there = shm
	}
	template := &Template{folder: there}
	for _, name := range []string{memoryName, diskName(0)} {
		from := filepath.Join(here, name)
		if err := os.WriteFile(from, content, 0o600); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(there, name)
		if err := linkFile(from, to); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s is not what it was: %v", name, err)
		}
		if err := linkFile(from, to); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s is there, and is made again: %v", name, err)
		}
	}
	one := template.size()
	if err := os.Remove(filepath.Join(there, diskName(0))); err != nil {
		t.Fatal(err)
	}
	if less := template.size(); less == 0 || one != 2*less {
		t.Errorf("it has %d bytes with a disk, and %d without", one, less)
	}
}
