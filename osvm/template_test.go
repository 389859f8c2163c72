package osvm

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"mvm/osvm/guest"
)

// TestClones boots one machine, freezes it, and has clones answer: as machines of
// their own, and in a tenth of the time.
func TestClones(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	begin := time.Now()
	first := boot(t, ctx, "first", 128)
	session := agentOf(t, ctx, first)
	hello := call[guest.Greeting](t, session, "Hello", guest.Nothing{})
	cold := time.Since(begin)
	_ = session.Close()
	template, err := first.Freeze(ctx, filepath.Join(t.TempDir(), "template"))
	if err != nil {
		t.Fatal(err)
	}
	<-first.Ended()

	q, _ := Probe(ctx)
	var mu sync.Mutex // guards random
	random := map[string][]byte{}
	clone := func(name string) (*Machine, time.Duration) {
		begin := time.Now()
		spec := first.Spec
		spec.ID, spec.Template = name, template
		m, err := Create(ctx, q, t.TempDir(), spec)
		if err != nil {
			t.Error(err)
			return nil, 0
		}
		t.Cleanup(func() { _ = m.Destroy() })
		if err := m.Resume(ctx); err != nil {
			t.Error(err)
			return nil, 0
		}
		session := agentOf(t, ctx, m)
		if got := call[guest.Greeting](t, session, "Hello", guest.Nothing{}); got.Boot != hello.Boot {
			t.Errorf("%s: boot %s, the template's is %s", name, got.Boot, hello.Boot)
		}
		took := time.Since(begin)
		seed := make([]byte, 32)
		copy(seed, name)
		call[guest.Nothing](t, session, "Identify", guest.Identity{Hostname: name, Time: time.Now(), Randomness: seed})
		if got := call[guest.Greeting](t, session, "Hello", guest.Nothing{}); got.Hostname != name {
			t.Errorf("%s calls itself %q", name, got.Hostname)
		}
		drawn := call[[]byte](t, session, "Random", 32)
		mu.Lock()
		defer mu.Unlock()
		for other, theirs := range random {
			if bytes.Equal(drawn, theirs) {
				t.Errorf("%s and %s draw the same random bytes", name, other)
			}
		}
		random[name] = drawn
		return m, took
	}
	clone("warm")
	var one []time.Duration
	for i := range 3 {
		if m, took := clone(fmt.Sprintf("clone-%d", i)); m != nil {
			one = append(one, took)
			_ = m.Destroy()
		}
	}
	slices.Sort(one)
	t.Logf("cold boot %v; clones %v", cold, one)
	var group sync.WaitGroup
	for i := range 4 {
		group.Go(func() { clone(fmt.Sprintf("together-%d", i)) })
	}
	group.Wait()

	if _, err := (&Machine{Spec: Spec{ID: "copy", Template: template}}).Freeze(ctx, filepath.Join(t.TempDir(), "again")); err == nil {
		t.Error("a clone was frozen")
	}
	if err := template.Remove(); err != nil {
		t.Error(err)
	}
}
