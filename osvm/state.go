package osvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A machine's state is that of its processor and devices, some 0.13 MB, without
// its memory: QEMU writes that for Xen, and reads it as it does any migration
// (docs/devel/migration.rst of QEMU). So it is the same for a machine whose memory
// is a file and for a clone, whose memory QEMU's migration would copy. It is at
// most stateMax, which is far above that.
const (
	stateFile = "state"
	stateMax  = 16 << 20
	statePoll = 2 * time.Millisecond // how often we ask whether it is loaded
	stateSet  = 1                    // QEMU's number for the descriptor that it writes to
)

// save writes the state of the stopped machine to the file at path. The machine
// stays stopped; its disks are flushed, and its own again when it is resumed.
func (m *Machine) save(ctx context.Context, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	return m.saveTo(ctx, file)
}

// saveTo is save into a file that is open for writing alone: QEMU compares that.
func (m *Machine) saveTo(ctx context.Context, file *os.File) error {
	set := map[string]int{"fdset-id": stateSet}
	err := m.monitor.ExecuteWithFile(ctx, "add-fd", set, nil, file)
	if err == nil {
		err = errors.Join(
			m.monitor.Execute(ctx, "xen-save-devices-state", map[string]any{"filename": fmt.Sprint("/dev/fdset/", stateSet)}, nil),
			m.monitor.Execute(ctx, "remove-fd", set, nil))
	}
	if err != nil {
		return fmt.Errorf("VM %s: save its state: %w", m.ID, err)
	}
	return nil
}

// load reads what save wrote into a machine that waits for it, and waits until
// it has it: before that it refuses to go on.
func (m *Machine) load(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := m.loadFrom(ctx, file); err != nil {
		return fmt.Errorf("load the state in %s: %w", path, err)
	}
	return nil
}

func (m *Machine) loadFrom(ctx context.Context, file *os.File) error {
	if err := m.monitor.ExecuteWithFile(ctx, "getfd", map[string]string{"fdname": stateFile}, nil, file); err != nil {
		return err
	}
	if err := m.monitor.Execute(ctx, "migrate-incoming", map[string]string{"uri": "fd:" + stateFile}, nil); err != nil {
		return err
	}
	for {
		var moved struct {
			Status      string `json:"status"`
			Description string `json:"error-desc"`
		}
		var machine struct{ Status string }
		err := errors.Join(
			m.monitor.Execute(ctx, "query-migrate", nil, &moved),
			m.monitor.Execute(ctx, "query-status", nil, &machine))
		switch {
		case err != nil:
			return err
		case moved.Status == "failed" || moved.Status == "cancelled":
			return fmt.Errorf("QEMU's migration has %s: %s", moved.Status, moved.Description)
		case machine.Status == "paused" && (moved.Status == "completed" || moved.Status == ""):
			return nil
		}
		select {
		case <-time.After(statePoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// anonymous is a file that has no name and is in memory.
func anonymous() (*os.File, error) {
	fd, err := unix.MemfdCreate("mvm-state", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory: %w", err)
	}
	return os.NewFile(uintptr(fd), "state"), nil
}
