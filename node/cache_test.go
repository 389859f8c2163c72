package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The cache keeps within its limit, lets go of what was not used for longest,
// whatever the clock says, and never of what is held.
func TestCacheIsBounded(t *testing.T) {
	dir := t.TempDir()
	open := func() *cache {
		t.Helper()
		c, err := openCache(filepath.Join(dir, "cache"), 350<<10)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	key := func(n int) string { return fmt.Sprintf("sha256:%064x", n) }
	c := open()
	get := func(n int, want bool) {
		t.Helper()
		_, cached, err := c.get(t.Context(), key(n), func() (string, error) {
			made := filepath.Join(dir, fmt.Sprint("made", n), "in")
			err := os.MkdirAll(made, 0o755)
			return filepath.Dir(made), errors.Join(err, os.WriteFile(filepath.Join(made, "program"), make([]byte, 100<<10), 0o755))
		})
		if err != nil || cached != want {
			t.Fatalf("build %d: cached %v, want %v; %v", n, cached, want, err)
		}
	}
	release := func(n int) {
		t.Helper()
		if err := c.release(key(n)); err != nil {
			t.Fatal(err)
		}
	}
	there := func(want ...int) {
		t.Helper()
		entries, err := os.ReadDir(c.dir)
		if err != nil {
			t.Fatal(err)
		}
		var names, keys []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		for _, n := range want {
			keys = append(keys, strings.TrimPrefix(key(n), "sha256:"))
		}
		if strings.Join(names, " ") != strings.Join(keys, " ") {
			t.Errorf("there are %v, want %v", names, keys)
		}
	}
	for n := range 3 {
		get(n, false)
	}
	release(1)
	release(2)
	get(1, true)
	release(1)
	get(3, false)
	there(0, 1, 3) // 2 was used before 1, and 0 is held
	get(4, false)
	there(0, 3, 4)
	get(5, false)
	there(0, 3, 4, 5) // all are held: better too much than a job without its program
	for _, n := range []int{3, 4, 5} {
		release(n)
	}
	there(0, 4, 5)
	release(0)

	// The next life knows the order, also when the clock was set back since.
	late := time.Now().Add(5 * time.Hour)
	if err := os.Chtimes(filepath.Join(c.dir, strings.TrimPrefix(key(4), "sha256:")), late, late); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(c.dir, strings.TrimPrefix(key(9), "sha256:")+".old", "half"), 0o555); err != nil {
		t.Fatal(err)
	}
	c = open()
	there(0, 4, 5)
	get(5, true) // later than 4 all the same
	release(5)
	get(6, false)
	release(6)
	there(4, 5, 6)
	get(7, false)
	there(5, 6, 7)
	// A build that fails holds nothing.
	if _, _, err := c.get(context.Background(), key(8), func() (string, error) { return "", errors.New("no") }); err == nil || len(c.holds) != 1 {
		t.Errorf("%v; held are %v", err, c.holds)
	}
}

// What a live attempt runs stays, however small the cache is.
func TestALiveAttemptKeepsItsPrograms(t *testing.T) {
	g := newGrid(t)
	m := g.with(t.TempDir(), quickParts(), func(c *Config) { c.CacheMax = 1 })
	if _, err := m.awaken("j", 1, 1, m.source("main", "shell", "echo first")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.awaken("k", 1, 1, m.source("main", "shell", "echo second")); err != nil {
		t.Fatal(err)
	}
	if err := m.instantiate("j", 1, spec(0, "main")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it ends", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if got := g.text(g.status("j", 0), "stdout"); got != "first\n" {
		t.Errorf("it printed %q", got)
	}
	m.terminate("j", 1, 0)
	m.terminate("k", 1, 0)
	if left, _ := os.ReadDir(m.folders.builds); len(left) > 0 {
		t.Errorf("the cache of one byte holds %v", left)
	}
}
