package place

import (
	"fmt"
	"slices"
	"strconv"

	"mvm/broker/profile"
)

// room is an amount of what a node has and processes take.
type room struct {
	slots  int
	cores  int
	memory int64
}

func (r *room) take(n room) {
	r.slots -= n.slots
	r.cores -= n.cores
	r.memory -= n.memory
}

func (r *room) give(n room) {
	r.slots += n.slots
	r.cores += n.cores
	r.memory += n.memory
}

func (r room) fits(n room) bool {
	return r.slots >= n.slots && r.cores >= n.cores && r.memory >= n.memory
}

func (r room) broken() bool { return r.slots < 0 || r.cores < 0 || r.memory < 0 }

// times is how many of n fit.
func (r room) times(n room) int {
	times := max(r.slots, 0)
	if n.cores > 0 {
		times = min(times, max(r.cores, 0)/n.cores)
	}
	if n.memory > 0 {
		times = min(times, int(min(max(r.memory, 0)/n.memory, 1<<30)))
	}
	return times
}

// class is processes that are alike to a node.
type class struct {
	need     room
	require  []profile.Requirement
	language string
	queues   []profile.Need // of the queues that its processes may keep
	logic    []string       // languages of what is registered for these
	size     int
	tasks    []int // in job.Tasks
}

// demand is what the job asks for.
type demand struct {
	job     *profile.Job
	classes []class
	of      []int32 // by process ID: its class
}

func newDemand(job *profile.Job, nodes []Node) *demand {
	queues, logic := keeps(job, nodes)
	d := &demand{job: job, of: make([]int32, len(job.Processes))}
	languages := map[string]string{}
	for _, source := range job.Sources {
		languages[source.Name] = source.Language
	}
	known := map[string]int32{}
	share := vmShare(job.VM)
	for t, task := range job.Tasks {
		first := &job.Processes[task.First]
		language := languages[task.Source]
		key := fmt.Sprintf("%s %d %d", language, first.Need.Cores, first.Need.MemoryMiB)
		for _, r := range first.Need.Require {
			key += fmt.Sprintf(" %s %q %d", r.Property, r.Equals, r.Minimum)
		}
		key += fmt.Sprint(queues[t], logic[t])
		c, seen := known[key]
		if !seen {
			c = int32(len(d.classes))
			known[key] = c
			d.classes = append(d.classes, class{
				need:    room{slots: 1, cores: first.Need.Cores, memory: first.Need.MemoryMiB + share},
				require: first.Need.Require, language: language, queues: queues[t], logic: logic[t],
			})
		}
		d.classes[c].size += task.Count
		d.classes[c].tasks = append(d.classes[c].tasks, t)
		for p := task.First; p < task.First+task.Count; p++ {
			d.of[p] = c
		}
	}
	return d
}

// vmShare is what each process takes of its VM's memory where several are in one, and
// a node may have several: n processes have at most as many VMs as their shares and
// the rest of one pay for.
func vmShare(vm *profile.VM) int64 {
	if vm == nil || vm.Most == 0 {
		return 0
	}
	return (vm.MemoryMiB + int64(vm.Most) - 1) / int64(vm.Most)
}

// keeps is, by task, what the queues need that a node of its processes may have to
// keep: any end of a queue may be on the node that keeps it. What no node limits is
// left out.
func keeps(job *profile.Job, nodes []Node) (queues map[int][]profile.Need, logic map[int][]string) {
	limits := slices.ContainsFunc(nodes, func(n Node) bool { return len(n.Queues) > 0 })
	languages := map[string]string{}
	for _, source := range job.Sources {
		languages[source.Name] = source.Language
	}
	queues, logic = map[int][]profile.Need{}, map[int][]string{}
	ends := job.QueueEnds()
	for id := range job.Queues {
		q := &job.Queues[id]
		for t, task := range job.Tasks {
			keeper := len(ends[id]) == 0 || slices.ContainsFunc(ends[id], func(p int) bool { return p >= task.First && p < task.First+task.Count })
			if !keeper {
				continue
			}
			for _, need := range q.Needs() {
				if limits && !slices.Contains(queues[t], need) {
					queues[t] = append(queues[t], need)
				}
			}
			for _, program := range q.Programs() {
				if language := languages[program]; !slices.Contains(logic[t], language) {
					logic[t] = append(logic[t], language)
				}
			}
		}
	}
	return queues, logic
}

// supply is what the nodes have, now or empty.
type supply struct {
	*demand
	nodes  []Node
	free   []room
	vm     int64      // MiB that are left out of a node's free ones, for the VM that the first process there needs
	barred [][]phrase // by class and node: why it cannot go there, however much room there is; zero = it can
}

func newSupply(d *demand, nodes []Node, empty bool) *supply {
	s := &supply{demand: d, nodes: nodes, free: make([]room, len(nodes)), barred: make([][]phrase, len(d.classes))}
	if vm := d.job.VM; vm != nil {
		s.vm = vm.MemoryMiB - vmShare(vm)
	}
	for i := range nodes {
		n := &nodes[i]
		switch {
		case empty:
			s.free[i] = room{n.Slots, n.Cores, n.MemoryMiB}
		case n.Shunned == "":
			s.free[i] = room{n.FreeSlots, n.FreeCores, n.FreeMemoryMiB}
		}
		s.free[i].memory -= s.vm
	}
	for c := range d.classes {
		s.barred[c] = make([]phrase, len(nodes))
		for i, n := range nodes {
			if empty {
				n.FreeDiskMiB = nil // what fills it may go
			}
			s.barred[c][i] = bar(&d.classes[c], &n, d.job.VM)
		}
	}
	return s
}

func (s *supply) may(c int32, node int) bool { return s.barred[c][node] == phrase{} }

// phrase is a reason that goes on from a node's name or a number of nodes.
type phrase struct{ verb, rest string }

func (p phrase) of(nodes int) string {
	verb := p.verb
	if nodes == 1 {
		switch verb {
		case "have":
			verb = "has"
		case "are":
			verb = "is"
		default:
			verb += "s"
		}
	}
	return verb + " " + p.rest
}

// lacking is what a node lacks that cannot build or run a language.
func lacking(language string) string {
	switch language {
	case "c":
		return "a C compiler"
	case "cpp":
		return "a C++ compiler"
	case "go":
		return "a Go compiler"
	case "python":
		return "Python"
	case "shell":
		return "a shell"
	}
	return "a compiler for " + language
}

// limited is what a node's own file does not allow.
func limited(need profile.Need) string {
	switch need.Kind {
	case profile.NeedsRegistered:
		return "registered codec " + need.Name
	case profile.NeedsRule:
		return "registered rule " + need.Name
	}
	return need.Kind + " " + need.Name
}

// bar is what keeps processes of a class from running on a node, whatever others do
// there; only its disk may be another one later. What is in its VMs the image decides.
func bar(c *class, n *Node, vm *profile.VM) phrase {
	compilers := n.Compilers
	if vm != nil {
		if n.Accelerator == "" {
			return phrase{"have", "no OS-level VMs"}
		}
		if p := exceeds(vm.Limits, n.VMs); p != (phrase{}) {
			return p
		}
		// Its memory may come to be a file, and its limit is what it may write.
		if need := vm.MemoryMiB + vm.Limits.DiskMiB; n.FreeDiskMiB != nil && *n.FreeDiskMiB < need {
			return phrase{"have", fmt.Sprintf("%d MiB of disk free, fewer than the %d that a VM may fill", *n.FreeDiskMiB, need)}
		}
		compilers = vm.Languages
	}
	if c.language != "" && !slices.Contains(compilers, c.language) {
		return phrase{"lack", lacking(c.language)}
	}
	for _, language := range c.logic {
		if !slices.Contains(compilers, language) {
			return phrase{"lack", lacking(language) + " for what is registered"}
		}
	}
	for _, need := range c.queues {
		if allowed, limits := n.Queues[need.Kind]; limits && !slices.Contains(allowed, need.Name) {
			return phrase{"keep", "no queue with the " + limited(need)}
		}
	}
	for _, r := range c.require {
		if p := miss(r, n); p != (phrase{}) {
			return p
		}
	}
	return phrase{}
}

// exceeds is how a VM would have more than a node lets one have.
func exceeds(want, most profile.VMLimits) phrase {
	for _, l := range []struct {
		want, most int64
		what       string
	}{
		{want.CPUPercent, most.CPUPercent, "%% of a core"}, {want.DiskMiB, most.DiskMiB, "MiB of disk"},
		{want.DiskRate, most.DiskRate, "KiB a second from and to its disk"}, {want.NetworkRate, most.NetworkRate, "KiB a second over the network"},
	} {
		if l.most > 0 && l.want > l.most {
			return phrase{"let", fmt.Sprintf("a VM have %d "+l.what+" at most, fewer than %d", l.most, l.want)}
		}
	}
	return phrase{}
}

// miss is how a node misses a requirement.
func miss(r profile.Requirement, n *Node) phrase {
	text := func(verb, what, has string) phrase {
		if has == r.Equals {
			return phrase{}
		}
		return phrase{verb, fmt.Sprintf("%s%s, not %s", what, orUnknown(has), r.Equals)}
	}
	number := func(what string, has int64) phrase {
		if r.Equals == "" {
			if has >= r.Minimum {
				return phrase{}
			}
			return phrase{"have", fmt.Sprintf("%d %s, fewer than %d", has, what, r.Minimum)}
		}
		if wanted, err := strconv.ParseInt(r.Equals, 10, 64); err == nil && wanted == has {
			return phrase{}
		}
		return phrase{"have", fmt.Sprintf("%d %s, not %s", has, what, r.Equals)}
	}
	switch r.Property {
	case "name":
		if n.Name == r.Equals {
			return phrase{}
		}
		return phrase{"are", "not named " + r.Equals}
	case "os":
		return text("run", "", n.OS)
	case "arch":
		return text("have", "the architecture ", n.Arch)
	case "cleaning":
		return text("clean", "by ", n.Cleaning)
	case "qemu":
		switch {
		case n.QEMU == (r.Equals == "true"):
			return phrase{}
		case n.QEMU:
			return phrase{"have", "QEMU"}
		}
		return phrase{"lack", "QEMU"}
	case "compiler":
		if slices.Contains(n.Compilers, r.Equals) {
			return phrase{}
		}
		return phrase{"lack", lacking(r.Equals)}
	case "cores":
		return number("cores", int64(n.Cores))
	case "disk":
		if n.FreeDiskMiB == nil {
			return phrase{}
		}
		return number("MiB of disk free", *n.FreeDiskMiB)
	case "slots":
		return number("slots", int64(n.Slots))
	case "memory":
		return number("MiB of memory", n.MemoryMiB)
	}
	return phrase{"lack", "the property " + r.Property}
}

func orUnknown(text string) string {
	if text == "" {
		return "something unknown"
	}
	return text
}
