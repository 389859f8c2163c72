package osvm_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// What follows measures once an iteration, so that `-benchtime 1x -count N` gives N
// rounds of each; `make bench` reads them.

// answering makes a machine and starts it: from its order to its agent's answer.
func answering(b *testing.B, h *osvm.Host, order osvm.Order) (*osvm.Machine, time.Duration) {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), vmtest.Limit)
	defer cancel()
	begin := time.Now()
	m, err := h.Create(ctx, order)
	if err != nil {
		b.Error(err)
		return nil, 0
	}
	b.Cleanup(func() { _ = m.Destroy() })
	session, err := m.Start(ctx, guest.Identity{})
	took := time.Since(begin)
	if err != nil {
		b.Error(err)
		return nil, 0
	}
	b.Cleanup(func() { _ = session.Close() })
	return m, took
}

func report(b *testing.B, name string, all ...time.Duration) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(median(all).Microseconds())/1000, name)
}

// warm is a host that has made a machine out of its template before.
func warm(b *testing.B) (*osvm.Host, func(id string) osvm.Order) {
	b.Helper()
	h, image := vmtest.Host(b), vmtest.Image(b)
	order := func(id string) osvm.Order {
		return osvm.Order{ID: id, Image: image, MemoryMiB: 128, Template: true}
	}
	if m, _ := answering(b, h, order("first")); m == nil || m.Destroy() != nil {
		b.Fatal("no machine can be made")
	}
	return h, order
}

// BenchmarkClone has machines answer that boot and machines that are clones.
func BenchmarkClone(b *testing.B) {
	h, order := warm(b)
	const clones = 5
	var cold, warm []time.Duration
	for b.Loop() {
		boots := order("cold")
		boots.Template = false
		m, took := answering(b, h, boots)
		if m == nil || m.Destroy() != nil {
			b.FailNow()
		}
		cold = append(cold, took)
		for i := range clones {
			m, took := answering(b, h, order(fmt.Sprint("warm-", i)))
			if m == nil || m.Destroy() != nil {
				b.FailNow()
			}
			warm = append(warm, took)
		}
	}
	report(b, "cold-ms", cold...)
	report(b, "clone-ms", warm...)
}

// BenchmarkTwentyClones has twenty clones asked for at once, and then be idle.
func BenchmarkTwentyClones(b *testing.B) {
	h, order := warm(b)
	const clones, rest = 20, 500 * time.Millisecond
	var took []time.Duration
	var used time.Duration
	var memory, machines int64
	for b.Loop() {
		all, each := make([]*osvm.Machine, clones), make([]time.Duration, clones)
		var group sync.WaitGroup
		for i := range clones {
			group.Go(func() { all[i], each[i] = answering(b, h, order(fmt.Sprint("clone-", i))) })
		}
		group.Wait()
		if b.Failed() {
			return
		}
		took = append(took, each...)
		for _, m := range all {
			s, err := m.Statistics(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			used += s.CPU
		}
		time.Sleep(rest)
		for _, m := range all {
			s, err := m.Statistics(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			memory += s.MemoryBytes
			machines++
		}
		for _, m := range all {
			if err := m.Destroy(); err != nil {
				b.Fatal(err)
			}
		}
	}
	report(b, "median-ms", took...)
	b.ReportMetric(float64(used.Milliseconds())/float64(machines), "cpu-ms")
	b.ReportMetric(float64(memory)/float64(machines)/(1<<20), "MiB")
}

// BenchmarkCheckpoint takes a machine of 128 MiB that has been booted, whose
// memory is all its own, and a clone, and tells how long they stood still for it.
func BenchmarkCheckpoint(b *testing.B) {
	h, order := warm(b)
	boots := order("booted")
	boots.Template = false
	booted, _ := answering(b, h, boots)
	clone, _ := answering(b, h, order("clone"))
	if b.Failed() {
		return
	}
	var pauses [2][]time.Duration
	for b.Loop() {
		for i, m := range []*osvm.Machine{booted, clone} {
			c, err := m.Capture(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			pauses[i] = append(pauses[i], c.Pause)
			c.Close()
		}
	}
	report(b, "booted-ms", pauses[0]...)
	report(b, "clone-ms", pauses[1]...)
}
