package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// cache keeps finished builds, by key, as read-only folders. Only the node
// moves anything in. Identical builds that run at once share one. Above max the
// builds that were not used for longest go, but for those that are held.
type cache struct {
	dir string
	max int64 // bytes

	mu      sync.Mutex // guards what follows
	flights map[string]*flight
	builds  map[string]*kept // finished, by the digits of their keys
	holds   map[string]int   // how many use a build, by the same
	last    time.Time        // the newest use
}

// kept is a finished build.
type kept struct {
	size int64
	used time.Time // grows with each use, whatever the clock does
}

// flight is a build under way.
type flight struct {
	done chan struct{}
	err  error
}

// openCache finds what earlier lives have kept.
func openCache(dir string, max int64) (*cache, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	c := &cache{dir: dir, max: max, flights: map[string]*flight{}, builds: map[string]*kept{}, holds: map[string]int{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if len(e.Name()) != 64 { // an eviction that was cut short
			if err := removeTree(path); err != nil {
				return nil, err
			}
			continue
		}
		info, err := e.Info()
		if err != nil {
			return nil, err
		}
		c.builds[e.Name()] = &kept{used(path), info.ModTime()}
		if c.last.Before(info.ModTime()) {
			c.last = info.ModTime()
		}
	}
	return c, c.trim()
}

// touch counts a use of a finished build, and remembers it over restarts.
func (c *cache) touch(hex string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if !now.After(c.last) { // the clock was set back
		now = c.last.Add(time.Microsecond)
	}
	c.last = now
	path := filepath.Join(c.dir, hex)
	if c.builds[hex] == nil {
		c.builds[hex] = &kept{size: used(path)}
	}
	c.builds[hex].used = now
	_ = os.Chtimes(path, now, now) // it only tells the next life who is oldest
}

// release ends what get began: the build may go.
func (c *cache) release(key string) error {
	hex := strings.TrimPrefix(key, "sha256:")
	c.mu.Lock()
	if c.holds[hex]--; c.holds[hex] <= 0 {
		delete(c.holds, hex)
	}
	c.mu.Unlock()
	return c.trim()
}

// trim removes builds until those that are left are within max.
func (c *cache) trim() error {
	var failed error
	for {
		c.mu.Lock()
		var total int64
		oldest := ""
		for hex, k := range c.builds {
			total += k.size
			if c.holds[hex] == 0 && (oldest == "" || k.used.Before(c.builds[oldest].used)) {
				oldest = hex
			}
		}
		if total <= c.max || oldest == "" {
			c.mu.Unlock()
			return failed
		}
		delete(c.builds, oldest)
		// At once for whoever looks for it, and then at leisure.
		path := filepath.Join(c.dir, oldest)
		err := os.Rename(path, path+".old")
		c.mu.Unlock()
		if err == nil {
			err = removeTree(path + ".old")
		}
		failed = errors.Join(failed, err)
	}
}

// get returns the folder of a finished build, and holds it until release. When
// there is none, fresh makes one, on the cache's file system, and says where;
// get then owns that folder. A builder that gives up because its own ctx ended
// leaves the build to whoever waits next. After an error nothing is held.
func (c *cache) get(ctx context.Context, key string, fresh func() (string, error)) (dir string, cached bool, err error) {
	hex, ok := strings.CutPrefix(key, "sha256:")
	if !ok || len(hex) != 64 || strings.ContainsAny(hex, "./") {
		return "", false, fmt.Errorf("%q is no build key", key)
	}
	c.mu.Lock()
	c.holds[hex]++ // from before the look: what was seen stays
	c.mu.Unlock()
	if dir, cached, err = c.find(ctx, key, hex, fresh); err != nil {
		return "", false, errors.Join(err, c.release(key))
	}
	c.touch(hex)
	return dir, cached, c.trim()
}

func (c *cache) find(ctx context.Context, key, hex string, fresh func() (string, error)) (dir string, cached bool, err error) {
	dir = filepath.Join(c.dir, hex)
	for {
		if _, err := os.Stat(dir); err == nil {
			return dir, true, nil
		}
		c.mu.Lock()
		f := c.flights[key]
		if f == nil {
			f = &flight{done: make(chan struct{})}
			c.flights[key] = f
			c.mu.Unlock()
			f.err = c.fill(dir, fresh)
			if ctx.Err() != nil && f.err != nil {
				f.err = errAbandoned
			}
			c.mu.Lock()
			delete(c.flights, key)
			c.mu.Unlock()
			close(f.done)
			if errors.Is(f.err, errAbandoned) {
				return "", false, ctx.Err()
			}
			return dir, false, f.err
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
			return "", false, ctx.Err()
		case <-f.done:
		}
		if f.err != nil && !errors.Is(f.err, errAbandoned) {
			return "", false, f.err
		}
	}
}

// readable lets everyone read, and run, what its owner may, and nobody write it:
// a registered codec runs as somebody who owns nothing.
func readable(mode fs.FileMode) fs.FileMode {
	mode |= 0o444
	if mode&0o100 != 0 {
		mode |= 0o111
	}
	return mode &^ 0o222
}

var errAbandoned = errors.New("the build was abandoned")

// fill makes a build and moves it in: read-only and on disk before it has its
// name, so that what has a name is whole.
func (c *cache) fill(dir string, fresh func() (string, error)) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	made, err := fresh()
	if err != nil {
		return err
	}
	var folders []string
	err = filepath.WalkDir(made, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case entry.IsDir():
			folders = append(folders, path)
			return nil
		case !entry.Type().IsRegular():
			return fmt.Errorf("the build left %s, which is no regular file", path)
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		if err := f.Chmod(readable(info.Mode().Perm())); err != nil {
			return err
		}
		return f.Sync()
	})
	if err != nil {
		return fmt.Errorf("keep a build: %w", err)
	}
	// The root stays writable until it is renamed: a folder that its owner
	// cannot write may not be moved.
	for _, folder := range folders[1:] {
		if err := os.Chmod(folder, 0o555); err != nil {
			return fmt.Errorf("keep a build: %w", err)
		}
	}
	if err := os.Rename(made, dir); err != nil {
		return fmt.Errorf("keep a build: %w", err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		return fmt.Errorf("keep a build: %w", err)
	}
	return syncFile(c.dir)
}
