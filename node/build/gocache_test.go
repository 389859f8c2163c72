package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestWarmLetsOneBuildFillTheCache(t *testing.T) {
	cache := t.TempDir()
	first, err := warm(t.Context(), cache, "go1.26")
	if err != nil {
		t.Fatal(err)
	}
	hasty, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := warm(hasty, cache, "go1.26"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second build into a cold cache: %v, want it to wait", err)
	}

	// A build that failed leaves the cache cold, but the way free.
	first(false)
	second, err := warm(t.Context(), cache, "go1.26")
	if err != nil {
		t.Fatal(err)
	}
	second(true)
	for range 2 {
		// Neither waits for the other: both are held at once.
		unlock, err := warm(hasty, cache, "go1.26")
		if err != nil {
			t.Fatalf("a build into a warm cache waited: %v", err)
		}
		defer unlock(true)
	}
	if _, err := warm(t.Context(), cache, "go1.27"); err != nil {
		t.Fatal(err)
	}
	if _, err := warm(hasty, cache, "go1.27"); err == nil {
		t.Fatal("another version of Go found the cache warm")
	}
}

func TestTrimGoCache(t *testing.T) {
	cache := t.TempDir()
	file := func(name string, age time.Duration) {
		t.Helper()
		path := filepath.Join(cache, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, make([]byte, 1000), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Now().Add(-age), time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 8 {
		file(fmt.Sprintf("%02x/%d-d", i, i), time.Duration(i)*time.Hour)
	}
	file("mvm-warm-go1.26", 100*time.Hour)
	count := func() int {
		files, err := filepath.Glob(filepath.Join(cache, "??", "*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(files)
	}
	trim := func(max int64, want int) {
		t.Helper()
		if err := TrimGoCache(cache, max); err != nil || count() != want {
			t.Errorf("%d files are left of %d bytes, want %d; %v", count(), max, want, err)
		}
	}
	trim(8000, 8)
	done, err := use(cache)
	if err != nil {
		t.Fatal(err)
	}
	trim(4000, 8) // a build is under way
	done()
	trim(4000, 3)
	for i := range 3 {
		if _, err := os.Stat(filepath.Join(cache, fmt.Sprintf("%02x/%d-d", i, i))); err != nil {
			t.Errorf("the newest went: %v", err)
		}
	}
	if _, err := os.Stat(filepath.Join(cache, "mvm-warm-go1.26")); err != nil {
		t.Errorf("what is not Go's went: %v", err)
	}
}
