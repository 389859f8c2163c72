package queuevm

import (
	"strconv"
	"testing"
)

// TestNeighboursShareTheCores: two VMs on one machine each count on half of it,
// and then nobody spins where both would not fit.
func TestNeighboursShareTheCores(t *testing.T) {
	for cores, spins := range map[int]bool{2: false, 3: false, 4: true} {
		a, b := pair(t, Config{Plain: true, Cores: cores})
		processes(t, a, 0)
		processes(t, b, 1)
		wire(t, 1, 4096, a, Endpoint{Process: 0, Port: "x"}, b, Endpoint{Process: 1, Port: "x"})
		for _, vm := range []*VM{a, b} {
			vm.mu.Lock()
			if got := vm.spins() > 0; got != spins {
				t.Errorf("%d cores for two of each: spins %t", cores, got)
			}
			vm.mu.Unlock()
		}
	}
}

// BenchmarkSpinning is a hop through two proxies on this machine, with the cores
// counted as they are and as if each node had them all, in turn.
func BenchmarkSpinning(b *testing.B) {
	hop := func(neighbours int) float64 {
		from, to := pair(b, Config{Plain: true})
		for _, vm := range []*VM{from, to} {
			vm.mu.Lock()
			vm.neighbours = neighbours
			vm.mu.Unlock()
		}
		processes(b, from, 0)
		processes(b, to, 1)
		wire(b, 1, 64<<10, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "prev"})
		wire(b, 2, 64<<10, to, Endpoint{Process: 1, Port: "prev"}, from, Endpoint{Process: 0, Port: "next"})
		spawn(b, to, 1, built.c, "pong", "prev", "prev")
		ns, err := strconv.ParseFloat(spawn(b, from, 0, built.c, "ping", "next", "next", "20000").result(), 64)
		must(b, err)
		return ns
	}
	for range b.N {
		alone, shared := hop(0), hop(1)
		b.ReportMetric(shared, "ns-one-way")
		b.ReportMetric(alone/shared, "x-spinning")
		b.ReportMetric(0, "ns/op")
	}
}
