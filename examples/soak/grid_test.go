// Package soak takes grids of real node processes through faults: brokers,
// nodes and MVM processes that are killed or stopped at any moment, calls that
// are lost, late, repeated and out of order, networks that part. It has no code
// of its own beside its tests.
//
// What is checked after each: every accepted job ended exactly once, with the
// right answer or a stated reason; the state opens, and all of it fits together
// (broker.Audit); no process, shared memory, port or work folder is left; and
// the nodes are as small as before.
//
// Every random choice comes from a seed that is printed; -seed replays it, as
// far as the machine plays along. `make test` runs a part, `make soak` all.
package soak

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mvm/examples/launch"
	"mvm/services/client"
	"mvm/wsdl"
)

var (
	seedFlag = flag.Uint64("seed", 0, "replay the choices of the run that printed this seed")
	longFlag = flag.Bool("long", false, "run the long loops of `make soak`")
	jobsFlag = flag.Int("jobs", 2000, "how many jobs the long soak takes through the grid")
)

// binary is the real program, with its embedded parts, built by TestMain.
var binary string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(launch.Main(m, &binary))
}

// together lets the short tests, which mostly wait, run at the same time; the
// long ones would only be in each other's way.
func together(t *testing.T) {
	if !*longFlag {
		t.Parallel()
	}
}

// chance is a source of random choices that several goroutines may draw from.
type chance struct {
	mu  sync.Mutex // guards rng
	rng *rand.Rand
}

// newChance prints the seed, and is the same whenever -seed names it.
func newChance(t testing.TB) *chance {
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("replay with: go test ./examples/soak -run '%s' -args -seed %d", t.Name(), seed)
	return &chance{rng: rand.New(rand.NewPCG(seed, 0))}
}

// fork is another source, so that what one goroutine draws does not depend on
// how fast another is.
func (c *chance) fork() *chance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &chance{rng: rand.New(rand.NewPCG(c.rng.Uint64(), 0))}
}

func (c *chance) n(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

func (c *chance) between(low, high time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return low + time.Duration(c.rng.Int64N(int64(high-low)+1))
}

// node is one real node process of a test's grid. It keeps its address and its
// data over its lives.
type node struct {
	t      testing.TB
	name   string
	dir    string // its data is in dir/data, its log in dir/log
	listen string // host:port
	binary string
	via    []string // a command that runs it, such as nsenter
	args   []string
	env    []string
	proxy  *proxy // in front of it, nil without one

	mu    sync.Mutex // guards all below
	life  *life
	lives int
}

// life is one process of a node.
type life struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	ready chan struct{} // closed once it has printed its address
	gone  chan struct{} // closed once it has ended; then err is set
	err   error
}

// freePort is a port of loopback that nobody has, outside the range from which
// others get theirs: it is still free when a node that was killed comes back.
func freePort(t testing.TB) string {
	t.Helper()
	for range 1000 {
		address := fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))
		if l, err := net.Listen("tcp", address); err == nil {
			l.Close()
			return address
		}
	}
	t.Fatal("no free port between 20000 and 30000 was found")
	return ""
}

// start begins a life; extra are flags for this one alone. It does not wait
// until the node is ready.
func (n *node) start(extra ...string) *life {
	n.t.Helper()
	log, err := os.OpenFile(filepath.Join(n.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close()
	argv := append(append([]string{}, n.via...), n.binary, "node", "--name", n.name, "--listen", n.listen,
		"--data", filepath.Join(n.dir, "data"), "--exit-with-parent")
	argv = append(append(argv, n.args...), extra...)
	l := &life{cmd: exec.Command(argv[0], argv[1:]...), ready: make(chan struct{}), gone: make(chan struct{})}
	l.cmd.Env = append(os.Environ(), n.env...)
	l.cmd.Stderr = log
	if l.stdin, err = l.cmd.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	said := &firstLine{done: l.ready}
	l.cmd.Stdout = said
	fmt.Fprintf(log, "---- life %d of %s: %s\n", n.lives+1, n.name, strings.Join(argv, " "))
	if err := l.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.gone)
	}()
	n.mu.Lock()
	n.life = l
	n.lives++
	n.mu.Unlock()
	return l
}

// firstLine closes done when a line is written to it.
type firstLine struct {
	done chan struct{}
	over bool
}

func (w *firstLine) Write(p []byte) (int, error) {
	if !w.over && bytes.IndexByte(p, '\n') >= 0 {
		w.over = true
		close(w.done)
	}
	return len(p), nil
}

func (n *node) now() *life {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.life
}

// pid is 0 while the node does not run.
func (n *node) pid() int {
	l := n.now()
	if l == nil {
		return 0
	}
	select {
	case <-l.gone:
		return 0
	default:
		return l.cmd.Process.Pid
	}
}

// kill is kill -9: the node cleans up nothing.
func (n *node) kill() {
	if l := n.now(); l != nil {
		l.cmd.Process.Kill()
		<-l.gone
	}
}

// signal sends one to the node's process, if it runs.
func (n *node) signal(s syscall.Signal) {
	if pid := n.pid(); pid != 0 {
		syscall.Kill(pid, s)
	}
}

// await waits until the node is ready.
func (n *node) await() {
	n.t.Helper()
	l := n.now()
	select {
	case <-l.ready:
	case <-l.gone:
		n.t.Fatalf("node %s ended before it was ready: %v%s", n.name, l.err, n.tail())
	case <-time.After(60 * time.Second):
		n.t.Fatalf("node %s is not ready after 60 s%s", n.name, n.tail())
	}
}

// stop ends the node as Ctrl-C does.
func (n *node) stop() {
	n.t.Helper()
	l := n.now()
	if l == nil || n.pid() == 0 {
		return
	}
	l.cmd.Process.Signal(syscall.SIGCONT)
	l.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-l.gone:
		if l.err != nil {
			n.t.Errorf("node %s did not end well on SIGTERM: %v", n.name, l.err)
		}
	case <-time.After(40 * time.Second):
		n.t.Errorf("node %s has not ended 40 s after SIGTERM%s", n.name, n.tail())
		n.kill()
	}
}

// tail is the end of the node's log.
func (n *node) tail() string {
	data, _ := os.ReadFile(filepath.Join(n.dir, "log"))
	return "\n" + string(data[max(0, len(data)-3000):])
}

// address is where the others find it.
func (n *node) address() string {
	if n.proxy != nil {
		return n.proxy.address
	}
	return n.listen
}

// grid is a front end that is the back end too, and workers.
type grid struct {
	t       testing.TB
	front   *node
	workers []*node
	client  *client.Client
	diaries string // folder of the jobs' diaries
	ring    *client.Document
}

// gridOptions are how a grid is to be; the zero value has no workers.
type gridOptions struct {
	workers, slots int
	chance         *chance // with it, a proxy is before each node
	// place puts a node, by number from 0 for the front end, into a
	// network: its host there, and the command that runs it.
	place func(number int) (host string, via []string)
	// binary is what nodes run, "" for the program as it is; jumps are for the
	// nodes in their order, see jumpy.
	binary string
	jumps  []string
}

// newGrid starts a grid and waits until all nodes are known. The test's end
// stops it.
func newGrid(t testing.TB, o gridOptions) *grid {
	t.Helper()
	g := &grid{t: t, diaries: t.TempDir()}
	var err error
	if g.ring, err = client.Load("testdata/ring.xml"); err != nil {
		t.Fatal(err)
	}
	g.front = g.node(0, "front", o, "--roles", "backend,frontend")
	g.front.start()
	g.front.await()
	for i := range o.workers {
		w := g.node(i+1, fmt.Sprintf("w%d", i+1), o, "--slots", strconv.Itoa(o.slots), "--join", "http://"+g.front.address())
		g.workers = append(g.workers, w)
		w.start()
	}
	for _, w := range g.workers {
		w.await()
	}
	g.dial()
	g.up(o.workers + 1)
	return g
}

// node makes one, which is not started.
func (g *grid) node(number int, name string, o gridOptions, args ...string) *node {
	n := &node{t: g.t, name: name, dir: g.t.TempDir(), listen: freePort(g.t), binary: cmp.Or(o.binary, binary), args: args}
	if number < len(o.jumps) {
		n.env = []string{jumpVariable + "=" + o.jumps[number]}
	}
	if o.place != nil {
		host, via := o.place(number)
		_, port, _ := net.SplitHostPort(n.listen)
		n.listen, n.via = net.JoinHostPort(host, port), via
		n.args = append(n.args, "--insecure")
	}
	if o.chance != nil {
		n.proxy = newProxy(g.t, name, n.listen, o.chance.fork())
		n.args = append(n.args, "--advertise", n.proxy.address)
	}
	g.t.Cleanup(func() {
		n.stop()
		if g.t.Failed() {
			g.t.Logf("log of %s:%s", n.name, n.tail())
			g.keep(n)
		}
	})
	return n
}

// keep saves a node's log for who looks for what went wrong.
func (g *grid) keep(n *node) {
	dir := os.Getenv("MVM_SOAK_LOGS")
	if dir == "" {
		return
	}
	data, err := os.ReadFile(filepath.Join(n.dir, "log"))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, strings.ReplaceAll(g.t.Name(), "/", "-")+"-"+n.name+".log"), data, 0o644)
	}
	if err != nil {
		g.t.Log(err)
	}
}

func (g *grid) nodes() []*node { return append([]*node{g.front}, g.workers...) }

// dial finds the grid.
func (g *grid) dial() {
	g.t.Helper()
	g.eventually("the grid answers", 30*time.Second, func() (string, bool) {
		ctx, cancel := context.WithTimeout(g.t.Context(), 5*time.Second)
		defer cancel()
		c, err := client.Config{Patience: 2 * time.Minute}.Dial(ctx, "http://"+g.front.address())
		if err != nil {
			return err.Error(), false
		}
		g.client = c
		return "", true
	})
}

// up waits until so many nodes are up.
func (g *grid) up(want int) {
	g.t.Helper()
	g.eventually(fmt.Sprintf("%d nodes are up", want), 60*time.Second, func() (string, bool) {
		ctx, cancel := context.WithTimeout(g.t.Context(), 5*time.Second)
		defer cancel()
		known, err := g.client.Nodes(ctx)
		if err != nil {
			return err.Error(), false
		}
		count, states := 0, ""
		for _, n := range known {
			if n.State == "up" {
				count++
			}
			states += " " + n.Name + "=" + n.State
		}
		return states, count == want
	})
}

// eventually waits for something that has no event to wait on.
func (g *grid) eventually(what string, patience time.Duration, check func() (state string, ok bool)) {
	g.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		state, ok := check()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("%s: not within %v: %s", what, patience, state)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// insist makes a call until it is answered: the broker may be away.
func insist(ctx context.Context, call func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, 20*time.Second)
		err := call(try)
		late := try.Err() != nil
		cancel()
		var fault *wsdl.Fault
		switch {
		case err == nil || ctx.Err() != nil:
			return err
		case late, errors.As(err, &fault) && (wsdl.CodeOf(err) == wsdl.FaultCodeUnavailable || wsdl.CodeOf(err) == wsdl.FaultCodeTimeout):
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}
