package osvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// templateFile is the name of a template's memory among QEMU's descriptors.
const templateFile = "mvm-template"

// Template is a machine that was frozen once it was up: its memory and the state
// of its devices, from which clones begin without a boot. A clone is an exact
// copy; what makes it a guest of its own is for its agent to hear.
//
// It fits machines of the same spec, QEMU and accelerator only: who keeps
// templates keys them by those.
type Template struct {
	folder string

	mu     sync.Mutex // guards what follows: what clones begin with, once one did
	ram    *os.File
	device *os.File
}

func (t *Template) memory() string { return filepath.Join(t.folder, memoryName) }
func (t *Template) state() string  { return filepath.Join(t.folder, stateFile) }

// Freeze makes a template of a machine in folder, which must not exist, and
// destroys the machine. Nobody may be connected to its agent: a clone would
// believe that it still is. Nothing is left in folder when it fails.
func (m *Machine) Freeze(ctx context.Context, folder string) (*Template, error) {
	if _, err := os.Stat(filepath.Join(m.folder, memoryName)); err != nil { // an adopted one does not know its template
		return nil, fmt.Errorf("VM %s is a clone: its memory is not in a file of its own", m.ID)
	}
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, fmt.Errorf("VM %s: freeze it: %w", m.ID, err)
	}
	t := &Template{folder: folder}
	if err := m.freeze(ctx, t); err != nil {
		_ = os.RemoveAll(folder)
		return nil, err
	}
	return t, nil
}

func (m *Machine) freeze(ctx context.Context, t *Template) error {
	if err := m.Suspend(ctx); err != nil {
		return err
	}
	if err := m.save(ctx, t.state()); err != nil {
		return err
	}
	for _, name := range append(m.writable(), memoryName) { // QEMU has written all of them
		if err := linkFile(filepath.Join(m.folder, name), filepath.Join(t.folder, name)); err != nil {
			return fmt.Errorf("VM %s: freeze it: %w", m.ID, err)
		}
	}
	return m.Destroy()
}

// linkFile gives a file another name, or where that is in another file system, makes
// a copy there.
func linkFile(from, to string) error {
	err := os.Link(from, to)
	if !errors.Is(err, unix.EXDEV) {
		return err
	}
	file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(copyFile(file, from), file.Close())
}

// open gives what a clone begins with: the memory, sealed, and the state of the
// devices. In QEMU 7.2 clones have to open the memory for writing although they
// never write to it, so that it must be a file that nobody can write, or one clone
// could change all others. Both are of one freezing, whatever happens to the folder.
func (t *Template) open(size int64) (memory, state *os.File, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ram == nil {
		if err := t.read(size); err != nil {
			return nil, nil, fmt.Errorf("read the template in %s: %w", t.folder, err)
		}
	}
	if memory, err = again(t.ram); err != nil {
		return nil, nil, err
	}
	if state, err = again(t.device); err != nil {
		_ = memory.Close()
		return nil, nil, err
	}
	return memory, state, nil
}

func (t *Template) read(size int64) error {
	folder, err := os.OpenRoot(t.folder)
	if err != nil {
		return err
	}
	defer folder.Close()
	from, err := folder.Open(memoryName)
	if err != nil {
		return err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if info.Size() != size {
		return fmt.Errorf("its memory has %d bytes, and the machine's has %d", info.Size(), size)
	}
	state, err := folder.Open(stateFile)
	if err != nil {
		return err
	}
	ram, err := sealed(templateFile, from, info.Size())
	if err != nil {
		_ = state.Close()
		return err
	}
	t.ram, t.device = ram, state
	return nil
}

// again opens an open file, so that it is read from its beginning.
func again(file *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd()))
}

// forget lets go of what clones begin with; those that run have it.
func (t *Template) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ram != nil {
		_ = t.ram.Close()
		_ = t.device.Close()
		t.ram, t.device = nil, nil
	}
}

// Remove deletes the template. Clones that run go on: they hold its memory.
func (t *Template) Remove() error {
	t.forget()
	return os.RemoveAll(t.folder)
}

// there says whether the template is whole, and that it is used.
func (t *Template) there() bool {
	now := time.Now()
	return os.Chtimes(t.folder, now, now) == nil
}

// generation tells what was frozen into the folder from what was before, 0 if
// nothing is there.
func (t *Template) generation() int64 {
	info, err := os.Stat(t.state())
	if err != nil {
		return 0
	}
	return info.ModTime().UnixNano()
}

// size is what the template has on disk, in bytes.
func (t *Template) size() int64 {
	var size int64
	files, _ := os.ReadDir(t.folder)
	for _, file := range files {
		var info unix.Stat_t
		if unix.Stat(filepath.Join(t.folder, file.Name()), &info) == nil {
			const block = 512 // whatever the file system's is: stat(2)
			size += info.Blocks * block
		}
	}
	return size
}
