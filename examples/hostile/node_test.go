package hostile

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mvm/examples/launch"
)

// binary is the real program, built by TestMain.
var binary string

func TestMain(m *testing.M) { os.Exit(launch.Main(m, &binary)) }

// node is a real node with all roles, and what is watched of it.
type node struct {
	t       *testing.T
	url     string
	address string // host and port
	log     string
	cmd     *exec.Cmd
}

func startNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	started, err := launch.Start(launch.Config{Program: binary, Log: filepath.Join(dir, "log"),
		Args: []string{"--listen", "127.0.0.1:0", "--data", filepath.Join(dir, "data"), "--slots", "4", "--name", "grid"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Stop(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("the node's log ends with\n%s", started.Tail(4000))
		}
	})
	return &node{t: t, url: started.URL, address: strings.TrimPrefix(started.URL, "http://"), cmd: started.Cmd, log: filepath.Join(dir, "log")}
}

// mvm runs the program against the node.
func (n *node) mvm(args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "MVM_GRID="+n.url)
	var out, err strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &err
	_ = cmd.Run() // the code says it
	return out.String(), err.String(), cmd.ProcessState.ExitCode()
}

// resident is the node's memory now, in MiB.
func (n *node) resident() int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.cmd.Process.Pid))
	if err != nil {
		n.t.Error(err)
		return 0
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	kilobytes := 0
	if _, err := fmt.Sscan(after, &kilobytes); err != nil {
		n.t.Errorf("no VmRSS in\n%s", status)
	}
	return kilobytes >> 10
}

// held is what the node holds that a caller could make it keep.
type held struct{ descriptors, goroutines, connections, inFlight int }

func (n *node) held() (h held, err error) {
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.cmd.Process.Pid))
	if err != nil {
		return h, err
	}
	h.descriptors = len(files)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	answer, err := client.Get(n.url + "/metrics")
	if err != nil {
		return h, err
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		number, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			h.goroutines = int(number)
		case "mvm_connections":
			h.connections = int(number)
		case "mvm_requests_in_flight":
			h.inFlight = int(number)
		}
	}
	return h, lines.Err()
}

// bystanders are callers that mean well: they call as long as the catalogue
// runs, and are to notice little of it.
type bystanders struct {
	stop     chan struct{}
	done     sync.WaitGroup
	mu       sync.Mutex // guards what follows
	took     []time.Duration
	failures []string
	jobs     atomic.Int32
	largest  atomic.Int32 // MiB resident
	recent   atomic.Int32 // the same, since an entry looked last
}

func (n *node) watch() *bystanders {
	b := &bystanders{stop: make(chan struct{})}
	every := func(pause time.Duration, do func()) {
		b.done.Go(func() {
			for {
				select {
				case <-b.stop:
					return
				case <-time.After(pause):
					do()
				}
			}
		})
	}
	every(20*time.Millisecond, func() {
		now := int32(n.resident())
		b.largest.Store(max(b.largest.Load(), now))
		b.recent.Store(max(b.recent.Load(), now))
	})
	client := http.Client{Timeout: time.Minute}
	every(10*time.Millisecond, func() {
		begin := time.Now()
		answer, err := client.Post(n.url+"/services/bootstrap", "text/xml", strings.NewReader(envelope(`<GetBroker xmlns="urn:mvm:1"/>`)))
		if err == nil {
			var said []byte
			said, err = io.ReadAll(answer.Body)
			answer.Body.Close()
			if err == nil && (answer.StatusCode != http.StatusOK || !strings.Contains(string(said), "GetBrokerResponse")) {
				err = fmt.Errorf("%s: %.200s", answer.Status, said)
			}
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.took = append(b.took, time.Since(begin))
		if err != nil {
			b.failures = append(b.failures, err.Error())
		}
	})
	profile := filepath.Join(n.t.TempDir(), "bystander.xml")
	if err := os.WriteFile(profile, []byte(`<job xmlns="urn:mvm:1" name="bystander">
  <source name="s" language="shell"><file name="s.sh"><text>true</text></file></source><task name="t" source="s"/></job>`), 0o600); err != nil {
		n.t.Fatal(err)
	}
	every(500*time.Millisecond, func() {
		if _, said, code := n.mvm("submit", "--wait", profile); code != 0 {
			b.mu.Lock()
			b.failures = append(b.failures, "a job: "+said)
			b.mu.Unlock()
			return
		}
		b.jobs.Add(1)
	})
	return b
}
