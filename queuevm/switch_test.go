package queuevm

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// loom lays channels between ports, each after what its ports have already.
type loom struct {
	t    testing.TB
	last uint32
	vms  []*VM
}

// spot is a port of a process on a node.
type spot struct {
	node, process int
	port          string
}

func (w *loom) end(s spot, at int) Endpoint {
	if s.node != at {
		return Endpoint{Peer: w.vms[s.node].config.Self}
	}
	return Endpoint{Process: s.process, Port: s.port}
}

func (w *loom) lay(from, to spot, capacity int) uint32 {
	w.t.Helper()
	w.last++
	for _, node := range []int{to.node, from.node} {
		must(w.t, w.vms[node].AddChannel(Channel{ID: w.last, Capacity: capacity, From: w.end(from, node), To: w.end(to, node), After: w.last - 1}))
		if from.node == to.node {
			break
		}
	}
	return w.last
}

// rings is how many rings this process holds.
func rings(t testing.TB) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, f := range all {
		if to, err := os.Readlink("/proc/self/fd/" + f.Name()); err == nil && strings.Contains(to, "mvm-ring") {
			n++
		}
	}
	return n
}

// An edge gets another ring, bigger or smaller, again and again under full load:
// all items arrive in order, from every language to every language on every path,
// and what the old rings held is given back.
func TestCapacityOfABareEdgeUnderFullLoad(t *testing.T) {
	all := 0
	for p, way := range paths()[:3] {
		for g, giver := range languages() {
			for k, taker := range languages() {
				if !soak() && (p+g+k)%3 != 0 { // every pairing on one of the paths
					continue
				}
				t.Run(way.name+"/"+giver.name+"-"+taker.name, func(t *testing.T) {
					from, to := way.make(t)
					before := rings(t)
					w := &loom{t: t, vms: []*VM{from, to}}
					p, q := spot{0, 0, "next"}, spot{1, 1, "prev"}
					if from == to {
						q.node = 0
					}
					processes(t, from, 0)
					processes(t, to, 1)
					id := w.lay(p, q, 16<<10)
					r := spawn(t, to, 1, taker.program, "receive", "prev", "40000")
					s := spawn(t, from, 0, giver.program, "send", "next", "500", "40000")
					changes, old := 0, id
					for running := true; running; {
						if st, _ := from.Switched(old); changes > 0 && !st.Written || changes == 0 && state(from, id).ItemsIn == 0 {
							time.Sleep(50 * time.Microsecond)
						} else {
							next := w.lay(p, q, []int{4 << 10, 64 << 10, 16 << 10}[changes%3])
							must(t, from.Switch(Swap{id, next}))
							must(t, from.Switch(Swap{id, next}))
							old, id = id, next
							changes++
						}
						select {
						case err := <-s.done:
							if err != nil {
								t.Fatalf("%v %s", err, s.stderr.String())
							}
							running = false
						default:
						}
					}
					if got := r.result(); got != "500" {
						t.Errorf("received %s items, sent 500", got)
					}
					all += changes // none where the machine let the sender run through at once
					most := before + 2*2
					eventually(t, "the memory of old rings is given back", func() bool { return rings(t) <= most })
					t.Logf("%d changes", changes)
				})
			}
		}
	}
	if all == 0 {
		t.Error("no changes at all: the test proves nothing")
	}
}

// numbers reads what a gather printed.
func numbers(t testing.TB, text string) (all []int) {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if line == "" {
			continue
		}
		n := 0
		if _, err := fmt.Sscanf(line, "p0 %d", &n); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, n)
	}
	return all
}

// accounted says that some takers got each of the items once, each in order.
func accounted(t testing.TB, count int, taken ...[]int) {
	t.Helper()
	seen := make([]int, count)
	for k, all := range taken {
		for j, n := range all {
			if j > 0 && all[j-1] >= n {
				t.Errorf("taker %d got item %d after item %d", k, n, all[j-1])
			}
			seen[n]++
		}
	}
	for n, times := range seen {
		if times != 1 {
			t.Errorf("item %d came %d times", n, times)
		}
	}
}

// An edge is led to another process and back under full load: from a taker on this
// node to one on another, to one on a third, in every form of the calls.
func TestRewireUnderFullLoad(t *testing.T) {
	for _, way := range []route{routes[0], routes[3], {"tls", 3, Config{Cores: 1}, 0, 0, 0}} {
		for k, giver := range languages() {
			t.Run(way.name+"/"+giver.name, func(t *testing.T) {
				// On a busy machine all may be through before there were changes.
				count, changes := 1500, 0
				for ; changes < 20 && !t.Failed(); count *= 4 {
					if count > 100_000 {
						t.Fatalf("only %d changes: the test proves little", changes)
					}
					changes = rewired(t, way, k, count)
				}
			})
		}
	}
}

// rewired has an edge of a giver led from one taker to the next, as often as it goes
// while count items pass, and gives how often that was.
func rewired(t *testing.T, way route, k, count int) (changes int) {
	t.Helper()
	w := &loom{t: t, vms: way.start(t)}
	p := spot{0, 0, "out"}
	processes(t, w.vms[0], 0)
	var takers []spot
	for j := range 3 {
		takers = append(takers, spot{j % len(w.vms), 1 + j, "in"})
		processes(t, w.vms[takers[j].node], 1+j)
	}
	// A ring ahead for each taker: who has no other yet would see END.
	var chain []uint32
	for j := range 4 {
		chain = append(chain, w.lay(p, takers[j%3], 8<<10))
	}
	var gatherers []*child
	for j, at := range takers {
		gatherers = append(gatherers, spawn(t, w.vms[at.node], at.process, languages()[(j+k)%3].program, "gather", "in", []string{"block", "wait", "timed", "try"}[(j+k)%4]))
	}
	g := spawn(t, w.vms[0], 0, languages()[k].program, "give", "out", "p0", fmt.Sprint(count), "3000", "0")
	for running := true; running; {
		select {
		case err := <-g.done:
			if err != nil {
				t.Fatalf("%v %s", err, g.stderr.String())
			}
			running = false
			continue
		default:
		}
		if changes > 0 {
			if st, err := w.vms[0].Switched(chain[changes-1]); err != nil || !st.Written {
				time.Sleep(20 * time.Microsecond)
				continue
			}
		}
		chain = append(chain, w.lay(p, takers[(changes+4)%3], 8<<10))
		must(t, w.vms[0].Switch(Swap{chain[changes], chain[changes+1]}))
		changes++
	}
	var taken [][]int
	for _, g := range gatherers {
		taken = append(taken, numbers(t, g.result()))
	}
	accounted(t, count, taken...)
	t.Logf("%d changes; %d, %d, %d items", changes, len(taken[0]), len(taken[1]), len(taken[2]))
	return changes
}

// A thousand re-wires leave no memory behind, on either node.
func TestAThousandRewires(t *testing.T) {
	for _, way := range []route{routes[0], routes[1]} {
		t.Run(way.name, func(t *testing.T) {
			w := &loom{t: t, vms: way.start(t)}
			far := len(w.vms) - 1
			p, takers := spot{0, 0, "out"}, []spot{{far, 1, "in"}, {far, 2, "in"}}
			processes(t, w.vms[0], 0)
			processes(t, w.vms[far], 1, 2)
			before := rings(t)
			var chain []uint32
			for j := range 3 {
				chain = append(chain, w.lay(p, takers[j%2], 4096))
			}
			a := spawn(t, w.vms[far], 1, built.c, "gather", "in", "block")
			b := spawn(t, w.vms[far], 2, built.golang, "gather", "in", "wait")
			g := spawn(t, w.vms[0], 0, built.c, "give", "out", "p0", "1000000000", "8", "0")
			for k := range 1000 {
				chain = append(chain, w.lay(p, takers[(k+3)%2], 4096))
				must(t, w.vms[0].Switch(Swap{chain[k], chain[k+1]}))
				eventually(t, "the producer goes on", func() bool { st, _ := w.vms[0].Switched(chain[k]); return st.Written })
			}
			eventually(t, "the old rings are gone", func() bool { return rings(t) <= before+2*6 })
			for _, vm := range w.vms {
				if n := len(vm.Inspect()); n > 6 {
					t.Errorf("%d channels are left", n)
				}
			}
			maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", g.cmd.Process.Pid))
			must(t, err)
			if n := strings.Count(string(maps), "mvm-ring"); n > 4 {
				t.Errorf("the producer maps %d areas of rings", n)
			}
			must(t, g.cmd.Process.Kill())
			<-g.done
			one, two := numbers(t, a.result()), numbers(t, b.result())
			accounted(t, len(one)+len(two), one, two)
			eventually(t, "all rings but the last are gone", func() bool { return rings(t) <= before+2*3 })
		})
	}
}

// A bare edge becomes a served queue and a bare edge again, under full load.
func TestBareBecomesServedAndBack(t *testing.T) {
	const count = 3000
	for n, way := range routes {
		for k, giver := range languages() {
			if !soak() && (n+k)%3 != 0 {
				continue
			}
			t.Run(way.name+"/"+giver.name, func(t *testing.T) {
				w := &loom{t: t, vms: way.start(t)}
				p, q := spot{way.producer, 0, "out"}, spot{way.taker, 1, "in"}
				processes(t, w.vms[p.node], 0)
				processes(t, w.vms[q.node], 1)
				out := w.lay(p, q, 16<<10) // the producer's channel
				r := spawn(t, w.vms[q.node], 1, languages()[(k+1)%3].program, "gather", "in", []string{"timed", "wait", "block"}[k])
				g := spawn(t, w.vms[p.node], 0, giver.program, "give", "out", "p0", fmt.Sprint(count), "3000", "0")
				rounds := 0
				for running := true; running; rounds++ {
					served := rounds%2 == 0
					var nextOut uint32
					if served {
						queue := Queue{ID: rounds + 1, Name: "the queue", Type: QueueFifo, Full: FullBlock, Capacity: 8 << 10, Producers: 1, Takers: 1}
						for _, vm := range w.vms {
							must(t, vm.AddQueue(queue))
						}
						nextOut = w.toQueue(p, way.home, queue.ID)
						w.fromQueue(way.home, q, queue.ID)
					} else {
						nextOut = w.lay(p, q, 8<<10)
					}
					must(t, w.vms[p.node].Switch(Swap{out, nextOut}))
					for {
						st, err := w.vms[p.node].Switched(out)
						must(t, err)
						select {
						case err := <-g.done:
							if err != nil {
								t.Fatalf("%v %s", err, g.stderr.String())
							}
							running = false
						default:
						}
						if st.Written || !running {
							break
						}
						time.Sleep(20 * time.Microsecond)
					}
					out = nextOut
				}
				all := numbers(t, r.result())
				accounted(t, count, all)
				if rounds < 2 {
					t.Errorf("only %d rounds: the test proves little", rounds)
				}
				t.Logf("%d rounds", rounds)
			})
		}
	}
}

// toQueue and fromQueue lay a channel between a port and a served queue.
func (w *loom) toQueue(from spot, home, queue int) uint32 {
	w.t.Helper()
	w.last++
	id := w.last
	far := Endpoint{Queue: queue, Peer: w.vms[home].config.Self}
	if from.node == home {
		far.Peer = ""
	} else {
		must(w.t, w.vms[home].AddChannel(Channel{ID: id, Capacity: 8 << 10, From: Endpoint{Peer: w.vms[from.node].config.Self}, To: Endpoint{Queue: queue}, After: id}))
	}
	must(w.t, w.vms[from.node].AddChannel(Channel{ID: id, Capacity: 8 << 10, From: w.end(from, from.node), To: far, After: id}))
	return id
}

func (w *loom) fromQueue(home int, to spot, queue int) uint32 {
	w.t.Helper()
	w.last++
	id := w.last
	far := Endpoint{Queue: queue, Peer: w.vms[home].config.Self}
	if to.node == home {
		far.Peer = ""
	} else {
		must(w.t, w.vms[home].AddChannel(Channel{ID: id, Capacity: 8 << 10, From: Endpoint{Queue: queue}, To: Endpoint{Peer: w.vms[to.node].config.Self}, After: id}))
	}
	must(w.t, w.vms[to.node].AddChannel(Channel{ID: id, Capacity: 8 << 10, From: far, To: w.end(to, to.node), After: id}))
	return id
}

// Producers and takers join a served queue and leave it under full load.
func TestEndsOfAServedQueueComeAndGo(t *testing.T) {
	for _, kind := range []QueueType{QueueWork, QueueBroadcast} {
		for _, way := range routes {
			t.Run(fmt.Sprint(kind, "/", way.name), func(t *testing.T) {
				const count = 4000
				vms := way.start(t)
				b := newBench(t, vms, way.home, Queue{Type: kind, Full: FullBlock, Capacity: 8 << 10}, []int{way.producer}, []int{way.home})
				w := &loom{t: t, vms: vms, last: 100}
				stays := b.gather(0, way.home, built.c, "block")
				g := b.give(0, way.producer, built.golang, count, 2000, 0)
				var taken [][]int
				guests := 0
				for at := uint64(50); at < count; at += 600 {
					eventually(t, "more items are through", func() bool { return b.queue().ItemsIn >= at })
					guest := spot{way.taker, 200 + guests, "queue"}
					processes(t, vms[guest.node], guest.process)
					id := w.fromQueue(way.home, guest, 1)
					r := spawn(t, vms[guest.node], guest.process, languages()[guests%3].program, "gather", "queue", []string{"block", "timed", "wait", "try"}[guests%4])
					eventually(t, "some are its", func() bool { return state(vms[way.home], id).ItemsIn > 4 || b.queue().ProducersClosed > 0 })
					must(t, vms[way.home].Switch(Swap{id, 0}))
					taken = append(taken, numbers(t, r.result()))
					guests++
				}
				if got := g.result(); got != "0" {
					t.Errorf("%s items were refused", got)
				}
				all := numbers(t, stays.result())
				if kind == QueueBroadcast {
					accounted(t, count, all)
					for k, some := range taken {
						for j := 1; j < len(some); j++ {
							if some[j] != some[j-1]+1 {
								t.Errorf("taker %d got item %d after %d", k, some[j], some[j-1])
							}
						}
					}
				} else {
					accounted(t, count, append(taken, all)...)
				}
				some := 0
				for _, t := range taken {
					some += len(t)
				}
				q := b.queue()
				if some == 0 || q.Takers != 1 {
					t.Errorf("%d items went to those who came and went; %+v", some, q)
				}
			})
		}
	}
}

// A producer leaves a served queue for another port's taker, and one joins.
func TestProducersComeAndGo(t *testing.T) {
	for _, way := range routes {
		t.Run(way.name, func(t *testing.T) {
			const count = 20000
			vms := way.start(t)
			b := newBench(t, vms, way.home, Queue{Type: QueueWork, Full: FullFail, Capacity: 8 << 10}, []int{way.producer, way.home}, []int{way.home})
			w := &loom{t: t, vms: vms, last: 100}
			side := spot{way.taker, 300, "in"}
			processes(t, vms[side.node], side.process)
			next := w.lay(spot{way.producer, 0, "queue"}, side, 8<<10)
			r := b.gather(0, way.home, built.c, "block")
			s := spawn(t, vms[side.node], side.process, built.python, "gather", "in", "block")
			g := b.give(0, way.producer, built.c, count, 2000, 0)
			eventually(t, "some items are through", func() bool { return b.queue().ItemsIn >= 100 })
			must(t, vms[way.producer].Switch(Swap{1, next}))
			refused := 0
			_, err := fmt.Sscan(g.result(), &refused)
			must(t, err)
			side2 := numbers(t, s.result())
			eventually(t, "it has a producer less", func() bool { return b.queue().Producers == 1 })
			other := spawn(t, vms[way.home], 1, built.golang, "give", "queue", "p1", "30", "10", "0")
			more := other.result()
			var mine []int
			last := 0
			for _, line := range strings.Split(r.result(), "\n") {
				n := 0
				if _, err := fmt.Sscanf(line, "p0 %d", &n); err == nil {
					mine = append(mine, n)
				} else if _, err := fmt.Sscanf(line, "p1 %d", &n); err == nil {
					last++
				}
			}
			if len(mine)+len(side2)+refused != count || fmt.Sprint(30-last) != more || len(side2) == 0 {
				t.Errorf("%d here, %d there, %d refused of %d; %d of the other, who counts %s refused", len(mine), len(side2), refused, count, last, more)
			}
		})
	}
}

// Removed, an edge answers "closed"; a program whose port is given an edge later
// goes on.
func TestEdgeRemovedAndAdded(t *testing.T) {
	for _, lang := range languages() {
		t.Run(lang.name, func(t *testing.T) {
			vm := start(t, Config{})
			w := &loom{t: t, vms: []*VM{vm}}
			p, q, r := spot{0, 0, "out"}, spot{0, 1, "in"}, spot{0, 2, "in"}
			processes(t, vm, 0, 1, 2)
			first := w.lay(p, q, 4096)
			a := spawn(t, vm, 1, lang.program, "gather", "in", "block")
			g := spawn(t, vm, 0, lang.program, "insist", "out", "20000")
			eventually(t, "some items are through", func() bool { return state(vm, first).ItemsOut > 100 })
			must(t, vm.Switch(Swap{first, 0}))
			one := numbers(t, a.result()) // END
			w.lay(p, r, 4096)
			b := spawn(t, vm, 2, lang.program, "gather", "in", "wait")
			g.result()
			two := numbers(t, b.result())
			accounted(t, 20000, one, two)
			if st, err := vm.Switched(first); err != nil || !st.Done() && !st.Written {
				t.Errorf("%+v %v", st, err)
			}
		})
	}
}

// END stays until the port is given an edge again; a program that looks again then goes
// on with it.
func TestEdgeAfterEnd(t *testing.T) {
	for _, way := range paths() {
		for _, lang := range languages() {
			t.Run(way.name+"/"+lang.name, func(t *testing.T) {
				from, to := way.make(t)
				w := &loom{t: t, vms: []*VM{from, to}}
				q, r := spot{1, 1, "in"}, spot{0, 2, "next"}
				if from == to {
					q.node = 0
				}
				processes(t, from, 0, 2)
				processes(t, to, 1)
				w.last++ // as wire numbers it, which knows of direct channels
				wire(t, w.last, 4096, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "in"})
				told := filepath.Join(t.TempDir(), "told")
				taker := spawn(t, to, 1, lang.program, "again", "in", told)
				spawn(t, from, 0, built.c, "send", "next", "3", "100").result()
				eventually(t, "END is told", func() bool { _, err := os.Stat(told); return err == nil })
				w.lay(r, q, 4096)
				spawn(t, from, 2, built.c, "send", "next", "4", "100").result()
				if got := taker.result(); got != "3 4" {
					t.Errorf("%s items came, not 3 and 4", got)
				}
			})
		}
	}
}

// A producer that does nothing leaves the change pending, and one that ended has
// it done in its place; what follows is at its end then too.
func TestSwitchOfIdleAndEndedProducers(t *testing.T) {
	for _, way := range paths()[:2] {
		t.Run(way.name, func(t *testing.T) {
			from, to := way.make(t)
			w := &loom{t: t, vms: []*VM{from, to}}
			p, q, r := spot{0, 0, "out"}, spot{1, 1, "in"}, spot{1, 2, "in"}
			if from == to {
				q.node, r.node = 0, 0
			}
			processes(t, from, 0)
			processes(t, to, 1, 2)
			first := w.lay(p, q, 4096)
			second := w.lay(p, r, 4096)
			g := spawn(t, from, 0, built.c, "hold", "out")
			eventually(t, "it is open", func() bool {
				maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", g.cmd.Process.Pid))
				return err == nil && strings.Contains(string(maps), "mvm-ring")
			})
			must(t, from.Switch(Swap{first, second}))
			time.Sleep(20 * time.Millisecond)
			if st, err := from.Switched(first); err != nil || !st.Told || st.Written {
				t.Errorf("%+v %v", st, err)
			}
			must(t, g.cmd.Process.Kill())
			<-g.done
			if got := spawn(t, to, 1, built.c, "gather", "in", "block").result(); got != "" {
				t.Error(got)
			}
			if got := spawn(t, to, 2, built.golang, "gather", "in", "block").result(); got != "" {
				t.Error(got)
			}
			eventually(t, "it is removed", func() bool { st, err := from.Switched(first); return err == nil && st.Removed })
			if err := from.Switch(Swap{first, second}); err != nil {
				t.Error(err)
			}
			if err := from.Switch(Swap{77, 0}); err == nil {
				t.Error("a channel that never was can be switched")
			}
		})
	}
}

// A switch under links that are cut all the time loses and doubles nothing.
func TestRewireOverCutLinks(t *testing.T) {
	const count = 100000
	vms := route{"", 2, Config{Plain: true, Cores: 1}, 0, 0, 0}.start(t)
	w := &loom{t: t, vms: vms}
	before := rings(t)
	p, takers := spot{0, 0, "out"}, []spot{{1, 1, "in"}, {1, 2, "in"}}
	processes(t, vms[0], 0)
	processes(t, vms[1], 1, 2)
	var chain []uint32
	for j := range 3 {
		chain = append(chain, w.lay(p, takers[j%2], 4096))
	}
	a := spawn(t, vms[1], 1, built.c, "gather", "in", "block")
	b := spawn(t, vms[1], 2, built.golang, "gather", "in", "wait")
	g := spawn(t, vms[0], 0, built.c, "give", "out", "p0", fmt.Sprint(count), "1500", "0")
	changes, cuts := 0, 0
	random := rand.New(rand.NewPCG(1, 1))
	for running := true; running; {
		select {
		case err := <-g.done:
			must(t, err)
			running = false
			continue
		default:
		}
		if random.IntN(3) == 0 {
			vm := vms[cuts%2]
			vm.mu.Lock()
			for _, l := range vm.links {
				if l.fd >= 0 {
					_ = unix.Shutdown(l.fd, unix.SHUT_RDWR)
					cuts++
				}
			}
			vm.mu.Unlock()
		}
		time.Sleep(time.Duration(random.IntN(3000)) * time.Microsecond)
		if st, err := vms[0].Switched(chain[max(changes-1, 0)]); changes > 0 && (err != nil || !st.Written) {
			continue
		}
		chain = append(chain, w.lay(p, takers[(changes+3)%2], 4096))
		must(t, vms[0].Switch(Swap{chain[changes], chain[changes+1]}))
		changes++
	}
	accounted(t, count, numbers(t, a.result()), numbers(t, b.result()))
	if changes < 10 || cuts < 10 {
		t.Errorf("%d changes and %d cuts: the test proves little", changes, cuts)
	}
	eventually(t, "the old rings are gone", func() bool { return rings(t) <= before+2*4 })
	t.Logf("%d changes, %d cuts", changes, cuts)
}

// A job that comes to rest after re-wires is seen to, with channels removed at both
// nodes and with a change that is pending; one that still has a ring to go on to is
// not taken for it.
func TestDeadlockAfterRewires(t *testing.T) {
	for name, make := range together(t) {
		t.Run(name, func(t *testing.T) {
			a, b := make(t)
			w := &loom{t: t, vms: []*VM{a, b}}
			far := 1
			if a == b {
				far = 0
			}
			d, idle, back := spot{0, 0, "out"}, spot{0, 1, "out"}, spot{0, 1, "x"}
			in, out := spot{far, 2, "in"}, spot{far, 2, "out"}
			processes(t, a, 0, 1)
			processes(t, b, 2)
			first := w.lay(d, in, 4096)
			second := w.lay(idle, in, 4096)
			w.lay(out, back, 64<<10)
			third := w.lay(idle, in, 4096)
			must(t, a.Switch(Swap{first, 0}))
			must(t, a.Switch(Swap{second, third})) // whoever is to do it never enqueues
			e := spawn(t, b, 2, built.c, "echo", "in", "out")
			g := spawn(t, a, 1, built.golang, "gather", "x", "block")
			staysUnlocked(t, distinct(a, b)...) // the first producer has not even begun
			spawn(t, a, 0, built.c, "hold", "out")
			staysUnlocked(t, distinct(a, b)...)
			a.Ended(0)
			for _, vm := range distinct(a, b) {
				eventually(t, "the first is removed", func() bool { st, err := vm.Switched(first); return err == nil && st.Removed })
			}
			waits := becomesDeadlocked(t, distinct(a, b)...)
			for _, wait := range waits {
				if wait.Out || wait.Process == 2 && wait.Channel != second || wait.Process == 1 && wait.Channel != 3 {
					t.Errorf("a wait that is none: %+v", wait)
				}
			}
			if len(waits) != 2 {
				t.Errorf("%d waits: %+v", len(waits), waits)
			}
			must(t, e.cmd.Process.Kill())
			<-e.done
			g.result()
		})
	}
}

// What a child writes where SWITCH is told and answered ends its own channels, and
// nothing else; what a program asks of rings that it has no right to is refused.
func TestGarbageSwitch(t *testing.T) {
	a, b := pair(t, Config{Plain: true})
	processes(t, a, 0, 5)
	processes(t, b, 1, 6)
	wire(t, 1, 4096, a, Endpoint{Process: 0, Port: "out"}, b, Endpoint{Process: 1, Port: "in"})
	wire(t, 2, 4096, a, Endpoint{Process: 5, Port: "out"}, b, Endpoint{Process: 6, Port: "in"})
	var words []*uint32
	for _, vm := range []*VM{a, b} {
		vm.mu.Lock()
		h := vm.channels[1].ring.header
		words = append(words, &h.producerState, &h.consumerState, &h.next)
		vm.mu.Unlock()
	}
	for k := range 200 {
		word := words[k%len(words)]
		atomic.StoreUint32(word, []uint32{stateSwitched, stateClosed | stateSwitched, controlSwitch, ^uint32(0), controlChanged | stateSwitched, 0}[k/6%6])
		ring1(a.bell)
		ring1(b.bell)
		for _, question := range []string{"next out 1 out", "next in 1 in", "next out 2 out", "next in 4294967296 in", "next out 4294967296 out", "next", "next out", "next sideways 1 out", "open out"} {
			for id, vm := range map[int]*VM{0: a, 1: b} {
				vm.mu.Lock()
				answer, fds := vm.processes[id].answer(question)
				vm.mu.Unlock()
				if strings.HasPrefix(question, "next") && len(fds) > 1 || strings.HasPrefix(question, "next in") && len(fds) > 0 || !strings.HasPrefix(answer, "ok ") && !strings.HasPrefix(answer, "error ") {
					t.Fatalf("%q is answered %q with %d descriptors", question, answer, len(fds))
				}
			}
		}
	}
	r := spawn(t, b, 6, built.c, "receive", "in", "9000")
	spawn(t, a, 5, built.golang, "send", "out", "300", "9000").result()
	if got := r.result(); got != "300" {
		t.Errorf("the honest received %q of 300", got)
	}
}
