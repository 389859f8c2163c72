package node

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"mvm/node/mvm"
	"mvm/osvm"
	"mvm/queuevm"
	"mvm/queuevm/codec"
	"mvm/wsdl"
)

// limits are what the node's own file lets the queues of jobs have, and OS-level VMs:
// the paper's node-level policy. None are no limits.
type limits struct {
	file string
	wsdl.QueueLimits
}

// readLimits reads the file; "" is no file.
func readLimits(file string) (l limits, err error) {
	if file == "" {
		return l, nil
	}
	l.file = file
	data, err := os.ReadFile(file)
	if err != nil {
		return l, fmt.Errorf("read the limits of queues: %w", err)
	}
	if _, problems := wsdl.Decode(data, "queueLimits", &l.QueueLimits); len(problems) > 0 {
		return l, fmt.Errorf("the limits of queues, %s:%d: %s", file, problems[0].Line, problems[0].Message)
	}
	types := []string{string(queuevm.QueueFifo), string(queuevm.QueuePriority), string(queuevm.QueueLifo), string(queuevm.QueueLatest), string(queuevm.QueueWork), string(queuevm.QueueBroadcast)}
	for _, list := range []struct {
		name, text string
		known      []string
	}{{"types", l.Types, types}, {"codecs", l.Codecs, codec.Names()}} {
		for _, word := range strings.Fields(list.text) {
			if word != "all" && word != "none" && !slices.Contains(list.known, word) {
				return l, fmt.Errorf("the limits of queues, %s: %s has the word %q; there are all, none and %s", file, list.name, word, strings.Join(list.known, ", "))
			}
		}
	}
	if min(l.Machines, l.Queues, l.Channels) < 0 || l.Memory < 0 {
		return l, fmt.Errorf("the limits of queues, %s: a limit is below 0; leave it out for none", file)
	}
	if l.Vm != nil {
		if _, err := limitsOf(&wsdl.VMLimits{CpuPercent: l.Vm.Cpu, Disk: l.Vm.Disk, DiskRate: l.Vm.DiskRate, NetworkRate: l.Vm.NetworkRate}); err != nil {
			return l, fmt.Errorf("the limits of queues, %s: what VMs may have: %w", file, err)
		}
	}
	return l, nil
}

// lets says whether a list of the file has a word.
func lets(list, word string) bool {
	words := strings.Fields(list)
	return len(words) == 0 || slices.Contains(words, "all") || slices.Contains(words, word)
}

// against says which rule of the file keeps a job's queues from this node, and
// how; "" is none.
func (l *limits) against(want *wsdl.QueueLimits) string {
	if want == nil || l.file == "" {
		return ""
	}
	for _, list := range []struct{ name, what, lets, wants string }{
		{"types", "queues of type", l.Types, want.Types}, {"codecs", "the codec", l.Codecs, want.Codecs},
		{"registered", "the registered codec", l.Registered, want.Registered}, {"rules", "the registered rule", l.Rules, want.Rules},
	} {
		for _, word := range strings.Fields(list.wants) {
			if !lets(list.lets, word) {
				return fmt.Sprintf("%s %s: the rule %s=%q of %s", list.what, word, list.name, list.lets, l.file)
			}
		}
	}
	for _, number := range []struct {
		name, what  string
		lets, wants int64
	}{
		{"queues", "served queues", int64(l.Queues), int64(want.Queues)}, {"channels", "channels", int64(l.Channels), int64(want.Channels)},
		{"memory", "MiB of queues", l.Memory, want.Memory},
	} {
		if number.lets > 0 && number.wants > number.lets {
			return fmt.Sprintf("%d %s: the rule %s=%q of %s", number.wants, number.what, number.name, fmt.Sprint(number.lets), l.file)
		}
	}
	return ""
}

// bounded are the limits of a VM for which want is asked: that, and of what nothing
// is asked, the most that the file lets it have. Where it asks for more, against says
// of what, and which rule is against it.
func (l *limits) bounded(want *wsdl.VMLimits) (bounded wsdl.VMLimits, against string) {
	if want != nil {
		bounded = *want
	}
	most := l.Vm
	if most == nil {
		return bounded, ""
	}
	percent := int64(bounded.CpuPercent)
	for _, number := range []struct {
		name, what string
		lets       int64
		wants      *int64
	}{
		{"cpu", "% of a core", int64(most.Cpu), &percent}, {"disk", "MiB of disk", most.Disk, &bounded.Disk},
		{"diskRate", "KiB a second from and to its disk", most.DiskRate, &bounded.DiskRate}, {"networkRate", "KiB a second over the network", most.NetworkRate, &bounded.NetworkRate},
	} {
		switch {
		case number.lets == 0:
		case *number.wants == 0:
			*number.wants = number.lets
		case *number.wants > number.lets:
			return bounded, fmt.Sprintf("a VM with %d %s: the rule vm %s=%q of %s", *number.wants, number.what, number.name, fmt.Sprint(number.lets), l.file)
		}
	}
	bounded.CpuPercent = int32(percent)
	return bounded, ""
}

// awakening says which rule of the file keeps an attempt from this node; "" is none.
func (l *limits) awakening(request *wsdl.Awaken) string {
	against := l.against(request.QueueLimits)
	if against == "" && request.Vm != nil {
		_, against = l.bounded(request.Vm.Limits)
	}
	return against
}

// arriving refuses a VM of another node that has more than one may have here. What it
// has it keeps: nobody has asked it whether it could do with less.
func (l *limits) arriving(has osvm.Limits) error {
	if l.Vm == nil {
		return nil
	}
	told := wsdl.VMLimits{}
	if t := toldLimits(has); t != nil {
		told = *t
	}
	bounded, against := l.bounded(&told)
	switch {
	case against == "" && bounded == told:
		return nil
	case against == "":
		against = "a VM without all of the limits that the rule vm names in " + l.file
	}
	return fmt.Errorf("this node does not let in %s", against)
}

// told are the limits as the grid is told them; where nothing can be confined,
// nothing registered runs.
func (l *limits) told(confinement mvm.Confinement) *wsdl.QueueLimits {
	told := l.QueueLimits
	if confinement.Level < 0 {
		told.Registered, told.Rules = "none", "none"
	}
	if told == (wsdl.QueueLimits{XMLName: told.XMLName}) {
		return nil
	}
	return &told
}
