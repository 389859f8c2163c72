package place

import (
	"fmt"
	"strings"

	"mvm/broker/profile"
)

// rejections are the nodes that take no process of a task now, and why.
func (s *supply) rejections(job *profile.Job) []Rejection {
	var out []Rejection
	for c := range s.classes {
		for i := range s.nodes {
			p := s.barred[c][i]
			if p == (phrase{}) {
				p = s.full(c, i)
			}
			if p == (phrase{}) {
				continue
			}
			for _, t := range s.classes[c].tasks {
				if len(out) == maxRejections {
					return out
				}
				out = append(out, Rejection{Node: s.nodes[i].ID, Task: job.Tasks[t].Name, Reason: p.of(1)})
			}
		}
	}
	return out
}

// maxRejections bounds the list: it is for people.
const maxRejections = 10_000

// full is why a node takes not one process of a class now, though it could if
// it were empty or larger.
func (s *supply) full(class, node int) phrase {
	need, free := s.classes[class].need, s.free[node]
	switch shunned := s.nodes[node].Shunned; {
	case shunned != "":
		return phrase{"are", shunned}
	case free.slots < 1:
		return phrase{"have", "no free slot"}
	case free.memory < need.memory:
		return phrase{"have", fmt.Sprintf("%d MiB of free memory, needs %d", max(free.memory, 0), need.memory)}
	case free.cores < need.cores:
		return phrase{"have", fmt.Sprintf("%s, needs %d", count(max(free.cores, 0), "free core"), need.cores)}
	}
	return phrase{}
}

// explain says step by step why there is no plan, and whether there never
// would be one on these nodes.
func (s *supply) explain(empty *supply, least int) (reason string, never bool) {
	if len(s.nodes) == 0 {
		return "no node is known yet", false
	}
	processes := len(s.of)
	_, now := s.assign(nil)
	_, ever := empty.assign(nil)
	usable, usableEver := s.usable(), empty.usable()
	var parts []string
	shared := true
	for c := range s.classes {
		text := s.steps(c)
		shared = shared && (c == 0 || text == parts[0])
		parts = append(parts, text)
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%s known: ", count(len(s.nodes), "node"))
	if shared {
		out.WriteString(parts[0])
	} else {
		const shown = 4
		for c, text := range parts[:min(len(parts), shown)] {
			if c > 0 {
				out.WriteString("; ")
			}
			fmt.Fprintf(&out, "for %s %s", s.taskList(c), text)
		}
		if len(parts) > shown {
			fmt.Fprintf(&out, "; and so on for %d more kinds of process", len(parts)-shown)
		}
	}
	switch {
	case now < processes:
		fmt.Fprintf(&out, "; together they have room for %s of the %s now", orNone(now), plural(processes, "process", "processes"))
	case usable < least:
		fmt.Fprintf(&out, "; %s a process now, but the policy wants at least %d nodes", takes(usable), least)
	default:
		fmt.Fprintf(&out, "; no way was found to put %s on at least %s", plural(processes, "process", "processes"), count(least, "node"))
	}
	switch {
	case ever < processes:
		fmt.Fprintf(&out, ", and for %s if all were empty: it never fits these nodes", orNone(ever))
		return out.String(), true
	case usableEver < least:
		fmt.Fprintf(&out, ", and %s would if all were empty: it never fits these nodes", orNone(usableEver))
		return out.String(), true
	case now < processes || usable < least:
		out.WriteString("; it waits for room")
	}
	return out.String(), false
}

// usable is how many nodes could take some process.
func (s *supply) usable() int {
	usable := 0
	for i := range s.nodes {
		if s.capacity(i) > 0 {
			usable++
		}
	}
	return usable
}

// steps counts the nodes by what they lack for a class, in the order of the
// nodes.
func (s *supply) steps(class int) string {
	var order []phrase
	counts := map[phrase]int{}
	for i := range s.nodes {
		p := s.barred[class][i]
		if p == (phrase{}) {
			p = s.full(class, i)
		}
		if p == (phrase{}) {
			p = s.some(class, i)
		}
		if counts[p]++; counts[p] == 1 {
			order = append(order, p)
		}
	}
	var out []string
	const shown = 6
	for i, p := range order {
		if i == shown && len(order) > shown+1 {
			rest := 0
			for _, p := range order[i:] {
				rest += counts[p]
			}
			out = append(out, fmt.Sprintf("%d for other reasons", rest))
			break
		}
		out = append(out, fmt.Sprintf("%d %s", counts[p], p.of(counts[p])))
	}
	return strings.Join(out, ", ")
}

// some is what a node has that takes some processes of a class.
func (s *supply) some(class, node int) phrase {
	room := s.free[node].times(s.classes[class].need)
	if room == s.free[node].slots {
		return phrase{"have", count(room, "free slot")}
	}
	return phrase{"have", fmt.Sprintf("room for %d", room)}
}

// taskList names the tasks of a class.
func (s *supply) taskList(class int) string {
	var names []string
	const shown = 3
	for i, t := range s.classes[class].tasks {
		if i == shown {
			names = append(names, "...")
			break
		}
		names = append(names, s.job.Tasks[t].Name)
	}
	return strings.Join(names, ", ")
}

func takes(nodes int) string {
	if nodes == 1 {
		return "1 node takes"
	}
	return fmt.Sprintf("%d nodes take", nodes)
}

func orNone(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}

func count(n int, what string) string { return plural(n, what, what+"s") }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
