package profile

import (
	"bytes"
	"encoding/xml"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// parse reads what stands between <job> and </job>, with a C source "c" at
// hand. Its first line is line 3.
func parse(t testing.TB, body string) (*Job, error) {
	t.Helper()
	text := `<job xmlns="urn:mvm:1" name="test">
<source name="c" language="c"><file name="a.c"><text>int main(){}</text></file></source>
` + body + `</job>`
	job, lines, err := Parse(strings.NewReader(text), "test.xml")
	if err != nil {
		return nil, err
	}
	compiled, err := Compile(job, nil, nil, nil)
	return compiled, lines.Locate(err)
}

func compile(t testing.TB, body string) *Job {
	t.Helper()
	job, err := parse(t, body)
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// pictures are jobs that show every kind, small and large.
var pictures = map[string]string{
	"line":         `<task name="stage" source="c" count="5"/><topology kind="line" direction="forward"/>`,
	"line24":       `<task name="stage" source="c" count="24"/><topology kind="line" direction="forward"/>`,
	"ring":         `<task name="station" source="c" count="8"/><topology kind="ring"/>`,
	"ring64":       `<task name="station" source="c" count="64"/><topology kind="ring" direction="forward"/>`,
	"star":         `<task name="hub" source="c"/><task name="leaf" source="c" count="9"/><topology kind="star"/>`,
	"tree":         `<task name="vertex" source="c" count="15"/><topology kind="tree"/>`,
	"tree64":       `<task name="vertex" source="c" count="64"/><topology kind="tree"/>`,
	"complete":     `<task name="peer" source="c" count="9"/><topology kind="complete"/>`,
	"mesh":         `<task name="tile" source="c" count="12"/><topology kind="mesh" columns="4"/>`,
	"mesh64":       `<task name="tile" source="c" count="64"/><topology kind="mesh"/>`,
	"mesh3d":       `<task name="cell" source="c" count="27"/><topology kind="mesh" dimensions="3"/>`,
	"torus":        `<task name="block" source="c" count="16"/><topology kind="torus"/>`,
	"torus3d":      `<task name="cell" source="c" count="64"/><topology kind="torus" dimensions="3"/>`,
	"hypercube8":   `<task name="corner" source="c" count="8"/><topology kind="hypercube"/>`,
	"hypercube16":  `<task name="corner" source="c" count="16"/><topology kind="hypercube"/>`,
	"hypercube64":  `<task name="corner" source="c" count="64"/><topology kind="hypercube"/>`,
	"butterfly":    `<task name="transform" source="c" count="8"/><topology kind="butterfly"/>`,
	"butterfly64":  `<task name="transform" source="c" count="64"/><topology kind="butterfly"/>`,
	"fatTree":      `<task name="leaf" source="c" count="8"/><task name="switch" source="c" count="12"/><topology kind="fatTree"/>`,
	"random":       `<task name="node" source="c" count="16"/><topology kind="random"/>`,
	"smallWorld64": `<task name="node" source="c" count="64"/><topology kind="smallWorld"/>`,
	"farm":         `<task name="master" source="c"/><task name="worker" source="c" count="7"/><topology kind="farm"/>`,
	"farm40":       `<task name="master" source="c" count="2"/><task name="worker" source="c" count="40"/><topology kind="farm"/>`,
	"graph": `<task name="v" source="c" count="5"/><topology kind="graph"><graph format="dot"><text>
graph { a -- b -- c -- d -- a; a -- e; c -- e [fromPort=up, toPort=down] }</text></graph></topology>`,
	"overlay": `<task name="source" source="c"/><task name="filter" source="c" count="4"/><task name="worker" source="c" count="12"/><task name="sink" source="c"/>
<topology kind="line" over="filter" direction="forward"/><topology kind="torus" over="worker"/>
<edge from="source:out" to="filter:in"/><edge from="filter[3]:out" to="worker[4]:in"/><edge from="worker[7]:out" to="sink:in"/><edge from="sink:log" to="outside:log"/>`,
	"plain": `<task name="a" source="c"/><task name="b" source="c" count="3"/><task name="c" source="c"/>
<edge from="a:x0" to="b[0]:in"/><edge from="a:x1" to="b[1]:in"/><edge from="a:x2" to="b[2]:in"/><edge from="b[0]:out" to="c:y0"/><edge from="b[1]:out" to="c:y1"/><edge from="b[2]:out" to="c:y2"/>`,
	"links": `<task name="p" source="c" count="3"/><topology kind="line"><link latency="5" jitter="1" bandwidth="10" loss="0.01"/></topology>
<edge from="p[2]:x" to="p:x"><link bandwidth="0.5"/></edge>`,
	"edges": `<task name="read" source="c"/><task name="work" source="c" count="4"/><task name="write" source="c"/>
<topology kind="ring" over="work"/>
<edge from="outside:input" to="read:in"/><edge from="read:a" to="work[0]:feed"/><edge from="work[0]:log" to="work[0]:log"/>
<edge from="work[2]:out" to="write:in"/><edge from="write:out" to="outside:result"/>`,
}

func TestDrawingsAreSound(t *testing.T) {
	for name, body := range pictures {
		t.Run(name, func(t *testing.T) {
			job := compile(t, body)
			svg, err := Draw(job, "svg")
			if err != nil {
				t.Fatal(err)
			}
			d := xml.NewDecoder(bytes.NewReader(svg))
			var texts strings.Builder
			for {
				token, err := d.Token()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if c, ok := token.(xml.CharData); ok {
					texts.Write(c)
					texts.WriteByte('\n')
				}
			}
			for i := range job.Processes {
				if label := job.Processes[i].Label(); !strings.Contains(texts.String(), "\n"+label+"\n") {
					t.Errorf("the label %s is missing", label)
				}
			}
			if bytes.Contains(svg, []byte("NaN")) || bytes.Contains(svg, []byte("Inf")) {
				t.Error("a coordinate is no number")
			}
			if dir := os.Getenv("DRAWINGS"); dir != "" {
				if err := os.WriteFile(filepath.Join(dir, name+".svg"), svg, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if again, _ := Draw(compile(t, body), "svg"); !bytes.Equal(svg, again) {
				t.Error("the same job was drawn in two ways")
			}
		})
	}
}

// Text drawings are compared with golden files.
func TestTextIsGolden(t *testing.T) {
	for _, name := range []string{"line", "mesh", "fatTree", "graph", "edges", "butterfly", "torus", "links"} {
		t.Run(name, func(t *testing.T) {
			got, err := Draw(compile(t, pictures[name]), "text")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".golden", got)
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (write it anew with -update):\n%s", file, got)
	}
}

// What is drawn as DOT and imported again has the same channels.
func TestDOTComesBack(t *testing.T) {
	for name, body := range pictures {
		if strings.Contains(body, "outside:") || strings.Contains(body, "<link") {
			continue // the outside is no process, and a graph has no links
		}
		t.Run(name, func(t *testing.T) {
			job := compile(t, body)
			dot, err := Draw(job, "dot")
			if err != nil {
				t.Fatal(err)
			}
			again := compile(t, fmt.Sprintf(`<task name="p" source="c" count="%d"/><topology kind="graph"><graph format="dot"><text><![CDATA[%s]]></text></graph></topology>`, len(job.Processes), dot))
			if got, want := wires(again), wires(job); got != want {
				t.Errorf("the channels differ after the round trip\ngot:  %s\nwant: %s", got, want)
			}
		})
	}
}
