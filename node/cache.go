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
)

// cache keeps finished builds, by key, as read-only folders. Only the node
// moves anything in. Identical builds that run at once share one.
type cache struct {
	dir string

	mu      sync.Mutex // guards flights
	flights map[string]*flight
}

// flight is a build under way.
type flight struct {
	done chan struct{}
	err  error
}

func openCache(dir string) (*cache, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return &cache{dir: dir, flights: map[string]*flight{}}, nil
}

// get returns the folder of a finished build. When there is none, fresh makes
// one, on the cache's file system, and says where; get then owns that folder.
// A builder that gives up because its own ctx ended leaves the build to whoever
// waits next.
func (c *cache) get(ctx context.Context, key string, fresh func() (string, error)) (dir string, cached bool, err error) {
	hex, ok := strings.CutPrefix(key, "sha256:")
	if !ok || len(hex) != 64 || strings.ContainsAny(hex, "./") {
		return "", false, fmt.Errorf("%q is no build key", key)
	}
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
		if err := f.Chmod(info.Mode().Perm() &^ 0o222); err != nil {
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
	return syncFolder(c.dir)
}
