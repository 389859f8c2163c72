package queuevm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// suiteItem is the suite's k-th item, as testdata's programs make it.
func suiteItem(k, most int) []byte {
	b := make([]byte, int(uint64(k)*2654435761%uint64(most+1)))
	for j := range b {
		b[j] = byte(k*31 + j*7)
	}
	return b
}

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestOutsideEndsOverEveryPath(t *testing.T) {
	for _, way := range paths() {
		if way.name == "direct" { // a socket of two processes' own has no end outside
			t.Run(way.name, func(t *testing.T) {
				from, to := way.make(t)
				if err := from.AddChannel(Channel{ID: 3, Capacity: 8192, From: Endpoint{Outside: "jobs"}, To: Endpoint{Peer: to.config.Self}, Direct: true}); err == nil {
					t.Error("a direct channel from outside is made")
				}
			})
			continue
		}
		t.Run("enqueue/"+way.name, func(t *testing.T) {
			from, to := way.make(t)
			processes(t, to, 1)
			wire(t, 3, 8192, from, Endpoint{Outside: "jobs"}, to, Endpoint{Process: 1, Port: "prev"})
			r := spawn(t, to, 1, built.c, "receive", "prev", "30000")
			for k := range 300 {
				must(t, from.Enqueue(within(t, 20*time.Second), "jobs", suiteItem(k, 30000)))
			}
			must(t, from.CloseOutside("jobs"))
			if got := r.result(); got != "300" {
				t.Errorf("received %s of 300", got)
			}
			if err := from.Enqueue(within(t, time.Second), "jobs", nil); err == nil {
				t.Error("enqueue after END succeeds")
			}
		})
		t.Run("dequeue/"+way.name, func(t *testing.T) {
			from, to := way.make(t)
			processes(t, from, 1)
			wire(t, 3, 8192, from, Endpoint{Process: 1, Port: "next"}, to, Endpoint{Outside: "results"})
			spawn(t, from, 1, built.c, "send", "next", "300", "30000")
			for k := range 300 {
				got, err := to.Dequeue(within(t, 20*time.Second), "results")
				must(t, err)
				if !bytes.Equal(got, suiteItem(k, 30000)) {
					t.Fatalf("item %d is wrong", k)
				}
			}
			for range 2 {
				if _, err := to.Dequeue(within(t, 20*time.Second), "results"); err != io.EOF {
					t.Fatalf("got %v, not END", err)
				}
			}
		})
	}
}

func TestOutsideWaitsEndWithTheirContext(t *testing.T) {
	vm := start(t, Config{})
	processes(t, vm, 1)
	wire(t, 1, 4096, vm, Endpoint{Outside: "in"}, vm, Endpoint{Process: 1, Port: "a"})
	wire(t, 2, 4096, vm, Endpoint{Process: 1, Port: "a"}, vm, Endpoint{Outside: "out"})
	if _, err := vm.Dequeue(within(t, 20*time.Millisecond), "out"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dequeue: %v", err)
	}
	must(t, vm.Enqueue(within(t, time.Second), "in", make([]byte, 2000)))
	must(t, vm.Enqueue(within(t, time.Second), "in", make([]byte, 2000)))
	if err := vm.Enqueue(within(t, 20*time.Millisecond), "in", make([]byte, 2000)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("enqueue: %v", err)
	}
	if err := vm.Enqueue(within(t, time.Second), "none", nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("unknown queue: %v", err)
	}
	vm.Ended(1)
	if err := vm.Enqueue(within(t, time.Second), "in", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("enqueue to a process that ended: %v", err)
	}
	if _, err := vm.Dequeue(within(t, time.Second), "out"); err != io.EOF {
		t.Errorf("dequeue from a process that ended: %v", err)
	}
}

// TestBegunItemsOutliveTheirCallers: a big item whose first fragment is in the
// queue gets there whole, and one that comes late is taken by who asks next.
func TestBegunItemsOutliveTheirCallers(t *testing.T) {
	vm := start(t, Config{})
	wire(t, 1, 4096, vm, Endpoint{Outside: "q"}, vm, Endpoint{Outside: "q"})
	big := suiteItem(7, 30000)
	if len(big) < 8192 {
		t.Fatal(len(big))
	}
	must(t, vm.Enqueue(within(t, 20*time.Millisecond), "q", big))
	if err := vm.Enqueue(within(t, 20*time.Millisecond), "q", big); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a second one, of which nothing is in: %v", err)
	}
	must(t, vm.CloseOutside("q")) // it does not wait for room
	late, cancel := context.WithCancel(context.Background())
	cancel()
	for { // in as many pieces as there are
		got, err := vm.Dequeue(late, "q")
		if errors.Is(err, context.Canceled) {
			continue
		}
		must(t, err)
		if !bytes.Equal(got, big) {
			t.Errorf("got another item, of %d bytes", len(got))
		}
		break
	}
	if _, err := vm.Dequeue(within(t, 10*time.Second), "q"); err != io.EOF {
		t.Errorf("got %v, not END", err)
	}
	// A giver that is in the middle does not hold Close up.
	wire(t, 2, 4096, vm, Endpoint{Outside: "r"}, vm, Endpoint{Outside: "r"})
	must(t, vm.Enqueue(within(t, 20*time.Millisecond), "r", big))
	must(t, vm.CloseOutside("r"))
	if err := vm.LeadsIn("none"); !errors.Is(err, ErrUnknown) {
		t.Errorf("an unknown queue: %v", err)
	}
}

func TestCloseWakesEveryWaiter(t *testing.T) {
	vm, err := New(Config{Listen: "127.0.0.1:0", Self: "a", Plain: true})
	must(t, err)
	ran := make(chan error, 1)
	go func() { ran <- vm.Run(context.Background()) }()
	processes(t, vm, 1)
	wire(t, 1, 4096, vm, Endpoint{Process: 1, Port: "a"}, vm, Endpoint{Outside: "out"})
	wire(t, 2, 4096, vm, Endpoint{Outside: "in"}, vm, Endpoint{Process: 1, Port: "a"})
	r := spawn(t, vm, 1, built.c, "receive", "a", "100")
	failed := make(chan error, 1)
	go func() {
		_, err := vm.Dequeue(context.Background(), "out")
		failed <- err
	}()
	// A stranger that says nothing must not hold Close up.
	stranger, err := net.Dial("tcp", vm.Address())
	must(t, err)
	defer stranger.Close()
	eventually(t, "both wait", func() bool { return state(vm, 1).TakerWaits && state(vm, 2).TakerWaits })
	must(t, vm.Close())
	must(t, <-ran)
	if err := <-failed; !errors.Is(err, ErrDown) {
		t.Errorf("dequeue: %v", err)
	}
	<-r.done
	if !strings.Contains(r.stdout.String(), "lost") {
		t.Errorf("the child got %q, not lost", r.stdout.String())
	}
	if err := vm.AddProcess(Process{ID: 2}); !errors.Is(err, ErrDown) {
		t.Errorf("add a process after Close: %v", err)
	}
}

// The plain socket's wire in a bare program, as LAYOUT.md promises.
const bareEnqueue = `
import socket, struct, sys
host, port, token = sys.argv[1:]
s = socket.create_connection((host, int(port)))
s.sendall(b"MVM1 " + token.encode() + b"\n")
f = s.makefile("rb")
assert f.readline() == b"OK enqueue\n"
for item in [b"one", b"", b"x" * 100000]:
    s.sendall(struct.pack("!I", len(item)) + item)
s.sendall(struct.pack("!I", 0xFFFFFFFF))
print(f.readline().decode().strip())
`

const bareDequeue = `
import socket, struct, sys
host, port, token = sys.argv[1:]
s = socket.create_connection((host, int(port)))
s.sendall(b"MVM1 " + token.encode() + b"\n")
f = s.makefile("rb")
assert f.readline() == b"OK dequeue\n"
while True:
    s.sendall(b"1\n")
    n, = struct.unpack("!I", f.read(4))
    if n == 0xFFFFFFFF:
        break
    print(len(f.read(n)))
`

func TestPlainSocket(t *testing.T) {
	for _, plain := range []bool{true, false} {
		vm := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: plain})
		must(t, vm.AddChannel(Channel{ID: 1, Capacity: 8192, From: Endpoint{Outside: "in"}, To: Endpoint{Outside: "out"}}))
		run := func(program, queue string) string {
			address, token, err := vm.OpenSocket(queue, time.Minute)
			must(t, err)
			host, port, _ := net.SplitHostPort(address)
			out, err := exec.Command("python3", "-c", program, host, port, token).CombinedOutput()
			if err != nil {
				t.Errorf("%v\n%s", err, out)
			}
			return string(out)
		}
		taken := make(chan string, 1)
		go func() { taken <- run(bareDequeue, "out") }()
		if got := run(bareEnqueue, "in"); got != "OK 3\n" {
			t.Errorf("the giver got %q", got)
		}
		if got := <-taken; got != "3\n0\n100000\n" {
			t.Errorf("the taker got %q", got)
		}
	}
}

// talk says all of lines to the proxy's port and gives all that it answers.
func talk(t testing.TB, vm *VM, text string) string {
	t.Helper()
	conn, err := net.Dial("tcp", vm.Address())
	must(t, err)
	defer conn.Close()
	must(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(conn, text)
	must(t, err)
	must(t, conn.(*net.TCPConn).CloseWrite())
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("%q then %v", answer, err)
	}
	return string(answer)
}

func TestPlainSocketLinesAndTokens(t *testing.T) {
	vm := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true, MaxItem: 1 << 20})
	must(t, vm.AddChannel(Channel{ID: 1, Capacity: 8192, From: Endpoint{Outside: "q"}, To: Endpoint{Outside: "q"}}))
	token := func(ttl time.Duration) string {
		_, name, err := vm.OpenSocket("q", ttl)
		must(t, err)
		return name
	}
	one := token(time.Minute)
	if got := talk(t, vm, "MVM1 "+one+" lines enqueue\nfirst\nsecond\n"); got != "OK enqueue\nOK 2\n" {
		t.Errorf("lines in: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+one+" lines enqueue\nthird\n"); !strings.HasPrefix(got, "ERROR the token is") {
		t.Errorf("a token used twice: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+token(-time.Second)+" enqueue\n"); !strings.HasPrefix(got, "ERROR the token is") {
		t.Errorf("a token that is over: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+token(time.Minute)+"\n"); !strings.HasPrefix(got, "ERROR") {
		t.Errorf("no direction: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+token(time.Minute)+" inspect\n"); !strings.Contains(got, "items_in=2 items_out=0") {
		t.Errorf("inspect: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+token(time.Minute)+" lines dequeue\n1\n1\n"); got != "OK dequeue\nfirst\nsecond\n" {
		t.Errorf("lines out: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+token(time.Minute)+" enqueue\n\xff\xff\xff\xf0"); !strings.Contains(got, "too big") {
		t.Errorf("4 GB announced: %q", got)
	}
	if got := talk(t, vm, "MVM1 "+token(time.Minute)+" lines end enqueue\n"); got != "OK enqueue\nOK 0\n" {
		t.Errorf("end: %q", got)
	}
	if _, err := vm.Dequeue(within(t, 10*time.Second), "q"); err != io.EOF {
		t.Errorf("got %v, not END", err)
	}
	if got := talk(t, vm, "MVM1 "+strings.Repeat("x", 1000)+"\n"); !strings.HasPrefix(got, "ERROR a line is longer") {
		t.Errorf("a long hello: %q", got)
	}
}

// What was sent is counted when it is sent, not when the peer says so, which it
// does for few items late or never.
func TestSentItemsAreCounted(t *testing.T) {
	a, b := pair(t, Config{Plain: true})
	wire(t, 1, 0, a, Endpoint{Outside: "in"}, b, Endpoint{Outside: "out"})
	for n := range uint64(100) {
		must(t, a.Enqueue(within(t, time.Second), "in", []byte("few")))
		_, err := b.Dequeue(within(t, 10*time.Second), "out")
		must(t, err)
		if sent := state(a, 1).ItemsOut; sent != n+1 {
			t.Fatalf("%d items were sent; %d are counted", n+1, sent)
		}
		if came := state(b, 1).ItemsIn; came != n+1 {
			t.Fatalf("%d items came; %d are counted", n+1, came)
		}
	}
}

// TestUntold: what is left for those outside is known, and that a producer outside may
// yet say END is no reason to wait for anybody.
func TestUntold(t *testing.T) {
	ctx := within(t, 20*time.Second)
	for name, served := range map[string]bool{"bare": false, "served": true} {
		t.Run(name, func(t *testing.T) {
			vm := start(t, Config{})
			in, out := Endpoint{Outside: "in"}, Endpoint{Outside: "out"}
			if served {
				must(t, vm.AddQueue(Queue{ID: 1, Name: "q", Type: QueueFifo, Full: FullBlock, Capacity: 8192, Producers: 1, Takers: 1}))
				must(t, vm.AddChannel(Channel{ID: 1, Capacity: 8192, From: in, To: Endpoint{Queue: 1}}))
				must(t, vm.AddChannel(Channel{ID: 2, Capacity: 8192, From: Endpoint{Queue: 1}, To: out}))
			} else {
				must(t, vm.AddChannel(Channel{ID: 1, Capacity: 8192, From: in, To: out}))
			}
			untold := func(want, visited bool) {
				t.Helper()
				eventually(t, "what is left is known", func() bool {
					left, came := vm.Untold()
					return left == want && came == visited
				})
			}
			untold(false, false)
			must(t, vm.Enqueue(ctx, "in", []byte("item")))
			untold(true, true)
			if item, err := vm.Dequeue(ctx, "out"); err != nil || string(item) != "item" {
				t.Fatalf("%q, %v", item, err)
			}
			untold(false, true)
			if !served {
				return // its END is of nobody inside either
			}
			must(t, vm.CloseOutside("in"))
			untold(true, true)
			if _, err := vm.Dequeue(ctx, "out"); err != io.EOF {
				t.Fatal(err)
			}
			untold(false, true)
		})
	}
}
