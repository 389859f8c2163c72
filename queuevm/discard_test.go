package queuevm

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// half lays a channel at one of its nodes only, as when the change fails at the other.
func (w *loom) half(from, to spot, at int) uint32 {
	w.t.Helper()
	w.last++
	must(w.t, w.vms[at].AddChannel(Channel{ID: w.last, Capacity: 8 << 10, From: w.end(from, at), To: w.end(to, at), After: w.last - 1}))
	return w.last
}

// A change that fails at some node leaves nothing behind which the ends of a port
// could go on: the next change finds them where they were. The edges are under load.
func TestFailedChangesLeaveNothing(t *testing.T) {
	for _, k := range []int{0, 1, 2} {
		for _, made := range []string{"the taker's", "the producer's", "both"} {
			if !soak() && made == "both" && k > 0 {
				continue
			}
			lang := languages()[k]
			t.Run(lang.name+"/made at "+made, func(t *testing.T) {
				vms := route{"", 2, Config{Plain: k == 0, Cores: 1}, 0, 0, 0}.start(t)
				w := &loom{t: t, vms: vms}
				p, q := spot{0, 0, "next"}, spot{1, 1, "prev"}
				processes(t, vms[0], 0)
				processes(t, vms[1], 1)
				id := w.lay(p, q, 8<<10)
				r := spawn(t, vms[1], 1, lang.program, "gather", "prev", "block")
				g := spawn(t, vms[0], 0, languages()[(k+1)%3].program, "insist", "next", "8000")
				for round := range 4 {
					at := state(vms[1], id).ItemsOut + 500
					eventually(t, "items are through", func() bool { return state(vms[1], id).ItemsOut > at || state(vms[0], id).GiverClosed })
					var void uint32
					switch made {
					case "the taker's":
						void = w.half(p, q, 1)
					case "the producer's":
						void = w.half(p, q, 0)
					default:
						void = w.lay(p, q, 8<<10)
					}
					for range 2 {
						for _, k := range []int{round % 2, 1 - round%2} {
							must(t, vms[k].Discard(void))
						}
					}
					if err := vms[0].AddChannel(Channel{ID: void, From: w.end(p, 0), To: w.end(q, 0), After: 1}); err == nil {
						t.Fatal("what was taken back is made once more")
					}
					next := w.lay(p, q, 8<<10)
					must(t, vms[0].Switch(Swap{id, next}))
					id = next
				}
				g.result()
				accounted(t, 8000, numbers(t, r.result()))
				for _, vm := range vms {
					eventually(t, "what was taken back is forgotten", func() bool { return len(vm.Inspect()) <= 2 })
				}
			})
		}
	}
}

// A port that had no edge finds none after a change that failed, though its program
// opened it meanwhile, and goes on with the next that is made.
func TestAProgramOpensWhatIsTakenBack(t *testing.T) {
	for _, lang := range languages() {
		t.Run(lang.name, func(t *testing.T) {
			vms := route{"", 2, Config{Plain: true, Cores: 1}, 0, 0, 0}.start(t)
			w := &loom{t: t, vms: vms}
			p, q := spot{0, 0, "next"}, spot{1, 1, "prev"}
			processes(t, vms[0], 0)
			processes(t, vms[1], 1)
			void := w.half(p, q, 0)
			g := spawn(t, vms[0], 0, lang.program, "insist", "next", "300") // fewer than fill a ring
			eventually(t, "it enqueues", func() bool { return state(vms[0], void).ItemsIn > 0 })
			must(t, vms[0].Discard(void))
			must(t, vms[1].Discard(void))
			w.last++
			id := w.last
			for k, vm := range vms {
				must(t, vm.AddChannel(Channel{ID: id, Capacity: 8 << 10, From: w.end(p, k), To: w.end(q, k)})) // as on a port that has nothing
			}
			r := spawn(t, vms[1], 1, lang.program, "gather", "prev", "wait")
			g.result()
			if all := numbers(t, r.result()); len(all) == 300 || len(all) > 0 && all[len(all)-1] != 299 {
				t.Errorf("%d items: %v", len(all), all)
			}
		})
	}
}

// Of several switches none is made when one may not be: so what a change made can be
// taken back.
func TestSwitchesAllOrNone(t *testing.T) {
	vm := start(t, Config{})
	w := &loom{t: t, vms: []*VM{vm}}
	processes(t, vm, 0, 1)
	p, q := spot{0, 0, "next"}, spot{0, 1, "prev"}
	id := w.lay(p, q, 8<<10)
	next := w.lay(p, q, 8<<10)
	for _, bad := range []Swap{{4711, 0}, {id, id}} {
		if err := vm.Switch(Swap{id, next}, bad); err == nil {
			t.Errorf("%+v is made", bad)
		}
	}
	if s, err := vm.Switched(id); err != nil || s.Told {
		t.Fatalf("the first was told: %+v, %v", s, err)
	}
	must(t, vm.Discard(next))
	r := spawn(t, vm, 1, built.c, "receive", "prev", "100")
	spawn(t, vm, 0, built.c, "send", "next", "500", "100").result()
	if got := r.result(); got != "500" {
		t.Errorf("%s items came", got)
	}
}

// A queue knows the ends no more that a change would have brought.
func TestQueuesForgetWhatIsTakenBack(t *testing.T) {
	for _, kind := range []QueueType{QueueWork, QueueBroadcast} {
		t.Run(string(kind), func(t *testing.T) {
			vm := start(t, Config{})
			b := newBench(t, []*VM{vm}, 0, Queue{Type: kind, Full: FullBlock, Capacity: 8 << 10}, []int{0}, []int{0})
			w := &loom{t: t, vms: []*VM{vm}, last: 100}
			more, other := spot{0, 200, "queue"}, spot{0, 201, "queue"}
			processes(t, vm, 200, 201)
			g := b.give(0, 0, built.c, 50, 100, 0)
			eventually(t, "items wait", func() bool { return b.queue().ItemsIn > 20 })
			in, out := w.toQueue(more, 0, 1), w.fromQueue(0, other, 1)
			must(t, vm.Discard(in, out, 4711))
			if q := b.queue(); q.Producers != 1 || q.Takers != 1 {
				t.Errorf("it has %d producers and %d takers", q.Producers, q.Takers)
			}
			r := b.gather(0, 0, built.c, "block")
			g.result()
			accounted(t, 50, numbers(t, r.result()))

			// One that never had a producer has not ended when the first is taken back.
			must(t, vm.AddQueue(Queue{ID: 2, Name: "new", Type: kind, Full: FullBlock, Capacity: 4096}))
			taker := spot{0, 202, "queue"}
			processes(t, vm, 202)
			w.fromQueue(0, taker, 2)
			must(t, vm.Discard(w.toQueue(spot{0, 200, "second"}, 0, 2)))
			id := w.toQueue(spot{0, 201, "third"}, 0, 2)
			x := spawn(t, vm, 202, built.c, "gather", "queue", "block")
			y := spawn(t, vm, 201, built.c, "give", "third", "p", "7", "10", "0")
			y.result()
			if got := strings.Count(x.result(), "p "); got != 7 || state(vm, id).ItemsIn != 7 {
				t.Errorf("%d items came", got)
			}
		})
	}
}

// A queue that changes leave without a taker keeps what comes for the next: producers
// wait when it is full, and who looks in from outside finds it all. It is no deadlock.
func TestItemsWaitForTheNextTaker(t *testing.T) {
	for _, way := range routes {
		for _, kind := range []QueueType{QueueWork, QueueFifo} {
			if !soak() && kind == QueueFifo && way.nodes > 1 {
				continue
			}
			t.Run(fmt.Sprint(kind, "/", way.name), func(t *testing.T) {
				const count = 3000
				vms := way.start(t)
				b := newBench(t, vms, way.home, Queue{Type: kind, Full: FullBlock, Capacity: 8 << 10}, []int{way.producer}, []int{way.home})
				home := vms[way.home]
				w := &loom{t: t, vms: vms, last: 100}
				first := b.gather(0, way.home, built.c, "block")
				g := b.give(0, way.producer, built.golang, count, 2000, 0)
				var taken [][]int
				id := uint32(2) // of the first taker
				for k := range 3 {
					at := uint64(400 * (k + 1))
					eventually(t, "items are through", func() bool { return b.queue().ItemsOut >= at })
					must(t, home.Switch(Swap{id, 0}))
					taken = append(taken, numbers(t, first.result()))
					eventually(t, "the producer waits for room", func() bool { return b.queue().ProducersWait == 1 })
					if err := home.ChangeQueue(1, QueueChange{Type: new(QueueBroadcast)}); err == nil || !strings.Contains(err.Error(), "no taker") {
						t.Errorf("it became a broadcast: %v", err)
					}
					if k == 0 {
						staysUnlocked(t, vms...)
					}
					if items, err := home.DrainQueue(1, 3); err != nil || len(items) != 3 {
						t.Errorf("drained %d items: %v", len(items), err)
					} else {
						var some []int
						for _, item := range items {
							some = append(some, numbers(t, strings.SplitN(string(item.Data), "\n", 2)[0])...)
						}
						taken = append(taken, some)
					}
					next := spot{way.taker, 300 + k, "queue"}
					processes(t, vms[next.node], next.process)
					id = w.fromQueue(way.home, next, 1)
					first = spawn(t, vms[next.node], next.process, languages()[k].program, "gather", "queue", "block")
				}
				g.result()
				accounted(t, count, append(taken, numbers(t, first.result()))...)
				if err := home.AddChannel(Channel{ID: 999, From: Endpoint{Process: 300 + 2, Port: "x"}, To: Endpoint{Queue: 1}}); way.home == way.taker && (!errors.Is(err, ErrClosed) || !strings.Contains(err.Error(), "nothing can follow")) {
					t.Errorf("a producer joins a queue that has ended: %v", err)
				}
			})
		}
	}
}
