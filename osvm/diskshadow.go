package osvm

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// diskShadow is what the target has been sent of an overlay: the file with what a
// guest has written to a disk. It begins as the target's does, without a byte. A
// piece is sent when its sum is not that of what was sent before; what was read of it
// while QEMU wrote is not whole, and is read again later. Once the guest stands still
// and QEMU has written what it had in mind, one more round leaves both sides with the
// same file.
//
// The file is looked at, and not the guest's blocks, because QEMU's format then stays
// QEMU's business; and sums are kept, and no copy, because a disk may be larger than
// the memory of its host. They have 64 bits and a secret seed: that a piece which has
// changed is taken for one that has not happens once in 2^64 pieces, and no guest can
// bring it about.
type diskShadow struct {
	number int // of the disk
	file   *os.File
	mapped []byte // the file, and what it may grow to: so that most of a round is the sums alone
	wire   *wire
	seed   maphash.Seed
	sums   []uint64  // of each piece of the file, as it was sent
	still  time.Time // when the file was last written, if no round need look again before that has changed
}

// diskPiece is what is looked at in one go: a cluster of our overlays.
const diskPiece = cluster

// diskCalm is how long ago a file must have been written last, when a round over it
// begins, so that any later writing shows in its time, which goes by the kernel's tick.
const diskCalm = time.Second

// overlayMost is what an overlay of a disk of that size may have: all its clusters,
// and the tables by which they are found.
func overlayMost(size int64) int64 { return size + size>>10 + 16<<20 }

type diskShadows []*diskShadow

// shadowDisks are those of all disks that the guest may write.
func (m *Machine) shadowDisks(w *wire) (all diskShadows, err error) {
	for i, disk := range m.Disks {
		if disk.ReadOnly {
			continue
		}
		s, err := newDiskShadow(i, filepath.Join(m.folder, diskName(i)), w)
		if err != nil {
			all.close()
			return nil, fmt.Errorf("VM %s: its disk %d: %w", m.ID, i, err)
		}
		all = append(all, s)
	}
	return all, nil
}

func newDiskShadow(number int, path string, w *wire) (*diskShadow, error) {
	info, err := ProbeDisk(path)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	mapped, err := unix.Mmap(int(file.Fd()), 0, int(overlayMost(info.Size)), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &diskShadow{number: number, file: file, mapped: mapped, wire: w, seed: maphash.MakeSeed()}, nil
}

func (all diskShadows) close() {
	for _, s := range all {
		_ = unix.Munmap(s.mapped)
		_ = s.file.Close()
	}
}

// round sends what differs and says how many bytes that were.
func (all diskShadows) round(workers int) (sent int64, err error) {
	for _, s := range all {
		n, err := s.round(workers)
		if sent += n; err != nil {
			return sent, err
		}
	}
	return sent, nil
}

// end says how long the files are.
func (all diskShadows) end() error {
	for _, s := range all {
		info, err := s.file.Stat()
		if err == nil {
			err = s.put(info.Size(), nil)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *diskShadow) round(workers int) (sent int64, err error) {
	begin := time.Now()
	info, err := s.file.Stat()
	if err != nil {
		return 0, err
	}
	if info.ModTime().Equal(s.still) {
		return 0, nil
	}
	if s.still = info.ModTime(); begin.Sub(s.still) < diskCalm {
		s.still = time.Time{}
	}
	size := info.Size()
	if size > int64(len(s.mapped)) {
		return 0, fmt.Errorf("the file of disk %d has %d bytes, and may have %d", s.number, size, len(s.mapped))
	}
	none := maphash.Bytes(s.seed, zeros[:diskPiece])
	for int64(len(s.sums))*diskPiece < size {
		s.sums = append(s.sums, none)
	}
	each := make([]int64, workers)
	copies := make([]byte, workers*diskPiece)
	err = inParallel(workers, int((size+diskPiece-1)/diskPiece), func(worker, i int) error {
		at := int64(i) * diskPiece
		piece := s.mapped[at:min(at+diskPiece, size)]
		if maphash.Bytes(s.seed, piece) == s.sums[i] {
			return nil
		}
		// What is sent is what the sum is of, whatever QEMU writes meanwhile.
		copied := copies[worker*diskPiece:][:copy(copies[worker*diskPiece:(worker+1)*diskPiece], piece)]
		s.sums[i] = maphash.Bytes(s.seed, copied)
		each[worker] += int64(len(copied))
		return s.put(at, copied)
	})
	for _, n := range each {
		sent += n
	}
	return sent, err
}

func (s *diskShadow) put(at int64, piece []byte) error {
	var head [diskHead]byte
	binary.BigEndian.PutUint32(head[:], uint32(s.number))
	binary.BigEndian.PutUint64(head[4:], uint64(at))
	return s.wire.put(frameDisk, head[:], piece)
}
