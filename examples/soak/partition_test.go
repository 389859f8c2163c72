package soak

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// halves are two networks with a wire between them. The front end, which is in
// this network namespace, and the first half of the workers, each in a
// namespace of its own, are on one; the other workers are on the other.
type halves struct {
	t      testing.TB
	name   string // begins the name of all that is made
	subnet string
	spaces []string
}

// newHalves makes the networks, and removes them at the test's end.
func newHalves(t testing.TB, workers int) *halves {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: nothing of partitions is tested: network namespaces need root")
	}
	for _, tool := range []string{"ip", "nsenter"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: nothing of partitions is tested: %s is not installed (Debian: iproute2, util-linux)", tool)
		}
	}
	k := rand.IntN(250)
	h := &halves{t: t, name: fmt.Sprintf("mvs%d%d", k, rand.IntN(1000)), subnet: fmt.Sprintf("10.213.%d.", k)}
	t.Cleanup(h.remove)
	for _, side := range []string{"a", "b"} {
		if err := h.try("link", "add", h.name+side, "type", "bridge"); err != nil {
			t.Skipf("SKIPPED: nothing of partitions is tested: no network can be made here: %v", err)
		}
		h.ip("link", "set", h.name+side, "up")
	}
	h.ip("addr", "add", h.subnet+"1/24", "dev", h.name+"a")
	h.wire(h.name+"wa", h.name+"wb")
	h.ip("link", "set", h.name+"wa", "master", h.name+"a", "up")
	h.ip("link", "set", h.name+"wb", "master", h.name+"b", "up")
	for i := range workers {
		space := fmt.Sprintf("%sn%d", h.name, i+1)
		h.ip("netns", "add", space)
		h.spaces = append(h.spaces, space)
		outer, inner := fmt.Sprintf("%so%d", h.name, i+1), fmt.Sprintf("%si%d", h.name, i+1)
		h.wire(outer, inner)
		side := "a"
		if i >= workers/2 {
			side = "b"
		}
		h.ip("link", "set", outer, "master", h.name+side, "up")
		h.ip("link", "set", inner, "netns", space)
		h.ip("-n", space, "addr", "add", fmt.Sprintf("%s%d/24", h.subnet, i+2), "dev", inner)
		h.ip("-n", space, "link", "set", inner, "up")
		h.ip("-n", space, "link", "set", "lo", "up")
	}
	return h
}

func (h *halves) try(args ...string) error {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (h *halves) ip(args ...string) {
	h.t.Helper()
	if err := h.try(args...); err != nil {
		h.t.Fatal(err)
	}
}

func (h *halves) wire(one, other string) {
	h.t.Helper()
	h.ip("link", "add", one, "type", "veth", "peer", "name", other)
}

func (h *halves) remove() {
	for i, space := range h.spaces {
		// Whoever has a copy of the mounts, such as another test's job, keeps the
		// namespace for a while, but need not keep the wire.
		h.try("link", "del", fmt.Sprintf("%so%d", h.name, i+1))
		if err := h.try("netns", "del", space); err != nil {
			h.t.Error(err)
		}
	}
	for _, link := range []string{"wa", "a", "b"} {
		h.try("link", "del", h.name+link) // none is there when making it failed
	}
}

// place is where nodes are, for gridOptions.
func (h *halves) place(number int) (host string, via []string) {
	host = fmt.Sprintf("%s%d", h.subnet, number+1)
	if number > 0 {
		via = []string{"nsenter", "--net=/run/netns/" + h.spaces[number-1]}
	}
	return host, via
}

// part pulls the wire between the halves; heal puts it back.
func (h *halves) part() { h.ip("link", "set", h.name+"wa", "down") }
func (h *halves) heal() { h.ip("link", "set", h.name+"wa", "up") }

// The network parts between the broker and half of the nodes, while jobs run
// over both halves, and is whole again before the lease is over: no attempt
// fails by that. In the long run it parts for longer: then the cut off nodes
// end what they hold by themselves, the jobs go on in the other half, and the
// nodes are as good as before once they are back.
func TestPartition(t *testing.T) {
	together(t)
	const workers = 4
	h := newHalves(t, workers)
	g := newGrid(t, gridOptions{workers: workers, slots: 4, place: h.place})
	var jobs []*job
	begin := func(count int, each job) (over chan struct{}, batch []*job) {
		for range count {
			j := each
			j.number = len(jobs)
			jobs = append(jobs, &j)
			batch = append(batch, &j)
		}
		over = make(chan struct{})
		go func() {
			defer close(over)
			g.crowd(t.Context(), batch, count, nil)
		}()
		return over, batch
	}
	running := func() {
		t.Helper()
		g.eventually("every worker runs a program", 30*time.Second, func() (string, bool) {
			idle := ""
			for _, w := range g.workers {
				if len(g.programs(w)) == 0 {
					idle += " " + w.name
				}
			}
			return idle, idle == ""
		})
	}

	over, batch := begin(2, job{mode: "ok", count: 4, rounds: 40, pause: 40 * time.Millisecond, nodes: workers})
	running()
	h.part()
	nap(t.Context(), 3*time.Second)
	h.heal()
	<-over
	for _, j := range batch {
		if j.status != nil && (j.state() != wsdl.JobStateSucceeded || j.ran() != 1) {
			t.Errorf("%v is %s, its program was started %d times: %s", j, j.state(), j.ran(), j.status.Reason)
		}
	}

	if *longFlag {
		over, batch = begin(3, job{mode: "ok", count: 4, rounds: 60, pause: 100 * time.Millisecond, nodes: workers, retries: 2})
		running()
		h.part()
		g.eventually("the nodes that are cut off hold nothing", lease+slack+5*time.Second, func() (string, bool) {
			left := append(g.programs(g.workers[2]), g.programs(g.workers[3])...)
			return fmt.Sprint(left), len(left) == 0
		})
		g.up(1 + workers/2)
		// These need four nodes, which there are not now; others do not.
		there, fewer := begin(2, job{mode: "ok", count: 4, rounds: 5, nodes: 2})
		<-there
		for _, j := range fewer {
			if j.status != nil && j.state() != wsdl.JobStateSucceeded {
				t.Errorf("%v is %s in the broker's half: %s", j, j.state(), j.status.Reason)
			}
		}
		h.heal()
		<-over
		for _, j := range batch {
			if j.status != nil && (j.state() != wsdl.JobStateSucceeded || j.ran() != 2) {
				t.Errorf("%v is %s, its program was started %d times, expected once before and once after the partition: %s", j, j.state(), j.ran(), j.status.Reason)
			}
		}
	}
	account(t, jobs)
	g.up(1 + workers)
	g.clean()
	g.settled(jobs)
	g.audit(jobs)
}
