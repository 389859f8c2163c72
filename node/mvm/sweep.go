package mvm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// markName is the variable in the environment of an MVM process, and of all
// that it starts, that names the launch that they belong to.
const markName = "MVM_ATTEMPT"

// Sweep kills every process on this machine that belongs to a launch whose
// LaunchConfig.Mark begins with prefix, and returns how many processes there
// were. A node calls it when it starts, to end what its former life left. A
// program that hid its environment is found through its control group, or its
// PID namespace ended it with its MVM process, or that one ends it within grace;
// at the level Subreaper, when the MVM process was killed too, it is not found.
func Sweep(prefix string, grace time.Duration) (int, error) {
	if prefix == "" {
		return 0, fmt.Errorf("sweep: an empty prefix would end every job on this machine")
	}
	mark := markName + "=" + prefix
	// An MVM process that reads its node's end of file cleans up by itself.
	for deadline := time.Now().Add(grace); time.Now().Before(deadline) && slices.ContainsFunc(marked(mark), cleans); {
		time.Sleep(10 * time.Millisecond)
	}
	killed, err := sweep(mark, time.Now().Add(10*time.Second))
	// A prefix ends within a mark: not as the name of one launch's groups does.
	groups := strings.TrimSuffix(groupName(prefix), "-")
	err = errors.Join(err, endGroups(groups, time.Now().Add(10*time.Second)))
	removeForsaken()
	return killed, err
}

// forsakenAfter is well over the time from the making of a launch's groups to
// its first process in them.
const forsakenAfter = 10 * time.Minute

// removeForsaken removes the groups of launches whose node was killed and never
// started again. Their MVM process ended with the node, so the group of all is
// empty. A live launch's may be empty too: at its very beginning, or that for programs
// while there are none. Nothing is killed.
func removeForsaken() {
	const end = "all" // see enclosure
	for _, parent := range groupParents() {
		found, _ := filepath.Glob(filepath.Join(parent, groupStart+"*-"+end))
		for _, all := range found {
			info, err := os.Stat(all)
			if err != nil || time.Since(info.ModTime()) < forsakenAfter || len(members(all)) > 0 {
				continue
			}
			mark := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(all), groupStart), "-"+end)
			if len(marked(markName+"="+mark)) > 0 {
				continue
			}
			launch, _ := filepath.Glob(strings.TrimSuffix(all, end) + "*")
			for _, group := range launch {
				if len(members(group)) == 0 {
					_ = removeGroup(group) // or the next sweep does
				}
			}
		}
	}
}

// sweep kills until nothing carries the mark any more.
func sweep(mark string, deadline time.Time) (int, error) {
	killed := map[int]bool{}
	for {
		left := marked(mark)
		if len(left) == 0 {
			return len(killed), nil
		}
		for _, pid := range left {
			killed[pid] = true
			unix.Kill(pid, unix.SIGKILL)
		}
		if time.Now().After(deadline) {
			return len(killed), fmt.Errorf("sweep: processes %v do not end although they were killed", left)
		}
		time.Sleep(time.Millisecond)
	}
}

// cleans tells whether a process is an MVM process, by its own account.
func cleans(pid int) bool {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
	name, _, _ := strings.Cut(string(line), "\x00")
	return err == nil && IsProcess([]string{name})
}

// marked lists the processes whose environment has a variable that begins with
// mark, but not this one. Zombies have no environment any more.
func marked(mark string) []int {
	var found []int
	for _, pid := range pids() {
		environment, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/environ")
		if err != nil || pid == os.Getpid() {
			continue
		}
		for _, variable := range bytes.Split(environment, []byte{0}) {
			if bytes.HasPrefix(variable, []byte(mark)) {
				found = append(found, pid)
				break
			}
		}
	}
	return found
}

// killDescendants stops and then kills all that descends from a process. They
// are stopped first, until a look finds none that runs, so that they cannot
// fork faster than they are found.
func killDescendants(root int) {
	stopped := map[int]bool{}
	for range 20 {
		fresh := false
		for _, pid := range descendants(root) {
			if !stopped[pid] {
				stopped[pid], fresh = true, true
				unix.Kill(pid, unix.SIGSTOP)
			}
		}
		if !fresh {
			break
		}
	}
	for _, pid := range descendants(root) {
		unix.Kill(pid, unix.SIGKILL)
	}
}

// descendants lists what descends from processes, as /proc has it now.
func descendants(roots ...int) []int {
	children := map[int][]int{}
	for _, pid := range pids() {
		if parent, ok := parentOf(pid); ok {
			children[parent] = append(children[parent], pid)
		}
	}
	var all, next []int
	for _, root := range roots {
		next = append(next, children[root]...)
		delete(children, root)
	}
	for len(next) > 0 {
		pid := next[len(next)-1]
		next = append(next[:len(next)-1], children[pid]...)
		delete(children, pid) // numbers that are used again can make a circle
		all = append(all, pid)
	}
	return all
}

func pids() []int {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1) // what can be read is used
	var all []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// parentOf reads a process's parent from /proc. Zombies count as gone.
func parentOf(pid int) (int, bool) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, false
	}
	return parseParent(stat)
}

// parseParent finds the parent in the text of /proc/PID/stat. Its second field,
// in brackets, is what the program calls itself: anything, also brackets.
func parseParent(stat []byte) (int, bool) {
	_, rest, ok := strings.Cut(string(stat[max(0, bytes.LastIndexByte(stat, ')')):]), ") ")
	fields := strings.Fields(rest)
	if !ok || len(fields) < 2 || fields[0] == "Z" || fields[0] == "X" {
		return 0, false
	}
	parent, err := strconv.Atoi(fields[1])
	return parent, err == nil && parent >= 0
}
