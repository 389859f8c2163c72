package queuevm

import (
	"crypto/tls"
)

// Pinned is a throw-away key for connections that a job's nodes have beside their
// proxies' links: who is at the other end proves the key whose fingerprint came
// through the broker.
type Pinned struct{ key *key }

// NewPinned makes a key.
func NewPinned() (*Pinned, error) {
	k, err := newKey()
	return &Pinned{k}, err
}

// Fingerprint is what the others are to know of the key: hexadecimal SHA-256 of its
// SubjectPublicKeyInfo.
func (p *Pinned) Fingerprint() string { return p.key.fingerprint }

// TLS is the configuration of either side: version 1.3 that trusts exactly the keys
// that ok accepts.
func (p *Pinned) TLS(ok func(fingerprint string) bool) (*tls.Config, error) { return p.key.pinned(ok) }

// Proved is the fingerprint of the key that the other side has proved.
func Proved(s tls.ConnectionState) string {
	return fingerprint(s.PeerCertificates[0].RawSubjectPublicKeyInfo)
}
