package queuevm

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Where a rule orders, the store gives and drops as a sorted list would.
func TestRankedStore(t *testing.T) {
	for _, full := range []FullPolicy{FullBlock, FullDropNewest, FullDropOldest, FullFail} {
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 1))
			const capacity = 40 * 16
			s := newStore(QueueWork, full, capacity, 1)
			s.setRuled(true, []bool{false})
			var want []item // sorted
			add := func(it item) {
				at, _ := slices.BinarySearchFunc(want, it, func(a, b item) int {
					if a.rank != b.rank {
						return cmp.Compare(a.rank, b.rank)
					}
					return -1 // behind its equals
				})
				want = slices.Insert(want, at, it)
			}
			for k := range 2000 {
				if r.IntN(5) < 2 {
					got, ok := s.take(0)
					if ok != (len(want) > 0) || ok && string(got.data) != string(want[0].data) {
						t.Fatalf("%s, seed %d, step %d: took %q, want the first of %d", full, seed, k, got.data, len(want))
					}
					if ok {
						want = want[1:]
					}
					continue
				}
				it := item{data: fmt.Appendf(nil, "%08d", k), rank: r.Uint64N(6), drop: r.IntN(10) == 0}
				judged := s.offer(it)
				room := len(want) < 40
				switch {
				case it.drop:
					if judged != map[FullPolicy]verdict{FullFail: refused}[full] {
						t.Fatalf("%s: an item that the rule drops is judged %d", full, judged)
					}
				case room:
					add(it)
				case full == FullDropOldest:
					worst := want[len(want)-1].rank
					if it.rank <= worst {
						oldest := slices.IndexFunc(want, func(w item) bool { return w.rank == worst })
						want = slices.Delete(want, oldest, oldest+1)
						add(it)
					}
				}
				if wanted := map[FullPolicy]verdict{FullBlock: blocked, FullFail: refused}[full]; !room && !it.drop && judged != wanted {
					t.Fatalf("%s: judged %d, want %d", full, judged, wanted)
				}
			}
			next := s.next()
			if len(next) != len(want) {
				t.Fatalf("%s: %d items are shown, want %d", full, len(next), len(want))
			}
			s.remove(next[:len(next)/2])
			for _, w := range want[len(next)/2:] {
				if got, ok := s.take(0); !ok || string(got.data) != string(w.data) {
					t.Fatalf("%s: after some were removed %q comes, want %q", full, got.data, w.data)
				}
			}
			if items, bytes := s.depth(); items != 0 || bytes != 0 {
				t.Fatalf("%d items of %d bytes are left of nothing", items, bytes)
			}
		}
	}
}

// What waits when a rule comes goes first; what it has ranked is in order of
// arrival again when it goes.
func TestRuleComesAndGoes(t *testing.T) {
	for _, kind := range []QueueType{QueueFifo, QueueWork, QueueBroadcast} {
		s := newStore(kind, FullBlock, 1<<20, 2)
		offer := func(data string, rank uint64) { s.offer(item{data: []byte(data), rank: rank}) }
		content := func() (all string) {
			for _, it := range s.next() {
				all += string(it.data)
			}
			return all
		}
		gone := []bool{false, false}
		offer("a", 0)
		offer("b", 0)
		s.setRuled(true, gone)
		offer("c", 9)
		offer("d", 3)
		offer("e", 9)
		if got := content(); got != "abdce" {
			t.Errorf("%s: %s", kind, got)
		}
		s.setRuled(false, gone)
		offer("f", 0)
		if got := content(); got != "abcdef" {
			t.Errorf("%s: %s", kind, got)
		}
		s.setRuled(true, gone)
		offer("g", 1)
		if it, _ := s.take(0); string(it.data) != "a" {
			t.Errorf("%s: %s first", kind, it.data)
		}
	}
}

// closing is a Converter and a Rule that says when it is closed while it is used.
type closing struct {
	t      *testing.T
	closed *atomic.Int32
	over   atomic.Bool
	drops  string
}

func (c *closing) Close() error {
	if c.over.Swap(true) {
		c.t.Error("closed twice")
	}
	c.closed.Add(1)
	return nil
}

func (c *closing) Convert(it []byte) ([]byte, error) {
	if c.over.Load() {
		c.t.Error("an item is converted by what is closed")
	}
	return it, nil
}

func (c *closing) Rank(it Item) (int64, bool, error) {
	if c.over.Load() {
		c.t.Error("an item is ranked by what is closed")
	}
	if string(it.Data) == "broken" {
		return 0, false, errors.New("broken items have no place")
	}
	return -int64(it.Priority), c.drops != "" && strings.Contains(string(it.Data), c.drops), nil
}

// Rules and converters come and go while items flow at full load: each item comes
// once, and what is no longer used is closed, once and not before.
func TestTreatmentsUnderFullLoad(t *testing.T) {
	for _, way := range routes[:4] {
		t.Run(way.name, func(t *testing.T) {
			const count = 400
			vms := way.start(t)
			nodes := []int{0, 1 % len(vms), 2 % len(vms)}
			var closed atomic.Int32
			made := int32(0)
			fresh := func() *closing {
				made++
				return &closing{t: t, closed: &closed}
			}
			b := newBench(t, vms, way.home, Queue{Type: QueueWork, Full: FullBlock, Capacity: 8 << 10}, nodes, nodes)
			var givers, takers []*child
			for k, node := range nodes {
				takers = append(takers, b.gather(k, node, languages()[k].program, "block"))
				givers = append(givers, b.give(k, node, languages()[k].program, count, 3000, 7))
			}
			changes := 0
			for at := uint64(0); b.queue().ProducersClosed < len(nodes); changes++ {
				q := b.queue()
				if q.ItemsIn < at {
					time.Sleep(100 * time.Microsecond)
					continue
				}
				at = q.ItemsIn + 3
				change := QueueChange{}
				switch changes % 4 {
				case 0:
					change.Rule = new(Rule(fresh()))
				case 1:
					change.Converter = new(Converter(fresh()))
				case 2:
					change.Rule = new([]Rule{nil, Rule(nil)}[changes/4%2])
				default:
					change.Converter, change.Rule = new(Converter(fresh())), new(Rule(fresh()))
				}
				must(t, vms[way.home].ChangeQueue(1, change))
			}
			must(t, vms[way.home].ChangeQueue(1, QueueChange{Converter: new(Converter), Rule: new(Rule)}))
			for _, g := range givers {
				g.result()
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
			if q := b.queue(); len(seen) != len(nodes)*count || q.Dropped+q.Refused != 0 {
				t.Errorf("%d items came of %d; the queue is %+v", len(seen), len(nodes)*count, q)
			}
			eventually(t, "all are closed", func() bool { return closed.Load() == made })
			t.Logf("%d changes", changes)
		})
	}
}

// A rule's order, its drops and its errors, as producers and takers see them.
func TestRule(t *testing.T) {
	vm := start(t, Config{})
	var closed atomic.Int32
	rule := &closing{t: t, closed: &closed, drops: "junk"}
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullFail, Capacity: 4096, Rule: rule}, []int{-1}, []int{-1})
	ctx := within(t, 20*time.Second)
	for k, data := range []string{"low", "high", "mid"} {
		if _, err := vm.EnqueueQueue(ctx, 1, []Item{{Data: []byte(data), Priority: []uint8{1, 200, 50}[k]}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := vm.EnqueueQueue(ctx, 1, []Item{{Data: []byte("junk")}}); !errors.Is(err, ErrFull) {
		t.Errorf("an item that the rule drops is told %v where the policy is to fail", err)
	}
	if err := vm.ChangeQueue(1, QueueChange{Type: new(QueueLifo)}); err == nil || !strings.Contains(err.Error(), "orders by itself") {
		t.Errorf("a lifo with a rule: %v", err)
	}
	if _, err := vm.EnqueueQueue(ctx, 1, []Item{{Data: []byte("broken")}}); err == nil || !strings.Contains(err.Error(), "have no place") {
		t.Errorf("an item that the rule refuses is told %v", err)
	}
	b.change(QueueChange{Full: new(FullBlock)})
	if _, err := vm.EnqueueQueue(ctx, 1, []Item{{Data: []byte("junk")}}); err != nil || b.queue().Dropped != 1 {
		t.Errorf("%v %+v", err, b.queue())
	}
	for _, want := range []string{"high", "mid", "low"} {
		got, _, err := vm.DequeueQueue(ctx, 1, 1)
		if err != nil || len(got) != 1 || string(got[0].Data) != want {
			t.Errorf("%+v %v, want %s", got, err, want)
		}
	}
}

// several is a converter and rule that is given several items at once, and refuses one.
type several struct {
	closing
	refuses string
	sizes   []int
}

func (s *several) ConvertAll(items [][]byte) ([][]byte, error) {
	s.sizes = append(s.sizes, len(items))
	for k, data := range items {
		if string(data) == s.refuses {
			return items[:k], errors.New("no value")
		}
	}
	return items, nil
}

func (s *several) RankAll(items []Item) ([]Place, error) {
	if len(items) == 0 {
		s.t.Error("a rule is asked about nothing")
	}
	return make([]Place, len(items)), nil
}

// How many items are given at once is bounded by what each of them may become, however
// small those before them were; and a rule is not asked where a converter left it nothing.
func TestSeveralAtOnce(t *testing.T) {
	for _, c := range []struct {
		most uint64
		want int
	}{{4096, 64}, {ConvertedMax, 4}, {2 * ConvertedMax, 4}} {
		s := &several{closing: closing{t: t}, refuses: "wrong"}
		b := &batch{by: &treatment{converter: s, rule: s}}
		for range 400 {
			b.add(item{data: []byte("small")})
		}
		b.add(item{data: []byte("wrong")})
		b.run(c.most)
		if b.next != 400 || len(b.ready) != 400 || b.failed == nil || b.failed.Error() != "no value" {
			t.Errorf("%d items are through, %d ready: %v", b.next, len(b.ready), b.failed)
		}
		if got := slices.Max(s.sizes); got != c.want {
			t.Errorf("%d items are given at once where each may become %d bytes, want %d", got, c.most, c.want)
		}
		only := &batch{by: b.by}
		only.add(item{data: []byte("wrong")})
		if only.run(c.most); only.next != 0 || only.failed == nil || only.failed.Error() != "no value" {
			t.Errorf("%d items are through: %v", only.next, only.failed)
		}
	}
}
