package queuevm

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

// seen is what testdata/link's sink printed.
type seen struct {
	items, disorder     int
	least, median, most float64 // microseconds
	bandwidth, total    float64 // bits a second between arrivals, and since the first was enqueued
	late                float64 // microseconds: how late the machine woke the giver, if it was paced
}

// overLink runs one producer and one taker over a link and gives what the taker saw.
func overLink(t *testing.T, way route, l Link, capacity int, give ...string) seen {
	t.Helper()
	vms := way.start(t)
	b := newBench(t, vms, way.home, Queue{Type: QueueFifo, Full: FullBlock, Capacity: capacity, Link: l}, []int{way.producer}, []int{way.taker})
	taker := spawn(t, b.vms[way.taker], 100, built.link, "sink", "queue")
	late := spawn(t, b.vms[way.producer], 0, built.link, append([]string{give[0], "queue"}, give[1:]...)...).result()
	s := sight(t, taker)
	if give[0] == "pace" {
		_, err := fmt.Sscan(late, &s.late)
		must(t, err)
	}
	return s
}

func sight(t *testing.T, taker *child) (s seen) {
	t.Helper()
	text := taker.result()
	if _, err := fmt.Sscan(text, &s.items, &s.disorder, &s.least, &s.median, &s.most, &s.bandwidth, &s.total); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	if s.disorder > 0 {
		t.Errorf("%d of %d items came out of order", s.disorder, s.items)
	}
	return s
}

// measured repeats a measurement until it is within a tenth of what was asked,
// for a while: on a machine that does other things, that it is right once shows
// that the link can be, and one that is wrong is so each time. allow is what the
// machine itself was seen to be off by.
func measured(t *testing.T, what string, asked float64, measure func() (got, allow float64)) {
	t.Helper()
	var all []string
	for begin := time.Now(); len(all) < 5 || time.Since(begin) < 10*time.Second; {
		got, allow := measure()
		all = append(all, fmt.Sprintf("%.4g", got))
		if got >= 0.9*asked-allow && got <= 1.1*asked+allow {
			t.Logf("%s: asked %.4g, got %s", what, asked, strings.Join(all, ", "))
			return
		}
		if t.Failed() {
			return
		}
	}
	t.Errorf("%s: asked %.4g, got %s", what, asked, strings.Join(all, ", "))
}

// wakes is what three wake-ups cost above the 60 us or so that they do on an idle
// machine.
func (s seen) wakes() float64 { return 3 * max(0, s.late-60) }

func TestLinkLatency(t *testing.T) {
	for _, way := range routes[:3] {
		for _, latency := range []time.Duration{time.Millisecond, 5 * time.Millisecond, 50 * time.Millisecond} {
			t.Run(fmt.Sprint(way.name, "/", latency), func(t *testing.T) {
				asked := float64(latency / time.Microsecond)
				measured(t, "median in us", asked, func() (float64, float64) {
					s := overLink(t, way, Link{Latency: latency}, 0, "pace", "100", "3000", "64")
					if s.items != 100 || s.least < asked*0.9 {
						t.Errorf("%d of 100 items came, the first after %v us", s.items, s.least)
					}
					return s.median, s.wakes()
				})
			})
		}
	}
}

func TestLinkBandwidth(t *testing.T) {
	for _, way := range routes[:3] {
		for _, c := range []struct {
			bandwidth float64
			size      int
		}{{1e6, 1000}, {10e6, 1 << 16}, {100e6, 1000}, {1000e6, 1 << 20}} {
			t.Run(fmt.Sprint(way.name, "/", c.bandwidth/1e6, "Mbit/", c.size), func(t *testing.T) {
				count := int(max(c.bandwidth*0.3/8/float64(c.size), 10))
				measured(t, "bits a second", c.bandwidth, func() (float64, float64) {
					s := overLink(t, way, Link{Latency: time.Millisecond, Bandwidth: c.bandwidth}, 4<<20, "flood", fmt.Sprint(count), fmt.Sprint(c.size))
					if s.items != count {
						t.Errorf("%d of %d items came", s.items, count)
					}
					if s.total > 1.01*c.bandwidth {
						t.Errorf("%v bits a second came over a link of %v", s.total, c.bandwidth)
					}
					if s.bandwidth < 0.9*c.bandwidth {
						free := overLink(t, way, Link{Latency: time.Millisecond}, 4<<20, "flood", fmt.Sprint(count), fmt.Sprint(c.size))
						if free.bandwidth < 2*c.bandwidth {
							t.Logf("NOT JUDGED: without a limit %.4g bits a second came here: the machine is too busy", free.bandwidth)
							return s.bandwidth, c.bandwidth
						}
					}
					return s.bandwidth, 0
				})
			})
		}
	}
}

func TestLinkLoss(t *testing.T) {
	lost := map[uint64]int{}
	for _, loss := range []float64{0.01, 0.1, 0.5} {
		for _, seed := range []uint64{1, 1, 2} {
			const count = 100_000
			s := overLink(t, routes[0], Link{Loss: loss, Seed: seed}, 1<<20, "flood", fmt.Sprint(count), "16")
			share := 1 - float64(s.items)/count
			if math.Abs(share-loss) > loss/10 {
				t.Errorf("of %d items %.4f were lost, asked for %v", count, share, loss)
			}
			if n, again := lost[seed]; again && n != count-s.items {
				t.Errorf("seed %d lost %d items and then %d", seed, n, count-s.items)
			}
			lost[seed] = count - s.items
		}
		if lost[1] == lost[2] {
			t.Errorf("two seeds lost %d items both", lost[1])
		}
		clear(lost)
	}
	if s := overLink(t, routes[1], Link{Latency: time.Millisecond, Loss: 1}, 0, "flood", "1000", "16"); s.items != 0 {
		t.Errorf("%d items came over a link that loses all", s.items)
	}
}

func TestLinkJitter(t *testing.T) {
	const latency, jitter = 20 * time.Millisecond, 4 * time.Millisecond
	measured(t, "median in us", 20_000, func() (float64, float64) {
		s := overLink(t, routes[0], Link{Latency: latency, Jitter: jitter, Seed: 1}, 0, "pace", "200", "8000", "64")
		if s.least < 0.9*16_000 || s.items != 200 {
			t.Errorf("%+v", s)
		}
		if s.least > 17_000+s.wakes() || s.most < 23_000 {
			t.Errorf("the items took %v to %v us, which is no jitter of 4 ms around 20", s.least, s.most)
		}
		return s.median, s.wakes()
	})
	// Faster than the jitter: the order is kept all the same, which sink sees.
	if s := overLink(t, routes[2], Link{Latency: latency, Jitter: jitter}, 0, "pace", "500", "500", "64"); s.items != 500 {
		t.Errorf("%d of 500 items came", s.items)
	}
}

// A link that is changed while items are on their way loses and disorders none.
func TestLinkChangesUnderItems(t *testing.T) {
	vm := start(t, Config{})
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock}, []int{0}, []int{0})
	taker := spawn(t, vm, 100, built.link, "sink", "queue")
	giver := spawn(t, vm, 0, built.link, "pace", "queue", "600", "1000", "64")
	arrived := func(n uint64) {
		eventually(t, "items arrive", func() bool { return b.queue().ItemsOut >= n })
	}
	for k, l := range []Link{{Latency: 60 * time.Millisecond}, {Latency: time.Millisecond}, {Bandwidth: 1e6}, {Latency: 5 * time.Millisecond, Jitter: 3 * time.Millisecond}, {}} {
		arrived(uint64(100 * (k + 1)))
		must(t, vm.SetLink(1, l))
	}
	giver.result()
	if s := sight(t, taker); s.items != 600 || s.most < 60_000 || s.median > 60_000 {
		t.Errorf("%+v", s)
	}
	for _, l := range []Link{{Latency: -1}, {Bandwidth: math.NaN()}, {Bandwidth: 0.5}, {Loss: 1.1}, {Loss: math.NaN()}, {Jitter: 2 * LatencyMax}} {
		if err := vm.SetLink(1, l); err == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	if err := vm.SetLink(2, Link{}); err == nil {
		t.Error("a queue that is not there gets a link")
	}
}

// Who sends faster than the link waits: in its ring, not in the home's memory.
func TestLinkHoldsItsProducerBack(t *testing.T) {
	vm := start(t, Config{})
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 64 << 10, Link: Link{Bandwidth: 1e6}}, []int{0}, []int{0})
	spawn(t, vm, 100, built.link, "sink", "queue")
	spawn(t, vm, 0, built.link, "flood", "queue", "100000", "1000")
	eventually(t, "the giver waits", func() bool { return vm.Inspect()[0].GiverWaits && b.queue().ItemsOut > 10 })
	if q := b.queue(); q.Flying < 1 || q.Flying > 5 { // 20 ms of a million bits a second are 2,500 bytes
		t.Errorf("%d items are on their way", q.Flying)
	}
	if q := vm.Quiet(); q.Quiet {
		t.Error("quiet, with items on their way")
	}
}
