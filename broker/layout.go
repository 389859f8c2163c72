package broker

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"mvm/broker/profile"
	"mvm/queuevm/codec"
	"mvm/wsdl"
)

// layout is one attempt's plan as messages need it: which channels each member
// holds an end of, and with whom.
type layout struct {
	job      *profile.Job
	members  []member // as they were placed
	base     string   // this node's address
	node     []int    // process -> member
	homes    []int    // served queue, by its ID less 1 -> member
	channels [][]int  // member -> ids of its channels, ascending
	peers    [][]int  // member -> members that it shares a channel with, ascending
	proxy    []bool   // member -> an edge leaves it, or comes from outside
}

func newLayout(j *profile.Job, members []member, base string) *layout {
	y := &layout{
		job: j, members: slices.Clone(members), base: base,
		node:     make([]int, len(j.Processes)),
		channels: make([][]int, len(members)),
		peers:    make([][]int, len(members)),
		proxy:    make([]bool, len(members)),
	}
	for i, m := range members {
		for _, p := range m.Processes {
			y.node[p] = i
		}
	}
	for _, ends := range queueEnds(j) {
		y.homes = append(y.homes, homeOf(ends, func(process int) int { return y.node[process] }))
	}
	together := map[[2]int]bool{}
	for i := range j.Channels {
		c := &j.Channels[i]
		from, to := y.holder(c.From, c.To), y.holder(c.To, c.From)
		y.channels[from] = append(y.channels[from], c.ID)
		switch {
		case from != to:
			y.channels[to] = append(y.channels[to], c.ID)
			y.proxy[from], y.proxy[to] = true, true
			together[[2]int{min(from, to), max(from, to)}] = true
		case c.From.Outside != "" || c.To.Outside != "":
			y.proxy[from] = true
		}
	}
	if len(members) > 1 && len(j.Channels) > 0 {
		for i := range y.proxy { // a live change may lead an edge anywhere
			y.proxy[i] = true
		}
	}
	for pair := range together {
		y.peers[pair[0]] = append(y.peers[pair[0]], pair[1])
		y.peers[pair[1]] = append(y.peers[pair[1]], pair[0])
	}
	for _, p := range y.peers {
		slices.Sort(p)
	}
	return y
}

// holder is the member that serves an end: an end outside the job is served
// where the other end is, a queue at its home.
func (y *layout) holder(end, other profile.End) int {
	switch {
	case end.Queue > 0:
		return y.homes[end.Queue-1]
	case end.Outside != "":
		return y.holder(other, end)
	}
	return y.node[end.Process]
}

// queueEnds are the processes that decide where each served queue's home is: its
// ends, or all of the job where every end is outside.
func queueEnds(j *profile.Job) [][]int {
	ends := j.QueueEnds()
	for q := range ends {
		if len(ends[q]) == 0 {
			for process := range j.Processes {
				ends[q] = append(ends[q], process)
			}
		}
	}
	return ends
}

// homeOf is where a queue is served: where most of its ends are, so that most of
// them need no proxy; of several such places the first.
func homeOf[Place cmp.Ordered](ends []int, place func(process int) Place) Place {
	count := map[Place]int{}
	for _, process := range ends {
		count[place(process)]++
	}
	return slices.MinFunc(slices.Collect(maps.Keys(count)), func(a, b Place) int {
		return cmp.Or(cmp.Compare(count[b], count[a]), cmp.Compare(a, b))
	})
}

func (y *layout) fence(job string, number, i int) *wsdl.Attempt {
	return fence(job, number, &y.members[i])
}

// fence is what every call about an attempt carries.
func fence(job string, number int, m *member) *wsdl.Attempt {
	return &wsdl.Attempt{Job: m.job(job), Number: int32(number), Node: m.Node, Incarnation: m.Incarnation}
}

// awaken is the message that member i is awakened with.
func (y *layout) awaken(job string, number, i int) *wsdl.Awaken {
	m := &y.members[i]
	request := &wsdl.Awaken{
		Attempt: y.fence(job, number, i),
		Broker:  y.base + "/services/broker",
		Image:   []string{y.base},
		Slots:   int32(m.Slots),
		Memory:  m.Memory,
		Cores:   int32(m.Cores),
		Proxy:   wsdl.Of(y.proxy[i]),
	}
	if vm := y.job.VM; vm != nil {
		request.Vm = &wsdl.Enclosure{Image: vm.Blobs[0], Name: vm.Name, Memory: m.Memory, Network: y.network(i)}
		if l := vm.Limits; l != (profile.VMLimits{}) {
			request.Vm.Limits = &wsdl.VMLimits{CpuPercent: int32(l.CPUPercent), Disk: l.DiskMiB, DiskRate: l.DiskRate, NetworkRate: l.NetworkRate}
		}
		if m.Part > 0 {
			request.Vm.Peer = m.peer()
		}
	}
	if m.Restore != "" {
		request.Restore = m.Restore // which has all that is made of sources and inputs
		return request
	}
	sources, inputs := map[string]bool{}, map[profile.File]bool{}
	for _, id := range m.Processes {
		p := &y.job.Processes[id]
		sources[p.Source] = true
		for _, f := range p.Inputs {
			if !inputs[f] {
				inputs[f] = true
				request.File = append(request.File, &wsdl.FileRef{Name: f.Name, Digest: f.Digest})
			}
		}
	}
	request.QueueLimits = y.wants(i)
	for id := range y.job.Queues {
		if y.homes[id] == i {
			for _, name := range y.job.Queues[id].Programs() {
				sources[name] = true
			}
		}
	}
	for _, s := range y.job.Sources {
		if sources[s.Name] {
			request.Build = append(request.Build, buildOf(s))
		}
	}
	return request
}

// network is what the VM of member i is told of the network that joins the job's,
// nil where none does.
func (y *layout) network(i int) *wsdl.VMNetwork {
	if !y.job.VM.Network {
		return nil
	}
	network := &wsdl.VMNetwork{Index: wsdl.Of(int32(i))}
	for _, m := range y.members {
		var names []string
		for _, id := range m.Processes {
			p := &y.job.Processes[id]
			names = append(names, fmt.Sprintf("%s-%d", p.Task, p.Index))
			if p.Count == 1 {
				names = append(names, p.Task)
			}
		}
		network.Vm = append(network.Vm, strings.Join(names, " "))
	}
	return network
}

// wants is what the queues and channels that member i keeps ask of it, nil where
// there are none.
func (y *layout) wants(i int) *wsdl.QueueLimits {
	if len(y.channels[i]) == 0 {
		return nil
	}
	return wants(i, y.job.Channels, y.channels[i], y.job.Queues, y.homes)
}

// wants is what some of the channels, and the queues that member i keeps, ask of it.
func wants(i int, all []profile.Channel, channels []int, queues []profile.Queue, homes []int) *wsdl.QueueLimits {
	w := &wsdl.QueueLimits{Channels: int32(len(channels))}
	bytes := int64(0)
	for _, id := range channels {
		bytes += int64(all[id].Capacity)
	}
	words := map[string]map[string]bool{}
	for id := range queues {
		if q := &queues[id]; homes[id] == i && q.Name != "" {
			w.Queues++
			bytes += int64(q.Capacity)
			for _, need := range q.Needs() {
				if words[need.Kind] == nil {
					words[need.Kind] = map[string]bool{}
				}
				words[need.Kind][need.Name] = true
			}
		}
	}
	list := func(kind string) string { return strings.Join(slices.Sorted(maps.Keys(words[kind])), " ") }
	w.Types, w.Codecs = list(profile.NeedsType), list(profile.NeedsCodec)
	w.Registered, w.Rules = list(profile.NeedsRegistered), list(profile.NeedsRule)
	w.Memory = (bytes + 1<<20 - 1) >> 20
	return w
}

// buildOf is what a node is told of a source that it builds.
func buildOf(s profile.Source) *wsdl.Build {
	build := &wsdl.Build{Source: s.Name, Language: wsdl.Of(wsdl.Language(s.Language)), Flag: s.Flags}
	for _, f := range s.Files {
		build.File = append(build.File, &wsdl.FileRef{Name: f.Name, Digest: f.Digest})
	}
	return build
}

// encodersOf is a queue's chain as nodes are told it: every version named.
func encodersOf(steps []codec.Step) (encoders []*wsdl.Encoder) {
	for _, s := range steps {
		e := &wsdl.Encoder{Decode: s.Decode, Type: s.Type}
		if name, version, ok := strings.Cut(s.Program, "@"); ok {
			e.Registered, e.Version = name, wsdl.Of(wsdl.Number(version))
		} else {
			e.Codec = wsdl.Of(wsdl.Codec(s.Codec))
		}
		encoders = append(encoders, e)
	}
	return encoders
}

// instantiate is the job instantiation message for member i (paper, section 4
// f): its processes, the ends of its channels, and the proxies of its peers.
func (y *layout) instantiate(job string, number, i int, proxies []proxyRecord) *wsdl.Instantiate {
	m := &y.members[i]
	request := &wsdl.Instantiate{
		Attempt:         y.fence(job, number, i),
		WallTimeSeconds: int64((y.job.WallTime + time.Second - 1) / time.Second),
	}
	for _, id := range m.Processes {
		p := &y.job.Processes[id]
		spec := &wsdl.ProcessSpec{
			Id: wsdl.Of(int32(p.ID)), Task: p.Task, Index: wsdl.Of(int32(p.Index)), Count: int32(p.Count),
			Source: p.Source, Argument: p.Arguments, Memory: p.Need.MemoryMiB, Cores: int32(p.Need.Cores),
		}
		for _, v := range p.Environment {
			spec.Environment = append(spec.Environment, &wsdl.Assignment{Name: v.Name, Value: v.Value})
		}
		for _, f := range p.Inputs {
			spec.Input = append(spec.Input, &wsdl.FileRef{Name: f.Name, Digest: f.Digest})
		}
		for _, o := range p.Outputs {
			spec.Output = append(spec.Output, &wsdl.OutputFile{Name: o.Name, Optional: o.Optional})
		}
		request.Process = append(request.Process, spec)
	}
	queues := map[int]bool{}
	for _, id := range y.channels[i] {
		c := &y.job.Channels[id]
		channel := &wsdl.Channel{
			Id: wsdl.Of(int32(c.ID)), Capacity: int32(c.Capacity),
			From: y.end(i, c.From, c.To), To: y.end(i, c.To, c.From), Direct: c.Direct,
		}
		if q := c.To.Queue; q > 0 && (len(y.job.Queues[q-1].Steps) > 0 || y.job.Queues[q-1].Rule != "") {
			channel.Label = y.label(c.From)
		}
		request.Channel = append(request.Channel, channel)
		if q := c.From.Queue + c.To.Queue; q > 0 {
			queues[q] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(queues)) {
		q := &y.job.Queues[id-1]
		request.Queue = append(request.Queue, served(q))
	}
	for _, peer := range y.peers[i] {
		request.Peer = append(request.Peer, &wsdl.Peer{Node: y.members[peer].peer(), Address: proxies[peer].Address, Fingerprint: proxies[peer].Fingerprint, Former: y.members[peer].Former})
	}
	for other := range y.members {
		if p := proxies[other]; other != i && p.Trunk != "" {
			request.Trunk = append(request.Trunk, &wsdl.Peer{Node: y.members[other].Node, Address: p.Trunk, Fingerprint: p.TrunkKey})
		}
	}
	return request
}

// served is a served queue as messages carry it.
func served(q *profile.Queue) *wsdl.ServedQueue {
	s := &wsdl.ServedQueue{
		Id: int32(q.ID), Name: q.Name, Type_: wsdl.Of(wsdl.QueueType(q.Type)), Full: wsdl.Of(wsdl.FullPolicy(q.Full)), Capacity: int32(q.Capacity),
		Encoder: encodersOf(q.Steps), Rule: q.Rule,
	}
	s.Link = q.Link.Document()
	return s
}

// label is what people call a producer.
func (y *layout) label(end profile.End) string {
	if end.Outside != "" {
		return "outside:" + end.Outside
	}
	return y.job.Processes[end.Process].Label()
}

// end is one end of a channel as member i sees it.
func (y *layout) end(i int, end, other profile.End) *wsdl.ChannelEnd {
	switch holder := y.holder(end, other); {
	case end.Outside != "":
		return &wsdl.ChannelEnd{Outside: end.Outside}
	case holder != i:
		return &wsdl.ChannelEnd{Peer: y.members[holder].peer(), Queue: int32(end.Queue)}
	case end.Queue > 0:
		return &wsdl.ChannelEnd{Queue: int32(end.Queue)}
	}
	return &wsdl.ChannelEnd{Process: wsdl.Of(int32(end.Process)), Port: end.Port}
}

// outside is an end of a channel that people and programs outside the job reach.
type outside struct {
	name string
	in   bool
	ends []int // processes at the other end: it is on the node of most of them
}

// outsideOf lists the job's ends outside, by name.
func outsideOf(j *profile.Job) []outside {
	var all []outside
	queues := queueEnds(j)
	ends := func(other profile.End) []int {
		if other.Queue > 0 {
			return queues[other.Queue-1]
		}
		return []int{other.Process}
	}
	for i := range j.Channels {
		switch c := &j.Channels[i]; {
		case c.From.Outside != "":
			all = append(all, outside{c.From.Outside, true, ends(c.To)})
		case c.To.Outside != "":
			all = append(all, outside{c.To.Outside, false, ends(c.From)})
		}
	}
	slices.SortFunc(all, func(a, b outside) int { return cmp.Compare(a.name, b.name) })
	return all
}

// membersOf makes the job group out of a plan: which node each process goes to. Of a
// set it has that one's VMs.
func membersOf(j *profile.Job, s *set, plan []int, nodes []node) []member {
	at := map[int]int{}
	var members []member
	add := func(n, part int) int {
		members = append(members, member{Node: nodes[n].id, Part: part, Name: nodes[n].name, Incarnation: nodes[n].incarnation, URL: nodes[n].url})
		m := &members[len(members)-1]
		if j.VM != nil {
			m.Memory = j.VM.MemoryMiB
		}
		return len(members) - 1
	}
	put := func(i, id int) {
		m, need := &members[i], j.Processes[id].Need
		m.Processes = append(m.Processes, id)
		m.Slots++
		m.Cores += need.Cores
		m.Memory += need.MemoryMiB
	}
	if s != nil {
		for _, former := range s.Members {
			i := add(plan[former.Processes[0]], former.Part)
			for _, id := range former.Processes {
				put(i, id)
			}
		}
	} else {
		for id, n := range plan {
			i, there := at[n]
			if part := 0; !there || j.VM != nil && j.VM.Most > 0 && len(members[i].Processes) == j.VM.Most {
				if j.VM != nil && j.VM.Most > 0 {
					part = len(members) + 1
				}
				i = add(n, part)
				at[n] = i
			}
			put(i, id)
		}
	}
	slices.SortFunc(members, func(a, b member) int { return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Part, b.Part)) })
	return members
}
