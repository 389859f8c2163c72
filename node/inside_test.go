package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// guests answer Inspect, each at its address, and say of a peek who was asked.
type guests map[string]*wsdl.AttemptState

func (g guests) Call(_ context.Context, url, operation string, _, response any) error {
	state := g[strings.TrimSuffix(url, "/services/queue")]
	switch {
	case state == nil:
		return errors.New("it does not answer")
	case strings.HasSuffix(operation, "Inspect"):
		response.(*wsdl.InspectResponse).Attempt = []*wsdl.AttemptState{state}
		return nil
	}
	return errors.New("asked " + url)
}

// TestSeveralVMsOfAJob: where a job has several VMs on a node, what is asked of a queue
// or channel goes to the one that has it now, also where a change of the live job
// brought it or moved it; and to the one that the plan named, where none says so.
func TestSeveralVMsOfAJob(t *testing.T) {
	const near, far = "taker", "giver"
	here := &wsdl.ChannelEnd{Process: wsdl.Of(int32(0))}
	channel := func(id int32, from, to *wsdl.ChannelEnd) *wsdl.ChannelState {
		return &wsdl.ChannelState{Id: wsdl.Of(id), From: from, To: to}
	}
	at := func(peer string) *wsdl.ChannelEnd { return &wsdl.ChannelEnd{Peer: peer} }
	state := func(part string, queue int32, channels ...*wsdl.ChannelState) *wsdl.AttemptState {
		s := &wsdl.AttemptState{Attempt: &wsdl.Attempt{Job: part, Number: 1}, Channel: channels}
		if queue > 0 {
			s.Queue = []*wsdl.QueueState{{Id: queue}}
		}
		return s
	}
	all := guests{
		"first":  state("j.1", 3, channel(7, here, at(near)), channel(8, at(far), here), channel(10, here, at("elsewhere"))),
		"second": state("j.2", 4, channel(7, at(far), here), channel(8, here, at(near)), channel(9, &wsdl.ChannelEnd{Outside: "enough"}, here)),
	}
	n := &Node{id: "n", caller: all, callTimeout: time.Minute, ledger: newLedger("n", "i", room{}, 0), runners: map[key]*runner{}}
	for part, url := range map[string]string{"j.1": "first", "j.2": "second"} {
		k := key{part, 1}
		r := &runner{node: n, key: k, plan: &wsdl.Instantiate{}}
		if url == "first" { // as it was before the job was changed
			r.plan.Channel = []*wsdl.Channel{{Id: wsdl.Of(int32(9)), From: &wsdl.ChannelEnd{Outside: "enough"}, To: here}, {Id: wsdl.Of(int32(11)), From: &wsdl.ChannelEnd{Outside: "last"}, To: here}}
		}
		r.vm = &enclosure{runner: r, id: "n." + part, number: 1, node: &wsdl.Node{Url: url}}
		n.runners[k] = r
	}
	for _, want := range []struct {
		name string
		sent bool
		at   string
	}{
		{"queue:3", false, "first"}, {"queue:4", false, "second"},
		{"channel:7", false, "second"}, {"channel:7", true, "first"}, {"channel:8", false, "first"}, {"channel:8", true, "second"},
		{"channel:10", false, "first"}, {"enough", false, "second"}, {"last", false, "first"},
	} {
		service, err := n.inside(t.Context(), "j", want.name, want.sent)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := service.PeekQueueContext(t.Context(), &wsdl.PeekQueue{}); err == nil || !strings.Contains(err.Error(), "asked "+want.at) {
			t.Errorf("%s (sent: %v) is %s's: %v", want.name, want.sent, want.at, err)
		}
	}
	after := &wsdl.PeekQueue{Job: "j", After: wsdl.Of(int64(1))}
	if _, err := (&queue{node: n}).peek(t.Context(), "channel:7", after); err == nil || !strings.Contains(err.Error(), "asked first") {
		t.Errorf("what waits at the giver: %v", err)
	}
	delete(all, "second")
	if _, err := n.inside(t.Context(), "j", "queue:4", false); wsdl.CodeOf(err) != wsdl.FaultCodeUnavailable {
		t.Errorf("where one does not answer: %v", err)
	}
	if _, err := n.inside(t.Context(), "j", "queue:3", false); err != nil {
		t.Errorf("where another one does not answer: %v", err)
	}
}
