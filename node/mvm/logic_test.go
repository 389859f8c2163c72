package mvm

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/node/build"
	"mvm/node/confine"
	"mvm/queuevm"
)

// hostile is a codec that tries what it must not.
func hostile(t testing.TB) Logic {
	t.Helper()
	python, ok := build.For(build.Python, build.NewDetector("", "").Compilers(t.Context()))
	if !ok {
		t.Skip("SKIPPED: a hostile codec is written in Python, and there is no python3; install it")
	}
	dir := t.TempDir()
	for parent := dir; parent != "/"; parent = filepath.Dir(parent) { // as the cache of builds is readable
		if info, err := os.Stat(parent); err == nil && info.Mode().Perm()&0o005 != 0o005 {
			os.Chmod(parent, info.Mode().Perm()|0o055)
		}
	}
	text, err := os.ReadFile("testdata/hostile.py")
	if err == nil {
		err = os.WriteFile(dir+"/hostile.py", text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return Logic{Source: "codec:hostile@1", Artifact: dir, Command: []string{python.Command, "-I", dir + "/hostile.py"}}
}

// confined starts an attempt with a queue from in to out, in which a registered
// codec is the one step, and a process that has a secret.
func confined(t testing.TB, binary *os.File, cleaning string, level int, limit time.Duration, logic Logic) *launched {
	t.Helper()
	l := launch(t, binary, cleaning, func(s *Start) { s.Confinement, s.LogicTime = level, limit })
	queue := Queue{Queue: queuevm.Queue{ID: 1, Name: "items", Type: queuevm.QueueFifo, Full: queuevm.FullBlock, Capacity: 1 << 20},
		Steps: []Step{{Program: strings.TrimPrefix(logic.Source, "codec:"), Type: "some type"}}}
	l.must(Request{Instantiate: &Instantiate{
		Processes: []ProcessSpec{sh(0, "echo secret > secret; sleep 1000")},
		Queues:    []Queue{queue}, Logic: []Logic{logic},
		Channels: []queuevm.Channel{
			{ID: 1, From: queuevm.Endpoint{Outside: "in"}, To: queuevm.Endpoint{Queue: 1}},
			{ID: 2, From: queuevm.Endpoint{Queue: 1}, To: queuevm.Endpoint{Outside: "out"}},
		},
	}})
	return l
}

// ask has an item converted.
func (l *launched) ask(item string) string {
	l.t.Helper()
	l.must(Request{Enqueue: &Enqueue{Queue: "in", Items: [][]byte{[]byte(item)}, Timeout: time.Second}})
	got := l.must(Request{Dequeue: &Dequeue{Queue: "out", Timeout: 30 * time.Second}}).Dequeue
	if len(got.Items) != 1 {
		l.t.Fatalf("no answer to %s: %+v", item, l.other)
	}
	return string(got.Items[0])
}

// Items that are there at once go to a codec at once: small ones, and such as fill its
// pipes both ways, come out in order, and one that is refused is refused with its number.
func TestCodecThatHasManyItemsBefore(t *testing.T) {
	logic, binary := hostile(t), slim(t)
	best, err := Confine(binary, Subreaper)
	if err != nil || best.Level < 0 {
		t.Skipf("SKIPPED: this machine cannot confine a codec: %v, missing %v", err, best.Missing)
	}
	l := confined(t, binary, Subreaper, best.Level, time.Minute, logic)
	var items [][]byte
	for k := range 900 {
		items = append(items, fmt.Appendf(nil, "%d-%s", k, strings.Repeat("x", []int{0, 300, 20, 3000, 1, 70000}[k/150])))
	}
	taken := make(chan error, 1)
	go func() {
		for k := 0; k < len(items); {
			reply, err := l.call(Request{Dequeue: &Dequeue{Queue: "out", Limit: 100, Timeout: time.Minute}})
			if err == nil && len(reply.Dequeue.Items) == 0 {
				err = fmt.Errorf("after %d items no more come", k)
			}
			if err != nil {
				taken <- err
				return
			}
			for _, got := range reply.Dequeue.Items {
				if want := string(items[k]) + " encode some type"; string(got) != want {
					taken <- fmt.Errorf("item %d is %.40q, want %.40q", k, got, want)
					return
				}
				k++
			}
		}
		taken <- nil
	}()
	for first := 0; first < len(items); {
		reply := l.must(Request{Enqueue: &Enqueue{Queue: "in", Items: items[first:min(first+50, len(items))], Timeout: time.Minute}})
		first += reply.Count
	}
	if err := <-taken; err != nil {
		t.Fatal(err)
	}
	last := append(slices.Clone(items[:60]), []byte("refuse"), []byte("hello"))
	l.must(Request{Enqueue: &Enqueue{Queue: "in", Items: last, Timeout: time.Minute}})
	if got, want := l.failure(), fmt.Sprintf("queue items: item %d of ", len(items)+61); !strings.HasPrefix(got, want) || !strings.Contains(got, "not this one") {
		t.Errorf("it fails with %q, want %q", got, want)
	}
	l.terminate()
}

const sameCodec = `#include <stdio.h>
int main(void) {
    static unsigned char b[1 << 20];
    while (fread(b, 4, 1, stdin)) {
        size_t n = (size_t)b[0] << 24 | b[1] << 16 | b[2] << 8 | b[3];
        if (n && !fread(b + 4, n, 1, stdin)) return 1;
        putchar(0), fwrite(b, 4 + n, 1, stdout), fflush(stdout);
    }
    return 0;
}`

const bothEnds = `#include <mvm.h>
#include <stdlib.h>
int main(int n, char **a) {
    char item[64] = "sixteen bytes ..";
    mvm_port *p = mvm_open("p");
    if (!p) return 1;
    for (long k = atol(a[1]); k > 0; k--)
        if (mvm_enqueue(p, item, 16)) return 2;
    if (n > 2)
        while (mvm_dequeue(p, item, sizeof item) == 16) ;
    return 0;
}`

// BenchmarkRegisteredCodec is what an item costs that goes from one program to another
// through a queue, without a codec and with one that does nothing: processor time of
// the MVM process, the codec and both programs.
func BenchmarkRegisteredCodec(b *testing.B) {
	dir := b.TempDir()
	for parent := dir; parent != "/"; parent = filepath.Dir(parent) { // as the cache of builds is readable
		if info, err := os.Stat(parent); err == nil && info.Mode().Perm()&0o005 != 0o005 {
			os.Chmod(parent, info.Mode().Perm()|0o055)
		}
	}
	for name, source := range map[string]string{"same": sameCodec, "ends": bothEnds} {
		if err := os.WriteFile(dir+"/"+name+".c", []byte(source), 0o644); err != nil {
			b.Fatal(err)
		}
		line := []string{"-O2", "-I../../queuevm/c", dir + "/" + name + ".c", "-o", dir + "/" + name}
		if name == "ends" {
			line = append(line, "../../queuevm/c/mvm.c", "-lpthread")
		}
		if out, err := exec.Command("gcc", line...).CombinedOutput(); err != nil {
			b.Skipf("SKIPPED: %v %s", err, out)
		}
	}
	binary := slim(b)
	best, err := Confine(binary, Subreaper)
	if err != nil || best.Level < 0 {
		b.Skipf("SKIPPED: this machine cannot confine a codec: %v, missing %v", err, best.Missing)
	}
	for _, codec := range []bool{false, true} {
		b.Run(fmt.Sprint("codec=", codec), func(b *testing.B) {
			l := launch(b, binary, Subreaper, func(s *Start) { s.Confinement, s.LogicTime = best.Level, time.Minute })
			queue := Queue{Queue: queuevm.Queue{ID: 1, Name: "items", Type: queuevm.QueueFifo, Full: queuevm.FullBlock, Capacity: 1 << 20}}
			if codec {
				queue.Steps = []Step{{Program: "same@1"}}
			}
			var before, after syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &before)
			l.must(Request{Instantiate: &Instantiate{
				Processes: []ProcessSpec{
					{ID: 0, Task: "giver", Count: 1, Command: []string{dir + "/ends", fmt.Sprint(b.N)}},
					{ID: 1, Task: "taker", Count: 1, Command: []string{dir + "/ends", "0", "take"}},
				},
				Queues: []Queue{queue}, Logic: []Logic{{Source: "codec:same@1", Artifact: dir, Command: []string{dir + "/same"}}},
				Channels: []queuevm.Channel{
					{ID: 1, From: queuevm.Endpoint{Process: 0, Port: "p"}, To: queuevm.Endpoint{Queue: 1}},
					{ID: 2, From: queuevm.Endpoint{Queue: 1}, To: queuevm.Endpoint{Process: 1, Port: "p"}},
				},
			}})
			for id := range 2 {
				if s := l.await(id); s.State != "exited" || s.ExitCode != 0 {
					b.Fatalf("%+v", s)
				}
			}
			l.terminate()
			_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &after)
			used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(used)/float64(b.N), "cpu-ns/op")
		})
	}
}

// failure waits for the reason why the attempt cannot go on.
func (l *launched) failure() string {
	l.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		select {
		case e := <-l.Events():
			if e.Failure != "" {
				return e.Failure
			}
		case <-limit:
			l.t.Fatal("the attempt does not fail")
		}
	}
}

// confinements runs a test at every level of cleaning, and at every level of
// confinement that works there.
func confinements(t *testing.T, test func(t *testing.T, binary *os.File, cleaning string, level int)) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		best, err := Confine(binary, cleaning)
		if err != nil || best.Level < 0 {
			t.Skipf("SKIPPED: this machine cannot confine a codec: %v, missing %v", err, best.Missing)
		}
		t.Logf("level %d, missing %v", best.Level, best.Missing)
		for _, level := range confine.Levels() {
			if int(level) < best.Level || level == confine.Alone && slices.Contains(best.Missing, confine.Landlock) {
				continue
			}
			t.Run([]string{"as-nobody", "as-self", "as-root", "alone"}[level], func(t *testing.T) { test(t, binary, cleaning, int(level)) })
		}
	})
}

// A hostile codec reaches nothing: no file of the job, no socket, no process, no
// more memory than it may have; and it does not outlive the attempt.
func TestHostileCodec(t *testing.T) {
	logic := hostile(t)
	confinements(t, func(t *testing.T, binary *os.File, cleaning string, level int) {
		l := confined(t, binary, cleaning, level, 20*time.Second, logic)
		if got := l.ask("hello"); got != "hello encode some type" {
			t.Fatalf("it says %q", got)
		}
		if got := l.ask("sees"); got != "[0, 1, 2] {} (0, 0)" {
			t.Errorf("its descriptors, environment and largest file are %s", got)
		}
		for _, attack := range []string{"read_job " + l.dir, "write " + l.dir, "network", "fork", "signals", "memory", "privileges"} {
			if got := l.ask(attack); !strings.HasPrefix(got, "no: ") {
				t.Errorf("%s: %s", attack, got)
			} else if testing.Verbose() {
				t.Logf("%s: %.300s", attack, got)
			}
		}
		if s := l.must(Request{Inspect: &struct{}{}}).Inspect; len(s.Processes) != 1 || s.Processes[0].State != "running" {
			t.Errorf("the job's process did not live through it: %+v", s.Processes)
		}
		if len(withMark(logic.Artifact)) == 0 {
			t.Error("the codec does not show among the processes: the test proves nothing")
		}
		l.terminate()
		nothingLeft(t, logic.Artifact)
	})
}

// A codec that ends, hangs or talks nonsense fails the attempt, with what
// happened; and even a killed MVM process leaves none.
func TestFailingCodec(t *testing.T) {
	logic := hostile(t)
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		best, err := Confine(binary, cleaning)
		if err != nil || best.Level < 0 {
			t.Skipf("SKIPPED: this machine cannot confine a codec: %v, missing %v", err, best.Missing)
		}
		for attack, want := range map[string]string{
			"crash":  "it was ended by SIGSEGV and gave no answer",
			"leave":  "it ended with exit status 3 and gave no answer; it printed last: I am tired",
			"hang":   "it did not answer within 3s",
			"wrong":  "it answers with the status 7",
			"huge":   "it answers with 4294967295 bytes, over the limit of",
			"half":   "it did not answer within 3s",
			"refuse": "not this one",
		} {
			t.Run(attack, func(t *testing.T) {
				limit := 30 * time.Second // a busy machine takes a while to start it
				if strings.HasSuffix(want, "within 3s") {
					limit = 3 * time.Second
				}
				l := confined(t, binary, cleaning, best.Level, limit, logic)
				l.must(Request{Enqueue: &Enqueue{Queue: "in", Items: [][]byte{[]byte("fine"), []byte(attack)}, Timeout: time.Second}})
				got := l.failure()
				if !strings.HasPrefix(got, "queue items: item 2 of ") || !strings.Contains(got, "step 1, encode hostile@1 some type: "+want) {
					t.Errorf("the attempt fails with %q, want %q", got, want)
				}
				if attack == "hang" {
					l.Kill() // as a machine that runs out of memory might
					<-l.Done()
					eventually(t, "no codec is left", func() bool { return len(withMark(logic.Artifact)) == 0 })
					return
				}
				l.terminate()
				nothingLeft(t, logic.Artifact)
			})
		}
	})
}

// What was not built, or cannot be confined, does not start.
func TestCodecThatCannotStart(t *testing.T) {
	logic := hostile(t)
	binary := slim(t)
	for _, wrong := range []struct {
		level int
		known []Logic
		want  string
	}{{-1, []Logic{logic}, "cannot confine it"}, {int(confine.Alone), nil, "codec:hostile@1 was not built on this node"}} {
		l := launch(t, binary, Subreaper, func(s *Start) { s.Confinement = wrong.level })
		_, err := l.call(Request{Instantiate: &Instantiate{
			Queues: []Queue{{Queue: queuevm.Queue{ID: 1, Name: "items", Type: queuevm.QueueFifo, Full: queuevm.FullBlock}, Steps: []Step{{Program: "hostile@1"}}}},
			Logic:  wrong.known,
			Channels: []queuevm.Channel{
				{ID: 1, From: queuevm.Endpoint{Outside: "in"}, To: queuevm.Endpoint{Queue: 1}},
				{ID: 2, From: queuevm.Endpoint{Queue: 1}, To: queuevm.Endpoint{Outside: "out"}},
			},
		}})
		if err == nil || !strings.Contains(err.Error(), wrong.want) || !strings.Contains(err.Error(), "queue items") {
			t.Errorf("%v, want %q", err, wrong.want)
		}
	}
}

// The program to confine travels as an argument of a process.
func TestConfinedArguments(t *testing.T) {
	want := confine.Program{Argv: []string{"/bin/a", "b c", ""}, Folders: []string{"/x"}, DataMiB: 7, Level: confine.AsRoot, Dies: true}
	var got confine.Program
	if err := json.Unmarshal([]byte(want.Arguments()[0]), &got); err != nil || !slices.Equal(got.Argv, want.Argv) || got.Level != want.Level || !got.Dies {
		t.Errorf("%+v %v", got, err)
	}
}
