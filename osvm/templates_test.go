package osvm

import (
	"fmt"
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
