package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/mux"
	"github.com/sirupsen/logrus"

	"mvm/osvm"
	"mvm/osvm/vswitch"
	"mvm/queuevm"
	"mvm/wsdl"
)

// listed is a broker that knows some nodes, and nothing else.
type listed struct{ nodes []*wsdl.Node }

func (l *listed) Call(_ context.Context, _, operation string, _, response any) error {
	if !strings.HasSuffix(operation, "ListNodes") {
		return errors.New("no " + operation)
	}
	response.(*wsdl.ListNodesResponse).Node = l.nodes
	return nil
}

// neighbours are nodes that can have VMs, and know of each other.
func neighbours(t *testing.T, ids ...string) map[string]*Node {
	nodes, broker := map[string]*Node{}, &listed{}
	for _, id := range ids {
		log := logrus.New()
		log.SetOutput(io.Discard)
		n := &Node{id: id, broker: "http://broker", caller: broker, callTimeout: networkLimit, log: log.WithField("node", id)}
		n.living, n.stopLiving = context.WithCancel(context.Background())
		router := mux.NewRouter()
		router.Handle("/services/vm/networks/{tag}", n.LANs())
		server := httptest.NewServer(router)
		t.Cleanup(func() { n.stopLiving(); server.Close() })
		broker.nodes = append(broker.nodes, &wsdl.Node{Id: id, Url: server.URL, State: "up", Accelerator: "tcg"})
		nodes[id] = n
	}
	return nodes
}

// inLAN plugs a card into a node's part of a network.
func inLAN(t *testing.T, n *Node, name, key, note string, mac vswitch.MAC) (*lan, *card) {
	t.Helper()
	l, err := n.joinLAN(name, key)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.leave)
	l.mu.Lock()
	l.linger = 0
	l.mu.Unlock()
	ours, theirs := net.Pipe()
	if _, err := l.fabric.Guest(vswitch.Card{Name: note, MAC: mac, Note: note}, ours); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	return l, &card{theirs, mac}
}

// TestLAN: VMs of three nodes that were made with one name and key reach each other, and
// know each other's names, also once a trunk was cut; those with another key, or another
// name, have nothing of that.
func TestLAN(t *testing.T) {
	const key, other = "a key of sixteen bytes", "another key of sixteen"
	nodes := neighbours(t, "a", "b", "c")
	mac := func(i byte) vswitch.MAC { return vswitch.MAC{2, 0, 0, 0, 1, i} }
	b, second := inLAN(t, nodes["b"], "lab", key, "10.0.0.2/8 two", mac(2)) // the lower one comes later
	a, first := inLAN(t, nodes["a"], "lab", key, "10.0.0.1/8 one", mac(1))
	_, third := inLAN(t, nodes["c"], "lab", key, "10.0.0.3/8 three", mac(3))
	x, _ := inLAN(t, nodes["a"], "lab", other, "10.0.0.4/8 four", mac(4))
	y, stranger := inLAN(t, nodes["b"], "lab", other, "10.0.0.5/8 five", mac(5))
	z, _ := inLAN(t, nodes["c"], "lab2", key, "10.0.0.6/8 six", mac(6))
	calls := func(from, to *card, text string) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		called := make(chan struct{})
		go func() {
			defer close(called)
			for ctx.Err() == nil && from.send(to.mac, text) == nil {
				time.Sleep(10 * time.Millisecond)
			}
		}()
		defer func() { stop(); <-called }()
		for {
			got, who, err := to.hear()
			if err != nil || who[4] != 1 || who[5] > 3 {
				t.Fatalf("%v hears %q of %v, and not %q: %v", to.mac, got, who, text, err)
			}
			if got == text {
				return
			}
		}
	}
	calls(first, second, "from a to b")
	calls(third, first, "from c to a")
	calls(second, third, "from b to c")

	knows := func(l *lan, want ...string) {
		t.Helper()
		var got []string
		for end := time.Now().Add(networkLimit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			l.mu.Lock()
			got = l.hosts()
			l.mu.Unlock()
			if slices.Equal(got, want) {
				return
			}
		}
		t.Errorf("on node %s the network %s has %q, and not %q", l.node.id, l.name, got, want)
	}
	knows(a, "10.0.0.2 two", "10.0.0.3 three")
	knows(b, "10.0.0.1 one", "10.0.0.3 three")
	knows(x, "10.0.0.5 five")
	knows(y, "10.0.0.4 four")
	knows(z)

	a.mu.Lock()
	for _, other := range a.nodes {
		if other.trunk != nil {
			other.trunk.Close()
		}
	}
	a.mu.Unlock()
	calls(first, second, "over a new trunk")
	calls(first, third, "over another")
	knows(a, "10.0.0.2 two", "10.0.0.3 three")
	b.fabric.Retract(second.mac)
	knows(a, "10.0.0.3 three")
	_ = stranger.send(everybody, "of the network with another key")
	calls(first, second, "after a stranger has called")
}

// TestLANNames: what other nodes say of a VM that is here counts once it has gone; one
// that has gone from where it was is known for a while, unless it is elsewhere then, or
// another has its name.
func TestLANNames(t *testing.T) {
	var heard strings.Builder
	log := logrus.New()
	log.SetOutput(&heard)
	l := &lan{
		log: log.WithField("network", "lab"), look: make(chan struct{}, 1), news: make(chan struct{}, 1), linger: time.Hour,
		here: map[vswitch.MAC]*lanGuest{}, members: map[vswitch.MAC]lanMember{},
	}
	one, two, three := vswitch.MAC{2, 1}, vswitch.MAC{2, 2}, vswitch.MAC{2, 3}
	from, to := &vswitch.Port{}, &vswitch.Port{}
	knows := func(when string, want ...string) {
		t.Helper()
		l.mu.Lock()
		defer l.mu.Unlock()
		if got := l.hosts(); !slices.Equal(got, want) {
			t.Errorf("%s, %q are known, and not %q", when, got, want)
		}
	}
	l.here[one] = &lanGuest{machine: &osvm.Machine{Spec: osvm.Spec{ID: "one"}}, address: netip.MustParseAddr("10.0.0.1")}
	l.hear(from, two, "10.0.0.2/8 two")
	for _, bad := range []string{"10.0.0.3 three", "10.0.0.3/8", "10.0.0.3/8 ", "10.0.0.3/8 a b", "fe80::1/8 three", "10.0.0.3/8 three\n10.0.0.1 two"} {
		l.hear(from, three, bad)
	}
	knows("at first", "10.0.0.1 one", "10.0.0.2 two")
	l.hear(to, one, "10.0.0.1/8 one")
	knows("while one is here and there", "10.0.0.1 one", "10.0.0.2 two")
	delete(l.here, one)
	knows("when one has moved away", "10.0.0.1 one", "10.0.0.2 two")
	l.hear(to, two, "10.0.0.2/8 two")
	l.hear(from, two, "")
	if !l.members[two].until.IsZero() {
		t.Error("two is given up, which has moved")
	}
	l.hear(to, two, "")
	if l.members[two].until.IsZero() {
		t.Error("two is not given up, which is no more")
	}
	knows("when two has gone", "10.0.0.1 one", "10.0.0.2 two")
	l.hear(from, three, "10.0.0.3/8 two")
	knows("when another is called two", "10.0.0.1 one", "10.0.0.3 two")
	if heard.Len() > 0 {
		t.Errorf("it warns of\n%s", &heard)
	}
	l.hear(from, two, "10.0.0.3/8 four")
	l.hear(from, vswitch.MAC{2, 4}, "10.0.0.4/8 one")
	for _, want := range []string{"four and two have the address 10.0.0.3 both", "two VMs on different nodes are called one"} {
		if !strings.Contains(heard.String(), want) {
			t.Errorf("it does not warn that %q:\n%s", want, &heard)
		}
	}
}

// TestLANWanted: who has the key cannot have a node remember any number of others.
func TestLANWanted(t *testing.T) {
	l := &lan{look: make(chan struct{}, 1), nodes: map[string]*neighbour{"known": {base: "http://known"}}}
	for i := range 2 * lanNodes {
		l.want(fmt.Sprint(i))
	}
	if l.want("known"); len(l.nodes) != lanNodes || !l.nodes["known"].wanted {
		t.Errorf("it remembers %d nodes, and that the one which is listed has asked: %v", len(l.nodes), l.nodes["known"].wanted)
	}
}

// TestLANProof: whoever has not the key gets no trunk, from either side, also when he
// knows what a node has asked for.
func TestLANProof(t *testing.T) {
	nodes := neighbours(t, "a", "b")
	l, _ := inLAN(t, nodes["b"], "lab", "a key of sixteen bytes", "10.0.0.2/8 two", vswitch.MAC{2, 0, 0, 0, 1, 2})
	pinned, err := queuevm.NewPinned()
	if err != nil {
		t.Fatal(err)
	}
	thief := &lan{node: nodes["a"], tag: l.tag, secret: []byte("another key of sixteen"), key: pinned, fabric: vswitch.New(vswitch.Config{}), log: l.log, living: t.Context()}
	base := nodes["a"].caller.(*listed).nodes[1].Url
	if _, err := thief.dial("b", base, thief.knock("a", "b")); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("with the network's tag, it is answered %v", err)
	}
	if _, err := thief.dial("b", base, l.knock("a", "b")); err == nil || strings.Contains(err.Error(), "404") {
		t.Errorf("with what another has knocked by, it is answered %v", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.members) != 0 {
		t.Errorf("%d members are known", len(l.members))
	}
	for _, bad := range []struct{ name, key string }{{"", "a key of sixteen bytes"}, {"lab", ""}, {"a b", "a key of sixteen bytes"}, {"lab", "short"}, {"lab", strings.Repeat("x", 257)}} {
		if err := checkSegment(bad.name, bad.key); wsdl.CodeOf(err) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("%q with %q: %v", bad.name, bad.key, err)
		}
	}
}
