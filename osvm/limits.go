package osvm

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Limits are a machine's share of its host. Zero is no limit, but for the memory,
// which always has one: the guest's and what QEMU needs beside it.
//
// The disk's rate is held by QEMU (disk.go), and by no control group beside it: those
// of version 1 count what is read and written past the page cache alone, and io.max of
// version 2 what the device below does, which is nothing for an image that another
// guest has read. QEMU counts what the guest asks for, the same everywhere.
type Limits struct {
	CPUs                  float64 // processor time, for all that QEMU does: 0.5 is half a core; also its weight where the host is busy
	DiskMiB               int     // of its writable disk
	DiskBytesPerSecond    int64
	NetworkBytesPerSecond int64 // all that passes between the guest and its host
}

// Least of what a machine can live with: a guest that answers in minutes looks
// dead.
const (
	leastCPUs    = 0.01
	leastNetwork = 64 << 10
)

func (l Limits) Check() error {
	switch {
	case l.CPUs != 0 && !(l.CPUs >= leastCPUs): // also what is no number
		return fmt.Errorf("a limit of %v processors: it is 0 for none, or at least %v", l.CPUs, leastCPUs)
	case l.NetworkBytesPerSecond != 0 && l.NetworkBytesPerSecond < leastNetwork:
		return fmt.Errorf("a limit of %d bytes a second on the network: it is 0 for none, or at least %d", l.NetworkBytesPerSecond, leastNetwork)
	case l.DiskMiB < 0 || l.DiskBytesPerSecond < 0:
		return errors.New("a limit on the disk is below 0")
	}
	return nil
}

// What QEMU needs beside the guest's memory, in MiB: what it translated, and the
// rest of it, with the image in the page cache.
const (
	translationMiB = 64
	overheadMiB    = 192
)

// Control groups. In version 1 there is one for each controller, below our own; in
// version 2 one, beside our own, because a group with processes has no groups with
// limits below it.
const (
	groupRoot   = "/sys/fs/cgroup"
	groupPrefix = "mvm-vm-"
	groupPeriod = 50 * time.Millisecond // of processor time
	groupEnd    = 2 * time.Second       // the kernel lets go of the dead a little later
)

// groupParent is the folder in which a controller's groups can be made, "" if
// there is none.
func groupParent(root, membership, controller string) (folder string, unified bool) {
	writable := func(folder string) bool {
		_, err := os.Stat(filepath.Join(folder, "cgroup.procs"))
		return err == nil && unix.Access(folder, unix.W_OK) == nil
	}
	for line := range strings.Lines(membership) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3) // number:controllers:path
		if len(fields) < 3 {
			continue
		}
		if slices.Contains(strings.Split(fields[1], ","), controller) {
			for _, folder := range []string{filepath.Join(root, controller, fields[2]), filepath.Join(root, controller)} { // the second: a container's view
				if writable(folder) {
					return folder, false
				}
			}
		}
		if fields[0] == "0" && fields[1] == "" {
			beside := filepath.Join(root, filepath.Dir(fields[2]))
			enabled, _ := os.ReadFile(filepath.Join(beside, "cgroup.subtree_control"))
			if slices.Contains(strings.Fields(string(enabled)), controller) && writable(beside) {
				return beside, true
			}
		}
	}
	return "", false
}

// setting is a line for a file of a control group.
type setting struct{ file, value string }

// settings are what limits a machine, by controller, in either version.
func settings(spec Spec, unified bool) map[string][]setting {
	memory := strconv.Itoa((spec.MemoryMiB + overheadMiB + translationMiB) << 20)
	all := map[string][]setting{"memory": {{"memory.limit_in_bytes", memory}}}
	if unified {
		all["memory"] = []setting{{"memory.max", memory}}
	}
	if cpus := spec.Limits.CPUs; cpus > 0 {
		period := groupPeriod.Microseconds()
		quota := max(int64(cpus*float64(period)), 1000) // the kernel's least
		all["cpu"] = []setting{
			{"cpu.cfs_period_us", strconv.FormatInt(period, 10)}, {"cpu.cfs_quota_us", strconv.FormatInt(quota, 10)},
			{"cpu.shares", strconv.Itoa(max(2, int(cpus*1024)))},
		}
		if unified {
			all["cpu"] = []setting{
				{"cpu.max", fmt.Sprintf("%d %d", quota, period)},
				{"cpu.weight", strconv.Itoa(min(max(1, int(math.Round(cpus*100))), 10_000))},
			}
		}
	}
	return all
}

// limit puts a process into control groups with the machine's limits, and says
// which, also when it fails. Where this machine has none for us, its memory is
// bounded by QEMU alone.
func limit(pid int, uuid string, spec Spec) (groups []string, err error) {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, nil // no control groups in this kernel
	}
	return limitIn(groupRoot, string(membership), pid, uuid, spec)
}

func limitIn(root, membership string, pid int, uuid string, spec Spec) (groups []string, err error) {
	for _, controller := range []string{"memory", "cpu"} {
		parent, unified := groupParent(root, membership, controller)
		wanted := settings(spec, unified)[controller]
		if parent == "" || len(wanted) == 0 {
			continue
		}
		group := filepath.Join(parent, groupPrefix+uuid)
		if err := os.Mkdir(group, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			continue // it looked as if we might
		}
		if !slices.Contains(groups, group) {
			groups = append(groups, group)
		}
		for _, s := range wanted {
			if err := os.WriteFile(filepath.Join(group, s.file), []byte(s.value), 0); err != nil {
				return groups, fmt.Errorf("limit QEMU's %s: %w", controller, err)
			}
		}
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0); err != nil {
			return groups, fmt.Errorf("limit QEMU's %s: %w", controller, err)
		}
	}
	return groups, nil
}

// groupsOf are where a machine's control groups are if this process has made them:
// another node may have been in other groups.
func groupsOf(uuid string) []string {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || uuid == "" {
		return nil
	}
	var groups []string
	for _, controller := range []string{"memory", "cpu"} {
		if parent, _ := groupParent(groupRoot, string(membership), controller); parent != "" {
			if group := filepath.Join(parent, groupPrefix+uuid); !slices.Contains(groups, group) {
				groups = append(groups, group)
			}
		}
	}
	return groups
}

// removeGroups removes a machine's control groups, those that were recorded and
// those that were not yet, once its process is gone.
func removeGroups(uuid string, recorded []string) error {
	var failed error
	for _, group := range append(groupsOf(uuid), recorded...) {
		if filepath.Base(group) != groupPrefix+uuid || !strings.HasPrefix(group, groupRoot+"/") {
			continue // it is no group of the machine's
		}
		begin := time.Now()
		err := os.Remove(group)
		for errors.Is(err, unix.EBUSY) && time.Since(begin) < groupEnd {
			time.Sleep(time.Millisecond)
			err = os.Remove(group)
		}
		if !errors.Is(err, os.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// niceThreads makes a machine with a part of a processor nicer where there are no
// control groups for it: each step gives way to a fifth more (sched(7)).
func niceThreads(pid int, spec Spec) error {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err == nil {
		if parent, _ := groupParent(groupRoot, string(membership), "cpu"); parent != "" {
			return nil
		}
	}
	nice := niceness(spec.Limits.CPUs)
	if nice == 0 {
		return nil
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, thread := range threads {
		if number, err := strconv.Atoi(thread.Name()); err == nil {
			_ = unix.Setpriority(unix.PRIO_PROCESS, number, nice) // it may have ended
		}
	}
	return nil
}

func niceness(cpus float64) int {
	if cpus <= 0 || cpus >= 1 {
		return 0
	}
	const step, most = 1.25, 19
	return min(most, int(math.Round(-math.Log(cpus)/math.Log(step))))
}
