package profile

import (
	"fmt"
	"math/bits"
	"slices"

	"mvm/wsdl"
)

// generator is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a seed must
// give the same graph for ever, which the standard library does not promise.
type generator uint64

func (g *generator) next() uint64 {
	*g += 0x9e3779b97f4a7c15
	z := uint64(*g)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// below is a number from 0 to n-1, without the bias of a remainder.
func (g *generator) below(n int) int {
	for {
		high, low := bits.Mul64(g.next(), uint64(n))
		if low >= uint64(n) || low >= -uint64(n)%uint64(n) {
			return int(high)
		}
	}
}

// pair is a link of a random graph, the lower member first.
type pair struct{ a, b int }

func newPair(a, b int) pair {
	if a > b {
		a, b = b, a
	}
	return pair{a, b}
}

// chance makes the random kinds.
func (w *wirer) chance(spec topologySpec, layout *Topology) (pattern, bool) {
	n := len(layout.Members)
	small := spec.kind == wsdl.TopologyKindSmallWorld
	most := n - 1
	if small {
		most -= most % 2
	}
	degree := int(w.whole(spec.degree, fmt.Sprintf("the degree of the %s", spec.kind), min(1, int64(most)), int64(most), int64(min(4, most))))
	if small && degree%2 != 0 {
		w.add(spec.degree.at, spec.degree.text, "an even number", "the degree of a smallWorld is %d, expected an even number: half of the links lead each way", degree)
		return pattern{}, false
	}
	share := w.billionths(spec.probability, "the probability of the smallWorld", 100_000_000)
	seed := w.whole(spec.seed, fmt.Sprintf("the seed of the %s", spec.kind), 0, 999_999_999_999_999_999, 1)
	if spec.degree.bad || spec.probability.bad || spec.seed.bad {
		return pattern{}, false
	}
	links := int64(n) * int64(degree) / 2
	if !small {
		links = max(links, int64(n-1))
	}
	port := numbering(layout.Prefix + "link")
	return pattern{links, func(emit func(link)) {
		g := generator(seed)
		var pairs []pair
		if small {
			pairs = smallWorld(&g, n, degree, share)
		} else {
			pairs = connected(&g, n, int(links))
		}
		// In this order each process meets its neighbours by their numbers.
		slices.SortFunc(pairs, func(x, y pair) int {
			if x.a != y.a {
				return x.a - y.a
			}
			return x.b - y.b
		})
		used := make([]int, n)
		for _, p := range pairs {
			emit(link{from: p.a, to: p.b, fromPort: port(used[p.a]), toPort: port(used[p.b])})
			used[p.a]++
			used[p.b]++
		}
	}}, true
}

// connected is a random tree with random links added until there are so many.
func connected(g *generator, n, links int) []pair {
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	for i := n - 1; i > 0; i-- {
		j := g.below(i + 1)
		order[i], order[j] = order[j], order[i]
	}
	pairs := make([]pair, 0, links)
	taken := make(map[pair]bool, links)
	take := func(p pair) {
		if p.a != p.b && !taken[p] {
			taken[p] = true
			pairs = append(pairs, p)
		}
	}
	for i := 1; i < n; i++ {
		take(newPair(order[i], order[g.below(i)]))
	}
	if all := n * (n - 1) / 2; links > all/2 {
		// Dense: draw from what is left instead of guessing.
		rest := make([]pair, 0, all-len(pairs))
		for a := range n {
			for b := a + 1; b < n; b++ {
				if !taken[pair{a, b}] {
					rest = append(rest, pair{a, b})
				}
			}
		}
		for i := 0; len(pairs) < links; i++ {
			j := i + g.below(len(rest)-i)
			rest[i], rest[j] = rest[j], rest[i]
			pairs = append(pairs, rest[i])
		}
	}
	for len(pairs) < links {
		take(newPair(g.below(n), g.below(n)))
	}
	return pairs
}

// smallWorld is the graph of Watts and Strogatz (Nature 393, 1998): a ring
// lattice in which the far end of each link is moved with the given share of
// 1e9. It may fall apart, as theirs may, where the degree is low.
func smallWorld(g *generator, n, degree int, share int64) []pair {
	taken := make(map[pair]bool, n*degree/2)
	pairs := make([]pair, 0, n*degree/2)
	count := make([]int, n)
	for d := 1; d <= degree/2; d++ {
		for i := range n {
			p := newPair(i, (i+d)%n)
			taken[p] = true
			pairs = append(pairs, p)
			count[p.a]++
			count[p.b]++
		}
	}
	k := 0
	for range degree / 2 {
		for i := range n {
			moved := int64(g.below(1_000_000_000)) < share
			if moved && count[i] < n-1 { // else every other process is a neighbour already
				old := pairs[k]
				var p pair
				for {
					p = newPair(i, g.below(n))
					if p.a != p.b && !taken[p] {
						break
					}
				}
				delete(taken, old)
				taken[p] = true
				pairs[k] = p
				count[old.a]--
				count[old.b]--
				count[p.a]++
				count[p.b]++
			}
			k++
		}
	}
	return pairs
}
