package build

import (
	"context"
	"errors"
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
