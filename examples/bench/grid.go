package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mvm/examples/launch"
	"mvm/services/client"
)

// grid is real `mvm node` processes on loopback, the first one with all roles.
type grid struct {
	*client.Client
	url   string
	nodes []*gridNode
}

type gridNode struct {
	*launch.Node
	log string // path of its log, in JSON
}

// startGrid starts len(slots) nodes, each with flags, and returns when all can
// be given jobs.
func startGrid(ctx context.Context, b *bench, flags []string, slots ...int) (*grid, error) {
	sites := make([]site, len(slots))
	for i, n := range slots {
		sites[i] = site{slots: n, flags: flags}
	}
	return startGridAt(ctx, b, sites)
}

// site is where and how a node runs.
type site struct {
	via   []string // the command that runs it there; nothing for here
	slots int
	flags []string
}

func startGridAt(ctx context.Context, b *bench, sites []site) (*grid, error) {
	dir, err := b.folder("grid")
	if err != nil {
		return nil, err
	}
	g := &grid{}
	for i, s := range sites {
		args := append([]string{"--data", filepath.Join(dir, strconv.Itoa(i))}, s.flags...)
		if s.slots > 0 {
			args = append(args, "--slots", strconv.Itoa(s.slots))
		} else {
			args = append(args, "--roles", "backend,frontend")
		}
		if i > 0 {
			args = append(args, "--join", g.url)
		}
		node, err := startNode(s.via, b.mvm, filepath.Join(dir, fmt.Sprintf("%d.log", i)), args...)
		if err != nil {
			g.stop()
			return nil, err
		}
		g.nodes = append(g.nodes, node)
		g.url = g.nodes[0].URL
	}
	if g.Client, err = client.Dial(ctx, g.url); err != nil {
		g.stop()
		return nil, err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		nodes, err := g.Nodes(ctx)
		if err == nil && len(nodes) == len(sites) {
			return g, nil
		}
		if time.Now().After(deadline) {
			g.stop()
			return nil, fmt.Errorf("%d of %d nodes joined: %w", len(nodes), len(sites), err)
		}
	}
}

// startNode starts a node and waits for its address.
func startNode(via []string, mvm, log string, args ...string) (*gridNode, error) {
	n, err := launch.Start(launch.Config{Program: mvm, Via: via, Log: log, Apart: true,
		Args: append([]string{"--listen", "127.0.0.1:0", "--log-format", "json"}, args...)})
	if err != nil {
		return nil, err
	}
	return &gridNode{n, log}, nil
}

func tail(path string) string {
	text := readFile(path)
	return text[max(0, len(text)-500):]
}

// stop ends the workers first.
func (g *grid) stop() {
	for i := len(g.nodes) - 1; i >= 0; i-- {
		_ = g.nodes[i].Stop() // how well is not measured
	}
}

// logged is a line of a node's log.
type logged struct {
	Time      time.Time
	Msg       string
	Job       string
	Attempt   any
	Operation string
	Micros    int64
}

// since reads what the nodes have logged from a moment on, node by node.
func (g *grid) since(begin time.Time) ([]logged, error) {
	var all []logged
	for _, n := range g.nodes {
		f, err := os.Open(n.log)
		if err != nil {
			return nil, err
		}
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			var l logged
			if err := json.Unmarshal(lines.Bytes(), &l); err == nil && !l.Time.Before(begin) {
				all = append(all, l)
			}
		}
		f.Close()
	}
	return all, nil
}

// used is the CPU time that the nodes took so far, and that of the processes
// that they have started and waited for.
func (g *grid) used() (nodes, processes time.Duration) {
	for _, n := range g.nodes {
		own, children := processorTime(n.Cmd.Process.Pid)
		nodes += own
		processes += children
	}
	return nodes, processes
}

// processorTime is the CPU time of a process, and of the children that it has
// reaped. The kernel counts in hundredths of a second.
func processorTime(pid int) (own, children time.Duration) {
	text := readFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 15 {
		return 0, 0
	}
	const tick = time.Second / 100 // USER_HZ, the same on every Linux that Go runs on
	of := func(fields ...string) (sum time.Duration) {
		for _, f := range fields {
			n, _ := strconv.ParseInt(f, 10, 64)
			sum += time.Duration(n) * tick
		}
		return sum
	}
	return of(fields[11], fields[12]), of(fields[13], fields[14])
}

// residentMiB is a process's resident memory.
func residentMiB(pid int) float64 {
	kib, _ := strconv.ParseFloat(field(readFile(fmt.Sprintf("/proc/%d/status", pid)), "VmRSS:"), 64)
	return kib / 1024
}

// command runs a program to its end and returns how long that took and the CPU
// time of it and its children. Its output is in the error when it fails.
func command(ctx context.Context, dir, name string, args ...string) (took, cpu time.Duration, err error) {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	begin := time.Now()
	err = c.Run()
	took = time.Since(begin)
	if err != nil {
		return took, 0, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	usage := c.ProcessState.SysUsage().(*syscall.Rusage)
	return took, time.Duration(usage.Utime.Nano() + usage.Stime.Nano()), nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
