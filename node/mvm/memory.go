package mvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// cell is a group with a memory limit, made for one program.
type cell struct {
	groups
	path string
}

// limit makes a cell.
func (g groups) limit(name string, bytes uint64) (*cell, error) {
	group, err := g.add(name)
	if err != nil {
		return nil, err
	}
	file := "memory.limit_in_bytes"
	if g.unified {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(group, file), []byte(strconv.FormatUint(bytes, 10)), 0); err != nil {
		_ = os.Remove(group)
		return nil, err
	}
	// One thing goes wrong late: swap would only make it slow.
	_ = os.WriteFile(filepath.Join(group, "memory.swap.max"), []byte("0"), 0)
	return &cell{g, group}, nil
}

// enter sees to it that what this OS thread forks with sys is born in the cell,
// until leave is called on the same thread; after a failure leave may be called
// again. The kernel does it in version 2 (CLONE_INTO_CGROUP, Linux 5.7). In
// version 1 the thread goes in itself, which must not be the first one of this
// process: the memory of all the process would be charged to the cell. Writing
// "0", which means the writing thread, spares the kernel a lock over all
// processes.
func (c *cell) enter(sys *syscall.SysProcAttr) (leave func() error, err error) {
	if c.unified {
		fd, err := unix.Open(c.path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		sys.UseCgroupFD, sys.CgroupFD = true, fd
		return func() error {
			sys.UseCgroupFD = false
			return unix.Close(fd)
		}, nil
	}
	// First the way back: who cannot return must not go in.
	home, err := unix.Open(filepath.Join(c.parent, "tasks"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.path, "tasks"), []byte("0"), 0); err != nil {
		unix.Close(home)
		return nil, err
	}
	return func() error {
		if _, err := unix.Write(home, []byte("0")); err != nil {
			return fmt.Errorf("take the starting thread out of the control group %s: %w", c.path, err)
		}
		return unix.Close(home)
	}, nil
}

// take puts a process that runs already into the cell. moved is false when it
// is there.
func (c *cell) take(pid int) (moved bool, err error) {
	if slices.Contains(members(c.path), pid) {
		return false, nil
	}
	return true, os.WriteFile(filepath.Join(c.path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// exceeded reports whether the kernel ended a process of a group for its
// memory.
func exceeded(group string) bool {
	for _, file := range []string{"memory.events", "memory.oom_control"} {
		text, _ := os.ReadFile(filepath.Join(group, file))
		for _, line := range strings.Split(string(text), "\n") {
			if n, ok := strings.CutPrefix(line, "oom_kill "); ok && n != "0" {
				return true
			}
		}
	}
	return false
}

// memoryCell makes the cell for a program with a limit in MiB, 0 being none. It
// is nil where there can be none. p.mu is held.
func (p *process) memoryCell(id int, mebibytes int64) *cell {
	if mebibytes <= 0 {
		return nil
	}
	if p.groups == nil {
		p.groups = new(findGroups(forMemory))
	}
	c, err := p.groups.limit(fmt.Sprintf("%s%d", groupName(p.mark), id), uint64(mebibytes)<<20)
	if err != nil {
		return nil // limitMemory has another way
	}
	return c
}

// limitMemory bounds what a program may use, in MiB; 0 is no limit. Where there
// are control groups, the program and all it starts share the limit, and the
// kernel kills who exceeds it; a program that was born inside its cell needs
// nothing more. Elsewhere it is RLIMIT_DATA, of each process for itself, and
// allocations fail; RLIMIT_AS would also count what is only reserved, and a Go
// program reserves far more than it uses. That is set a moment after the start,
// also for what the program has started by then: only a process that has both
// lost its parent and made a session of its own within that moment is not
// found.
func (p *process) limitMemory(program *program, mebibytes int64, c *cell, inside bool) error {
	if mebibytes <= 0 {
		return nil
	}
	if c != nil {
		program.group, program.limit = c.path, mebibytes
		if inside || throughout(program.state.PID, c.take) == nil {
			return nil
		}
	}
	bytes := uint64(mebibytes) << 20
	err := throughout(program.state.PID, func(pid int) (changed bool, err error) {
		var old unix.Rlimit
		if err := unix.Prlimit(pid, unix.RLIMIT_DATA, nil, &old); err != nil || old.Max <= bytes {
			return false, err
		}
		return true, unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: min(old.Cur, bytes), Max: bytes}, nil)
	})
	if err != nil {
		return fmt.Errorf("limit its memory to %d MiB: %w", mebibytes, err)
	}
	return nil
}

// throughout changes a running program, and all that it has started, by a
// change that children inherit: it looks again until there is nothing left to
// change.
func throughout(program int, change func(pid int) (changed bool, err error)) error {
	found := []int{program}
	for range 20 {
		some := false
		for _, pid := range found {
			changed, err := change(pid)
			if err != nil && !errors.Is(err, unix.ESRCH) { // it may be over already
				return err
			}
			some = some || changed
		}
		if !some {
			return nil
		}
		found = session(program)
	}
	return errors.New("it starts processes faster than they are found; let it start fewer at once")
}

// session lists what a program that leads a session has started: what descends
// from it, and orphans that are in its session, and what descends from these.
// It counts itself; zombies it does not.
func session(leader int) []int {
	var members []int
	for _, pid := range pids() {
		if id, err := unix.Getsid(pid); err == nil && id == leader {
			if _, lives := parentOf(pid); lives {
				members = append(members, pid)
			}
		}
	}
	return append(members, descendants(append(members, leader)...)...)
}
