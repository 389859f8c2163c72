package conformance

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/services/client"
)

const root = "../.."

// binary is the real program, with its embedded parts, built by TestMain.
var binary string

func TestMain(m *testing.M) {
	// What is between here and the grid is nobody's business.
	for _, name := range []string{"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"} {
		os.Unsetenv(name)
	}
	if out, err := exec.Command("make", "-s", "-C", root, "build").CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "make build: %v\n%s", err, out)
		os.Exit(1)
	}
	path, err := filepath.Abs(filepath.Join(root, "mvm"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = path
	os.Exit(m.Run())
}

// grid is four real node processes. Whoever speaks to one of them, also another
// of them, does so through a tap that keeps what was said.
type grid struct {
	url     string // of the first node, which has all roles
	worker  string // of another, which only works
	records *records
}

func startGrid(t *testing.T) *grid {
	t.Helper()
	g := &grid{records: &records{}}
	for i := 1; i <= 4; i++ {
		args := []string{"--name", fmt.Sprintf("n%d", i), "--slots", "8"}
		if i > 1 {
			args = append(args, "--join", g.url)
		}
		g.worker = startNode(t, g.records, args...)
		if i == 1 {
			g.url = g.worker
		}
	}
	c, err := client.Dial(t.Context(), g.url)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "four nodes are up", func() bool {
		nodes, err := c.Nodes(t.Context())
		return err == nil && len(nodes) == 4
	})
	return g
}

// startNode starts `mvm node` behind a tap and returns the tap's address, which
// is the node's for everybody. The test's end stops it.
func startNode(t *testing.T, r *records, args ...string) (url string) {
	t.Helper()
	dir := t.TempDir()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	socket, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	address := r.tap(t, listener.Addr().String())
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, append([]string{"node", "--listen-fd", "3", "--advertise", address, "--data", filepath.Join(dir, "data")}, args...)...)
	cmd.ExtraFiles = []*os.File{socket}
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		timeout := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		defer timeout.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("node %v did not end well on SIGTERM: %v", args, err)
		}
		log.Close()
		if said, _ := os.ReadFile(log.Name()); t.Failed() {
			t.Logf("log of node %v:\n%s", args, said[max(0, len(said)-2000):])
		}
	})
	timeout := time.AfterFunc(30*time.Second, func() { cmd.Process.Kill() })
	defer timeout.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("node %v did not become ready: %v", args, err)
	}
	go io.Copy(io.Discard, stdout)
	return strings.TrimSpace(line)
}

// waitFor polls until ok, or fails the test after half a minute.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30 s for: %s", what)
		}
	}
}
