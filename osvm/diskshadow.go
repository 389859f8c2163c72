package osvm

import (
	"encoding/binary"
	"errors"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"time"
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
// the memory of its host.
type diskShadow struct {
	number int // of the disk
	file   *os.File
	wire   *wire
	seeds  [2]maphash.Seed
	sums   [][2]uint64 // of each piece of the file; 128 bits, which no guest can aim at
	still  time.Time   // when the file was last written, if no round need look again before that has changed
}

// diskPiece is what is looked at in one go: a cluster of our overlays.
const diskPiece = cluster

// diskCalm is how long ago a file must have been written last, when a round over it
// begins, so that any later writing shows in its time, which goes by the kernel's tick.
const diskCalm = time.Second

type diskShadows []*diskShadow

// shadowDisks are those of all disks that the guest may write.
func (m *Machine) shadowDisks(w *wire) (all diskShadows, err error) {
	for i, disk := range m.Disks {
		if disk.ReadOnly {
			continue
		}
		file, err := os.Open(filepath.Join(m.folder, diskName(i)))
		if err != nil {
			all.close()
			return nil, err
		}
		all = append(all, &diskShadow{number: i, file: file, wire: w, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}})
	}
	return all, nil
}

func (all diskShadows) close() {
	for _, s := range all {
		_ = s.file.Close()
	}
}

// round sends what differs and says how many bytes that were.
func (all diskShadows) round() (sent int64, err error) {
	for _, s := range all {
		n, err := s.round()
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

func (s *diskShadow) round() (sent int64, err error) {
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
	into := make([]byte, chunkSize)
	for at := int64(0); at < info.Size(); at += chunkSize {
		n, err := s.file.ReadAt(into[:min(chunkSize, info.Size()-at)], at)
		if err != nil && !errors.Is(err, io.EOF) { // QEMU may have made it shorter
			return sent, err
		}
		for from := 0; from < n; from += diskPiece {
			piece := into[from:min(from+diskPiece, n)]
			i := int(at/diskPiece) + from/diskPiece
			if i == len(s.sums) {
				s.sums = append(s.sums, s.sum(zeros[:len(piece)]))
			}
			sum := s.sum(piece)
			if sum == s.sums[i] {
				continue
			}
			if err := s.put(at+int64(from), piece); err != nil {
				return sent, err
			}
			s.sums[i] = sum
			sent += int64(len(piece))
		}
	}
	return sent, nil
}

func (s *diskShadow) sum(piece []byte) [2]uint64 {
	return [2]uint64{maphash.Bytes(s.seeds[0], piece), maphash.Bytes(s.seeds[1], piece)}
}

func (s *diskShadow) put(at int64, piece []byte) error {
	var head [diskHead]byte
	binary.BigEndian.PutUint32(head[:], uint32(s.number))
	binary.BigEndian.PutUint64(head[4:], uint64(at))
	return s.wire.put(frameDisk, head[:], piece)
}
