package worker

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/examples/launch"
	"mvm/osvm/vmtest"
)

// count is how many times what a node has logged holds the words.
func (l *lab) count(log, words string) int {
	text, _ := os.ReadFile(filepath.Join(l.dir, log+".log"))
	return strings.Count(string(text), words)
}

// await waits until that are so many.
func (l *lab) await(log, words string, times int) {
	l.t.Helper()
	for deadline := time.Now().Add(vmtest.Limit); l.count(log, words) < times; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			l.t.Fatalf("%s has not logged %q %d times in %v", log, words, times, vmtest.Limit)
		}
	}
}

// crash ends a node and all its VMs at once, as if its machine had lost its power.
func (l *lab) crash(name string, n *launch.Node) (machines int) {
	l.t.Helper()
	n.Kill()
	for _, path := range l.machines(name) {
		l.kill(path)
		_ = os.RemoveAll(filepath.Dir(path))
		machines++
	}
	return machines
}

// machines are the records of a node's VMs; of all nodes' with "*".
func (l *lab) machines(name string) []string {
	records, _ := filepath.Glob(filepath.Join(l.dir, name, "node", "vm", "machines", "*", "machine.json"))
	return records
}

// kill ends a VM's QEMU.
func (l *lab) kill(path string) {
	l.t.Helper()
	var record struct{ PID int }
	text, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(text, &record)
	}
	if err == nil && record.PID > 1 {
		err = syscall.Kill(record.PID, syscall.SIGKILL)
	}
	if err != nil {
		l.t.Errorf("end the VM of %s: %v", path, err)
	}
}

// goesOn runs the example of a job that outlives its machines, has lose take from it
// what it goes on without, and holds it to its answer.
func (l *lab) goesOn(image string, stages, nodes int, lose func(status string)) {
	l.t.Helper()
	known, gone := l.count("front", "checkpoint of the job is made"), l.count("front", "the job goes on from its checkpoint")
	job := strings.Fields(l.must("submit", "../../examples/jobs/survive/survive.xml", "--param", "image="+image, "--param", "items=0", "--param", "every=2",
		"--param", fmt.Sprintf("stages=%d", stages), "--param", fmt.Sprintf("nodes=%d", nodes)))[0]
	l.await("front", "checkpoint of the job is made", known+1)
	status := l.must("job", job)
	lose(status)
	l.eventually("ended", job, func(text string) bool { return strings.Contains(text, "succeeded") || strings.Contains(text, "failed") }, "job", job)
	if ended := l.must("job", job); !strings.Contains(ended, "succeeded") {
		l.t.Fatalf("the job did not go on to its end: it was\n%s\nand is\n%s", status, ended)
	}
	// The last stage has of each item the sum of all indices.
	var items, sum int
	said := l.must("logs", job, "--process", fmt.Sprintf("stage[%d]", stages-1))
	if n, err := fmt.Sscanf(said, "%d items, sum %d\n", &items, &sum); n != 2 || items < 100 || sum != items*(items+1)/2*(stages*(stages-1)/2) {
		l.t.Errorf("the last stage says %q: %v", said, err)
	}
	if first := l.must("logs", job, "--process", "stage[0]"); stages > 1 && first != fmt.Sprintf("%d items, sum 0\n", items) {
		l.t.Errorf("the first stage says %q, and the last %q", first, said)
	}
	l.await("front", "the job goes on from its checkpoint", gone+1)
	l.clean()
}

// TestJobGoesOn has jobs in VMs lose what they run on: they go on from their last
// checkpoint.
func TestJobGoesOn(t *testing.T) {
	l := newLab(t, 3)
	l.pushDisk(t)
	// Its only VM's QEMU is killed, most likely while its state is taken or stored. What
	// it has on its disk goes along.
	l.goesOn("disk", 1, 1, func(string) {
		for _, path := range l.machines("*") {
			l.kill(path)
		}
	})
	// Of four VMs on two machines, whose processes send each other items, two are lost
	// with their machine, which comes back without any. Another, which had no part in
	// it, takes their place, and every item is counted exactly once. (That a machine does
	// not come back is told by its lease, and package broker's to test.)
	l.goesOn("minimal", 4, 2, func(status string) {
		for i, n := range l.workers {
			name := fmt.Sprintf("worker%d", i+1)
			if !strings.Contains(status, name) {
				continue
			}
			if machines := l.crash(name, n); machines != 2 {
				t.Errorf("%s had %d VMs, and two were to be there:\n%s", name, machines, status)
			}
			l.start(name, "--listen", strings.TrimPrefix(n.URL, "http://"), "--join", l.front.URL, "--accelerator", "none")
			return
		}
	})
}
