package queuevm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

// key is the throw-away key with which this node proves itself to its peers,
// which learnt its fingerprint through the broker. No secret travels.
type key struct {
	private     *ecdsa.PrivateKey
	public      []byte // SubjectPublicKeyInfo
	fingerprint string
	machine     []byte                           // names this machine since its start; nothing when that is not known
	certificate func() (*tls.Certificate, error) // made at the first link that is encrypted
}

func newKey() (*key, error) {
	// P-256 and not Ed25519, whose tables Go computes at first use: a
	// millisecond that every job would pay.
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	k := &key{private: private}
	if boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		sum := sha256.Sum256(append([]byte("mvm machine "), boot...))
		k.machine = sum[:16]
	}
	if k.public, err = x509.MarshalPKIXPublicKey(private.Public()); err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	k.fingerprint = fingerprint(k.public)
	k.certificate = sync.OnceValues(func() (*tls.Certificate, error) {
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
		if err != nil {
			return nil, fmt.Errorf("make a certificate: %w", err)
		}
		return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, nil
	})
	return k, nil
}

// open says that a connection may carry its bytes as they are: they never leave
// the machine, since both ends are loopback addresses, or both ends are in
// networks where whoever runs this node allows it.
func (vm *VM) open(conn net.Conn) bool {
	if vm.config.Dial != nil {
		return vm.config.Plain
	}
	loopback, allowed := vm.config.Plain, true
	for _, end := range []net.Addr{conn.LocalAddr(), conn.RemoteAddr()} {
		tcp, ok := end.(*net.TCPAddr)
		if !ok {
			return false
		}
		address := tcp.AddrPort().Addr().Unmap()
		loopback = loopback && address.IsLoopback()
		allowed = allowed && slices.ContainsFunc(vm.config.PlainLinks, func(p netip.Prefix) bool { return p.Contains(address) })
	}
	return loopback || allowed
}

func fingerprint(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// pinned is TLS 1.3 that trusts exactly the keys that ok accepts.
func (k *key) pinned(ok func(fingerprint string) bool) (*tls.Config, error) {
	certificate, err := k.certificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{*certificate},
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true, // no names and no chains here: VerifyConnection pins the key itself
		SessionTicketsDisabled: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 1 && ok(fingerprint(s.PeerCertificates[0].RawSubjectPublicKeyInfo)) {
				return nil
			}
			return errors.New("the peer's key is not the one that the broker named")
		},
	}, nil
}

// The greeting that follows on every link, encrypted or not: each side names
// itself, shows its key and signs both nonces, so that a peer of the group
// and nobody else is at the other end.
const (
	greetingMagic = "MVMP\x01"
	directMagic   = "MVMD\x01" // for one direct channel: its id follows the nonce
	bothMagic     = "MVMB\x01" // for two, one each way: the ids of both do
	movedMagic    = "MVMM\x01" // of one that is reached elsewhere by now: where is the last field
	nonceSize     = 32
	greetingMax   = 1024
)

type greeting struct {
	id, public []byte
	direct     []uint32 // the direct channels that it is for: one, or one each way; none for a link
	machine    []byte   // which machine it is sent from, if that is known
	address    []byte   // where it is reached, if not where the broker said
	whole      []byte   // as sent, nonce included
}

// greeting names this node, in place of what another greeting is for: a link,
// also of one that has moved, or one direct channel.
func (k *key) greeting(self string, purpose greeting) (greeting, error) {
	if len(self) > 255 {
		return greeting{}, errors.New("a node id has at most 255 bytes")
	}
	b := []byte([]string{greetingMagic, directMagic, bothMagic}[len(purpose.direct)])
	if len(purpose.address) > 0 {
		b = []byte(movedMagic)
	}
	nonce := make([]byte, nonceSize)
	if _, err := rand.Read(nonce); err != nil {
		return greeting{}, err
	}
	b = append(b, nonce...)
	for _, channel := range purpose.direct {
		b = binary.LittleEndian.AppendUint32(b, channel)
	}
	b = append(append(b, byte(len(self))), self...)
	b = append(append(b, byte(len(k.public))), k.public...)
	b = append(append(b, byte(len(k.machine))), k.machine...)
	if len(purpose.address) > 0 {
		b = append(append(b, byte(len(purpose.address))), purpose.address...)
	}
	purpose.id, purpose.public, purpose.whole = []byte(self), k.public, b
	return purpose, nil
}

func readGreeting(r io.Reader) (greeting, error) {
	var whole bytes.Buffer
	tee := io.TeeReader(io.LimitReader(r, greetingMax), &whole)
	head := make([]byte, len(greetingMagic)+nonceSize)
	if _, err := io.ReadFull(tee, head); err != nil {
		return greeting{}, err
	}
	var g greeting
	fields := []*[]byte{&g.id, &g.public, &g.machine}
	switch string(head[:len(greetingMagic)]) {
	case greetingMagic:
	case movedMagic:
		fields = append(fields, &g.address)
	case directMagic:
		g.direct = make([]uint32, 1)
	case bothMagic:
		g.direct = make([]uint32, 2)
	default:
		return greeting{}, errors.New("it does not greet as a proxy of this version")
	}
	for k := range g.direct {
		var id [4]byte
		if _, err := io.ReadFull(tee, id[:]); err != nil {
			return greeting{}, err
		}
		g.direct[k] = binary.LittleEndian.Uint32(id[:])
	}
	for _, field := range fields {
		var err error
		if *field, err = readField(tee); err != nil {
			return greeting{}, err
		}
	}
	g.whole = whole.Bytes()
	return g, nil
}

// said is what a side signs: its part in the exchange and both greetings.
func said(part string, dialer, acceptor greeting) []byte {
	sum := sha256.New()
	for _, b := range [][]byte{[]byte("mvm proxy " + part), dialer.whole, acceptor.whole} {
		_ = binary.Write(sum, binary.LittleEndian, uint32(len(b)))
		sum.Write(b)
	}
	return sum.Sum(nil)
}

func (g greeting) proves(message, signature []byte) bool {
	public, err := x509.ParsePKIXPublicKey(g.public)
	if err != nil {
		return false
	}
	k, ok := public.(*ecdsa.PublicKey)
	return ok && ecdsa.VerifyASN1(k, message, signature)
}

// sign is a u8 length and the signature, as it goes over the wire.
func (k *key) sign(message []byte) ([]byte, error) {
	signature, err := ecdsa.SignASN1(rand.Reader, k.private, message)
	if err != nil {
		return nil, fmt.Errorf("sign with the throw-away key: %w", err)
	}
	return append([]byte{byte(len(signature))}, signature...), nil
}

// The last byte of the exchange: the connection is taken, or no other ever will be,
// or this one is not, and another may be later, or only one for each channel.
const (
	welcomed = 1
	givenUp  = 2
	notNow   = 3
	apart    = 4
)

// errGivenUp: to dial again would not help.
var errGivenUp = errors.New("it has given this node up for lost")

var errNotNow = errors.New("it has no use for a connection for this channel")

// errApart: two channels do not lead to and fro between two ports there.
var errApart = errors.New("it wants a connection for each of the channels")

// readField reads a u8 length and as many bytes.
func readField(r io.Reader) ([]byte, error) {
	var n [1]byte
	if _, err := io.ReadFull(r, n[:]); err != nil {
		return nil, err
	}
	field := make([]byte, n[0])
	_, err := io.ReadFull(r, field)
	return field, err
}

// dial proves both sides to each other on a fresh connection to a peer. The
// connection that it returns is the one to speak on: raw itself if plain. purpose
// says what for. The other side's greeting comes with it.
func (k *key) dial(raw net.Conn, plain bool, self string, p Peer, purpose greeting) (net.Conn, greeting, error) {
	conn := raw
	if !plain {
		config, err := k.pinned(func(f string) bool { return f == p.Fingerprint })
		if err != nil {
			return nil, greeting{}, err
		}
		conn = tls.Client(raw, config)
	}
	mine, err := k.greeting(self, purpose)
	if err != nil {
		return nil, greeting{}, err
	}
	if _, err := conn.Write(mine.whole); err != nil {
		return nil, greeting{}, err
	}
	theirs, err := readGreeting(conn)
	if err != nil {
		return nil, greeting{}, err
	}
	signature, err := readField(conn)
	if err != nil {
		return nil, greeting{}, err
	}
	if !slices.Equal(theirs.direct, mine.direct) {
		return nil, greeting{}, errors.New("it answers for something else")
	}
	if string(theirs.id) != p.ID || fingerprint(theirs.public) != p.Fingerprint || !theirs.proves(said("acceptor", mine, theirs), signature) {
		return nil, greeting{}, fmt.Errorf("who answers is not peer %s with the key that the broker named", p.ID)
	}
	proof, err := k.sign(said("dialer", mine, theirs))
	if err != nil {
		return nil, greeting{}, err
	}
	if _, err := conn.Write(proof); err != nil {
		return nil, greeting{}, err
	}
	if len(purpose.direct) > 0 {
		// From here on the other side may take it, for good: it has this long.
		_ = raw.SetDeadline(time.Now().Add(strangersTime))
	}
	var welcome [1]byte
	if _, err := io.ReadFull(conn, welcome[:]); err != nil {
		return nil, greeting{}, fmt.Errorf("it does not take our key: %w", err)
	}
	switch welcome[0] {
	case welcomed:
		return conn, theirs, nil
	case notNow:
		return nil, greeting{}, errNotNow
	case apart:
		return nil, greeting{}, errApart
	}
	return nil, greeting{}, errGivenUp
}

// accept is the other side of dial. find names the fingerprint of a peer that
// may dial this node, admit the last byte for one who has proven to be it: whoever is
// welcomed counts on the connection. It returns the peer's greeting.
func (k *key) accept(raw net.Conn, plain bool, self string, find func(g greeting) (fingerprint string, ok bool), admit func(greeting) byte, known func(fingerprint string) bool) (net.Conn, greeting, error) {
	conn := raw
	if !plain {
		config, err := k.pinned(known)
		if err != nil {
			return nil, greeting{}, err
		}
		conn = tls.Server(raw, config)
	}
	theirs, err := readGreeting(conn)
	if err != nil {
		return nil, greeting{}, err
	}
	id := string(theirs.id)
	expected, ok := find(theirs)
	if !ok || fingerprint(theirs.public) != expected {
		return nil, greeting{}, fmt.Errorf("%q with its key is not in the group, or must not dial", id)
	}
	mine, err := k.greeting(self, greeting{direct: theirs.direct})
	if err != nil {
		return nil, greeting{}, err
	}
	proof, err := k.sign(said("acceptor", theirs, mine))
	if err != nil {
		return nil, greeting{}, err
	}
	if _, err := conn.Write(append(append([]byte(nil), mine.whole...), proof...)); err != nil {
		return nil, greeting{}, err
	}
	signature, err := readField(conn)
	if err != nil {
		return nil, greeting{}, err
	}
	if !theirs.proves(said("dialer", theirs, mine), signature) {
		return nil, greeting{}, fmt.Errorf("%q does not hold the key it shows", id)
	}
	answer := admit(theirs)
	if _, err := conn.Write([]byte{answer}); err != nil {
		return nil, greeting{}, err
	}
	switch answer {
	case givenUp:
		return nil, greeting{}, fmt.Errorf("%q was given up for lost", id)
	case notNow:
		return nil, greeting{}, fmt.Errorf("%q asks for channel %v, which waits for no connection", id, theirs.direct)
	case apart:
		return nil, greeting{}, fmt.Errorf("%q takes channels %v for a way and the way back", id, theirs.direct)
	}
	return conn, theirs, nil
}

// newFileConn is a net.Conn of a socket's descriptor, which it takes over.
func newFileConn(fd int) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "mvm-link")
	defer file.Close()
	return net.FileConn(file)
}
