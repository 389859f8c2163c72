package queuevm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// stuckPrograms are the programs that come to a stop, made at the first need.
var stuckPrograms = sync.OnceValues(func() (map[string][]string, error) {
	dir := filepath.Dir(built.library)
	c, golang := filepath.Join(dir, "stuck-c"), filepath.Join(dir, "stuck-go")
	for _, line := range [][]string{
		{"gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-Ic", "testdata/stuck.c", "c/mvm.c", "-o", c, "-lpthread"},
		{"go", "build", "-o", golang, "./testdata/stuck"},
	} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w\n%s", strings.Join(line, " "), err, out)
		}
	}
	return map[string][]string{"c": {c}, "go": {golang}, "python": {"python3", "testdata/stuck.py"}}, nil
})

func stuck(t testing.TB, language string) []string {
	t.Helper()
	all, err := stuckPrograms()
	must(t, err)
	return all[language]
}

// deadlocked asks as a broker does: two rounds, and the sums.
func deadlocked(vms ...*VM) ([]Wait, bool) {
	var rounds [2][]Quiet
	for r := range rounds {
		for _, vm := range vms {
			rounds[r] = append(rounds[r], vm.Quiet())
		}
	}
	var sent, received uint64
	var waits []Wait
	for k, q := range rounds[1] {
		if !q.Quiet || !rounds[0][k].Quiet || q.Period != rounds[0][k].Period {
			return nil, false
		}
		sent += q.Sent
		received += q.Received
		waits = append(waits, q.Waits...)
	}
	return waits, sent == received && len(waits) > 0
}

func becomesDeadlocked(t testing.TB, vms ...*VM) []Wait {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if waits, ok := deadlocked(vms...); ok {
			return waits
		}
		if time.Now().After(deadline) {
			for _, vm := range vms {
				t.Logf("%+v %+v", vm.Quiet(), vm.Inspect())
			}
			t.Fatal("no deadlock is seen")
		}
	}
}

// staysUnlocked asks again and again for a while.
func staysUnlocked(t testing.TB, vms ...*VM) {
	t.Helper()
	for end := time.Now().Add(150 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if waits, ok := deadlocked(vms...); ok {
			t.Fatalf("a deadlock is seen where there is none: %+v", waits)
		}
	}
}

// together is one VM twice, or two that are each other's peers.
func together(t testing.TB) map[string]func(testing.TB) (*VM, *VM) {
	return map[string]func(testing.TB) (*VM, *VM){
		"local":   func(t testing.TB) (*VM, *VM) { vm := start(t, Config{}); return vm, vm },
		"proxied": func(t testing.TB) (*VM, *VM) { return pair(t, Config{Plain: true, Cores: 1}) },
	}
}

func distinct(a, b *VM) []*VM {
	if a == b {
		return []*VM{a}
	}
	return []*VM{a, b}
}

// duo lays the ports x and y of two processes to each other, both ways.
func duo(t testing.TB, a, b *VM) {
	if a == b {
		processes(t, a, 0, 1)
	} else {
		processes(t, a, 0)
		processes(t, b, 1)
	}
	for k, port := range []string{"x", "y"} {
		id := uint32(2*k + 1)
		wire(t, id, 4096, a, Endpoint{Process: 0, Port: port}, b, Endpoint{Process: 1, Port: port})
		wire(t, id+1, 4096, b, Endpoint{Process: 1, Port: port}, a, Endpoint{Process: 0, Port: port})
	}
}

func TestDeadlocksAreSeen(t *testing.T) {
	for name, make := range together(t) {
		for _, c := range []struct{ first, second string }{
			{"c fill x", "c fill x"},
			{"c take x", "c take x"},
			{"c fill x", "c take y"},
			{"c any x y", "c take x"},
			{"c reserve x", "c fill y"},
			{"c join x", "c fork x"},
			{"go fill x", "c fill x"},
			{"go any x y", "go take y"},
			{"go join x", "go take x"},
			{"python fill x", "python take y"},
			{"python any x y", "python join x"},
		} {
			t.Run(name+"/"+c.first+"/"+c.second, func(t *testing.T) {
				a, b := make(t)
				duo(t, a, b)
				for k, line := range []string{c.first, c.second} {
					words := strings.Fields(line)
					spawn(t, distinct(a, b)[min(k, len(distinct(a, b))-1)], k, stuck(t, words[0]), words[1:]...)
				}
				waits := becomesDeadlocked(t, distinct(a, b)...)
				seen := map[int]bool{}
				for _, w := range waits {
					seen[w.Process] = true
					words := strings.Fields([]string{c.first, c.second}[w.Process])
					if out := words[1] == "fill" || words[1] == "reserve"; w.Out != out {
						t.Errorf("%+v, but it does %s", w, words[1])
					} else if out && w.Depth < 2000 || !out && w.Depth != 0 || w.Capacity != 4096 {
						t.Errorf("%+v has a strange depth", w)
					}
				}
				if len(seen) != 2 {
					t.Errorf("not both wait: %+v", waits)
				}
			})
		}
	}
}

func TestDeadlockOfOneWithItself(t *testing.T) {
	for _, verb := range []string{"fill", "big", "take"} {
		vm := start(t, Config{})
		processes(t, vm, 0)
		wire(t, 1, 4096, vm, Endpoint{Process: 0, Port: "self"}, vm, Endpoint{Process: 0, Port: "self"})
		spawn(t, vm, 0, stuck(t, "c"), verb, "self")
		if waits := becomesDeadlocked(t, vm); len(waits) != 1 {
			t.Errorf("%s: %+v", verb, waits)
		}
	}
}

func TestNoDeadlockIsSeenWhereThereIsNone(t *testing.T) {
	for _, line := range []string{
		"c timed x", "c sleep x", "c read x", "c spin x",
		"c take+sleep x", "c take+timed x", "c take+spin x", "c take+relay x", "c take+child x", "c take+alarm x", "c take+tick x",
		"go timed x", "go sleep x", "go take+timer x", "go take+sleep x", "go take+read x",
		"python timed x", "python sleep x", "python take+timer x", "python take+alarm x",
	} {
		t.Run(line, func(t *testing.T) {
			vm := start(t, Config{})
			duo(t, vm, vm)
			words := strings.Fields(line)
			spawn(t, vm, 0, stuck(t, words[0]), words[1:]...)
			spawn(t, vm, 1, stuck(t, "c"), "take", "x")
			// Only once it has come to where it stops is it a test.
			for deadline := time.Now().Add(20 * time.Second); !waitsOn(vm, 1) && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			}
			time.Sleep(50 * time.Millisecond)
			staysUnlocked(t, vm)
		})
	}
}

func waitsOn(vm *VM, process int) bool {
	for _, c := range vm.Inspect() {
		if c.To.Process == process && c.TakerWaits {
			return true
		}
	}
	return false
}

// Many of them could not be seen asleep at one moment if each woke up often.
func TestPythonSleepsLongAndHearsSignals(t *testing.T) {
	t.Parallel()
	for _, line := range []string{"take x", "any x y", "fill x"} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			vm := start(t, Config{})
			duo(t, vm, vm)
			first := spawn(t, vm, 0, stuck(t, "python"), strings.Fields(line)...)
			spawn(t, vm, 1, stuck(t, "c"), "take", "y")
			becomesDeadlocked(t, vm)
			pid := first.cmd.Process.Pid
			last, since := uint64(0), time.Now()
			for deadline := since.Add(30 * time.Second); time.Since(since) < 4*time.Second; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("it wakes up again and again")
				}
				counts, ok := switches(map[int][]int{pid: {pid}})
				if !ok || len(counts) != 2 {
					t.Fatal("it is gone")
				}
				if counts[0]+counts[1] != last {
					last, since = counts[0]+counts[1], time.Now()
				}
			}
			must(t, first.cmd.Process.Signal(os.Interrupt))
			select {
			case <-first.done:
			case <-time.After(5 * time.Second):
				t.Error("it does not hear Ctrl-C")
			}
		})
	}
}

// Who has ended waits for nothing, and whoever waits for it is let go.
func TestTheEndOfAProcessIsNoDeadlock(t *testing.T) {
	vm := start(t, Config{})
	duo(t, vm, vm)
	first := spawn(t, vm, 0, stuck(t, "c"), "take", "x")
	second := spawn(t, vm, 1, stuck(t, "c"), "take", "y")
	becomesDeadlocked(t, vm)
	must(t, first.cmd.Process.Kill())
	<-first.done
	<-second.done // it got END
	if waits, ok := deadlocked(vm); ok {
		t.Errorf("nobody is left to wait: %+v", waits)
	}
}

// Where somebody outside can let a job go on, it is not deadlocked.
func TestNoDeadlockWithAnOutside(t *testing.T) {
	vm := start(t, Config{})
	duo(t, vm, vm)
	must(t, vm.AddChannel(Channel{ID: 9, Capacity: 4096, From: Endpoint{Outside: "feed"}, To: Endpoint{Process: 0, Port: "feed"}}))
	must(t, vm.AddChannel(Channel{ID: 10, Capacity: 4096, From: Endpoint{Process: 1, Port: "results"}, To: Endpoint{Outside: "results"}}))
	spawn(t, vm, 0, stuck(t, "c"), "any", "feed", "x")
	second := spawn(t, vm, 1, stuck(t, "c"), "fill", "results")
	time.Sleep(100 * time.Millisecond)
	staysUnlocked(t, vm)
	must(t, second.cmd.Process.Kill())
	<-second.done
	staysUnlocked(t, vm)
	must(t, vm.CloseOutside("feed"))
}

// A busy job is never called deadlocked, however often one asks: a ring of
// processes that pass a few items round, over two nodes and over one, with a
// program among them that sleeps now and then.
func TestABusyJobIsNeverDeadlocked(t *testing.T) {
	for name, make := range together(t) {
		t.Run(name, func(t *testing.T) {
			a, b := make(t)
			vms := distinct(a, b)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 0))
			const n, items = 6, 4000
			at := func(k int) *VM { return vms[k%len(vms)] }
			for k := range n {
				must(t, at(k).AddProcess(Process{ID: k, Index: k, Count: n, Task: "ring"}))
			}
			for k := range n {
				next := (k + 1) % n
				wire(t, uint32(k), 4096<<random.IntN(3), at(k), Endpoint{Process: k, Port: "next"}, at(next), Endpoint{Process: next, Port: "prev"})
			}
			var all []*child
			for k := range n {
				verb := "echo"
				if k == 0 {
					verb = "lead"
				}
				all = append(all, spawn(t, at(k), k, built.c, verb, "prev", "next", fmt.Sprint(items)))
			}
			asked := 0
			for done := false; !done; asked++ {
				if waits, ok := deadlocked(vms...); ok {
					t.Fatalf("a deadlock is seen where there is none: %+v", waits)
				}
				select {
				case err := <-all[0].done:
					if err != nil {
						t.Fatalf("%v: %s", err, all[0].stderr.String())
					}
					done = true
				default:
				}
			}
			t.Logf("asked %d times", asked)
		})
	}
}

func TestQuietOnAClosedVM(t *testing.T) {
	vm, err := New(Config{})
	must(t, err)
	must(t, vm.Close())
	if vm.Quiet().Quiet {
		t.Error("it is not quiet, it is gone")
	}
	if _, err := vm.Dequeue(context.Background(), "x"); !errors.Is(err, ErrDown) {
		t.Error(err)
	}
}

func TestParseSyscall(t *testing.T) {
	for text, ok := range map[string]bool{
		"202 0x7f 0x80 0x0 0x0 0x0 0x0 0x7ffe 0x7f\n": true,
		"running\n":             false,
		"-1 0x7ffe 0x7f\n":      false,
		"":                      false,
		"202 0x7f\n":            false,
		"202 g b c d e f g\n":   false,
		"202 0xa b c d e f h i": true,
	} {
		if _, _, got := parseSyscall(text); got != ok {
			t.Errorf("%q: %t", text, got)
		}
	}
	a, inode, ok := parseArea("7f00-8f00 rw-s 00001000 00:01 1042    /memfd:mvm-ring (deleted)\n")
	if !ok || a != (area{from: 0x7f00, to: 0x8f00, offset: 0x1000, shared: true}) || inode != 1042 {
		t.Errorf("%+v %d %t", a, inode, ok)
	}
}
