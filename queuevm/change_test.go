package queuevm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// change has the queue changed at its home and then everywhere else.
func (b *bench) change(c QueueChange) {
	b.t.Helper()
	must(b.t, b.vms[b.home].ChangeQueue(1, c))
	for k, vm := range b.vms {
		if k != b.home {
			must(b.t, vm.ChangeQueue(1, c))
		}
	}
}

// Every change of a queue, many times, while producers and takers in every
// language run at full load: each item comes once to one taker, or is told refused.
func TestChangesUnderFullLoad(t *testing.T) {
	for _, way := range routes {
		t.Run(way.name, func(t *testing.T) {
			const count, most = 400, 3000
			vms := way.start(t)
			nodes := []int{0, 1 % len(vms), 2 % len(vms)}
			b := newBench(t, vms, way.home, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 8 << 10}, nodes, append(nodes, nodes...))
			var givers, takers []*child
			for k, form := range []string{"block", "timed", "try", "wait", "block", "wait"} {
				takers = append(takers, b.gather(k, nodes[k%3], languages()[k%3].program, form))
			}
			for k, node := range nodes {
				givers = append(givers, b.give(k, node, languages()[k].program, count, most, 7))
			}
			types := []QueueType{QueueWork, QueuePriority, QueueLifo, QueueFifo}
			changes := 0
			for at := uint64(0); ; changes++ {
				q := b.queue()
				if q.ProducersClosed == len(nodes) {
					break
				}
				if q.ItemsIn < at {
					time.Sleep(100 * time.Microsecond)
					continue
				}
				at = q.ItemsIn + 3
				change := QueueChange{}
				switch changes % 4 {
				case 0:
					change.Type = new(types[changes/4%len(types)])
				case 1:
					change.Full = new([]FullPolicy{FullFail, FullBlock}[changes/4%2])
				case 2:
					change.Capacity = new([]int{4 << 10, 64 << 10, 16 << 10}[changes/4%3])
				default:
					change.Converter = new([]Converter{upper{}, nil}[changes/4%2])
				}
				b.change(change)
			}
			b.change(QueueChange{Full: new(FullBlock)})
			refused := 0
			for _, g := range givers {
				n := 0
				_, err := fmt.Sscan(g.result(), &n)
				must(t, err)
				refused += n
			}
			seen := map[string]int{}
			for _, g := range takers {
				for _, line := range strings.Split(g.result(), "\n") {
					if line != "" {
						seen[line]++
					}
				}
			}
			for line, times := range seen {
				if times != 1 {
					t.Errorf("item %q came %d times", line, times)
				}
			}
			q := b.queue()
			if len(seen)+refused != len(nodes)*count || q.Refused != uint64(refused) || q.Dropped != 0 {
				t.Errorf("%d items came, %d were refused, of %d; the queue is %+v", len(seen), refused, len(nodes)*count, q)
			}
			if changes < 20 {
				t.Errorf("only %d changes: the test proves little", changes)
			}
			t.Logf("%d changes, %d refused", changes, refused)
		})
	}
}

// upper is a Converter that leaves the items of the suite as they are, in other memory.
type upper struct{}

func (upper) Convert(item []byte) ([]byte, error) { return append([]byte(nil), item...), nil }

// What waits stays through every change of type, in the order that the new type gives it.
func TestTypeChangeKeepsWhatWaits(t *testing.T) {
	for _, from := range everyType {
		for _, to := range everyType {
			s := newStore(from, FullBlock, 1<<20, 2)
			for k := range 6 {
				s.offer(item{meta: uint32(k%3) << 4, data: []byte{byte('0' + k)}})
			}
			before := len(s.all())
			s.retype(to, []bool{false, false})
			want := map[QueueType]string{QueueLifo: "543210", QueuePriority: "251403", QueueLatest: "5"}[to]
			if want == "" {
				want = "012345"
			}
			if from == QueueLatest {
				want = "5"
			}
			for taker := range 1 + map[QueueType]int{QueueBroadcast: 1}[to] {
				got := ""
				for {
					it, ok := s.take(taker)
					if !ok {
						break
					}
					got += string(it.data)
				}
				if got != want {
					t.Errorf("%s to %s: taker %d gets %q of %d, not %q", from, to, taker, got, before, want)
				}
			}
		}
	}
}

// An item that waits for some of the takers of a broadcast waits once when it
// becomes a work queue.
func TestBroadcastBecomesWork(t *testing.T) {
	s := newStore(QueueBroadcast, FullBlock, 1<<20, 2)
	for k := range 4 {
		s.offer(item{data: []byte{byte('0' + k)}})
	}
	s.take(0)
	s.take(0)
	s.take(1)
	s.retype(QueueWork, []bool{false, false})
	if got := fmt.Sprint(len(s.all()), s.lanes[0].count); got != "3 3" {
		t.Errorf("%s items wait of 3", got)
	}
}

// A capacity that shrinks below what waits drops nothing; what was enqueued under
// the old one enters when there is room, and be it an empty queue.
func TestCapacityShrinks(t *testing.T) {
	b := newBench(t, []*VM{start(t, Config{})}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 64 << 10}, []int{0}, []int{0})
	g := b.give(0, 0, built.c, 30, 20000, 0)
	eventually(t, "the queue is full", func() bool { return b.queue().ProducersWait == 1 })
	held := b.queue().Items
	b.change(QueueChange{Capacity: new(4 << 10)})
	if q := b.queue(); q.Items != held || q.Capacity != 4<<10 {
		t.Errorf("%+v", q)
	}
	r := b.gather(0, 0, built.golang, "block")
	<-g.done // an item over the new capacity is too big, later
	if out := g.stderr.String(); !strings.Contains(out, "too big") {
		t.Errorf("the giver ended with %q", out)
	}
	lines := strings.Split(r.result(), "\n")
	for k, line := range lines {
		if line != fmt.Sprint("p0 ", k) {
			t.Fatalf("item %d is %q", k, line)
		}
	}
	if q := b.queue(); int(q.ItemsIn) != len(lines) || len(lines) <= held {
		t.Errorf("%d items came; %+v", len(lines), q)
	}
}

// Who asks from outside at the home of a served queue stands among the producers
// and takers.
func TestGuests(t *testing.T) {
	vm := start(t, Config{})
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueuePriority, Full: FullBlock, Capacity: 4096}, []int{0}, []int{0})
	ctx := within(t, 20*time.Second)
	items := []Item{{Data: []byte("low")}, {Data: []byte("high"), Priority: 9}, {Data: []byte("mid"), Priority: 4, Instruction: true}}
	n, err := vm.EnqueueQueue(ctx, 1, items)
	if n != 3 || err != nil {
		t.Fatal(n, err)
	}
	seen, err := vm.PeekQueue(1, 2)
	if err != nil || len(seen) != 2 || string(seen[0].Data) != "high" || !seen[1].Instruction || seen[1].Priority != 4 {
		t.Errorf("%+v %v", seen, err)
	}
	got, err := vm.DrainQueue(1, 1)
	if err != nil || len(got) != 1 || string(got[0].Data) != "high" {
		t.Errorf("%+v %v", got, err)
	}
	more, end, err := vm.DequeueQueue(ctx, 1, 10)
	if err != nil || end || len(more) != 2 || string(more[0].Data) != "mid" {
		t.Errorf("%+v %t %v", more, end, err)
	}
	// Full: the call waits, and takes its item back when its time is over.
	big := Item{Data: make([]byte, 3000)}
	if n, err := vm.EnqueueQueue(within(t, 50*time.Millisecond), 1, []Item{big, big}); n != 1 || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(n, err)
	}
	waiting := make(chan error, 1)
	go func() { _, err := vm.EnqueueQueue(ctx, 1, []Item{big}); waiting <- err }()
	eventually(t, "it waits", func() bool { return b.queue().ProducersWait == 1 })
	b.change(QueueChange{Full: new(FullFail)})
	if _, err := vm.EnqueueQueue(ctx, 1, []Item{big}); !errors.Is(err, ErrFull) {
		t.Errorf("a queue that fails says %v", err)
	}
	b.change(QueueChange{Capacity: new(64 << 10), Full: new(FullBlock), Converter: new(Converter(upper{}))})
	if err := <-waiting; !errors.Is(err, ErrFull) {
		t.Errorf("who waits while the policy changes to fail is told %v", err)
	}
	if _, err := vm.EnqueueQueue(ctx, 1, []Item{big}); err != nil {
		t.Error(err)
	}
	if _, err := vm.DrainQueue(1, 1<<30); err != nil || b.queue().Items != 0 {
		t.Errorf("%v %+v", err, b.queue())
	}
	if _, err := vm.EnqueueQueue(ctx, 1, []Item{{Data: make([]byte, 1<<20)}}); !errors.Is(err, ErrTooBig) {
		t.Errorf("an item over the capacity gives %v", err)
	}
	// An item that comes while a guest waits, and then END.
	type result struct {
		items []Item
		end   bool
		err   error
	}
	results := make(chan result)
	ask := func() { items, end, err := vm.DequeueQueue(ctx, 1, 5); results <- result{items, end, err} }
	go ask()
	eventually(t, "a guest waits", func() bool { return b.queue().TakersWait == 1 })
	if vm.Quiet().Quiet {
		t.Error("quiet with a guest inside")
	}
	g := b.give(0, 0, built.c, 1, 100, 0)
	if r := <-results; len(r.items) != 1 || r.end || r.err != nil {
		t.Errorf("%+v", r)
	}
	g.result()
	go ask()
	if r := <-results; !r.end || r.err != nil {
		t.Errorf("%+v, not END", r)
	}
	if _, err := vm.EnqueueQueue(ctx, 1, items); !errors.Is(err, ErrClosed) {
		t.Errorf("a queue that has ended takes items: %v", err)
	}
	if q := b.queue(); q.ItemsIn != q.ItemsOut+q.Refused+q.Dropped {
		t.Errorf("the count is wrong: %+v", q)
	}
}

// The first items of a bare channel are seen, whatever their size, and stay.
func TestPeekChannel(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 0, 1)
	wire(t, 1, 16<<10, vm, Endpoint{Process: 0, Port: "next"}, vm, Endpoint{Process: 1, Port: "prev"})
	if seen, err := vm.PeekChannel(1, 5); err != nil || len(seen.Items) != 0 {
		t.Errorf("%v %v", seen, err)
	}
	s := spawn(t, vm, 0, built.c, "send", "next", "20", "2000")
	eventually(t, "some wait", func() bool { return state(vm, 1).GiverWaits })
	seen, err := vm.PeekChannel(1, 3)
	must(t, err)
	if len(seen.Items) != 3 {
		t.Fatalf("%d items seen", len(seen.Items))
	}
	for k, it := range seen.Items {
		if n := (k * 2654435761) % 2001; len(it.Data) != n || n > 0 && it.Data[0] != byte(k*31) {
			t.Errorf("item %d has %d bytes, not %d", k, len(it.Data), n)
		}
	}
	if got := spawn(t, vm, 1, built.c, "receive", "prev", "2000").result(); got != "20" {
		t.Errorf("%s items came after a look", got)
	}
	s.result()
}

// both looks at a channel on its taker's node and then on its producer's. The sizes
// are those of the whole items.
func both(t *testing.T, from, to *VM) (items []Item, sizes []int, here int) {
	t.Helper()
	for {
		seen, err := to.PeekChannel(1, 1000)
		must(t, err)
		if seen.Next == nil {
			t.Fatal("nothing may wait at the producer's node")
		}
		sent, err := from.PeekSent(1, *seen.Next, 1000)
		if errors.Is(err, ErrMoved) {
			continue
		}
		must(t, err)
		for _, part := range []Glance{seen, sent} {
			for _, it := range part.Items {
				sizes = append(sizes, len(it.Data))
			}
			if len(part.Items) > 0 {
				sizes[len(sizes)-1] += part.Rest
			}
		}
		return append(seen.Items, sent.Items...), sizes, len(seen.Items)
	}
}

// What waits on both sides of the proxies is seen in order and once, also an item
// that lies half on each.
func TestPeekBothSides(t *testing.T) {
	a, b := pair(t, Config{Plain: true, Cores: 1})
	processes(t, a, 0)
	processes(t, b, 1)
	wire(t, 1, 8<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
	s := spawn(t, a, 0, built.c, "send", "next", "60", "700")
	eventually(t, "both rings are full", func() bool { return state(a, 1).GiverWaits && state(b, 1).Depth > 7000 })
	var all []Item
	var sizes []int
	here := 0
	eventually(t, "all that was sent is seen", func() bool { all, sizes, here = both(t, a, b); return len(all) == int(state(a, 1).ItemsIn) })
	if here < 5 || len(all) < here+5 {
		t.Errorf("%d items are seen, %d of them at the taker's node", len(all), here)
	}
	for k, it := range all {
		if n := (k * 2654435761) % 701; sizes[k] != n || len(it.Data) != n && k != here-1 || len(it.Data) > 0 && it.Data[0] != byte(k*31) {
			t.Errorf("item %d has %d bytes of %d, not of %d", k, len(it.Data), sizes[k], n)
		}
	}
	if seen, err := b.PeekChannel(1, 3); len(seen.Items) != 3 || seen.Next != nil || seen.Rest != 0 || err != nil {
		t.Errorf("three of many are %d, %v, %v", len(seen.Items), seen.Next, err)
	}
	if _, err := a.PeekSent(1, 0, 10); !errors.Is(err, ErrMoved) {
		t.Errorf("what was received long ago: %v", err)
	}
	if _, err := b.PeekSent(1, 0, 10); !errors.Is(err, ErrUnknown) {
		t.Errorf("at the taker's node: %v", err)
	}
	if got := spawn(t, b, 1, built.c, "receive", "prev", "700").result(); got != "60" {
		t.Errorf("%s items came after a look", got)
	}
	s.result()
}

// An item that is bigger than the rings of both nodes is seen by its first bytes and
// its whole size while it is enqueued; and one that lies half on each node by all
// that is on the taker's, with what is behind it.
func TestPeekBigItems(t *testing.T) {
	for _, size := range []int{100, 3000, 5000, 7000, 50_000} { // a record; one that lies on both; fragments; more than there is room for
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			const few = 3 // bytes of every other item
			a, b := pair(t, Config{Plain: true, Cores: 1})
			must(t, a.AddChannel(Channel{ID: 1, Capacity: 8 << 10, From: Endpoint{Outside: "q"}, To: Endpoint{Peer: "b"}}))
			processes(t, b, 1)
			must(t, b.AddChannel(Channel{ID: 1, Capacity: 8 << 10, From: Endpoint{Peer: "a"}, To: Endpoint{Process: 1, Port: "prev"}}))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			done := make(chan int, 1)
			go func() {
				for k := range 40 {
					item := bytes.Repeat([]byte{byte(k)}, few)
					if k%2 == 1 {
						item = bytes.Repeat([]byte{byte(k)}, size)
					}
					if a.Enqueue(ctx, "q", item) != nil {
						done <- k
						return
					}
				}
				done <- 40
			}()
			var all []Item
			var sizes []int
			here, half := 0, -1
			eventually(t, "the rings are full, with an item half in one", func() bool {
				if len(done) == 0 && state(a, 1).Depth+state(b, 1).Depth < 11<<10 {
					return false
				}
				all, sizes, here = both(t, a, b)
				if half = -1; here > 0 && len(all[here-1].Data) < sizes[here-1] {
					half = here - 1
				}
				return size == 100 || half >= 0
			})
			for k, it := range all {
				want := few
				if k%2 == 1 {
					want = size
				}
				last := k == half || k == len(all)-1
				if sizes[k] != want || len(it.Data) != want && !last || len(it.Data) > want || bytes.Count(it.Data, []byte{byte(k)}) != len(it.Data) {
					t.Errorf("item %d of %d (%d here) has %d bytes of %d, not of %d", k, len(all), here, len(it.Data), sizes[k], want)
				}
			}
			if size > 100 && size < 50_000 && len(all) <= here {
				t.Errorf("of %d items none is behind the %d at the taker's node", len(all), here)
			}
			cancel()
			t.Logf("%d items, %d here; %d were enqueued", len(all), here, <-done)
		})
	}
}

// A look at a ring under full load sees items in order, or fewer.
func TestPeekUnderLoad(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 0, 1)
	wire(t, 1, 256<<10, vm, Endpoint{Process: 0, Port: "next"}, vm, Endpoint{Process: 1, Port: "prev"})
	r := spawn(t, vm, 1, built.c, "receive", "prev", "150000")
	s := spawn(t, vm, 0, built.golang, "send", "next", "3000", "150000")
	looks, seen := 0, 0
	for running := true; running; looks++ {
		select {
		case <-time.After(100 * time.Microsecond):
		case err := <-s.done:
			must(t, err)
			running = false
		}
		glance, err := vm.PeekChannel(1, 4)
		must(t, err)
		seen += len(glance.Items)
		for _, it := range glance.Items {
			for j := range min(len(it.Data), 64) {
				if it.Data[j] != it.Data[0]+byte(j*7) {
					t.Fatalf("after %d looks: a garbled item of %d bytes", looks, len(it.Data))
				}
			}
		}
	}
	if got := r.result(); got != "3000" {
		t.Errorf("%s items came", got)
	}
	t.Logf("%d items seen in %d looks", seen, looks)
}
