package mvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Limits are of all that one launch starts; 0 is none.
type Limits struct {
	MemoryMiB int64 // where there can be no control group: of each process for itself, see RLIMIT_DATA
	Tasks     int   // processes and threads, less the MVM process's own; only where there can be a control group
}

// OwnLimit is how much memory, in MiB, the control group that this process is in
// lets it and all that it starts have; 0 is no limit.
func OwnLimit() int64 {
	g := findGroups(forMemory)
	if g.parent == "" {
		return 0
	}
	text, _ := os.ReadFile(filepath.Join(g.parent, "memory.stat")) // what it does not tell limits nothing here
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "hierarchical_memory_limit "); ok { // version 1
			bytes, _ := strconv.ParseUint(strings.TrimSpace(n), 10, 64)
			return unlessEndless(bytes)
		}
	}
	least := int64(0)
	for group := g.parent; strings.HasPrefix(group, groupRoot+"/"); group = filepath.Dir(group) {
		text, _ := os.ReadFile(filepath.Join(group, "memory.max"))
		bytes, _ := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64) // "max" is none
		if limit := unlessEndless(bytes); limit > 0 && (least == 0 || limit < least) {
			least = limit
		}
	}
	return least
}

// endless is less than the number with which version 1 says that there is no limit.
const endless = 1 << 60

func unlessEndless(bytes uint64) int64 {
	if bytes >= endless {
		return 0
	}
	return int64(bytes >> 20)
}

// cell is a group with limits, for processes to be born in.
type cell struct {
	groups
	path       string
	controller string // what it was made for first, "" where that does not matter
	limit      uint64 // of memory in bytes, 0 where there is none
}

// limited makes a cell with a limit of memory.
func (g groups) limited(name string, bytes uint64) (*cell, error) {
	group, err := g.add(name)
	if err != nil {
		return nil, err
	}
	c := &cell{groups: g, path: group}
	if err := c.limitMemory(bytes); err != nil {
		_ = os.Remove(group)
		return nil, err
	}
	return c, nil
}

func (c *cell) limitMemory(bytes uint64) error {
	file := "memory.limit_in_bytes"
	if c.unified {
		file = "memory.max"
	}
	if err := os.WriteFile(filepath.Join(c.path, file), []byte(strconv.FormatUint(bytes, 10)), 0); err != nil {
		return err
	}
	c.limit = bytes
	if c.unified { // One thing goes wrong late: swap would only make it slow.
		_ = os.WriteFile(filepath.Join(c.path, "memory.swap.max"), []byte("0"), 0)
	}
	return nil
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

// oomKills is how many processes of a group the kernel has ended for its memory.
func oomKills(group string) (kills int) {
	for _, file := range []string{"memory.events", "memory.oom_control"} {
		text, _ := os.ReadFile(filepath.Join(group, file))
		for _, line := range strings.Split(string(text), "\n") {
			if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
				kills, _ = strconv.Atoi(n)
				return kills
			}
		}
	}
	return 0
}

// exceeded says that a program ended badly because there was no more memory for
// it, "" when it did not. p.mu is held.
func (p *process) exceeded(program *program, badly bool) string {
	if program.group != "" && oomKills(program.group) > 0 {
		return fmt.Sprintf("memory limit of %d MiB exceeded", program.limit)
	}
	if p.start.MemoryGroup == "" || !badly {
		return ""
	}
	// In version 2 a group counts those below it too. Once there are any that have a
	// limit of their own, those without are in one that counts them alone.
	all := p.start.MemoryGroup
	if p.groups != nil && p.groups.parent == filepath.Dir(p.start.TaskGroup) {
		all = p.start.TaskGroup
	}
	if kills := oomKills(all); kills > p.kills {
		p.kills = kills
		return fmt.Sprintf("memory limit of %d MiB exceeded: that is what a job may take on this node; claim what it needs, or spread it over more nodes", p.start.MemoryMiB)
	}
	return ""
}

// memoryCell makes the cell for a program with a limit in MiB, 0 being none. It
// is nil where there can be none. p.mu is held.
func (p *process) memoryCell(name string, mebibytes int64) *cell {
	if mebibytes <= 0 {
		return nil
	}
	if p.groups == nil {
		g, within := p.start.memoryGroups(findGroups)
		if p.groups = &g; within {
			p.kills = 0 // see exceeded
		}
	}
	c, err := p.groups.limited(groupName(p.mark)+name, uint64(mebibytes)<<20)
	if err != nil {
		return nil // limitData is the other way
	}
	return c
}

// memoryGroups is where cells for programs can be made: within the limit of tasks,
// where that is of version 2 too, else where find finds a place.
func (s *Start) memoryGroups(find func(controller string) groups) (g groups, within bool) {
	if s.TaskGroup == "" || !s.TaskUnified {
		return find(forMemory), false
	}
	// It is rarely wanted, and a group that counts memory costs more to make.
	limited := filepath.Dir(s.TaskGroup)
	for _, group := range []string{filepath.Dir(limited), limited} {
		if os.WriteFile(filepath.Join(group, "cgroup.subtree_control"), []byte("+memory"), 0) != nil {
			found := find(forMemory) // which may be of version 1 nevertheless
			if found.unified {
				return groups{}, false // a process is in one group of version 2, and that limits tasks: limitData is the other way
			}
			return found, false
		}
	}
	return groups{parent: limited, unified: true}, true
}

// limitedWord is the first argument of this program when it is to limit itself
// and then to become another: MEBIBYTES PROGRAM ARGUMENT...
const limitedWord = "limited"

// limitData bounds what a program, and each one that it starts, may have of
// private memory, in MiB, where there is no control group for it: then
// allocations fail (RLIMIT_DATA; RLIMIT_AS would also count what is only
// reserved, and a Go program reserves far more than it uses). This program
// itself is started in its place, sets the limit and turns into it: a limit set
// from outside comes too late for what the program has started by then.
func (c *child) limitData(mebibytes int64) error {
	if err := unix.Access(c.argv[0], unix.X_OK); err != nil { // nobody else would say it
		return fmt.Errorf("run %s: %w", c.argv[0], err)
	}
	c.path = "/proc/self/exe"
	c.argv = append([]string{ProcessName, limitedWord, strconv.FormatInt(mebibytes, 10)}, c.argv...)
	return nil
}

// runLimited is what limitData has started. It returns only when it fails.
func runLimited(args []string) error {
	if len(args) < 2 {
		return errors.New("it takes a limit and a program")
	}
	mebibytes, err := strconv.ParseUint(args[0], 10, 43)
	if err != nil {
		return fmt.Errorf("the limit of memory: %w", err)
	}
	if err := limitOwnData(mebibytes); err != nil {
		return err
	}
	return fmt.Errorf("run %s: %w", args[1], syscall.Exec(args[1], args[1:], os.Environ()))
}

// limitOwnData bounds the private memory of this process, and of each that it
// starts from now on.
func limitOwnData(mebibytes uint64) error {
	var old unix.Rlimit
	err := unix.Getrlimit(unix.RLIMIT_DATA, &old)
	if err == nil {
		most := min(old.Max, mebibytes<<20)
		err = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: most, Max: most})
	}
	if err != nil {
		return fmt.Errorf("limit memory to %d MiB: %w", mebibytes, err)
	}
	return nil
}
