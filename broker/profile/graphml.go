package profile

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
)

// parseGraphML reads the nodes and edges of one GraphML graph. The ports of
// an edge are its sourceport and targetport, or else the data whose key is
// named fromPort and toPort. Other data pass; hyperedges and nested graphs
// are refused.
func parseGraphML(g *graph, data []byte) error {
	d := xml.NewDecoder(bytes.NewReader(data))
	p := &graphMLParser{graph: g, decoder: d, keys: map[string]string{"fromPort": "fromPort", "toPort": "toPort"}, declared: map[int]bool{}, mention: map[int]int{}}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return p.end()
		}
		if err != nil {
			return p.fail("it is not well-formed XML: %v", strings.TrimPrefix(err.Error(), "XML syntax error on "))
		}
		switch t := token.(type) {
		case xml.Directive:
			return p.fail("a document type definition is not read; remove <!%s", brief(string(t)))
		case xml.StartElement:
			if err := p.start(t); err != nil {
				return err
			}
		case xml.CharData:
			if p.data != nil {
				if len(*p.data)+len(t) > 1000 {
					return p.fail("the name of a port is longer than 1000 bytes")
				}
				*p.data += string(t)
			}
		case xml.EndElement:
			if err := p.finish(t.Name.Local); err != nil {
				return err
			}
		}
	}
}

type graphMLParser struct {
	graph    *graph
	decoder  *xml.Decoder
	path     []string
	keys     map[string]string // id to the attribute's name
	directed bool
	graphs   int
	edge     *graphEdge
	data     *string
	declared map[int]bool
	mention  map[int]int // vertex to the line of the first edge that names it
}

func (p *graphMLParser) fail(format string, args ...any) error {
	line, _ := p.decoder.InputPos()
	return graphErrorf(line, format, args...)
}

func (p *graphMLParser) start(t xml.StartElement) error {
	attribute := func(name string) string {
		for _, a := range t.Attr {
			if a.Name.Local == name && a.Name.Space == "" {
				return a.Value
			}
		}
		return ""
	}
	parent := ""
	if len(p.path) > 0 {
		parent = p.path[len(p.path)-1]
	} else if t.Name.Local != "graphml" {
		return p.fail("found the element %s, expected graphml", quote(t.Name.Local))
	}
	if len(p.path) >= 100 {
		return p.fail("elements are nested more than 100 deep")
	}
	p.path = append(p.path, t.Name.Local)
	line, _ := p.decoder.InputPos()
	switch {
	case t.Name.Local == "key" && parent == "graphml":
		if name := attribute("attr.name"); name == "fromPort" || name == "toPort" {
			p.keys[attribute("id")] = name
		}
	case t.Name.Local == "graph":
		if p.graphs++; p.graphs > 1 || parent != "graphml" {
			return p.fail("there is more than one graph, or one inside another; expected one")
		}
		p.directed = attribute("edgedefault") == "directed"
	case t.Name.Local == "hyperedge":
		return p.fail("hyperedges are not read; write edges between two nodes")
	case t.Name.Local == "node" && parent == "graph":
		id := attribute("id")
		if id == "" {
			return p.fail("a node has no id")
		}
		v, err := p.graph.vertex(line, id)
		if err != nil {
			return err
		}
		if p.declared[v] {
			return p.fail("two nodes have the id %s", quote(id))
		}
		p.declared[v] = true
	case t.Name.Local == "edge" && parent == "graph":
		return p.startEdge(line, attribute)
	case t.Name.Local == "data" && parent == "edge" && p.edge != nil:
		switch p.keys[attribute("key")] {
		case "fromPort":
			p.data = &p.edge.fromPort
		case "toPort":
			p.data = &p.edge.toPort
		}
		if p.data != nil && *p.data != "" {
			p.data = nil // sourceport and targetport come first
		}
	}
	return nil
}

func (p *graphMLParser) startEdge(line int, attribute func(string) string) error {
	e := graphEdge{directed: p.directed, fromPort: attribute("sourceport"), toPort: attribute("targetport")}
	if directed := attribute("directed"); directed != "" {
		e.directed = directed == "true" || directed == "1"
	}
	for _, name := range []string{"source", "target"} {
		if attribute(name) == "" {
			return p.fail("an edge has no %s", name)
		}
	}
	var err error
	if e.from, err = p.graph.vertex(line, attribute("source")); err != nil {
		return err
	}
	if e.to, err = p.graph.vertex(line, attribute("target")); err != nil {
		return err
	}
	for _, v := range []int{e.from, e.to} {
		if p.mention[v] == 0 {
			p.mention[v] = line
		}
	}
	p.edge = &e
	return nil
}

func (p *graphMLParser) finish(name string) error {
	p.path = p.path[:len(p.path)-1]
	switch {
	case name == "data" && p.data != nil:
		*p.data = strings.TrimSpace(*p.data)
		p.data = nil
	case name == "edge" && p.edge != nil:
		line, _ := p.decoder.InputPos()
		e := *p.edge
		p.edge = nil
		return p.graph.edge(line, e)
	}
	return nil
}

func (p *graphMLParser) end() error {
	if p.graphs == 0 {
		return p.fail("there is no graph in it")
	}
	for v, name := range p.graph.vertices {
		if !p.declared[v] {
			return graphErrorf(p.mention[v], "an edge names the node %s, which the graph does not have", quote(name))
		}
	}
	return nil
}
