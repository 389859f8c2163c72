package queuevm

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestManyItemsInOrder sends items whose bytes follow from their number, local
// and proxied: ten million of them under MVM_SOAK, else a hundredth.
func TestManyItemsInOrder(t *testing.T) {
	count := 100_000
	if soak() {
		count = 10_000_000
	}
	for _, way := range paths()[:2] {
		t.Run(way.name, func(t *testing.T) {
			from, to := way.make(t)
			processes(t, from, 0)
			processes(t, to, 1)
			wire(t, 1, 1<<20, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "prev"})
			r := spawn(t, to, 1, built.c, "receive", "prev", "24")
			spawn(t, from, 0, built.c, "send", "next", strconv.Itoa(count), "24").finish(5 * time.Minute)
			if got := r.finish(5 * time.Minute); got != strconv.Itoa(count) {
				t.Errorf("%s items of %d came", got, count)
			}
		})
	}
}

// finish is result with a limit of its own.
func (c *child) finish(limit time.Duration) string {
	c.t.Helper()
	select {
	case err := <-c.done:
		if err != nil {
			c.t.Fatalf("%v: %v\n%s", c.cmd.Args, err, c.stderr.String())
		}
	case <-time.After(limit):
		c.t.Fatalf("%v does not end", c.cmd.Args)
	}
	return strings.TrimSpace(c.stdout.String())
}

// TestSanitizers runs the C client under ASan and UBSan as two programs, and
// under TSan with both ends as threads of one.
func TestSanitizers(t *testing.T) {
	for _, c := range []struct{ name, flags string }{
		{"address", "-fsanitize=address,undefined"},
		{"thread", "-fsanitize=thread -DMVM_TEST_ONE_MAPPING"},
	} {
		t.Run(c.name, func(t *testing.T) {
			program := filepath.Join(t.TempDir(), "peer")
			line := append([]string{"-O1", "-g", "-Wno-tsan", "-Ic"}, strings.Fields(c.flags)...)
			line = append(line, "testdata/peer.c", "c/mvm.c", "-o", program, "-lpthread")
			if out, err := exec.Command("gcc", line...).CombinedOutput(); err != nil {
				t.Skipf("SKIPPED: gcc cannot build with %s: %v\n%s", c.flags, err, out)
			}
			count := "1500"
			if soak() {
				count = "200000"
			}
			vm := start(t, Config{})
			processes(t, vm, 0, 1)
			if c.name == "thread" {
				w := &loom{t: t, vms: []*VM{vm}}
				self := spot{0, 0, "self"}
				w.lay(self, self, 16<<10)
				p := spawn(t, vm, 0, []string{program}, "both", "self", "self", count, "9000")
				for k := uint32(1); k < 40; k++ { // the client knows up to 64 rings as one memory
					w.lay(self, self, 16<<10)
					must(t, vm.Switch(Swap{k, k + 1}))
					eventually(t, "it goes on", func() bool { st, err := vm.Switched(k); return err == nil && st.Written })
				}
				if got := p.finish(5 * time.Minute); got != count || strings.Contains(p.stderr.String(), "WARNING") {
					t.Errorf("%s items of %s\n%s", got, count, p.stderr.String())
				}
				return
			}
			wire(t, 1, 16<<10, vm, Endpoint{Process: 0, Port: "a"}, vm, Endpoint{Process: 1, Port: "b"})
			wire(t, 2, 16<<10, vm, Endpoint{Process: 1, Port: "b"}, vm, Endpoint{Process: 0, Port: "a"})
			x := spawn(t, vm, 0, []string{program}, "both", "a", "a", count, "30000")
			y := spawn(t, vm, 1, []string{program}, "both", "b", "b", count, "30000")
			for _, p := range []*child{x, y} {
				if got := p.finish(5 * time.Minute); got != count || strings.Contains(p.stderr.String(), "ERROR") {
					t.Errorf("%s items of %s\n%s", got, count, p.stderr.String())
				}
			}
			forms := start(t, Config{})
			must(t, forms.AddProcess(Process{ID: 0, Index: 2, Count: 5, Task: "alone"}))
			wire(t, 1, 4096, forms, Endpoint{Process: 0, Port: "out"}, forms, Endpoint{Process: 0, Port: "in"})
			if got := spawn(t, forms, 0, []string{program}, "forms").finish(time.Minute); got != "ok" {
				t.Error(got)
			}
		})
	}
}

// BenchmarkBellAmongMany is a ping-pong over the proxies while many other
// channels of the same programs are idle: a bell must not cost more for them.
func BenchmarkBellAmongMany(b *testing.B) {
	for _, idle := range []int{0, 1000} {
		b.Run(fmt.Sprint("idle=", idle), func(b *testing.B) {
			for range b.N {
				from, to := pair(b, Config{Plain: true})
				processes(b, from, 0)
				processes(b, to, 1)
				wire(b, 1, 64<<10, from, Endpoint{Process: 0, Port: "next"}, to, Endpoint{Process: 1, Port: "prev"})
				wire(b, 2, 64<<10, to, Endpoint{Process: 1, Port: "prev"}, from, Endpoint{Process: 0, Port: "next"})
				for k := range idle {
					wire(b, uint32(10+k), 4096, from, Endpoint{Process: 0, Port: fmt.Sprint(k)}, to, Endpoint{Process: 1, Port: fmt.Sprint(k)})
				}
				spawn(b, to, 1, built.c, "pong", "prev", "prev")
				ns, err := strconv.ParseFloat(spawn(b, from, 0, built.c, "ping", "next", "next", "10000").result(), 64)
				must(b, err)
				b.ReportMetric(ns, "ns-one-way")
				b.ReportMetric(0, "ns/op")
			}
		})
	}
}

// BenchmarkSearch is what a bell costs the loop, ringing included, where it must look
// at all of 1,000 channels for who rang, and where it is told.
func BenchmarkSearch(b *testing.B) {
	vm, err := New(Config{Listen: "127.0.0.1:0", Self: "a"})
	must(b, err)
	defer vm.Close()
	processes(b, vm, 0)
	for k := range 1000 {
		must(b, vm.AddChannel(Channel{ID: uint32(k), Capacity: 4096, From: Endpoint{Process: 0, Port: fmt.Sprint(k)}, To: Endpoint{Peer: "b"}}))
	}
	for _, c := range []struct {
		name string
		word uint64
	}{{"all", 1}, {"one", 1 + 501<<ringBits}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				_, err := unix.Write(vm.door, binary.NativeEndian.AppendUint64(nil, c.word))
				must(b, err)
				vm.mu.Lock()
				bellWatch{vm, vm.door}.event(0)
				vm.mu.Unlock()
			}
		})
	}
}
