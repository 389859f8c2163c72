package node

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"github.com/sirupsen/logrus"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vswitch"
	"mvm/queuevm"
	"mvm/services/soap"
	"mvm/wsdl"
)

// lan is a network of VMs that people have made, as far as it is on this node: a switch
// for those that are here, with a trunk to each other node that has some. Who has its
// name and key is in it, and nobody else: networks of one name and different keys know
// nothing of each other.
//
// Nodes find each other by asking all that there are, once each has a VM of it: of two,
// the later one so finds the earlier one. The one with the lower id dials. A trunk is
// TLS, over which both sides prove that they have the network's key.
type lan struct {
	node   *Node
	name   string
	tag    string // tells it from all others, and nobody its key
	secret []byte
	key    *queuevm.Pinned // of this node, for as long as it is in the network
	fabric *vswitch.Switch
	log    *logrus.Entry
	living context.Context
	stop   context.CancelFunc
	under  sync.WaitGroup // goroutines
	look   chan struct{}  // capacity 1: a node may be to ask now
	news   chan struct{}  // capacity 1: members have come or gone

	users int // VMs; n.mu guards it

	mu      sync.Mutex // guards what follows; whoever has it does not call the switch
	here    map[vswitch.MAC]*lanGuest
	members map[vswitch.MAC]lanMember // other nodes', as they say
	nodes   map[string]*neighbour     // by their id
	listed  time.Time                 // when the broker is to be asked for nodes again
	pause   time.Duration             // until that, last
	linger  time.Duration             // for which a member that has gone is known still
}

// lanGuest is a VM of the network that is on this node.
type lanGuest struct {
	machine *osvm.Machine
	address netip.Addr
	told    string // whom its guest knows of
}

// lanMember is a VM of the network on another node.
type lanMember struct {
	name    string
	address netip.Addr
	trunk   *vswitch.Port // by which it was heard of
	until   time.Time     // when it is to be forgotten, for it has gone; else zero
}

// neighbour is what is known of another node.
type neighbour struct {
	base   string // where its services are; "" where the broker has not said so
	asking bool
	wanted bool          // it has asked
	trunk  *vswitch.Port // nil without one
	next   time.Time     // when to ask it
	pause  time.Duration // before that, last
}

const (
	lanUpgrade   = "mvm-trunk" // protocol that a connection to another node's switch becomes
	lanNode      = "Mvm-Node"  // header: who asks
	lanLook      = 2 * time.Second
	lanLookLast  = 30 * time.Second
	lanAgain     = 5 * time.Minute // until a node is asked again that has no part: it asks when it has
	lanTell      = 30 * time.Second
	lanLinger    = 10 * time.Second // in which one that moves, or whose node begins anew, comes back
	lanKeyLeast  = 16               // bytes
	lanKeyMost   = 256
	lanMost      = 4096 // members
	lanNodes     = 4096 // of which something is known
	lanBits      = 8    // of the prefix: 10.0.0.0/8
	lanExporter  = "EXPORTER-mvm-network"
	lanProof     = sha256.Size
	lanAddresses = 100 // tries to find a free one
)

// checkSegment says what is wrong with a network's name or key.
func checkSegment(name, key string) error {
	switch {
	case name == "":
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "there is the key of a network, and not its name", "give both, or none")
	case !osvm.ValidID(name):
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("%.80q cannot be the name of a network", name), "write a letter or digit, then up to 62 letters, digits, '_', '.' or '-'")
	case len(key) < lanKeyLeast || len(key) > lanKeyMost:
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the key of the network %s has %d bytes, and is to have %d to %d", name, len(key), lanKeyLeast, lanKeyMost), "`mvm vm create --network` makes one: nobody may guess it")
	}
	return nil
}

// seal is what only those can make who have the key, of words.
func seal(secret []byte, words ...string) []byte {
	sum := hmac.New(sha256.New, secret)
	for _, word := range words {
		fmt.Fprintf(sum, "%d %s ", len(word), word)
	}
	return sum.Sum(nil)
}

func lanTag(name, key string) string {
	return hex.EncodeToString(seal([]byte(key), "network", name)[:16])
}

// joinLAN finds or makes the network of a name and a key; leave is called as often.
func (n *Node) joinLAN(name, key string) (*lan, error) {
	tag := lanTag(name, key)
	n.mu.Lock()
	defer n.mu.Unlock()
	if l := n.lans[tag]; l != nil {
		l.users++
		return l, nil
	}
	pinned, err := queuevm.NewPinned()
	if err != nil {
		return nil, err
	}
	l := &lan{
		node: n, name: name, tag: tag, secret: []byte(key), key: pinned, log: n.log.WithField("network", name), users: 1,
		look: make(chan struct{}, 1), news: make(chan struct{}, 1),
		here: map[vswitch.MAC]*lanGuest{}, members: map[vswitch.MAC]lanMember{}, nodes: map[string]*neighbour{}, linger: lanLinger,
	}
	l.fabric = vswitch.New(vswitch.Config{Heard: l.hear})
	l.living, l.stop = context.WithCancel(n.living)
	if n.lans == nil {
		n.lans = map[string]*lan{}
	}
	n.lans[tag] = l
	l.under.Go(l.seek)
	l.under.Go(l.tellAll)
	return l, nil
}

func (l *lan) leave() {
	n := l.node
	n.mu.Lock()
	l.users--
	over := l.users == 0
	if over {
		delete(n.lans, l.tag)
	}
	n.mu.Unlock()
	if over {
		l.stop()
		l.fabric.Close()
		l.under.Wait()
	}
}

// nudge has a goroutine that waits for it go on.
func nudge(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// segment is a place in a network for a VM that is to be made: an address that no member
// of which this node knows has, out of so many that two nodes hardly choose one.
func (n *Node) segment(name, key string) (*osvm.Segment, error) {
	if name == "" && key == "" {
		return nil, nil
	}
	if err := checkSegment(name, key); err != nil {
		return nil, err
	}
	used := map[netip.Addr]bool{}
	n.mu.Lock()
	l := n.lans[lanTag(name, key)]
	n.mu.Unlock()
	if l != nil {
		l.mu.Lock()
		for _, g := range l.here {
			used[g.address] = true
		}
		for _, m := range l.members {
			used[m.address] = true
		}
		l.mu.Unlock()
	}
	for range lanAddresses {
		var random [8]byte
		_, _ = rand.Read(random[:])
		address := netip.AddrFrom4([4]byte{10, random[0], random[1], random[2]})
		if last := random[2]; last == 0 || last == 255 || used[address] {
			continue
		}
		mac := vswitch.MAC{0x02, random[3], random[4], random[5], random[6], random[7]}
		return &osvm.Segment{Name: name, Key: key, MAC: mac.String(), Address: netip.PrefixFrom(address, lanBits).String()}, nil
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("no free address was found in the network %s", name), "try again")
}

// attach has a person's VM be on its network, if it is to have one, until it ends. It
// may be called again.
func (n *Node) attach(m *osvm.Machine) error {
	s := m.Segment
	if s == nil {
		return nil
	}
	hardware, err := net.ParseMAC(s.MAC)
	address, err2 := netip.ParsePrefix(s.Address)
	if err == nil && len(hardware) != len(vswitch.MAC{}) {
		err = errors.New("its card's address has not 6 bytes")
	}
	if err := errors.Join(err, err2, checkSegment(s.Name, s.Key)); err != nil {
		return fmt.Errorf("VM %s cannot be on the network %.80q: %w", m.ID, s.Name, err)
	}
	l, err := n.joinLAN(s.Name, s.Key)
	if err != nil {
		return err
	}
	mac := vswitch.MAC(hardware)
	l.mu.Lock()
	old := l.here[mac]
	if old == nil {
		l.here[mac] = &lanGuest{machine: m, address: address.Addr()}
		l.forget(mac, m.ID)
	}
	l.mu.Unlock()
	switch {
	case old != nil && old.machine == m:
		l.leave()
		return nil
	case old != nil:
		l.leave()
		return fmt.Errorf("VM %s cannot be on the network %s: its card's address is that of %s", m.ID, s.Name, old.machine.ID)
	}
	nudge(l.news)
	go l.have(m, mac, s.Address)
	return nil
}

// attachAll is attach for the VMs that an earlier life of the node has left: not before
// it runs, for a network looks for other nodes at once.
func (n *Node) attachAll() {
	for _, m := range n.host.List() {
		if m.Owner != "" {
			continue
		}
		if err := n.attach(m); err != nil {
			n.log.WithError(err).Warn("a VM that runs on is not in its network")
		}
	}
}

// have has a guest's card be on the switch until the guest ends, or the network does.
func (l *lan) have(m *osvm.Machine, mac vswitch.MAC, address string) {
	defer l.leave()
	ctx, stop := context.WithCancel(l.living)
	defer stop()
	go func() {
		select {
		case <-m.Ended():
			stop()
		case <-ctx.Done():
		}
	}()
	card := vswitch.Card{Name: "VM " + m.ID, MAC: mac, Rate: vswitch.Rate{Bytes: int(m.Limits.NetworkBytesPerSecond)}, Note: address + " " + m.ID}
	stayOn(ctx, l.fabric, card, m.Network, l.log)
	<-ctx.Done()
	l.mu.Lock()
	delete(l.here, mac)
	l.mu.Unlock()
	if l.living.Err() == nil { // else it may run on, and its node's next life tells of it
		l.fabric.Retract(mac)
	}
	nudge(l.news)
}

// forget leaves out members that have gone and whose place another has, by its name;
// l.mu is held.
func (l *lan) forget(mac vswitch.MAC, name string) {
	maps.DeleteFunc(l.members, func(other vswitch.MAC, m lanMember) bool {
		return other != mac && m.name == name && !m.until.IsZero()
	})
}

// hear notes what another node says of a guest: that it is there, or, with an empty
// note, that it is no more. What it says of one that is here counts once that has gone
// from here, for it may have moved there.
func (l *lan) hear(trunk *vswitch.Port, mac vswitch.MAC, note string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, there := l.members[mac]
	text, name, _ := strings.Cut(note, " ")
	address, err := netip.ParsePrefix(text)
	switch {
	case note == "":
		if !there || known.trunk != trunk {
			return
		}
		known.until = time.Now().Add(l.linger)
		l.members[mac] = known
		nudge(l.look)
		return
	case err != nil || !address.Addr().Is4() || !osvm.ValidID(name) || !there && len(l.members) >= lanMost:
		return
	}
	l.forget(mac, name)
	l.members[mac] = lanMember{name: name, address: address.Addr(), trunk: trunk}
	l.warn(mac, name, address.Addr())
	nudge(l.news)
}

// warn says which other has the name or the address of a member; l.mu is held.
func (l *lan) warn(mac vswitch.MAC, name string, address netip.Addr) {
	as := func(other vswitch.MAC, called string, at netip.Addr) {
		switch {
		case other == mac:
		case at == address:
			l.log.Warnf("%s and %s have the address %v both: make one of them anew", name, called, at)
		case called == name:
			l.log.Warnf("two VMs on different nodes are called %s, at %v and %v: who calls it may reach either", name, address, at)
		}
	}
	for other, g := range l.here {
		as(other, g.machine.ID, g.address)
	}
	for other, m := range l.members {
		as(other, m.name, m.address)
	}
}

// hosts are lines of a guest's file of names; l.mu is held.
func (l *lan) hosts() []string {
	var lines []string
	for _, g := range l.here {
		lines = append(lines, g.address.String()+" "+g.machine.ID)
	}
	for mac, m := range l.members {
		if l.here[mac] == nil {
			lines = append(lines, m.address.String()+" "+m.name)
		}
	}
	slices.Sort(lines)
	return lines
}

// tellAll has the guests here know of all members, whenever these change.
func (l *lan) tellAll() {
	for {
		l.mu.Lock()
		var left []*osvm.Machine
		all := strings.Join(l.hosts(), "\n")
		for _, g := range l.here {
			if g.told != all {
				left = append(left, g.machine)
			}
		}
		l.mu.Unlock()
		var telling sync.WaitGroup
		for _, m := range left {
			telling.Go(func() {
				if err := l.tell(l.living, m); err != nil {
					l.log.WithError(err).Debugf("VM %s does not hear yet who is in its network", m.ID)
				}
			})
		}
		telling.Wait()
		var again <-chan time.Time
		if len(left) > 0 {
			again = time.After(lanLook / 2) // who has heard all is left out then
		}
		select {
		case <-l.living.Done():
			return
		case <-l.news:
		case <-again:
		}
	}
}

// place gives a person's VM its place in its network, if it is to have one.
func (n *Node) place(ctx context.Context, m *osvm.Machine) error {
	if m.Segment == nil {
		return nil
	}
	l, err := n.joinLAN(m.Segment.Name, m.Segment.Key)
	if err != nil {
		return err
	}
	defer l.leave()
	return l.tell(ctx, m)
}

// tell gives a guest here its place, and the names of all.
func (l *lan) tell(ctx context.Context, m *osvm.Machine) error {
	if m.State() != osvm.Running {
		return fmt.Errorf("VM %s is %s", m.ID, m.State())
	}
	l.mu.Lock()
	hosts := l.hosts()
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, lanTell)
	defer cancel()
	if err := m.JoinAgain(ctx, guest.Network{MAC: m.Segment.MAC, Address: m.Segment.Address, MTU: vswitch.MTU, Hosts: hosts}); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, g := range l.here {
		if g.machine == m {
			g.told = strings.Join(hosts, "\n")
		}
	}
	return nil
}

// seek looks for other nodes of the network, and forgets members that do not come back,
// until the network ends.
func (l *lan) seek() {
	for {
		l.list()
		l.mu.Lock()
		for id, other := range l.nodes {
			due := other.trunk == nil && time.Now().After(other.next)
			if other.base != "" && !other.asking && (due || other.wanted) {
				other.asking, other.wanted = true, false
				base := other.base
				l.under.Go(func() { l.ask(id, base) })
			}
		}
		before := len(l.members)
		maps.DeleteFunc(l.members, func(_ vswitch.MAC, m lanMember) bool { return !m.until.IsZero() && time.Now().After(m.until) })
		if len(l.members) < before {
			nudge(l.news)
		}
		l.mu.Unlock()
		select {
		case <-l.living.Done():
			return
		case <-l.look:
		case <-time.After(lanLook):
		}
	}
}

// list asks the broker which nodes there are, when it is time to: seldom, because one
// that comes later asks for itself.
func (l *lan) list() {
	n := l.node
	l.mu.Lock()
	due := !time.Now().Before(l.listed)
	if due {
		l.pause = min(max(2*l.pause, lanLook), lanLookLast)
		l.listed = time.Now().Add(l.pause)
	}
	l.mu.Unlock()
	broker := n.brokerURL()
	if !due || broker == "" {
		return
	}
	ctx, cancel := context.WithTimeout(l.living, n.callTimeout)
	defer cancel()
	answer, err := wsdl.NewBrokerClient(n.caller, broker).ListNodesContext(ctx, &wsdl.ListNodes{})
	if err != nil {
		l.log.WithError(err).Debug("nobody says which nodes there are")
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, other := range l.nodes {
		other.base = ""
	}
	for _, other := range answer.Node {
		if other != nil && other.Id != n.id && other.State == "up" && other.Accelerator != "" {
			l.neighbour(other.Id).base = other.Url
		}
	}
	maps.DeleteFunc(l.nodes, func(_ string, other *neighbour) bool {
		return other.base == "" && !other.asking && other.trunk == nil && !other.wanted
	})
}

// neighbour is what is known of a node; l.mu is held.
func (l *lan) neighbour(id string) *neighbour {
	other := l.nodes[id]
	if other == nil {
		other = &neighbour{}
		l.nodes[id] = other
	}
	return other
}

// ask asks a node for a trunk, and returns when there is none or it has ended.
func (l *lan) ask(id, base string) {
	begin := time.Now()
	was, err := l.dial(id, base, l.knock(l.node.id, id))
	if l.living.Err() != nil {
		return
	}
	l.log.WithError(err).Debugf("there is no trunk to node %s", id)
	l.mu.Lock()
	defer l.mu.Unlock()
	other := l.neighbour(id)
	if !was { // else it was noted when there was one
		other.asking = false
	}
	var refused *soap.RefusedUpgrade
	switch {
	case errors.As(err, &refused) && refused.Response.StatusCode == http.StatusNotFound:
		other.pause = lanAgain
	case errors.As(err, &refused) && refused.Response.StatusCode == http.StatusConflict:
		other.pause = lanLookLast // by then it has dialled
	case was && time.Since(begin) > lanLookLast:
		other.pause = lanLook
	default:
		other.pause = min(max(2*other.pause, lanLook), lanLookLast)
	}
	other.next = time.Now().Add(other.pause)
}

// dial makes a trunk to a node, and returns when it ends; was says that there was one. A
// node with a lower id only hears that this one is there, and dials. It is shown that
// this one may ask.
func (l *lan) dial(id, base, knock string) (was bool, err error) {
	request, err := http.NewRequest(http.MethodGet, base+"/services/vm/networks/"+l.tag, nil)
	if err != nil {
		return false, err
	}
	request.Header.Set(lanNode, l.node.id)
	request.Header.Set("Authorization", bearer+knock)
	ctx, cancel := context.WithTimeout(l.living, trunkLimit)
	defer cancel()
	conn, err := soap.Upgrade(ctx, request, lanUpgrade)
	if err != nil {
		return false, err
	}
	config, err := l.key.TLS(func(string) bool { return true }) // it is what follows that proves
	if err != nil {
		_ = conn.Close()
		return false, err
	}
	return l.carry(ctx, id, tls.Client(conn, config), "dials", "takes")
}

// knock is by what a node that asks shows that it may.
func (l *lan) knock(from, to string) string {
	return hex.EncodeToString(seal(l.secret, "knock", l.tag, from, to))
}

// carry is a trunk's life, once the other side has proved that it has the key, for which
// ctx is; was says that it began.
func (l *lan) carry(ctx context.Context, id string, conn *tls.Conn, we, they string) (was bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	err = l.prove(ctx, conn, we, they)
	if !stop() {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		_ = conn.Close()
		return false, err
	}
	trunk, err := l.fabric.Trunk("the trunk to node "+id, conn)
	if err != nil {
		_ = conn.Close()
		return false, err
	}
	l.mu.Lock()
	other := l.neighbour(id)
	other.trunk, other.asking = trunk, false // one that has lost it may ask for another
	l.mu.Unlock()
	l.log.Debugf("the trunk to node %s is made", id)
	<-trunk.Done()
	l.mu.Lock()
	defer l.mu.Unlock()
	if other := l.neighbour(id); other.trunk == trunk {
		other.trunk = nil
		l.listed, l.pause = time.Time{}, 0 // it may begin anew, elsewhere
		nudge(l.look)
	}
	for mac, m := range l.members {
		if m.trunk == trunk && m.until.IsZero() {
			m.until = time.Now().Add(l.linger)
			l.members[mac] = m
		}
	}
	return true, trunk.Err()
}

// prove has both sides show that they have the network's key: nobody between them has,
// for what they show is of this connection alone (RFC 5705).
func (l *lan) prove(ctx context.Context, conn *tls.Conn, we, they string) error {
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	state := conn.ConnectionState()
	bound, err := state.ExportKeyingMaterial(lanExporter, nil, lanProof)
	if err != nil {
		return err
	}
	if _, err := conn.Write(seal(l.secret, we, l.tag, string(bound))); err != nil {
		return err
	}
	var shown [lanProof]byte
	if _, err := io.ReadFull(conn, shown[:]); err != nil {
		return err
	}
	if !hmac.Equal(shown[:], seal(l.secret, they, l.tag, string(bound))) {
		return errors.New("the other side has not the network's key")
	}
	return nil
}

// want notes that a node has asked for a trunk, which this one is to dial. One that the
// broker has not listed counts only as long as there are not too many: whoever has the
// key may call himself anything.
func (l *lan) want(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.nodes[id] == nil && len(l.nodes) >= lanNodes {
		return
	}
	other := l.neighbour(id)
	if other.wanted = true; other.base == "" {
		l.listed, l.pause = time.Time{}, 0
	}
	nudge(l.look)
}

// LANs takes trunks of other nodes for networks of VMs that people have made: GET of a
// path with the variable tag and an upgrade to mvm-trunk.
func (n *Node) LANs() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !asks(w, r, lanUpgrade, "networks of VMs are for the nodes that have some of them") {
			return
		}
		from := r.Header.Get(lanNode)
		shown, _ := strings.CutPrefix(r.Header.Get("Authorization"), bearer)
		n.mu.Lock()
		l := n.lans[mux.Vars(r)["tag"]]
		n.mu.Unlock()
		switch {
		case l == nil || !hmac.Equal([]byte(shown), []byte(l.knock(from, n.id))):
			sayPlainly(w, http.StatusNotFound, errors.New("this node has no VM in that network"))
			return
		case from >= n.id:
			l.want(from)
			sayPlainly(w, http.StatusConflict, errors.New("it is this node that dials"))
			return
		}
		config, err := l.key.TLS(func(string) bool { return true })
		if err != nil {
			sayPlainly(w, http.StatusServiceUnavailable, err)
			return
		}
		conn, ok := soap.AcceptUpgrade(w, lanUpgrade)
		if !ok {
			return
		}
		ctx, cancel := context.WithTimeout(l.living, trunkLimit)
		defer cancel()
		_, err = l.carry(ctx, from, tls.Server(conn, config), "takes", "dials")
		l.log.WithError(err).Debugf("the trunk of node %s has ended", from)
	})
}
