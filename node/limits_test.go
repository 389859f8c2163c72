package node

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mvm/node/mvm"
	"mvm/osvm"
	"mvm/wsdl"
)

func limitsFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "limits.xml")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// The file is checked when the node starts, and each of its rules refuses what it
// says, by its name.
func TestQueueLimits(t *testing.T) {
	for text, want := range map[string]string{
		`<limits/>`: "must be",
		`<queueLimits xmlns="urn:mvm:1" types="fifo stack"/>`:                 `types has the word "stack"`,
		`<queueLimits xmlns="urn:mvm:1" codecs="morse"/>`:                     `codecs has the word "morse"`,
		`<queueLimits xmlns="urn:mvm:1" machines="many"/>`:                    "machines",
		`<queueLimits xmlns="urn:mvm:1" memory="-1"/>`:                        "below 0",
		`<queueLimits xmlns="urn:mvm:1"><vm cpu="-1"/></queueLimits>`:         "what VMs may have",
		`<queueLimits xmlns="urn:mvm:1"><vm networkRate="63"/></queueLimits>`: "at least 65536",
		"<queueLimits xmlns=\"urn:mvm:1\"\n speed=\"unlimited\"/>":            ":2: ",
	} {
		if _, err := readLimits(limitsFile(t, text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := readLimits("/no/such/file"); err == nil {
		t.Error("a file that is not there is taken for none")
	}
	file := limitsFile(t, `<queueLimits xmlns="urn:mvm:1" types="fifo work" codecs="none" registered="frame" queues="2" channels="10" memory="4"/>`)
	l, err := readLimits(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want    wsdl.QueueLimits
		against string
	}{
		{wsdl.QueueLimits{Types: "work fifo", Registered: "frame", Rules: "any", Queues: 2, Channels: 10, Memory: 4}, ""},
		{wsdl.QueueLimits{Types: "work lifo"}, `queues of type lifo: the rule types="fifo work"`},
		{wsdl.QueueLimits{Codecs: "json"}, `the codec json: the rule codecs="none"`},
		{wsdl.QueueLimits{Registered: "frame other"}, `the registered codec other: the rule registered="frame"`},
		{wsdl.QueueLimits{Queues: 3}, `3 served queues: the rule queues="2"`},
		{wsdl.QueueLimits{Channels: 11}, `11 channels: the rule channels="10"`},
		{wsdl.QueueLimits{Memory: 5}, `5 MiB of queues: the rule memory="4"`},
	} {
		got := l.against(&c.want)
		if c.against == "" && got != "" || c.against != "" && got != c.against+" of "+file {
			t.Errorf("%+v: %q, want %q", c.want, got, c.against)
		}
	}
	bounds, err := readLimits(limitsFile(t, `<queueLimits xmlns="urn:mvm:1"><vm cpu="50" networkRate="100"/></queueLimits>`))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		want, has wsdl.VMLimits
		against   string
	}{
		{wsdl.VMLimits{}, wsdl.VMLimits{CpuPercent: 50, NetworkRate: 100}, ""},
		{wsdl.VMLimits{CpuPercent: 20, DiskRate: 1 << 30, NetworkRate: 100}, wsdl.VMLimits{CpuPercent: 20, DiskRate: 1 << 30, NetworkRate: 100}, ""},
		{wsdl.VMLimits{CpuPercent: 51}, wsdl.VMLimits{}, `a VM with 51 % of a core: the rule vm cpu="50"`},
		{wsdl.VMLimits{NetworkRate: 101}, wsdl.VMLimits{}, `a VM with 101 KiB a second over the network: the rule vm networkRate="100"`},
	} {
		has, got := bounds.bounded(&c.want)
		if c.against == "" && (got != "" || has != c.has) || c.against != "" && got != c.against+" of "+bounds.file || got != bounds.awakening(&wsdl.Awaken{Vm: &wsdl.Enclosure{Limits: &c.want}}) {
			t.Errorf("%+v: %+v, %q; want %+v, %q", c.want, has, got, c.has, c.against)
		}
	}
	for has, lets := range map[osvm.Limits]bool{
		{}: false, {CPUs: 0.5}: false, {CPUs: 0.6, NetworkBytesPerSecond: 100 << 10}: false, {CPUs: 0.4, NetworkBytesPerSecond: 100 << 10, DiskMiB: 5}: true,
	} {
		if err := bounds.arriving(has); (err == nil) != lets {
			t.Errorf("of another node %+v: %v", has, err)
		}
		if err := l.arriving(has); err != nil {
			t.Errorf("without bounds for VMs, of another node %+v: %v", has, err)
		}
	}
	if told := bounds.told(mvm.Confinement{}); told == nil || told.Vm == nil || told.Vm.Cpu != 50 {
		t.Errorf("the grid is told %+v", told)
	}
	var none limits
	if none.told(mvm.Confinement{}) != nil || none.told(mvm.Confinement{Level: -1}).Rules != "none" || l.told(mvm.Confinement{}).Types != "fifo work" {
		t.Error("the grid is told other limits")
	}
}

// A node that has its queue-level VMs refuses another, and still takes what it
// has for the attempt that it holds.
func TestMachinesAreCounted(t *testing.T) {
	l := newLedger("n", "i", room{Slots: 10}, 0)
	l.machines, l.file = 1, "limits.xml"
	l.step(registered{1 << 30})
	awaken := func(call uint64, job, against string) *wsdl.Fault {
		for _, a := range l.step(awakenCall{call: call, fence: fence{key{job, 1}, "n", "i"}, need: room{Slots: 1}, against: against}) {
			if a, ok := a.(answer); ok {
				return a.fault
			}
		}
		return nil
	}
	if f := awaken(1, "a", `queues of type lifo: the rule types="fifo" of limits.xml`); f == nil || !strings.Contains(f.Message, `does not let attempt a/1 have queues of type lifo: the rule types="fifo" of limits.xml`) {
		t.Errorf("%v", f)
	}
	if f := awaken(2, "b", ""); f != nil {
		t.Error(f)
	}
	if f := awaken(3, "b", ""); f != nil {
		t.Errorf("the attempt that it holds: %v", f)
	}
	if f := awaken(4, "c", ""); f == nil || wsdl.CodeOf(f) != wsdl.FaultCodeBusy || !strings.Contains(f.Message, `the rule machines="1" of limits.xml`) {
		t.Errorf("%v", f)
	}
}
