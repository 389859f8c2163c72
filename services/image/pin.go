package image

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"mvm/wsdl"
)

// Pin keeps blobs for owner until Unpin, also over restarts; it adds to what the
// owner has pinned already. All of them must be here, otherwise none is pinned
// and the fault notFound names those that are missing. When it returns nil the
// pins are on disk.
func (s *Store) Pin(owner string, digests ...string) error {
	name, err := pinName(owner)
	if err != nil {
		return err
	}
	wanted := make(map[string]struct{}, len(digests))
	for _, digest := range digests {
		h, err := hexOf(digest)
		if err != nil {
			return err
		}
		wanted[h] = struct{}{}
	}
	for h := range wanted {
		s.onDisk(h)
	}
	filing := s.file(name)
	filing.Lock()
	defer filing.Unlock()
	// First in memory, which keeps the sweep away, then on disk, which takes long.
	was, err := s.pin(owner, wanted)
	if err != nil || len(was) == len(wanted) {
		return err
	}
	if err := s.writePins(name, wanted, len(was) == 0); err != nil {
		s.setPins(owner, was)
		return s.diskError(err)
	}
	return nil
}

// pin adds to wanted what owner has pinned, makes that its pins, and returns
// what they were.
func (s *Store) pin(owner string, wanted map[string]struct{}) (was map[string]struct{}, err error) {
	s.sweeping.RLock()
	defer s.sweeping.RUnlock()
	var missing []string
	for h := range wanted {
		if _, err := os.Stat(s.path(h)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, prefix+h)
		} else if err != nil {
			return nil, fmt.Errorf("image store: %w", err)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, "not here: "+strings.Join(missing, ", "), "upload these blobs, then try again")
	}
	s.pinning.Lock()
	defer s.pinning.Unlock()
	was = s.pins[owner]
	for h := range was {
		wanted[h] = struct{}{}
	}
	if len(wanted) > 0 {
		s.pins[owner] = wanted
	}
	return was, nil
}

func (s *Store) setPins(owner string, hexes map[string]struct{}) {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	if len(hexes) == 0 {
		delete(s.pins, owner)
	} else {
		s.pins[owner] = hexes
	}
}

// file returns the lock of a pin file.
func (s *Store) file(name string) *sync.Mutex {
	h := fnv.New32a()
	h.Write([]byte(name))
	return &s.filing[h.Sum32()%uint32(len(s.filing))]
}

// Unpin ends all pins of owner. It is idempotent.
func (s *Store) Unpin(owner string) error {
	name, err := pinName(owner)
	if err != nil {
		return err
	}
	filing := s.file(name)
	filing.Lock()
	defer filing.Unlock()
	// A pin file that comes back after a crash pins too much, never too little.
	if err := os.Remove(filepath.Join(s.dir, "pins", name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("image store: %w", err)
	}
	s.setPins(owner, nil)
	return nil
}

// Owners returns everyone who has pinned something, sorted: after a restart,
// whoever pins compares them with what it still knows of.
func (s *Store) Owners() []string {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	owners := make([]string, 0, len(s.pins))
	for owner := range s.pins {
		owners = append(owners, owner)
	}
	slices.Sort(owners)
	return owners
}

// pinName is the file that holds an owner's pins.
func pinName(owner string) (string, error) {
	name := url.QueryEscape(owner)
	if owner == "" || len(name) > 200 {
		return "", wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "%.100q cannot own pins: expected 1 to 200 characters", owner)
	}
	return "of-" + name, nil
}

// pinsEnd is the last line of a pin file that was written to its end.
const pinsEnd = "end\n"

// writePins puts an owner's pins on disk. The lock of its file is held. A new
// owner's file needs no care for what it had before: it is renamed first and
// synced then, which is one wait for the disk instead of two, and a crash in
// between leaves a file without its end, which counts for nothing.
func (s *Store) writePins(name string, hexes map[string]struct{}, isNew bool) error {
	lines := make([]string, 0, len(hexes)+1)
	for h := range hexes {
		lines = append(lines, prefix+h+"\n")
	}
	slices.Sort(lines)
	lines = append(lines, pinsEnd)
	folder := filepath.Join(s.dir, "pins")
	f, err := os.CreateTemp(folder, temporary+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // it is renamed, or of no use
	defer f.Close()
	if _, err := f.WriteString(strings.Join(lines, "")); err != nil {
		return err
	}
	if !isNew {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	if err := os.Rename(f.Name(), filepath.Join(folder, name)); err != nil {
		return err
	}
	if isNew {
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return syncDir(folder)
}

func (s *Store) readPins() error {
	folder := filepath.Join(s.dir, "pins")
	files, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, file := range files {
		path := filepath.Join(folder, file.Name())
		escaped, ok := strings.CutPrefix(file.Name(), "of-")
		owner, err := url.QueryUnescape(escaped)
		if err != nil || !ok {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		list, ok := strings.CutSuffix(string(text), pinsEnd)
		if !ok {
			if err := os.Remove(path); err != nil {
				return err
			}
			continue
		}
		hexes := map[string]struct{}{}
		for line := range strings.Lines(list) {
			h, err := hexOf(strings.TrimSuffix(line, "\n"))
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
			hexes[h] = struct{}{}
		}
		s.pins[owner] = hexes
	}
	return nil
}

// Swept is what a Sweep removed.
type Swept struct {
	Blobs    int
	Partials int
	Bytes    int64
}

// Sweep removes every blob that is neither pinned nor leased, and every upload
// that got nothing for a lease, as of now. Readers that have a blob open keep it.
func (s *Store) Sweep(now time.Time) (Swept, error) {
	var swept Swept
	pinned := s.pinned()
	var errs []error
	for after := ""; ; {
		page, err := s.List(after, 1000)
		if err != nil {
			return swept, errors.Join(append(errs, err)...)
		}
		for _, blob := range page {
			h, _ := hexOf(blob.Digest)
			if _, keep := pinned[h]; keep {
				continue
			}
			removed, err := s.remove(h, now)
			if err != nil {
				errs = append(errs, err)
			}
			if removed {
				swept.Blobs++
				swept.Bytes += blob.Size
			}
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1].Digest
	}
	s.mu.Lock()
	partials := make([]*partial, 0, len(s.partials))
	for _, p := range s.partials {
		partials = append(partials, p)
	}
	s.mu.Unlock()
	for _, p := range partials {
		p.mu.Lock()
		if p.touched.After(now) { // by a clock that was set back since, in an earlier life
			p.touched = now
		}
		if !p.over && now.Sub(p.touched) >= s.lease {
			errs = append(errs, s.drop(p, nil))
			swept.Partials++
			swept.Bytes += p.received
		}
		p.mu.Unlock()
	}
	s.settle(now)
	return swept, errors.Join(errs...)
}

// pinned returns all pinned blobs.
func (s *Store) pinned() map[string]struct{} {
	s.pinning.Lock()
	defer s.pinning.Unlock()
	all := map[string]struct{}{}
	for _, hexes := range s.pins {
		for h := range hexes {
			all[h] = struct{}{}
		}
	}
	return all
}

// remove removes a blob, unless it was pinned or leased since Sweep looked.
func (s *Store) remove(h string, now time.Time) (bool, error) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	info, err := os.Stat(s.path(h))
	if errors.Is(err, fs.ErrNotExist) || err == nil && s.leased(h, info.ModTime(), now) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("image store: %w", err)
	}
	s.pinning.Lock()
	defer s.pinning.Unlock()
	for _, hexes := range s.pins {
		if _, keep := hexes[h]; keep {
			return false, nil
		}
	}
	if err := os.Remove(s.path(h)); err != nil {
		return false, fmt.Errorf("image store: %w", err)
	}
	return true, nil
}
