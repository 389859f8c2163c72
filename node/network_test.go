package node

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/osvm/vswitch"
	"mvm/queuevm"
	"mvm/wsdl"
)

const networkLimit = 60 * time.Second

// switching is a node that has networks and nothing else.
func switching(t *testing.T, id string) *Node {
	log := logrus.New()
	log.SetOutput(io.Discard)
	n := &Node{id: id, proxyListen: "127.0.0.1:0", log: log.WithField("node", id)}
	t.Cleanup(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if len(n.networks) != 0 {
			t.Errorf("node %s has %d networks left", id, len(n.networks))
		}
	})
	return n
}

func joined(t *testing.T, n *Node, of key) *network {
	t.Helper()
	w, err := n.joinNetwork(of)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.leave)
	return w
}

// card is a guest's network card.
type card struct {
	net.Conn
	mac vswitch.MAC
}

func plugCard(t *testing.T, w *network, index int) *card {
	t.Helper()
	ours, theirs := net.Pipe()
	mac := macOf(w.of.job, index)
	if _, err := w.fabric.Guest(vswitch.Card{Name: "guest", MAC: mac}, ours); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = theirs.Close() })
	return &card{theirs, mac}
}

var everybody = vswitch.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func (c *card) send(to vswitch.MAC, text string) error {
	frame := append(append(append([]byte(nil), to[:]...), c.mac[:]...), 0x88, 0xb5)
	frame = append(frame, text...)
	_ = c.SetWriteDeadline(time.Now().Add(networkLimit))
	_, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...))
	return err
}

// hear is the next frame's text, and who sent it.
func (c *card) hear() (string, vswitch.MAC, error) {
	_ = c.SetReadDeadline(time.Now().Add(networkLimit))
	var head [4]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return "", vswitch.MAC{}, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(head[:]))
	_, err := io.ReadFull(c, frame)
	return string(frame[14:]), vswitch.MAC(frame[6:12]), err
}

// reaches has a card call until the other one hears it: trunks come and go.
func reaches(t *testing.T, from, to *card, text string) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	called := make(chan struct{})
	go func() {
		defer close(called)
		for ctx.Err() == nil {
			if from.send(everybody, text) != nil {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	defer func() { stop(); <-called }()
	for {
		got, who, err := to.hear()
		if err != nil {
			t.Fatalf("%v does not hear %q: %v", to.mac, text, err)
		}
		if who != from.mac {
			t.Fatalf("%v hears %q of %v", to.mac, got, who)
		}
		if got == text {
			return
		}
	}
}

// TestTrunks: the nodes of an attempt join their switches, whoever hears of the
// others first; a trunk that is cut is made again; nobody else gets one.
func TestTrunks(t *testing.T) {
	of, other := key{"job", 1}, key{"job", 2}
	a, b := joined(t, switching(t, "a"), of), joined(t, switching(t, "b"), of)
	stranger := joined(t, switching(t, "c"), other)
	left, right, far := plugCard(t, a, 0), plugCard(t, b, 1), plugCard(t, stranger, 1)

	// One that takes part in another attempt, and one that has no part at all, know
	// where the others are, and speak to the side that is dialled and to the one that
	// dials.
	stranger.meet([]*wsdl.Peer{a.trunk(), b.trunk()})
	outsider, err := queuevm.NewPinned()
	if err != nil {
		t.Fatal(err)
	}
	config, err := outsider.TLS(func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []*network{a, b} {
		conn, err := tls.Dial("tcp", w.listener.Addr().String(), config)
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(networkLimit))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate") && !strings.Contains(err.Error(), "reset") {
			t.Errorf("who has no part in the job is answered with %v", err)
		}
	}

	a.meet([]*wsdl.Peer{b.trunk(), a.trunk(), nil})
	b.meet([]*wsdl.Peer{a.trunk()})
	b.meet([]*wsdl.Peer{a.trunk()}) // again changes nothing
	reaches(t, left, right, "over the trunk")
	reaches(t, right, left, "and back")
	go func() { _ = far.send(everybody, "of another attempt") }()

	for _, w := range []*network{a, b} {
		for name := range map[string]bool{"a": true, "b": true} { // a dead one in its place: it is cut
			ours, theirs := net.Pipe()
			if _, err := w.fabric.Trunk("the trunk to node "+name, ours); err != nil {
				t.Fatal(err)
			}
			_ = theirs.Close()
		}
		reaches(t, left, right, "after a cut")
	}

	again, err := a.node.joinNetwork(of) // a second VM on the node
	if err != nil || again != a {
		t.Fatalf("there is a second network for one attempt: %v", err)
	}
	again.leave()
	reaches(t, right, left, "with one VM less")
}

// TestPlaceOf: addresses and names follow from job and index.
func TestPlaceOf(t *testing.T) {
	v := &wsdl.VMNetwork{Index: wsdl.Of(int32(1)), Vm: []string{"give-0 give", "take-0 take-1"}}
	place := placeOf("job", "job-1", v)
	got := strings.Join(append([]string{place.Address}, place.Hosts...), "\n")
	const want = "10.86.0.2/16\n10.86.0.1 vm0\n10.86.0.2 vm1 job-1\n10.86.0.1 give-0 give\n10.86.0.2 take-0 take-1"
	if got != want {
		t.Errorf("found\n%s\nexpected\n%s", got, want)
	}
	if addressOf(mostVMs-1) != "10.86.128.0" {
		t.Errorf("the last is at %s", addressOf(mostVMs-1))
	}
	seen := map[vswitch.MAC]bool{}
	for _, job := range []string{"job", "job2"} {
		for _, index := range []int{0, 1, 255, 256, mostVMs - 1} {
			mac := macOf(job, index)
			if seen[mac] || mac[0] != 2 || !bytes.Equal(mac[4:], []byte{byte(index >> 8), byte(index)}) {
				t.Errorf("VM %d of %s has the address %v", index, job, mac)
			}
			seen[mac] = true
		}
	}
	for _, bad := range []*wsdl.VMNetwork{{}, {Index: wsdl.Of(int32(-1)), Vm: []string{""}}, {Index: wsdl.Of(int32(1)), Vm: []string{""}}, {Index: wsdl.Of(int32(0)), Vm: make([]string, mostVMs+1)}} {
		if wsdl.CodeOf(checkNetwork(bad)) != wsdl.FaultCodeInvalidRequest {
			t.Errorf("%v of %d is taken", bad.Index, len(bad.Vm))
		}
	}
	if err := checkNetwork(v); err != nil {
		t.Error(err)
	}
}

// TestSilentStrangers: whoever connects and says nothing keeps no node of the attempt
// out, not even for the time of a handshake.
func TestSilentStrangers(t *testing.T) {
	of := key{"j", 1}
	a, b := joined(t, switching(t, "a"), of), joined(t, switching(t, "b"), of)
	if a.key.Fingerprint() > b.key.Fingerprint() {
		a, b = b, a // who dials
	}
	there := b.trunk()
	there.Address = b.listener.Addr().String()
	b.mu.Lock()
	b.peers[a.key.Fingerprint()] = a.trunk()
	b.mu.Unlock()
	for range 2 * trunkHandshakes {
		conn, err := net.Dial("tcp", there.Address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
	config, err := a.key.TLS(func(shown string) bool { return shown == there.Fingerprint })
	if err != nil {
		t.Fatal(err)
	}
	from, to := plugCard(t, a, 0), plugCard(t, b, 1)
	through := make(chan struct{})
	go func() {
		err := a.dial(there, config) // once
		select {
		case <-through:
		default:
			t.Errorf("a node of the attempt is not let in: %v", err)
			_ = to.Close()
		}
	}()
	reaches(t, from, to, "amid strangers")
	close(through)
}
