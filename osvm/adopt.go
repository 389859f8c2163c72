package osvm

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// takeOver looks at each folder that an earlier Host left.
func (h *Host) takeOver(context.Context) error {
	entries, err := os.ReadDir(h.machines)
	if err != nil {
		return err
	}
	for _, e := range entries {
		folder := filepath.Join(h.machines, e.Name())
		if r, err := readRecord(folder); err == nil {
			if start, err := startTime(r.PID); err == nil && start == r.StartTime {
				err := unix.Kill(r.PID, unix.SIGKILL)
				h.config.Log.Warnf("VM %s, which an earlier node left, is removed: %v", r.ID, err)
			}
		}
		if err := os.RemoveAll(folder); err != nil {
			return err
		}
	}
	return nil
}

func readRecord(folder string) (record, error) {
	var r record
	text, err := os.ReadFile(filepath.Join(folder, recordName))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && (r.ID != filepath.Base(folder) || r.PID <= 0) {
		err = errors.New("it is of another machine")
	}
	return r, err
}
