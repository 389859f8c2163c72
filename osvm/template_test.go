package osvm_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// TestClones boots one machine, freezes it, and has clones answer: as machines of
// their own, and in a tenth of the time.
func TestClones(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	begin := time.Now()
	first := boot(t, ctx, t.TempDir(), "first")
	agent := session(t, ctx, first)
	hello := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
	cold := time.Since(begin)
	_ = agent.Close()
	template, err := first.Freeze(ctx, filepath.Join(t.TempDir(), "template"))
	if err != nil {
		t.Fatal(err)
	}
	<-first.Ended()

	q := vmtest.QEMU(t)
	var mu sync.Mutex // guards random
	random := map[string][]byte{}
	clone := func(name string) (*osvm.Machine, time.Duration) {
		begin := time.Now()
		spec := first.Spec
		spec.ID, spec.Template = name, template
		m, err := osvm.Create(ctx, q, t.TempDir(), spec)
		if err != nil {
			t.Error(err)
			return nil, 0
		}
		t.Cleanup(func() { _ = m.Destroy() })
		agent, err := m.Start(ctx, guest.Identity{})
		if err != nil {
			t.Error(err)
			return nil, 0
		}
		t.Cleanup(func() { _ = agent.Close() })
		took := time.Since(begin)
		got := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
		if got.Boot != hello.Boot {
			t.Errorf("%s: boot %s, the template's is %s", name, got.Boot, hello.Boot)
		}
		if late := time.Since(got.Time).Abs(); got.Hostname != name || late > vmtest.Limit {
			t.Errorf("%s calls itself %q, and is %v off", name, got.Hostname, late)
		}
		drawn := vmtest.Call[[]byte](t, agent, "Random", 32)
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
	warm, _ := clone("warm")
	if warm != nil {
		if err := osvm.LookAtMemory(ctx, t, warm); err != nil {
			t.Error(err)
		}
		second, err := osvm.Copy(ctx, warm, q, t.TempDir())
		if second != nil {
			t.Cleanup(func() { _ = second.Destroy() })
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := second.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		if got := vmtest.Call[guest.Greeting](t, session(t, ctx, second), "Hello", guest.Nothing{}); got.Hostname != "warm" || got.Boot != hello.Boot {
			t.Errorf("the second machine of warm's memory and state calls itself %q, of boot %s", got.Hostname, got.Boot)
		}
	}
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

	if warm == nil {
		return
	}
	if _, err := warm.Freeze(ctx, filepath.Join(t.TempDir(), "again")); err == nil {
		t.Error("a clone was frozen")
	}
	if err := template.Remove(); err != nil {
		t.Error(err)
	}
}
