package worker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/osvm/vmtest"
)

// streams is a job of two processes, on the nodes of two names, which send each
// other numbers, one every few milliseconds, and die of one that is lost, doubled or
// out of turn. The second ends when there is a file, the first when the second does.
// Each says from time to time how many it has.
func streams(first, second, file string) map[string]string {
	return map[string]string{
		"job.xml": fmt.Sprintf(`<job xmlns="urn:mvm:1" name="streams">
  <source name="side" language="c"><file path="side.c"/></source>
  <task name="left" source="side"><argument>-</argument><resources><require property="name" equals="%s"/></resources><output name="left.txt"/></task>
  <task name="right" source="side"><argument>%s</argument><resources><require property="name" equals="%s"/></resources><output name="right.txt"/></task>
  <edge from="left:wire" to="right:wire"/>
  <edge from="right:wire" to="left:wire"/>
  <policy wallTime="600"/>
</job>`, first, file, second),
		"side.c": `#include <mvm.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
	mvm_port *wire = mvm_open("wire");
	long item[3], sent[3] = {0, 0, 0}, got = 0, sum = 0, over = 0, last;
	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		struct timespec pace = {0, 3000000};
		nanosleep(&pace, NULL);
		last = over || argv[1][0] == '/' && access(argv[1], F_OK) == 0;
		if (!sent[2]) {
			sent[0]++, sent[1] = sent[1] * 31 + sent[0], sent[2] = last;
			if (mvm_enqueue(wire, sent, sizeof sent) < 0) return 1;
		}
		while (!over && mvm_try_dequeue(wire, item, sizeof item) == sizeof item) {
			got++, sum = sum * 31 + got;
			if (item[0] != got || item[1] != sum) {
				printf("number %ld with sum %ld comes where %ld with %ld is due\n", item[0], item[1], got, sum);
				return 2;
			}
			over = item[2];
			if (got % 20 == 0) printf("has %ld\n", got);
		}
		if (over && sent[2]) break;
	}
	FILE *f = fopen(argv[1][0] == '/' ? "right.txt" : "left.txt", "w");
	fprintf(f, "%ld %ld\n", sent[0], got);
	return fclose(f);
}
`,
	}
}

// has is how many numbers a process of such a job has said that it has.
func (l *lab) has(job, process string) (most int) {
	text, _ := l.mvm("logs", job, "--process", process)
	for line := range strings.Lines(text) {
		_, _ = fmt.Sscanf(line, "has %d", &most)
	}
	return most
}

// more waits until both processes have some numbers more than they have.
func (l *lab) more(job string) {
	l.t.Helper()
	for _, process := range []string{"left[0]", "right[0]"} {
		begin := l.has(job, process)
		for deadline := time.Now().Add(vmtest.Limit); l.has(job, process) < begin+60; time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				l.t.Fatalf("%s has %d numbers, as it had %v ago: mvm job says\n%s", process, begin, vmtest.Limit, l.must("job", job))
			}
		}
	}
}

// agree ends such a job, and says that each side has what the other has sent.
func (l *lab) agree(job, file string) {
	l.t.Helper()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.eventually("done", job, func(text string) bool { return strings.Contains(text, "succeeded") }, "job", job)
	var counts [2][2]int
	for i, side := range []string{"left", "right"} {
		if _, err := fmt.Sscan(l.must("output", job, side+".txt", "-o", "-"), &counts[i][0], &counts[i][1]); err != nil {
			l.t.Fatal(err)
		}
	}
	l.t.Logf("sent and received: %v", counts)
	if counts[0][0] != counts[1][1] || counts[0][1] != counts[1][0] || counts[0][0] < 100 {
		l.t.Errorf("the sides have sent and received %v", counts)
	}
}

// TestMoveAmidMessages moves a VM, which is a node, while a process in it and one
// outside send each other a stream of numbers; and then has the node end from which
// it came: peers and broker know where it is.
func TestMoveAmidMessages(t *testing.T) {
	l := newLab(t, 2)
	l.must("vm", "create", "minimal", "--name", "mover", "--memory", "192", "--node", "worker1")
	for deadline := time.Now().Add(vmtest.Limit); !strings.Contains(l.must("nodes"), "mover"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the VM is no node: mvm nodes says\n%s", l.must("nodes"))
		}
	}
	file := filepath.Join(l.dir, "enough")
	text := l.must("submit", l.write(streams("mover", "worker2", file)))
	job, _, _ := strings.Cut(text, "\n")
	l.more(job)
	t.Log(l.must("vm", "migrate", "mover", "worker2"))
	l.more(job)
	l.workers[0].Kill()
	l.more(job)
	l.agree(job, file)
	l.must("vm", "destroy", "mover")
}
