package queuevm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bench is one served queue with its producers and takers, each on a node of
// its own choice, as a plan would lay them.
type bench struct {
	t    testing.TB
	vms  []*VM
	home int
}

// Processes are 0.. for producers and 100.. for takers; each has the one port
// "queue". An end on no node (-1) is outside, at the home: in0.. and out0...
func newBench(t testing.TB, vms []*VM, home int, q Queue, producers, takers []int) *bench {
	t.Helper()
	b := &bench{t, vms, home}
	q.ID, q.Name, q.Producers, q.Takers = 1, "the queue", len(producers), len(takers)
	for _, vm := range vms {
		must(t, vm.AddQueue(q))
	}
	id := uint32(0)
	lay := func(first int, nodes []int, in bool, outside string) {
		for k, node := range nodes {
			id++
			end := Endpoint{Process: first + k, Port: "queue"}
			switch {
			case node < 0:
				end = Endpoint{Outside: outside + strconv.Itoa(k)}
				node = home
			default:
				must(t, vms[node].AddProcess(Process{ID: first + k, Index: k, Count: len(nodes), Task: "task"}))
			}
			far, near := Endpoint{Queue: 1}, Endpoint{Queue: 1, Peer: vms[home].config.Self}
			if node == home {
				near = far
			}
			add := func(vm *VM, own, other Endpoint) {
				c := Channel{ID: id, Capacity: q.Capacity, From: own, To: other}
				if !in {
					c.From, c.To = other, own
				}
				must(t, vm.AddChannel(c))
			}
			add(vms[node], end, near)
			if node != home {
				add(vms[home], Endpoint{Peer: vms[node].config.Self}, far)
			}
		}
	}
	lay(0, producers, true, "in")
	lay(100, takers, false, "out")
	return b
}

// queue is the queue as its home sees it.
func (b *bench) queue() QueueState {
	states := b.vms[b.home].InspectQueues()
	if len(states) != 1 {
		b.t.Fatalf("the home sees %d queues", len(states))
	}
	return states[0]
}

func (b *bench) give(k, node int, program []string, count, most, priorities int) *child {
	return spawn(b.t, b.vms[node], k, program, "give", "queue", fmt.Sprint("p", k), fmt.Sprint(count), fmt.Sprint(most), fmt.Sprint(priorities))
}

func (b *bench) gather(k, node int, program []string, form string) *child {
	return spawn(b.t, b.vms[node], 100+k, program, "gather", "queue", form)
}

// route is where the ends of a queue with one producer and some takers are.
type route struct {
	name            string
	nodes           int
	config          Config
	home            int
	producer, taker int // the second taker is on the home
}

var routes = []route{
	{"local", 1, Config{}, 0, 0, 0},
	{"home-at-producer", 2, Config{Plain: true, Cores: 1}, 0, 0, 1},
	{"home-at-taker", 2, Config{Plain: true, Cores: 1}, 1, 0, 1},
	{"third-node", 3, Config{Plain: true, Cores: 1}, 2, 0, 1},
	{"tls", 2, Config{Cores: 1}, 0, 0, 1},
}

func (r route) start(t testing.TB) []*VM {
	if r.nodes == 1 {
		return []*VM{start(t, r.config)}
	}
	var vms []*VM
	group := map[string]*VM{}
	for k := range r.nodes {
		config := r.config
		config.Listen, config.Self = "127.0.0.1:0", string(rune('a'+k))
		vms = append(vms, start(t, config))
		group[config.Self] = vms[k]
	}
	join(t, group)
	return vms
}

func languages() []struct {
	name    string
	program []string
} {
	return []struct {
		name    string
		program []string
	}{{"c", built.c}, {"go", built.golang}, {"python", built.python}}
}

// given is the item that a peer gives, as far as the rules look at it.
func given(k, most, priorities int) item {
	n := max(len(fmt.Sprintf("p0 %d\n", k)), int(uint64(k)*2654435761%uint64(most+1)))
	it := item{data: make([]byte, n)}
	copy(it.data, fmt.Sprintf("p0 %d\n", k))
	if priorities > 0 {
		it.meta = uint32(k%priorities) << 4
	}
	return it
}

// Every type with every policy on every route in every pairing: the producer
// fills the queue before the first taker asks, so that what comes out, and in
// which order, is what the model says.
func TestServedQueues(t *testing.T) {
	turn := 0
	for _, kind := range everyType {
		for _, full := range everyPolicy {
			for _, way := range routes {
				for _, giver := range languages() {
					for _, taker := range languages() {
						// Without soak each type and policy meets a few of the ways and pairings, all of them in all.
						if turn++; os.Getenv("MVM_SOAK") == "" && turn%29 != 0 {
							continue
						}
						t.Run(fmt.Sprintf("%s/%s/%s/%s-%s", kind, full, way.name, giver.name, taker.name), func(t *testing.T) {
							servedInOrder(t, kind, full, way, giver.program, taker.program)
						})
					}
				}
			}
		}
	}
}

func servedInOrder(t *testing.T, kind QueueType, full FullPolicy, way route, giver, taker []string) {
	const most, priorities = 4000, 3
	capacity, count := 16<<10, 40 // 80 KB of items
	if full == FullBlock {
		capacity, count = 1<<20, 60
	}
	takers := []int{way.taker}
	if kind == QueueBroadcast {
		takers = append(takers, way.home)
	}
	b := newBench(t, way.start(t), way.home, Queue{Type: kind, Full: full, Capacity: capacity}, []int{way.producer}, takers)
	m := &model{kind: kind, full: full, capacity: capacity, lists: make([][]item, len(takers)), gone: make([]bool, len(takers))}
	if kind != QueueBroadcast {
		m.lists = m.lists[:1]
	}
	for k := range count {
		m.offer(given(k, most, priorities))
	}
	if got := b.give(0, way.producer, giver, count, most, priorities).result(); got != strconv.Itoa(m.refused) {
		t.Errorf("%s items were refused, not %d", got, m.refused)
	}
	eventually(t, "all is in the queue", func() bool { return b.queue().ProducersClosed == 1 })
	if q := b.queue(); q.ItemsIn != uint64(count) || q.Dropped != uint64(m.dropped) || q.Refused != uint64(m.refused) || q.Bytes != uint64(bytesOf(m.lists[0])) {
		t.Errorf("the queue is %+v; the model dropped %d, refused %d and holds %d bytes", q, m.dropped, m.refused, bytesOf(m.lists[0]))
	}
	for k, node := range takers {
		var want strings.Builder
		for {
			it, ok := m.take(k)
			if !ok {
				break
			}
			line, _, _ := strings.Cut(string(it.data), "\n")
			fmt.Fprintln(&want, line)
		}
		if got := b.gather(k, node, taker, "block").result(); got != strings.TrimSpace(want.String()) {
			t.Errorf("taker %d got\n%s\nnot\n%s", k, got, want.String())
		}
	}
}

// Many producers and takers in every language and form at once, through a queue
// that is always full: nothing is lost, doubled or garbled, and what one taker
// got of one producer is in that producer's order.
func TestServedFlow(t *testing.T) {
	for _, kind := range []QueueType{QueueWork, QueueBroadcast, QueuePriority, QueueLifo} {
		for _, way := range routes {
			if os.Getenv("MVM_SOAK") == "" && way.name != "third-node" && kind != QueueWork {
				continue
			}
			t.Run(fmt.Sprint(kind, "/", way.name), func(t *testing.T) {
				flow(t, kind, way, func(*bench) {})
			})
		}
	}
}

func flow(t *testing.T, kind QueueType, way route, meanwhile func(*bench)) {
	flowOf(t, kind, way, nil, meanwhile)
}

func flowOf(t *testing.T, kind QueueType, way route, converter Converter, meanwhile func(*bench)) {
	const count, most = 200, 5000
	vms := way.start(t)
	all := make([]int, len(vms))
	for k := range all {
		all[k] = k
	}
	spread := func(n int) (nodes []int) {
		for k := range n {
			nodes = append(nodes, all[k%len(all)])
		}
		return nodes
	}
	forms := []string{"block", "timed", "try", "wait", "block", "wait"}
	producers, takers := spread(3), spread(len(forms))
	b := newBench(t, vms, way.home, Queue{Type: kind, Full: FullBlock, Capacity: 8 << 10, Converter: converter}, producers, takers)
	var givers, gatherers []*child
	for k, form := range forms {
		gatherers = append(gatherers, b.gather(k, takers[k], languages()[k%3].program, form))
	}
	for k, node := range producers {
		givers = append(givers, b.give(k, node, languages()[k].program, count, most, 0))
	}
	meanwhile(b)
	for _, g := range givers {
		g.result()
	}
	seen := map[string]int{}
	for k, g := range gatherers {
		last := map[string]int{}
		for _, line := range strings.Split(g.result(), "\n") {
			if line == "" {
				continue
			}
			seen[line]++
			who, number, _ := strings.Cut(line, " ")
			n, err := strconv.Atoi(number)
			must(t, err)
			if before, ok := last[who]; ok && before >= n && kind != QueueLifo {
				t.Errorf("taker %d got item %d of %s after item %d", k, n, who, before)
			}
			last[who] = n
		}
	}
	each := 1
	if kind == QueueBroadcast {
		each = len(forms)
	}
	if len(seen) != len(producers)*count {
		t.Errorf("%d different items came of %d", len(seen), len(producers)*count)
	}
	for line, times := range seen {
		if times != each {
			t.Fatalf("item %q came %d times, not %d; the queue is %+v", line, times, each, b.queue())
		}
	}
}

// The levels that acks carry survive a cut: no item is lost, doubled, or handed
// to a taker that was told there is none.
func TestServedQueueOverCutLinks(t *testing.T) {
	flow(t, QueueWork, routes[3], func(b *bench) {
		cuts := 0
		for at := uint64(50); at < 550; at += 50 {
			eventually(t, "more items are through", func() bool { return b.queue().ItemsOut >= at })
			vm := b.vms[cuts%3]
			vm.mu.Lock()
			for _, p := range vm.links {
				if p.fd >= 0 {
					_ = unix.Shutdown(p.fd, unix.SHUT_RDWR)
				}
			}
			vm.mu.Unlock()
			cuts++
		}
	})
}

func TestServedQueueFromOutside(t *testing.T) {
	vm := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true})
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueLifo, Full: FullFail, Capacity: 4096}, []int{-1, 0}, []int{-1, -1, 0})
	short := func() context.Context { return within(t, 10*time.Millisecond) }
	if _, err := vm.Dequeue(short(), "out0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("an empty queue gives %v", err)
	}
	must(t, vm.Enqueue(short(), "in0", make([]byte, 2000)))
	must(t, vm.Enqueue(short(), "in0", []byte("second")))
	if err := vm.Enqueue(short(), "in0", make([]byte, 3000)); !errors.Is(err, ErrFull) {
		t.Errorf("a full queue says %v", err)
	}
	if err := vm.Enqueue(short(), "in0", make([]byte, 5000)); !errors.Is(err, ErrTooBig) {
		t.Errorf("an item over the capacity gives %v", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	for deadline := time.Now().Add(10 * time.Second); ; {
		// With its time over already it still takes what is there: it asks once.
		got, err := vm.Dequeue(over, "out1")
		if err == nil {
			if string(got) != "second" {
				t.Errorf("got %q", got)
			}
			break
		}
		if time.Now().After(deadline) { // the turn may be refused first, at random
			t.Fatal("a dequeue without time never looks")
		}
	}
	if got, err := vm.Dequeue(within(t, 10*time.Second), "out0"); err != nil || len(got) != 2000 {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	// A plain socket gives, a process takes; then the process gives and ends.
	run := func(program, queue string) string {
		address, token, err := vm.OpenSocket(queue, time.Minute)
		must(t, err)
		host, port, _ := net.SplitHostPort(address)
		out, err := exec.Command("python3", "-c", program, host, port, token).CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	taken := make(chan string, 1)
	go func() { taken <- run(bareDequeue, "out0") }()
	eventually(t, "the socket asks", func() bool { return b.queue().TakersWait == 1 })
	giver := b.give(1, 0, built.c, 1, 100, 0)
	giver.result()
	must(t, vm.CloseOutside("in0"))
	if got := <-taken; got != "5\n" {
		t.Errorf("the socket took %q", got)
	}
	if _, err := vm.Dequeue(within(t, 10*time.Second), "out1"); err != io.EOF {
		t.Errorf("got %v, not END", err)
	}
	if got := b.gather(2, 0, built.python, "block"); got.result() != "" {
		t.Errorf("a taker that came late got %q", got.stdout.String())
	}
}

// When the last taker is gone producers hear of it, wherever they are.
func TestServedQueueWithoutTakers(t *testing.T) {
	for _, way := range routes[:4] {
		t.Run(way.name, func(t *testing.T) {
			b := newBench(t, way.start(t), way.home, Queue{Type: QueueWork, Full: FullBlock, Capacity: 4096}, []int{way.producer}, []int{way.taker, way.home})
			g := b.give(0, way.producer, built.c, 1000000, 100, 0)
			for k, node := range []int{way.taker, way.home} {
				r := spawn(t, b.vms[node], 100+k, built.c, "take", "queue")
				r.result()
			}
			select {
			case <-g.done:
			case <-time.After(time.Minute):
				t.Fatal("the producer does not learn that the takers are gone")
			}
			if !strings.Contains(g.stderr.String(), "closed") {
				t.Errorf("the producer ended with %q, not with closed", g.stderr.String())
			}
		})
	}
}

// A taker that is killed while it waits is no longer given anything.
func TestServedTakerKilled(t *testing.T) {
	for _, way := range routes[:2] {
		t.Run(way.name, func(t *testing.T) {
			b := newBench(t, way.start(t), way.home, Queue{Type: QueueWork, Full: FullBlock, Capacity: 4096}, []int{way.producer}, []int{way.taker, way.home})
			doomed := b.gather(0, way.taker, built.c, "block")
			eventually(t, "it waits", func() bool { return b.queue().TakersWait == 1 })
			must(t, doomed.cmd.Process.Kill())
			eventually(t, "it is gone", func() bool { q := b.queue(); return q.TakersClosed == 1 && q.TakersWait == 0 })
			b.give(0, way.producer, built.c, 50, 500, 0)
			if got := len(strings.Fields(b.gather(1, way.home, built.c, "block").result())); got != 100 {
				t.Errorf("the other got %d items of 50", got/2)
			}
		})
	}
}

// What a child writes into a ring of a served queue breaks its own channel only.
func TestServedQueueWithGarbage(t *testing.T) {
	vm := start(t, Config{})
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueWork, Full: FullBlock, Capacity: 4096}, []int{0, 0}, []int{0})
	vm.mu.Lock()
	r := vm.channels[1].ring
	liar := giver{ring: r}
	data, err := unix.Mmap(int(r.file.Fd()), headerSize, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	copy(data, []byte{0, 0, 0, 0x20, 1, 0, 0, 0}) // NOTHING, which no producer may say
	liar.tail = 8
	liar.publish(vm.door)
	vm.mu.Unlock()
	t.Cleanup(func() { _ = unix.Munmap(data) })
	eventually(t, "the channel is broken", func() bool { return state(vm, 1).Broken })
	b.give(1, 0, built.c, 20, 100, 0)
	r1 := b.gather(0, 0, built.c, "block")
	<-r1.done
	lines := strings.Split(strings.TrimSpace(r1.stdout.String()), "\n")
	if len(lines) != 20 || !slices.Contains(lines, "p1 19") || !strings.Contains(r1.stderr.String(), "lost") {
		t.Errorf("got %d items, then %q: the others' items and then \"lost\" were to come", len(lines), r1.stderr.String())
	}
}

// A job that stops around a served queue is seen to, wherever its home is; one
// that flows through it is not taken for it.
func TestServedQueueDeadlock(t *testing.T) {
	for _, way := range routes[:4] {
		t.Run(way.name, func(t *testing.T) {
			b := newBench(t, way.start(t), way.home, Queue{Type: QueueWork, Full: FullBlock, Capacity: 4096}, []int{way.producer, way.producer}, []int{way.taker})
			wire(t, 50, 4096, b.vms[way.taker], Endpoint{Process: 100, Port: "x"}, b.vms[way.producer], Endpoint{Process: 0, Port: "x"})
			g := b.give(1, way.producer, built.c, 5000, 100, 0)
			r := b.gather(0, way.taker, built.c, "block")
			staysUnlocked(t, b.vms...)
			g.result()
			w := spawn(t, b.vms[way.producer], 0, stuck(t, "go"), "take", "x")
			for _, wait := range becomesDeadlocked(t, b.vms...) {
				if wait.Out || wait.Process != 0 && wait.Process != 100 {
					t.Errorf("a wait that is none: %+v", wait)
				}
			}
			must(t, r.cmd.Process.Kill()) // its END ends the other
			<-r.done
			<-w.done
		})
	}
}
