package queuevm

import (
	"fmt"
	"slices"
	"testing"
)

// edge is what leads to a taker now: perhaps what another one left, and the channel
// of the producer.
type edge struct {
	forward  uint32
	from     spot
	channel  uint32
	producer spot
}

// succeed leads the edge of a taker that has left to another: what the old one left
// goes first.
func (w *loom) succeed(e edge, old, next spot, capacity int) edge {
	w.t.Helper()
	w.last++
	forward := Channel{ID: w.last, Capacity: capacity, After: 1, Forward: true}
	for _, node := range []int{next.node, old.node} {
		forward.From, forward.To = w.end(old, node), w.end(next, node)
		must(w.t, w.vms[node].AddChannel(forward))
		if next.node == old.node {
			break
		}
	}
	for range 2 {
		if e.producer.node != old.node {
			must(w.t, w.vms[e.producer.node].Resume(e.channel))
		}
		if e.forward > 0 && e.from.node != old.node {
			must(w.t, w.vms[e.from.node].Resume(e.forward))
		}
	}
	made := edge{forward.ID, old, w.lay(e.producer, next, capacity), e.producer}
	must(w.t, w.vms[e.producer.node].Switch(Swap{e.channel, made.channel}))
	return made
}

// A taker ends after some items; its edge is led to another, and from that, which ends
// too, to a third. Each gets what follows what the one before took, nothing is lost or
// doubled, and the memory of all old rings is given back.
func TestWhatATakerLeavesIsForwarded(t *testing.T) {
	const count, each = 6000, 700
	for _, nodes := range [][4]int{ // of the producer and of the takers
		{0, 0, 0, 0}, {0, 0, 1, 0}, {0, 1, 0, 1}, {0, 1, 1, 1}, {0, 1, 2, 0}, {0, 0, 1, 2}, {1, 0, 2, 0},
	} {
		for k, most := range []string{"16", "9000"} { // whole records, and fragments
			t.Run(fmt.Sprint(nodes, most), func(t *testing.T) {
				vms := route{"", 1 + slices.Max(nodes[:]), Config{Plain: k == 0, Cores: 1}, 0, 0, 0}.start(t)
				w := &loom{t: t, vms: vms}
				before := rings(t)
				p := spot{nodes[0], 0, "out"}
				processes(t, vms[p.node], 0)
				var takers []spot
				for j := range 3 {
					takers = append(takers, spot{nodes[1+j], 1 + j, "in"})
					processes(t, vms[nodes[1+j]], 1+j)
				}
				e := edge{channel: w.lay(p, takers[0], 8<<10), producer: p}
				a := spawn(t, vms[takers[0].node], 1, built.c, "gather", "in", "block", fmt.Sprint(each))
				g := spawn(t, vms[p.node], 0, built.c, "insist", "out", fmt.Sprint(count), most)
				taken := [][]int{numbers(t, a.result())}
				vms[takers[0].node].Ended(1)
				eventually(t, "the producer hears that its taker has left", func() bool { return state(vms[p.node], e.channel).TakerClosed })

				e = w.succeed(e, takers[0], takers[1], 8<<10)
				b := spawn(t, vms[takers[1].node], 2, built.c, "gather", "in", "wait", []string{"3", "1500"}[k])
				taken = append(taken, numbers(t, b.result()))
				vms[takers[1].node].Ended(2)
				eventually(t, "the producer hears that its taker has left", func() bool { return state(vms[p.node], e.channel).TakerClosed })

				w.succeed(e, takers[1], takers[2], 8<<10)
				c := spawn(t, vms[takers[2].node], 3, languages()[1+k].program, "gather", "in", []string{"timed", "block"}[k])
				g.result()
				taken = append(taken, numbers(t, c.result()))
				accounted(t, count, taken...)
				for j, all := range taken[1:] {
					if before := taken[j]; before[len(before)-1] >= all[0] {
						t.Errorf("taker %d got item %d after another got item %d", j+1, all[0], before[len(before)-1])
					}
				}
				eventually(t, "the memory of old rings is given back", func() bool { return rings(t) <= before+2 })
				t.Logf("%d, %d, %d items", len(taken[0]), len(taken[1]), len(taken[2]))
			})
		}
	}
}

// What a taker left goes into a served queue, beside what its producer and another one
// enqueue there, and while takers of that queue come and go: every item once.
func TestWhatATakerLeavesGoesIntoAQueue(t *testing.T) {
	const count, each = 6000, 700
	for _, nodes := range [][4]int{ // of the producer, the old taker, the home, and a second taker of the queue
		{0, 0, 0, 0}, {0, 1, 1, 0}, {0, 1, 2, 1}, {1, 0, 1, 0},
	} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			home := nodes[2]
			vms := route{"", 1 + slices.Max(nodes[:]), Config{Plain: true, Cores: 1}, 0, 0, 0}.start(t)
			b := newBench(t, vms, home, Queue{Type: QueueWork, Full: FullBlock, Capacity: 8 << 10}, []int{home}, []int{home})
			w := &loom{t: t, vms: vms, last: 100}
			p, old := spot{nodes[0], 300, "out"}, spot{nodes[1], 301, "in"}
			processes(t, vms[p.node], 300)
			processes(t, vms[old.node], 301)
			id := w.lay(p, old, 8<<10)
			a := spawn(t, vms[old.node], 301, built.c, "gather", "in", "block", fmt.Sprint(each))
			g := spawn(t, vms[p.node], 300, built.golang, "insist", "out", fmt.Sprint(count))
			taken := [][]int{numbers(t, a.result())}
			vms[old.node].Ended(301)
			eventually(t, "the producer hears that its taker has left", func() bool { return state(vms[p.node], id).TakerClosed })

			w.last++
			forward := Channel{ID: w.last, Capacity: 8 << 10, From: Endpoint{Peer: vms[old.node].config.Self}, To: Endpoint{Queue: 1}, After: 1, Forward: true}
			if old.node == home {
				forward.From = w.end(old, home)
			}
			must(t, vms[home].AddChannel(forward))
			forward.To.Peer = vms[home].config.Self
			w.last++
			next, into := w.last, Channel{ID: w.last, Capacity: 8 << 10, From: w.end(p, home), To: Endpoint{Queue: 1}, After: 1, Behind: forward.ID}
			must(t, vms[home].AddChannel(into))
			if p.node != home {
				into.From, into.To.Peer = w.end(p, p.node), vms[home].config.Self
				must(t, vms[p.node].AddChannel(into))
			}
			if old.node != home {
				forward.From = w.end(old, old.node)
				must(t, vms[old.node].AddChannel(forward))
			}
			if p.node != old.node {
				must(t, vms[p.node].Resume(id))
			}
			must(t, vms[p.node].Switch(Swap{id, next}))
			stays := b.gather(0, home, built.c, "block")
			for k := range 2 {
				guest := spot{nodes[3], 400 + k, "queue"}
				processes(t, vms[guest.node], guest.process)
				to := w.fromQueue(home, guest, 1)
				r := spawn(t, vms[guest.node], guest.process, languages()[k].program, "gather", "queue", "block")
				eventually(t, "some are its", func() bool { return state(vms[home], to).ItemsIn > 4 || b.queue().ProducersClosed > 0 })
				must(t, vms[home].Switch(Swap{to, 0}))
				taken = append(taken, numbers(t, r.result()))
			}
			g.result()
			b.give(0, home, built.c, 0, 10, 0).result() // END of the queue's own producer
			accounted(t, count, append(taken, numbers(t, stays.result()))...)
		})
	}
}
