package soak

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// jumpVariable names the file that holds by how many seconds the wall clock of
// a node built by jumpy is wrong.
const jumpVariable = "MVM_SOAK_JUMP"

// jumpy builds the program once more, the same but for the standard library's
// package time: what it reads of CLOCK_REALTIME is wrong by as much as a file
// says, from one moment to the next. Everything in the program sees that, etcd
// too. CLOCK_MONOTONIC and CLOCK_BOOTTIME go on as they are, as they do when
// somebody sets a machine's clock.
func jumpy(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	original := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	source, err := os.ReadFile(original)
	if err != nil {
		t.Skipf("SKIPPED: nothing of clock jumps is tested in whole nodes: the standard library's source is not here: %v", err)
	}
	const read = "\tsec, nsec, mono := runtimeNow()\n\tif mono == 0 {\n\t\treturn Time{"
	if strings.Count(string(source), read) != 1 {
		t.Skipf("SKIPPED: nothing of clock jumps is tested in whole nodes: %s of %s is not as this test knows it", original, runtime.Version())
	}
	changed := strings.Replace(string(source), read, strings.Replace(read, "runtimeNow()\n", "runtimeNow()\n\tsec += atomic.LoadInt64(&jumped)\n", 1), 1)
	changed += `
var jumped int64 // seconds; read also where no goroutine is, so by no system call

func init() {
	name, _ := syscall.Getenv("` + jumpVariable + `")
	if name == "" {
		return
	}
	go func() {
		for ; ; Sleep(20 * Millisecond) {
			f, err := open(name)
			if err != nil {
				continue
			}
			var text [20]byte
			n, _ := read(f, text[:])
			closefd(f)
			seconds, sign := int64(0), int64(1)
			for _, c := range text[:max(n, 0)] {
				switch {
				case c == '-':
					sign = -1
				case c >= '0' && c <= '9':
					seconds = 10*seconds + int64(c-'0')
				}
			}
			atomic.StoreInt64(&jumped, sign*seconds)
		}
	}()
}
`
	changed = strings.Replace(changed, "import (\n", "import (\n\t\"sync/atomic\"\n\t\"syscall\"\n", 1)
	file, overlay, program := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json"), filepath.Join(dir, "mvm")
	plan, err := json.Marshal(map[string]map[string]string{"Replace": {original: file}})
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{file: []byte(changed), overlay: plan} {
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	build := exec.Command("go", "build", "-overlay", overlay, "-o", program, ".")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("go build -overlay: %v\n%s", err, out)
	}
	return program
}

// The wall clocks of the front end and of a worker jump by hours and days, to
// and fro, while jobs run: no lease is lost by it, no attempt fails, jobs' ids
// go on growing, and a wall time lasts as long as it says.
func TestClockJumps(t *testing.T) {
	if !*longFlag {
		t.Skip("SKIPPED: clock jumps in whole nodes are tested by `make soak` only: they need the program built once more (broker.TestClockJumps has the broker's)")
	}
	dir := t.TempDir()
	front, worker := filepath.Join(dir, "front"), filepath.Join(dir, "worker")
	set := func(file string, by time.Duration) {
		t.Helper()
		// Renamed, so that nobody reads half of it.
		err := os.WriteFile(file+".new", fmt.Appendf(nil, "%d", int(by.Seconds())), 0o644)
		if err == nil {
			err = os.Rename(file+".new", file)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	set(front, 0)
	set(worker, 0)
	g := newGrid(t, gridOptions{workers: 2, slots: 8, binary: jumpy(t), jumps: []string{front, worker}})
	var jobs []*job
	const hour = time.Hour
	for i, by := range []time.Duration{2 * hour, -3 * hour, 50 * hour, -1000 * hour, 0} {
		first := len(jobs)
		jobs = append(jobs,
			&job{number: first, mode: "ok", count: 4, rounds: 20, pause: 50 * time.Millisecond, nodes: 2},
			&job{number: first + 1, mode: "hang", count: 2, nodes: 2, wall: 3 * time.Second},
			&job{number: first + 2, mode: "once", count: 2, rounds: 5, nodes: 2, retries: 1})
		begin := time.Now()
		over := make(chan struct{})
		go func() {
			defer close(over)
			g.crowd(t.Context(), jobs[first:], len(jobs)-first, nil)
		}()
		nap(t.Context(), 500*time.Millisecond)
		set(front, by)
		if i%2 == 0 {
			set(worker, -by)
		}
		<-over
		ok, hung := jobs[first], jobs[first+1]
		for _, j := range jobs[first:] {
			want := map[string]int{"once": 2, "ok": 1, "hang": 1}[j.mode]
			if j.status != nil && (j.ran() != want || int(wsdl.Or(j.status.Attempt, 0)) != want) {
				t.Errorf("the clock jumped by %v: %v was started %d times: %s", by, j, j.ran(), j.status.Reason)
			}
		}
		if took := time.Since(begin); took < 3*time.Second || hung.status != nil && !strings.Contains(hung.status.Reason, "wall time") {
			t.Errorf("the clock jumped by %v: a wall time of 3 s took %v: %s", by, took, hung.status.Reason)
		}
		if ok.status != nil && ok.state() != wsdl.JobStateSucceeded {
			t.Errorf("the clock jumped by %v: %v is %s: %s", by, ok, ok.state(), ok.status.Reason)
		}
		if i == 2 {
			// A broker that starts with another clock than it went with.
			g.front.kill()
			set(front, -by)
			g.front.start()
			g.front.await()
			g.up(3)
		}
	}
	last := ""
	for i, j := range jobs {
		if i%3 == 0 { // the others of a batch race
			if j.id <= last {
				t.Errorf("the job %s was submitted after %s", j.id, last)
			}
			last = j.id
		}
	}
	g.clean()
	g.settled(jobs)
	g.audit(jobs)
}
