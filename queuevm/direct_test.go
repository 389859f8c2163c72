package queuevm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// duplex joins process 0 on one VM and process 1 on another both ways by ports
// named far.
func duplex(t testing.TB, a, b *VM, capacity int) {
	t.Helper()
	processes(t, a, 0)
	processes(t, b, 1)
	wire(t, 1, capacity, a, Endpoint{Process: 0, Port: "far"}, b, Endpoint{Process: 1, Port: "far"})
	wire(t, 2, capacity, b, Endpoint{Process: 1, Port: "far"}, a, Endpoint{Process: 0, Port: "far"})
	linked(t, a, b)
}

func TestEveryFormOfTheCallsFarAway(t *testing.T) {
	for _, way := range bothWays() {
		for _, near := range languages() {
			t.Run(way.name+"/"+near.name, func(t *testing.T) {
				a, b := way.make(t)
				duplex(t, a, b, 8192)
				echo := spawn(t, b, 1, built.c, "echo", "far", "far")
				if got := spawn(t, a, 0, near.program, "far", "far").result(); got != "ok" {
					t.Errorf("got %q", got)
				}
				echo.result()
			})
		}
	}
}

// A form with a limit begins nothing that it cannot finish: what it says went
// comes, and nothing else.
func TestDirectChannelThatIsFull(t *testing.T) {
	for _, near := range languages() {
		t.Run(near.name, func(t *testing.T) {
			a, b := directPair(t)
			processes(t, a, 0)
			processes(t, b, 1)
			wire(t, 1, 256<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
			filled, err := strconv.Atoi(spawn(t, a, 0, near.program, "fill", "next").result())
			must(t, err)
			var items int
			var seconds float64
			_, err = fmt.Sscan(spawn(t, b, 1, built.c, "drain", "prev", "131072").result(), &items, &seconds)
			must(t, err)
			if items != filled {
				t.Errorf("%d items came of %d", items, filled)
			}
		})
	}
}

func TestDirectAndOtherPortsInOneWait(t *testing.T) {
	for _, taker := range languages() {
		t.Run(taker.name, func(t *testing.T) {
			a, b := directPair(t)
			processes(t, a, 0, 1)
			processes(t, b, 2, 3)
			wire(t, 0, 4096, a, Endpoint{Process: 0, Port: "out"}, b, Endpoint{Process: 3, Port: "in0"})
			wire(t, 1, 4096, b, Endpoint{Process: 2, Port: "out"}, b, Endpoint{Process: 3, Port: "in1"})
			wire(t, 2, 4096, a, Endpoint{Process: 1, Port: "out"}, b, Endpoint{Process: 3, Port: "in2"})
			child := spawn(t, b, 3, taker.program, "wait", "in0", "in1", "in2")
			for k, vm := range []*VM{a, a, b} {
				spawn(t, vm, k, built.c, "send", "out", "500", "1500")
			}
			if got := child.result(); got != "1500" {
				t.Errorf("took %s items of 1500", got)
			}
		})
	}
}

// A socket that breaks is told to both ends and to whoever runs the VMs, and
// nobody takes it for an end.
func TestCutDirectChannel(t *testing.T) {
	for _, side := range []string{"giver", "taker"} {
		for _, near := range languages() {
			t.Run(side+"/"+near.name, func(t *testing.T) {
				a, b := directPair(t)
				processes(t, a, 0)
				processes(t, b, 1)
				wire(t, 1, 64<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
				r := spawn(t, b, 1, near.program, "receive", "prev", "5000")
				s := spawn(t, a, 0, near.program, "send", "next", "100000000", "5000")
				eventually(t, "a few items are through", func() bool { return state(b, 1).ItemsOut > 50 })
				vm := map[string]*VM{"giver": a, "taker": b}[side]
				vm.mu.Lock()
				vm.channels[1].direct.shut(unix.SHUT_RDWR)
				vm.mu.Unlock()
				var lost PeerLost // by one side at least: it tells the other
				select {
				case lost = <-a.Lost():
				case lost = <-b.Lost():
				case <-time.After(time.Minute):
					t.Fatal("the cut is not reported")
				}
				if !strings.Contains(lost.Err.Error(), "direct channel 1") {
					t.Errorf("got %v", lost.Err)
				}
				for _, c := range []*child{s, r} {
					c.gone()
					if out := strings.ToLower(c.stderr.String() + c.stdout.String()); !strings.Contains(out, "lost") {
						t.Errorf("%v: got %q, not lost", c.cmd.Args, out)
					}
				}
			})
		}
	}
}

// The end of a stream whose reason cannot be told, because the link between the nodes is
// cut just then, is not taken for a cut before the link is made again.
func TestEndOfADirectChannelWhileTheLinkIsCut(t *testing.T) {
	for k, way := range bothWays()[3:] {
		for j, near := range languages() {
			if !soak() && j != k { // it is the daemon's doing
				continue
			}
			t.Run(way.name+"/"+near.name, func(t *testing.T) {
				a, b := way.make(t)
				duplex(t, a, b, 0)
				r := spawn(t, b, 1, near.program, "receive", "far", "100")
				eventually(t, "it has its socket", func() bool {
					b.mu.Lock()
					defer b.mu.Unlock()
					return b.channels[1].direct.given
				})
				a.mu.Lock()
				p := a.peers["b"]
				there := p.Address
				p.Address = "127.0.0.1:1"
				a.cut(p, errors.New("by the test"))
				a.mu.Unlock()
				eventually(t, "the link is cut", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.peers["a"].fd < 0 })
				spawn(t, a, 0, built.c, "send", "far", "10", "100").result()
				eventually(t, "the end is seen", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.channels[1].direct.doubt })
				time.Sleep(2 * doubtTime)
				a.mu.Lock()
				p.Address = there
				a.mu.Unlock()
				if got := r.result(); got != "10" {
					t.Errorf("got %q", got)
				}
				select {
				case lost := <-a.Lost():
					t.Errorf("reported: %v", lost)
				case lost := <-b.Lost():
					t.Errorf("reported: %v", lost)
				default:
				}
			})
		}
	}
}

// With the link between the nodes a direct channel is lost, too.
func TestLostPeerEndsDirectChannels(t *testing.T) {
	a, b := pair(t, Config{Plain: true, Redial: 100 * time.Millisecond})
	directs[a], directs[b] = true, true
	t.Cleanup(func() { delete(directs, a); delete(directs, b) })
	processes(t, a, 0, 5)
	processes(t, b, 1)
	wire(t, 1, 64<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
	wire(t, 2, 64<<10, b, Endpoint{Process: 1, Port: "prev"}, a, Endpoint{Process: 5, Port: "next"})
	s := spawn(t, a, 0, built.c, "send", "next", "100000000", "5000")
	r := spawn(t, a, 5, built.c, "receive", "next", "5000")
	eventually(t, "the giver sends, and the taker has its socket", func() bool {
		a.mu.Lock()
		given := a.channels[2].direct.given
		a.mu.Unlock()
		return given && state(a, 1).ItemsIn > 0
	})
	b.mu.Lock()
	_ = b.listener.Close()
	p := b.peers["a"]
	p.gone = true
	p.disconnect()
	b.mu.Unlock()
	for _, c := range []*child{s, r} {
		c.gone()
		if out := c.stderr.String() + c.stdout.String(); !strings.Contains(out, "lost") {
			t.Errorf("%v: got %q, not lost", c.cmd.Args, out)
		}
	}
}

// Where links are encrypted, a direct channel is refused with the reason.
func TestDirectChannelsAreNotForEncryptedLinks(t *testing.T) {
	var vms []*VM
	for k, self := range []string{"a", "b"} {
		vm := start(t, Config{Listen: "127.0.0.1:0", Self: self, Plain: k == 0})
		processes(t, vm, k)
		vms = append(vms, vm)
		directs[vm] = true
		defer delete(directs, vm)
	}
	wire(t, 1, 0, vms[0], Endpoint{Process: 0, Port: "next"}, vms[1], Endpoint{Process: 1, Port: "prev"})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	results := make(chan error, 2)
	for k, vm := range vms {
		other := vms[1-k]
		go func() {
			results <- vm.Connect(ctx, []Peer{{other.config.Self, other.Address(), other.Fingerprint()}})
		}()
	}
	told := 0
	for range vms {
		err := <-results
		if err == nil {
			t.Error("connected")
		} else if strings.Contains(err.Error(), "unencrypted") && strings.Contains(err.Error(), "--plain-links") {
			told++
			cancel() // the other waits for a socket that never comes
		}
	}
	if told == 0 {
		t.Error("nobody says why")
	}
	if err := vms[0].AddChannel(Channel{ID: 2, Direct: true, From: Endpoint{Process: 0, Port: "x"}, To: Endpoint{Outside: "x"}}); err == nil {
		t.Error("a direct channel leads outside")
	}
}

// Who waits on a direct channel is never taken for deadlocked: whether something
// is on its way there nobody between the two could say.
func TestDirectWaitsAreNotQuiet(t *testing.T) {
	a, b := directPair(t)
	duplex(t, a, b, 0)
	for k, vm := range []*VM{a, b} {
		spawn(t, vm, k, built.c, "receive", "far", "100")
	}
	for range 20 {
		if a.Quiet().Quiet || b.Quiet().Quiet {
			t.Fatal("quiet, with processes that wait on direct channels")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// A socket for a direct channel is for the peer at its other end alone.
func TestDirectSocketsAreTheChannels(t *testing.T) {
	a, b := pair(t, Config{Plain: true})
	processes(t, a, 0)
	processes(t, b, 1)
	wire(t, 1, 0, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"}) // not direct
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, id := range []uint32{1, 7} {
		d := &direct{vm: a, channel: &channel{Channel: Channel{ID: id, To: Endpoint{Peer: "b"}}}, fd: -1, up: make(chan struct{})}
		if err := a.dialDirect(ctx, a.peers["b"], d); !errors.Is(err, errNotNow) {
			t.Errorf("channel %d: %v", id, err)
		}
	}
	r := spawn(t, b, 1, built.c, "receive", "prev", "100")
	spawn(t, a, 0, built.c, "send", "next", "10", "100").result()
	if got := r.result(); got != "10" {
		t.Errorf("got %q", got)
	}
}

// Of two nodes the dialler may know a direct channel before the other does: it dials until
// that one knows it too, and takes no socket before.
func TestDirectChannelThatOneNodeKnowsFirst(t *testing.T) {
	var dials atomic.Int32
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("back=", back), func(t *testing.T) {
			a, b := pair(t, Config{Plain: true, Cores: 1, Dial: dial, Redial: time.Minute})
			processes(t, a, 0)
			processes(t, b, 1)
			before := dials.Load()
			here, there := Channel{ID: 1, Direct: true, From: Endpoint{Process: 0, Port: "far"}, To: Endpoint{Peer: "b"}}, Channel{ID: 1, Direct: true, From: Endpoint{Peer: "a"}, To: Endpoint{Process: 1, Port: "far"}}
			if back {
				here.From, here.To = Endpoint{Peer: "b"}, Endpoint{Process: 0, Port: "far"}
				there.From, there.To = Endpoint{Process: 1, Port: "far"}, Endpoint{Peer: "a"}
			}
			must(t, a.AddChannel(here))
			eventually(t, "it is dialled again", func() bool { return dials.Load() > before+3 })
			must(t, b.AddChannel(there))
			giver, taker := a, b
			if back {
				giver, taker = b, a
			}
			ends := map[*VM]int{a: 0, b: 1}
			r := spawn(t, taker, ends[taker], built.c, "receive", "far", "100")
			spawn(t, giver, ends[giver], built.c, "send", "far", "10", "100").result()
			if got := r.result(); got != "10" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// A direct edge is given a ring, and led to another process, under full load: what its
// socket has still is the old taker's, and nothing is lost or doubled.
func TestDirectEdgesGoOn(t *testing.T) {
	for k := range languages() {
		for _, elsewhere := range []bool{false, true} {
			giver, taker := languages()[k], languages()[(k+1)%3]
			t.Run(fmt.Sprint(giver.name, "-", taker.name, "/", elsewhere), func(t *testing.T) {
				a, b := directPair(t)
				w := &loom{t: t, vms: []*VM{a, b}, last: 1}
				p, q, r := spot{0, 0, "next"}, spot{1, 1, "prev"}, spot{1, 2, "prev"}
				processes(t, a, 0)
				processes(t, b, 1, 2)
				wire(t, 1, 16<<10, a, Endpoint{Process: 0, Port: "next"}, b, Endpoint{Process: 1, Port: "prev"})
				if state(a, 1).Capacity == 0 || !a.channels[1].Direct {
					t.Fatal("it is not direct")
				}
				first := spawn(t, b, 1, taker.program, "gather", "prev", []string{"block", "timed", "wait"}[k])
				g := spawn(t, a, 0, giver.program, "insist", "next", "20000")
				eventually(t, "items are through", func() bool { return state(b, 1).ItemsOut > 500 })
				to := q
				if elsewhere {
					to = r
				}
				next := w.lay(p, to, 8<<10)
				must(t, a.Switch(Swap{1, next}))
				taken := [][]int{}
				last := first
				if elsewhere {
					taken = append(taken, numbers(t, first.result()))
					last = spawn(t, b, 2, taker.program, "gather", "prev", "block")
				}
				g.result()
				taken = append(taken, numbers(t, last.result()))
				accounted(t, 20000, taken...)
				eventually(t, "the direct channel is gone", func() bool {
					one, err := a.Switched(1)
					other, wrong := b.Switched(1)
					return err == nil && wrong == nil && one.Removed && (other.Removed || elsewhere)
				})
				select {
				case event := <-a.Lost():
					t.Errorf("reported: %v", event)
				default:
				}
			})
		}
	}
}
