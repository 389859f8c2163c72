package place

import "mvm/broker/profile"

// network is who talks to whom: an undirected graph whose weights count
// channels, in compressed rows.
type network struct {
	start  []int32 // by process: where its row begins
	to     []int32
	weight []int32
}

func newNetwork(job *profile.Job) *network {
	n := len(job.Processes)
	start := make([]int32, n+1)
	joins := func(c *profile.Channel) bool {
		return c.From.Process >= 0 && c.To.Process >= 0 && c.From.Process != c.To.Process
	}
	for i := range job.Channels {
		if c := &job.Channels[i]; joins(c) {
			start[c.From.Process+1]++
			start[c.To.Process+1]++
		}
	}
	for i := range n {
		start[i+1] += start[i]
	}
	to := make([]int32, start[n])
	next := append([]int32(nil), start...)
	put := func(a, b int) {
		to[next[a]] = int32(b)
		next[a]++
	}
	for i := range job.Channels {
		if c := &job.Channels[i]; joins(c) {
			put(c.From.Process, c.To.Process)
			put(c.To.Process, c.From.Process)
		}
	}
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
