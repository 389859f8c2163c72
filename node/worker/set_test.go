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

// await waits until what a node has logged holds the words so many times.
func (l *lab) await(log, words string, times int) {
	l.t.Helper()
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		text, _ := os.ReadFile(filepath.Join(l.dir, log+".log"))
		if strings.Count(string(text), words) >= times {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("%s has not logged %q %d times in %v", log, words, times, vmtest.Limit)
		}
	}
}

// crash ends a node and all its VMs at once, as if its machine had lost its power.
func (l *lab) crash(name string, n *launch.Node) (machines int) {
	l.t.Helper()
	_ = n.Cmd.Process.Kill()
	_ = n.Cmd.Wait()
	records, _ := filepath.Glob(filepath.Join(l.dir, name, "node", "vm", "machines", "*", "machine.json"))
	for _, path := range records {
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
		_ = os.RemoveAll(filepath.Dir(path))
		machines++
	}
	return machines
}

// pipeline is a job whose stages send each other items until it was restored: that
// is when a VM's clock, which its host sets then, is another than its uptime says.
// Each stage adds its index to an item, and dies of one that is lost, doubled or out
// of turn; the last and the first tell what they have seen.
func pipeline(stages int, policy string) map[string]string {
	return map[string]string{
		"job.xml": fmt.Sprintf(`<job xmlns="urn:mvm:1" name="pipeline">
  <source name="stage" language="c"><file path="stage.c"/></source>
  <task name="stage" source="stage" count="%d"/>
  <topology kind="line" over="stage"/>
  <policy wallTime="600" isolation="vm" image="minimal" %s/>
</job>`, stages, policy),
		"stage.c": `#include <mvm.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
static long at(void) {
	struct timespec clock, up;
	clock_gettime(CLOCK_REALTIME, &clock);
	clock_gettime(CLOCK_MONOTONIC, &up);
	return clock.tv_sec - up.tv_sec;
}
int main(void) {
	long sum = 0, began = at(), more = 100, next, item[2];
	int first = mvm_index() == 0, end = mvm_index() == mvm_count() - 1;
	mvm_port *in = first ? NULL : mvm_open("prev"), *out = end ? NULL : mvm_open("next");
	for (next = 1;; next++) {
		item[0] = more > 0 ? next : 0, item[1] = 0; // 0 is the end
		if (in && mvm_dequeue(in, item, sizeof item) != sizeof item) return 3;
		item[1] += mvm_index();
		if (out && mvm_enqueue(out, item, sizeof item) < 0) return 5;
		if (item[0] == 0) break;
		if (item[0] != next) { fprintf(stderr, "item %ld where %ld is due\n", item[0], next); return 4; }
		sum += item[0] * item[1];
		if (first) usleep(2000);
		if (first && at() - began > 1) more--;
	}
	printf("%ld items, sum %ld\n", next - 1, sum);
	return 0;
}`,
	}
}

// TestJobGoesOn has a job in several VMs, whose processes send each other items, lose
// one of its machines for good: it goes on from its last checkpoint, with a machine
// that had no part in it, and every item is counted exactly once.
func TestJobGoesOn(t *testing.T) {
	const stages = 2
	l := newLab(t, stages+1, "--lease", "2s")
	job := strings.Fields(l.must("submit", l.write(pipeline(stages, `nodes="2" checkpoint="1" retries="5"`))))[0]
	l.await("front", "checkpoint of the job is made", 1)
	status := l.must("job", job)
	for i, n := range l.workers {
		if name := fmt.Sprintf("worker%d", i+1); strings.Contains(status, name) {
			if machines := l.crash(name, n); machines != 1 {
				t.Errorf("%s had %d VMs", name, machines)
			}
			t.Logf("%s is lost, of\n%s", name, status)
			break
		}
	}
	l.eventually("ended", job, func(text string) bool { return strings.Contains(text, "succeeded") || strings.Contains(text, "failed") }, "job", job)
	status = l.must("job", job)
	t.Log(status)
	if !strings.Contains(status, "succeeded") {
		t.Fatal("the job did not go on to its end")
	}
	// The last stage has of each item the sum of all indices.
	var items, sum int
	said := l.must("logs", job, "--process", fmt.Sprintf("stage[%d]", stages-1))
	if n, err := fmt.Sscanf(said, "%d items, sum %d\n", &items, &sum); n != 2 || items < 100 || sum != items*(items+1)/2*(stages*(stages-1)/2) {
		t.Errorf("the last stage says %q: %v", said, err)
	}
	if first := l.must("logs", job, "--process", "stage[0]"); first != fmt.Sprintf("%d items, sum 0\n", items) {
		t.Errorf("the first stage says %q, and the last %q", first, said)
	}
	l.await("front", "the job goes on from its checkpoint", 1)
	l.clean()
}
