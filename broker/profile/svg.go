package profile

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
)

// palette colours the tasks; ink is the text that is legible on it.
var palette = [...]struct{ fill, ink string }{
	{"#3b6fb6", "#fff"}, {"#e07b39", "#fff"}, {"#3f9b6c", "#fff"}, {"#c84e5b", "#fff"},
	{"#7d5ba6", "#fff"}, {"#2f9fa8", "#fff"}, {"#e3b62c", "#332800"}, {"#8a6a4f", "#fff"},
}

// strands colours the lines of kinds whose ports are dimensions or stages.
var strands = [...]string{"#5a7fb5", "#d08a4e", "#5da37e", "#c46a74", "#8f76b3", "#4ba3aa", "#c9a63a", "#96795f"}

const thread = "#8b97a8"

// scene is a drawing on its way.
type scene struct {
	job       *Job
	shapes    []shape // by process ID
	placed    []bool  // by process ID
	group     []int   // by process ID: the panel it is in, from 1
	panels    []panel // from 1
	member    []int   // by process ID: its number within its panel
	low       point   // corners of what is drawn
	high      point
	colour    map[string]int // task to palette
	outside   map[string]point
	links     bytes.Buffer
	nodes     bytes.Buffer
	ports     bytes.Buffer
	thickness string // of lines
	few       bool   // so few joints that ports are written beside them
}

func drawSVG(job *Job) []byte {
	n := len(job.Processes)
	s := &scene{
		job: job, shapes: make([]shape, n), placed: make([]bool, n), group: make([]int, n), member: make([]int, n),
		panels: make([]panel, 1), colour: map[string]int{}, outside: map[string]point{},
		low: point{math.Inf(1), math.Inf(1)}, high: point{math.Inf(-1), math.Inf(-1)},
	}
	for i, task := range job.Tasks {
		s.colour[task.Name] = i % len(palette)
	}
	all := joints(job)
	s.few, s.thickness = len(all) <= 24, "1.6"
	if len(all) > 80 {
		s.thickness = "1.1"
	}
	ends := make([]int, n)
	for _, j := range all {
		for _, e := range []End{j.from, j.to} {
			if e.Process >= 0 {
				ends[e.Process]++
				s.few = s.few && ends[e.Process] <= 4
			}
		}
	}
	s.layOut(all)
	s.layOutside(all)
	s.drawJoints(all)
	if !s.few {
		s.ports.Reset() // some ports would have no room, and half of them would confuse
	}
	for p := range s.panels {
		s.drawHeads(p)
	}
	for i := range job.Processes {
		s.drawProcess(i)
	}
	return s.finish()
}

// layOut gives each topology whose members have no place yet a panel, left to
// right. What belongs to none stands to the left where it feeds the others,
// else to the right.
func (s *scene) layOut(all []joint) {
	x := 0.0
	put := func(t *Topology) {
		label := ""
		for _, m := range t.Members {
			if l := s.job.Processes[m].Label(); len(l) > len(label) {
				label = l
			}
		}
		p := arrange(t, label, s.few)
		s.panels = append(s.panels, p)
		low, high := math.Inf(1), math.Inf(-1)
		top, bottom := math.Inf(1), math.Inf(-1)
		for i, m := range t.Members {
			l, h := s.reach(p.shapes[i], s.job.Processes[m].Label())
			low, high = math.Min(low, l.x), math.Max(high, h.x)
			top, bottom = math.Min(top, l.y), math.Max(bottom, h.y)
		}
		if len(p.stages) > 0 {
			high = math.Max(high, p.stages[len(p.stages)-1]+12)
			top -= 26
		}
		if x > 0 {
			x += 60
			if s.few {
				x += 40 // room to write ports
			}
		}
		move := point{x - low, -(top + bottom) / 2}
		for i, m := range t.Members {
			s.shapes[m] = p.shapes[i]
			s.shapes[m].at = p.shapes[i].at.plus(move)
			s.placed[m], s.group[m], s.member[m] = true, len(s.panels)-1, i
		}
		for i := range p.stages {
			s.panels[len(s.panels)-1].stages[i] += move.x
		}
		s.see(point{x, top + move.y})
		s.see(point{x + high - low, bottom + move.y})
		x += high - low
	}
	covered := make([]bool, len(s.placed))
	for _, t := range s.job.Topologies {
		for _, m := range t.Members {
			covered[m] = true
		}
	}
	feeds := make([]bool, len(s.placed))
	for _, j := range all {
		if p, q := j.from.Process, j.to.Process; p >= 0 && q >= 0 && !covered[p] && covered[q] {
			feeds[p] = true
		}
	}
	for _, j := range all {
		if p, q := j.from.Process, j.to.Process; p >= 0 && q >= 0 && covered[p] && !covered[q] {
			feeds[q] = false
		}
	}
	var before, after []int
	for i := range s.placed {
		switch {
		case covered[i]:
		case feeds[i]:
			before = append(before, i)
		default:
			after = append(after, i)
		}
	}
	loose := func(members []int) {
		for _, column := range s.ranks(members, all) {
			put(&Topology{Kind: "column", Members: column})
		}
	}
	loose(before)
	for i := range s.job.Topologies {
		t := &s.job.Topologies[i]
		free := len(t.Members) > 0
		for _, m := range t.Members {
			free = free && !s.placed[m]
		}
		if free {
			put(t)
		}
	}
	for i, c := range covered {
		if c && !s.placed[i] {
			after = append(after, i)
		}
	}
	loose(after)
}

// ranks sorts processes that no topology arranges into columns, by how many
// channels lead to them from the first; many make one circle.
func (s *scene) ranks(members []int, all []joint) [][]int {
	rank := map[int]int{}
	for _, m := range members {
		rank[m] = -1
	}
	incoming := map[int]bool{}
	next := map[int][]int{}
	for _, j := range all {
		p, q := j.from.Process, j.to.Process
		_, fromHere := rank[p]
		_, toHere := rank[q]
		if fromHere && toHere && p != q {
			incoming[q] = true
			next[p] = append(next[p], q)
		}
	}
	columns := [][]int{}
	visit := func(first int) {
		if rank[first] >= 0 {
			return
		}
		rank[first] = 0
		queue := []int{first}
		for len(queue) > 0 {
			p := queue[0]
			queue = queue[1:]
			for len(columns) <= rank[p] {
				columns = append(columns, nil)
			}
			columns[rank[p]] = append(columns[rank[p]], p)
			for _, q := range next[p] {
				if rank[q] < 0 {
					rank[q] = rank[p] + 1
					queue = append(queue, q)
				}
			}
		}
	}
	for _, m := range members {
		if !incoming[m] {
			visit(m)
		}
	}
	for _, m := range members {
		visit(m)
	}
	return columns
}

// reach is the corners of a shape with its label.
func (s *scene) reach(h shape, label string) (low, high point) {
	if !h.dot {
		half := point{pillWidth(label) / 2, pillH / 2}
		return h.at.minus(half), h.at.plus(half)
	}
	end := h.at.plus(towards(h.angle, dotR+6+float64(len(label))*letter))
	low = point{math.Min(h.at.x-dotR, end.x) - 6, math.Min(h.at.y-dotR, end.y) - 6}
	return low, point{math.Max(h.at.x+dotR, end.x) + 6, math.Max(h.at.y+dotR, end.y) + 6}
}

func (s *scene) see(p point) {
	s.low = point{math.Min(s.low.x, p.x), math.Min(s.low.y, p.y)}
	s.high = point{math.Max(s.high.x, p.x), math.Max(s.high.y, p.y)}
}

// layOutside puts what feeds the job to its left, what it feeds to its right, and
// between it and that the queues that several share.
func (s *scene) layOutside(all []joint) {
	var left, right, queues []string
	width := 0.0
	see := func(e End, list *[]string) {
		if e.Process >= 0 {
			return
		}
		name := awayLabel(s.job, e)
		width = math.Max(width, pillWidth(pill(name)))
		if e.Queue > 0 {
			list = &queues
		}
		if !slices.Contains(*list, name) {
			*list = append(*list, name)
		}
	}
	for _, j := range all {
		see(j.from, &left)
		see(j.to, &right)
	}
	middle := (s.low.y + s.high.y) / 2
	column := func(names []string, x float64) {
		for i, name := range names {
			at := point{x, middle + (float64(i)-float64(len(names)-1)/2)*44}
			s.outside[name] = at
			s.see(at.minus(point{width / 2, 20}))
			s.see(at.plus(point{width / 2, 20}))
		}
	}
	column(queues, s.high.x+width/2+80)
	lowX, highX := s.low.x-width/2-80, s.high.x+width/2+80
	column(left, lowX)
	column(right, highX)
	for _, name := range slices.Concat(left, right, queues) {
		at, text := s.outside[name], pill(name)
		w := pillWidth(text)
		fmt.Fprintf(&s.nodes, `<g><title>%s</title><rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="3" fill="#fff" stroke="#5b6675" stroke-width="1.4" stroke-dasharray="4 3"/><text x="%.1f" y="%.1f" text-anchor="middle" fill="#333c48">%s</text></g>`+"\n",
			escape(name), at.x-w/2, at.y-pillH/2, w, pillH, at.x, at.y+4.2, escape(text))
	}
}

// pill is what is written on an outside end or a queue: its name alone.
func pill(label string) string { return label[strings.Index(label, ":")+1:] }

func escape(text string) string {
	var out bytes.Buffer
	_ = xml.EscapeText(&out, []byte(text)) // a buffer takes everything
	return out.String()
}

// strand is the colour of a joint: by its dimension or stage where the kind
// has such ports.
func (s *scene) strand(j joint) (string, int) {
	for i := range s.job.Topologies {
		t := &s.job.Topologies[i]
		if j.channel >= t.First && j.channel < t.First+t.Length {
			if t.Kind == "hypercube" || t.Kind == "butterfly" {
				bit := bits.TrailingZeros(uint(s.member[j.from.Process] ^ s.member[j.to.Process]))
				return strands[bit%len(strands)], bit
			}
			break
		}
	}
	return thread, -1
}

func (s *scene) drawJoints(all []joint) {
	between := map[[2]int]int{} // how many joints two processes have, and have been drawn
	drawn := map[[2]int]int{}
	key := func(j joint) [2]int {
		return [2]int{min(j.from.Process, j.to.Process), max(j.from.Process, j.to.Process)}
	}
	for _, j := range all {
		between[key(j)]++
	}
	for p := range s.panels {
		s.drawStages(p)
	}
	for _, j := range all {
		title := endLabel(s.job, j.from) + " → " + endLabel(s.job, j.to)
		if j.both {
			title = endLabel(s.job, j.from) + " ↔ " + endLabel(s.job, j.to)
		}
		if j.note != "" {
			title += ": " + j.note
		}
		colour, bit := s.strand(j)
		if bit >= 0 && s.inButterfly(j) {
			s.drawCrossing(j, bit, colour, title)
			continue
		}
		s.drawLine(j, title, colour, between[key(j)], drawn[key(j)])
		drawn[key(j)]++
	}
}

func (s *scene) inButterfly(j joint) bool {
	g := s.group[j.from.Process]
	return g == s.group[j.to.Process] && len(s.panels[g].stages) > 0
}

// drawStages draws a butterfly's dots and the straight lines along its rows.
func (s *scene) drawStages(p int) {
	stages := s.panels[p].stages
	if len(stages) == 0 {
		return
	}
	for i, g := range s.group {
		if g != p {
			continue
		}
		y := s.shapes[i].at.y
		fmt.Fprintf(&s.links, `<path d="M%.1f %.1fH%.1f" stroke="#c9d1dc" stroke-width="1.4"/>`+"\n", s.shapes[i].at.x, y, stages[len(stages)-1])
		for _, x := range stages {
			fmt.Fprintf(&s.nodes, `<circle cx="%.1f" cy="%.1f" r="3.6" fill="%s"/>`, x, y, palette[s.colour[s.job.Processes[i].Task]].fill)
		}
	}
}

// drawHeads names a butterfly's stages.
func (s *scene) drawHeads(p int) {
	stages := s.panels[p].stages
	top, prefix := math.Inf(1), ""
	for i, g := range s.group {
		if g == p {
			top = math.Min(top, s.shapes[i].at.y)
		}
	}
	for _, t := range s.job.Topologies {
		if t.Kind == "butterfly" && len(t.Members) > 0 && s.group[t.Members[0]] == p {
			prefix = t.Prefix
			break
		}
	}
	for i := 1; i < len(stages); i++ {
		fmt.Fprintf(&s.ports, `<text x="%.1f" y="%.1f" text-anchor="middle" class="port" fill="%s" font-weight="600">%sstage%d</text>`+"\n", (stages[i-1]+stages[i])/2, top-24, strands[(i-1)%len(strands)], escape(prefix), i-1)
	}
}

// drawCrossing draws one exchange of a butterfly: two lines that cross.
func (s *scene) drawCrossing(j joint, stage int, colour, title string) {
	x := s.panels[s.group[j.from.Process]].stages
	a, b := s.shapes[j.from.Process].at.y, s.shapes[j.to.Process].at.y
	second := fmt.Sprintf("M%.1f %.1fL%.1f %.1f", x[stage], b, x[stage+1], a)
	if !j.both {
		second = ""
	}
	fmt.Fprintf(&s.links, `<path d="M%.1f %.1fL%.1f %.1f%s" stroke="%s" stroke-width="1.6"><title>%s</title></path>`+"\n", x[stage], a, x[stage+1], b, second, colour, escape(title))
}

// drawLine draws a joint as a line, bent where there are several or where the
// panel asks for it.
func (s *scene) drawLine(j joint, title, colour string, several, before int) {
	place := func(e End) (point, shape, string) {
		if e.Process < 0 {
			name := awayLabel(s.job, e)
			at := s.outside[name]
			return at, shape{at: at}, pill(name)
		}
		h := s.shapes[e.Process]
		return h.at, h, s.job.Processes[e.Process].Label()
	}
	a, shapeA, labelA := place(j.from)
	b, shapeB, labelB := place(j.to)
	if a == b { // a process that is joined to itself
		s.drawLoop(j, a, title)
		return
	}
	line := b.minus(a)
	bend := point{}
	if p, q := j.from.Process, j.to.Process; p >= 0 && q >= 0 && s.group[p] == s.group[q] {
		if f := s.panels[s.group[p]].bend; f != nil {
			bend = f(s.member[p], s.member[q])
		}
	}
	if several > 1 {
		step := (float64(before) - float64(several-1)/2) * math.Min(26, line.length()/3)
		if j.from.Process > j.to.Process {
			step = -step
		}
		bend = bend.plus(line.turned().times(step / line.length()))
	}
	middle := a.plus(b).times(0.5).plus(bend.times(2)) // control point of a parabola whose middle is moved by bend
	from := s.border(shapeA, labelA, middle, 1)
	gap := 1.0
	if !j.both {
		gap = 8 // room for the arrow
	}
	to := s.border(shapeB, labelB, middle, gap)
	if j.from.Process < 0 || j.to.Process < 0 {
		colour = "#5b6675"
	}
	marker, dash := "", ""
	if !j.both {
		marker = fmt.Sprintf(` marker-end="url(#arrow%s)"`, strings.TrimPrefix(colour, "#"))
	}
	if j.from.Process < 0 || j.to.Process < 0 {
		dash = ` stroke-dasharray="5 4"`
	}
	path := fmt.Sprintf("M%.1f %.1fL%.1f %.1f", from.x, from.y, to.x, to.y)
	if bend.length() > 0.5 {
		path = fmt.Sprintf("M%.1f %.1fQ%.1f %.1f %.1f %.1f", from.x, from.y, middle.x, middle.y, to.x, to.y)
		s.see(a.plus(b).times(0.5).plus(bend.times(1.2)))
	}
	fmt.Fprintf(&s.links, `<path d="%s" stroke="%s" stroke-width="%s"%s%s><title>%s</title></path>`+"\n", path, colour, s.thickness, marker, dash, escape(title))
	if s.few && j.note != "" {
		p := a.plus(b).times(0.5).plus(bend)
		fmt.Fprintf(&s.ports, `<text x="%.1f" y="%.1f" text-anchor="middle" class="port halo">%s</text>`+"\n", p.x, p.y+14, escape(j.note))
	}
	if s.few {
		long := to.minus(from).length()
		s.few = s.writePort(j.from, from, middle, long) && s.writePort(j.to, to, middle, long)
	}
}

// border is where a line towards another point leaves a shape.
func (s *scene) border(h shape, label string, towards point, gap float64) point {
	d := towards.minus(h.at)
	length := d.length()
	if length == 0 {
		return h.at
	}
	out := dotR
	if !h.dot {
		halfW, halfH := pillWidth(label)/2, pillH/2
		out = math.Min(halfW*length/math.Max(math.Abs(d.x), 1e-9), halfH*length/math.Max(math.Abs(d.y), 1e-9))
	}
	return h.at.plus(d.times(math.Min((out+gap)/length, 0.9)))
}

// writePort writes a port's name on its line, near its end. It is false where
// that has no room in its half of the line.
func (s *scene) writePort(e End, at, towards point, long float64) bool {
	d := towards.minus(at)
	if e.Process < 0 || d.length() == 0 {
		return true
	}
	if s.shapes[e.Process].dot {
		return false // its label is there
	}
	unit := d.times(1 / d.length())
	half := math.Abs(unit.x)*(float64(len(e.Port))*2.8+3) + math.Abs(unit.y)*6
	p := at.plus(unit.times(half + 3))
	fmt.Fprintf(&s.ports, `<text x="%.1f" y="%.1f" text-anchor="middle" class="port halo">%s</text>`+"\n", p.x, p.y+3.4, escape(e.Port))
	return 2*half+6 < long/2
}

func (s *scene) drawLoop(j joint, at point, title string) {
	top := point{at.x, at.y - pillH/2}
	fmt.Fprintf(&s.links, `<path d="M%.1f %.1fC%.1f %.1f %.1f %.1f %.1f %.1f" stroke="%s" stroke-width="1.6"><title>%s</title></path>`+"\n",
		top.x-9, top.y, top.x-26, top.y-34, top.x+26, top.y-34, top.x+9, top.y, thread, escape(title))
	s.see(point{top.x, top.y - 30})
	if s.few {
		fmt.Fprintf(&s.ports, `<text x="%.1f" y="%.1f" text-anchor="middle" class="port halo">%s, %s</text>`+"\n", top.x, top.y-28, escape(j.from.Port), escape(j.to.Port))
	}
}

func (s *scene) drawProcess(i int) {
	p := &s.job.Processes[i]
	h := s.shapes[i]
	c := palette[s.colour[p.Task]]
	label := escape(p.Label())
	ports := strings.Join(p.Ports, ", ")
	if len(p.Ports) == 0 {
		ports = "none"
	}
	fmt.Fprintf(&s.nodes, `<g><title>%s, ports: %s</title>`, label, escape(ports))
	if !h.dot {
		w := pillWidth(p.Label())
		fmt.Fprintf(&s.nodes, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="%.1f" fill="%s" stroke="#fff" stroke-width="1.5"/><text x="%.1f" y="%.1f" text-anchor="middle" fill="%s">%s</text></g>`+"\n",
			h.at.x-w/2, h.at.y-pillH/2, w, pillH, pillH/2, c.fill, h.at.x, h.at.y+4.2, c.ink, label)
		return
	}
	degrees := math.Mod(h.angle*180/math.Pi+360, 360)
	anchor, x := "start", dotR+5
	if degrees > 90.5 && degrees < 270.5 { // never upside down
		degrees, anchor, x = degrees-180, "end", -x
	}
	fmt.Fprintf(&s.nodes, `<circle cx="%.1f" cy="%.1f" r="%.1f" fill="%s" stroke="#fff" stroke-width="1.5"/><text transform="translate(%.1f %.1f) rotate(%.1f)" x="%.1f" y="4" text-anchor="%s" class="halo" fill="#333c48">%s</text></g>`+"\n",
		h.at.x, h.at.y, dotR, c.fill, h.at.x, h.at.y, degrees, x, anchor, label)
}

// finish puts title, legend and drawing together.
func (s *scene) finish() []byte {
	if len(s.job.Processes) == 0 {
		s.see(point{})
	}
	const margin, head = 34.0, 78.0
	width := s.high.x - s.low.x + 2*margin
	legend, x := bytes.Buffer{}, 0.0
	line := 0
	for _, task := range s.job.Tasks {
		text := task.Name
		if task.Count > 1 {
			text += fmt.Sprintf(" × %d", task.Count)
		}
		w := float64(len([]rune(text)))*letter + 34
		if x > 0 && x+w > math.Max(width, 420)-2*margin {
			x = 0
			line++
		}
		fmt.Fprintf(&legend, `<rect x="%.1f" y="%.1f" width="13" height="13" rx="4" fill="%s"/><text x="%.1f" y="%.1f" fill="#333c48">%s</text>`+"\n",
			x, float64(line)*20-11, palette[s.colour[task.Name]].fill, x+19, float64(line)*20, escape(text))
		x += w
	}
	for _, t := range s.job.Topologies {
		if t.Kind != "hypercube" {
			continue
		}
		for d := range bits.Len(uint(len(t.Members))) - 1 {
			name := escape(fmt.Sprintf("%sdim%d", t.Prefix, d))
			fmt.Fprintf(&legend, `<path d="M%.1f %.1fh18" stroke="%s" stroke-width="2.5"/><text x="%.1f" y="%.1f" fill="#333c48">%s</text>`+"\n",
				x, float64(line)*20-4.5, strands[d%len(strands)], x+23, float64(line)*20, name)
			x += float64(len(name))*letter + 40
		}
	}
	width = math.Max(width, 2*margin+x)
	top := head + float64(line)*20
	title := summary(s.job)
	name, rest, _ := strings.Cut(title, ": ")
	width = math.Max(width, 2*margin+math.Max(float64(len(rest))*6.4, float64(len(name))*10))
	height := s.high.y - s.low.y + 2*margin + top - 12
	shift := point{margin - s.low.x + (width-2*margin-(s.high.x-s.low.x))/2, margin - 12 + top - s.low.y}
	var out bytes.Buffer
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" font-family="system-ui, 'Segoe UI', 'DejaVu Sans', Helvetica, Arial, sans-serif" font-size="12">`+"\n", width, height, width, height)
	fmt.Fprintf(&out, "<title>%s</title>\n", escape(title))
	out.WriteString("<style>.port{font-size:10px;fill:#5b6675}.halo{paint-order:stroke;stroke:#fff;stroke-width:3px;stroke-linejoin:round}</style>\n<defs>\n")
	for _, colour := range append([]string{thread, "#5b6675"}, strands[:]...) {
		fmt.Fprintf(&out, `<marker id="arrow%s" viewBox="0 0 8 8" refX="1" refY="4" markerWidth="8" markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0.6L7.5 4L0 7.4z" fill="%s"/></marker>`+"\n", strings.TrimPrefix(colour, "#"), colour)
	}
	fmt.Fprintf(&out, "</defs>\n<rect width=\"100%%\" height=\"100%%\" rx=\"10\" fill=\"#fff\"/>\n")
	fmt.Fprintf(&out, `<text x="%.0f" y="34" font-size="18" font-weight="600" fill="#1f2733">%s</text><text x="%.0f" y="53" fill="#5b6675">%s</text>`+"\n", margin, escape(name), margin, escape(rest))
	fmt.Fprintf(&out, `<g transform="translate(%.0f 78)">`+"\n%s</g>\n", margin, legend.String())
	fmt.Fprintf(&out, `<g transform="translate(%.1f %.1f)">`+"\n<g fill=\"none\">\n%s</g>\n%s%s</g>\n</svg>\n", shift.x, shift.y, s.links.String(), s.nodes.String(), s.ports.String())
	return out.Bytes()
}
