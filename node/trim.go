package node

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trim gives back the memory that an idle node does not need: what the heap
// has free, and the pages of the program itself that were only used to start
// it, to copy the embedded MVM process out of it, or by the last attempt. The
// kernel keeps those in its page cache as long as it likes; what is used again
// is mapped again, some microseconds later.
func trim() error {
	debug.FreeOSMemory()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	mappings, err := untouched(f, program)
	if err != nil {
		return err
	}
	for _, m := range mappings {
		// Raw: the range is no memory of Go's, and a slice over it would have
		// to be made from a number.
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, m.from, m.to-m.from, unix.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("give back %x-%x: %w", m.from, m.to, errno)
		}
	}
	return nil
}

// mapping is a range of addresses.
type mapping struct{ from, to uintptr }

// untouched finds, in the text of /proc/PID/smaps, the mappings of a program's
// file that cannot be written and never were: only their pages can be had
// again from the file. What a loader has relocated cannot.
func untouched(smaps io.Reader, program string) ([]mapping, error) {
	var found []mapping
	var current mapping
	wanted := false
	flush := func() {
		if wanted {
			found = append(found, current)
		}
		wanted = false
	}
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 {
			continue
		}
		if name, ok := strings.CutSuffix(fields[0], ":"); ok {
			// Pages that differ from the file. Dirty ones need not: a file
			// that was written a moment ago has them, too.
			if len(fields) > 1 && fields[1] != "0" && (name == "Anonymous" || name == "Swap") {
				wanted = false
			}
			continue
		}
		flush()
		from, to, ok := strings.Cut(fields[0], "-")
		if !ok || len(fields) < 6 {
			continue // no file
		}
		first, err := strconv.ParseUint(from, 16, 8*int(unsafe.Sizeof(uintptr(0))))
		last, err2 := strconv.ParseUint(to, 16, 8*int(unsafe.Sizeof(uintptr(0))))
		if err := errors.Join(err, err2); err != nil {
			return nil, fmt.Errorf("read the memory map: %w", err)
		}
		current = mapping{uintptr(first), uintptr(last)}
		path := strings.Join(fields[5:], " ")
		wanted = (fields[1] == "r--p" || fields[1] == "r-xp") && path == program && last > first
	}
	flush()
	return found, lines.Err()
}
