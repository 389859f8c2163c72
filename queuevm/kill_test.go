package queuevm

import (
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// stepper builds the program that is killed at any instruction.
func stepper(t *testing.T) string {
	t.Helper()
	if runtime.GOARCH != "amd64" {
		t.Skip("SKIPPED: the program that steps is for x86-64")
	}
	step := filepath.Join(t.TempDir(), "step")
	if out, err := exec.Command("gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-Ic", "testdata/step.c", "-o", step, "-lpthread").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Setenv("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000") // each byte of it is a step
	return step
}

// everywhere has a program killed after each of its effects, at once and some
// instructions later, until its calls are over. That is everywhere: step.c says why.
// Without MVM_SOAK it is every few effects.
func everywhere(t *testing.T, few int, kill func(k int, at [2]string) bool) (killed int) {
	t.Helper()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	if soak() {
		few = 1
	}
	for effect := random.IntN(few); ; effect += few {
		for _, offset := range []int{0, 1 + random.IntN(60)} {
			if !kill(killed, [2]string{strconv.Itoa(effect), strconv.Itoa(offset)}) {
				return killed
			}
			killed++
		}
	}
}

// alone is together where nobody spins: each look would be an instruction.
func alone(t testing.TB) map[string]func(testing.TB) (*VM, *VM) {
	ways := together(t)
	ways["local"] = func(t testing.TB) (*VM, *VM) { vm := start(t, Config{Cores: 1}); return vm, vm }
	return ways
}

// TestKilledAtAnyInstruction kills a C program at every instruction of the calls
// to enqueue and dequeue: the other end gets what is whole and then END, or
// "closed", and nobody hangs.
func TestKilledAtAnyInstruction(t *testing.T) {
	step := stepper(t)
	ways := alone(t)
	ways["direct"] = directPair
	for name, make := range ways {
		for _, verb := range []string{"enqueue", "big", "dequeue", "bigger"} {
			if strings.HasPrefix(verb, "big") && !soak() {
				continue
			}
			t.Run(name+"/"+verb, func(t *testing.T) {
				a, b := make(t)
				killed := everywhere(t, 1, func(k int, at [2]string) bool { return kill(t, step, a, b, k, at, verb) })
				t.Logf("killed %d times", killed)
				least := 8
				if name == "direct" { // what is sent or read by one call, and a count of each item
					least = 5
				}
				if killed < least {
					t.Error("the test proves little")
				}
			})
		}
	}
}

// kill has one program killed after an effect, with ports and processes
// of its own. false when the calls were over before.
func kill(t *testing.T, step string, a, b *VM, k int, at [2]string, verb string) bool {
	from, to := 2*k, 2*k+1
	must(t, a.AddProcess(Process{ID: from, Count: 1, Task: "from"}))
	must(t, b.AddProcess(Process{ID: to, Count: 1, Task: "to"}))
	wire(t, uint32(k+1), 16<<10, a, Endpoint{Process: from, Port: "p"}, b, Endpoint{Process: to, Port: "p"})
	most := "200"
	if strings.HasPrefix(verb, "big") {
		most = "40000" // in fragments
	}
	var stepped, other *child
	if verb == "dequeue" || verb == "bigger" {
		stepped = spawn(t, b, to, []string{step}, at[0], at[1], verb, "p")
		other = spawn(t, a, from, built.c, "send", "p", "1000000", most)
	} else {
		stepped = spawn(t, a, from, []string{step}, at[0], at[1], verb, "p")
		other = spawn(t, b, to, built.c, "receive", "p", most)
	}
	how := stepped.result()
	var err error
	select {
	case err = <-other.done:
	case <-time.After(time.Minute):
		t.Fatalf("%s, killed at %s (%s): the other end waits for ever", verb, at, how)
	}
	said := strings.TrimSpace(other.stdout.String() + other.stderr.String())
	where := fmt.Sprintf("%s, killed at %s (%s): the other end says %q (%v)", verb, at, how, said, err)
	if how != "killed" && !strings.HasPrefix(how, "through ") {
		t.Fatal(where)
	}
	if verb == "dequeue" || verb == "bigger" {
		if err == nil || !strings.Contains(said, "closed") {
			t.Fatal(where)
		}
	} else if items, bad := strconv.Atoi(said); err != nil || bad != nil || items < 1 || items > 3 || how != "killed" && items != 3 {
		t.Fatal(where)
	}
	return how == "killed"
}

// TestKilledAtAnyInstructionOfASwitch kills a C program at every instruction of
// going from one ring to the next, as producer and as consumer: what was whole is
// taken, in order and once, every other end hears of its end, and no ring stays.
func TestKilledAtAnyInstructionOfASwitch(t *testing.T) {
	step := stepper(t)
	for name, make := range alone(t) {
		for _, verb := range []string{"switch", "follow"} {
			t.Run(name+"/"+verb, func(t *testing.T) {
				a, b := make(t)
				before := rings(t)
				killed := everywhere(t, 6, func(k int, at [2]string) bool { return killSwitch(t, step, a, b, k, at, verb) })
				t.Logf("killed %d times", killed)
				if killed < 3 {
					t.Error("the test proves little")
				}
				// Of each round the last ring stays, at two nodes at most and for each of two takers.
				eventually(t, "the old rings are gone", func() bool { return rings(t) <= before+4*(killed+1) })
			})
		}
	}
}

func killSwitch(t *testing.T, step string, a, b *VM, k int, at [2]string, verb string) bool {
	from, one, two := 3*k, 3*k+1, 3*k+2
	w := &loom{t: t, vms: []*VM{a, b}, last: uint32(2 * k)}
	p, q, r := spot{0, from, "p"}, spot{1, one, "p"}, spot{1, two, "p"}
	if a == b {
		q.node, r.node = 0, 0
	}
	must(t, a.AddProcess(Process{ID: from, Count: 1, Task: "from"}))
	must(t, b.AddProcess(Process{ID: one, Count: 1, Task: "one"}))
	must(t, b.AddProcess(Process{ID: two, Count: 1, Task: "two"}))
	if verb == "follow" {
		r = q
	}
	old, next := w.lay(p, q, 16<<10), w.lay(p, r, 16<<10)
	must(t, a.Switch(Swap{old, next}))
	var stepped *child
	others := map[*child]string{} // what each may say
	if verb == "follow" {
		stepped = spawn(t, b, one, []string{step}, at[0], at[1], verb, "p")
		others[spawn(t, a, from, built.c, "send", "p", "1000000", "200")] = "closed"
	} else {
		stepped = spawn(t, a, from, []string{step}, at[0], at[1], verb, "p")
		others[spawn(t, b, one, built.c, "receive", "p", "200")] = "0"
		others[spawn(t, b, two, built.golang, "receive", "p", "200")] = "0123"
	}
	how := stepped.result()
	for o, may := range others {
		select {
		case <-o.done:
		case <-time.After(time.Minute):
			t.Fatalf("%s, killed at %s (%s): %v waits for ever", verb, at, how, o.cmd.Args)
		}
		said := strings.TrimSpace(o.stdout.String() + o.stderr.String())
		if may == "closed" && !strings.Contains(said, may) || may != "closed" && (len(said) != 1 || !strings.Contains(may, said)) || may == "0123" && how != "killed" && said != "3" {
			t.Fatalf("%s, killed at %s (%s): %v says %q", verb, at, how, o.cmd.Args, said)
		}
	}
	eventually(t, "the old ring is removed", func() bool { st, err := a.Switched(old); return err == nil && st.Removed })
	return how == "killed"
}
