package osvm

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Formats of disks' files.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

// Disk is a disk of a machine: files that stay as they are, however many machines
// have them. What a guest writes goes to an overlay in its machine's folder.
type Disk struct {
	Path       string // which everybody may read
	Format     string // Raw or QCOW2
	Base       string `json:",omitempty"` // path of what a qcow2 file holds the differences from
	BaseFormat string `json:",omitempty"`
	ReadOnly   bool   `json:",omitempty"` // it has no overlay: the guest's writes fail
	Size       int64  `json:",omitempty"` // of an overlay that comes from another host, in bytes; 0 is that of the file, or the limit
}

// ErrDisk is wrapped by what is wrong with a disk's file.
var ErrDisk = errors.New("not a disk that can be used")

// DiskInfo is what a disk's file says of itself.
type DiskInfo struct {
	Format string
	Size   int64 // bytes, as the guest sees it
	Backed bool  // it is nothing without another file
}

// Places in a qcow2 file (QEMU, docs/interop/qcow2.txt); numbers are big-endian.
const (
	qcow2Magic     = "QFI\xfb"
	qcow2Header    = 104 // bytes, of version 3
	qcow2Dirty     = 1 << 0
	qcow2Corrupt   = 1 << 1
	qcow2Elsewhere = 1 << 2 // its data are in another file
	qcow2Known     = qcow2Dirty | 1<<3 | 1<<4
	clusterBits    = 16
	cluster        = 1 << clusterBits
	diskMost       = 1 << 42 // bytes: what one cluster of our L1 table reaches
	diskSector     = 512
)

// ProbeDisk reads what a disk's file says of itself. What refers to other files,
// but for a backing file, is refused: a guest must not read its host's.
func ProbeDisk(path string) (DiskInfo, error) {
	file, err := os.Open(path)
	if err != nil {
		return DiskInfo{}, err
	}
	defer file.Close()
	end, err := file.Stat()
	if err != nil {
		return DiskInfo{}, err
	}
	info, err := probeDisk(file, end.Size())
	if err != nil {
		return info, fmt.Errorf("%s: %w", path, err)
	}
	return info, nil
}

func probeDisk(file io.ReaderAt, end int64) (DiskInfo, error) {
	head := make([]byte, qcow2Header)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return DiskInfo{}, err
	}
	bad := func(format string, args ...any) (DiskInfo, error) {
		return DiskInfo{}, fmt.Errorf("%w: %s", ErrDisk, fmt.Sprintf(format, args...))
	}
	if n < 4 || string(head[:4]) != qcow2Magic {
		if end == 0 || end%diskSector != 0 {
			return bad("it is no qcow2 file, and of its %d bytes no sectors of %d can be made", end, diskSector)
		}
		return DiskInfo{Format: Raw, Size: end}, nil
	}
	big := binary.BigEndian
	version := big.Uint32(head[4:])
	if version != 2 && version != 3 || n < 72 || version == 3 && n < qcow2Header {
		return bad("a qcow2 file of version %d with %d bytes", version, end)
	}
	info := DiskInfo{Format: QCOW2, Size: int64(big.Uint64(head[24:])), Backed: big.Uint64(head[8:]) != 0 || big.Uint32(head[16:]) != 0}
	switch {
	case info.Size <= 0 || info.Size > diskMost || info.Size%diskSector != 0:
		return bad("a disk of %d bytes, expected sectors of %d and at most %d bytes", info.Size, diskSector, int64(diskMost))
	case big.Uint32(head[20:]) < 9 || big.Uint32(head[20:]) > 21:
		return bad("clusters of 2^%d bytes, expected 2^9 to 2^21", big.Uint32(head[20:]))
	case big.Uint32(head[32:]) != 0:
		return bad("it is encrypted")
	case end < int64(big.Uint64(head[40:]))+int64(big.Uint32(head[36:]))*8 || int64(big.Uint64(head[40:])) < 0:
		return bad("it has %d bytes and is cut off: its tables reach further", end)
	}
	if version == 3 {
		switch features := big.Uint64(head[72:]); {
		case features&qcow2Elsewhere != 0:
			return bad("its data are in another file; convert it with `qemu-img convert`")
		case features&qcow2Corrupt != 0:
			return bad("it is marked as corrupt; `qemu-img check -r all` may help")
		case features&^uint64(qcow2Known) != 0:
			return bad("it has features that are not known here: %#x", features)
		}
	}
	return info, nil
}

// writeOverlay writes a qcow2 file of a size that has nothing of its own yet. It
// does not name what it lies over: QEMU is told.
func writeOverlay(file io.WriterAt, size int64) error {
	const refcounts, refcountBlock, table = 1 * cluster, 2 * cluster, 3 * cluster // where they are
	const reach = cluster * cluster / 8                                           // of an entry of the table
	if size <= 0 || size > diskMost || size%diskSector != 0 {
		return fmt.Errorf("%w: %d bytes", ErrDisk, size)
	}
	big := binary.BigEndian
	head := make([]byte, qcow2Header)
	copy(head, qcow2Magic)
	big.PutUint32(head[4:], 3)
	big.PutUint32(head[20:], clusterBits)
	big.PutUint64(head[24:], uint64(size))
	big.PutUint32(head[36:], uint32((size+reach-1)/reach))
	big.PutUint64(head[40:], table)
	big.PutUint64(head[48:], refcounts)
	big.PutUint32(head[56:], 1) // cluster of refcounts
	big.PutUint32(head[96:], 4) // refcounts have 2^4 bits
	big.PutUint32(head[100:], qcow2Header)
	block := make([]byte, 8) // the four clusters are used once each
	for i := range 4 {
		big.PutUint16(block[2*i:], 1)
	}
	end := make([]byte, cluster)
	_, failed := file.WriteAt(head, 0)
	_, err := file.WriteAt(big.AppendUint64(nil, refcountBlock), refcounts)
	failed = errors.Join(failed, err)
	_, err = file.WriteAt(block, refcountBlock)
	failed = errors.Join(failed, err)
	_, err = file.WriteAt(end, table)
	return errors.Join(failed, err)
}

// diskName names a disk, and its overlay in a machine's folder.
func diskName(i int) string { return "disk" + strconv.Itoa(i) }

// disks are the files of a machine's disks, as QEMU gets them.
type disks struct{ words []string }

// openDisks opens the disks' files, makes their overlays, and gives QEMU's
// arguments. QEMU cannot open them again by other names: it asks for members of
// sets of descriptors.
func (m *Machine) openDisks(user *user, inherited *files) ([]string, error) {
	var d disks
	for i, disk := range m.Disks {
		info, err := disk.probe()
		if err != nil {
			return nil, err
		}
		name := diskName(i)
		below := any(nil)
		if disk.Base != "" {
			base, err := os.Open(disk.Base)
			if err = d.add(inherited, base, err, name+"-base", disk.BaseFormat, true, nil); err != nil {
				return nil, err
			}
			below = name + "-base"
		}
		top := name
		if !disk.ReadOnly {
			top = name + "-image"
		}
		file, err := os.Open(disk.Path)
		if err := d.add(inherited, file, err, top, disk.Format, true, below); err != nil {
			return nil, err
		}
		if !disk.ReadOnly {
			size := info.Size
			if m.Limits.DiskMiB > 0 {
				if size = int64(m.Limits.DiskMiB) << 20; size < info.Size {
					return nil, fmt.Errorf("%w: the image's disk has %d MiB, and the limit is %d", ErrOrder, (info.Size+1<<20-1)>>20, m.Limits.DiskMiB)
				}
			}
			if disk.Size > 0 {
				size = disk.Size
			}
			overlay, err := m.overlay(user, name, size)
			if err := d.add(inherited, overlay, err, name, QCOW2, false, top); err != nil {
				return nil, err
			}
		}
		drive := name
		if limit := m.Limits.DiskBytesPerSecond; limit > 0 {
			if i == 0 {
				d.words = append(d.words, "-object", jsonText(map[string]any{"qom-type": "throttle-group", "id": "disks", "limits": map[string]any{"bps-total": limit}}))
			}
			d.block(map[string]any{"driver": "throttle", "node-name": name + "-slow", "throttle-group": "disks", "file": name, "read-only": disk.ReadOnly})
			drive += "-slow"
		}
		device := "virtio-blk-pci,romfile=,drive=" + drive + ",serial=mvm-" + name
		if i == 0 && m.Kernel == "" {
			device += ",bootindex=0"
		}
		d.words = append(d.words, "-device", device)
	}
	return d.words, nil
}

// add has QEMU get a file, opened with err, as a node of a format over another
// one, nil for none.
func (d *disks) add(inherited *files, file *os.File, err error, node, format string, readOnly bool, below any) error {
	if err != nil {
		return err
	}
	fd := inherited.add(file, nil)
	d.words = append(d.words, "-add-fd", "set="+fd+",fd="+fd)
	// Another process may have the file, whose descriptor has no lock of its own.
	d.block(map[string]any{"driver": "file", "node-name": node + "-file", "filename": "/dev/fdset/" + fd, "read-only": readOnly, "locking": "off"})
	over := map[string]any{"driver": format, "node-name": node, "file": node + "-file", "read-only": readOnly}
	if format == QCOW2 {
		over["backing"] = below // also null, so that no name in the file is believed
	}
	d.block(over)
	return nil
}

func (d *disks) block(options map[string]any) {
	d.words = append(d.words, "-blockdev", jsonText(options))
}

func jsonText(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err) // there is nothing in it that has no text
	}
	return string(text)
}

// probe looks at all that is said of a disk.
func (d *Disk) probe() (DiskInfo, error) {
	info, err := ProbeDisk(d.Path)
	switch {
	case err != nil:
		return info, err
	case d.Format == Raw && info.Format == QCOW2:
		// As raw a guest could write a header that means its host's files.
		return info, fmt.Errorf("%s: %w: it is a qcow2 file, and is said to be raw", d.Path, ErrDisk)
	case d.Format != info.Format:
		return info, fmt.Errorf("%s: %w: it is %s, and is said to be %q", d.Path, ErrDisk, info.Format, d.Format)
	case info.Backed && d.Base == "":
		return info, fmt.Errorf("%s: %w: it holds the differences from another file, which the image has not", d.Path, ErrDisk)
	case d.Base == "":
		return info, nil
	}
	base, err := ProbeDisk(d.Base)
	switch {
	case err != nil:
		return info, err
	case d.Format != QCOW2 || base.Format != d.BaseFormat || base.Backed:
		return info, fmt.Errorf("%s: %w: its base is %s, and is said to be %q", d.Path, ErrDisk, base.Format, d.BaseFormat)
	}
	return info, nil
}

// overlay makes the file that has what the guest writes to a disk: empty, or for a
// clone what its template had written.
func (m *Machine) overlay(user *user, name string, size int64) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(m.folder, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if m.Template == nil {
		err = writeOverlay(file, size)
	} else {
		err = copyFile(file, filepath.Join(m.Template.folder, name))
	}
	if err = errors.Join(err, user.own(file)); err != nil {
		_ = file.Close()
		return nil, err
	}
	return file, nil
}

func copyFile(to *os.File, path string) error {
	from, err := os.Open(path)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	return copySparse(to, from, info.Size())
}

// Written is how many bytes of this machine's disk have what the guest wrote to its own.
func (m *Machine) Written() (bytes int64) {
	for _, name := range m.writable() {
		var s unix.Stat_t
		if unix.Stat(filepath.Join(m.folder, name), &s) == nil {
			bytes += s.Blocks * 512
		}
	}
	return bytes
}

// writable are the names of the overlays.
func (s *Spec) writable() (names []string) {
	for i, disk := range s.Disks {
		if !disk.ReadOnly {
			names = append(names, diskName(i))
		}
	}
	return names
}

// diskMiB is the limit of the overlays, where there are some: a clone's have the
// size of its template's.
func (s *Spec) diskMiB() int {
	if len(s.writable()) == 0 {
		return 0
	}
	return s.Limits.DiskMiB
}
