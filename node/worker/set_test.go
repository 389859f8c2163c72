package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	// Of four VMs on two machines, whose processes send each other items by their edges
	// and over TCP connections in the VMs' network, two are lost with their machine, which
	// comes back without any. Another, which had no part in it, takes their place, and
	// every item is counted exactly once. (That a machine does not come back is told by
	// its lease, and package broker's to test.)
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

// gate is where others reach a node, and passes on what they ask of it. It tells of a
// node's part in the checkpoint of a job: "taken" once a VM's state is and nobody knows
// that yet, "save" when it is to be stored.
type gate struct {
	address string
	tell    atomic.Pointer[func(point string)]
}

func newGate(t *testing.T, node string) *gate {
	g := &gate{}
	asks := func(r *http.Request) (step string) { step, _ = r.Context().Value(g).(string); return step }
	tell := func(point string) {
		if f := g.tell.Load(); f != nil {
			(*f)(point)
		}
	}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: node})
	proxy.ErrorLog = log.New(io.Discard, "", 0)
	proxy.ModifyResponse = func(response *http.Response) error {
		if asks(response.Request) == "take" {
			tell("taken")
		}
		return nil
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			text, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(text))
			if found := regexp.MustCompile(`<CheckpointAttempt[ >].*>(take|save)<`).FindSubmatch(text); found != nil {
				r = r.WithContext(context.WithValue(r.Context(), g, string(found[1])))
			}
			if asks(r) == "save" {
				tell("save")
			}
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	g.address = server.Listener.Addr().String()
	return g
}

// TestKilledAmidASet kills a node amid the checkpoint of a job: when the state of its VM
// is taken and not stored, when it is to be stored, and while it is. The job goes on
// from the set before, and of the VM that stood still nothing is left.
func TestKilledAmidASet(t *testing.T) {
	if os.Getenv("MVM_SOAK") == "" {
		t.Skip("SKIPPED: no node was killed amid the checkpoint of a job in real VMs: that is for MVM_SOAK=1")
	}
	l := newLab(t, 1)
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := free.Addr().String()
	_ = free.Close()
	g := newGate(t, listen)
	second := func() *launch.Node {
		return l.start("worker2", "--listen", listen, "--advertise", g.address, "--join", l.front.URL, "--slots", "2", "--accelerator", "tcg", "--vm-templates", vmtest.Templates(t))
	}
	n := second()
	for _, c := range []struct {
		point string
		after time.Duration
	}{{"taken", 0}, {"save", 0}, {"save", 30 * time.Millisecond}} {
		l.goesOn("minimal", 2, 2, func(status string) {
			if !strings.Contains(status, "worker2") {
				t.Fatalf("no part of the job is on worker2:\n%s", status)
			}
			killed := make(chan struct{})
			var once sync.Once
			tell := func(point string) {
				if point == c.point {
					once.Do(func() {
						time.AfterFunc(c.after, func() { n.Kill(); close(killed) })
					})
					if c.after == 0 {
						<-killed
					}
				}
			}
			g.tell.Store(&tell)
			select {
			case <-killed:
			case <-time.After(vmtest.Limit):
				t.Fatalf("no state was %s in %v", c.point, vmtest.Limit)
			}
			g.tell.Store(nil)
			t.Logf("killed %v after %s; its VMs: %d", c.after, c.point, len(l.machines("worker2")))
			n = second()
		})
	}
}

// TestNoRoomForASet has the disk on which the sets of a job are kept be full: the job
// goes on, with the set before; when there is room again there are sets again.
func TestNoRoomForASet(t *testing.T) {
	if os.Getenv("MVM_SOAK") == "" {
		t.Skip("SKIPPED: the disk was not filled under the checkpoint of a job in real VMs: that is for MVM_SOAK=1")
	}
	store := ""
	l := newLabOn(t, 1, func(dir string) {
		store = filepath.Join(dir, "front", "image")
		if err := os.MkdirAll(store, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", store, "tmpfs", 0, "size=700m"); err != nil {
			t.Skip("SKIPPED: the disk was not filled under the checkpoint of a job: no small one can be made: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(store, unix.MNT_DETACH) })
	})
	const none = "a checkpoint of the job could not be made; the one before stays"
	l.goesOn("minimal", 1, 1, func(string) {
		fill, err := os.Create(filepath.Join(store, "fill"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.Copy(fill, neverEnding{})
		_ = fill.Close()
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
		l.await("front", none, l.count("front", none)+2)
		made := l.count("front", "checkpoint of the job is made")
		if err := os.Remove(fill.Name()); err != nil {
			t.Fatal(err)
		}
		l.await("front", "checkpoint of the job is made", made+1)
		for _, path := range l.machines("*") {
			l.kill(path)
		}
	})
	if !strings.Contains(l.front.Tail(1<<20), "no space left on device") {
		t.Error("the front's log does not say that its disk was full")
	}
}

type neverEnding struct{}

func (neverEnding) Read(into []byte) (int, error) { clear(into); return len(into), nil }
