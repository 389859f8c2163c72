package jobs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/services/client"
	"mvm/wsdl"
)

func TestOutsideQueues(t *testing.T) {
	g := startGrid(t, 2, 2)
	for _, profile := range []string{"outside.xml", "outside-served.xml", "outside-codecs.xml"} {
		id := g.submit(request(t, "testdata/"+profile))
		g.eventually("the job runs", func() (bool, string) {
			job, err := g.client.Job(t.Context(), id)
			if err != nil {
				return false, err.Error()
			}
			return wsdl.Or(job.State, "") == wsdl.JobStateRunning, string(wsdl.Or(job.State, "")) + " " + job.Reason
		})
		out, err := exec.Command("python3", "testdata/outside.py", g.client.Broker(), id).CombinedOutput()
		if err != nil {
			t.Fatalf("outside.py: %v\n%s", err, out)
		}
		if job := g.wait(id); wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
			t.Errorf("the job is %s: %s", wsdl.Or(job.State, ""), job.Reason)
		}
	}
}

// What a job leaves for those outside can be taken for a moment after its processes
// have ended, at any node.
func TestOutsideQueuesTakenLate(t *testing.T) {
	g := startGrid(t, 2, 2)
	for _, n := range g.nodes {
		at, err := client.Dial(t.Context(), n.url)
		if err != nil {
			t.Fatal(err)
		}
		// On a busy machine the moment may be over once.
		for tries := 1; ; tries++ {
			got, err := g.takeLate(at)
			if err == nil && slices.Equal(got, []string{"WHO", "IS", "THERE"}) {
				break
			}
			if tries == 4 {
				t.Fatalf("at %s came %q, %v", n.name, got, err)
			}
		}
	}
}

func (g *grid) takeLate(at *client.Client) (got []string, err error) {
	ctx := g.t.Context()
	id := g.submit(request(g.t, "testdata/outside.xml"))
	state := func() wsdl.JobState {
		job, err := g.client.Job(ctx, id)
		if err != nil {
			g.t.Fatal(err)
		}
		return wsdl.Or(job.State, "")
	}
	g.eventually("the job runs", func() (bool, string) { s := state(); return s == wsdl.JobStateRunning, string(s) })
	said := [][]byte{[]byte("who"), []byte("is"), []byte("there")}
	if n, err := at.Enqueue(ctx, id, "questions", said, true, 10*time.Second); err != nil || n != len(said) {
		g.t.Fatal(n, err)
	}
	g.eventually("its processes have ended", func() (bool, string) { s := state(); return s != wsdl.JobStateRunning, string(s) })
	for end := false; !end && err == nil; {
		var items [][]byte
		items, end, err = at.Dequeue(ctx, id, "answers", 1, 10*time.Second)
		for _, item := range items {
			got = append(got, string(item))
		}
	}
	if s := wsdl.Or(g.wait(id).State, ""); s != wsdl.JobStateSucceeded {
		g.t.Errorf("the job is %s", s)
	}
	return got, err
}

// Jobs whose broker is killed again and again end all the same, and never run
// twice at once. Each process holds a lock while it runs.
func TestBrokerKilled(t *testing.T) {
	front := startNode(t, "front", "--roles", "backend,frontend")
	startNode(t, "w1", "--slots", "3", "--join", front.url)
	startNode(t, "w2", "--slots", "3", "--join", front.url)
	g := dialGrid(t, front, 3)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	locks := t.TempDir()
	const jobs = 8
	var ids []string
	for i := range jobs {
		ids = append(ids, g.submit(request(t, "testdata/once.xml", "lock="+filepath.Join(locks, strconv.Itoa(i)))))
		if i%2 == 1 {
			time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond) // somewhere among the steps a to g
			front.kill()
			front.restart()
		}
	}
	for i, id := range ids {
		job := g.wait(id)
		if state := wsdl.Or(job.State, ""); state != wsdl.JobStateSucceeded {
			t.Errorf("job %s is %s: %s", id, state, job.Reason)
		}
		log, err := os.ReadFile(filepath.Join(locks, strconv.Itoa(i)))
		if err != nil {
			t.Fatal(err)
		}
		for k := range 2 {
			if !bytes.Contains(log, fmt.Appendf(nil, "end %d\n", k)) {
				t.Errorf("job %s: process %d never came to its end:\n%s", id, k, log)
			}
		}
		if bytes.Contains(log, []byte("twice")) {
			t.Errorf("job %s ran twice at once:\n%s", id, log)
		}
	}
}

// However a job ends, nothing of it is left: no process, also none that broke
// away, no shared memory, no file in its work folder.
func TestNothingLeft(t *testing.T) {
	g := startGrid(t, 2, 4)
	for _, ending := range []struct {
		name, how string
		want      wsdl.JobState
		act       func(id string)
	}{
		{"success", "exit 0", wsdl.JobStateSucceeded, nil},
		{"failure", "exit 3", wsdl.JobStateFailed, nil},
		{"crash", "kill -SEGV $$", wsdl.JobStateFailed, nil},
		{"wall time", "sleep 1000", wsdl.JobStateFailed, nil},
		{"cancel", "sleep 1001", wsdl.JobStateCancelled, func(id string) {
			if _, err := g.client.Cancel(t.Context(), id, "by the test"); err != nil {
				t.Fatal(err)
			}
		}},
		{"MVM process killed", "sleep 1002", wsdl.JobStateFailed, func(string) {
			for _, pid := range processes(t, "mvm-process") {
				if slices.Contains(g.descendants(), pid) {
					exec.Command("kill", "-9", strconv.Itoa(pid)).Run()
				}
			}
		}},
	} {
		t.Run(ending.name, func(t *testing.T) {
			marker := fmt.Sprintf("31%06d", rand.IntN(1000000)) // a length of sleep that nobody else asks for
			wall := "60"
			if ending.name == "wall time" {
				wall = "1"
			}
			id := g.submit(request(t, "testdata/leaver.xml", "how="+ending.how, "marker="+marker, "wall="+wall))
			g.eventually("the detached processes run", func() (bool, string) {
				job, err := g.client.Job(t.Context(), id)
				if err != nil {
					return false, err.Error()
				}
				// Short endings may be over before anybody looks.
				return len(processes(t, "sleep\x00"+marker)) == 2 || (ending.act == nil && job.Ended != nil), fmt.Sprint(processes(t, "sleep\x00"+marker))
			})
			if ending.act != nil {
				ending.act(id)
			}
			job := g.wait(id)
			if state := wsdl.Or(job.State, ""); state != ending.want {
				t.Errorf("the job is %s (%s), want %s", state, job.Reason, ending.want)
			}
			if ending.want == wsdl.JobStateFailed && job.Reason == "" {
				t.Error("the job failed without a reason")
			}
			g.eventually("nothing is left", func() (bool, string) {
				left := g.left()
				for _, pid := range processes(t, marker) {
					left = append(left, fmt.Sprintf("process %d", pid))
				}
				return len(left) == 0, strings.Join(left, ", ")
			})
		})
	}
}

// processes are the pids whose command line has the text in it.
func processes(t testing.TB, text string) []int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, file := range files {
		line, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(line, []byte(text)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids
}

// descendants are all processes that the grid's nodes have started.
func (g *grid) descendants() []int {
	children := map[int][]int{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		stat, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		// The command's name, in brackets, may hold anything.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		parent, _ := strconv.Atoi(fields[1])
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		children[parent] = append(children[parent], pid)
	}
	var all []int
	for _, n := range g.nodes {
		for next := children[n.Cmd.Process.Pid]; len(next) > 0; {
			all = append(all, next...)
			var below []int
			for _, pid := range next {
				below = append(below, children[pid]...)
			}
			next = below
		}
	}
	return all
}

// left is what the grid's nodes still hold of any job.
func (g *grid) left() []string {
	var left []string
	for _, pid := range g.descendants() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		left = append(left, fmt.Sprintf("process %d %q", pid, line))
	}
	for _, n := range g.nodes {
		files, _ := filepath.Glob(filepath.Join(n.dir, "data", "node", "work", "*"))
		left = append(left, files...)
		fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", n.Cmd.Process.Pid))
		for _, fd := range fds {
			if target, err := os.Readlink(fd); err == nil && strings.Contains(target, "memfd:mvm-ring") {
				left = append(left, n.name+" holds "+target)
			}
		}
	}
	return left
}
