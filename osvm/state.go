package osvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"
)

// migration is QEMU's name for what moves a machine's state into a file or out of
// one (docs/devel/migration.rst of QEMU). Memory that a file holds stays out of
// it: what is written is the state of devices and processor, some 0.4 MB.
type migration struct {
	Status      string `json:"status"`
	Description string `json:"error-desc"`
}

// Names that we give QEMU's ends of the state's file, and how often we ask
// whether it is through.
const (
	stateFile = "state"
	statePoll = 2 * time.Millisecond
)

// save writes the state of the stopped machine's devices and processor to the
// file at path. The machine stays stopped.
func (m *Machine) save(ctx context.Context, path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := m.move(ctx, file, "migrate", "postmigrate"); err != nil {
		return fmt.Errorf("VM %s: save its state: %w", m.ID, err)
	}
	return nil
}

// load reads what save wrote into a machine that waits for it.
func (m *Machine) load(ctx context.Context, path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := m.move(ctx, file, "migrate-incoming", "paused"); err != nil {
		return fmt.Errorf("load the state in %s: %w", path, err)
	}
	return nil
}

// move has QEMU move state and waits until it is in the status that follows:
// before that it refuses to go on, or to move again.
func (m *Machine) move(ctx context.Context, file *os.File, command, after string) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	shared := map[string][]capability{"capabilities": {{"x-ignore-shared", true}}}
	if err := m.monitor.Execute(ctx, "migrate-set-capabilities", shared, nil); err != nil {
		return err
	}
	if err := m.monitor.ExecuteWithFile(ctx, "getfd", map[string]string{"fdname": stateFile}, nil, file); err != nil {
		return err
	}
	if err := m.monitor.Execute(ctx, command, map[string]string{"uri": "fd:" + stateFile}, nil); err != nil {
		return err
	}
	for {
		var moved migration
		var machine struct{ Status string }
		err := errors.Join(
			m.monitor.Execute(ctx, "query-migrate", nil, &moved),
			m.monitor.Execute(ctx, "query-status", nil, &machine))
		switch {
		case err != nil:
			return err
		case moved.Status == "failed" || moved.Status == "cancelled":
			return fmt.Errorf("QEMU's migration has %s: %s", moved.Status, moved.Description)
		case machine.Status == after && (moved.Status == "completed" || moved.Status == ""):
			return nil
		}
		select {
		case <-time.After(statePoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
