package soak

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mvm/broker"
	"mvm/services/image"
	"mvm/services/store"
	"mvm/wsdl"
)

// parents are all processes of this machine, each with its parent.
func parents() map[int]int {
	parents := map[int]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// The command's name, in brackets, may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 || fields[0] == "Z" {
			continue
		}
		parent, _ := strconv.Atoi(fields[1])
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		parents[pid] = parent
	}
	return parents
}

// below are the processes that a node has started, and theirs, nearest first.
func below(pid int) []int {
	children := map[int][]int{}
	for child, parent := range parents() {
		children[parent] = append(children[parent], child)
	}
	var all []int
	for next := children[pid]; len(next) > 0; {
		all = append(all, next...)
		var further []int
		for _, pid := range next {
			further = append(further, children[pid]...)
		}
		next = further
	}
	return all
}

// command is a process's command line.
func command(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
}

// mvmProcesses are the MVM processes of a node.
func (n *node) mvmProcesses() []int {
	var pids []int
	all := parents()
	for pid, parent := range all {
		if parent == n.pid() && strings.Contains(command(pid), "mvm-process") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// programs are the processes of jobs on a node.
func (g *grid) programs(n *node) []int {
	var pids []int
	for _, pid := range below(n.pid()) {
		if strings.Contains(command(pid), g.diaries) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// clean waits until nothing of any job is left on this machine.
func (g *grid) clean() {
	g.t.Helper()
	g.eventually("nothing is left of any job", 60*time.Second, func() (string, bool) {
		left := g.left()
		return strings.Join(left, "; "), len(left) == 0
	})
}

// listeners are the addresses that are listened at in the network of a process,
// by the inode of the socket.
func listeners(pid int) map[string]string {
	listening := map[string]string{}
	for _, name := range []string{"tcp", "tcp6"} {
		file, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if err != nil {
			continue
		}
		for lines := bufio.NewScanner(file); lines.Scan(); {
			if f := strings.Fields(lines.Text()); len(f) > 9 && f[3] == "0A" {
				listening[f[9]] = f[1]
			}
		}
		file.Close()
	}
	return listening
}

// left is what is there besides the nodes themselves.
func (g *grid) left() []string {
	var left []string
	for _, n := range g.nodes() {
		pid := n.pid()
		if pid == 0 {
			left = append(left, n.name+" does not run")
			continue
		}
		for _, child := range below(pid) {
			left = append(left, fmt.Sprintf("%s: process %d %s", n.name, child, command(child)))
		}
		_, port, _ := strings.Cut(n.listen, ":")
		own, _ := strconv.Atoi(port)
		listening := listeners(pid)
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range fds {
			target, err := os.Readlink(fd)
			if err != nil {
				continue
			}
			if strings.Contains(target, "memfd:mvm-ring") || strings.Contains(target, "/dev/shm/") {
				left = append(left, n.name+" holds "+target)
			}
			inode, isSocket := strings.CutPrefix(target, "socket:[")
			if at, listens := listening[strings.TrimSuffix(inode, "]")]; isSocket && listens && !strings.HasSuffix(at, fmt.Sprintf(":%04X", own)) {
				left = append(left, n.name+" listens at "+at)
			}
		}
		for _, what := range []string{"work/*", "spool/*.xml"} { // what else is there waits for the next report
			files, _ := filepath.Glob(filepath.Join(n.dir, "data", "node", what))
			left = append(left, files...)
		}
	}
	// What a node that was killed left behind has another parent by now.
	for pid := range parents() {
		if line := command(pid); strings.Contains(line, g.diaries) {
			left = append(left, fmt.Sprintf("process %d %s", pid, line))
		}
		environment, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		for _, n := range g.nodes() {
			work := filepath.Join(n.dir, "data", "node", "work")
			if bytes.Contains(environment, []byte(work)) || strings.HasPrefix(cwd, work) {
				left = append(left, fmt.Sprintf("process %d %s of %s", pid, command(pid), n.name))
			}
		}
	}
	return left
}

// audit stops the grid, opens the front end's state, and compares it with what
// was seen of the jobs.
func (g *grid) audit(jobs []*job) {
	g.t.Helper()
	for _, w := range g.workers {
		w.stop()
	}
	g.front.stop()
	blobs, err := image.New(image.Config{Dir: filepath.Join(g.front.dir, "data", "image")})
	if err != nil {
		g.t.Fatal(err)
	}
	state, err := store.Open(context.Background(), store.Config{Dir: filepath.Join(g.front.dir, "data", "state")})
	if err != nil {
		g.t.Fatal(err)
	}
	defer state.Close()
	ledger, err := broker.Audit(context.Background(), state, blobs)
	if err != nil {
		g.t.Fatal(err)
	}
	for _, problem := range ledger.Problems {
		g.t.Error(problem)
	}
	byToken := map[string]*job{}
	for _, j := range jobs {
		byToken[fmt.Sprintf("job-%d", j.number)] = j
	}
	for _, e := range ledger.Jobs {
		j := byToken[e.Token]
		delete(byToken, e.Token)
		switch {
		case j == nil:
			g.t.Errorf("the journal has job %s, token %s, which nobody submitted", e.ID, e.Token)
		case j.status == nil:
		case e.ID != j.id || e.State != j.state() || e.Reason != j.status.Reason || e.Attempt != int(wsdl.Or(j.status.Attempt, 0)):
			g.t.Errorf("%v is %s in attempt %d (%s); the journal has it as %+v", j, j.state(), wsdl.Or(j.status.Attempt, 0), j.status.Reason, e)
		case e.State == wsdl.JobStateSucceeded && e.Failures > j.retries:
			g.t.Errorf("%v failed %d times, and succeeded then", j, e.Failures)
		case e.State == wsdl.JobStateFailed && e.Failures != j.retries+1:
			g.t.Errorf("%v was given up after %d failures: %s", j, e.Failures, e.Reason)
		}
	}
	for _, j := range byToken {
		if j.id != "" {
			g.t.Errorf("%v was accepted, and the journal has lost it", j)
		}
	}
}

// size is what a node takes of its machine.
type size struct {
	files      int
	goroutines int
	heap       int64 // bytes
	resident   int64 // bytes of anonymous memory
}

func (s size) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, heap %.1f MB, resident %.1f MB", s.files, s.goroutines, float64(s.heap)/1e6, float64(s.resident)/1e6)
}

// size asks a node how it is.
func (n *node) size() (s size, err error) {
	response, err := http.Get("http://" + n.listen + "/metrics")
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	var goal, percent float64
	for lines := bufio.NewScanner(response.Body); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), " ")
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			continue
		}
		switch name {
		case "process_open_fds":
			s.files = int(value)
		case "go_goroutines":
			s.goroutines = int(value)
		case "go_memstats_next_gc_bytes":
			goal = value
		case "go_gc_gogc_percent":
			percent = value
		}
	}
	// The goal of the collector tells what it last found alive; what is allocated
	// tells only when it last came.
	s.heap = int64(goal / (1 + percent/100))
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.pid()))
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "RssAnon:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			s.resident = kib << 10
		}
	}
	return s, err
}

// sizes are those of all nodes once they are at rest: the least of several
// looks, since the collector comes when it likes.
func (g *grid) sizes() map[*node]size {
	g.t.Helper()
	least := map[*node]size{}
	for range 8 {
		for _, n := range g.nodes() {
			s, err := n.size()
			if err != nil {
				g.t.Fatalf("node %s: %v", n.name, err)
			}
			if was, there := least[n]; there {
				s = size{min(s.files, was.files), min(s.goroutines, was.goroutines), min(s.heap, was.heap), min(s.resident, was.resident)}
			}
			least[n] = s
		}
		time.Sleep(500 * time.Millisecond)
	}
	return least
}
