package client

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// labGrid is an ephemeral grid: real `mvm node` processes on loopback. They
// die with this process, also with its kill -9, because each ends when the
// pipe that is its standard input does; each removes its own data folder.
type labGrid struct {
	nodes []*labNode
	pipe  *os.File // while it is open, the nodes live
}

// labNode is one node process of a lab.
type labNode struct {
	name string
	cmd  *exec.Cmd
	dir  string
	log  *os.File      // what it writes to standard error
	out  *os.File      // its standard output, until it is ready
	url  string        // once ready
	gone chan struct{} // closed when the process has ended
	err  error         // how it ended; read it after gone
}

// startGrid starts len(slots) nodes with so many slots each and returns once
// all of them are ready. binary is the mvm program.
func startGrid(ctx context.Context, binary string, slots []int) (grid *labGrid, err error) {
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer read.Close()
	grid = &labGrid{pipe: write}
	defer func() {
		if err != nil {
			grid.stop()
		}
	}()
	// The first node's socket is opened here, so that all nodes can start at
	// once: those that join wait in its backlog until it answers.
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		listener.Close()
		return nil, err
	}
	address := listener.Addr().String()
	listener.Close()
	defer socket.Close()

	errs := make([]error, len(slots))
	var started sync.WaitGroup
	var mu sync.Mutex // guards grid.nodes
	for i, n := range slots {
		args := []string{"node", "--name", fmt.Sprintf("node%d", i+1), "--slots", fmt.Sprint(n),
			"--exit-with-parent", "--temporary"}
		if cache, err := os.UserCacheDir(); err == nil {
			// Go's standard library is compiled once on this machine, not by
			// each node of each lab, and compilers are asked once what they are.
			args = append(args, "--go-cache", filepath.Join(cache, "mvm", "go"), "--compilers", filepath.Join(cache, "mvm", "compilers.json"))
		}
		var extra *os.File
		if i == 0 {
			args = append(args, "--listen-fd", "3")
			extra = socket
		} else {
			args = append(args, "--listen", "127.0.0.1:0", "--join", "http://"+address)
		}
		started.Add(1)
		go func() {
			defer started.Done()
			node, err := startNode(binary, fmt.Sprintf("node%d", i+1), args, read, extra)
			if err != nil {
				errs[i] = err
				return
			}
			mu.Lock()
			grid.nodes = append(grid.nodes, node)
			mu.Unlock()
			errs[i] = node.ready(ctx)
		}()
	}
	started.Wait()
	if err := errors.Join(errs...); err != nil {
		return grid, err
	}
	return grid, nil
}

// startNode starts one node process.
func startNode(binary, name string, args []string, stdin, extra *os.File) (n *labNode, err error) {
	n = &labNode{name: name, gone: make(chan struct{})}
	if n.dir, err = os.MkdirTemp("", "mvm-lab-"+name+"-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(n.dir)
			if n.log != nil {
				n.log.Close()
			}
		}
	}()
	// The log has no name: it is gone with the lab, however that ends.
	if n.log, err = os.CreateTemp("", "mvm-lab-log-"); err != nil {
		return nil, err
	}
	os.Remove(n.log.Name())
	n.cmd = exec.Command(binary, append(args, "--data", n.dir)...)
	n.cmd.Stdin = stdin
	n.cmd.Stderr = n.log
	if extra != nil {
		n.cmd.ExtraFiles = []*os.File{extra}
	}
	// A group of its own: Ctrl-C in a terminal is for the lab, which then ends
	// the job before it ends the nodes.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdout, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	n.cmd.Stdout = w
	err = n.cmd.Start()
	w.Close()
	if err != nil {
		stdout.Close()
		return nil, fmt.Errorf("start of %s: %w", name, err)
	}
	n.out = stdout
	go func() {
		n.err = n.cmd.Wait()
		close(n.gone)
	}()
	return n, nil
}

// ready waits for the line with the node's address.
func (n *labNode) ready(ctx context.Context) error {
	defer n.out.Close()
	stop := context.AfterFunc(ctx, func() { n.out.SetReadDeadline(time.Now()) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(n.out, 4096)).ReadString('\n')
	if err == nil {
		n.url = strings.TrimSpace(line)
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	<-n.gone
	return fmt.Errorf("%s ended before it was ready: %v%s", n.name, n.err, n.logTail())
}

// logTail is the end of the node's log, for an error message.
func (n *labNode) logTail() string {
	const enough, lines = 4096, 8
	info, err := n.log.Stat()
	if err != nil {
		return ""
	}
	data := make([]byte, min(info.Size(), enough))
	if _, err := n.log.ReadAt(data, info.Size()-int64(len(data))); err != nil || len(data) == 0 {
		return ""
	}
	tail := strings.Split(strings.TrimSpace(string(data)), "\n")
	tail = tail[max(0, len(tail)-lines):]
	return "\n" + printableLines(strings.Join(tail, "\n"))
}

// stop ends the nodes and removes what they leave: their standard input ends,
// which each takes as the word to go; who has not gone after a while is killed.
func (g *labGrid) stop() {
	const patience = 5 * time.Second
	g.pipe.Close()
	late := time.After(patience)
	for _, n := range g.nodes {
		select {
		case <-n.gone:
		case <-late:
			for _, n := range g.nodes {
				n.cmd.Process.Kill()
			}
			<-n.gone
		}
	}
	for _, n := range g.nodes {
		os.RemoveAll(n.dir)
		n.log.Close()
	}
}

// lost receives each node that ends before ctx does; it is closed after that.
func (g *labGrid) lost(ctx context.Context) <-chan *labNode {
	lost := make(chan *labNode)
	var watching sync.WaitGroup
	for _, n := range g.nodes {
		watching.Go(func() {
			select {
			case <-n.gone:
			case <-ctx.Done():
				return
			}
			select {
			case lost <- n:
			case <-ctx.Done():
			}
		})
	}
	go func() {
		watching.Wait()
		close(lost)
	}()
	return lost
}
