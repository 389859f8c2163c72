package node

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/node/mvm"
)

// traces is what there was before attempts came, for finding what they leave:
// processes, by their mark, folder, session or control group; control groups;
// work folders; files in shared memory; mounts; and the node's own
// descriptors, listening sockets and memory files among them.
type traces struct {
	t       testing.TB
	dir     string // the node's data folder, as the node names it
	pid     int    // of the node's process; 0 when it is this one, whose descriptors tell nothing
	mark    string // of all that was started from that folder
	before  []string
	strange func(string) bool // what is not the node's; nil: nothing
}

// trace begins to look at a node.
func trace(t testing.TB, dir string, pid int) *traces {
	t.Helper()
	f, err := foldersOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	tr := &traces{t: t, dir: f.root, pid: pid, mark: markOf(f.root)}
	tr.before = tr.look()
	return tr
}

// nothingLeft waits until there is nothing that was not there before.
func (tr *traces) nothingLeft() {
	tr.t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = left[:0]
		for _, each := range tr.look() {
			if !slices.Contains(tr.before, each) {
				left = append(left, each)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			tr.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			return
		}
	}
}

// again is after the node was started anew: its descriptors have other numbers.
func (tr *traces) again(pid int) {
	tr.pid = pid
	tr.before = slices.DeleteFunc(tr.before, func(s string) bool { return strings.HasPrefix(s, "descriptors: ") })
	tr.before = append(tr.before, tr.descriptors()...)
}

func (tr *traces) look() []string {
	var all []string
	all = append(all, tr.processes()...)
	entries, _ := os.ReadDir(filepath.Join(tr.dir, "work"))
	for _, e := range entries {
		all = append(all, "file: "+filepath.Join(tr.dir, "work", e.Name()))
	}
	shared, _ := os.ReadDir("/dev/shm")
	for _, e := range shared {
		if info, err := e.Info(); err == nil && strings.Contains(e.Name(), "mvm-test") {
			all = append(all, fmt.Sprintf("shared memory: %s, %d bytes", e.Name(), info.Size()))
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && strings.HasPrefix(entry.Name(), "mvm."+tr.mark) &&
			!strings.HasPrefix(entry.Name(), "mvm."+tr.mark+"spare.") { // empty, for the next attempt
			all = append(all, "control group: "+path)
		}
		return nil
	})
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, tr.dir+"/work") {
			all = append(all, "mount: "+line)
		}
	}
	return append(all, tr.descriptors()...)
}

func (tr *traces) processes() (all []string) {
	names, _ := filepath.Glob("/proc/[0-9]*")
	for _, name := range names {
		pid, _ := strconv.Atoi(filepath.Base(name))
		if pid == os.Getpid() || pid == tr.pid {
			continue
		}
		environment, _ := os.ReadFile(name + "/environ")
		group, _ := os.ReadFile(name + "/cgroup")
		folder, _ := os.Readlink(name + "/cwd")
		if bytes.Contains(environment, []byte("MVM_ATTEMPT="+tr.mark)) || bytes.Contains(group, []byte("mvm."+tr.mark)) ||
			strings.HasPrefix(folder, tr.dir+"/work/") {
			command, err := os.ReadFile(name + "/cmdline")
			if err == nil && (tr.strange == nil || !tr.strange(string(command))) {
				all = append(all, fmt.Sprintf("process: %d %q", pid, command))
			}
		}
	}
	return all
}

// descriptors is how many the node has of each kind that attempts need.
// Connections to other nodes come and go by themselves.
func (tr *traces) descriptors() []string {
	if tr.pid == 0 {
		return nil
	}
	listening := map[string]bool{}
	for _, table := range []string{"tcp", "tcp6"} {
		text, _ := os.ReadFile("/proc/net/" + table)
		for line := range strings.Lines(string(text)) {
			if fields := strings.Fields(line); len(fields) > 9 && fields[3] == "0A" {
				listening["socket:["+fields[9]+"]"] = true
			}
		}
	}
	count := map[string]int{}
	links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", tr.pid))
	for _, link := range links {
		target, err := os.Readlink(link)
		switch {
		case err != nil:
		case listening[target]:
			count["listening sockets"]++
		case strings.HasPrefix(target, "socket:"): // idle connections
		case strings.HasPrefix(strings.TrimPrefix(strings.TrimPrefix(target, "/"), "memfd:"), mvm.ProcessName) && count["program"] == 0: // made at the first need, and kept
			count["program"]++
		case strings.HasPrefix(target, "pipe:"), strings.HasPrefix(target, "anon_inode:"):
			kind, _, _ := strings.Cut(target, ":[")
			count[kind]++
		default:
			count[target]++
		}
	}
	var all []string
	delete(count, "program")
	for kind, n := range count {
		all = append(all, fmt.Sprintf("descriptors: %d of %s", n, kind))
	}
	return all
}
