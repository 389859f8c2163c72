package osvm

import (
	"fmt"
	"io"
	"io/fs"
)

// cpio writes an initial file system for Linux: the "newc" format (Linux,
// Documentation/driver-api/early-userspace/buffer-format.rst). Folders come
// before what is in them. All belongs to root and is of time 0, so that the same
// files give the same bytes, and the same digest.
type cpio struct {
	w      io.Writer
	number int // of the next file: hard links would share one
	failed error
}

const cpioTrailer = "TRAILER!!!"

func (c *cpio) folder(name string) { c.entry(name, 0o040000|0o755, nil) }

func (c *cpio) file(name string, mode fs.FileMode, content []byte) {
	c.entry(name, 0o100000|uint32(mode.Perm()), content)
}

func (c *cpio) link(name, target string) { c.entry(name, 0o120000|0o777, []byte(target)) }

// close ends the archive and says what went wrong on the way.
func (c *cpio) close() error {
	c.entry(cpioTrailer, 0, nil)
	return c.failed
}

func (c *cpio) entry(name string, mode uint32, content []byte) {
	if c.failed != nil {
		return
	}
	if uint64(len(content)) > 0xffffffff {
		c.failed = fmt.Errorf("%s has %d bytes: an initial file system holds files of less than 4 GiB", name, len(content))
		return
	}
	c.number++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		c.number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	for _, part := range [][]byte{[]byte(header), padding(len(header)), content, padding(len(content))} {
		if _, c.failed = c.w.Write(part); c.failed != nil {
			return
		}
	}
}

// padding brings a length to a multiple of 4.
func padding(length int) []byte { return make([]byte, -length&3) }
