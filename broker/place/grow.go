package place

// candidate is a process that may be taken next; the heap holds stale ones
// too, which are told by their stamp.
type candidate struct {
	key   int64 // the smallest is taken first
	p     int32
	stamp int32
}

// heap is a binary heap of candidates, smallest first. Equal keys come out by
// process ID, so that the order never depends on how the heap was built.
type heap []candidate

func (c candidate) before(o candidate) bool { return c.key < o.key || c.key == o.key && c.p < o.p }

func (h *heap) push(c candidate) {
	*h = append(*h, c)
	a := *h
	for i := len(a) - 1; i > 0; {
		parent := (i - 1) / 2
		if !a[i].before(a[parent]) {
			break
		}
		a[i], a[parent] = a[parent], a[i]
		i = parent
	}
}

func (h *heap) pop() candidate {
	a := *h
	top := a[0]
	last := len(a) - 1
	a[0] = a[last]
	a = a[:last]
	for i := 0; ; {
		child := 2*i + 1
		if child >= last {
			break
		}
		if child+1 < last && a[child+1].before(a[child]) {
			child++
		}
		if !a[child].before(a[i]) {
			break
		}
		a[i], a[child] = a[child], a[i]
		i = child
	}
	*h = a
	return top
}

// grow fills the nodes in order. On each it starts with the process that has
// the fewest neighbours left and takes, one by one, the process whose coming
// adds least to what crosses the group's border, the ties to processes that
// have a node already left out: those cross a border either way. quota bounds
// each class on each node where it is not nil. The result is nil when not all
// found a place.
func (s *supply) grow(g *network, order, limit []int, quota [][]int) []int {
	processes := len(s.of)
	node := make([]int, processes)
	open := make([]int32, processes)   // weight of ties to processes without a node
	inside := make([]int32, processes) // weight of ties into the group that grows
	member := make([]int32, processes) // which group inside is about
	stamp := make([]int32, processes)
	var starts heap // who may begin a group: the more enclosed the sooner
	for p := range processes {
		node[p] = -1
		_, weights := g.row(int32(p))
		for _, w := range weights {
			open[p] += w
		}
		// Those without an assigned neighbour come after all that have one.
		starts.push(candidate{int64(open[p]) | 1<<40, int32(p), 0})
	}
	left := processes
	free := s.bounded(limit)
	var border heap
	for round, n := range order {
		if left == 0 {
			break
		}
		group := int32(round + 1)
		room := func(p int32) bool {
			c := s.of[p]
			return s.may(c, n) && free[n].fits(s.classes[c].need) && (quota == nil || quota[c][n] > 0)
		}
		take := func(p int32) {
			c := s.of[p]
			node[p] = n
			left--
			free[n].take(s.classes[c].need)
			if quota != nil {
				quota[c][n]--
			}
			neighbours, weights := g.row(p)
			for i, q := range neighbours {
				if node[q] >= 0 {
					continue
				}
				if member[q] != group {
					member[q], inside[q] = group, 0
				}
				open[q] -= weights[i]
				inside[q] += weights[i]
				stamp[q]++
				border.push(candidate{int64(open[q]-inside[q])<<20 - int64(inside[q]), q, stamp[q]})
				starts.push(candidate{int64(open[q]), q, stamp[q]})
			}
		}
		border = border[:0]
		var unfit []candidate // starts that this node cannot take
		for left > 0 && free[n].slots > 0 {
			if len(border) > 0 {
				c := border.pop()
				if node[c.p] < 0 && c.stamp == stamp[c.p] && room(c.p) {
					take(c.p)
				}
				continue
			}
			if len(starts) == 0 {
				break
			}
			c := starts.pop()
			if node[c.p] >= 0 || c.stamp != stamp[c.p] {
				continue
			}
			if room(c.p) {
				take(c.p)
			} else {
				unfit = append(unfit, c)
			}
		}
		for _, c := range unfit {
			if c.stamp == stamp[c.p] {
				starts.push(c)
			}
		}
	}
	if left > 0 {
		return nil
	}
	return node
}
