package soak

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/services/client"
	"mvm/wsdl"
)

// job is one submission of testdata/ring.xml and what became of it.
type job struct {
	number  int
	mode    string // what its program does, see ring.c
	count   int
	rounds  int
	pause   time.Duration // of each round
	retries int
	nodes   int
	wall    time.Duration // 0 = the profile's
	cancel  time.Duration // after which it is cancelled; 0 = never
	queue   string        // in which it waits; "" is the default one

	diary  string
	id     string
	status *wsdl.JobStatus // when it had ended
	told   []byte          // its diary by then
}

// randomJob draws a job of the kinds that people have: most are well and
// short, some fail in every way there is.
func (g *grid) randomJob(c *chance, number int) *job {
	j := &job{number: number, mode: "ok", count: 2 + c.n(3), rounds: 1 + c.n(30), nodes: 1 + c.n(min(3, len(g.workers))), retries: 12}
	j.nodes = min(j.nodes, j.count)
	switch k := c.n(100); {
	case k < 40:
	case k < 60: // long enough for faults to fall into
		j.rounds, j.pause = 5+c.n(10), time.Duration(10+c.n(90))*time.Millisecond
	case k < 68:
		j.retries = 0
	case k < 74:
		j.mode, j.retries = "once", 12
	case k < 79:
		j.mode, j.retries = "exit", c.n(3)
	case k < 83:
		j.mode, j.retries = "crash", c.n(2)
	case k < 87:
		j.mode = "leave"
	case k < 90:
		j.mode = "flood"
	case k < 93:
		j.mode, j.wall, j.retries = "hang", 2*time.Second, 0
	case k < 96:
		j.mode, j.cancel = "stubborn", c.between(time.Millisecond, 2*time.Second)
	default:
		j.rounds, j.pause, j.cancel = 10, 100*time.Millisecond, c.between(time.Millisecond, 2*time.Second)
	}
	return j
}

// sum is what the ring adds up to.
func (j *job) sum() uint64 {
	var sum uint64
	for range j.rounds {
		for i := 1; i < j.count; i++ {
			sum = sum*3 + uint64(i) + 1
		}
		sum = sum*3 + 1
	}
	return sum
}

func (j *job) String() string {
	return fmt.Sprintf("job %d %s (%s, %d processes, %d retries)", j.number, j.id, j.mode, j.count, j.retries)
}

func (j *job) state() wsdl.JobState { return wsdl.Or(j.status.State, "") }

// submit hands a job in, until it is accepted.
func (g *grid) submit(ctx context.Context, j *job) error {
	j.diary = filepath.Join(g.diaries, fmt.Sprint(j.number))
	arguments := map[string]string{"diary": j.diary, "mode": j.mode, "count": fmt.Sprint(j.count), "rounds": fmt.Sprint(j.rounds),
		"pause": fmt.Sprint(j.pause.Milliseconds()), "retries": fmt.Sprint(j.retries), "nodes": fmt.Sprint(max(1, j.nodes))}
	if j.wall > 0 {
		arguments["wall"] = fmt.Sprint(int(j.wall.Seconds()))
	}
	return insist(ctx, func(ctx context.Context) error {
		id, err := g.client.Submit(ctx, client.Request{Document: g.ring, Arguments: arguments, Token: fmt.Sprintf("job-%d", j.number), Queue: j.queue})
		if err == nil && j.id != "" && j.id != id {
			g.t.Errorf("%v got another id, %s", j, id)
		}
		if err == nil {
			j.id = id
		}
		return err
	})
}

// finish waits for the job's end.
func (g *grid) finish(ctx context.Context, j *job) error {
	err := insist(ctx, func(ctx context.Context) (err error) {
		j.status, err = g.client.Wait(ctx, j.id, nil)
		return err
	})
	j.told, _ = os.ReadFile(j.diary)
	return err
}

// run takes a job from its submission to its end, and judges it.
func (g *grid) run(ctx context.Context, j *job) {
	err := g.submit(ctx, j)
	if err == nil && j.cancel > 0 {
		select {
		case <-time.After(j.cancel):
		case <-ctx.Done():
		}
		err = insist(ctx, func(ctx context.Context) error {
			_, err := g.client.Cancel(ctx, j.id, "by the test")
			return err
		})
	}
	if err == nil {
		err = g.finish(ctx, j)
	}
	if err != nil {
		now, _ := g.client.Job(context.Background(), j.id)
		if now != nil {
			err = fmt.Errorf("%w; it is %s in attempt %d: %s", err, wsdl.Or(now.State, ""), wsdl.Or(now.Attempt, 0), now.Reason)
		}
		g.t.Errorf("%v: %v", j, err)
		return
	}
	g.judge(ctx, j)
}

// excuses are the reasons that faults give jobs which would have ended
// otherwise.
var excuses = regexp.MustCompile(`was lost: its heartbeats ceased|was started anew|could not be awakened|` +
	`did not start its processes|MVM process ended unexpectedly|killed by SIGKILL|does not hold the attempt any more|` +
	`lease ran out|no report of the end|the link to node \S+ is lost`)

// judge says what is wrong with how a job ended.
func (g *grid) judge(ctx context.Context, j *job) {
	bad := func(format string, args ...any) {
		g.t.Errorf("%v is %s in attempt %d (%s): %s; its diary:\n%s", j, j.state(), wsdl.Or(j.status.Attempt, 0), j.status.Reason,
			fmt.Sprintf(format, args...), j.told)
	}
	if bytes.Contains(j.told, []byte("twice")) {
		bad("a process ran twice at once")
	}
	starts := bytes.Count(j.told, []byte("start 0\n"))
	if attempts := int(wsdl.Or(j.status.Attempt, 0)); starts > attempts {
		bad("its first process was started %d times", starts)
	}
	switch j.state() {
	case wsdl.JobStateSucceeded:
		switch j.mode {
		case "exit", "crash", "hang", "stubborn":
			bad("its program cannot succeed")
			return
		}
		for i := range j.count {
			if !bytes.Contains(j.told, fmt.Appendf(nil, "end %d\n", i)) {
				bad("process %d never came to its end", i)
			}
		}
		g.answers(ctx, j, bad)
	case wsdl.JobStateFailed:
		own := map[string]string{"exit": "exited with 3", "crash": "SIGSEGV", "hang": "wall time", "once": "exited with 9"}[j.mode]
		switch reason := j.status.Reason; {
		case own != "" && strings.Contains(reason, own):
			if j.mode == "once" {
				bad("its second attempt must not fail like that")
			}
		case !excuses.MatchString(reason):
			bad("that is no excuse")
		}
	case wsdl.JobStateCancelled:
		if j.cancel == 0 || !strings.Contains(j.status.Reason, "by the test") {
			bad("nobody cancelled it")
		}
	default:
		bad("that is no end")
	}
}

// answers compares what a job left with what it must have computed.
func (g *grid) answers(ctx context.Context, j *job, bad func(string, ...any)) {
	var printed bytes.Buffer
	err := insist(ctx, func(ctx context.Context) error {
		printed.Reset()
		_, err := g.client.Output(ctx, j.id, 0, client.Stdout, 0, true, &printed)
		return err
	})
	if want := fmt.Sprintf("%d\n", j.sum()); err != nil || printed.String() != want {
		bad("it printed %q (%v), expected %q", printed.String(), err, want)
	}
	var file bytes.Buffer
	for i := range 20000 {
		fmt.Fprintf(&file, "%d\n", j.sum()+uint64(i))
	}
	want := fmt.Sprintf("sha256:%x", sha256.Sum256(file.Bytes()))
	for _, r := range client.Results(j.status) {
		if r.Name == "answer" && r.Digest == want {
			return
		}
	}
	bad("its file answer is not there, or another: %v", client.Results(j.status))
}

// settled says what has changed about jobs since they ended: nothing may have.
func (g *grid) settled(jobs []*job) {
	g.t.Helper()
	for _, j := range jobs {
		if j.status == nil {
			continue // it was judged
		}
		var now *wsdl.JobStatus
		err := insist(g.t.Context(), func(ctx context.Context) (err error) {
			now, err = g.client.Job(ctx, j.id)
			return err
		})
		if err != nil {
			g.t.Errorf("%v cannot be asked for: %v", j, err)
			continue
		}
		if was := j.status; wsdl.Or(now.State, "") != j.state() || now.Reason != was.Reason || wsdl.Or(now.Attempt, 0) != wsdl.Or(was.Attempt, 0) ||
			now.Ended == nil || !now.Ended.ToGoTime().Equal(was.Ended.ToGoTime()) {
			g.t.Errorf("%v was %s (%s), and now is %s (%s): it ended twice", j, j.state(), was.Reason, wsdl.Or(now.State, ""), now.Reason)
		}
		if told, _ := os.ReadFile(j.diary); !bytes.Equal(told, j.told) {
			g.t.Errorf("%v ran on after its end: %q came after %q", j, told[len(j.told):], j.told)
		}
	}
}

// crowd runs jobs, so many at a time.
func (g *grid) crowd(ctx context.Context, jobs []*job, width int, ended func(done int)) {
	queue := make(chan *job)
	var clients sync.WaitGroup
	var mu sync.Mutex
	done := 0
	for range width {
		clients.Go(func() {
			for j := range queue {
				g.run(ctx, j)
				if ended != nil {
					mu.Lock()
					done++
					ended(done)
					mu.Unlock()
				}
			}
		})
	}
	for _, j := range jobs {
		if ctx.Err() != nil {
			break
		}
		queue <- j
	}
	close(queue)
	clients.Wait()
}

// digits, hexadecimal ids and names of nodes make each reason one of its own.
var particular = regexp.MustCompile(`\bj-[0-9a-z]{8}\b|\bw[0-9]\b|\bfront\b|[0-9a-f]{12,}|\d+`)

// account is a table of how jobs ended.
func account(t testing.TB, jobs []*job) {
	ends := map[string]int{}
	reasons := map[string]int{}
	attempts := 0
	for _, j := range jobs {
		if j.status == nil {
			ends[fmt.Sprintf("%-9s no end", j.mode)]++
			continue
		}
		ends[fmt.Sprintf("%-9s %s", j.mode, j.state())]++
		attempts += int(wsdl.Or(j.status.Attempt, 0))
		if j.state() == wsdl.JobStateFailed {
			reason, _, _ := strings.Cut(j.status.Reason, "\n")
			reasons[particular.ReplaceAllString(reason[:min(len(reason), 200)], "#")]++
		}
	}
	t.Logf("%d jobs in %d attempts", len(jobs), attempts)
	table(t, ends)
	if len(reasons) > 0 {
		t.Log("why jobs failed:")
		table(t, reasons)
	}
}

func table(t testing.TB, counts map[string]int) {
	var keys []string
	for key := range counts {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		t.Logf("%6d  %s", counts[key], key)
	}
}
