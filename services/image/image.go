// Package image keeps a node's blobs: sources, inputs, outputs, artifacts and
// images, as plain files named by the SHA-256 of what is in them, and moves
// them between nodes.
//
// What always holds: a blob that can be opened has been verified, is complete
// and on disk, and never changes. Whatever comes in is hashed as it comes, and
// only what hashes to its name becomes a blob. A blob stays while it is pinned,
// and for a lease after it was last uploaded or asked for.
//
// It must never build a path from a name that is not a digest, write to a blob,
// or know what the bytes mean.
package image

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"mvm/wsdl"
)

// DefaultLease is how long a blob stays without a pin.
const DefaultLease = time.Hour

// Config says where blobs live.
type Config struct {
	Dir   string           // made when missing; one Store at a time
	Lease time.Duration    // default DefaultLease
	Clock func() time.Time // default time.Now
}

// Store is a folder of blobs. All methods may be called concurrently. Errors
// are faults: notFound, conflict, invalidRequest, or unavailable when the disk
// is full; anything else is a failure of the disk.
type Store struct {
	dir   string
	lease time.Duration
	clock func() time.Time

	// sweeping orders what relies on a blob being there (read) against the
	// removal of blobs (write).
	sweeping sync.RWMutex

	mu       sync.Mutex               // guards the three below
	partials map[string]*partial      // by hex
	fetching map[string]chan struct{} // by hex; closed when that Fetch has ended
	copies   map[string]chan struct{} // by hex; closed when the disk has caught up with that copy

	leasing sync.Mutex           // guards leases
	leases  map[string]time.Time // by hex: when this life last renewed it; an older one is as good as none

	filing  [16]sync.Mutex                 // each guards the pin files of some owners, by hash
	pinning sync.Mutex                     // guards pins
	pins    map[string]map[string]struct{} // by owner, then hex; a set never changes, it is replaced
}

// New opens the folder, removes what earlier lives left half done, and reads
// the pins.
func New(c Config) (*Store, error) {
	if c.Lease == 0 {
		c.Lease = DefaultLease
	}
	if c.Clock == nil {
		c.Clock = time.Now
	}
	s := &Store{dir: c.Dir, lease: c.Lease, clock: c.Clock,
		partials: map[string]*partial{}, leases: map[string]time.Time{}, fetching: map[string]chan struct{}{}, copies: map[string]chan struct{}{}, pins: map[string]map[string]struct{}{}}
	for _, sub := range []string{"blobs", "partial", "pins"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if err := s.resume(); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	if err := s.readPins(); err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	return s, nil
}

// Digest writes a SHA-256 as digests are written: sha256: and 64 lowercase
// hexadecimal digits.
func Digest(sum [32]byte) string { return prefix + hex.EncodeToString(sum[:]) }

const prefix = "sha256:"

// hexOf returns the 64 digits of a digest. Nothing else gets past it, so that a
// path made of them stays in the store.
func hexOf(digest string) (string, error) {
	h, ok := strings.CutPrefix(digest, prefix)
	ok = ok && len(h) == 64
	for i := 0; ok && i < len(h); i++ {
		ok = h[i] >= '0' && h[i] <= '9' || h[i] >= 'a' && h[i] <= 'f'
	}
	if !ok {
		return "", wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("%.100q is not a digest", digest),
			"write sha256: and 64 lowercase hexadecimal digits")
	}
	return h, nil
}

func (s *Store) path(h string) string { return filepath.Join(s.dir, "blobs", h[:2], h[2:]) }

func notFound(h string) error {
	return wsdl.NewFault(wsdl.FaultCodeNotFound, "blob "+prefix+h+" is not here", "upload it, or ask another node")
}

// Open opens a blob for reading, from any place, and returns its size in bytes.
// The caller closes it. It stays readable when the blob is swept meanwhile.
func (s *Store) Open(digest string) (*os.File, int64, error) {
	h, err := hexOf(digest)
	if err != nil {
		return nil, 0, err
	}
	f, err := os.Open(s.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, notFound(h)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("image store: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, fmt.Errorf("image store: %w", err)
	}
	return f, info.Size(), nil
}

// Has says whether a blob is here, complete, and renews its lease if so.
func (s *Store) Has(digest string) bool {
	h, err := hexOf(digest)
	if err != nil {
		return false
	}
	_, here, err := s.renew(h)
	return err == nil && here
}

// renew returns a blob's size and starts its lease again, so that whoever is
// told that it is here has time to pin it.
func (s *Store) renew(h string) (size int64, here bool, err error) {
	s.sweeping.RLock()
	defer s.sweeping.RUnlock()
	info, err := os.Stat(s.path(h))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("image store: %w", err)
	}
	now := s.clock()
	s.lend(h, now)
	if err := os.Chtimes(s.path(h), now, now); err != nil {
		return 0, false, fmt.Errorf("image store: %w", err)
	}
	return info.Size(), true, nil
}

func (s *Store) lend(h string, now time.Time) {
	s.leasing.Lock()
	defer s.leasing.Unlock()
	s.leases[h] = now
}

// leased tells whether a blob's lease is running. What this life has renewed it
// counts itself: the file's time is of a clock that anyone may have set since,
// and is asked about what earlier lives have left only. A time that is to come
// tells nothing; the lease begins then when that is seen.
func (s *Store) leased(h string, modified, now time.Time) bool {
	s.leasing.Lock()
	defer s.leasing.Unlock()
	if renewed, ok := s.leases[h]; ok {
		return now.Sub(renewed) < s.lease
	}
	if modified.After(now) {
		s.leases[h] = now
		return true
	}
	return now.Sub(modified) < s.lease
}

// settle forgets the leases that are over.
func (s *Store) settle(now time.Time) {
	s.leasing.Lock()
	defer s.leasing.Unlock()
	for h, renewed := range s.leases {
		if now.Sub(renewed) < s.lease {
			continue
		}
		// A file's time that lies ahead would begin another one.
		_ = os.Chtimes(s.path(h), renewed, renewed) // most are gone
		delete(s.leases, h)
	}
}

// Status is what is there of a blob.
type Status struct {
	Digest   string
	Size     int64 // -1 when nothing has been received
	Received int64
	Complete bool
}

// Stat says what is here of a blob, and renews the lease of a complete one.
func (s *Store) Stat(digest string) (Status, error) {
	h, err := hexOf(digest)
	if err != nil {
		return Status{}, err
	}
	size, here, err := s.renew(h)
	if err != nil {
		return Status{}, err
	}
	if here && !s.onDisk(h) {
		return s.Stat(digest)
	}
	if here {
		return Status{Digest: digest, Size: size, Received: size, Complete: true}, nil
	}
	if p := s.partialNow(h); p != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.over {
			return Status{Digest: digest, Size: p.size, Received: p.received}, nil
		}
	}
	return Status{Digest: digest, Size: -1}, nil
}

// List returns at most limit complete blobs in the order of their digests,
// beginning after the digest named after ("" for the first).
func (s *Store) List(after string, limit int) ([]Status, error) {
	start := ""
	if after != "" {
		var err error
		if start, err = hexOf(after); err != nil {
			return nil, err
		}
	}
	folders, err := os.ReadDir(filepath.Join(s.dir, "blobs")) // sorted
	if err != nil {
		return nil, fmt.Errorf("image store: %w", err)
	}
	var list []Status
	for _, folder := range folders {
		if start != "" && folder.Name() < start[:2] {
			continue
		}
		files, err := os.ReadDir(filepath.Join(s.dir, "blobs", folder.Name()))
		if err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
		for _, file := range files {
			digest := prefix + folder.Name() + file.Name()
			if h, err := hexOf(digest); err != nil || h <= start {
				continue
			}
			if len(list) == limit {
				return list, nil
			}
			info, err := file.Info()
			if errors.Is(err, fs.ErrNotExist) {
				continue // swept meanwhile
			}
			if err != nil {
				return nil, fmt.Errorf("image store: %w", err)
			}
			list = append(list, Status{Digest: digest, Size: info.Size(), Received: info.Size(), Complete: true})
		}
	}
	return list, nil
}

// errFull marks the faults that say a full disk.
var errFull = errors.New("the disk is full")

type fullFault struct{ *wsdl.Fault }

func (f fullFault) Is(target error) bool { return target == errFull }
func (f fullFault) Unwrap() error        { return f.Fault }

// IsFull tells whether an error of this store says that its disk is full: the
// same may work once there is room.
func IsFull(err error) bool { return errors.Is(err, errFull) }

// diskError says a full disk so that a person understands it.
func (s *Store) diskError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		what := "the disk of the image store is full"
		var disk syscall.Statfs_t
		if syscall.Statfs(s.dir, &disk) == nil {
			what += fmt.Sprintf(", %d KiB of %d MiB are free in %s", disk.Bavail*uint64(disk.Bsize)>>10, disk.Blocks*uint64(disk.Bsize)>>20, s.dir)
		}
		return fullFault{wsdl.NewFault(wsdl.FaultCodeUnavailable, what+": "+err.Error(),
			"free some space on that node, then send the same again: what was received is kept")}
	}
	return fmt.Errorf("image store: %w", err)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
