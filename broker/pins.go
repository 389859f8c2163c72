package broker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"mvm/wsdl"
)

// pins keeps the blobs that jobs and profiles refer to. Each blob is pinned
// once, however many refer to it, so that a program that was run before costs
// the disk nothing. What refers to it is in the journal, which says at a start
// what is to be kept: a pin comes before the record that needs it, and goes
// after it.
type pins struct {
	images Blobs

	mu      sync.Mutex // guards entries and their counts
	entries map[string]*pin
}

type pin struct {
	count int // guarded by pins.mu

	mu     sync.Mutex // guards pinned, and is held while it changes
	pinned bool
}

const pinPrefix = "broker/" // and the digest: who pins a blob

// hold adds one to each blob's references. When it returns nil they are here
// and stay; an error holds none.
func (p *pins) hold(digests ...string) error {
	for i, digest := range digests {
		p.mu.Lock()
		e := p.entries[digest]
		if e == nil {
			e = &pin{}
			p.entries[digest] = e
		}
		e.count++
		p.mu.Unlock()
		e.mu.Lock()
		var err error
		if !e.pinned {
			if err = p.images.Pin(pinPrefix+digest, digest); err == nil {
				e.pinned = true
			}
		}
		e.mu.Unlock()
		if err != nil {
			_ = p.release(digests[:i+1]...) // what fails here is unpinned at the next start
			return err
		}
	}
	return nil
}

// release takes one from each blob's references.
func (p *pins) release(digests ...string) error {
	var first error
	for _, digest := range digests {
		p.mu.Lock()
		e := p.entries[digest]
		p.mu.Unlock()
		if e == nil {
			continue
		}
		e.mu.Lock()
		p.mu.Lock()
		e.count--
		unused := e.count == 0
		p.mu.Unlock()
		if unused && e.pinned {
			if err := p.images.Unpin(pinPrefix + digest); err != nil && first == nil {
				first = err
			}
			e.pinned = false
		}
		p.mu.Lock()
		if e.count == 0 {
			delete(p.entries, digest)
		}
		p.mu.Unlock()
		e.mu.Unlock()
	}
	return first
}

// held says whether a blob is referred to already, and so is here.
func (p *pins) held(digest string) bool {
	p.mu.Lock()
	e := p.entries[digest]
	p.mu.Unlock()
	if e == nil {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pinned
}

// sweep unpins what nothing refers to: a crash came before its record.
func (p *pins) sweep() error {
	for _, owner := range p.images.Owners() {
		digest, ok := strings.CutPrefix(owner, pinPrefix)
		if !ok {
			continue
		}
		p.mu.Lock()
		_, needed := p.entries[digest]
		p.mu.Unlock()
		if needed {
			continue
		}
		if err := p.images.Unpin(owner); err != nil {
			return fmt.Errorf("broker: %w", err)
		}
	}
	return nil
}

// bag is the blobs that one job refers to, each held once.
type bag struct {
	pins *pins

	mu   sync.Mutex // guards held
	held map[string]struct{}
}

func (b *bag) add(digests ...string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, digest := range digests {
		if _, there := b.held[digest]; there {
			continue
		}
		if err := b.pins.hold(digest); err != nil {
			return err
		}
		if b.held == nil {
			b.held = map[string]struct{}{}
		}
		b.held[digest] = struct{}{}
	}
	return nil
}

func (b *bag) list() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Sorted(maps.Keys(b.held))
}

// drop lets go of all.
func (b *bag) drop() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.pins.release(slices.Collect(maps.Keys(b.held))...)
	b.held = nil
	return err
}

// put stores bytes, unless they are here already, and holds them.
func (s *Service) put(ctx context.Context, b *bag, digest string, data []byte) error {
	if !s.pins.held(digest) {
		if err := s.putBlob(ctx, digest, data); err != nil {
			return err
		}
	}
	err := b.add(digest)
	if wsdl.CodeOf(err) == wsdl.FaultCodeNotFound {
		// It was let go of, and swept, since it was seen.
		if err = s.putBlob(ctx, digest, data); err == nil {
			err = b.add(digest)
		}
	}
	return err
}
