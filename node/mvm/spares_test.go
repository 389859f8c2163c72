package mvm

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSpares: a launch gets what one before it left as good as new, and nothing else.
func TestSpares(t *testing.T) {
	for _, controller := range []string{forMemory, forTasks} {
		if g := findGroups(controller); g.parent == "" || g.unified {
			t.Skipf("SKIPPED: this process may make no control group of version 1 for %s", controller)
		}
	}
	limits := Limits{MemoryMiB: 64, Tasks: 10}
	prefix := "test." + rand.Text() + "."
	p := NewPlaces(prefix)
	defer func() { p.Close() }()
	launch := func() (mark string, e enclosure) {
		t.Helper()
		mark = prefix + rand.Text()
		e, err := p.enclose(mark, false, limits)
		if err != nil || len(e.cells) != 2 || len(e.birth) != 1 || e.memory != e.birth[0].path || e.tasks == nil {
			t.Fatalf("%+v, %v", e, err)
		}
		return mark, e
	}
	// end returns how many of the launch's cells are spare ones now.
	end := func(mark string, e enclosure) int {
		t.Helper()
		if err := p.endCells(mark, e, time.Now().Add(10*time.Second)); err != nil {
			t.Fatal(err)
		}
		for _, controller := range []string{forMemory, forTasks} {
			if left := groupsLeft(controller, mark); len(left) > 0 {
				t.Errorf("left of a launch: %q", left)
			}
		}
		spares := 0
		for kind, all := range p.spares {
			found, _ := filepath.Glob(filepath.Join(kind.parent, "mvm."+prefix+"spare.*"))
			if len(found) != len(all) {
				t.Errorf("%s: %q are there, %q are known", kind.controller, found, all)
			}
			spares += len(all)
		}
		return spares
	}
	inode := func(path string) uint64 {
		t.Helper()
		var info syscall.Stat_t
		if err := syscall.Stat(path, &info); err != nil {
			t.Fatal(err)
		}
		return info.Ino
	}
	within := func(c *cell, words ...string) *exec.Cmd {
		t.Helper()
		command := exec.Command(words[0], words[1:]...)
		command.SysProcAttr = &syscall.SysProcAttr{}
		if err := within([]*cell{c}, command.SysProcAttr, command.Start); err != nil {
			t.Fatal(err)
		}
		return command
	}

	mark, e := launch()
	memory, tasks := inode(e.memory), inode(e.tasks.path)
	if n := end(mark, e); n != 2 {
		t.Fatalf("%d spare cells after a launch that left all well", n)
	}
	for kind, all := range p.spares { // as a program could have done
		file, limit := "memory.limit_in_bytes", "-1"
		if kind.controller == forTasks {
			file, limit = "pids.max", "max"
		}
		if err := os.WriteFile(filepath.Join(all[0], file), []byte(limit), 0); err != nil {
			t.Fatal(err)
		}
	}
	mark, e = launch()
	if inode(e.memory) != memory || inode(e.tasks.path) != tasks {
		t.Error("a launch has no spare cells, though there were some")
	}
	for path, want := range map[string]string{e.memory + "/memory.limit_in_bytes": "67108864\n", e.tasks.path + "/pids.max": "10\n"} {
		if got, err := os.ReadFile(path); string(got) != want || err != nil {
			t.Errorf("%s is %q, %v; want %q", path, got, err, want)
		}
	}
	if n := end(mark, e); n != 2 {
		t.Fatalf("%d spare cells after the second launch", n)
	}

	for kind, all := range p.spares { // such a one takes the limit no more
		if kind.controller == forMemory {
			for _, file := range []string{"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"} {
				path := filepath.Join(all[0], file)
				if _, err := os.Stat(path); err != nil {
					continue
				}
				if err := os.WriteFile(path, []byte("33554432"), 0); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	mark, e = launch()
	if got, err := os.ReadFile(e.memory + "/memory.limit_in_bytes"); string(got) != "67108864\n" || err != nil {
		t.Errorf("the limit of memory is %q, %v", got, err)
	}
	if n := end(mark, e); n != 2 {
		t.Fatalf("%d spare cells after the third launch", n)
	}

	// set changes what the memory cell has, and sees to it that the other is not kept.
	set := func(e enclosure, file, value string) {
		t.Helper()
		_ = os.Mkdir(filepath.Join(e.tasks.path, "own"), 0o755) // or it is there
		path := filepath.Join(e.memory, file)
		if _, err := os.Stat(path); err != nil {
			t.Logf("SKIPPED: there is no %s here to spoil a cell with", file)
			_ = os.Mkdir(filepath.Join(e.memory, "own"), 0o755)
		} else if err := os.WriteFile(path, []byte(value), 0); err != nil {
			t.Fatal(err)
		}
	}
	for name, spoil := range map[string]func(e enclosure){
		"it lives": func(e enclosure) {
			for _, c := range e.cells {
				go within(c, "/bin/sleep", "1000").Wait()
			}
		},
		"it made a group": func(e enclosure) {
			for _, c := range e.cells {
				if err := os.Mkdir(filepath.Join(c.path, "own"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		},
		"it had less": func(e enclosure) {
			set(e, "memory.limit_in_bytes", "33554432")
		},
		"it had less with swap": func(e enclosure) {
			set(e, "memory.limit_in_bytes", "33554432")
			set(e, "memory.memsw.limit_in_bytes", "67108864")
			set(e, "memory.limit_in_bytes", "67108864")
		},
		"it had less to send": func(e enclosure) {
			set(e, "memory.kmem.tcp.limit_in_bytes", "4096")
		},
		"it was ended for its memory": func(e enclosure) {
			if err := within(e.birth[0], "/usr/bin/tail", "/dev/zero").Wait(); err == nil {
				t.Fatal("it was not")
			}
			if err := os.Mkdir(filepath.Join(e.tasks.path, "own"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
		"it left files in memory": func(e enclosure) {
			file := filepath.Join("/dev/shm", "mvm-test-"+rand.Text())
			t.Cleanup(func() { _ = os.Remove(file) })
			if err := within(e.birth[0], "/bin/dd", "if=/dev/zero", "of="+file, "bs=1M", "count=8", "status=none").Wait(); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(e.tasks.path, "own"), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	} {
		mark, e = launch()
		spoil(e)
		if n := end(mark, e); n != 0 {
			t.Errorf("%s: %d cells are kept", name, n)
		}
	}

	mark, e = launch()
	other, f := launch()
	if end(mark, e); end(other, f) != 4 {
		t.Error("the cells of two launches are not kept")
	}
	mark, e = launch()
	p.Close()
	if n := end(mark, e); n != 0 {
		t.Errorf("after Close %d cells are kept", n)
	}

	p = NewPlaces(prefix)
	mark, e = launch()
	end(mark, e)
	if _, err := Sweep(prefix, 0); err != nil { // the next life's, after a kill
		t.Fatal(err)
	}
	for kind := range p.spares {
		if found, _ := filepath.Glob(filepath.Join(kind.parent, "mvm."+strings.TrimSuffix(prefix, ".")+"*")); len(found) > 0 {
			t.Errorf("Sweep left %q", found)
		}
	}
	mark, e = launch() // what is gone is made anew
	end(mark, e)
}
