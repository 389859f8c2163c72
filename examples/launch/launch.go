// Package launch starts nodes of the real program, for the tests and benchmarks
// beside it.
//
// What holds: a node that was started is ready, and one that was stopped has
// ended. It never looks into a node: whoever started one speaks to its URL.
package launch

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	mostStart = 60 * time.Second // that a node may take until it is ready
	mostEnd   = 20 * time.Second // and until it has ended
)

// Program makes the program, with what is embedded in it, and says where it is.
func Program() (string, error) {
	root, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(root, "go.mod")); err == nil {
			break
		}
		above := filepath.Dir(root)
		if above == root {
			return "", fmt.Errorf("no go.mod is above %s", root)
		}
		root = above
	}
	if err != nil {
		return "", err
	}
	if said, err := exec.Command("make", "-s", "-C", root, "build").CombinedOutput(); err != nil {
		return "", fmt.Errorf("make build: %w\n%s", err, said)
	}
	return filepath.Join(root, "mvm"), nil
}

// Main is what a TestMain exits with: it makes the program, puts its path where
// tests find it, and runs them.
func Main(tests interface{ Run() int }, program *string) int {
	path, err := Program()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	*program = path
	return tests.Run()
}

// Config says which node is to be started, and how.
type Config struct {
	Program string     // as Program says
	Via     []string   // a command that runs it, such as nsenter
	Log     string     // the file to which it adds its log
	Args    []string   // after `mvm node`
	Files   []*os.File // that it inherits, from descriptor 3
	Apart   bool       // in a process group of its own, so that Ctrl-C does not reach it
}

// Node is a node's process.
type Node struct {
	URL string
	Cmd *exec.Cmd
	log string
}

// Start starts a node, and returns when it is ready.
func Start(c Config) (*Node, error) {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	words := append(append(slices.Clone(c.Via), c.Program, "node"), c.Args...)
	n := &Node{Cmd: exec.Command(words[0], words[1:]...), log: c.Log}
	n.Cmd.Stderr, n.Cmd.ExtraFiles = log, c.Files
	n.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: c.Apart}
	stdout, err := n.Cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := n.Cmd.Start(); err != nil {
		return nil, err
	}
	timeout := time.AfterFunc(mostStart, func() { n.Cmd.Process.Kill() })
	defer timeout.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		n.Kill()
		return nil, fmt.Errorf("a node did not become ready: %w; its log ends with\n%s", err, n.Tail(4000))
	}
	n.URL = strings.TrimSpace(line)
	go io.Copy(io.Discard, stdout)
	return n, nil
}

// Stop ends the node as SIGTERM does; an error says that it did not end well. One
// that has ended is left alone.
func (n *Node) Stop() error {
	if n.Cmd.ProcessState != nil {
		return nil
	}
	n.Cmd.Process.Signal(syscall.SIGTERM)
	timeout := time.AfterFunc(mostEnd, func() { n.Cmd.Process.Kill() })
	defer timeout.Stop()
	if err := n.Cmd.Wait(); err != nil {
		return fmt.Errorf("the node at %s did not end well on SIGTERM: %w", n.URL, err)
	}
	return nil
}

// Kill is kill -9: the node itself cleans nothing up.
func (n *Node) Kill() {
	n.Cmd.Process.Kill()
	n.Cmd.Wait()
}

// Tail is the end of its log, of so many bytes.
func (n *Node) Tail(bytes int) string {
	data, _ := os.ReadFile(n.log)
	return string(data[max(0, len(data)-bytes):])
}
