package node

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vswitch"
	"mvm/queuevm"
	"mvm/wsdl"
)

// network is the virtual network of one attempt's VMs, as far as it is on this node:
// a switch for those that are here, with a trunk to each other node of the attempt.
// Trunks are TLS between throw-away keys whose fingerprints come through the broker,
// one key for each attempt and node, so that nobody else can join, nor an attempt
// another one's.
type network struct {
	node     *Node
	of       key
	key      *queuevm.Pinned
	fabric   *vswitch.Switch
	listener net.Listener
	log      *logrus.Entry
	living   context.Context
	stop     context.CancelFunc
	under    sync.WaitGroup // goroutines

	users int // VMs; n.mu guards it

	mu       sync.Mutex            // guards what follows
	peers    map[string]*wsdl.Peer // nodes of the attempt, by their key
	unproved []net.Conn            // whose handshake is under way, the oldest first
}

const (
	trunkLimit      = 10 * time.Second // for a trunk to be made
	trunkHandshakes = 64               // at once: beyond, the oldest makes way, which only a stranger's is for long
	trunkFirst      = 50 * time.Millisecond
	trunkLast       = 2 * time.Second       // between two tries
	cardPause       = 50 * time.Millisecond // in which a VM that moves is without
	mostVMs         = 1 << 15               // of one network
)

// joinNetwork finds or makes the network of an attempt; leave is called as often.
func (n *Node) joinNetwork(of key) (*network, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if w := n.networks[of]; w != nil {
		w.users++
		return w, nil
	}
	pinned, err := queuevm.NewPinned()
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", n.proxyListen)
	if err != nil {
		return nil, fmt.Errorf("listen for the nodes of other VMs: %w", err)
	}
	w := &network{
		node: n, of: of, key: pinned, fabric: vswitch.New(vswitch.Config{}), listener: listener,
		log: n.log.WithField("attempt", of.String()), users: 1, peers: map[string]*wsdl.Peer{},
	}
	w.living, w.stop = context.WithCancel(context.Background())
	if n.networks == nil {
		n.networks = map[key]*network{}
	}
	n.networks[of] = w
	w.under.Go(w.accept)
	return w, nil
}

func (w *network) leave() {
	n := w.node
	n.mu.Lock()
	w.users--
	over := w.users == 0
	if over {
		delete(n.networks, w.of)
	}
	n.mu.Unlock()
	if !over {
		return
	}
	w.stop()
	_ = w.listener.Close()
	w.fabric.Close()
	w.under.Wait()
}

// trunk is how other nodes of the attempt reach this one's switch.
func (w *network) trunk() *wsdl.Peer {
	return &wsdl.Peer{Node: w.node.id, Address: w.node.reachable(w.listener.Addr().String()), Fingerprint: w.key.Fingerprint()}
}

// meet makes trunks to nodes that it did not know. The one with the lower key dials.
func (w *network) meet(peers []*wsdl.Peer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range peers {
		if p == nil || p.Fingerprint == w.key.Fingerprint() { // another VM of this node's
			continue
		}
		if _, there := w.peers[p.Fingerprint]; there {
			continue
		}
		w.peers[p.Fingerprint] = p
		if w.key.Fingerprint() < p.Fingerprint {
			w.under.Go(func() { w.keep(p) })
		}
	}
}

// dialer is the node that may dial this one and has that key, nil for none.
func (w *network) dialer(fingerprint string) *wsdl.Peer {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fingerprint >= w.key.Fingerprint() {
		return nil
	}
	return w.peers[fingerprint]
}

// keep has a trunk to a node until the network ends: it dials again when it is cut.
func (w *network) keep(p *wsdl.Peer) {
	config, err := w.key.TLS(func(shown string) bool { return shown == p.Fingerprint })
	if err != nil {
		w.log.WithError(err).Error("this node can dial no other one's switch")
		return
	}
	for pause := trunkFirst; w.living.Err() == nil; {
		begin := time.Now()
		err := w.dial(p, config)
		if w.living.Err() == nil {
			w.log.WithError(err).Debugf("there is no trunk to node %s", p.Node)
		}
		if pause = min(2*pause, trunkLast); time.Since(begin) > trunkLast {
			pause = trunkFirst // it was there
		}
		select {
		case <-time.After(pause):
		case <-w.living.Done():
		}
	}
}

// dial makes a trunk, and returns when it ends.
func (w *network) dial(p *wsdl.Peer, config *tls.Config) error {
	ctx, cancel := context.WithTimeout(w.living, trunkLimit)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", p.Address)
	if err != nil {
		return err
	}
	return w.carry(p, conn)
}

// carry is a trunk's life.
func (w *network) carry(p *wsdl.Peer, conn net.Conn) error {
	port, err := w.fabric.Trunk("the trunk to node "+p.Node, conn)
	if err != nil {
		_ = conn.Close()
		return err
	}
	w.log.Debugf("the trunk to node %s is made", p.Node)
	<-port.Done()
	return port.Err()
}

// accept takes trunks from nodes that dial this one.
func (w *network) accept() {
	config, err := w.key.TLS(func(shown string) bool { return w.dialer(shown) != nil })
	if err != nil {
		w.log.WithError(err).Error("this node takes no trunk of another one's switch")
		return
	}
	for {
		raw, err := w.listener.Accept()
		if err != nil {
			if w.living.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(cardPause) // out of descriptors, most likely
			continue
		}
		w.mu.Lock()
		if len(w.unproved) == trunkHandshakes {
			_ = w.unproved[0].Close()
			w.unproved = slices.Delete(w.unproved, 0, 1)
		}
		w.unproved = append(w.unproved, raw)
		w.mu.Unlock()
		w.under.Go(func() { w.admit(raw, config) })
	}
}

// admit is a connection that somebody has made, until it ends.
func (w *network) admit(raw net.Conn, config *tls.Config) {
	conn := tls.Server(raw, config)
	ctx, cancel := context.WithTimeout(w.living, trunkLimit)
	err := conn.HandshakeContext(ctx)
	cancel()
	w.mu.Lock()
	w.unproved = slices.DeleteFunc(w.unproved, func(c net.Conn) bool { return c == raw })
	w.mu.Unlock()
	if err != nil {
		_ = raw.Close()
		w.log.WithError(err).Debugf("%v is no switch of this job's", raw.RemoteAddr())
		return
	}
	_ = w.carry(w.dialer(queuevm.Proved(conn.ConnectionState())), conn)
}

// plugged is a VM on a network.
type plugged struct {
	network *network
	end     func() // takes it off; harmless the second time
}

// plug has the enclosure's VM be on the network of its attempt, wherever it is: as the
// attempt is this node's, so is the port of its switch.
func (e *enclosure) plug() error {
	of := e.runner.key.whole()
	w, err := e.runner.node.joinNetwork(of)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	var gone sync.WaitGroup
	card := vswitch.Card{Name: "VM " + e.machine.ID, MAC: macOf(of.job, int(wsdl.Or(e.place.Index, 0))), Rate: vswitch.Rate{Bytes: int(e.machine.Limits.NetworkBytesPerSecond)}}
	gone.Go(func() { stayOn(ctx, w.fabric, card, e.card, w.log) })
	e.plugged = &plugged{w, sync.OnceFunc(func() {
		stop()
		gone.Wait()
		w.leave()
	})}
	return nil
}

// trunk is how other nodes of the attempt reach the switch of its VM, nil where there
// is none.
func (e *enclosure) trunk() *wsdl.Peer {
	if e.plugged == nil {
		return nil
	}
	return e.plugged.network.trunk()
}

// stayOn has a VM's network card be on a switch until ctx ends. connect leads to it.
func stayOn(ctx context.Context, fabric *vswitch.Switch, card vswitch.Card, connect func(context.Context) (net.Conn, error), log *logrus.Entry) {
	for ctx.Err() == nil {
		err := beOn(ctx, fabric, card, connect)
		if errors.Is(err, osvm.ErrOrder) || errors.Is(err, vswitch.ErrGarbage) {
			log.WithError(err).Warnf("%s is cut off its network", card.Name)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(cardPause):
			log.WithError(err).Debugf("%s is connected to its network again", card.Name)
		}
	}
}

// beOn is a card's time on a switch, and returns why it ended.
func beOn(ctx context.Context, fabric *vswitch.Switch, card vswitch.Card, connect func(context.Context) (net.Conn, error)) error {
	conn, err := connect(ctx)
	if err != nil {
		return err
	}
	port, err := fabric.Guest(card, conn)
	if err != nil {
		_ = conn.Close()
		return err
	}
	select {
	case <-port.Done():
	case <-ctx.Done():
		port.Close()
	}
	return port.Err()
}

// checkNetwork says what is wrong with what a VM is told of its network.
func checkNetwork(v *wsdl.VMNetwork) error {
	if index := int(wsdl.Or(v.Index, -1)); index < 0 || index >= len(v.Vm) || len(v.Vm) > mostVMs {
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("VM %d of %d is on the virtual network, which has room for %d", index, len(v.Vm), mostVMs), "")
	}
	return nil
}

// macOf is the address of a VM's network card: of a number that nobody sells (IEEE
// 802, 8.4: locally administered), the same wherever the job's VM of that index is.
func macOf(job string, index int) vswitch.MAC {
	sum := sha256.Sum256([]byte(job))
	return vswitch.MAC{0x02, sum[0], sum[1], sum[2], byte(index >> 8), byte(index)}
}

// addressOf is where a VM is on its network: 10.86.0.0/16, from .0.1 on.
func addressOf(index int) string {
	return fmt.Sprintf("10.86.%d.%d", (index+1)>>8, (index+1)&0xff)
}

// placeOf is what a guest hears of its place in the network. Names of VMs come
// before those of processes, which so cannot hide them.
func placeOf(job, id string, v *wsdl.VMNetwork) guest.Network {
	index := int(wsdl.Or(v.Index, 0))
	place := guest.Network{MAC: macOf(job, index).String(), Address: addressOf(index) + "/16", MTU: vswitch.MTU}
	for i := range v.Vm {
		line := fmt.Sprintf("%s vm%d", addressOf(i), i)
		if i == index {
			line += " " + id
		}
		place.Hosts = append(place.Hosts, line)
	}
	for i, names := range v.Vm {
		if names := strings.Fields(names); len(names) > 0 {
			place.Hosts = append(place.Hosts, addressOf(i)+" "+strings.Join(names, " "))
		}
	}
	return place
}
