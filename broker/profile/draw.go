package profile

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	"mvm/wsdl"
)

// Draw shows a job's topology: "svg" for people, "dot" for Graphviz and for
// import as a graph, "text" as a list of who is joined to whom by which port.
// The same job gives the same bytes.
func Draw(job *Job, format string) ([]byte, error) {
	switch format {
	case "svg":
		return drawSVG(job), nil
	case "dot":
		return drawDOT(job), nil
	case "text":
		return drawText(job), nil
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("topologies are not drawn as %q", format), "ask for svg, dot or text")
}

// joint is what is drawn as one line: a channel, or two that lead back and
// forth between the same two ports.
type joint struct {
	from, to End
	both     bool
	channel  int    // the first of its channels
	note     string // what its link imposes, if anything, or that it is direct
}

// joints pairs the channels up, in the order of their IDs. A queue that joins two
// ends only is drawn as the one line between them.
func joints(job *Job) []joint {
	out := make([]joint, 0, len(job.Channels))
	back := make(map[[2]End]int, len(job.Channels))
	channels := job.Channels
	if len(job.Queues) > 0 {
		channels = shortened(job)
	}
	for i := range channels {
		c := &channels[i]
		note := linkNote(job, job.Channels[c.ID].To.Queue)
		if c.Direct {
			note = "direct"
		}
		if at, ok := back[[2]End{c.From, c.To}]; ok && !out[at].both {
			out[at].both = true
			if there := &out[at].note; *there != note {
				*there = cmp.Or(*there, "no link") + "; back " + cmp.Or(note, "no link")
			}
			continue
		}
		back[[2]End{c.To, c.From}] = len(out)
		out = append(out, joint{from: c.From, to: c.To, channel: c.ID, note: note})
	}
	return out
}

// linkNote is what people read of a queue's link.
func linkNote(job *Job, queue int) string {
	if queue == 0 || job.Queues[queue-1].Link == nil {
		return ""
	}
	return job.Queues[queue-1].Link.String()
}

// shortened is the channels, those to and from a queue between two ends as one.
func shortened(job *Job) []Channel {
	type ends struct {
		to, from, channels int
	}
	of := make([]ends, len(job.Queues))
	for i := range job.Channels {
		if q := job.Channels[i].To.Queue; q > 0 {
			of[q-1].to = i
			of[q-1].channels++
		}
		if q := job.Channels[i].From.Queue; q > 0 {
			of[q-1].from = i
			of[q-1].channels++
		}
	}
	var out []Channel
	for _, c := range job.Channels {
		if q := c.From.Queue; q > 0 && of[q-1].channels == 2 {
			continue
		}
		if q := c.To.Queue; q > 0 && of[q-1].channels == 2 {
			c.To = job.Channels[of[q-1].from].To
		}
		out = append(out, c)
	}
	return out
}

// awayLabel is an end that is no process's, as edges write it.
func awayLabel(job *Job, e End) string {
	if e.Queue > 0 {
		return "queue:" + job.Queues[e.Queue-1].Name
	}
	return "outside:" + e.Outside
}

// endLabel is an end as edges write it.
func endLabel(job *Job, e End) string {
	if e.Process < 0 {
		return awayLabel(job, e)
	}
	return job.Processes[e.Process].Label() + ":" + e.Port
}

// drawDOT writes a digraph that parseDOT reads back: dir=both for a joint of
// two channels, an arrow for one. Outside ends are vertices of their own.
func drawDOT(job *Job) []byte {
	var out bytes.Buffer
	quoted := func(text string) string { return `"` + strings.ReplaceAll(text, `"`, `\"`) + `"` }
	fmt.Fprintf(&out, "digraph %s {\n", quoted(job.Name))
	fmt.Fprintf(&out, "  node [shape=box, style=\"rounded,filled\", fontname=\"sans-serif\", fillcolor=\"#e8eef7\"];\n")
	for i := range job.Processes {
		fmt.Fprintf(&out, "  %s;\n", quoted(job.Processes[i].Label()))
	}
	vertex := func(e End) string {
		if e.Process < 0 {
			return quoted(awayLabel(job, e))
		}
		return quoted(job.Processes[e.Process].Label())
	}
	for _, j := range joints(job) {
		dir := "forward"
		if j.both {
			dir = "both"
		}
		fmt.Fprintf(&out, "  %s -> %s [dir=%s", vertex(j.from), vertex(j.to), dir)
		if j.from.Process >= 0 {
			fmt.Fprintf(&out, ", fromPort=%s", quoted(j.from.Port))
		}
		if j.to.Process >= 0 {
			fmt.Fprintf(&out, ", toPort=%s", quoted(j.to.Port))
		}
		if j.note != "" {
			fmt.Fprintf(&out, ", label=%s", quoted(j.note))
		}
		out.WriteString("];\n")
	}
	out.WriteString("}\n")
	return out.Bytes()
}

// drawText lists each process with its ports: "next <-> worker[1]:prev" for
// both ways, -> for out, <- for in.
func drawText(job *Job) []byte {
	type line struct{ port, text string }
	lines := make([][]line, len(job.Processes))
	var outside []string
	put := func(own, other End, arrow, note string) {
		if note != "" {
			note = " (" + note + ")"
		}
		if own.Process < 0 {
			outside = append(outside, fmt.Sprintf("%s %s %s%s", awayLabel(job, own), arrow, endLabel(job, other), note))
			return
		}
		lines[own.Process] = append(lines[own.Process], line{own.Port, arrow + " " + endLabel(job, other) + note})
	}
	for _, j := range joints(job) {
		if j.both {
			put(j.from, j.to, "<->", j.note)
			put(j.to, j.from, "<->", j.note)
			continue
		}
		put(j.from, j.to, "->", j.note)
		put(j.to, j.from, "<-", j.note)
	}
	var out bytes.Buffer
	fmt.Fprintf(&out, "%s\n", summary(job))
	for i := range job.Processes {
		p := &job.Processes[i]
		fmt.Fprintf(&out, "%s\n", p.Label())
		width := 0
		for _, port := range p.Ports {
			width = max(width, len(port))
		}
		byPort := map[string][]string{}
		for _, l := range lines[i] {
			byPort[l.port] = append(byPort[l.port], l.text)
		}
		for _, port := range p.Ports {
			fmt.Fprintf(&out, "  %-*s %s\n", width, port, strings.Join(byPort[port], "  "))
		}
	}
	for _, text := range outside {
		fmt.Fprintf(&out, "%s\n", text)
	}
	return out.Bytes()
}

// summary is a job's size in one line.
func summary(job *Job) string {
	var patterns []string
	for _, t := range job.Topologies {
		text := t.Kind
		switch t.Kind {
		case "mesh", "torus":
			text += fmt.Sprintf(" %dx%d", t.Columns, t.Rows)
			if t.Layers > 1 {
				text += fmt.Sprintf("x%d", t.Layers)
			}
		}
		patterns = append(patterns, text)
	}
	if len(patterns) == 0 {
		patterns = []string{"no topology"}
	}
	amount := func(n int, what, many string) string {
		if n == 1 {
			return "1 " + what
		}
		return fmt.Sprintf("%d %s", n, many)
	}
	return fmt.Sprintf("%s: %s, %s, %s", job.Name, strings.Join(patterns, " + "),
		amount(len(job.Processes), "process", "processes"), amount(len(job.Channels), "channel", "channels"))
}
