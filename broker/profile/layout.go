package profile

import (
	"math"
	"math/bits"
)

// point is a place in a drawing, in pixels, y downwards.
type point struct{ x, y float64 }

func (p point) plus(q point) point    { return point{p.x + q.x, p.y + q.y} }
func (p point) minus(q point) point   { return point{p.x - q.x, p.y - q.y} }
func (p point) times(f float64) point { return point{p.x * f, p.y * f} }
func (p point) length() float64       { return math.Hypot(p.x, p.y) }
func (p point) turned() point         { return point{-p.y, p.x} }
func towards(angle, length float64) point {
	return point{math.Cos(angle) * length, math.Sin(angle) * length}
}

// shape is how a process is drawn: as a pill with its label in it, or as a
// dot with its label beside it at an angle.
type shape struct {
	at    point
	dot   bool
	angle float64 // of a dot's label, in radians, 0 = to the right
}

// panel lays out the members of one topology around its own origin.
type panel struct {
	shapes []shape
	// bend is the middle of the line between two members where a straight one
	// would run over others, as an offset from the straight middle.
	bend func(a, b int) point
	// stages is set for a butterfly: x of the dots of each stage.
	stages []float64
}

const (
	letter = 6.9 // width of a label's letter
	pillH  = 24.0
	dotR   = 6.5
)

func pillWidth(label string) float64 { return math.Max(34, float64(len(label))*letter+16) }

// arrange chooses the picture that shows the kind best. label is the longest
// of the members' labels; ports asks for room to write ports on the lines.
func arrange(t *Topology, label string, ports bool) panel {
	n := len(t.Members)
	w := pillWidth(label) + 46
	if ports {
		w += 50
	}
	switch t.Kind {
	case "line":
		return snake(n, w)
	case "mesh", "torus":
		if t.Layers > 1 {
			return layered(t, label)
		}
		return plane(t, w)
	case "tree":
		if n > 31 {
			return radial(t)
		}
		return levels(t, w)
	case "fatTree":
		return fat(t, w)
	case "hypercube":
		return cube(n, label)
	case "butterfly":
		return butterfly(n, w)
	case "farm":
		return bipartite(t, w)
	case "column":
		p := panel{}
		for i := range n {
			p.shapes = append(p.shapes, shape{at: point{0, float64(i) * 56}})
		}
		return p
	case "star":
		p := circle(n-1, label)
		p.bend = nil
		p.shapes = append([]shape{{}}, p.shapes...)
		return p
	}
	return circle(n, label)
}

// snake is a line that turns at the end of each row.
func snake(n int, w float64) panel {
	row := n
	if n > 8 {
		row = int(math.Ceil(math.Sqrt(float64(n) * 1.6)))
	}
	p := panel{}
	for i := range n {
		x, y := i%row, i/row
		if y%2 == 1 {
			x = row - 1 - x
		}
		p.shapes = append(p.shapes, shape{at: point{float64(x) * w, float64(y) * 76}})
	}
	return p
}

// circle is members on a circle, from the top clockwise: as dots where there
// are many.
func circle(n int, label string) panel {
	if n <= 10 {
		radius := math.Max(105, float64(n)*(pillWidth(label)+40)/(2*math.Pi))
		p := panel{}
		for i := range n {
			at := towards(2*math.Pi*float64(i)/float64(n)-math.Pi/2, radius)
			at.y *= 0.85
			p.shapes = append(p.shapes, shape{at: at})
		}
		return p
	}
	radius := math.Max(90, float64(n)*24/(2*math.Pi))
	p := panel{}
	for i := range n {
		angle := 2*math.Pi*float64(i)/float64(n) - math.Pi/2
		p.shapes = append(p.shapes, shape{at: towards(angle, radius), dot: true, angle: angle})
	}
	// Chords bend towards the middle, away from the dots between their ends.
	p.bend = func(a, b int) point {
		if apart := abs(a - b); apart == 1 || apart == n-1 {
			return point{}
		}
		return p.shapes[a].at.plus(p.shapes[b].at).times(-0.09)
	}
	return p
}

func plane(t *Topology, w float64) panel {
	const h = 84.0
	p := panel{}
	for i := range t.Members {
		p.shapes = append(p.shapes, shape{at: point{float64(i%t.Columns) * w, float64(i/t.Columns) * h}})
	}
	p.bend = func(a, b int) point {
		columns := float64(b%t.Columns - a%t.Columns)
		rows := float64(b/t.Columns - a/t.Columns)
		switch {
		case math.Abs(columns) > 1:
			return point{0, -h * 0.62}
		case math.Abs(rows) > 1:
			return point{-w * 0.5, 0}
		}
		return point{}
	}
	return p
}

// layered is a grid of three dimensions, seen from aside: layers are shifted
// so that no member hides another.
func layered(t *Topology, label string) panel {
	shift := point{math.Max(40, float64(len(label))*3.2+20), -30}
	depth := float64(t.Layers)
	across, down := shift.x*depth+26, -shift.y*depth+34
	p := panel{}
	for i := range t.Members {
		column, row, layer := i%t.Columns, i/t.Columns%t.Rows, i/t.Columns/t.Rows
		at := point{float64(column) * across, float64(row) * down}.plus(shift.times(float64(layer)))
		p.shapes = append(p.shapes, shape{at: at, dot: true, angle: 0.5})
	}
	p.bend = func(a, b int) point {
		d := p.shapes[b].at.minus(p.shapes[a].at)
		steps := [3]int{abs(a%t.Columns - b%t.Columns), abs(a/t.Columns%t.Rows - b/t.Columns%t.Rows), abs(a/t.Columns/t.Rows - b/t.Columns/t.Rows)}
		if steps[0] > 1 || steps[1] > 1 || steps[2] > 1 {
			return d.turned().times(0.12)
		}
		return point{}
	}
	return p
}

func abs(i int) int {
	if i < 0 {
		return -i
	}
	return i
}

// levels is a tree from its root down; a parent stands over its children.
func levels(t *Topology, w float64) panel {
	n := len(t.Members)
	p := panel{shapes: make([]shape, n)}
	next := 0.0
	var put func(i, depth int)
	put = func(i, depth int) {
		first := i*t.Arity + 1
		if first >= n {
			p.shapes[i].at = point{next * (w - 18), float64(depth) * 84}
			next++
			return
		}
		last := min(first+t.Arity, n) - 1
		for c := first; c <= last; c++ {
			put(c, depth+1)
		}
		p.shapes[i].at = point{(p.shapes[first].at.x + p.shapes[last].at.x) / 2, float64(depth) * 84}
	}
	put(0, 0)
	return p
}

// radial is a tree from its root outwards, for those too wide for levels.
func radial(t *Topology) panel {
	n := len(t.Members)
	p := panel{shapes: make([]shape, n)}
	leaves := make([]int, n)
	depth := 0
	for i := n - 1; i >= 0; i-- {
		if leaves[i] == 0 {
			leaves[i] = 1
		}
		if i > 0 {
			leaves[(i-1)/t.Arity] += leaves[i]
		}
	}
	level := make([]int, n)
	for i := 1; i < n; i++ {
		level[i] = level[(i-1)/t.Arity] + 1
		depth = max(depth, level[i])
	}
	ring := math.Max(70, float64(leaves[0])*22/(2*math.Pi)/float64(max(depth, 1)))
	from := make([]float64, n) // where a member's sector begins, in leaves
	taken := make([]float64, n)
	for i := range n {
		if i > 0 {
			parent := (i - 1) / t.Arity
			from[i] = from[parent] + taken[parent]
			taken[parent] += float64(leaves[i])
		}
		angle := 2*math.Pi*(from[i]+float64(leaves[i])/2)/float64(leaves[0]) - math.Pi/2
		p.shapes[i] = shape{at: towards(angle, ring*float64(level[i])), dot: i > 0, angle: angle}
	}
	return p
}

// fat is a fat tree: leaves below, then the levels of switches upwards.
func fat(t *Topology, w float64) panel {
	p := panel{}
	row := len(t.Members) / (t.Arity + t.Levels)
	w -= 22
	for i := range t.Members {
		at := point{float64(i) * w, 0}
		if i >= row*t.Arity {
			s := i - row*t.Arity
			at = point{(float64(s%row)+0.5)*w*float64(t.Arity) - w/2, -100 * float64(s/row+1)}
		}
		p.shapes = append(p.shapes, shape{at: at})
	}
	return p
}

// cube is a hypercube as a projection: corner i is the sum of the axes of the
// bits set in i.
func cube(n int, label string) panel {
	dimensions := bits.Len(uint(n)) - 1
	axes := axesOf(dimensions)
	scale := 110 + float64(len(label))*3
	angle := 0.55 // of labels: where few lines lead
	if dimensions < 4 {
		angle = -0.6
	}
	p := panel{}
	for i := range n {
		at := point{}
		for d, axis := range axes {
			if i>>d&1 == 1 {
				at = at.plus(axis.times(scale))
			}
		}
		p.shapes = append(p.shapes, shape{at: at, dot: true, angle: angle})
	}
	return p
}

// butterfly is the classic picture: one row a process, one column of dots
// between the stages.
func butterfly(n int, w float64) panel {
	p := panel{}
	stages := bits.Len(uint(n)) - 1
	gap := math.Max(27, math.Min(46, 900/float64(n)))
	for i := range n {
		p.shapes = append(p.shapes, shape{at: point{0, float64(i) * gap}})
	}
	for s := range stages + 1 {
		p.stages = append(p.stages, w*0.62+float64(s)*math.Max(120, math.Min(200, float64(n)*7)))
	}
	return p
}

// bipartite is masters above, workers below.
func bipartite(t *Topology, w float64) panel {
	p := panel{}
	workers := len(t.Members) - t.Masters
	step, dot := w-20, false
	if workers > 12 {
		step, dot = 24, true
	}
	width := math.Max(float64(workers-1)*step, float64(t.Masters-1)*w)
	height := math.Max(130, width/7)
	for i := range t.Masters {
		p.shapes = append(p.shapes, shape{at: point{width * (float64(i) + 0.5) / float64(t.Masters), 0}})
	}
	for i := range workers {
		x := width/2 + (float64(i)-float64(workers-1)/2)*step
		p.shapes = append(p.shapes, shape{at: point{x, height}, dot: dot, angle: math.Pi / 2})
	}
	return p
}

// axesOf is how the axes of a hypercube are drawn. Up to six dimensions they
// were searched for so that corners lie far from each other and from the
// lines of others; they are scaled so that labels have room.
func axesOf(dimensions int) []point {
	var axes []point
	scale := 1.0
	switch dimensions {
	case 0, 1, 2:
		axes = []point{{1, 0}, {0, -0.8}}[:dimensions]
	case 3:
		axes = []point{{1.07, 0.01}, {0.06, -0.95}, {-0.51, -0.48}}
	case 4:
		axes, scale = []point{{0.75, 0.05}, {0.53, -0.36}, {0, -1.12}, {-0.97, -0.43}}, 1.25
	case 5:
		axes, scale = []point{{0.91, -0.19}, {0.9, -0.44}, {0.28, -0.82}, {-0.35, -0.89}, {-0.37, -0.27}}, 1.8
	default:
		axes, scale = []point{{1.19, -0.13}, {1.14, -0.47}, {0.61, -0.75}, {0.03, -0.6}, {-0.24, -0.61}, {-0.63, -0.4}}, 2.4
		for d := 6; d < dimensions; d++ {
			axes = append(axes, towards(-math.Pi*float64(d-5)/float64(dimensions-5), 0.17/float64(d-5)))
		}
	}
	for i := range axes {
		axes[i] = axes[i].times(scale)
	}
	return axes
}
