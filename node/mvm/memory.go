package mvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// limit puts a program into a group of its own.
func (g groups) limit(name string, pid int, bytes uint64) (group string, err error) {
	if group, err = g.add(name); err != nil {
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
		_ = os.Remove(group)
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
		p.groups = new(findGroups(forMemory))
	}
	pid, bytes := program.state.PID, uint64(mebibytes)<<20
	group, err := p.groups.limit(fmt.Sprintf("%s%d", groupName(p.mark), program.state.ID), pid, bytes)
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
