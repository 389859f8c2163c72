package profile

import (
	"fmt"
	"math/bits"
	"strconv"

	"mvm/wsdl"
)

// kinds are the topologies that this version serves.
var kinds = []wsdl.TopologyKind{
	wsdl.TopologyKindLine, wsdl.TopologyKindRing, wsdl.TopologyKindStar, wsdl.TopologyKindTree, wsdl.TopologyKindComplete,
	wsdl.TopologyKindMesh, wsdl.TopologyKindTorus, wsdl.TopologyKindHypercube, wsdl.TopologyKindButterfly, wsdl.TopologyKindFatTree,
	wsdl.TopologyKindRandom, wsdl.TopologyKindSmallWorld, wsdl.TopologyKindFarm, wsdl.TopologyKindGraph,
}

// way says which channels a link becomes.
type way byte

const (
	asTopology way = iota // as the topology's direction says; forward is from -> to
	both
	forward
	backward
)

// link joins two members of a pattern by a port of each.
type link struct {
	from, to         int
	fromPort, toPort string
	way              way
}

// pattern is a topology ready to be expanded: how many links it has, at most,
// is known before any is made.
type pattern struct {
	links int64
	each  func(emit func(link))
}

// topologySpec is a Topology element with its registered profile merged in
// and its parameters replaced.
type topologySpec struct {
	kind                      wsdl.TopologyKind
	direction                 wsdl.Direction
	over, prefix, queue       field
	columns, rows, layers     field
	dimensions, arity, levels field
	degree, probability, seed field
	graph                     *wsdl.Graph
	graphPath, graphDigest    field
	graphAt                   place
	link                      *Link
	refused                   bool // its registered profile is not to be had
}

// mergeTopology puts what is written here over the registered topology that
// it starts from.
func (c *compiler) mergeTopology(at place, s *scope, t *wsdl.Topology, depth int) topologySpec {
	c.unregistered(at, t.Parameter)
	number := func(name string, value *wsdl.Number) field { return numberField(&c.problems, at, s, name, value) }
	mine := topologySpec{
		kind: wsdl.Or(t.Kind, ""), direction: wsdl.Or(t.Direction, ""),
		over: c.textField(at, s, "over", t.Over), prefix: c.textField(at, s, "prefix", t.Prefix), queue: c.textField(at, s, "queue", t.Queue),
		columns: number("columns", t.Columns), rows: number("rows", t.Rows), layers: number("layers", t.Layers),
		dimensions: number("dimensions", t.Dimensions), arity: number("arity", t.Arity), levels: number("levels", t.Levels),
		degree: number("degree", t.Degree), probability: numberField(&c.problems, at, s, "probability", t.Probability), seed: number("seed", t.Seed),
	}
	if t.Graph != nil {
		mine.graph, mine.graphAt = t.Graph, at.child("graph")
		mine.graphPath = c.textField(mine.graphAt, s, "path", t.Graph.Path)
		mine.graphDigest = c.textField(mine.graphAt, s, "digest", t.Graph.Digest)
	}
	if t.Link != nil {
		mine.link = c.link(at.child("link"), s, t.Link, "the topology")
	}
	found, opened, inner, ok := c.registered(wsdl.ProfileKindTopology, at, s, t.Profile, t.Version, t.Set, depth)
	if !ok {
		mine.refused = t.Profile != ""
		return mine
	}
	theirs := c.mergeTopology(inner, opened, found.Topology, depth+1)
	if mine.kind == "" {
		mine.kind = theirs.kind
	}
	if mine.direction == "" {
		mine.direction = theirs.direction
	}
	mine.over, mine.prefix, mine.queue = mine.over.over(theirs.over), mine.prefix.over(theirs.prefix), mine.queue.over(theirs.queue)
	mine.columns, mine.rows, mine.layers = mine.columns.over(theirs.columns), mine.rows.over(theirs.rows), mine.layers.over(theirs.layers)
	mine.dimensions, mine.arity, mine.levels = mine.dimensions.over(theirs.dimensions), mine.arity.over(theirs.arity), mine.levels.over(theirs.levels)
	mine.degree, mine.probability, mine.seed = mine.degree.over(theirs.degree), mine.probability.over(theirs.probability), mine.seed.over(theirs.seed)
	if mine.graph == nil {
		mine.graph, mine.graphAt, mine.graphPath, mine.graphDigest = theirs.graph, theirs.graphAt, theirs.graphPath, theirs.graphDigest
	}
	if mine.link == nil {
		mine.link = theirs.link
	}
	mine.refused = theirs.refused
	return mine
}

// irrelevant refuses attributes that mean nothing for the kind: ignored, they
// would hide a mistake.
func (c *compiler) irrelevant(spec topologySpec) {
	for _, a := range []struct {
		f     field
		name  string
		kinds []wsdl.TopologyKind
	}{
		{spec.columns, "columns", []wsdl.TopologyKind{"mesh", "torus"}},
		{spec.rows, "rows", []wsdl.TopologyKind{"mesh", "torus"}},
		{spec.layers, "layers", []wsdl.TopologyKind{"mesh", "torus"}},
		{spec.dimensions, "dimensions", []wsdl.TopologyKind{"mesh", "torus"}},
		{spec.arity, "arity", []wsdl.TopologyKind{"tree", "fatTree"}},
		{spec.levels, "levels", []wsdl.TopologyKind{"fatTree"}},
		{spec.degree, "degree", []wsdl.TopologyKind{"random", "smallWorld"}},
		{spec.probability, "probability", []wsdl.TopologyKind{"smallWorld"}},
		{spec.seed, "seed", []wsdl.TopologyKind{"random", "smallWorld"}},
		{field{set: spec.graph != nil, text: "graph", at: spec.graphAt}, "graph", []wsdl.TopologyKind{"graph"}},
	} {
		if !a.f.set {
			continue
		}
		meant, list := false, ""
		for i, kind := range a.kinds {
			meant = meant || kind == spec.kind
			if i > 0 {
				list += " and "
			}
			list += string(kind)
		}
		if !meant {
			c.add(a.f.at, a.f.text, "nothing here", "%s means nothing for a %s, only for %s", a.name, spec.kind, list)
		}
	}
}

// numbering gives port names prefix0, prefix1... and makes each only once.
func numbering(prefix string) func(int) string {
	var names []string
	return func(i int) string {
		for len(names) <= i {
			names = append(names, prefix+strconv.Itoa(len(names)))
		}
		return names[i]
	}
}

// pattern checks what a kind asks of the number of processes and of its
// attributes, records them in layout, and says how to expand it.
func (w *wirer) pattern(at place, spec topologySpec, layout *Topology, tasks []int) (pattern, bool) {
	n := len(layout.Members)
	pre := layout.Prefix
	switch spec.kind {
	case wsdl.TopologyKindLine:
		return chain(n, pre, false), true
	case wsdl.TopologyKindRing:
		return chain(n, pre, true), true
	case wsdl.TopologyKindStar:
		leaf, hub := numbering(pre+"leaf"), pre+"hub"
		return pattern{int64(n - 1), func(emit func(link)) {
			for i := 1; i < n; i++ {
				emit(link{from: 0, to: i, fromPort: leaf(i - 1), toPort: hub})
			}
		}}, true
	case wsdl.TopologyKindTree:
		layout.Arity = int(w.whole(spec.arity, "the arity of the tree", 1, MaxProcesses, 2))
		child, parent := numbering(pre+"child"), pre+"parent"
		return pattern{int64(n - 1), func(emit func(link)) {
			for i := 1; i < n; i++ {
				emit(link{from: (i - 1) / layout.Arity, to: i, fromPort: child((i - 1) % layout.Arity), toPort: parent})
			}
		}}, !spec.arity.bad
	case wsdl.TopologyKindComplete:
		peer := numbering(pre + "peer")
		return pattern{int64(n) * int64(n-1) / 2, func(emit func(link)) {
			for i := range n {
				for j := i + 1; j < n; j++ {
					emit(link{from: i, to: j, fromPort: peer(j), toPort: peer(i)})
				}
			}
		}}, true
	case wsdl.TopologyKindMesh, wsdl.TopologyKindTorus:
		if !w.lengths(at, spec, layout) {
			return pattern{}, false
		}
		return grid(layout, spec.kind == wsdl.TopologyKindTorus), true
	case wsdl.TopologyKindHypercube, wsdl.TopologyKindButterfly:
		port := numbering(pre + "dim")
		if spec.kind == wsdl.TopologyKindButterfly {
			port = numbering(pre + "stage")
		}
		if n&(n-1) != 0 {
			w.add(at, fmt.Sprint(n), "a power of two", "a %s is over %d processes, expected a power of two, such as %d or %d", spec.kind, n, 1<<(bits.Len(uint(n))-1), 1<<bits.Len(uint(n)))
			return pattern{}, false
		}
		stages := bits.Len(uint(n)) - 1
		return pattern{int64(n) / 2 * int64(stages), func(emit func(link)) {
			for s := range stages {
				for i := range n {
					if j := i ^ 1<<s; i < j {
						emit(link{from: i, to: j, fromPort: port(s), toPort: port(s)})
					}
				}
			}
		}}, true
	case wsdl.TopologyKindFatTree:
		return w.fatTree(at, spec, layout)
	case wsdl.TopologyKindRandom, wsdl.TopologyKindSmallWorld:
		return w.chance(spec, layout)
	case wsdl.TopologyKindFarm:
		if len(tasks) < 2 {
			w.add(at.attribute("over"), fmt.Sprint(len(tasks)), "a task of masters and at least one of workers", "a farm is over %d task, expected a task of masters and at least one of workers", len(tasks))
			return pattern{}, false
		}
		masters := tasks[0]
		layout.Masters = masters
		worker, master := numbering(pre+"worker"), numbering(pre+"master")
		return pattern{int64(masters) * int64(n-masters), func(emit func(link)) {
			for m := range masters {
				for i := range n - masters {
					port := pre + "master"
					if masters > 1 {
						port = master(m)
					}
					emit(link{from: m, to: masters + i, fromPort: worker(i), toPort: port})
				}
			}
		}}, true
	default:
		return w.imported(at, spec, layout)
	}
}

// chain is a line, or closed a ring. One process alone has no neighbour.
func chain(n int, prefix string, closed bool) pattern {
	links := n - 1
	if closed && n > 1 {
		links = n
	}
	next, prev := prefix+"next", prefix+"prev"
	return pattern{int64(links), func(emit func(link)) {
		for i := range links {
			emit(link{from: i, to: (i + 1) % n, fromPort: next, toPort: prev})
		}
	}}
}

// grid is a mesh, or closed a torus, numbered row by row and layer by layer.
// Forward leads east, south and up; on a torus from each to the next all the
// way round, since each of its rows is a ring.
func grid(layout *Topology, closed bool) pattern {
	lengths := [3]int{layout.Columns, layout.Rows, layout.Layers}
	n := lengths[0] * lengths[1] * lengths[2]
	p := layout.Prefix
	ports := [3][2]string{{p + "east", p + "west"}, {p + "south", p + "north"}, {p + "up", p + "down"}}
	links := 0
	for _, length := range lengths {
		if length > 1 {
			step := length - 1
			if closed {
				step = length
			}
			links += n / length * step
		}
	}
	return pattern{int64(links), func(emit func(link)) {
		stride := 1
		for d, length := range lengths {
			for i := range n {
				at := i / stride % length
				switch {
				case at+1 < length:
					emit(link{from: i, to: i + stride, fromPort: ports[d][0], toPort: ports[d][1]})
				case closed && length > 1:
					emit(link{from: i, to: i - at*stride, fromPort: ports[d][0], toPort: ports[d][1]})
				}
			}
			stride *= length
		}
	}}
}

// lengths settles the lengths of a mesh or torus.
func (w *wirer) lengths(at place, spec topologySpec, layout *Topology) bool {
	n := len(layout.Members)
	otherwise := int64(2)
	if spec.layers.set {
		otherwise = 3
	}
	dimensions := int(w.whole(spec.dimensions, fmt.Sprintf("the dimensions of the %s", spec.kind), 1, 3, otherwise))
	fields := [3]field{spec.columns, spec.rows, spec.layers}
	names := [3]string{"columns", "rows", "layers"}
	lengths := [3]int{1, 1, 1}
	product, written := int64(1), ""
	var open []int
	for d, f := range fields {
		if f.bad {
			return false
		}
		if !f.set {
			if d < dimensions {
				open = append(open, d)
			}
			continue
		}
		if d >= dimensions {
			w.add(f.at, f.text, "fewer lengths or more dimensions", "the %s has %d dimensions, so %s means nothing", spec.kind, dimensions, names[d])
			return false
		}
		before := len(w.list) + w.left
		lengths[d] = int(w.whole(f, fmt.Sprintf("%s of the %s", names[d], spec.kind), 1, MaxProcesses, 1))
		if len(w.list)+w.left > before {
			return false
		}
		product *= int64(lengths[d])
		if written != "" {
			written += " x "
		}
		written += f.text + " " + names[d]
	}
	if product > int64(n) || int64(n)%product != 0 || len(open) == 0 && product != int64(n) {
		w.add(at, written, fmt.Sprintf("lengths that multiply to %d", n), "the %s is over %d processes, but %s make %d", spec.kind, n, written, product)
		return false
	}
	rest := n / int(product)
	for len(open) > 0 {
		length := rest
		if len(open) == 2 {
			length = rest / squarest(rest)
		} else if len(open) == 3 {
			length = rest / layersOf(rest) / squarest(rest/layersOf(rest))
		}
		lengths[open[0]] = length
		rest /= length
		open = open[1:]
	}
	layout.Columns, layout.Rows, layout.Layers = lengths[0], lengths[1], lengths[2]
	return true
}

// squarest is the largest divisor of n not above its square root.
func squarest(n int) int {
	best := 1
	for d := 1; d*d <= n; d++ {
		if n%d == 0 {
			best = d
		}
	}
	return best
}

// layersOf is the shortest length of the most cubic box of n.
func layersOf(n int) int {
	best, sum := 1, n+2
	for d := 1; d*d*d <= n; d++ {
		if n%d == 0 {
			s := squarest(n / d)
			if t := d + s + n/d/s; t < sum {
				best, sum = d, t
			}
		}
	}
	return best
}

// fatTree is the k-ary n-tree of Petrini and Vanneschi (IPPS 1997): leaves
// first, then the switches level by level from the leaves up. A switch of
// level l is joined to those of level l+1 whose n-1 digits differ from its own
// at most in digit l.
func (w *wirer) fatTree(at place, spec topologySpec, layout *Topology) (pattern, bool) {
	n := len(layout.Members)
	k := int(w.whole(spec.arity, "the arity of the fat tree", 2, 1024, 2))
	levels := int(w.whole(spec.levels, "the levels of the fat tree", 1, 17, 0))
	if spec.arity.bad || spec.levels.bad {
		return pattern{}, false
	}
	size := func(levels int) int { // leaves and switches, or more than any job has
		leaves := 1
		for range levels {
			if leaves *= k; leaves > MaxProcesses {
				return MaxProcesses + 1
			}
		}
		return leaves + levels*(leaves/k)
	}
	if !spec.levels.set {
		for l := 1; size(l) <= n; l++ {
			if levels = l; size(l) == n {
				break
			}
		}
		levels = max(levels, 1)
	}
	if size(levels) != n {
		expected := fmt.Sprintf("%d", size(levels))
		if !spec.levels.set && size(levels) < n {
			expected += fmt.Sprintf(" or %d", size(levels+1))
		}
		w.add(at, fmt.Sprint(n), expected+" processes", "a fat tree of arity %d and %d levels is over %d processes, expected %s: arity^levels leaves and levels x arity^(levels-1) switches", k, levels, n, expected)
		return pattern{}, false
	}
	layout.Arity, layout.Levels = k, levels
	row := n / (k + levels) // switches on a level
	up, down := numbering(layout.Prefix+"up"), numbering(layout.Prefix+"down")
	return pattern{int64(levels) * int64(row) * int64(k), func(emit func(link)) {
		for leaf := range row * k {
			emit(link{from: leaf, to: row*k + leaf/k, fromPort: up(0), toPort: down(leaf % k)})
		}
		stride := 1
		for level := range levels - 1 {
			for i := range row {
				own := i / stride % k
				for to := range k {
					emit(link{
						from: row*k + level*row + i, to: row*k + (level+1)*row + i + (to-own)*stride,
						fromPort: up(to), toPort: down(own),
					})
				}
			}
			stride *= k
		}
	}}, true
}
