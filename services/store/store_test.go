package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// open returns an embedded Store that the test closes.
func open(t testing.TB, dir string) *Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := Open(ctx, Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestOpenIsQuick(t *testing.T) {
	dir := t.TempDir()
	start := time.Now()
	s := open(t, dir)
	made := time.Since(start)
	if err := s.Commit(t.Context(), Put("a", []byte("1"))); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	s.Close()
	closed := time.Since(start)
	start = time.Now()
	s = open(t, dir)
	reopened := time.Since(start)
	if v, _, err := s.Get(t.Context(), "a"); err != nil || string(v) != "1" {
		t.Fatalf("after a restart: %q, %v", v, err)
	}
	t.Logf("new store ready in %v, closed in %v, opened again in %v", made, closed, reopened)
	for what, d := range map[string]time.Duration{"making": made, "closing": closed, "opening": reopened} {
		if d > 3*time.Second {
			t.Errorf("%s took %v", what, d)
		}
	}
}

// What etcd always says at a first start frightens nobody; its other errors are
// told.
func TestFirstStartIsSilent(t *testing.T) {
	var said bytes.Buffer
	log := logrus.New()
	log.SetOutput(&said)
	etcd := zap.New(&logCore{log: log})
	etcd.Error("failed to update storage version", zap.String("cluster-version", "3.7.0"),
		zap.Error(errors.New("cannot detect storage schema version: missing term information")))
	if said.Len() > 0 {
		t.Errorf("it says %s", &said)
	}
	etcd.Error("failed to update storage version", zap.Error(errors.New("disk on fire")))
	if !strings.Contains(said.String(), "disk on fire") {
		t.Errorf("it does not say why: %q", &said)
	}
}

func TestOneProcessPerFolder(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := Open(t.Context(), Config{Dir: dir})
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatalf("a second Store on the folder: %v", err)
	}
	s.Close()
	open(t, dir)
}

func TestCommit(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(s.Commit(ctx, IfAbsent("tokens/x"), Put("tokens/x", []byte("j1")), Put("jobs/j1", []byte("spec"))))
	if err := s.Commit(ctx, IfAbsent("tokens/x"), Put("tokens/x", []byte("j2")), Put("jobs/j2", nil)); !errors.Is(err, ErrConflict) {
		t.Fatalf("a token was taken twice: %v", err)
	}
	if _, _, err := s.Get(ctx, "jobs/j2"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("half of a refused commit is there: %v", err)
	}
	_, rev, err := s.Get(ctx, "jobs/j1")
	must(err)
	must(s.Commit(ctx, IfRevision("jobs/j1", rev), Put("jobs/j1", []byte("spec2"))))
	if err := s.Commit(ctx, IfRevision("jobs/j1", rev), Put("jobs/j1", []byte("spec3"))); !errors.Is(err, ErrConflict) {
		t.Fatalf("an old revision was good: %v", err)
	}
	if err := s.Commit(ctx, IfPresent("jobs/j9"), Put("a", nil)); !errors.Is(err, ErrConflict) {
		t.Fatalf("an absent key was present: %v", err)
	}
	must(s.Commit(ctx, DeletePrefix("jobs/"), Delete("nothing")))
	if all, err := s.List(ctx, ""); err != nil || len(all) != 1 || all[0].Key != "tokens/x" {
		t.Fatalf("left: %v, %v", all, err)
	}
	if err := s.Commit(ctx, DeletePrefix("gr")); err == nil {
		t.Fatal("DeletePrefix reached into the package's own keys")
	}
	s.Close()
	if err := s.Commit(ctx, Put("a", nil)); !errors.Is(err, ErrClosed) {
		t.Fatalf("after Close: %v", err)
	}
}

func TestListPages(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	const n = 2*pageSize + 17
	var ops []Op
	for i := range n {
		ops = append(ops, Put(fmt.Sprintf("jobs/%05d", i), []byte(fmt.Sprint(i))))
	}
	if err := s.Commit(ctx, ops...); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, Put("jobsx", nil), Put("job", nil)); err != nil {
		t.Fatal(err)
	}
	all, err := s.List(ctx, "jobs/")
	if err != nil || len(all) != n {
		t.Fatalf("%d keys, %v", len(all), err)
	}
	for i, kv := range all {
		if string(kv.Value) != fmt.Sprint(i) || kv.Revision != all[0].Revision {
			t.Fatalf("key %d is %v", i, kv)
		}
	}
	for _, descending := range []bool{false, true} {
		var got []KV
		after := ""
		for {
			page, err := s.ListPage(ctx, "jobs/", after, 500, descending)
			if err != nil {
				t.Fatal(err)
			}
			if len(page) == 0 {
				break
			}
			got, after = append(got, page...), page[len(page)-1].Key
		}
		if len(got) != n {
			t.Fatalf("descending %v: %d keys in pages", descending, len(got))
		}
		for i := range got {
			want := i
			if descending {
				want = n - 1 - i
			}
			if string(got[i].Value) != fmt.Sprint(want) {
				t.Fatalf("descending %v: key %d is %v", descending, i, got[i])
			}
		}
	}
}

func BenchmarkCommit(b *testing.B) {
	s := open(b, b.TempDir())
	value := make([]byte, 1000)
	b.Run("alone", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if err := s.Commit(b.Context(), Put(fmt.Sprint("k/", i%1000), value)); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("together", func(b *testing.B) {
		b.SetParallelism(32)
		b.RunParallel(func(p *testing.PB) {
			for i := 0; p.Next(); i++ {
				if err := s.Commit(b.Context(), Put(fmt.Sprint("k/", i%1000), value)); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// A used-up quota refuses writes in words, keeps reads going, and is over after
// a deletion; history alone uses nothing up.
func TestQuota(t *testing.T) {
	c := Config{Dir: t.TempDir(), Quota: 8 << 20}
	s, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, value := t.Context(), make([]byte, 1<<20)
	n := 0
	for ; err == nil && n < 100; n++ {
		err = s.Commit(ctx, Put(fmt.Sprint("k/", n), value))
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "larger quota") {
		t.Fatalf("after %d MiB: %v", n, err)
	}
	if _, _, err := s.Get(ctx, "k/0"); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, DeletePrefix("k/")); err != nil {
		t.Fatalf("nothing can be deleted: %v", err)
	}
	for i := range 20 { // over the quota, with all that was there before
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if err = s.Commit(ctx, Put("k/0", value)); err == nil {
				break
			}
			if !errors.Is(err, ErrFull) || time.Now().After(deadline) {
				t.Fatalf("with room again, written over %d times: %v", i, err)
			}
		}
	}
	s.Close()
	if s, err = Open(ctx, c); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Commit(ctx, Put("k/0", value)); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}

// A disk that is nearly full refuses writes in words, keeps all that was
// written, and goes on when there is room.
func TestStateDiskFull(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=400m"); err != nil {
		t.Skipf("SKIPPED: a full disk needs a small file system, which this user cannot mount: %v; run as root", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ctx := t.Context()
	if err := s.Commit(ctx, Put("k/0", []byte("kept"))); err != nil {
		t.Fatal(err)
	}
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, 400<<20); err == nil {
		t.Fatal("the disk is larger than it should be")
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(dir, &disk); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(filler.Fd()), 0, 0, int64(disk.Bavail)*disk.Bsize-10<<20); err != nil {
		t.Fatal(err)
	}
	err = s.Commit(ctx, Put("k/1", []byte("refused")))
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "10 MiB are free on the disk of "+dir) || !strings.Contains(err.Error(), "free some space") {
		t.Fatalf("a write: %v", err)
	}
	if value, _, err := s.Get(ctx, "k/0"); err != nil || string(value) != "kept" {
		t.Fatalf("a read: %q, %v", value, err)
	}
	if err := s.Commit(ctx, Delete("k/none")); err != nil {
		t.Fatalf("a deletion: %v", err)
	}
	if err := filler.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if err := s.Commit(ctx, Put("k/1", []byte("taken"))); err != nil {
		t.Fatalf("with room again: %v", err)
	}
}

// Etcd panics where it finds no room at its start.
func TestNoRoomAtTheStart(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=40m"); err != nil {
		t.Skipf("SKIPPED: a full disk needs a small file system, which this user cannot mount: %v; run as root", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	s, err := Open(t.Context(), Config{Dir: filepath.Join(dir, "state")})
	if err == nil {
		s.Close()
	}
	if !errors.Is(err, ErrFull) || !strings.Contains(err.Error(), "free some space there") {
		t.Errorf("opened on a small disk: %v", err)
	}
}
