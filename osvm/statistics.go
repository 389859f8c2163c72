package osvm

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Statistics are what a machine has used of its host, since QEMU was started; the
// network since this host has the machine.
type Statistics struct {
	CPU            time.Duration // processor time, of the guest and of all that QEMU does for it
	MemoryBytes    int64         // in the host's memory; what it shares with other clones counts by its part
	DiskRead       int64         // bytes
	DiskWritten    int64
	NetworkToGuest int64 // bytes between the guest and its host, by which all of its network goes
	NetworkToHost  int64
}

// Statistics asks the kernel and QEMU. The error says what has no answer; a
// machine that has ended has none.
func (m *Machine) Statistics(ctx context.Context) (Statistics, error) {
	s := Statistics{NetworkToGuest: m.traffic.in.Load(), NetworkToHost: m.traffic.out.Load()}
	var err error
	if s.CPU, err = processorTime(m.process.pid); err == nil {
		s.MemoryBytes, err = memoryOf(m.process.pid)
	}
	if err != nil {
		return s, fmt.Errorf("VM %s: %w", m.ID, err)
	}
	var disks []struct {
		Stats struct {
			Read    int64 `json:"rd_bytes"`
			Written int64 `json:"wr_bytes"`
		}
	}
	if err := m.monitor.Execute(ctx, "query-blockstats", nil, &disks); err != nil {
		return s, fmt.Errorf("VM %s: %w", m.ID, err)
	}
	for _, disk := range disks {
		s.DiskRead += disk.Stats.Read
		s.DiskWritten += disk.Stats.Written
	}
	return s, nil
}

// clockTick is the unit of processor times in proc(5), on all of Linux's
// architectures that there is a QEMU for.
const clockTick = 10 * time.Millisecond

// processorTime is what all threads of a process have used.
func processorTime(pid int) (time.Duration, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	const user, system = 11, 12 // after the name
	u, err := strconv.ParseInt(fields[user], 10, 64)
	if err != nil {
		return 0, err
	}
	s, err := strconv.ParseInt(fields[system], 10, 64)
	return time.Duration(u+s) * clockTick, err
}

// memoryOf is a process's proportional share of memory, or all that it has in
// memory where the kernel does not tell that.
func memoryOf(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, "Pss:"); found && err == nil {
			kilobytes, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kilobytes << 10, err
		}
	}
	text, err = os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(text))
	const resident = 1
	if len(fields) <= resident {
		return 0, fmt.Errorf("/proc/%d/statm has %d fields", pid, len(fields))
	}
	pages, err := strconv.ParseInt(fields[resident], 10, 64)
	return pages * int64(os.Getpagesize()), err
}
