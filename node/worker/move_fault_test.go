package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/osvm/vmtest"
)

// amid begins to move a VM, does something as soon as the node that it moves to has
// noted that it arrives, and says what became of the move.
func (l *lab) amid(vm, node string, do func()) string {
	l.t.Helper()
	said := make(chan string, 1)
	go func() {
		text, err := l.mvm("vm", "migrate", vm, node)
		said <- fmt.Sprint(text, err)
	}()
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(time.Millisecond) {
		if moves, _ := filepath.Glob(filepath.Join(l.dir, node, "node", "vm", "moves", "*.json")); len(moves) > 0 {
			break
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("the VM %s does not begin to arrive on %s: %s", vm, node, <-said)
		}
	}
	do()
	return <-said
}

// killNode ends a node at once; its VMs run on. again starts another in its place.
func (l *lab) killNode(name string) (again func()) {
	i := int(name[len(name)-1] - '1')
	l.workers[i].Kill()
	again = sync.OnceFunc(func() {
		l.workers[i] = l.worker(name, strings.TrimPrefix(l.workers[i].URL, "http://"))
	})
	l.t.Cleanup(again) // for what comes after a failure
	return again
}

// TestMoveFaults ends jobs and nodes amid and after moves of a job's VM: it is in one
// place or in none, the job goes on or says why not, and nothing is left behind.
func TestMoveFaults(t *testing.T) {
	if os.Getenv("MVM_SOAK") == "" {
		t.Skip("SKIPPED: jobs and nodes were not ended amid moves: MVM_SOAK=1 does that, in some minutes")
	}
	l := newLab(t, 4)
	l.pushDisk(t)
	goesOn := func(job string) {
		l.more(job)
		l.agree(job)
		l.clean()
	}
	cancel := func(job string) {
		l.must("cancel", job)
		l.eventually("cancelled", job, func(text string) bool { return strings.Contains(text, "cancelled") }, "job", job)
	}
	second := func(job string) {
		l.eventually("in its second attempt", job, regexp.MustCompile(`attempt: +2`).MatchString, "job", job)
	}
	for _, c := range []struct {
		name, policy string
		test         func(job, vm string)
	}{
		{"cancelled after it", "", func(job, vm string) {
			l.move(job, vm, "worker3")
			cancel(job)
			l.clean()
		}},
		{"cancelled amid it", "", func(job, vm string) {
			l.t.Log(l.amid(vm, "worker3", func() { cancel(job) }))
			l.clean()
		}},
		{"cancelled while it is moved on", "", func(job, vm string) {
			l.move(job, vm, "worker3")
			l.t.Log(l.amid(vm, "worker4", func() { cancel(job) }))
			l.clean()
		}},
		{"target killed after it", `retries="1"`, func(job, vm string) {
			l.move(job, vm, "worker3")
			l.killNode("worker3")()
			second(job)
			goesOn(job)
		}},
		{"target gone for good", "", func(job, vm string) {
			l.move(job, vm, "worker3")
			again := l.killNode("worker3")
			l.eventually("failed", job, func(text string) bool { // its peer may have given the link to it up first
				return strings.Contains(text, "failed") && strings.Contains(text, "is lost")
			}, "job", job)
			again()
			l.clean()
		}},
		{"target killed amid it", "", func(job, vm string) {
			var again func()
			l.t.Log(l.amid(vm, "worker3", func() { again = l.killNode("worker3") }))
			l.more(job)
			again()
			goesOn(job)
		}},
		{"source killed amid it", `retries="1"`, func(job, vm string) {
			l.t.Log(l.amid(vm, "worker3", func() { l.killNode("worker1")() }))
			second(job)
			goesOn(job)
		}},
		{"source killed after it", "", func(job, vm string) {
			l.move(job, vm, "worker3")
			l.killNode("worker1")()
			l.failed(job, "")
		}},
		{"the one between killed while it is moved on", `retries="1"`, func(job, vm string) {
			l.move(job, vm, "worker3")
			l.t.Log(l.amid(vm, "worker4", func() { l.killNode("worker3")() }))
			second(job)
			goesOn(job)
		}},
		{"the last one killed while it is moved on", "", func(job, vm string) {
			l.move(job, vm, "worker3")
			var again func()
			l.t.Log(l.amid(vm, "worker4", func() { again = l.killNode("worker4") }))
			l.more(job)
			again()
			goesOn(job)
		}},
		{"home killed while it comes back", `retries="1"`, func(job, vm string) {
			l.move(job, vm, "worker3")
			l.t.Log(l.amid(vm, "worker1", func() { l.killNode("worker1")() }))
			second(job)
			goesOn(job)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l.t = t
			defer func() { l.t = l.outer }()
			c.test(l.stream("disk", c.policy))
		})
	}
}
