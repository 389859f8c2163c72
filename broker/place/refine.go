package place

import "slices"

// Bounds of refinement, in work done instead of time, so that the plan does
// not depend on the machine.
const (
	maxPasses = 12
	maxVisits = 40_000_000 // ties looked at
)

// refiner mends a plan by the method of Fiduccia and Mattheyses between two
// nodes at a time: processes change sides one by one, the best first, also
// where that costs something for now, and the best state met on the way is
// kept.
type refiner struct {
	*supply
	g       *network
	node    []int
	free    []room
	members [][]int32
	spread  bool // no node may become empty
	gain    []int32
	stamp   []int32
	lock    []int32 // in which round the process was moved
	mark    []int32 // in which round the process takes part
	round   int32
	visits  int
	sides   [2]heap
	moved   []int32
}

func (s *supply) newRefiner(g *network, node []int) *refiner {
	n := len(node)
	return &refiner{
		supply: s, g: g, node: node, free: make([]room, len(s.nodes)), members: make([][]int32, len(s.nodes)),
		gain: make([]int32, n), stamp: make([]int32, n), lock: make([]int32, n), mark: make([]int32, n),
	}
}

// refine mends the borders between all nodes that have processes.
func (s *supply) refine(g *network, node []int, limit []int, least int) {
	r := s.newRefiner(g, node)
	r.free, r.spread = s.bounded(limit), least > 1
	for p, at := range node {
		r.members[at] = append(r.members[at], int32(p))
		r.free[at].take(s.classes[s.of[p]].need)
	}
	dirty := make([]bool, len(s.nodes))
	for i := range dirty {
		dirty[i] = true
	}
	met := make([]int, len(s.nodes)) // when a node was last seen as a neighbour, from 1
	seen := 0
	most := 0 // links saved by the best pass
	for range maxPasses {
		next := make([]bool, len(s.nodes))
		saved := 0
		for a := range s.nodes {
			seen++
			var others []int
			for _, p := range r.members[a] {
				neighbours, _ := g.row(p)
				r.visits += len(neighbours)
				for _, q := range neighbours {
					if b := node[q]; b > a && met[b] != seen {
						met[b] = seen
						others = append(others, b)
					}
				}
			}
			slices.Sort(others)
			for _, b := range others {
				if !dirty[a] && !dirty[b] && !next[a] && !next[b] {
					continue
				}
				if r.visits > maxVisits {
					return
				}
				if gain := r.pair(a, b); gain > 0 {
					next[a], next[b] = true, true
					saved += gain
				}
			}
		}
		if most = max(most, saved); saved <= most/40 {
			return // what is left to gain is not worth the time
		}
		dirty = next
	}
}

// pair mends the border between two nodes and returns how many links that
// brought together.
func (r *refiner) pair(a, b int) int {
	r.round++
	ends := [2]int{a, b}
	r.sides[0], r.sides[1] = r.sides[0][:0], r.sides[1][:0]
	r.moved = r.moved[:0]
	for side, n := range ends {
		for _, p := range r.members[n] {
			r.mark[p] = r.round
			if !r.may(r.of[p], ends[1-side]) {
				r.lock[p] = r.round
				continue
			}
			neighbours, weights := r.g.row(p)
			r.visits += len(neighbours)
			own, other := int32(0), int32(0)
			for i, q := range neighbours {
				switch r.node[q] {
				case n:
					own += weights[i]
				case ends[1-side]:
					other += weights[i]
				}
			}
			r.gain[p] = other - own
			r.stamp[p]++
			if other > 0 || own <= 2 { // the rest would only cost, and follow when a neighbour moves
				r.sides[side].push(candidate{-int64(r.gain[p]), p, r.stamp[p]})
			}
		}
	}
	sizes := [2]int{len(r.members[a]), len(r.members[b])}
	patience := 24 + (sizes[0]+sizes[1])/50
	total, best, keep, since := int32(0), int32(0), 0, 0
	for since < patience {
		side := r.turn(ends)
		if side < 0 {
			break
		}
		p := r.sides[side].pop().p
		need := r.classes[r.of[p]].need
		from, to := ends[side], ends[1-side]
		feasible := !r.free[from].broken() && !r.free[to].broken()
		r.free[from].give(need)
		r.free[to].take(need)
		if !feasible && (r.free[from].broken() || r.free[to].broken()) {
			// One too many is allowed on the way, two are not.
			r.free[from].take(need)
			r.free[to].give(need)
			r.lock[p] = r.round
			continue
		}
		r.lock[p] = r.round
		r.node[p] = to
		r.moved = append(r.moved, p)
		sizes[side]--
		sizes[1-side]++
		total += r.gain[p]
		neighbours, weights := r.g.row(p)
		r.visits += len(neighbours)
		for i, q := range neighbours {
			if r.mark[q] != r.round || r.lock[q] == r.round {
				continue
			}
			at := 0
			if r.node[q] == b {
				at = 1
			}
			if r.node[q] == from {
				r.gain[q] += 2 * weights[i]
			} else {
				r.gain[q] -= 2 * weights[i]
			}
			r.stamp[q]++
			r.sides[at].push(candidate{-int64(r.gain[q]), q, r.stamp[q]})
		}
		since++
		whole := !r.free[a].broken() && !r.free[b].broken() && (!r.spread || sizes[0] > 0 && sizes[1] > 0)
		if whole && total > best {
			best, keep, since = total, len(r.moved), 0
		}
	}
	for i := len(r.moved) - 1; i >= keep; i-- {
		p := r.moved[i]
		need := r.classes[r.of[p]].need
		back := a
		if r.node[p] == a {
			back = b
		}
		r.free[r.node[p]].give(need)
		r.free[back].take(need)
		r.node[p] = back
	}
	if keep == 0 {
		return 0
	}
	all := append(slices.Clone(r.members[a]), r.members[b]...)
	slices.Sort(all)
	r.members[a], r.members[b] = r.members[a][:0:0], r.members[b][:0:0]
	for _, p := range all {
		r.members[r.node[p]] = append(r.members[r.node[p]], p)
	}
	return int(best)
}

// turn picks the side to move from: away from a side that has too much, else
// where the best candidate is. -1 says that nobody is left.
func (r *refiner) turn(ends [2]int) int {
	var top [2]*candidate
	for side := range top {
		h := &r.sides[side]
		for len(*h) > 0 {
			c := &(*h)[0]
			if r.lock[c.p] != r.round && r.stamp[c.p] == c.stamp {
				top[side] = c
				break
			}
			h.pop()
		}
	}
	for side, n := range ends {
		if r.free[n].broken() {
			if top[side] == nil {
				return -1
			}
			return side
		}
	}
	switch {
	case top[0] == nil && top[1] == nil:
		return -1
	case top[1] == nil || top[0] != nil && top[0].key <= top[1].key:
		return 0
	default:
		return 1
	}
}
