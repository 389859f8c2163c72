package jobs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mvm/examples/launch"
	"mvm/services/client"
	"mvm/wsdl"
)

// binary is the real program, with its embedded parts, built by TestMain.
var binary string

func TestMain(m *testing.M) { os.Exit(launch.Main(m, &binary)) }

// node is one real node process of a test's grid.
type node struct {
	t    testing.TB
	name string
	dir  string
	url  string
	args []string
	*launch.Node
}

// startNode starts `mvm node` with a data folder of its own and waits for the
// line with its URL. The test's end stops it.
func startNode(t testing.TB, name string, args ...string) *node {
	t.Helper()
	n := &node{t: t, name: name, dir: t.TempDir(), args: args}
	n.start("127.0.0.1:0")
	t.Cleanup(func() {
		n.stop()
		if t.Failed() {
			n.showLog()
		}
	})
	return n
}

func (n *node) start(listen string) {
	n.t.Helper()
	args := []string{"--name", n.name, "--listen", listen, "--data", filepath.Join(n.dir, "data")}
	if cache, err := os.UserCacheDir(); err == nil {
		args = append(args, "--go-cache", filepath.Join(cache, "mvm", "go")) // as `mvm lab` does
	}
	started, err := launch.Start(launch.Config{Program: binary, Log: filepath.Join(n.dir, "log"), Args: append(args, n.args...)})
	if err != nil {
		n.t.Fatalf("node %s: %v", n.name, err)
	}
	n.Node, n.url = started, started.URL
}

// kill is kill -9: nothing is cleaned up by the node itself.
func (n *node) kill() {
	n.t.Helper()
	n.Kill()
}

// restart starts the node again on its old address and data.
func (n *node) restart() {
	n.t.Helper()
	n.start(strings.TrimPrefix(n.url, "http://"))
}

func (n *node) stop() {
	if err := n.Stop(); err != nil {
		n.t.Errorf("node %s: %v", n.name, err)
	}
}

func (n *node) showLog() { n.t.Logf("log of %s:\n%s", n.name, n.Tail(6000)) }

// grid is a running grid: the first node has all roles, the others work.
type grid struct {
	t      testing.TB
	nodes  []*node
	client *client.Client
}

// startGrid starts nodes with slots each and waits until all are known.
func startGrid(t testing.TB, nodes, slots int) *grid {
	t.Helper()
	g := &grid{t: t}
	g.nodes = append(g.nodes, startNode(t, "n1", "--slots", fmt.Sprint(slots)))
	for i := 2; i <= nodes; i++ {
		g.nodes = append(g.nodes, startNode(t, fmt.Sprintf("n%d", i), "--slots", fmt.Sprint(slots), "--join", g.nodes[0].url))
	}
	return dialGrid(t, g.nodes[0], nodes, g.nodes...)
}

// dialGrid waits until so many nodes are up.
func dialGrid(t testing.TB, first *node, up int, nodes ...*node) *grid {
	t.Helper()
	c, err := client.Dial(t.Context(), first.url)
	if err != nil {
		t.Fatal(err)
	}
	g := &grid{t: t, nodes: nodes, client: c}
	g.eventually("all nodes are up", func() (bool, string) {
		known, err := c.Nodes(t.Context())
		if err != nil {
			return false, err.Error()
		}
		count := 0
		for _, n := range known {
			if n.State == "up" {
				count++
			}
		}
		return count == up, fmt.Sprintf("%d of %d", count, up)
	})
	return g
}

// eventually waits up to 30 seconds for something that has no event to wait on.
func (g *grid) eventually(what string, check func() (bool, string)) {
	g.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		ok, state := check()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s: not within 30 s: %s", what, state)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// request is a job from a profile file and "name=value" arguments.
func request(t testing.TB, path string, arguments ...string) client.Request {
	t.Helper()
	document, err := client.Load(path)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	for _, a := range arguments {
		name, value, _ := strings.Cut(a, "=")
		values[name] = value
	}
	return client.Request{Document: document, Arguments: values}
}

func (g *grid) submit(r client.Request) string {
	g.t.Helper()
	id, err := g.client.Submit(g.t.Context(), r)
	if err != nil {
		g.t.Fatal(err)
	}
	return id
}

// wait follows a job to its end.
func (g *grid) wait(id string) *wsdl.JobStatus {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 2*time.Minute)
	defer cancel()
	job, err := g.client.Wait(ctx, id, nil)
	if err != nil {
		g.t.Fatalf("wait for %s: %v", id, err)
	}
	return job
}

// run submits a job and fails the test unless it succeeds.
func (g *grid) run(r client.Request) *wsdl.JobStatus {
	g.t.Helper()
	job := g.wait(g.submit(r))
	if wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
		for _, p := range job.Process {
			if wsdl.Or(p.ExitCode, 0) != 0 {
				g.t.Logf("%s[%d] stderr: %s", p.Task, wsdl.Or(p.Index, 0), g.file(job, p.Task, int(wsdl.Or(p.Index, 0)), "stderr"))
			}
		}
		g.t.Fatalf("job %s is %s: %s", job.Id, wsdl.Or(job.State, ""), job.Reason)
	}
	return job
}

// file is an output file, stdout or stderr of one process.
func (g *grid) file(job *wsdl.JobStatus, task string, index int, name string) []byte {
	g.t.Helper()
	p, err := client.Process(job, fmt.Sprintf("%s[%d]", task, index))
	if err != nil {
		g.t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := g.client.Output(g.t.Context(), job.Id, int(wsdl.Or(p.Id, 0)), name, 0, true, &b); err != nil {
		g.t.Fatalf("%s of %s[%d]: %v", name, task, index, err)
	}
	return b.Bytes()
}

// usedNodes are the ids of the nodes that the job's processes sat on.
func usedNodes(job *wsdl.JobStatus) []string {
	var ids []string
	for _, p := range job.Process {
		ids = append(ids, p.Node)
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// crossed fails the test unless the job sat on so many nodes and its items
// crossed their proxies.
func (g *grid) crossed(job *wsdl.JobStatus, nodes int) {
	g.t.Helper()
	if used := usedNodes(job); len(used) != nodes {
		g.t.Errorf("job %s sat on %d nodes, want %d", job.Name, len(used), nodes)
	}
	if nodes > 1 && (wsdl.Or(job.ProxyBytes, 0) == 0 || wsdl.Or(job.ProxyItems, 0) == 0) {
		g.t.Errorf("job %s: %d items, %d bytes crossed proxies: want some", job.Name, wsdl.Or(job.ProxyItems, 0), wsdl.Or(job.ProxyBytes, 0))
	}
}
