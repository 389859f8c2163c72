package store

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
)

func TestVersions(t *testing.T) {
	ctx, dir := t.Context(), t.TempDir()
	s := open(t, dir)
	add := func(name string, number int, want bool) {
		t.Helper()
		if added, err := s.AddVersion(ctx, "image", name, number, []byte(fmt.Sprint(name, number))); added != want || err != nil {
			t.Fatalf("add %s %d: %v, %v", name, number, added, err)
		}
	}
	add("a", 2, false)
	add("a", 1, true)
	add("a", 1, false)
	add("a", 2, true)
	add("a.b", 1, true)
	if _, err := s.AddVersion(ctx, "image", "a/b", 1, nil); err == nil {
		t.Error("a name with a slash was taken")
	}
	if removed, err := s.RemoveVersion(ctx, "image", "a", 2); !removed || err != nil {
		t.Fatal(removed, err)
	}
	if removed, err := s.RemoveVersion(ctx, "image", "a", 2); removed || err != nil {
		t.Fatal("removed twice", err)
	}
	add("a", 2, false)
	add("a", 3, true)
	s.Close()
	s = open(t, dir)
	one, err := s.Versions(ctx, "image", "a")
	if err != nil || len(one) != 1 || len(one["a"]) != 2 || string(one["a"][1]) != "a1" || string(one["a"][3]) != "a3" {
		t.Errorf("%v, %v", one, err)
	}
	all, err := s.Versions(ctx, "image", "")
	if err != nil || len(all) != 2 || string(all["a.b"][1]) != "a.b1" {
		t.Errorf("%v, %v", all, err)
	}
	if none, err := s.Versions(ctx, "profile", ""); err != nil || len(none) != 0 {
		t.Errorf("of another kind: %v, %v", none, err)
	}
	if last, err := s.LastVersion(ctx, "image", "a"); last != 3 || err != nil {
		t.Errorf("last %d, %v", last, err)
	}

	// Of many who want the same number, one gets it.
	var group sync.WaitGroup
	var got atomic.Int32
	for range 8 {
		group.Go(func() {
			if added, err := s.AddVersion(ctx, "image", "race", 1, nil); err != nil {
				t.Error(err)
			} else if added {
				got.Add(1)
			}
		})
	}
	group.Wait()
	if got.Load() != 1 {
		t.Errorf("%d got version 1", got.Load())
	}
}
