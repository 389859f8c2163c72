package mvm

import (
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// groupsLeft lists the control groups of a launch.
func groupsLeft(controller, mark string) []string {
	parent := findGroups(controller).parent
	if parent == "" {
		return nil
	}
	found, _ := filepath.Glob(filepath.Join(parent, groupName(mark)+"*"))
	return found
}

// TestEndGroup ends programs that fork faster than they are found, and groups
// that a program made below and froze, in each kind of group.
func TestEndGroup(t *testing.T) {
	runner := compileRunner(t)
	for name, g := range map[string]groups{
		"version 2":     {"/sys/fs/cgroup", true},
		"version 2 too": {"/sys/fs/cgroup/unified", true},
		"freezer":       {"/sys/fs/cgroup/freezer", false},
	} {
		t.Run(name, func(t *testing.T) {
			group, err := g.add("mvm.test-" + strconv.Itoa(os.Getpid()))
			if err != nil {
				t.Skipf("SKIPPED: no such groups can be made here: %v", err)
			}
			defer removeGroup(group)
			file := map[bool]string{true: "cgroup.kill", false: "freezer.state"}[g.unified]
			if _, err := os.Stat(filepath.Join(group, file)); err != nil {
				t.Skipf("SKIPPED: such groups cannot be ended: %v", err)
			}
			inner := filepath.Join(group, "inner")
			if err := os.Mkdir(inner, 0o755); err != nil {
				t.Fatal(err)
			}
			start := func(group, script string) {
				command := exec.Command("/bin/sh", "-c", "echo 0 > "+group+"/cgroup.procs; "+script)
				if err := command.Start(); err != nil {
					t.Fatal(err)
				}
				go command.Wait()
			}
			start(group, "exec "+runner)
			start(group, "exec "+runner)
			start(inner, "sleep 1000 & sleep 1000")
			eventually(t, "all live there", func() bool { return len(members(group)) >= 4 && len(members(inner)) == 3 })
			freeze := map[string]string{"cgroup.freeze": "1", "freezer.state": "FROZEN"}
			for file, text := range freeze {
				if _, err := os.Stat(filepath.Join(inner, file)); err == nil {
					if err := os.WriteFile(filepath.Join(inner, file), []byte(text), 0); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := endGroup(group, time.Now().Add(10*time.Second)); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, runner)
			if _, err := os.Stat(group); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the group is still there: %v", err)
			}
		})
	}
}

func TestFindGroups(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"memory/jobs/a", "slice/node.service", "freezer", "unified/session"} {
		err := os.MkdirAll(filepath.Join(root, dir), 0o755)
		for each := dir; err == nil && each != "."; each = filepath.Dir(each) { // as the kernel has it
			err = os.WriteFile(filepath.Join(root, each, "cgroup.procs"), nil, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "slice/cgroup.subtree_control"), []byte("cpu memory pids\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	place := func(unified bool, path ...string) groups {
		return groups{filepath.Join(append([]string{root}, path...)...), unified}
	}
	for text, want := range map[string]map[string]groups{
		"":                                   {},
		"nonsense\n1:2":                      {},
		"5:freezer:/x\n4:cpu,memory:/jobs/a": {forMemory: place(false, "memory/jobs/a"), forKilling: place(false, "freezer")},
		"4:memory:/elsewhere":                {forMemory: place(false, "memory")},
		"0::/slice/node.service\n":           {forMemory: place(true, "slice"), forKilling: place(true, "slice")},
		"0::/slice/node.service/deeper":      {forKilling: place(true, "slice/node.service")},
		"0::/elsewhere/none":                 {},
		"4:memory:/\n0::/session":            {forMemory: place(false, "memory"), forKilling: place(true, "unified")},
	} {
		membership := filepath.Join(t.TempDir(), "cgroup")
		if err := os.WriteFile(membership, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		for _, controller := range []string{forMemory, forKilling} {
			if got := findGroupsIn(root, membership, controller)[0]; got != want[controller] {
				t.Errorf("%q for %s: %+v, want %+v", text, controller, got, want[controller])
			}
		}
	}
}

// TestEncloseUnified: in version 2 the MVM process is born beside what limits its
// programs, and below what limits and ends all.
func TestEncloseUnified(t *testing.T) {
	root := t.TempDir()
	p := &Places{found: map[string]groups{}}
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	p.membership = string(text)
	for _, controller := range []string{forMemory, forTasks} {
		p.found[controller] = groups{parent: root, unified: true}
	}
	all := filepath.Join(root, "mvm.m-all")
	e, err := p.enclose("m", false, Limits{MemoryMiB: 7, Tasks: 5})
	if err != nil || e.memory != all || len(e.cells) != 1 || len(e.birth) != 1 || e.birth[0].path != all+"/self" || e.tasks == nil || e.tasks.path != all+"/tasks/rest" {
		t.Fatalf("%+v, %v", e, err)
	}
	for file, want := range map[string]string{"memory.max": "7340032", "cgroup.subtree_control": "+pids", "tasks/pids.max": "5"} {
		path := filepath.Join(all, file)
		_ = os.Chmod(path, 0o600) // where a kernel did not make it nobody but root may read it
		if got, err := os.ReadFile(path); string(got) != want || err != nil {
			t.Errorf("%s is %q, %v; want %q", file, got, err, want)
		}
	}
	for _, group := range []string{e.birth[0].path, e.tasks.path} {
		if info, err := os.Stat(group); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", group, err)
		}
	}
}

// Where tasks cannot be limited in version 2, what was made for it goes again: a group
// that shares its controllers out can have no process, and the MVM process is to be
// born there.
func TestTasksThatCannotBeLimited(t *testing.T) {
	c := &cell{groups: groups{parent: t.TempDir(), unified: true}}
	c.path = filepath.Join(c.parent, "all")
	if err := os.MkdirAll(filepath.Join(c.path, "cgroup.subtree_control"), 0o755); err != nil { // nobody can write to it
		t.Fatal(err)
	}
	e := &enclosure{birth: []*cell{c}}
	if err := e.limitTasks(c, 10); err == nil || e.tasks != nil || len(e.birth) != 1 || e.birth[0] != c {
		t.Errorf("%v, %+v", err, e)
	}
	for _, group := range []string{"self", "tasks"} {
		if _, err := os.Stat(filepath.Join(c.path, group)); err == nil {
			t.Errorf("%s is left", group)
		}
	}
}

// Where the limit of tasks is of version 2, programs with a limit of memory are born
// below it; where that cannot share memory out, in a group of version 1, or in none:
// they must not leave the limit of tasks for another group of version 2.
func TestMemoryGroups(t *testing.T) {
	old, other := groups{parent: "/memory"}, groups{parent: "/elsewhere", unified: true}
	for name, c := range map[string]struct {
		tasks, unified bool
		barred         string // which group does not share memory out
		found, want    groups
		within         bool
	}{
		"no limit of tasks":                         {found: other, want: other},
		"one of version 1":                          {tasks: true, found: old, want: old},
		"one of version 2":                          {tasks: true, unified: true, found: other, within: true},
		"the whole does not share, memory is v1":    {tasks: true, unified: true, barred: ".", found: old, want: old},
		"the whole does not share, memory is v2":    {tasks: true, unified: true, barred: ".", found: other},
		"the limited does not share, memory is v1":  {tasks: true, unified: true, barred: "tasks", found: old, want: old},
		"the limited does not share, memory is v2":  {tasks: true, unified: true, barred: "tasks", found: other},
		"the limited does not share, there is none": {tasks: true, unified: true, barred: "tasks"},
	} {
		t.Run(name, func(t *testing.T) {
			all := t.TempDir()
			s := Start{TaskUnified: c.unified}
			if c.tasks {
				s.TaskGroup = filepath.Join(all, "tasks", "rest")
			}
			for _, group := range []string{".", "tasks"} {
				control := filepath.Join(all, group, "cgroup.subtree_control")
				if err := os.MkdirAll(filepath.Dir(control), 0o755); err != nil {
					t.Fatal(err)
				}
				if c.barred == group {
					if err := os.Mkdir(control, 0o755); err != nil { // nobody can write to it
						t.Fatal(err)
					}
				}
			}
			want := c.want
			if c.within {
				want = groups{parent: filepath.Join(all, "tasks"), unified: true}
			}
			g, within := s.memoryGroups(func(controller string) groups {
				if controller != forMemory {
					t.Errorf("a place for %s is looked for", controller)
				}
				return c.found
			})
			if g != want || within != c.within {
				t.Fatalf("%+v, %v; want %+v", g, within, want)
			}
			for _, group := range []string{".", "tasks"} { // both, or a program could not be born there
				control := filepath.Join(all, group, "cgroup.subtree_control")
				_ = os.Chmod(control, 0o700) // where a kernel did not make it nobody but root may read it
				text, err := os.ReadFile(control)
				if c.within && (err != nil || string(text) != "+memory") {
					t.Errorf("%s shares %q out: %v", group, text, err)
				}
			}
			p := &process{start: s, mark: "m"}
			p.groups = &g
			if g == (groups{}) && p.memoryCell("1", 10) != nil {
				t.Error("a program has a group where none can be made")
			}
		})
	}
}

// TestPlacesThatWent: a launch has its limits also where the groups that were
// remembered are gone.
func TestPlacesThatWent(t *testing.T) {
	for _, controller := range []string{forMemory, forTasks} {
		if findGroups(controller).parent == "" {
			t.Skipf("SKIPPED: this process may make no control group for %s", controller)
		}
	}
	var p Places
	p.find(forMemory, forTasks)
	for controller, g := range p.found {
		p.found[controller] = groups{g.parent + "/gone", g.unified}
	}
	mark := "test." + rand.Text()
	e, err := p.enclose(mark, false, Limits{MemoryMiB: 100, Tasks: 10})
	if err != nil || e.memory == "" || e.tasks == nil {
		t.Errorf("limits: %+v, %v", e, err)
	}
	if err := endGroups(groupName(mark), time.Now().Add(time.Second)); err != nil {
		t.Error(err)
	}
}
