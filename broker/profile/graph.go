package profile

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"mvm/wsdl"
)

// maxGraph bounds an imported graph in bytes.
const maxGraph = 64 << 20

// graph is an imported graph: vertices in the order in which they first
// appear, edges in the order of the text.
type graph struct {
	vertices []string
	edges    []graphEdge
	index    map[string]int
}

// graphEdge joins two vertices. way is asTopology where the text leaves it
// open; directed says that the text draws an arrow.
type graphEdge struct {
	from, to         int
	fromPort, toPort string
	way              way
	directed         bool
}

// graphError is what is wrong with a graph's text, and in which line.
type graphError struct {
	line    int
	message string
}

func (e *graphError) Error() string { return fmt.Sprintf("line %d: %s", e.line, e.message) }

func graphErrorf(line int, format string, args ...any) error {
	return &graphError{line, fmt.Sprintf(format, args...)}
}

// parseGraph reads a graph in one of the formats.
func parseGraph(format wsdl.GraphFormat, data []byte) (*graph, error) {
	if len(data) > maxGraph {
		return nil, graphErrorf(1, "the graph is longer than %d MiB", maxGraph>>20)
	}
	if !utf8.Valid(data) {
		return nil, graphErrorf(1, "the graph is not UTF-8")
	}
	g := &graph{index: map[string]int{}}
	var err error
	switch format {
	case wsdl.GraphFormatDot:
		err = parseDOT(g, string(data))
	case wsdl.GraphFormatGraphml:
		err = parseGraphML(g, data)
	case wsdl.GraphFormatEdgeList:
		err = parseEdgeList(g, string(data))
	default:
		err = fmt.Errorf("the format %s is not known, expected dot, graphml or edgeList", quote(string(format)))
	}
	if err != nil {
		return nil, err
	}
	return g, nil
}

// vertex is the number of a vertex, which is new where its name is.
func (g *graph) vertex(line int, name string) (int, error) {
	if i, known := g.index[name]; known {
		return i, nil
	}
	if len(g.vertices) >= MaxProcesses {
		return 0, graphErrorf(line, "the graph has more than %d vertices", MaxProcesses)
	}
	g.index[name] = len(g.vertices)
	g.vertices = append(g.vertices, name)
	return len(g.vertices) - 1, nil
}

func (g *graph) edge(line int, e graphEdge) error {
	if len(g.edges) >= MaxChannels {
		return graphErrorf(line, "the graph has more than %d edges", MaxChannels)
	}
	for _, port := range []string{e.fromPort, e.toPort} {
		if port != "" && !isName(port) {
			return graphErrorf(line, "the port %s is not a name: write %s", quote(port), nameRule)
		}
	}
	g.edges = append(g.edges, e)
	return nil
}

// parseEdgeList reads one edge a line: from to [fromPort toPort].
func parseEdgeList(g *graph, text string) error {
	number := 0
	for line := range strings.Lines(text) {
		number++
		line, _, _ = strings.Cut(line, "#")
		words := strings.Fields(line)
		switch len(words) {
		case 0:
			continue
		case 2, 4:
		default:
			return graphErrorf(number, "found %d words, expected: from to, or: from to fromPort toPort", len(words))
		}
		from, err := g.vertex(number, words[0])
		if err != nil {
			return err
		}
		to, err := g.vertex(number, words[1])
		if err != nil {
			return err
		}
		e := graphEdge{from: from, to: to}
		if len(words) == 4 {
			e.fromPort, e.toPort = words[2], words[3]
		}
		if err := g.edge(number, e); err != nil {
			return err
		}
	}
	return nil
}

// imported lays a graph over the members. Links whose ports the graph does
// not name get link0... at each process, in the order of the neighbours'
// numbers, links to the same neighbour in the order of the text.
func (w *wirer) imported(at place, spec topologySpec, layout *Topology) (pattern, bool) {
	if spec.graph == nil {
		w.add(at, "no graph", "a graph element", "a topology of kind graph needs a graph element")
		return pattern{}, false
	}
	data, ok := w.graphBytes(spec)
	if !ok {
		return pattern{}, false
	}
	if w.graphs += len(data); w.graphs > maxGraph {
		w.add(spec.graphAt, fmt.Sprint(w.graphs), fmt.Sprintf("at most %d bytes of graphs", maxGraph), "with this graph the job has %d bytes of graphs, expected at most %d", w.graphs, maxGraph)
		return pattern{}, false
	}
	layout.Graph = DigestOf(data)
	format := wsdl.Or(spec.graph.Format, "")
	g, err := parseGraph(format, data)
	if err != nil {
		w.add(spec.graphAt, string(format), "a graph as the format has it", "the graph cannot be read as %s: %v", string(format), err)
		return pattern{}, false
	}
	n := len(layout.Members)
	if len(g.vertices) != n {
		w.add(spec.graphAt, fmt.Sprintf("%d vertices", len(g.vertices)), fmt.Sprintf("%d vertices", n), "the graph has %d vertices and is laid over %d processes, expected as many of the one as of the other", len(g.vertices), n)
		return pattern{}, false
	}
	return pattern{int64(len(g.edges)), func(emit func(link)) {
		links := make([]link, len(g.edges))
		for i, e := range g.edges {
			l := link{from: e.from, to: e.to, fromPort: e.fromPort, toPort: e.toPort, way: e.way}
			if !e.directed && l.from > l.to {
				l.from, l.to, l.fromPort, l.toPort = l.to, l.from, l.toPort, l.fromPort
			}
			links[i] = l
		}
		low := func(l link) (int, int) { return min(l.from, l.to), max(l.from, l.to) }
		slices.SortStableFunc(links, func(x, y link) int {
			xa, xb := low(x)
			ya, yb := low(y)
			if xa != ya {
				return xa - ya
			}
			return xb - yb
		})
		port := numbering(layout.Prefix + "link")
		used := make([]int, n)
		name := func(member int, given string) string {
			if given != "" {
				return layout.Prefix + given
			}
			used[member]++
			return port(used[member] - 1)
		}
		for _, l := range links {
			l.fromPort = name(l.from, l.fromPort)
			l.toPort = name(l.to, l.toPort)
			emit(l)
		}
	}}, true
}

// graphBytes is the graph's text, wherever it is.
func (w *wirer) graphBytes(spec topologySpec) ([]byte, bool) {
	g := spec.graph
	before := len(w.list) + w.left
	content := contained(g.Content, g.Text, g.Path, g.Digest)
	w.oneForm(spec.graphAt, "the graph", g.Text != "", content, spec.graphPath.set || spec.graphPath.bad, spec.graphDigest.set || spec.graphDigest.bad)
	reference := spec.graphPath.text
	if spec.graphDigest.set {
		w.digested(spec.graphDigest, "the graph")
		reference = spec.graphDigest.text
	}
	switch {
	case len(w.list)+w.left > before || spec.graphPath.bad || spec.graphDigest.bad:
		return nil, false
	case g.Text != "":
		return []byte(g.Text), true
	case content:
		return *g.Content, true
	case w.file == nil:
		w.add(spec.graphAt, reference, "a graph written out", "the graph %s cannot be read here", quote(reference))
		return nil, false
	}
	data, err := w.file(reference)
	if err != nil {
		w.add(spec.graphAt, reference, "a graph that can be read", "the graph %s cannot be read: %v", quote(reference), err)
		return nil, false
	}
	return data, true
}
