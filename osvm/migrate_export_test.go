package osvm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// PassPoints has a test told of the points of migrations; nil ends that.
func (h *Host) PassPoints(told func(point string)) { h.config.Pass = told }

// KillQEMUOf is KillQEMU for a machine that may still be arriving.
func KillQEMUOf(h *Host, id string) {
	if m, err := h.Get(id); err == nil {
		m.kill()
		return
	}
	if r, err := readRecord(filepath.Join(h.machines, id)); err == nil {
		pid, _ := findProcess(r.UUID)
		_ = unix.Kill(pid, unix.SIGKILL)
		for dead := false; !dead; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			dead = err != nil || strings.Contains(string(text), ") Z ")
		}
	}
}
