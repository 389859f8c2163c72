package place

import "mvm/broker/profile"

// network is who talks to whom: an undirected graph whose weights count
// channels, in compressed rows.
type network struct {
	start  []int32 // by process: where its row begins
	to     []int32
	weight []int32
}

// pairs gives each two processes that talk, once for each channel between them.
// The ends of a served queue make a star around the first of them: its home
// will be where most of them are.
func pairs(job *profile.Job, each func(a, b int)) {
	for i := range job.Channels {
		if a, b := job.Channels[i].From.Process, job.Channels[i].To.Process; a >= 0 && b >= 0 && a != b {
			each(a, b)
		}
	}
	for _, ends := range job.QueueEnds() {
		for _, end := range ends {
			if end != ends[0] {
				each(ends[0], end)
			}
		}
	}
}

func newNetwork(job *profile.Job) *network {
	n := len(job.Processes)
	start := make([]int32, n+1)
	pairs(job, func(a, b int) {
		start[a+1]++
		start[b+1]++
	})
	for i := range n {
		start[i+1] += start[i]
	}
	to := make([]int32, start[n])
	next := append([]int32(nil), start...)
	pairs(job, func(a, b int) {
		to[next[a]], to[next[b]] = int32(b), int32(a)
		next[a]++
		next[b]++
	})
	// Several channels between two processes become one link of their number.
	g := &network{start: make([]int32, n+1), to: to[:0], weight: make([]int32, 0, len(to))}
	at := make([]int32, n) // where the row in work has a neighbour, from 1
	for p := range n {
		first := len(g.to)
		for _, q := range to[start[p]:start[p+1]] {
			if at[q] == 0 {
				g.to = append(g.to, q)
				g.weight = append(g.weight, 0)
				at[q] = int32(len(g.to))
			}
			g.weight[at[q]-1]++
		}
		for _, q := range g.to[first:] {
			at[q] = 0
		}
		g.start[p+1] = int32(len(g.to))
	}
	return g
}

// row is the neighbours of a process and the weights of the links to them.
func (g *network) row(p int32) (to, weight []int32) {
	return g.to[g.start[p]:g.start[p+1]], g.weight[g.start[p]:g.start[p+1]]
}

// cut is the weight of the links between processes on different nodes.
func (g *network) cut(node []int) int {
	total := 0
	for p := range node {
		to, weight := g.row(int32(p))
		for i, q := range to {
			if node[q] != node[p] {
				total += int(weight[i])
			}
		}
	}
	return total / 2
}
