// Package vswitch is an Ethernet switch for VMs (IEEE 802.1D, without spanning
// trees): it joins the network cards of the VMs of one job, and, by trunks to the
// switches of other nodes, those on other nodes. Frames travel as QEMU's stream
// netdev has them: u32 length, big-endian, and the frame without its checksum.
//
// What always holds: a guest speaks by its own address alone; no port waits for
// another one, because what a port does not take in time is dropped; what came by a
// trunk is never sent to a trunk, so that nothing goes round in a full mesh of them,
// and no frame is delivered twice. All that is kept is bounded.
//
// It must never trust what comes out of a guest, and never look at more of a frame
// than its two addresses.
package vswitch

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// MTU is what a frame carries at most, in bytes. It is that of jumbo frames: what a frame
// costs its sender, this switch and its receiver hardly depends on what it carries.
const MTU = 9000

// Bounds of frames and of what is kept. A guest that sends longer frames than the
// network has only loses them; longer ones than QEMU can send (NET_BUFSIZE in its
// net/net.h) are no frames.
const (
	headSize   = 14
	FrameMost  = headSize + 4 + MTU // with a VLAN tag
	lengthSize = 4
	lengthMost = 4096 + 65536

	addressesDefault = 4096
	ageDefault       = 5 * time.Minute // as 802.1D recommends
	sweepPause       = time.Second
	noteMost         = 256       // bytes that are said of a guest
	queueMost        = 256 << 10 // bytes that wait for a port, besides as many that are being written
	announcedMost    = 1 << 20   // bytes of announcements besides these
	floodRate        = 4096      // frames a second that one port may have sent to all others
	floodBurst       = 1024
	trunkPatience    = 20 * time.Second // that a trunk may take nothing

	// A guest's port is at most one of 1 Gbit/s. Its frames are bounded, too, because
	// it is they that cost the node time.
	bytesMost  = 125_000_000
	framesMost = 50_000
	rateCredit = 20 * time.Millisecond // of its rate, that a guest may send at once
	rateRest   = 5 * time.Millisecond  // the least that it waits, for which it is let so far ahead
)

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// group says that an address is several ports': a multicast's, or all.
func (m MAC) group() bool { return m[0]&1 != 0 }

// reserved are addresses that no switch passes on (802.1D, 7.12.6).
func (m MAC) reserved() bool {
	return m[0] == 0x01 && m[1] == 0x80 && m[2] == 0xc2 && m[3] == 0 && m[4] == 0 && m[5]&0xf0 == 0
}

// Config says what a switch is like. The zero value is the default.
type Config struct {
	Addresses int                                  // of other nodes' guests that it knows at most
	Age       time.Duration                        // for how long it knows one that is not heard of
	Now       func() time.Time                     // nil is time.Now
	After     func(time.Duration) <-chan time.Time // nil is time.After

	// Heard is told of each guest of another switch when that tells of it: what comes
	// with it as its Card's Note, and "" once it is no more. It must not call the switch;
	// nil is nobody.
	Heard func(trunk *Port, guest MAC, note string)
}

// Switch joins its ports. All methods may be called from any goroutine.
type Switch struct {
	config Config

	mu     sync.Mutex // guards what follows
	ports  map[*Port]struct{}
	guests map[MAC]*Port // by the address that each may use
	known  map[MAC]place // behind trunks
	swept  time.Time
	closed bool
}

// place is where an address was last heard of.
type place struct {
	port *Port
	at   time.Time
}

// New makes a switch without ports.
func New(config Config) *Switch {
	if config.Addresses <= 0 {
		config.Addresses = addressesDefault
	}
	if config.Age <= 0 {
		config.Age = ageDefault
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.After == nil {
		config.After = time.After
	}
	return &Switch{config: config, ports: map[*Port]struct{}{}, guests: map[MAC]*Port{}, known: map[MAC]place{}}
}

// Errors by which a port ends, to be told apart.
var (
	ErrClosed   = errors.New("the port is closed")
	ErrGarbage  = errors.New("what it sends are no frames")
	ErrReplaced = errors.New("another connection has taken its place")
)

// Card is a VM's network card.
type Card struct {
	Name string // for people
	MAC  MAC    // the one address that it may use
	Rate Rate   // at which it may send
	Note string // what other switches hear of it; at most noteMost bytes
}

// Guest joins a VM's network card, to which conn leads; that is closed with the port.
// The error says that the address is no guest's, or another's.
func (s *Switch) Guest(card Card, conn net.Conn) (*Port, error) {
	if card.MAC.group() || card.MAC == (MAC{}) {
		return nil, fmt.Errorf("%s: %v is no address of a network card", card.Name, card.MAC)
	}
	if len(card.Note) > noteMost {
		return nil, fmt.Errorf("%s: %d bytes are said of it, and at most %d can be", card.Name, len(card.Note), noteMost)
	}
	return s.add(&Port{name: card.Name, mac: card.MAC, note: card.Note, conn: conn, rate: card.Rate.within()})
}

// Trunk joins the switch of another node, which is authenticated, in place of the
// trunk of that name, if there is one. conn is closed with the port.
func (s *Switch) Trunk(name string, conn net.Conn) (*Port, error) {
	return s.add(&Port{name: name, trunk: true, conn: conn})
}

func (s *Switch) add(p *Port) (*Port, error) {
	p.of, p.done = s, make(chan struct{})
	p.filled = sync.NewCond(&p.mu)
	p.floods = rate.NewLimiter(floodRate, floodBurst)
	s.mu.Lock()
	var before *Port
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, fmt.Errorf("%s: the switch: %w", p.name, ErrClosed)
	case !p.trunk && s.guests[p.mac] != nil:
		s.mu.Unlock()
		return nil, fmt.Errorf("%s: the address %v is that of %s", p.name, p.mac, s.guests[p.mac].name)
	case p.trunk:
		for other := range s.ports {
			if other.trunk && other.name == p.name {
				before = other
			}
		}
	default:
		s.guests[p.mac] = p
		delete(s.known, p.mac) // it has come here
	}
	s.ports[p] = struct{}{}
	s.tell(p)
	s.mu.Unlock()
	if before != nil {
		before.cut(ErrReplaced)
	}
	go p.write()
	go p.read()
	return p, nil
}

// tell has the other switches know at once which guests are here, because one that has
// come from another node is looked for there until it speaks. s.mu is held.
func (s *Switch) tell(p *Port) {
	for other := range s.ports {
		switch {
		case p.trunk && !other.trunk:
			p.announce(announcement(isHere, other.mac, other.note))
		case !p.trunk && other.trunk:
			other.announce(announcement(isHere, p.mac, p.note))
		}
	}
}

// Retract has the other switches hear that a guest is no more.
func (s *Switch) Retract(guest MAC) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.ports {
		if p.trunk {
			p.announce(announcement(isGone, guest, ""))
		}
	}
}

// Last bytes of the reserved addresses to which switches say that a guest is here, or
// is no more.
const (
	isHere = 0x0f
	isGone = 0x0e
)

// announcement is a frame of a guest's that no switch passes on.
func announcement(says byte, guest MAC, note string) []byte {
	const least = 60 // that there are on an Ethernet
	frame := make([]byte, max(least, headSize+len(note)))
	copy(frame, []byte{0x01, 0x80, 0xc2, 0, 0, says})
	copy(frame[6:], guest[:])
	copy(frame[headSize:], note)
	return frame
}

// heed has who listens hear an announcement of a trunk's, also of a guest that is here
// yet; s.mu is held.
func (s *Switch) heed(from *Port, says byte, guest MAC, text []byte) {
	switch says {
	case isHere:
	case isGone:
		if s.known[guest].port == from {
			delete(s.known, guest)
		}
		text = nil
	default:
		return
	}
	if s.config.Heard != nil {
		s.config.Heard(from, guest, string(bytes.TrimRight(text, "\x00")))
	}
}

// remove forgets a port, with all that was known to be behind it.
func (s *Switch) remove(p *Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ports, p)
	if !p.trunk && s.guests[p.mac] == p {
		delete(s.guests, p.mac)
	}
	for mac, at := range s.known {
		if at.port == p {
			delete(s.known, mac)
		}
	}
}

// Close ends all ports; no others are taken.
func (s *Switch) Close() {
	s.mu.Lock()
	s.closed = true
	var all []*Port
	for p := range s.ports {
		all = append(all, p)
	}
	s.mu.Unlock()
	for _, p := range all {
		p.cut(ErrClosed)
	}
}

// forward brings a frame to where it is to go, and says to how many ports it went.
func (s *Switch) forward(from *Port, frame []byte) (copies int) {
	to, source := MAC(frame[0:6]), MAC(frame[6:12])
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.ports[from]; !there {
		return 0
	}
	if from.trunk {
		if to.reserved() && !source.group() {
			s.heed(from, to[5], source, frame[headSize:])
		}
		if source.group() || s.guests[source] != nil { // a guest of this node speaks here
			from.counts.spoofed.Add(1)
			return 0
		}
		if to.reserved() && to[5] == isGone {
			return 0
		}
		s.learn(source, from)
	} else if source != from.mac {
		from.counts.spoofed.Add(1)
		return 0
	}
	from.counts.in.Add(1)
	if to.reserved() {
		return 0
	}
	if !to.group() {
		if there := s.find(to); there != nil {
			if there != from && !(from.trunk && there.trunk) {
				there.put(frame)
			}
			return 1
		}
	}
	if !from.floods.AllowN(s.config.Now(), 1) {
		from.counts.stormed.Add(1)
		return 0
	}
	for p := range s.ports {
		if p != from && !(from.trunk && p.trunk) {
			p.put(frame)
			copies++
		}
	}
	return copies
}

// find is where an address is, nil where that is not known; s.mu is held.
func (s *Switch) find(mac MAC) *Port {
	if p := s.guests[mac]; p != nil {
		return p
	}
	at, there := s.known[mac]
	if !there || s.config.Now().Sub(at.at) > s.config.Age {
		return nil
	}
	return at.port
}

// learn notes that an address is behind a trunk; s.mu is held. One for which there
// is no room stays unknown: what is sent to it goes to all.
func (s *Switch) learn(mac MAC, p *Port) {
	now := s.config.Now()
	if _, there := s.known[mac]; !there && len(s.known) >= s.config.Addresses {
		if now.Sub(s.swept) < sweepPause {
			return
		}
		s.swept = now
		for old, at := range s.known {
			if now.Sub(at.at) > s.config.Age {
				delete(s.known, old)
			}
		}
		if len(s.known) >= s.config.Addresses {
			return
		}
	}
	s.known[mac] = place{p, now}
}
