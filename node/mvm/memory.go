package mvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// groups is where control groups for memory can be made on this machine, if
// anywhere. One is made for each program with a limit, and removed with it: by
// the MVM process, or after its death by the node.
type groups struct {
	parent  string // folder to make them in, "" if there is none
	unified bool   // version 2
}

// findGroups looks for a memory controller that this process may use: below
// its own group in version 1; beside it in version 2, where a group cannot hold
// both processes and limited groups.
func findGroups() groups {
	return findGroupsIn("/sys/fs/cgroup", "/proc/self/cgroup")
}

func findGroupsIn(root, membership string) groups {
	text, err := os.ReadFile(membership)
	if err != nil {
		return groups{}
	}
	for _, line := range strings.Split(string(text), "\n") {
		fields := strings.SplitN(line, ":", 3) // number:controllers:path
		if len(fields) < 3 {
			continue
		}
		var g groups
		for _, controller := range strings.Split(fields[1], ",") {
			if controller == "memory" {
				g = groups{parent: filepath.Join(root, "memory", fields[2])}
				if _, err := os.Stat(g.parent); err != nil { // a container's view of it
					g.parent = filepath.Join(root, "memory")
				}
			}
		}
		if fields[0] == "0" && fields[1] == "" {
			parent := filepath.Join(root, filepath.Dir(fields[2]))
			enabled, err := os.ReadFile(filepath.Join(parent, "cgroup.subtree_control"))
			if err == nil && strings.Contains(" "+string(enabled)+" ", "memory") {
				g = groups{parent: parent, unified: true}
			}
		}
		if g.parent != "" && unix.Access(g.parent, unix.W_OK) == nil {
			return g
		}
	}
	return groups{}
}

// groupName is the name of all groups of one launch, less a number at its end.
func groupName(mark string) string { return "mvm." + strings.ReplaceAll(mark, "/", "_") }

// limit puts a program into a group of its own.
func (g groups) limit(name string, pid int, bytes uint64) (group string, err error) {
	if g.parent == "" {
		return "", errors.New("this machine has no memory controller for it")
	}
	group = filepath.Join(g.parent, name)
	if err := os.Mkdir(group, 0o755); err != nil {
		return "", err
	}
	file := "memory.limit_in_bytes"
	if g.unified {
		file = "memory.max"
	}
	err = os.WriteFile(filepath.Join(group, file), []byte(strconv.FormatUint(bytes, 10)), 0)
	if err == nil {
		// One thing goes wrong late: swap would only make it slow.
		_ = os.WriteFile(filepath.Join(group, "memory.swap.max"), []byte("0"), 0)
		err = os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if errors.Is(err, unix.ESRCH) { // it is over already
			err = nil
		}
	}
	if err != nil {
		removeGroup(group)
		return "", err
	}
	return group, nil
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

// remove removes the groups whose name begins so. Nothing may live in them.
func (g groups) remove(prefix string) {
	if g.parent == "" {
		return
	}
	entries, _ := os.ReadDir(g.parent) // what cannot be read was not made either
	for _, e := range entries {
		if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
			removeGroup(filepath.Join(g.parent, e.Name()))
		}
	}
}

// removeGroup waits a moment where the kernel has not let go of the dead yet.
func removeGroup(group string) {
	for range 100 {
		if err := os.Remove(group); !errors.Is(err, unix.EBUSY) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// limitMemory bounds what a program may use, in MiB; 0 is no limit. Where there
// are control groups, the program and all it starts share the limit, and the
// kernel kills who exceeds it. Elsewhere it is RLIMIT_DATA, of each process for
// itself, and allocations fail; RLIMIT_AS would also count what is only
// reserved, and a Go program reserves far more than it uses. Either is set a
// moment after the start.
func (p *process) limitMemory(program *program, mebibytes int64) error {
	if mebibytes <= 0 {
		return nil
	}
	if p.groups == nil {
		p.groups = new(findGroups())
	}
	pid, bytes := program.state.PID, uint64(mebibytes)<<20
	group, err := p.groups.limit(fmt.Sprintf("%s-%d", groupName(p.mark), program.state.ID), pid, bytes)
	if err == nil {
		program.group, program.limit = group, mebibytes
		return nil
	}
	err = unix.Prlimit(pid, unix.RLIMIT_DATA, &unix.Rlimit{Cur: bytes, Max: bytes}, nil)
	if err != nil && err != unix.ESRCH {
		return fmt.Errorf("limit its memory to %d MiB: %w", mebibytes, err)
	}
	return nil
}
