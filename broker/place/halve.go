package place

import "slices"

// alike tells whether every process could go to every one of these nodes and
// takes the same of it, so that only numbers count.
func (s *supply) alike(order []int) bool {
	for c := range s.classes {
		if s.classes[c].need != s.classes[0].need {
			return false
		}
		for _, n := range order {
			if !s.may(int32(c), n) {
				return false
			}
		}
	}
	return true
}

// halver splits the processes between two halves of the nodes, then each half
// again, down to single nodes. It sees the whole where growing sees only one
// border, and is for processes that are alike.
type halver struct {
	*refiner
	load   []int // by node: processes to put on it
	open   []int32
	inside []int32
	took   []bool
	away   [3][]int32 // distances from three remote processes
	key    []int64
	spare  []int
}

// halve fills the nodes in order, each to its limit. It is nil where they do
// not hold all.
func (s *supply) halve(g *network, order, limit []int) []int {
	processes := len(s.of)
	node := make([]int, processes)
	h := &halver{
		refiner: s.newRefiner(g, node), load: make([]int, len(s.nodes)),
		open: make([]int32, processes), inside: make([]int32, processes), took: make([]bool, processes),
		key: make([]int64, processes), spare: make([]int, processes),
	}
	for i := range h.away {
		h.away[i] = make([]int32, processes)
	}
	free := s.bounded(limit)
	left := processes
	var nodes []int
	for _, n := range order {
		h.load[n] = min(free[n].times(s.classes[0].need), left)
		if left -= h.load[n]; h.load[n] > 0 {
			nodes = append(nodes, n)
		}
	}
	if left > 0 {
		return nil
	}
	all := make([]int32, processes)
	for p := range all {
		all[p] = int32(p)
		node[p] = nodes[0]
	}
	h.split(all, nodes)
	return node
}

// split shares the processes, which are all labelled with the first node, out
// among the nodes.
func (h *halver) split(processes []int32, nodes []int) {
	if len(nodes) == 1 {
		return
	}
	middle := len(nodes) / 2
	first, second := nodes[:middle], nodes[middle:]
	a, b := first[0], second[0]
	want := 0
	for _, n := range first {
		want += h.load[n]
	}
	best := -1
	from, forest := h.survey(processes)
	starts := []func(){
		func() { h.begin(processes, from, want, a, true) },
		func() { h.begin(processes, from, want, a, false) },
		func() { h.across(processes, want, a) },
	}
	if forest {
		starts = []func(){starts[0], func() { h.prune(processes, from, want, a) }}
	}
	for _, start := range starts {
		for _, p := range processes {
			h.node[p] = b
		}
		start()
		h.members[a], h.members[b] = h.members[a][:0:0], h.members[b][:0:0]
		for _, p := range processes {
			h.members[h.node[p]] = append(h.members[h.node[p]], p)
		}
		// No room on either side: sizes come out as they went in.
		h.free[a], h.free[b] = room{}, room{}
		for range 4 {
			if h.visits > 2*maxVisits || h.pair(a, b) == 0 {
				break
			}
		}
		cut := 0
		for _, p := range h.members[a] {
			neighbours, weights := h.g.row(p)
			for i, q := range neighbours {
				if h.node[q] == b {
					cut += int(weights[i])
				}
			}
		}
		if best < 0 || cut < best {
			best = cut
			for _, p := range processes {
				h.spare[p] = h.node[p]
			}
		}
	}
	var left, right []int32
	for _, p := range processes {
		h.node[p] = h.spare[p]
		if h.node[p] == a {
			left = append(left, p)
		} else {
			right = append(right, p)
		}
	}
	h.split(left, first)
	h.split(right, second)
}

// survey measures how far the processes are from three that are far from each
// other, and returns the first of those. forest says that no ring is among
// them.
func (h *halver) survey(processes []int32) (from int32, forest bool) {
	ties := 0
	for _, p := range processes {
		ties += h.degree(p)
	}
	from = h.measure(processes, h.measure(processes, processes[0], 0), 0)
	opposite := h.measure(processes, from, 0)
	h.measure(processes, opposite, 1)
	third, far, degree := opposite, int32(-1), 0
	for _, p := range processes {
		d := min(h.away[0][p], h.away[1][p])
		if d == unreached {
			continue
		}
		if n := h.degree(p); d > far || d == far && n < degree {
			third, far, degree = p, d, n
		}
	}
	h.measure(processes, third, 2)
	return from, ties/2 < len(processes)
}

const unreached = 1 << 30

// degree counts a process's neighbours in the part that is being split.
func (h *halver) degree(p int32) int {
	n := 0
	neighbours, _ := h.g.row(p)
	for _, q := range neighbours {
		if h.node[q] == h.node[p] {
			n++
		}
	}
	return n
}

// measure writes the distances from a process and returns one that is
// farthest among those reached.
func (h *halver) measure(processes []int32, from int32, into int) int32 {
	label, away := h.node[from], h.away[into]
	for _, p := range processes {
		away[p] = unreached
	}
	away[from] = 0
	queue := make([]int32, 1, len(processes))
	queue[0] = from
	for i := 0; i < len(queue); i++ {
		neighbours, _ := h.g.row(queue[i])
		for _, q := range neighbours {
			if h.node[q] == label && away[q] == unreached {
				away[q] = away[queue[i]] + 1
				queue = append(queue, q)
			}
		}
	}
	return queue[len(queue)-1]
}

// across labels so many processes with a node, those first that are nearer to
// one end than to another end that is neither next to it nor opposite: on a
// mesh that cuts straight, where growing from a corner cuts aslant.
func (h *halver) across(processes []int32, want, to int) {
	for _, p := range processes {
		h.key[p] = int64(h.away[0][p]-h.away[2][p])<<32 | int64(h.away[0][p])
	}
	order := slices.Clone(processes)
	slices.SortFunc(order, func(p, q int32) int {
		if h.key[p] != h.key[q] {
			if h.key[p] < h.key[q] {
				return -1
			}
			return 1
		}
		return int(p - q)
	})
	for _, p := range order[:want] {
		h.node[p] = to
	}
}

// prune labels so many processes with a node, whole branches first: in the
// order in which a walk leaves the vertices of a forest for good.
func (h *halver) prune(processes []int32, from int32, want, to int) {
	label := h.node[from]
	for _, p := range processes {
		h.took[p], h.inside[p] = false, 0 // inside: how many neighbours the walk has looked at
	}
	var stack, order []int32
	for _, root := range append([]int32{from}, processes...) {
		if h.took[root] {
			continue
		}
		h.took[root] = true
		stack = append(stack, root)
		for len(stack) > 0 {
			p := stack[len(stack)-1]
			neighbours, _ := h.g.row(p)
			if int(h.inside[p]) == len(neighbours) {
				stack = stack[:len(stack)-1]
				order = append(order, p)
				continue
			}
			q := neighbours[h.inside[p]]
			h.inside[p]++
			if h.node[q] == label && !h.took[q] {
				h.took[q] = true
				stack = append(stack, q)
			}
		}
	}
	for _, p := range order[:want] {
		h.node[p] = to
	}
}

// begin labels so many processes with a node, beginning at one: greedily the
// one whose coming adds least to the cut, or else the nearest.
func (h *halver) begin(processes []int32, from int32, want, to int, greedy bool) {
	label := h.node[from]
	for _, p := range processes {
		h.took[p], h.inside[p], h.open[p] = false, 0, 0
		neighbours, weights := h.g.row(p)
		for i, q := range neighbours {
			if h.node[q] == label {
				h.open[p] += weights[i]
			}
		}
	}
	var border heap
	border.push(candidate{0, from, 0})
	order := int64(0)
	next := 0
	for want > 0 {
		if len(border) == 0 {
			for h.took[processes[next]] {
				next++
			}
			border.push(candidate{0, processes[next], h.inside[processes[next]]})
		}
		c := border.pop()
		if h.took[c.p] || greedy && c.stamp != h.inside[c.p] {
			continue
		}
		h.took[c.p] = true
		h.node[c.p] = to
		want--
		neighbours, weights := h.g.row(c.p)
		h.visits += len(neighbours)
		for i, q := range neighbours {
			if h.node[q] != label || h.took[q] {
				continue
			}
			h.open[q] -= weights[i]
			h.inside[q] += weights[i]
			order++
			key := order
			if greedy {
				key = int64(h.open[q]-h.inside[q])<<20 - int64(h.inside[q])
			}
			border.push(candidate{key, q, h.inside[q]})
		}
	}
}
