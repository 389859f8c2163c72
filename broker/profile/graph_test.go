package profile

import (
	"fmt"
	"strings"
	"testing"

	"mvm/wsdl"
)

// shapeOf is a graph in one comparable line.
func shapeOf(g *graph) string {
	var out []string
	for _, e := range g.edges {
		line := "--"
		if e.directed {
			line = "->"
		}
		text := g.vertices[e.from] + line + g.vertices[e.to]
		if e.fromPort+e.toPort != "" {
			text += "[" + e.fromPort + "," + e.toPort + "]"
		}
		text += []string{"", "both", "forward", "back"}[e.way]
		out = append(out, text)
	}
	return strings.Join(g.vertices, ",") + " " + strings.Join(out, " ")
}

func TestGraphsAreRead(t *testing.T) {
	for _, c := range []struct {
		format     wsdl.GraphFormat
		text, want string
	}{
		{"dot", `graph { a -- b }`, "a,b a--b"},
		{"dot", "strict digraph \"my graph\" {\n a -> b -> c [color=red; weight=2] b->c; a->c }", "a,b,c a->b b->c a->c"},
		{"dot", `Graph G { "x y" -- 3.5 -- -.7 ; _é_1 }`, "x y,3.5,-.7,_é_1 x y--3.5 3.5---.7"},
		{"dot", `graph { node [shape=box]; edge [toPort=in]; a -- b; subgraph s { edge [toPort=x]; c -- d } a -- c [fromPort=out] }`, "a,b,c,d a--b[,in] c--d[,x] a--c[out,in]"},
		{"dot", `digraph { a -> {b c} -> subgraph t { d; } ; rankdir=LR }`, "a,b,c,d a->b a->c b->d c->d"},
		{"dot", `digraph { a:out -> b:in; a -> b [dir=both] // none` + "\n# not at all\n/* or\n here */ b -> a [dir=back] }", "a,b a->b[out,in] a->bboth b->aback"},
		{"dot", `graph { "say \"hi\"" -- "a\\" -- "long\` + "\n" + `line" -- "{" }`, `say "hi",a\\,longline,{ say "hi"--a\\ a\\--longline longline--{`},
		{"dot", `graph{a--b;a--b;b--a}`, "a,b a--b a--b b--a"},
		{"dot", `strict graph{a--b;a--b;b--a}`, "a,b a--b"},
		{"dot", `strict digraph{a->b;a->b;b->a}`, "a,b a->b b->a"},
		{"edgeList", "# nothing\n\na b\nb c out in # last\n", "a,b,c a--b b--c[out,in]"},
		{"graphml", `<graphml><graph edgedefault="undirected"><node id="a"/><node id="b"><data key="x">y</data></node><edge source="b" target="a"><data key="fromPort"> p </data></edge><edge directed="true" source="a" target="b" targetport="q"/></graph></graphml>`, "a,b b--a[p,] a->b[,q]"},
	} {
		g, err := parseGraph(c.format, []byte(c.text))
		if err != nil {
			t.Errorf("%s: %v", c.text, err)
		} else if got := shapeOf(g); got != c.want {
			t.Errorf("%s\ngot:  %s\nwant: %s", c.text, got, c.want)
		}
	}
}

func TestBadGraphsAreRefusedWithTheirLine(t *testing.T) {
	for _, c := range []struct {
		format     wsdl.GraphFormat
		text, want string
	}{
		{"dot", "", "line 1: found the end, expected graph or digraph"},
		{"dot", "graph {\n a -> b }", "line 2: found ->, expected --"},
		{"dot", "digraph {\n a -- b }", "line 2: found --, expected ->"},
		{"dot", "graph {\n\n a -- }", `line 3: found "}", expected a vertex`},
		{"dot", "graph {\n a", "line 2: found the end, expected a vertex"},
		{"dot", "graph { a } b", "line 1: found \"b\" after the graph"},
		{"dot", "graph { a \n\"b", "line 2: a text in quotes does not end"},
		{"dot", "graph { a /* b", "line 1: a comment that begins with /* does not end"},
		{"dot", "graph { a [label=<b>] }", "line 1: found '<': HTML"},
		{"dot", `graph { "a" + "b" }`, "line 1: found '+'"},
		{"dot", "graph { a:b:n -- c }", "line 1: compass points"},
		{"dot", "graph { a -- b [dir=up] }", `line 1: an edge has dir="up"`},
		{"dot", "graph { a -- b [fromPort=\"x y\"] }", `line 1: the port "x y" is not a name`},
		{"dot", strings.Repeat("{", 200), "line 1: found \"{\", expected graph"},
		{"dot", "graph " + strings.Repeat("{", 200), "line 1: subgraphs are nested more than 100 deep"},
		{"dot", "graph { % }", `line 1: found the character "%"`},
		{"edgeList", "a b\na b c", "line 2: found 3 words"},
		{"edgeList", "a b 1 2", `line 1: the port "1" is not a name`},
		{"graphml", "<graphml>\n<graph><node/></graph></graphml>", "line 2: a node has no id"},
		{"graphml", "<graphml><graph>\n<node id='a'/><node id='a'/></graph></graphml>", `line 2: two nodes have the id "a"`},
		{"graphml", "<graphml><graph><node id='a'/>\n<edge source='a' target='b'/></graph></graphml>", `line 2: an edge names the node "b"`},
		{"graphml", "<graphml><graph><hyperedge/></graph></graphml>", "line 1: hyperedges"},
		{"graphml", "<graphml><graph><node id='a'><graph/></node></graph></graphml>", "line 1: there is more than one graph"},
		{"graphml", "<!DOCTYPE x [<!ENTITY a 'b'>]><graphml/>", "line 1: a document type definition"},
		{"graphml", "<graphml>\n<graph>", "line 2: it is not well-formed"},
		{"graphml", "<graphml/>", "line 1: there is no graph"},
		{"graphml", "<svg/>", `line 1: found the element "svg"`},
	} {
		if _, err := parseGraph(c.format, []byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.60q: found %v, expected %s", c.text, err, c.want)
		}
	}
}

// Texts that would take for ever or all memory end with an error instead.
func TestGraphBombs(t *testing.T) {
	group := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "v%d ", i)
		}
		return "{" + b.String() + "}"
	}
	for name, text := range map[string]string{
		"product":  "graph { " + group(2000) + " -- " + group(2000) + " }",
		"doubles":  "strict graph { " + strings.Repeat(group(600)+" -- "+group(600)+"; ", 40) + " }",
		"vertices": "graph " + group(MaxProcesses+1),
	} {
		if _, err := parseGraph("dot", []byte(text)); err == nil || !strings.Contains(err.Error(), "more than") {
			t.Errorf("%s: found %v", name, err)
		}
	}
}

func fuzzGraph(f *testing.F, format wsdl.GraphFormat, seeds ...string) {
	for _, seed := range seeds {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parseGraph(format, data)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "line ") {
				t.Fatalf("the error names no line: %v", err)
			}
			return
		}
		for _, e := range g.edges {
			if e.from < 0 || e.from >= len(g.vertices) || e.to < 0 || e.to >= len(g.vertices) {
				t.Fatalf("an edge leads nowhere: %+v", e)
			}
		}
		if len(g.index) != len(g.vertices) {
			t.Fatalf("%d names for %d vertices", len(g.index), len(g.vertices))
		}
	})
}

func FuzzDOT(f *testing.F) {
	fuzzGraph(f, "dot", `strict digraph g { a -> {b c} -> "d e" [fromPort=x, toPort="y"]; edge [dir=back] a:p -> b:q }`,
		"graph { a -- b -- c; // x\n subgraph s { d /* y */ } -3.5 -- _x }", `graph { "a\"b\\" -- c [k="v";z] }`)
}

func FuzzGraphML(f *testing.F) {
	fuzzGraph(f, "graphml", `<graphml><key id="k" attr.name="toPort"/><graph edgedefault="directed"><node id="a"/><node id="b"/><edge source="a" target="b" sourceport="p"><data key="k">q</data></edge></graph></graphml>`)
}

func FuzzEdgeList(f *testing.F) { fuzzGraph(f, "edgeList", "a b\nb c out in # x\n") }

// FuzzProfile: whatever a document says, it is compiled or refused with
// reasons, and what is compiled is sound and can be drawn.
func FuzzProfile(f *testing.F) {
	for _, body := range pictures {
		f.Add(`<job xmlns="urn:mvm:1" name="test"><source name="c" language="c"><file name="a.c"><text>x</text></file></source>` + body + `</job>`)
	}
	f.Add(`<job xmlns="urn:mvm:1" name="t"><parameter name="n" default="3"/><source name="c" language="c"><file name="a.c"><content>aGk=</content></file><flag>-D$${X}</flag></source>
<task name="p" source="c" count="${n}"><environment name="A" value="${n}"/><resources cores="1" memory="2"><require property="os" equals="linux"/></resources><input path="x"/><output name="o" process="0"/></task>
<edge from="p:a" to="p[1]:b" queue="q"/><queue name="q" capacity="4097"/><policy wallTime="3" retries="1" priority="2" nodes="2"/></job>`)
	f.Fuzz(func(t *testing.T, text string) {
		job, lines, err := Parse(strings.NewReader(text), "fuzz")
		if err == nil {
			var compiled *Job
			if compiled, err = Compile(job, nil, nil, nil); err == nil {
				if len(compiled.Channels) > 10_000 || len(compiled.Processes) > 1000 {
					return // sound, but slow to look at
				}
				ends := map[End]bool{}
				for _, c := range compiled.Channels {
					if ends[c.From] {
						t.Fatalf("%v enqueues to two channels", c.From)
					}
					ends[c.From] = true
				}
				for _, format := range []string{"svg", "dot", "text"} {
					if _, err := Draw(compiled, format); err != nil {
						t.Fatal(err)
					}
				}
				return
			}
		}
		if code := wsdl.CodeOf(lines.Locate(err)); code != wsdl.FaultCodeInvalidProfile && code != wsdl.FaultCodeUnsupported && code != wsdl.FaultCodeInvalidRequest {
			t.Fatalf("refused with the code %s: %v", code, err)
		}
	})
}
