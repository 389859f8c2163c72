package osvm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Template is a machine that was frozen once it was up: its memory and the state
// of its devices, from which clones begin without a boot. A clone is an exact
// copy; what makes it a guest of its own is for its agent to hear.
//
// It fits machines of the same spec, QEMU and accelerator only: who keeps
// templates keys them by those.
type Template struct{ folder string }

func (t *Template) memory() string { return filepath.Join(t.folder, memoryName) }
func (t *Template) state() string  { return filepath.Join(t.folder, stateFile) }

// Freeze makes a template of a machine in folder, which must not exist, and
// destroys the machine. Nobody may be connected to its agent: a clone would
// believe that it still is. Nothing is left in folder when it fails.
func (m *Machine) Freeze(ctx context.Context, folder string) (*Template, error) {
	if m.Template != nil {
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
	if err := os.Link(filepath.Join(m.folder, memoryName), t.memory()); err != nil {
		return fmt.Errorf("VM %s: freeze it: %w", m.ID, err)
	}
	return m.Destroy()
}

// Remove deletes the template. Clones that run go on: they hold its memory.
func (t *Template) Remove() error { return os.RemoveAll(t.folder) }

// there says whether the template is whole, and that it is used.
func (t *Template) there() bool {
	now := time.Now()
	return os.Chtimes(t.folder, now, now) == nil
}

// size is what the template has on disk, in bytes.
func (t *Template) size() int64 {
	var size int64
	for _, path := range []string{t.memory(), t.state()} {
		var info unix.Stat_t
		if unix.Stat(path, &info) == nil {
			const block = 512 // whatever the file system's is: stat(2)
			size += info.Blocks * block
		}
	}
	return size
}
