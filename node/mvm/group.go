package mvm

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// groups is where control groups can be made on this machine, if anywhere. Two
// kinds are: those for the MVM process and all that it starts, made by the node
// to limit them and, at the level CGroup, to end them; and one for each program
// with a memory limit, made by the MVM process. All of a launch are ended and
// removed by the node.
type groups struct {
	parent  string // folder to make them in, "" if there is none
	unified bool   // version 2
}

// The controllers of version 1 that groups are made for. In version 2 freezing
// and killing belong to every group.
const (
	forMemory  = "memory"
	forTasks   = "pids"
	forKilling = "freezer"
)

const groupRoot = "/sys/fs/cgroup"

// findGroups looks for a place that this process may use: below its own group
// in version 1; in version 2 beside it, because a group cannot hold both
// processes and groups with a memory limit, or for killing below it too.
func findGroups(controller string) groups { return findAllGroups(controller)[0] }

// findAllGroups does it for several controllers.
func findAllGroups(controllers ...string) []groups {
	return findGroupsIn(groupRoot, "/proc/self/cgroup", controllers...)
}

// Places remembers where on this machine groups can be made, for as long as this
// process stays in its own, and keeps spare ones. A nil one remembers nothing.
type Places struct {
	prefix string // of the names of spare cells, as of the marks of all launches

	mu         sync.Mutex // guards what follows
	membership string
	read       time.Time         // membership was
	found      map[string]groups // by controller
	spares     map[spareKind][]string
	made       int  // spares, so far
	shut       bool // none is kept any more
}

// NewPlaces is for launches whose marks begin with prefix. Whoever has it calls Close
// in the end; what a killed process leaves, Sweep of that prefix removes.
func NewPlaces(prefix string) *Places { return &Places{prefix: prefix} }

// settled is how long the kernel is not asked again in which groups this process
// is: the answer is made under a lock of all groups. What is made meanwhile where
// it was has its limits as well.
const settled = time.Second

func (p *Places) find(controllers ...string) []groups {
	if p == nil {
		return findAllGroups(controllers...)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); p.found == nil || now.Sub(p.read) >= settled {
		text, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return make([]groups, len(controllers))
		}
		if p.read = now; p.found == nil || p.membership != string(text) {
			p.membership, p.found = string(text), map[string]groups{}
		}
	}
	all := make([]groups, len(controllers))
	for i, controller := range controllers {
		g, known := p.found[controller]
		if !known {
			if g = findGroup(groupRoot, p.membership, controller); g.parent != "" {
				p.found[controller] = g
			}
		}
		all[i] = g
	}
	return all
}

// forget has the next find look.
func (p *Places) forget() {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.found = nil
}

func findGroupsIn(root, membership string, controllers ...string) []groups {
	all := make([]groups, len(controllers))
	text, err := os.ReadFile(membership)
	if err != nil {
		return all
	}
	for i, controller := range controllers {
		all[i] = findGroup(root, string(text), controller)
	}
	return all
}

func findGroup(root, membership, controller string) groups {
	for line := range strings.SplitSeq(membership, "\n") {
		fields := strings.SplitN(line, ":", 3) // number:controllers:path
		if len(fields) < 3 {
			continue
		}
		var places []groups
		if slices.Contains(strings.Split(fields[1], ","), controller) {
			g := groups{parent: filepath.Join(root, controller, fields[2])}
			if _, err := os.Stat(g.parent); err != nil { // a container's view of it
				g.parent = filepath.Join(root, controller)
			}
			places = append(places, g)
		}
		if fields[0] == "0" && fields[1] == "" {
			beside := groups{parent: filepath.Join(root, filepath.Dir(fields[2])), unified: true}
			if controller == forKilling {
				mixed := filepath.Join(root, "unified") // where version 1 has the rest
				places = append(places, beside, groups{filepath.Join(root, fields[2]), true},
					groups{filepath.Join(mixed, filepath.Dir(fields[2])), true}, groups{filepath.Join(mixed, fields[2]), true})
			} else if enabled, _ := os.ReadFile(filepath.Join(beside.parent, "cgroup.subtree_control")); slices.Contains(strings.Fields(string(enabled)), controller) {
				places = append(places, beside)
			}
		}
		for _, g := range places {
			_, err := os.Stat(filepath.Join(g.parent, "cgroup.procs"))
			if err == nil && unix.Access(g.parent, unix.W_OK) == nil {
				return g
			}
		}
	}
	return groups{}
}

// add makes a group.
func (g groups) add(name string) (group string, err error) {
	if g.parent == "" {
		return "", errors.New("this process may make no control group for it")
	}
	group = filepath.Join(g.parent, name)
	return group, os.Mkdir(group, 0o755)
}

const groupStart = "mvm." // of all their names

// groupName is the name of all groups of one launch, less what tells them apart
// at its end.
func groupName(mark string) string { return groupStart + strings.ReplaceAll(mark, "/", "_") + "-" }

// enclosure is the groups for all of a launch.
type enclosure struct {
	cells  []*cell
	birth  []*cell // for the MVM process to be born in
	memory string  // has the limit of memory, "" if none has
	tasks  *cell   // for all that it starts to be born in, or nil
}

// enclose makes them: one with some below it in version 2, one for each controller
// in version 1. Those for limits are left out where they cannot be had; the one
// for killing must be. The MVM process is not in the one that limits tasks: when
// programs have used them up, it must go on, and Go ends a process that gets no
// thread.
func (p *Places) enclose(mark string, killing bool, limits Limits) (e enclosure, err error) {
	var wanted []string
	if killing {
		wanted = append(wanted, forKilling)
	}
	if limits.MemoryMiB > 0 {
		wanted = append(wanted, forMemory)
	}
	if limits.Tasks > 0 {
		wanted = append(wanted, forTasks)
	}
	places := p.find(wanted...)
	for i, controller := range wanted {
		ready := func(c *cell) error {
			switch controller {
			case forKilling:
				return c.mustKill()
			case forMemory:
				return c.limitMemory(uint64(limits.MemoryMiB) << 20)
			}
			return e.limitTasks(c, limits.Tasks) // last: it knows where the MVM process is to be born
		}
		c, err := e.at(p, places[i], controller, mark, ready)
		if c == nil && places[i].parent != "" { // perhaps this process is elsewhere by now
			p.forget()
			places = p.find(wanted...)
			c, err = e.at(p, places[i], controller, mark, ready)
		}
		if controller == forMemory && err == nil {
			e.memory = c.path
		}
		if controller == forKilling && err != nil {
			return e, err // the caller ends the groups by their names
		}
		if controller != forTasks && err == nil && !slices.Contains(e.birth, c) {
			e.birth = append(e.birth, c)
		}
	}
	return e, nil
}

// at is the cell of a launch at a place, made ready: one of those that it has, a spare
// one, or a new one. It is nil where none can be made.
func (e *enclosure) at(p *Places, g groups, controller, mark string, ready func(*cell) error) (*cell, error) {
	if i := slices.IndexFunc(e.cells, func(c *cell) bool { return c.groups == g }); i >= 0 {
		return e.cells[i], ready(e.cells[i])
	}
	if c := p.reuse(g, controller, mark, ready); c != nil {
		e.cells = append(e.cells, c)
		return c, nil
	}
	path, err := g.add(groupName(mark) + "all")
	if err != nil {
		return nil, err
	}
	c := &cell{groups: g, path: path, controller: controller}
	e.cells = append(e.cells, c)
	return c, ready(c)
}

// limitTasks has the programs of a launch born in c, with a limit. In version 2 the
// MVM process may be to be born there too: then each of them has a group below it,
// and that of the programs one more, because there may be others beside that for
// programs with a limit of memory.
func (e *enclosure) limitTasks(c *cell, most int) (err error) {
	limit := func(group string) error {
		return os.WriteFile(filepath.Join(group, "pids.max"), []byte(strconv.Itoa(most)), 0)
	}
	if !c.unified {
		err := limit(c.path)
		if err == nil {
			e.tasks = c
		}
		return err
	}
	self, tasks := filepath.Join(c.path, "self"), filepath.Join(c.path, "tasks")
	rest := filepath.Join(tasks, "rest")
	control := filepath.Join(c.path, "cgroup.subtree_control")
	defer func() {
		if err == nil {
			return
		}
		// Nothing could be born in c itself while it shares out what it has.
		for _, group := range []string{rest, tasks, self} {
			_ = os.Remove(group)
		}
		_ = os.WriteFile(control, []byte("-pids"), 0)
	}()
	for _, group := range []string{self, tasks, rest} {
		if err := os.Mkdir(group, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(control, []byte("+pids"), 0); err != nil {
		return err
	}
	if err := limit(tasks); err != nil {
		return err
	}
	e.tasks = &cell{groups: groups{tasks, true}, path: rest}
	if i := slices.Index(e.birth, c); i >= 0 {
		e.birth[i] = &cell{groups: c.groups, path: self}
	}
	return nil
}

// mustKill says whether all of a cell can be killed at once.
func (c *cell) mustKill() error {
	if c.unified {
		if _, err := os.Stat(filepath.Join(c.path, "cgroup.kill")); err != nil { // before Linux 5.14
			return fmt.Errorf("this kernel does not kill control groups: %w", err)
		}
	}
	return nil
}

// within has a process started by start with sys born in all of these cells.
func within(cells []*cell, sys *syscall.SysProcAttr, start func() error) error {
	if len(cells) == 0 {
		return start()
	}
	done := make(chan error, 1)
	var onThread func()
	onThread = func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() { // see cell.enter: another thread is to do it
			defer runtime.UnlockOSThread()
			over := make(chan struct{})
			go func() { defer close(over); onThread() }()
			<-over
			return
		}
		var failed error
		stuck := false
		var leaves []func() error
		for _, c := range cells {
			leave, err := c.enter(sys)
			if failed = err; err != nil {
				break
			}
			leaves = append(leaves, leave)
		}
		if failed == nil {
			failed = start()
		}
		for _, leave := range slices.Backward(leaves) {
			stuck = leave() != nil || stuck
		}
		if !stuck { // a thread that cannot leave ends with this goroutine
			runtime.UnlockOSThread()
		}
		done <- failed
	}
	go onThread()
	return <-done
}

// endCells ends all that lives in the groups of a launch, and removes them or keeps them
// for later ones.
func (p *Places) endCells(mark string, around enclosure, deadline time.Time) error {
	// Nearly always they are empty. Of those that a launch makes for programs only
	// version 1's are surely in one of these, which is not empty then.
	all := around.memory != ""
	for _, c := range around.cells {
		all = all && !c.unified && (p.keep(c) || unix.Rmdir(c.path) == nil)
	}
	if all {
		return nil
	}
	return endGroups(groupName(mark), deadline)
}

// endGroups ends all that lives in the groups whose name begins so, and removes
// them.
func endGroups(prefix string, deadline time.Time) error {
	var failed error
	for _, parent := range groupParents() {
		entries, _ := os.ReadDir(parent) // what cannot be read was not made either
		for _, e := range entries {
			if e.IsDir() && strings.HasPrefix(e.Name(), prefix) {
				failed = errors.Join(failed, endGroup(filepath.Join(parent, e.Name()), deadline))
			}
		}
	}
	return failed
}

// groupParents are the folders in which groups are made.
func groupParents() []string {
	var parents []string
	for _, g := range findAllGroups(forKilling, forMemory, forTasks) {
		if parent := g.parent; parent != "" && !slices.Contains(parents, parent) {
			parents = append(parents, parent)
		}
	}
	return parents
}

// endGroup kills until nothing lives in a group, nor in any that was made below
// it, and removes it. Version 2 kills all at once. In version 1 the group is
// frozen while it is killed, so that nothing forks faster than it is found;
// where it cannot be frozen (a group for memory), killing goes on until none is
// left.
func endGroup(group string, deadline time.Time) error {
	for {
		// Nearly always it is empty, and then this is all: the kernel removes no
		// group that has a process or a group in it.
		if err := os.Remove(group); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		left := members(group)
		if len(left) == 0 {
			return removeGroup(group)
		}
		if os.WriteFile(filepath.Join(group, "cgroup.kill"), []byte("1"), 0) != nil {
			freeze(group)
			for _, pid := range members(group) {
				if pid > 0 { // 0 is one that this process has no number for
					unix.Kill(pid, unix.SIGKILL)
				}
			}
			for _, each := range tree(group) { // also one that a program froze
				_ = os.WriteFile(filepath.Join(each, "freezer.state"), []byte("THAWED"), 0)
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes %v of the control group %s do not end although they were killed", left, group)
		}
		time.Sleep(time.Millisecond)
	}
}

// freeze waits a moment until all of a group stand still.
func freeze(group string) {
	file := filepath.Join(group, "freezer.state")
	if os.WriteFile(file, []byte("FROZEN"), 0) != nil {
		return
	}
	for range 50 {
		if state, err := os.ReadFile(file); err != nil || string(state) == "FROZEN\n" {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// members lists the processes of a group and of all below it.
func members(group string) []int {
	var all []int
	for _, each := range tree(group) {
		text, _ := os.ReadFile(filepath.Join(each, "cgroup.procs")) // gone is empty
		for _, word := range strings.Fields(string(text)) {
			if pid, err := strconv.Atoi(word); err == nil {
				all = append(all, pid)
			}
		}
	}
	return all
}

// tree lists a group and all below it, each before what is in it.
func tree(group string) []string {
	var all []string
	_ = filepath.WalkDir(group, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			all = append(all, path)
		}
		return nil // what is gone meanwhile holds nothing
	})
	return all
}

// removeGroup waits a moment where the kernel has not let go of the dead yet.
func removeGroup(group string) error {
	var failed error
	for _, each := range slices.Backward(tree(group)) {
		err := os.Remove(each)
		for tries := 0; errors.Is(err, unix.EBUSY) && tries < 100; tries++ {
			time.Sleep(time.Millisecond)
			err = os.Remove(each)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}
