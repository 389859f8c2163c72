package osvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/digitalocean/go-qemu/qemu"
	"golang.org/x/sys/unix"
)

// Capture is all that a machine was at one moment, held in memory: what Save makes
// a checkpoint of while the machine runs on. Close it.
type Capture struct {
	Spec  Spec
	At    time.Time     // by this host's clock
	Pause time.Duration // for which the guest stood still for it; 0 where it stood still anyway

	state  []byte
	memory *memory
	copied []byte     // mapped: the chunks that the machine may have written since
	own    []bool     // which chunks these are; the others are the template's for ever
	filled []bool     // which of them were copied from a file, and are not zeros still
	disks  []*os.File // copies of the overlays, nil for a disk without one; they have no name
	known  *written
}

// Capture takes the machine's state: of a running one in a pause as short as it
// can be, and it goes on also when the capture fails; a suspended one stays so. It
// takes memory of this host's: of a clone's what it has written, of another
// machine's all that is not zero; and room on its disk for what the guest has
// written to its own. A suspended machine with such disks runs for a moment first,
// since QEMU gives them out of its hands once.
func (m *Machine) Capture(ctx context.Context) (*Capture, error) {
	c := &Capture{Spec: m.Spec, At: time.Now(), known: &m.known}
	if err := m.capture(ctx, c); err != nil {
		c.Close()
		return nil, fmt.Errorf("VM %s: take its state: %w", m.ID, errors.Join(m.Reason(), err))
	}
	return c, nil
}

func (m *Machine) capture(ctx context.Context, c *Capture) (err error) {
	if err := m.beginTaking(); err != nil {
		return err
	}
	defer m.endTaking()
	if c.memory, err = m.mapMemory(); err != nil {
		return err
	}
	c.own = make([]bool, (c.memory.size()+chunkSize-1)/chunkSize)
	c.filled = make([]bool, len(c.own))
	if c.copied, err = unix.Mmap(-1, 0, c.memory.size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return err
	}
	status, err := m.Status()
	if err != nil {
		return err
	}
	m.pass("begun")
	if status != qemu.StatusRunning {
		if len(m.writable()) > 0 {
			if err := errors.Join(m.Resume(ctx), m.Suspend(ctx)); err != nil {
				return err
			}
		}
		return m.take(ctx, c)
	}
	// Of a memory that is all its own most has no change until it stands still: then
	// that needs no copy, only to be compared. What is torn now is not the same then.
	if c.memory.process == nil {
		if err := c.copyMemory(); err != nil {
			return err
		}
	}
	begin := time.Now()
	err = m.Suspend(ctx)
	m.pass("suspended")
	if err == nil {
		err = m.take(ctx, c)
	}
	m.pass("taken")
	// Whoever asked for it may have gone: the guest goes on nevertheless.
	again, cancel := context.WithTimeout(context.WithoutCancel(ctx), goOnLimit)
	defer cancel()
	err = errors.Join(err, m.Resume(again))
	c.Pause = time.Since(begin)
	m.pass("going on")
	return err
}

// goOnLimit is how long QEMU may take to start the processors again.
const goOnLimit = 10 * time.Second

// pass is where a test ends QEMU.
func (m *Machine) pass(step string) {
	if m.passing != nil {
		m.passing(step)
	}
}

// take is what happens during the pause: nothing that can wait.
func (m *Machine) take(ctx context.Context, c *Capture) (err error) {
	if c.state, err = m.stateBytes(ctx); err != nil {
		return err
	}
	if err = c.copyMemory(); err != nil {
		return err
	}
	return m.takeDisks(c)
}

// copyMemory copies what the machine may have written, but for what was copied
// before and is the same. Zeros take no room.
func (c *Capture) copyMemory() error {
	for at := 0; at < len(c.copied); at += chunkSize {
		piece, i := c.copied[at:min(at+chunkSize, len(c.copied))], at/chunkSize
		content, own, err := c.memory.look(at, piece)
		if err != nil {
			return err
		}
		c.own[i] = own != 0
		if own == 0 || &content[0] == &piece[0] || !c.filled[i] && zero(content) || c.filled[i] && bytes.Equal(piece, content) {
			continue
		}
		copy(piece, content)
		c.filled[i] = true
	}
	return nil
}

// takeDisks copies the overlays, which QEMU has written whole once it has saved the
// state of the stopped machine: as a reference to the same blocks where the file
// system has such.
func (m *Machine) takeDisks(c *Capture) error {
	c.disks = make([]*os.File, len(m.Disks))
	for i, disk := range m.Disks {
		if disk.ReadOnly {
			continue
		}
		copied, err := os.CreateTemp(m.folder, "taken-")
		if err != nil {
			return err
		}
		c.disks[i] = copied
		_ = os.Remove(copied.Name()) // from now on it goes with its descriptor
		overlay, err := os.Open(filepath.Join(m.folder, diskName(i)))
		if err != nil {
			return err
		}
		err = unix.IoctlFileClone(int(copied.Fd()), int(overlay.Fd()))
		if err != nil {
			var info os.FileInfo
			if info, err = overlay.Stat(); err == nil {
				err = copySparse(copied, overlay, info.Size())
			}
		}
		_ = overlay.Close()
		if err != nil {
			return fmt.Errorf("copy what the guest has written to its disk %d: %w", i, err)
		}
	}
	return nil
}

// stateBytes saves the stopped machine's state into memory.
func (m *Machine) stateBytes(ctx context.Context) ([]byte, error) {
	file, err := anonymous()
	if err != nil {
		return nil, err
	}
	defer file.Close()
	writing, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer writing.Close()
	if err := m.saveTo(ctx, writing); err != nil {
		return nil, err
	}
	state, err := io.ReadAll(io.LimitReader(file, stateMax+1))
	if err == nil && (len(state) == 0 || len(state) > stateMax) {
		err = fmt.Errorf("QEMU's state of the devices has %d bytes or more, and may have %d", len(state), stateMax)
	}
	return state, err
}

// chunk is the part of the guest's memory from a byte on, which begins a chunk.
func (c *Capture) chunk(at int) []byte {
	from := c.memory.shared
	if c.own[at/chunkSize] {
		from = c.copied
	}
	return from[at:min(at+chunkSize, len(from))]
}

// Close gives the memory back. Calling it twice changes nothing.
func (c *Capture) Close() {
	if c.copied != nil {
		_ = unix.Munmap(c.copied)
		c.copied = nil
	}
	if c.memory != nil {
		c.memory.close()
		c.memory = nil
	}
	for _, disk := range c.disks {
		if disk != nil {
			_ = disk.Close()
		}
	}
	c.disks = nil
}
