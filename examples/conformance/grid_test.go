package conformance

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mvm/examples/launch"
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
	os.Exit(launch.Main(m, &binary))
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
	n, err := launch.Start(launch.Config{Program: binary, Log: filepath.Join(dir, "log"), Files: []*os.File{socket},
		Args: append([]string{"--listen-fd", "3", "--advertise", address, "--data", filepath.Join(dir, "data")}, args...)})
	if err != nil {
		t.Fatalf("node %v: %v", args, err)
	}
	t.Cleanup(func() {
		if err := n.Stop(); err != nil {
			t.Errorf("node %v: %v", args, err)
		}
		if t.Failed() {
			t.Logf("log of node %v:\n%s", args, n.Tail(2000))
		}
	})
	return n.URL
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
