package osvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pageSize is the grain in which a guest's memory is looked at, whatever the
// guest's or the host's pages are.
const pageSize = 4096

// memory is a guest's memory as its host reads it, while it runs or stands still.
//
// A machine's own memory is a file that QEMU shares. A clone's is the template's
// file, and QEMU's alone where the clone has written: that is read out of QEMU's
// process, which the kernel allows to who may trace it: root, or who started it.
type memory struct {
	shared []byte // the file, mapped; a clone's is what its template was

	process *os.File // a clone's: the memory of QEMU's process
	pages   *os.File // and what the kernel says of each of its pages
	base    int64    // where in them the guest's memory begins
}

// openMemory opens the memory of a machine whose QEMU runs.
func (m *Machine) openMemory() (*memory, error) {
	r, err := m.mapMemory()
	if err != nil {
		return nil, fmt.Errorf("VM %s: open its memory: %w", m.ID, err)
	}
	return r, nil
}

func (m *Machine) mapMemory() (*memory, error) {
	file, clone, err := m.memoryFile()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	r := &memory{}
	if r.shared, err = unix.Mmap(int(file.Fd()), 0, m.MemoryMiB<<20, unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return nil, err
	}
	if !clone {
		return r, nil
	}
	if os.Getpagesize() != pageSize {
		return nil, fmt.Errorf("this machine has pages of %d bytes: a clone's memory is read where they have %d", os.Getpagesize(), pageSize)
	}
	proc := fmt.Sprintf("/proc/%d/", m.PID())
	var failed [3]error
	r.base, failed[0] = mappedAt(proc+"maps", file, int64(len(r.shared)))
	r.process, failed[1] = os.Open(proc + "mem")
	r.pages, failed[2] = os.Open(proc + "pagemap")
	if err := errors.Join(failed[:]...); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// memoryFile opens the file that QEMU has mapped: the machine's own, or for a clone
// its template's, which is to be found with QEMU alone when the node has changed.
func (m *Machine) memoryFile() (file *os.File, clone bool, err error) {
	file, err = os.Open(filepath.Join(m.folder, memoryName))
	if !errors.Is(err, os.ErrNotExist) {
		return file, false, err
	}
	fds := fmt.Sprintf("/proc/%d/fd", m.PID())
	entries, err := os.ReadDir(fds)
	if err != nil {
		return nil, true, err
	}
	for _, e := range entries {
		if to, _ := os.Readlink(filepath.Join(fds, e.Name())); strings.HasPrefix(to, "/memfd:"+templateFile) {
			file, err = os.Open(filepath.Join(fds, e.Name()))
			return file, true, err
		}
	}
	return nil, true, errors.New("QEMU does not have its template's memory open")
}

// mappedAt finds where a process has so many bytes of a file in its memory
// (proc(5)).
func mappedAt(maps string, file *os.File, size int64) (int64, error) {
	var info unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &info); err != nil {
		return 0, err
	}
	text, err := os.ReadFile(maps)
	if err != nil {
		return 0, err
	}
	device := fmt.Sprintf("%02x:%02x", unix.Major(info.Dev), unix.Minor(info.Dev))
	var begin, next int64 // of the pieces that follow each other: the kernel may have split them
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[3] != device || fields[4] != strconv.FormatUint(info.Ino, 10) {
			continue
		}
		var from, to, offset int64
		if _, err := fmt.Sscanf(fields[0]+" "+fields[2], "%x-%x %x", &from, &to, &offset); err != nil {
			return 0, fmt.Errorf("%s: %q: %w", maps, line, err)
		}
		if offset == 0 {
			begin, next = from, from
		}
		if from == next && from-begin == offset {
			if next = to; next-begin == size {
				return begin, nil
			}
		}
	}
	return 0, fmt.Errorf("%s: QEMU has no %d bytes of %s in its memory", maps, size, file.Name())
}

func (r *memory) close() {
	_ = unix.Munmap(r.shared)
	for _, file := range []*os.File{r.process, r.pages} {
		if file != nil {
			_ = file.Close()
		}
	}
}

// size is the memory's, in bytes.
func (r *memory) size() int { return len(r.shared) }

// chunkSize is what is looked at in one go: a page a bit of a word.
const chunkSize = 64 * pageSize

// all has the bit of each page of a chunk.
const all = ^uint64(0)

// look is what memory has at byte at: a chunk, or what is left of memory. It
// returns into or the mapped file, which is not to be written and which the guest
// may be writing. In own the bit of each page is set that the machine may have
// written: all, but for a clone's pages that still are its template's.
func (r *memory) look(at int, into []byte) (content []byte, own uint64, err error) {
	into = into[:min(chunkSize, r.size()-at)]
	template := r.shared[at : at+len(into)]
	if r.process == nil {
		return template, all, nil
	}
	const entry = 8 // bytes of the kernel's word on a page (Documentation/admin-guide/mm/pagemap.rst of Linux)
	const present, swapped, file = 1 << 63, 1 << 62, 1 << 61
	var words [64 * entry]byte
	pages := len(into) / pageSize
	from := r.base + int64(at)
	if _, err := r.pages.ReadAt(words[:pages*entry], from/pageSize*entry); err != nil {
		return nil, 0, fmt.Errorf("which pages are the clone's own: %w", err)
	}
	for i := range pages {
		if word := binary.NativeEndian.Uint64(words[i*entry:]); word&(present|swapped) != 0 && word&file == 0 {
			own |= 1 << i
		}
	}
	if own == 0 {
		return template, 0, nil
	}
	for i := 0; i < pages; {
		n := i + 1
		for n < pages && own>>n&1 == own>>i&1 {
			n++
		}
		piece := into[i*pageSize : n*pageSize]
		if own>>i&1 == 0 {
			copy(piece, template[i*pageSize:])
		} else if _, err := r.process.ReadAt(piece, from+int64(i*pageSize)); err != nil {
			return nil, 0, fmt.Errorf("read QEMU's memory: %w", err)
		}
		i = n
	}
	return into, own, nil
}
