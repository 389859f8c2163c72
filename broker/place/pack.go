package place

import (
	"slices"
	"sort"
)

// pack plans in three steps: which nodes, and how many processes each; then a
// group of processes for each; then mend the borders between groups.
func (s *supply) pack(g *network, least int) ([]int, bool) {
	processes := len(s.of)
	order, limit := s.choose(processes, least)
	node := s.grow(g, order, limit, nil)
	if node == nil {
		// Locality first did not get everyone in: who can go where comes first.
		quota, placed := s.assign(limit)
		if placed < processes {
			limit = nil
			quota, placed = s.assign(nil)
		}
		if placed < processes {
			return nil, false
		}
		node = s.grow(g, s.all(), nil, quota)
	}
	if node == nil || !s.spread(g, node, limit, least) {
		return nil, false
	}
	s.refine(g, node, limit, least)
	if !s.alike(order) {
		return node, true
	}
	// Where only numbers count, halving often finds shorter borders.
	halves := s.halve(g, order, limit)
	if halves == nil || !s.spread(g, halves, limit, least) {
		return node, true
	}
	s.refine(g, halves, limit, least)
	if g.cut(halves) < g.cut(node) {
		return halves, true
	}
	return node, true
}

// capacity is how many processes a node could take, of whatever class.
func (s *supply) capacity(node int) int {
	free, total := s.free[node], 0
	for c := range s.classes {
		if !s.may(int32(c), node) {
			continue
		}
		need := s.classes[c].need
		n := min(free.times(need), s.classes[c].size)
		free.take(room{n * need.slots, n * need.cores, int64(n) * need.memory})
		total += n
	}
	return total
}

// choose picks the nodes to fill, in order: the smallest that takes all that
// is left, or else the largest. limit bounds the processes of each node where
// the job wants more nodes than it needs, so that they share evenly.
func (s *supply) choose(processes, least int) (order, limit []int) {
	bySize := s.all()
	capacity := make([]int, len(s.nodes))
	for i := range capacity {
		capacity[i] = s.capacity(i)
	}
	sort.SliceStable(bySize, func(i, j int) bool {
		a, b := bySize[i], bySize[j]
		if capacity[a] != capacity[b] {
			return capacity[a] > capacity[b]
		}
		return s.free[a].slots > s.free[b].slots
	})
	bySize = slices.DeleteFunc(bySize, func(n int) bool { return capacity[n] == 0 })
	left := processes
	for left > 0 && len(bySize) > 0 {
		at := 0
		if capacity[bySize[0]] >= left {
			// The last one that is large enough; of equals the first.
			at = sort.Search(len(bySize), func(i int) bool { return capacity[bySize[i]] < left }) - 1
			for at > 0 && capacity[bySize[at-1]] == capacity[bySize[at]] && s.free[bySize[at-1]].slots == s.free[bySize[at]].slots {
				at--
			}
		}
		order = append(order, bySize[at])
		left -= capacity[bySize[at]]
		bySize = slices.Delete(bySize, at, at+1)
	}
	if len(order) >= least {
		return append(order, bySize...), nil
	}
	// The largest share evenly; whoever has less room gives what it has.
	chosen := append(order, bySize...)
	sort.SliceStable(chosen, func(i, j int) bool { return capacity[chosen[i]] > capacity[chosen[j]] })
	chosen = chosen[:min(least, len(chosen))]
	limit = make([]int, len(s.nodes))
	left = processes
	for i := len(chosen) - 1; i >= 0; i-- {
		n := chosen[i]
		limit[n] = min(capacity[n], left/(i+1))
		left -= limit[n]
	}
	return chosen, limit
}

func (s *supply) all() []int {
	all := make([]int, len(s.nodes))
	for i := range all {
		all[i] = i
	}
	return all
}

// bounded is the free room with the limits applied.
func (s *supply) bounded(limit []int) []room {
	free := slices.Clone(s.free)
	for i := range free {
		if limit != nil {
			free[i].slots = min(free[i].slots, limit[i])
		}
	}
	return free
}

// assign finds how many processes of each class each node can take, as many
// in all as it can. Where a class finds no room, others make way along the
// shortest chain of moves: with equal needs that is a maximum flow, so no
// possible answer is missed.
//
// With unlike needs it is bin packing, which nobody solves fast: the classes
// are tried in several orders, the big or the picky first, and the nodes in
// two, the least useful first or as they come.
func (s *supply) assign(limit []int) (quota [][]int, placed int) {
	choices := make([]int, len(s.classes)) // nodes for a class
	uses := make([]int, len(s.nodes))      // classes for a node
	for c := range s.classes {
		for i := range s.nodes {
			if s.may(int32(c), i) {
				choices[c]++
				uses[i]++
			}
		}
	}
	equal := !slices.ContainsFunc(s.classes, func(c class) bool { return c.need != s.classes[0].need })
	type weight func(c int) int64
	cores := func(c int) int64 { return int64(s.classes[c].need.cores) }
	memory := func(c int) int64 { return s.classes[c].need.memory }
	picky := func(c int) int64 { return -int64(choices[c]) }
	useless := s.all()
	sort.SliceStable(useless, func(i, j int) bool { return uses[useless[i]] < uses[useless[j]] })
	for _, nodes := range [][]int{useless, s.all()} {
		for _, weights := range [][]weight{{cores, memory, picky}, {picky, cores, memory}, {memory, cores, picky}, {picky, memory, cores}} {
			order := make([]int, len(s.classes))
			for c := range order {
				order[c] = c
			}
			sort.SliceStable(order, func(i, j int) bool {
				for _, w := range weights {
					if a, b := w(order[i]), w(order[j]); a != b {
						return a > b
					}
				}
				return false
			})
			q, n := s.assignIn(order, nodes, limit)
			if n > placed || quota == nil {
				quota, placed = q, n
			}
			if placed == len(s.of) || equal {
				return quota, placed
			}
		}
	}
	return quota, placed
}

// assignIn is assign with the classes and nodes in a given order.
func (s *supply) assignIn(order, nodes, limit []int) (quota [][]int, placed int) {
	free := s.bounded(limit)
	quota = make([][]int, len(s.classes))
	for c := range quota {
		quota[c] = make([]int, len(s.nodes))
	}
	for _, c := range order {
		left := s.classes[c].size
		need := s.classes[c].need
		for _, i := range nodes {
			if left == 0 {
				break
			}
			if !s.may(int32(c), i) {
				continue
			}
			n := min(free[i].times(need), left)
			free[i].take(room{n * need.slots, n * need.cores, int64(n) * need.memory})
			quota[c][i] += n
			left -= n
		}
		for left > 0 && s.makeWay(c, free, quota) {
			left--
		}
		placed += s.classes[c].size - left
	}
	return quota, placed
}

// makeWay places one more process of a class by moving others.
func (s *supply) makeWay(class int, free []room, quota [][]int) bool {
	type step struct{ from, class int } // who moves here, from where
	came := make([]step, len(s.nodes))
	seen := make([]bool, len(s.nodes))
	arrives := make([]int, len(s.nodes)) // the class that arrives at a node
	var queue []int
	unseen := len(s.nodes)
	for i := range s.nodes {
		if s.may(int32(class), i) {
			unseen--
			seen[i], came[i], arrives[i] = true, step{-1, class}, class
			queue = append(queue, i)
		}
	}
	for len(queue) > 0 {
		n := queue[0]
		queue = queue[1:]
		need := s.classes[arrives[n]].need
		if free[n].fits(need) {
			for { // walk back, moving each on
				c := arrives[n]
				free[n].take(s.classes[c].need)
				quota[c][n]++
				from := came[n].from
				if from < 0 {
					return true
				}
				free[from].give(s.classes[c].need)
				quota[c][from]--
				n = from
			}
		}
		for c := range s.classes {
			if quota[c][n] == 0 || unseen == 0 {
				continue
			}
			after := free[n]
			after.give(s.classes[c].need)
			if !after.fits(need) {
				continue
			}
			for m := range s.nodes {
				if !seen[m] && s.may(int32(c), m) {
					unseen--
					seen[m], came[m], arrives[m] = true, step{n, c}, c
					queue = append(queue, m)
				}
			}
		}
	}
	return false
}

// spread moves single processes to further nodes until enough are used, each
// time the one that costs least.
func (s *supply) spread(g *network, node []int, limit []int, least int) bool {
	count := make([]int, len(s.nodes))
	used := 0
	free := s.bounded(limit)
	for p, n := range node {
		if count[n]++; count[n] == 1 {
			used++
		}
		free[n].take(s.classes[s.of[p]].need)
	}
	for used < least {
		best, to, cost := -1, -1, int32(0)
		for p := range node {
			if count[node[p]] < 2 {
				continue
			}
			ties := int32(0)
			neighbours, weights := g.row(int32(p))
			for i, q := range neighbours {
				if node[q] == node[p] {
					ties += weights[i]
				}
			}
			if best >= 0 && ties >= cost {
				continue
			}
			for n := range s.nodes {
				if count[n] == 0 && s.may(s.of[p], n) && free[n].fits(s.classes[s.of[p]].need) {
					best, to, cost = p, n, ties
					break
				}
			}
		}
		if best < 0 {
			return false
		}
		need := s.classes[s.of[best]].need
		free[node[best]].give(need)
		count[node[best]]--
		node[best] = to
		free[to].take(need)
		count[to]++
		used++
	}
	return true
}
