package queuevm

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// programs are the suite's program in each language: the same verbs, the same
// items, so that any may stand at any end.
type programs struct {
	c, golang, python, link []string
	library                 string
}

var built programs

func TestMain(m *testing.M) {
	flag.Parse()
	if fuzzing() {
		os.Exit(m.Run())
	}
	dir, err := os.MkdirTemp("", "queuevm")
	if err != nil {
		panic(err)
	}
	code := 1
	if err := build(dir); err != nil {
		fmt.Fprintln(os.Stderr, "build the suite's programs:", err)
	} else {
		code = m.Run()
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// fuzzing says that only fuzzers are to run: they need none of the programs, and each
// of their many processes would build them all.
func fuzzing() bool {
	run := flag.Lookup("test.run").Value.String()
	return strings.HasPrefix(run, "^Fuzz") || run == "^$" && flag.Lookup("test.fuzz").Value.String() != ""
}

func build(dir string) error {
	built.c = []string{filepath.Join(dir, "peer-c")}
	built.link = []string{filepath.Join(dir, "link")}
	built.golang = []string{filepath.Join(dir, "peer-go")}
	built.python = []string{"python3", "testdata/peer.py"}
	built.library = filepath.Join(dir, "libmvm.so")
	// MVM_TEST_CFLAGS puts the C client under a sanitizer: -fsanitize=address,undefined
	peer := append([]string{"gcc", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-Ic"}, strings.Fields(os.Getenv("MVM_TEST_CFLAGS"))...)
	for _, line := range [][]string{
		append(slices.Clone(peer), "testdata/link.c", "c/mvm.c", "-o", built.link[0], "-lpthread"),
		append(slices.Clone(peer), "testdata/peer.c", "c/mvm.c", "-o", built.c[0], "-lpthread"),
		{"gcc", "-O2", "-fPIC", "-shared", "-fvisibility=default", "-Ic", "c/mvm.c", "-o", built.library, "-lpthread"},
		{"go", "build", "-o", built.golang[0], "./testdata/peer"},
	} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", strings.Join(line, " "), err, out)
		}
	}
	return nil
}

// start runs a VM for the length of the test.
func start(t testing.TB, config Config) *VM {
	t.Helper()
	config.Logf = t.Logf
	vm, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	finished := make(chan error, 1)
	go func() { finished <- vm.Run(context.Background()) }()
	t.Cleanup(func() {
		if err := vm.Close(); err != nil {
			t.Error("close:", err)
		}
		if err := <-finished; err != nil {
			t.Error("run:", err)
		}
	})
	return vm
}

// pair is two connected VMs, "a" and "b".
func pair(t testing.TB, config Config) (*VM, *VM) {
	t.Helper()
	config.Listen = "127.0.0.1:0"
	config.Self = "a"
	a := start(t, config)
	config.Self = "b"
	b := start(t, config)
	join(t, map[string]*VM{"a": a, "b": b})
	return a, b
}

func join(t testing.TB, group map[string]*VM) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	results := make(chan error, len(group))
	for id, vm := range group {
		var others []Peer
		for other, o := range group {
			if other != id {
				others = append(others, Peer{other, o.Address(), o.Fingerprint()})
			}
		}
		go func() { results <- vm.Connect(ctx, others) }()
	}
	for range group {
		if err := <-results; err != nil {
			t.Fatal("connect:", err)
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// child is one started program.
type child struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdout bytes.Buffer
	stderr bytes.Buffer
	done   chan error
}

// spawn starts a program as a process of the VM and has the VM watch it.
func spawn(t testing.TB, vm *VM, process int, program []string, args ...string) *child {
	t.Helper()
	file, env, err := vm.Child(process)
	must(t, err)
	c := &child{t: t, done: make(chan error, 1)}
	c.cmd = exec.Command(program[0], append(append([]string(nil), program[1:]...), args...)...)
	c.cmd.Env = append(append(os.Environ(), env...), "MVM_LIBRARY="+built.library, "PYTHONPATH=python", "PYTHONDONTWRITEBYTECODE=1")
	c.cmd.ExtraFiles = []*os.File{file}
	c.cmd.Stdout, c.cmd.Stderr = &c.stdout, &c.stderr
	pidfd := -1
	c.cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &pidfd}
	must(t, c.cmd.Start())
	must(t, file.Close())
	must(t, vm.Started(process, pidfd))
	must(t, unix.Close(pidfd))
	go func() { c.done <- c.cmd.Wait() }()
	t.Cleanup(func() { _ = c.cmd.Process.Kill() })
	return c
}

// result waits for the program's end and gives what it printed.
func (c *child) result() string {
	c.t.Helper()
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Fatalf("%v: %v\n%s%s", c.cmd.Args, err, c.stdout.String(), c.stderr.String())
		}
	case <-time.After(60 * time.Second):
		_ = c.cmd.Process.Kill()
		<-c.done
		c.t.Fatalf("%v does not end\n%s%s", c.cmd.Args, c.stdout.String(), c.stderr.String())
	}
	return strings.TrimSpace(c.stdout.String())
}

// gone waits for the program's end, however it ended.
func (c *child) gone() {
	c.t.Helper()
	select {
	case <-c.done:
	case <-time.After(60 * time.Second):
		c.t.Fatalf("%v does not end", c.cmd.Args)
	}
}

// path is one way from process 0 to process 1: the suite runs over all.
type path struct {
	name string
	make func(t testing.TB) (from, to *VM)
}

func paths() []path {
	return []path{
		{"local", func(t testing.TB) (*VM, *VM) { vm := start(t, Config{}); return vm, vm }},
		{"plain", func(t testing.TB) (*VM, *VM) { return pair(t, Config{Plain: true, Cores: 1}) }},
		{"tls", func(t testing.TB) (*VM, *VM) { return pair(t, Config{Cores: 1}) }},
		{"direct", directPair},
	}
}

// bothWays are the ways to and fro between two ports.
func bothWays() []path { return append(paths(), path{"both", bothPair}) }

// directPair is two VMs between which every channel is direct.
func directPair(t testing.TB) (*VM, *VM) {
	a, b := pair(t, Config{Plain: true, Cores: 1})
	directs[a], directs[b] = true, true
	t.Cleanup(func() { delete(directs, a); delete(directs, b) })
	return a, b
}

var directs = map[*VM]bool{} // the VMs of directPair

// bothPair is two VMs between which every channel is direct, and which are connected
// only when their channels are there (linked): a channel and the one that leads back
// between the same two ports have one socket.
func bothPair(t testing.TB) (*VM, *VM) {
	a, b := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true, Cores: 1}), start(t, Config{Listen: "127.0.0.1:0", Self: "b", Plain: true, Cores: 1})
	directs[a], directs[b] = true, true
	t.Cleanup(func() { delete(directs, a); delete(directs, b) })
	return a, b
}

// linked connects two VMs that are not yet.
func linked(t testing.TB, a, b *VM) {
	t.Helper()
	if a != b && !a.connected {
		join(t, map[string]*VM{"a": a, "b": b})
	}
}

// wire adds a channel from a port on one VM to a port on another, or the same.
func wire(t testing.TB, id uint32, capacity int, from *VM, fromEnd Endpoint, to *VM, toEnd Endpoint) {
	t.Helper()
	if from == to {
		must(t, from.AddChannel(Channel{ID: id, Capacity: capacity, From: fromEnd, To: toEnd}))
		return
	}
	must(t, from.AddChannel(Channel{ID: id, Capacity: capacity, From: fromEnd, To: Endpoint{Peer: to.config.Self}, Direct: directs[from]}))
	must(t, to.AddChannel(Channel{ID: id, Capacity: capacity, From: Endpoint{Peer: from.config.Self}, To: toEnd, Direct: directs[to]}))
}

func processes(t testing.TB, vm *VM, ids ...int) {
	t.Helper()
	for _, id := range ids {
		must(t, vm.AddProcess(Process{ID: id, Index: id, Count: len(ids), Task: "task"}))
	}
}

func TestEveryPairingOverEveryPath(t *testing.T) {
	ends := []struct {
		name    string
		program []string
	}{{"c", built.c}, {"python", built.python}, {"go", built.golang}}
	for _, way := range paths() {
		for _, giver := range ends {
			for _, taker := range ends {
				t.Run(way.name+"/"+giver.name+"-"+taker.name, func(t *testing.T) {
					from, to := way.make(t)
					processes(t, from, 0)
					processes(t, to, 1)
					wire(t, 7, 16<<10, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "prev"})
					// Up to 40,000 bytes through 16 KiB: empty, small, whole and fragmented items.
					r := spawn(t, to, 1, taker.program, "receive", "prev", "40000")
					s := spawn(t, from, 0, giver.program, "send", "next", "400", "40000")
					if got := r.result(); got != "400" {
						t.Errorf("received %s items, sent 400", got)
					}
					s.result()
				})
			}
		}
	}
}

func TestEveryFormOfTheCalls(t *testing.T) {
	for name, program := range map[string][]string{"c": built.c, "python": built.python, "go": built.golang} {
		t.Run(name, func(t *testing.T) {
			vm := start(t, Config{})
			must(t, vm.AddProcess(Process{ID: 9, Index: 2, Count: 5, Task: "alone"}))
			must(t, vm.AddChannel(Channel{ID: 1, Capacity: 8192, From: Endpoint{Process: 9, Port: "out"}, To: Endpoint{Process: 9, Port: "in"}}))
			if got := spawn(t, vm, 9, program, "forms").result(); got != "ok" {
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestTwoFloodsInOppositeDirections(t *testing.T) {
	for _, way := range bothWays() {
		t.Run(way.name, func(t *testing.T) {
			a, b := way.make(t)
			processes(t, a, 0)
			processes(t, b, 1)
			wire(t, 1, 4096, a, Endpoint{Process: 0, Port: "right"}, b, Endpoint{Process: 1, Port: "left"})
			wire(t, 2, 4096, b, Endpoint{Process: 1, Port: "left"}, a, Endpoint{Process: 0, Port: "right"})
			linked(t, a, b)
			x := spawn(t, a, 0, built.c, "both", "right", "right", "3000", "9000")
			y := spawn(t, b, 1, built.c, "both", "left", "left", "3000", "9000")
			if x.result() != "3000" || y.result() != "3000" {
				t.Errorf("got %q and %q", x.stdout.String(), y.stdout.String())
			}
		})
	}
}

// eventually polls until ok, for states that no call reports.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	const limit = time.Minute
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", limit, what)
		}
	}
}

func state(vm *VM, id uint32) ChannelState {
	for _, s := range vm.Inspect() {
		if s.ID == id {
			return s
		}
	}
	return ChannelState{}
}

func TestKilledGiver(t *testing.T) {
	for _, way := range paths() {
		t.Run(way.name, func(t *testing.T) {
			a, b := way.make(t)
			processes(t, a, 0)
			processes(t, b, 1)
			wire(t, 1, 64<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
			r := spawn(t, b, 1, built.c, "receive", "prev", "150000")
			s := spawn(t, a, 0, built.c, "send", "next", "100000000", "150000")
			eventually(t, "a few items are through", func() bool { return state(b, 1).ItemsOut > 200 })
			must(t, s.cmd.Process.Kill())
			s.gone()
			if got := r.result(); got == "" || got == "100000000" { // the receiver checked every item and saw END
				t.Errorf("got %q", got)
			}
		})
	}
}

func TestKilledTaker(t *testing.T) {
	for _, way := range paths() {
		t.Run(way.name, func(t *testing.T) {
			a, b := way.make(t)
			processes(t, a, 0)
			processes(t, b, 1)
			wire(t, 1, 64<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
			r := spawn(t, b, 1, built.c, "receive", "prev", "5000")
			s := spawn(t, a, 0, built.c, "send", "next", "100000000", "5000")
			eventually(t, "a few items are through", func() bool { return state(b, 1).ItemsOut > 200 })
			must(t, r.cmd.Process.Kill())
			select {
			case <-s.done:
			case <-time.After(time.Minute):
				t.Fatal("the giver does not learn that the taker is gone")
			}
			if !strings.Contains(s.stderr.String(), "closed") {
				t.Errorf("the giver ended with %q, not with closed", s.stderr.String())
			}
		})
	}
}

// A taker that ends as soon as it has the last item is no error to the giver.
// On one processor a taker that is woken often runs to its end before the giver
// goes on.
func TestTakerOfTheLastItem(t *testing.T) {
	for name, program := range map[string][]string{"c": built.c, "go": built.golang} {
		t.Run(name, func(t *testing.T) {
			program := append([]string{"taskset", "-c", "0"}, program...)
			vm := start(t, Config{})
			for i := range 100 {
				processes(t, vm, 2*i, 2*i+1)
				wire(t, uint32(i+1), 4096, vm, Endpoint{Process: 2 * i, Port: "next"}, vm, Endpoint{Process: 2*i + 1, Port: "prev"})
				r := spawn(t, vm, 2*i+1, program, "take", "prev")
				s := spawn(t, vm, 2*i, program, "send", "next", "1", "8")
				s.result()
				r.result()
			}
		})
	}
}

func TestCutLinkLosesAndDoublesNothing(t *testing.T) {
	for _, plain := range []bool{true, false} {
		t.Run(fmt.Sprint("plain=", plain), func(t *testing.T) {
			a, b := pair(t, Config{Plain: plain})
			processes(t, a, 0)
			processes(t, b, 1)
			wire(t, 1, 64<<10, a, Endpoint{Process: 0, Port: "right"}, b, Endpoint{Process: 1, Port: "left"})
			wire(t, 2, 64<<10, b, Endpoint{Process: 1, Port: "left"}, a, Endpoint{Process: 0, Port: "right"})
			x := spawn(t, a, 0, built.c, "both", "right", "right", "20000", "9000")
			y := spawn(t, b, 1, built.c, "both", "left", "left", "20000", "9000")
			cuts := 0
			for at := uint64(1000); at < 20000; at += 2500 {
				eventually(t, "more items are through", func() bool { return state(b, 1).ItemsOut >= at })
				vm, peer := a, "b"
				if cuts%2 == 1 {
					vm, peer = b, "a"
				}
				vm.mu.Lock()
				if fd := vm.peers[peer].fd; fd >= 0 {
					cuts++
					_ = unix.Shutdown(fd, unix.SHUT_RDWR)
				}
				vm.mu.Unlock()
			}
			if x.result() != "20000" || y.result() != "20000" {
				t.Errorf("got %q and %q", x.stdout.String(), y.stdout.String())
			}
			if cuts < 3 {
				t.Errorf("only %d cuts: the test proves little", cuts)
			}
		})
	}
}

func TestLostPeerIsReportedAndEndsItsChannels(t *testing.T) {
	a, b := pair(t, Config{Plain: true, Redial: 100 * time.Millisecond})
	processes(t, a, 0, 5)
	processes(t, b, 1)
	wire(t, 1, 64<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
	wire(t, 2, 64<<10, b, Endpoint{Process: 1, Port: "prev"}, a, Endpoint{Process: 5, Port: "next"})
	s := spawn(t, a, 0, built.c, "send", "next", "100000000", "5000")
	r := spawn(t, a, 5, built.c, "receive", "next", "5000")
	eventually(t, "items are waiting", func() bool { return state(b, 1).Depth > 30000 })
	// The other node vanishes without a word.
	b.mu.Lock()
	_ = b.listener.Close()
	p := b.peers["a"]
	p.gone = true
	p.disconnect()
	b.mu.Unlock()
	select {
	case lost := <-a.Lost():
		if lost.ID != "b" || lost.Err == nil {
			t.Errorf("got %+v", lost)
		}
	case <-time.After(time.Minute):
		t.Fatal("the loss is not reported")
	}
	for _, c := range []*child{s, r} {
		<-c.done
		if out := c.stderr.String() + c.stdout.String(); !strings.Contains(out, "lost") {
			t.Errorf("%v: got %q, not lost", c.cmd.Args, out)
		}
	}
}

func TestAThousandChannels(t *testing.T) {
	for _, way := range paths()[:2] {
		t.Run(way.name, func(t *testing.T) {
			a, b := way.make(t)
			const n, senders = 1000, 10
			processes(t, b, 1000)
			for s := range senders {
				processes(t, a, s)
			}
			for k := range n {
				wire(t, uint32(k), 4096, a, Endpoint{Process: k % senders, Port: fmt.Sprint("p", k)}, b, Endpoint{Process: 1000, Port: fmt.Sprint("p", k)})
			}
			taker := spawn(t, b, 1000, built.golang, "collect", "16")
			for s := range senders {
				spawn(t, a, s, built.golang, "spread", "16")
			}
			if got := taker.result(); got != fmt.Sprint(n*16) {
				t.Errorf("took %s items, %d were sent", got, n*16)
			}
		})
	}
}

func TestWaitOnSeveral(t *testing.T) {
	for name, program := range map[string][]string{"c": built.c, "python": built.python, "go": built.golang} {
		t.Run(name, func(t *testing.T) {
			vm := start(t, Config{})
			processes(t, vm, 0, 1, 2, 3)
			args := []string{"wait"}
			for k := range 3 {
				port := fmt.Sprint("in", k)
				args = append(args, port)
				wire(t, uint32(k), 4096, vm, Endpoint{Process: k, Port: "out"}, vm, Endpoint{Process: 3, Port: port})
			}
			taker := spawn(t, vm, 3, program, args...)
			for k := range 3 {
				spawn(t, vm, k, built.c, "send", "out", "500", "1500")
			}
			if got := taker.result(); got != "1500" {
				t.Errorf("took %s items of 1500", got)
			}
		})
	}
}

// Over 128 ports the kernel's wait on several words is out of reach.
func TestWaitOnManyFallsBackToLooking(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 0, 1)
	args := []string{"wait"}
	for k := range 200 {
		port := fmt.Sprint("p", k)
		args = append(args, port)
		wire(t, uint32(k), 4096, vm, Endpoint{Process: 0, Port: port}, vm, Endpoint{Process: 1, Port: port})
	}
	taker := spawn(t, vm, 1, built.c, args...)
	spawn(t, vm, 0, built.golang, "spread", "5")
	if got := taker.result(); got != "1000" {
		t.Errorf("took %s items of 1000", got)
	}
}
