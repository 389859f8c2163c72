package profile

import (
	"maps"
	"strings"
)

// parseDOT reads the part of Graphviz's DOT language that says how a graph is
// wired: graph and digraph, strict, node and edge statements, chains,
// subgraphs as groups and as ends of edges, attributes and their defaults,
// quoted names, and the three kinds of comments. fromPort and toPort name an
// edge's ports, or else the port of a node id (a:out). dir (forward, back,
// both) says which channels the edge becomes. Other attributes are for
// drawing and pass. Not part of it: HTML strings, joined strings ("a" + "b")
// and compass points.
func parseDOT(g *graph, text string) error {
	p := &dotParser{text: text, line: 1, graph: g}
	return p.document()
}

// dotToken is a name, or one of the marks { } [ ] ; , = : -- ->, or the end.
type dotToken struct {
	text string
	name bool // a name: "{" in quotes is one too
	bare bool // a name without quotes, which may be a keyword
	line int
}

func (t dotToken) is(mark string) bool { return !t.name && t.text == mark }

func (t dotToken) keyword(word string) bool { return t.bare && strings.EqualFold(t.text, word) }

func (t dotToken) String() string {
	if t.text == "" && !t.name {
		return "the end"
	}
	return quote(t.text)
}

type dotParser struct {
	text     string
	at       int
	line     int
	token    dotToken
	directed bool
	strict   bool
	depth    int
	joined   int // pairs of vertices, doubles included
	graph    *graph
	drawn    map[pair]bool // edges seen, where strict merges doubles
}

// dotEnd is one end of an edge: a vertex and the port in its node id.
type dotEnd struct {
	vertex int
	port   string
}

func (p *dotParser) fail(format string, args ...any) error {
	return graphErrorf(p.token.line, format, args...)
}

// next reads one token.
func (p *dotParser) next() error {
	for p.at < len(p.text) {
		rest := p.text[p.at:]
		switch c := rest[0]; {
		case c == '\n':
			p.line++
			p.at++
		case c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v':
			p.at++
		case strings.HasPrefix(rest, "\ufeff"):
			p.at += len("\ufeff")
		case strings.HasPrefix(rest, "//"), c == '#' && (p.at == 0 || p.text[p.at-1] == '\n'):
			end := strings.IndexByte(rest, '\n')
			if end < 0 {
				end = len(rest)
			}
			p.at += end
		case strings.HasPrefix(rest, "/*"):
			end := strings.Index(rest[2:], "*/")
			if end < 0 {
				return graphErrorf(p.line, "a comment that begins with /* does not end")
			}
			p.line += strings.Count(rest[:end+2], "\n")
			p.at += end + 4
		default:
			return p.read(rest)
		}
	}
	p.token = dotToken{line: p.line}
	return nil
}

func (p *dotParser) read(rest string) error {
	p.token = dotToken{line: p.line}
	take := func(n int) { p.token.text, p.at = rest[:n], p.at+n }
	switch c := rest[0]; {
	case strings.IndexByte("{}[];,=:", c) >= 0:
		take(1)
		return nil
	case strings.HasPrefix(rest, "--"), strings.HasPrefix(rest, "->"):
		take(2)
		return nil
	case c == '"':
		return p.quoted(rest)
	case c == '<':
		return graphErrorf(p.line, "found '<': HTML strings are not read; write a name or a text in quotes")
	case c == '+':
		return graphErrorf(p.line, "found '+': joined strings are not read; write one text in quotes")
	}
	end := 0
	numeral := rest[0] == '-' || rest[0] == '.' || digit(rest[0])
	for end < len(rest) {
		c := rest[end]
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
		if !(digit(c) || letter && !numeral || numeral && (c == '.' || c == '-' && end == 0)) {
			break
		}
		end++
	}
	if end == 0 || rest[:end] == "-" || rest[:end] == "." {
		return graphErrorf(p.line, "found the character %s, expected a name, a text in quotes or one of { } [ ] ; , = : -- ->", quote(string([]rune(rest[:min(4, len(rest))])[:1])))
	}
	p.token.name, p.token.bare = true, true
	take(end)
	return nil
}

func (p *dotParser) quoted(rest string) error {
	var out strings.Builder
	for i := 1; i < len(rest); i++ {
		switch c := rest[i]; {
		case c == '"':
			p.token.text, p.token.name = out.String(), true
			p.at += i + 1
			return nil
		case c == '\\' && i+1 < len(rest) && rest[i+1] == '"':
			out.WriteByte('"')
			i++
		case c == '\\' && i+1 < len(rest) && rest[i+1] == '\n':
			p.line++
			i++
		case c == '\\' && i+1 < len(rest) && rest[i+1] == '\\':
			// Kept as Graphviz keeps it, but not taken for the start of \".
			out.WriteString(`\\`)
			i++
		default:
			if c == '\n' {
				p.line++
			}
			out.WriteByte(c)
		}
	}
	return graphErrorf(p.token.line, "a text in quotes does not end")
}

func (p *dotParser) document() error {
	if err := p.next(); err != nil {
		return err
	}
	if p.token.keyword("strict") {
		p.strict, p.drawn = true, map[pair]bool{}
		if err := p.next(); err != nil {
			return err
		}
	}
	switch {
	case p.token.keyword("digraph"):
		p.directed = true
	case p.token.keyword("graph"):
	default:
		return p.fail("found %s, expected graph or digraph", p.token)
	}
	if err := p.next(); err != nil {
		return err
	}
	if p.token.name {
		if err := p.next(); err != nil {
			return err
		}
	}
	if !p.token.is("{") {
		return p.fail("found %s, expected {", p.token)
	}
	if _, err := p.group(map[string]string{}); err != nil {
		return err
	}
	if p.token != (dotToken{line: p.token.line}) {
		return p.fail("found %s after the graph, expected nothing more", p.token)
	}
	return nil
}

// group reads { statements } and returns the vertices named in it. defaults
// are the edge attributes in force; what the group sets ends with it.
func (p *dotParser) group(outer map[string]string) ([]dotEnd, error) {
	if p.depth++; p.depth > 100 {
		return nil, p.fail("subgraphs are nested more than 100 deep")
	}
	defer func() { p.depth-- }()
	defaults := maps.Clone(outer)
	var named []dotEnd
	if err := p.next(); err != nil { // past {
		return nil, err
	}
	for !p.token.is("}") {
		switch {
		case p.token.is(";"):
			if err := p.next(); err != nil {
				return nil, err
			}
		case p.token.keyword("node"), p.token.keyword("edge"), p.token.keyword("graph"):
			ofEdges := p.token.keyword("edge")
			if err := p.next(); err != nil {
				return nil, err
			}
			if !p.token.is("[") {
				return nil, p.fail("found %s, expected [", p.token)
			}
			attributes, err := p.attributes()
			if err != nil {
				return nil, err
			}
			if ofEdges {
				maps.Copy(defaults, attributes)
			}
		default:
			ends, err := p.statement(defaults)
			if err != nil {
				return nil, err
			}
			named = append(named, ends...)
			if len(named) > MaxChannels {
				return nil, p.fail("a group names more than %d vertices", MaxChannels)
			}
		}
	}
	return unique(named), p.next()
}

// unique drops repeated vertices and their ports.
func unique(ends []dotEnd) []dotEnd {
	seen := make(map[int]bool, len(ends))
	kept := ends[:0]
	for _, end := range ends {
		if !seen[end.vertex] {
			seen[end.vertex] = true
			kept = append(kept, dotEnd{vertex: end.vertex})
		}
	}
	return kept
}

// statement reads a node statement, an edge statement, a subgraph or name =
// value, and returns the vertices named.
func (p *dotParser) statement(defaults map[string]string) ([]dotEnd, error) {
	line := p.token.line
	var chain [][]dotEnd
	for {
		ends, assigned, err := p.operand(defaults, len(chain) == 0)
		if err != nil || assigned {
			return nil, err
		}
		chain = append(chain, ends)
		if !p.token.is("--") && !p.token.is("->") {
			break
		}
		if p.token.is("->") != p.directed {
			if p.directed {
				return nil, p.fail("found --, expected -> in a digraph")
			}
			return nil, p.fail("found ->, expected -- in a graph")
		}
		if err := p.next(); err != nil {
			return nil, err
		}
	}
	attributes := map[string]string{}
	if p.token.is("[") {
		var err error
		if attributes, err = p.attributes(); err != nil {
			return nil, err
		}
	}
	if len(chain) > 1 {
		merged := maps.Clone(defaults)
		maps.Copy(merged, attributes)
		for i := 1; i < len(chain); i++ {
			if err := p.join(line, chain[i-1], chain[i], merged); err != nil {
				return nil, err
			}
		}
	}
	var all []dotEnd
	for _, ends := range chain {
		all = append(all, ends...)
	}
	return all, nil
}

// operand reads a node id or a subgraph. assigned says that it was name =
// value, a graph attribute, instead.
func (p *dotParser) operand(defaults map[string]string, first bool) (ends []dotEnd, assigned bool, err error) {
	if p.token.keyword("subgraph") {
		if err := p.next(); err != nil {
			return nil, false, err
		}
		if p.token.name {
			if err := p.next(); err != nil {
				return nil, false, err
			}
		}
		if !p.token.is("{") {
			return nil, false, p.fail("found %s, expected {", p.token)
		}
	}
	if p.token.is("{") {
		ends, err = p.group(defaults)
		return ends, false, err
	}
	if !p.token.name {
		return nil, false, p.fail("found %s, expected a vertex", p.token)
	}
	id := p.token
	if err := p.next(); err != nil {
		return nil, false, err
	}
	if first && p.token.is("=") {
		if err := p.next(); err != nil {
			return nil, false, err
		}
		if !p.token.name {
			return nil, false, p.fail("found %s, expected a value", p.token)
		}
		return nil, true, p.next()
	}
	end := dotEnd{}
	if end.vertex, err = p.graph.vertex(id.line, id.text); err != nil {
		return nil, false, err
	}
	if p.token.is(":") {
		if err := p.next(); err != nil {
			return nil, false, err
		}
		if !p.token.name {
			return nil, false, p.fail("found %s, expected a port", p.token)
		}
		end.port = p.token.text
		if err := p.next(); err != nil {
			return nil, false, err
		}
		if p.token.is(":") {
			return nil, false, p.fail("compass points are not read: write vertex:port")
		}
	}
	return []dotEnd{end}, false, nil
}

// join makes the edges between all of one operand and all of the next.
func (p *dotParser) join(line int, from, to []dotEnd, attributes map[string]string) error {
	e := graphEdge{directed: p.directed}
	switch dir := attributes["dir"]; dir {
	case "", "none":
	case "both":
		e.way = both
	case "forward":
		e.way, e.directed = forward, true
	case "back":
		e.way, e.directed = backward, true
	default:
		return graphErrorf(line, "an edge has dir=%s, expected forward, back, both or none", quote(dir))
	}
	for _, a := range from {
		for _, b := range to {
			if p.joined++; p.joined > 2*MaxChannels {
				return graphErrorf(line, "groups of vertices are joined more than %d times", 2*MaxChannels)
			}
			if p.strict {
				key := pair{a.vertex, b.vertex}
				if !p.directed {
					key = newPair(a.vertex, b.vertex)
				}
				if p.drawn[key] {
					continue
				}
				p.drawn[key] = true
			}
			e.from, e.to = a.vertex, b.vertex
			e.fromPort, e.toPort = a.port, b.port
			if port := attributes["fromPort"]; port != "" {
				e.fromPort = port
			}
			if port := attributes["toPort"]; port != "" {
				e.toPort = port
			}
			if err := p.graph.edge(line, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// attributes reads one or more [name=value, ...] lists.
func (p *dotParser) attributes() (map[string]string, error) {
	out := map[string]string{}
	for p.token.is("[") {
		if err := p.next(); err != nil {
			return nil, err
		}
		for !p.token.is("]") {
			if p.token.is(",") || p.token.is(";") {
				if err := p.next(); err != nil {
					return nil, err
				}
				continue
			}
			if !p.token.name {
				return nil, p.fail("found %s, expected an attribute or ]", p.token)
			}
			key := p.token.text
			if err := p.next(); err != nil {
				return nil, err
			}
			value := "true"
			if p.token.is("=") {
				if err := p.next(); err != nil {
					return nil, err
				}
				if !p.token.name {
					return nil, p.fail("found %s, expected a value", p.token)
				}
				value = p.token.text
				if err := p.next(); err != nil {
					return nil, err
				}
			}
			if key == "fromPort" || key == "toPort" || key == "dir" {
				out[key] = value // the rest is for drawing
			}
		}
		if err := p.next(); err != nil {
			return nil, err
		}
	}
	return out, nil
}
