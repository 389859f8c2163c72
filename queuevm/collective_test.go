package queuevm

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// wiring joins n processes by the names that the topologies of a profile give.
type wiring struct {
	name  string
	links func(n int, link func(a int, aPort string, b int, bPort string))
	cube  bool
	brief bool // much as another one
}

func wirings() []wiring {
	tree := func(arity int) func(n int, link func(int, string, int, string)) {
		return func(n int, link func(int, string, int, string)) {
			for k := 1; k < n; k++ {
				link((k-1)/arity, fmt.Sprint("child", (k-1)%arity), k, "parent")
			}
		}
	}
	complete := func(n int, link func(int, string, int, string)) {
		for a := range n {
			for b := a + 1; b < n; b++ {
				link(a, fmt.Sprint("peer", b), b, fmt.Sprint("peer", a))
			}
		}
	}
	cube := func(port string) func(n int, link func(int, string, int, string)) {
		return func(n int, link func(int, string, int, string)) {
			for d := 0; 1<<d < n; d++ {
				for a := range n {
					if b := a ^ 1<<d; a < b {
						link(a, fmt.Sprint(port, d), b, fmt.Sprint(port, d))
					}
				}
			}
		}
	}
	return []wiring{
		{name: "tree", links: tree(2)},
		{name: "wide tree", links: tree(3), brief: true},
		{name: "line", links: tree(1), brief: true},
		{name: "star", links: func(n int, link func(int, string, int, string)) {
			for k := 1; k < n; k++ {
				link(0, fmt.Sprint("leaf", k-1), k, "hub")
			}
		}, brief: true},
		{name: "complete", links: complete},
		{name: "tree and complete", links: func(n int, link func(int, string, int, string)) {
			tree(2)(n, link)
			complete(n, link)
		}, brief: true},
		{name: "hypercube", links: cube("dim"), cube: true},
		{name: "butterfly", links: cube("stage"), cube: true, brief: true},
	}
}

// Every pattern over every wiring, from every language and from all together, by
// any number of processes, gives what one process alone computes.
func TestCollectives(t *testing.T) {
	programs := collectivePrograms(t)
	for _, w := range wirings() {
		for _, n := range []int{1, 2, 3, 8, 13} {
			if w.cube && n&(n-1) != 0 {
				continue
			}
			for k, name := range []string{"c", "go", "python", "mixed"} {
				if name == "mixed" && n == 1 || name != "mixed" && (n > 1 && n != 8 || w.brief) || w.brief && n < 8 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%d/%s", w.name, n, name), func(t *testing.T) {
					t.Parallel()
					vm := start(t, Config{})
					for i := range n {
						p := Process{ID: i, Index: n - 1 - i, Count: n, Task: "all"}
						if w.cube {
							p.Index = i
						}
						must(t, vm.AddProcess(p))
					}
					id := uint32(0)
					w.links(n, func(a int, aPort string, b int, bPort string) {
						from, to := Endpoint{Process: a, Port: "x." + aPort}, Endpoint{Process: b, Port: "x." + bPort}
						must(t, vm.AddChannel(Channel{ID: id, Capacity: 8 << 10, From: from, To: to}))
						must(t, vm.AddChannel(Channel{ID: id + 1, Capacity: 8 << 10, From: to, To: from}))
						id += 2
					})
					var all []*child
					for i := range n {
						program := programs[(i+n)%3]
						if name != "mixed" {
							program = programs[k]
						}
						all = append(all, spawn(t, vm, i, program, "x.", "0", "8", "1000", "0", "50000"))
					}
					for i, p := range all {
						if got, want := p.result(), fmt.Sprintf("%d of %d", i, n); got != want {
							t.Errorf("process %d says it is %q", i, got)
						}
					}
				})
			}
		}
	}
}

func collectivePrograms(t *testing.T) [][]string {
	dir := t.TempDir()
	c, golang := filepath.Join(dir, "c"), filepath.Join(dir, "go")
	for _, line := range [][]string{
		{"gcc", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-Ic", "testdata/collective.c", "c/mvm.c", "-o", c, "-lpthread"},
		{"go", "build", "-o", golang, "./testdata/collective"},
	} {
		if out, err := exec.Command(line[0], line[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", strings.Join(line, " "), err, out)
		}
	}
	return [][]string{{c}, {golang}, {"python3", "testdata/collective.py"}}
}

// Who makes more calls than the others hears of it, and so does who finds no
// ports for a collective.
func TestCollectivesThatDiffer(t *testing.T) {
	for _, program := range collectivePrograms(t) {
		for _, c := range []struct{ prefix, says string }{{"x.", "end: "}, {"y.", "a collective needs ports named y.parent"}} {
			vm := start(t, Config{})
			for i := range 2 {
				must(t, vm.AddProcess(Process{ID: i, Index: i, Count: 2, Task: "all"}))
			}
			root, leaf := Endpoint{Process: 0, Port: "x.child0"}, Endpoint{Process: 1, Port: "x.parent"}
			must(t, vm.AddChannel(Channel{ID: 1, From: root, To: leaf}))
			must(t, vm.AddChannel(Channel{ID: 2, From: leaf, To: root}))
			more := spawn(t, vm, 0, program, c.prefix, "8", "8")
			spawn(t, vm, 1, program, "x.", "8")
			select {
			case err := <-more.done:
				if err == nil || !strings.Contains(more.stderr.String(), c.says) {
					t.Errorf("%v: %v: %s\nwant it to say %s", program, err, more.stderr.String(), c.says)
				}
			case <-time.After(30 * time.Second):
				t.Fatalf("%v does not end", program)
			}
		}
	}
}
