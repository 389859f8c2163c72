package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
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
