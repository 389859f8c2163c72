package build

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// warm lets one build at a time fill an empty Go build cache. The first build
// compiles the standard library, half a minute of two cores, and Go itself lets
// every node that shares the cache do that work at once. A cache that has seen
// this version of Go build something is never waited for.
//
// unlock says whether the build succeeded; call it once.
func warm(ctx context.Context, cache, version string) (unlock func(built bool), err error) {
	mark := filepath.Join(cache, "mvm-warm-"+fileName(version))
	if _, err := os.Stat(mark); err == nil {
		return func(bool) {}, nil
	}
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(cache, "mvm-lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	// flock(2) cannot be given up, so it is asked for again and again: a build
	// takes long enough for the pause not to matter.
	for {
		err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			lock.Close()
			return nil, err
		}
		select {
		case <-ctx.Done():
			lock.Close()
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
	return func(built bool) {
		if built {
			if f, err := os.Create(mark); err == nil { // without it the next build waits too, no more
				f.Close()
			}
		}
		lock.Close()
	}, nil
}

// use keeps trimmers, of all nodes that share a cache, away from it until done
// is called.
func use(cache string) (done func(), err error) {
	lock, err := os.OpenFile(filepath.Join(cache, "mvm-use"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for { // a trimmer is done in a moment
		if err = unix.Flock(int(lock.Fd()), unix.LOCK_SH); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		lock.Close()
		return nil, err
	}
	return func() { lock.Close() }, nil
}

// TrimGoCache removes from a Go build cache, when it is larger than max bytes,
// what was not used for longest, down to three quarters of max. While a build
// uses the cache nothing is done. Go itself removes only what nobody has used
// for days.
func TrimGoCache(cache string, max int64) error {
	lock, err := os.OpenFile(filepath.Join(cache, "mvm-use"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil
		}
		return err
	}
	type entry struct {
		path string
		size int64
		used time.Time // Go touches what it uses, once an hour
	}
	var entries []entry
	var total int64
	files, err := filepath.Glob(filepath.Join(cache, "[0-9a-f][0-9a-f]", "*"))
	if err != nil {
		return err
	}
	for _, path := range files {
		if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() {
			entries = append(entries, entry{path, info.Size(), info.ModTime()})
			total += info.Size()
		}
	}
	if total <= max {
		return nil
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.used.Compare(b.used) })
	var failed error
	for _, e := range entries {
		if total <= max/4*3 {
			break
		}
		if err := os.Remove(e.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
			continue
		}
		total -= e.size
	}
	return failed
}

// fileName keeps of a text what a file may be called.
func fileName(text string) string {
	name := []byte(text)
	for i, c := range name {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.') {
			name[i] = '-'
		}
	}
	return string(name)
}
