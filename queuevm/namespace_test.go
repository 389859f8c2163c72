package queuevm

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// otherHost is a network namespace that stands for another machine, at the far
// end of a pair of veth devices.
type otherHost struct {
	t          testing.TB
	name, near string
	here       string // this side's address
	there      string
}

func newOtherHost(t testing.TB) *otherHost {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: only root makes network namespaces")
	}
	id := os.Getpid() % 60000
	h := &otherHost{t: t, name: fmt.Sprintf("mvmtest%d", id), near: fmt.Sprintf("mvmt%d", id),
		here: fmt.Sprintf("10.213.%d.%d", id/250, 4*(id%60)+1), there: fmt.Sprintf("10.213.%d.%d", id/250, 4*(id%60)+2)}
	if out, err := exec.Command("ip", "netns", "add", h.name).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no network namespace can be made (iproute2): %v %s", err, out)
	}
	t.Cleanup(func() {
		h.ip("link", "del", h.near) // now, and not when the last socket is closed
		h.ip("netns", "del", h.name)
	})
	h.ip("link", "add", h.near, "type", "veth", "peer", "name", "far", "netns", h.name)
	h.ip("addr", "add", h.here+"/30", "dev", h.near)
	h.ip("link", "set", h.near, "up")
	h.appear()
	return h
}

func (h *otherHost) ip(args ...string) {
	h.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		h.t.Errorf("ip %s: %v %s", strings.Join(args, " "), err, out)
	}
}

func (h *otherHost) appear() {
	h.ip("-n", h.name, "addr", "add", h.there+"/30", "dev", "far")
	h.ip("-n", h.name, "link", "set", "far", "up")
}

// vanish has the other host answer nothing any more, without a word.
func (h *otherHost) vanish() { h.ip("-n", h.name, "addr", "flush", "dev", "far") }

// within runs something on the other host: sockets that it makes stay there.
func (h *otherHost) within(do func()) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		f, err := os.Open("/var/run/netns/" + h.name)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			_ = f.Close()
		}
		if err == nil {
			do()
		}
		done <- err
	}()
	must(h.t, <-done)
}

// twoHosts is a VM on each host, "a" here, with a queue from outside to outside
// each way.
func twoHosts(t testing.TB, config Config) (a, b *VM, h *otherHost) {
	t.Helper()
	h = newOtherHost(t)
	config.Listen, config.Self = h.here+":0", "a"
	a = start(t, config)
	config.Listen, config.Self = h.there+":0", "b"
	h.within(func() { b = start(t, config) })
	for id, way := range map[uint32][2]*VM{1: {a, b}, 2: {b, a}} {
		from, to := way[0], way[1]
		must(t, from.AddChannel(Channel{ID: id, Capacity: 16 << 10, From: Endpoint{Outside: "in"}, To: Endpoint{Peer: to.config.Self}}))
		must(t, to.AddChannel(Channel{ID: id, Capacity: 16 << 10, From: Endpoint{Peer: from.config.Self}, To: Endpoint{Outside: "out"}}))
	}
	join(t, map[string]*VM{"a": a, "b": b})
	return a, b, h
}

// A host that vanishes without a word, be it idle or under floods, is reported
// lost within a bound by both sides, and nobody takes that for END.
func TestHostThatVanishes(t *testing.T) {
	const redial = 3 * time.Second
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprint("busy=", busy), func(t *testing.T) {
			if busy && !soak() {
				t.Skip("SKIPPED: make soak runs it")
			}
			a, b, h := twoHosts(t, Config{Redial: redial})
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			if busy {
				for _, vm := range []*VM{a, b} {
					go func() {
						for n := 0; vm.Enqueue(ctx, "in", numbered(n, 100)) == nil; n++ {
						}
					}()
				}
				time.Sleep(100 * time.Millisecond)
			}
			gone := time.Now()
			h.vanish()
			for name, vm := range map[string]*VM{"here": a, "there": b} {
				select {
				case lost := <-vm.Lost():
					t.Logf("%s after %v: %v", name, time.Since(gone), lost.Err)
				case <-ctx.Done():
					t.Fatalf("%s nobody notices that the peer is gone", name)
				}
				for {
					_, err := vm.Dequeue(ctx, "out")
					if err == io.EOF {
						t.Error("END, as if nothing were missing")
					}
					if err != nil {
						break
					}
				}
			}
			if took := time.Since(gone); took > 2*redial+5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// A host that is away for a while, and then back, loses nothing.
func TestHostThatIsAwayForAWhile(t *testing.T) {
	a, b, h := twoHosts(t, Config{})
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for range 2 {
			time.Sleep(100 * time.Millisecond)
			h.vanish()
			time.Sleep(400 * time.Millisecond)
			h.appear()
		}
		time.Sleep(100 * time.Millisecond)
	}()
	sent := floods(t, a, b, 1<<30, 3000, stop)
	t.Log(sent)
}
