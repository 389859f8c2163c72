package broker

import (
	"fmt"
	"slices"
	"strings"

	"mvm/broker/place"
	"mvm/broker/profile"
	"mvm/wsdl"
)

// viewOf is a node as placement sees it, less what is held of it.
func viewOf(n *wsdl.Node, held booking) place.Node {
	slots := int(wsdl.Or(n.Slots, n.Cores))
	v := place.Node{
		ID: n.Id, Name: n.Name, OS: n.Os, Arch: n.Arch, Cores: int(n.Cores), MemoryMiB: n.Memory,
		Slots: slots, FreeSlots: slots - held.slots, FreeCores: int(n.Cores) - held.cores, FreeMemoryMiB: n.Memory - held.memory,
		QEMU: n.Qemu != "", Accelerator: n.Accelerator, Cleaning: n.Cleaning,
	}
	if l := n.QueueLimits; l != nil {
		for kind, list := range map[string]string{
			profile.NeedsType: l.Types, profile.NeedsCodec: l.Codecs, profile.NeedsRegistered: l.Registered, profile.NeedsRule: l.Rules,
		} {
			if words := strings.Fields(list); len(words) > 0 && !slices.Contains(words, "all") {
				if v.Queues == nil {
					v.Queues = map[string][]string{}
				}
				v.Queues[kind] = words
			}
		}
		if m := l.Vm; m != nil {
			v.VMs = profile.VMLimits{CPUPercent: int64(m.Cpu), DiskMiB: m.Disk, DiskRate: m.DiskRate, NetworkRate: m.NetworkRate}
		}
		if l.Machines > 0 && held.attempts >= int(l.Machines) {
			v.Shunned, v.FreeSlots = fmt.Sprintf("at the %d queue-level VMs that its own file allows", l.Machines), 0
		}
	}
	for _, c := range n.Compiler {
		if c != nil && c.Language != nil {
			v.Compilers = append(v.Compilers, string(*c.Language))
		}
	}
	return v
}

// fit plans a job onto nodes, or says step by step why there is no room: anew, or
// where a set of it goes on.
func fit(j *profile.Job, s *set, nodes []place.Node) ([]int, string, bool) {
	if s != nil {
		return fitSet(j, s, nodes)
	}
	plan, ok := place.Place(j, nodes, place.Pack)
	return plan.Node, plan.Reason, ok
}

// plan is a dry run of a round for one job.
func (s *scheduler) plan(j *profile.Job) *wsdl.PlanJobResponse {
	s.mu.Lock()
	_, views := s.free()
	s.mu.Unlock()
	plan, ok := place.Place(j, views, place.Pack)
	response := &wsdl.PlanJobResponse{Fits: wsdl.Of(ok), Reason: plan.Reason,
		LocalChannels: wsdl.Of(int32(plan.Local)), RemoteChannels: wsdl.Of(int32(plan.Remote))}
	for id, n := range plan.Node {
		p := &j.Processes[id]
		response.Placement = append(response.Placement, &wsdl.Placement{Process: wsdl.Of(int32(id)), Task: p.Task, Index: wsdl.Of(int32(p.Index)), Node: views[n].ID})
	}
	for _, r := range plan.Rejections {
		response.Rejection = append(response.Rejection, &wsdl.Rejection{Node: r.Node, Task: r.Task, Reason: r.Reason})
	}
	return response
}

// queueURL is where a member's queue service is: a node in a VM may have moved with
// it since the attempt was planned.
func (s *scheduler) queueURL(m *member) string {
	base := m.URL
	s.mu.Lock()
	if n, there := s.known[m.Node]; there && n.incarnation == m.Incarnation && n.url != "" {
		base = n.url
	}
	s.mu.Unlock()
	return base + "/services/queue"
}

// list is every node that is known, with what is free of it.
func (s *scheduler) list() []*wsdl.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	held := s.held()
	var all []*wsdl.Node
	for id, n := range s.known {
		w := *n.record
		w.Id, w.Incarnation, w.State = id, n.incarnation, "up"
		if !n.alive {
			w.State = "lost"
		}
		v := n.view(held[id])
		w.Slots, w.FreeSlots = wsdl.Of(int32(v.Slots)), wsdl.Of(int32(max(0, v.FreeSlots)))
		w.FreeCores, w.FreeMemory = wsdl.Of(int32(max(0, v.FreeCores))), wsdl.Of(max(0, v.FreeMemoryMiB))
		w.VmMemory, w.FreeDisk = n.vms, n.disk
		w.Compiler = slices.Clone(n.record.Compiler)
		all = append(all, &w)
	}
	return all
}
