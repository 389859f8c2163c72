package profile

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strconv"
	"strings"

	"mvm/wsdl"
)

// origin is the element that made the channels from first on.
type origin struct {
	first int
	at    place
}

// maxTopologies bounds the topologies of one job.
const maxTopologies = 1000

// wirer lays channels between the processes of one compilation.
type wirer struct {
	*compiler
	origins []origin
	graphs  int // bytes of graphs read so far
}

func (c *compiler) wire(at place, job *wsdl.Job) {
	w := &wirer{compiler: c}
	for i, topology := range job.Topology {
		here := at.nth("topology", i)
		if i == maxTopologies {
			c.add(here, fmt.Sprint(len(job.Topology)), fmt.Sprintf("at most %d topologies", maxTopologies), "the job has %d topologies, expected at most %d", len(job.Topology), maxTopologies)
			break
		}
		if topology == nil {
			c.add(here, "nothing", "a topology", "topology %d is empty", i+1)
			continue
		}
		w.origins = append(w.origins, origin{len(c.out.Channels), here})
		w.lay(here, w.mergeTopology(here, c.scope, topology, 0))
	}
	outside := map[string]bool{}
	for i, edge := range job.Edge {
		here := at.nth("edge", i)
		if edge == nil {
			c.add(here, "nothing", "an edge", "edge %d is empty", i+1)
			continue
		}
		w.origins = append(w.origins, origin{len(c.out.Channels), here})
		w.layEdge(here, i, edge, outside)
	}
	w.settleQueues()
	w.bind()
}

// afford reports whether so many more channels fit into the bound.
func (w *wirer) afford(at place, more int64, what string) bool {
	total := int64(len(w.out.Channels)) + more
	if total > MaxChannels {
		w.add(at, fmt.Sprint(total), fmt.Sprintf("at most %d channels", MaxChannels),
			"with %s the job has %d channels, expected at most %d", what, total, MaxChannels)
		return false
	}
	return true
}

func (w *wirer) channel(from, to End, capacity int) {
	w.out.Channels = append(w.out.Channels, Channel{ID: len(w.out.Channels), From: from, To: to, Capacity: capacity})
}

// lay puts a topology's channels between the processes that it is over.
func (w *wirer) lay(at place, spec topologySpec) {
	members, tasks, ok := w.members(spec)
	pattern := string(spec.kind)
	what := fmt.Sprintf("the %s", pattern)
	if spec.kind == "" {
		if !spec.refused {
			w.add(at.attribute("kind"), "nothing", "a kind of topology, or the profile of a registered one", "the topology has neither a kind nor the profile of a registered one")
		}
		return
	}
	if !slices.Contains(kinds, spec.kind) {
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = string(k)
		}
		w.add(at.attribute("kind"), pattern, strings.Join(names, ", "), "there is no topology of kind %s%s", quote(pattern), w.nearest(pattern, slices.Values(names)))
		return
	}
	direction := spec.direction
	if direction != "" && direction != wsdl.DirectionBoth && direction != wsdl.DirectionForward {
		w.add(at.attribute("direction"), string(direction), "both or forward", "%s has the direction %s, expected both or forward", what, quote(string(direction)))
		ok = false
	}
	prefix := spec.prefix.text
	if spec.prefix.bad {
		ok = false
	} else if spec.prefix.set && (!isName(prefix) || len(prefix) > 40) {
		w.add(spec.prefix.at, prefix, "a letter, then up to 39 letters, digits, '_', '.' or '-'", "%s has the prefix %s, expected a letter, then up to 39 letters, digits, '_', '.' or '-'", what, quote(prefix))
		ok = false
	}
	kind := w.kindOf(spec.queue, what)
	w.irrelevant(spec)
	if kind.shared() && spec.kind != wsdl.TopologyKindFarm {
		w.add(spec.queue.at, spec.queue.text, "a farm, or edges to and from "+quote("queue:"+spec.queue.text),
			"%s has queues of type %s, which many share: only a farm has a place for one; for others write edges to and from %s", what, kind.kind, quote("queue:"+spec.queue.text))
		ok = false
	}
	if !ok {
		return
	}
	layout := Topology{Kind: pattern, Prefix: prefix, Members: members, Columns: 1, Rows: 1, Layers: 1, First: len(w.out.Channels)}
	p, ok := w.pattern(at, spec, &layout, tasks)
	if !ok {
		return
	}
	most := p.links
	if kind.shared() {
		most = int64(len(members))
	} else if kind.served() || spec.link != nil {
		most *= 2
	}
	if direction != wsdl.DirectionForward {
		most *= 2
	}
	if !w.afford(at, most, what) {
		return
	}
	if kind.shared() {
		w.layFarm(kind, spec.link, members[:layout.Masters], members[layout.Masters:], prefix, direction == wsdl.DirectionForward)
		layout.Length = len(w.out.Channels) - layout.First
		w.out.Topologies = append(w.out.Topologies, layout)
		return
	}
	w.out.Channels = slices.Grow(w.out.Channels, int(most))
	p.each(func(l link) {
		a := End{Process: members[l.from], Port: l.fromPort}
		b := End{Process: members[l.to], Port: l.toPort}
		way := l.way
		if way == asTopology && direction == wsdl.DirectionForward {
			way = forward
		}
		if way != backward {
			w.join(a, b, kind, spec.link)
		}
		if way != forward {
			w.join(b, a, kind, spec.link)
		}
	})
	layout.Length = len(w.out.Channels) - layout.First
	w.out.Topologies = append(w.out.Topologies, layout)
}

// members numbers the processes of the tasks that a topology is over. tasks
// holds their counts in that order.
func (w *wirer) members(spec topologySpec) (members, tasks []int, ok bool) {
	ok = !spec.over.bad
	names := strings.Fields(spec.over.text)
	if !spec.over.set {
		for i := range w.out.Tasks {
			names = append(names, w.out.Tasks[i].Name)
		}
	}
	seen := map[string]bool{}
	for _, name := range names {
		i, known := w.tasks[name]
		if !known {
			if spec.over.set {
				w.add(spec.over.at, name, "names of tasks of this job", "the topology is over the task %s, which the job does not have%s", quote(name), w.nearest(name, maps.Keys(w.tasks)))
			}
			ok = false
			continue
		}
		if seen[name] {
			w.add(spec.over.at, name, "each task once", "the topology is over the task %s twice", quote(name))
			ok = false
			continue
		}
		seen[name] = true
		task := w.out.Tasks[i]
		tasks = append(tasks, task.Count)
		for p := range task.Count {
			members = append(members, task.First+p)
		}
	}
	return members, tasks, ok
}

// layEdge adds what one edge spells out: a channel; two, with a queue between; or
// a channel for each process of a task, to or from a queue.
func (w *wirer) layEdge(at place, i int, edge *wsdl.Edge, outside map[string]bool) {
	what := fmt.Sprintf("edge %d", i+1)
	link := w.link(at.child("link"), w.scope, edge.Link, what)
	name := w.textField(at, w.scope, "queue", edge.Queue)
	kind := w.kindOf(name, what)
	from, okFrom := w.end(w.textField(at, w.scope, "from", edge.From), what, outside)
	to, okTo := w.end(w.textField(at, w.scope, "to", edge.To), what, outside)
	if !okFrom || !okTo {
		return
	}
	named := from.kind
	if named == nil {
		named = to.kind
	}
	if edge.Direct {
		if kind.served() || named != nil {
			w.add(at.attribute("direct"), "true", "no direct, or a plain fifo", "%s is direct, but leads through a queue that is served at a home: nothing is between the two ends of a direct channel", what)
			return
		}
		if link != nil {
			w.add(at.attribute("direct"), "true", "no direct, or no link", "%s is direct and has a link: nothing is between the two ends of a direct channel that could impose one", what)
			return
		}
		if from.Outside != "" || to.Outside != "" {
			w.add(at.attribute("direct"), "true", "no direct, or two processes", "%s is direct and leads outside: a direct channel is a socket of two processes of the job", what)
			return
		}
	}
	switch {
	case from.kind != nil && to.kind != nil:
		w.add(at, edge.From+" to "+edge.To, "a queue at one end at most", "%s leads from a queue to a queue, expected a process or outside at one end", what)
		return
	case from.Outside != "" && to.Outside != "":
		w.add(at, edge.From+" to "+edge.To, "a process at one end at least", "%s leads from outside to outside, expected a process at one end at least", what)
		return
	case named != nil && name.set:
		w.add(name.at, name.text, "nothing here", "%s names a queue at its end and another between its ends, expected one of them", what)
		return
	case named != nil && link != nil:
		w.add(at.child("link"), "link", "nothing here", "%s has a link, but an end at the queue %s, which others share: a link is imposed between two ends that an edge joins, or by a farm's topology on all", what, quote(named.name))
		return
	case named == nil && (from.count > 1 || to.count > 1):
		w.add(at, edge.From+" to "+edge.To, "task[index]", "%s is of all processes of a task, which only an edge to or from %s can be: give it an index", what, quote("queue:name"))
		return
	case kind.shared():
		w.add(name.at, name.text, "edges to and from "+quote("queue:"+name.text), "%s has a queue of type %s, which many share: write edges to and from %s", what, kind.kind, quote("queue:"+name.text))
		return
	}
	more := int64(max(from.count, to.count))
	if kind.served() || link != nil {
		more++
	}
	if !w.afford(at, more, what) {
		return
	}
	switch {
	case from.kind != nil:
		for k := range to.count {
			w.taker(named, to.nth(k))
		}
	case to.kind != nil:
		for k := range from.count {
			w.producer(named, from.nth(k))
		}
	default:
		w.join(from.End, to.End, kind, link)
		w.out.Channels[len(w.out.Channels)-1].Direct = edge.Direct
	}
}

// edgeEnd is an end of an edge: one End, those of count processes from it on, or
// a queue that is named.
type edgeEnd struct {
	End
	count int
	kind  *queueKind
}

func (e edgeEnd) nth(k int) End {
	if e.Process >= 0 {
		e.Process += k
	}
	return e.End
}

const endRule = "task:port, task[index]:port, task[*]:port, queue:name or outside:name"

// end reads one end of an edge.
func (w *wirer) end(f field, what string, outside map[string]bool) (edgeEnd, bool) {
	if f.bad {
		return edgeEnd{}, false
	}
	refuse := func(format string, args ...any) (edgeEnd, bool) {
		w.add(f.at, f.text, endRule, "%s has the end %s: %s", what, quote(f.text), fmt.Sprintf(format, args...))
		return edgeEnd{}, false
	}
	name, port, ok := strings.Cut(f.text, ":")
	if !ok {
		return refuse("expected %s", endRule)
	}
	if !isName(port) {
		return refuse("%s is not a name: write %s", quote(port), nameRule)
	}
	switch name {
	case "outside":
		if outside[port] {
			return refuse("another edge already leads to the outside queue %q; each needs a name of its own", port)
		}
		outside[port] = true
		return edgeEnd{End{Process: -1, Outside: port}, 1, nil}, true
	case "queue":
		kind := w.queues[port]
		if kind == nil || port == "fifo" {
			return refuse("the job has no queue %s%s", quote(port), w.nearest(port, maps.Keys(w.queues)))
		}
		return edgeEnd{End{Process: -1}, 1, kind}, true
	}
	index, all := 0, false
	if task, rest, indexed := strings.Cut(name, "["); indexed {
		number, closed := strings.CutSuffix(rest, "]")
		all = number == "*"
		if !closed || !all && (!digits(number) || len(number) > 9) {
			return refuse("expected %s", endRule)
		}
		name = task
		if !all {
			index, _ = strconv.Atoi(number)
		}
	}
	i, known := w.tasks[name]
	if !known {
		return refuse("the job has no task %s%s", quote(name), w.nearest(name, maps.Keys(w.tasks)))
	}
	task := w.out.Tasks[i]
	if index >= task.Count {
		return refuse("the task %q has %d processes, so its index goes from 0 to %d", name, task.Count, task.Count-1)
	}
	e := edgeEnd{End{Process: task.First + index, Port: port}, 1, nil}
	if all {
		e.count = task.Count
	}
	return e, true
}

// bind gives each process the list of its ports and refuses a port that would
// enqueue to, or dequeue from, two channels.
func (w *wirer) bind() {
	type use struct {
		port    string
		channel int32
		out     bool
	}
	starts := make([]int, len(w.out.Processes)+1)
	count := func(e End) {
		if e.Process >= 0 {
			starts[e.Process+1]++
		}
	}
	for i := range w.out.Channels {
		count(w.out.Channels[i].From)
		count(w.out.Channels[i].To)
	}
	for i := range w.out.Processes {
		starts[i+1] += starts[i]
	}
	uses := make([]use, starts[len(starts)-1])
	next := slices.Clone(starts)
	put := func(e End, channel int, out bool) {
		if e.Process >= 0 {
			uses[next[e.Process]] = use{e.Port, int32(channel), out}
			next[e.Process]++
		}
	}
	for i := range w.out.Channels {
		put(w.out.Channels[i].From, i, true)
		put(w.out.Channels[i].To, i, false)
	}
	names := make([]string, 0, len(uses))
	for i := range w.out.Processes {
		process := &w.out.Processes[i]
		mine := uses[starts[i]:starts[i+1]]
		order := func(a, b use) int {
			if a.port == b.port {
				if a.out != b.out {
					if a.out {
						return -1
					}
					return 1
				}
				return int(a.channel - b.channel)
			}
			return before(a.port, b.port)
		}
		slices.SortFunc(mine, order)
		from := len(names)
		for j, u := range mine {
			if j == 0 || u.port != mine[j-1].port {
				names = append(names, u.port)
				continue
			}
			if before := mine[j-1]; before.out == u.out {
				way := "dequeue from"
				if u.out {
					way = "enqueue to"
				}
				at, first := w.originOf(int(u.channel)), w.originOf(int(before.channel))
				by := "by " + first.path + " and " + at.path
				if first.path == at.path {
					by = "by " + at.path + " alone"
				}
				w.add(at, u.port, "a port that is bound once each way", "the port %q of %s would %s two channels, bound %s; give one topology a prefix or the edge another port", u.port, process.Label(), way, by)
			}
		}
		process.Ports = names[from:len(names):len(names)]
	}
}

// originOf is the element that made a channel.
func (w *wirer) originOf(channel int) place {
	i := sort.Search(len(w.origins), func(i int) bool { return w.origins[i].first > channel })
	return w.origins[i-1].at
}
