package mvm

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Spares are cells of version 1 that launches have left as good as new, for later
// ones: to make and remove them took a seventh of a trivial job's CPU. In version 2
// a group cannot get another name, by which what a killed node left is found; there
// each launch makes its own.

// mostSpares bounds how many of a kind are kept.
const mostSpares = 16

// spareKind tells which launches a spare cell is for.
type spareKind struct {
	parent     string
	controller string
}

// reuse gives a launch a spare cell, nil if there is none. It is made ready anew: a
// program with the right to do so may have changed its limit, or had it take none any
// more; then it is of no use.
func (p *Places) reuse(g groups, controller, mark string, ready func(*cell) error) *cell {
	if p == nil || g.unified {
		return nil
	}
	for {
		p.mu.Lock()
		kind := spareKind{g.parent, controller}
		all := p.spares[kind]
		if len(all) == 0 {
			p.mu.Unlock()
			return nil
		}
		spare := all[len(all)-1]
		p.spares[kind] = all[:len(all)-1]
		p.mu.Unlock()
		c := &cell{groups: g, path: filepath.Join(g.parent, groupName(mark)+"all"), controller: controller}
		now := time.Now() // see removeForsaken
		if os.Chtimes(spare, now, now) == nil && unix.Rename(spare, c.path) == nil {
			if ready(c) == nil {
				return c
			}
			spare = c.path
		}
		_ = os.Remove(spare) // or it is gone
	}
}

// keep makes a cell a spare one, if nothing lives in it and it is as good as new.
func (p *Places) keep(c *cell) bool {
	if p == nil || p.prefix == "" || !c.likeNew() {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	kind := spareKind{c.parent, c.controller}
	if p.shut || len(p.spares[kind]) >= mostSpares {
		return false
	}
	p.made++
	spare := filepath.Join(c.parent, groupName(fmt.Sprintf("%sspare.%d", p.prefix, p.made))+"all")
	if unix.Rename(c.path, spare) != nil {
		return false
	}
	if p.spares == nil {
		p.spares = map[spareKind][]string{}
	}
	p.spares[kind] = append(p.spares[kind], spare)
	return true
}

// Close removes the spare cells, and keeps none from now on. A launch may still
// end.
func (p *Places) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shut = true
	for _, all := range p.spares {
		for _, spare := range all {
			_ = os.Remove(spare) // or the next life's Sweep does
		}
	}
	p.spares = nil
}

// likeNew tells whether a cell is empty, owes nothing and has the limits of a new one:
// what files of its last launch are still in memory would be charged to the next, and
// that the kernel has ended processes in it would be taken for a word on the next ones.
func (c *cell) likeNew() bool {
	var info unix.Stat_t
	if c.unified || unix.Stat(c.path, &info) != nil || info.Nlink != 2 { // a group was made in it
		return false
	}
	read := func(file string) string {
		fd, err := unix.Open(filepath.Join(c.path, file), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "unknown"
		}
		defer unix.Close(fd)
		var text [256]byte // os.ReadFile makes twice as many calls
		n, err := unix.Read(fd, text[:])
		if err != nil {
			return "unknown"
		}
		return strings.TrimSpace(string(text[:n]))
	}
	switch c.controller {
	case forTasks:
		return read("pids.current") == "0"
	case forMemory:
		others := []string{"memory.memsw.limit_in_bytes", "memory.kmem.limit_in_bytes", "memory.kmem.tcp.limit_in_bytes"}
		used, err := strconv.ParseUint(read("memory.usage_in_bytes"), 10, 64)
		return err == nil && used <= c.limit/mostOwed && read("cgroup.procs") == "" &&
			read("memory.oom_control") == "oom_kill_disable 0\nunder_oom 0\noom_kill 0" &&
			read("memory.limit_in_bytes") == strconv.FormatUint(c.limit, 10) &&
			!slices.ContainsFunc(others, func(file string) bool {
				most, err := strconv.ParseUint(read(file), 10, 64)
				return err == nil && most < endless // not every kernel has it
			})
	}
	return false
}

// mostOwed is the part of a cell's limit that may be charged to it before its first
// process is born.
const mostOwed = 32
