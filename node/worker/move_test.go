package worker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mvm/osvm/vmtest"
)

// streams is a job of two processes, on the nodes of two names, which send each
// other numbers, one every few milliseconds, and die of one that is lost, doubled or
// out of turn. They end when an item comes from outside. Each says from time to time
// how many it has. Where they can write to a disk they do so with each number, and die
// when it does not have what they wrote. Where the policy says network="job", each number
// goes over a TCP connection in that network, too.
func streams(first, second, policy string) map[string]string {
	ethernet := fmt.Sprint(strings.Contains(policy, `network="job"`))
	return map[string]string{
		"job.xml": fmt.Sprintf(`<job xmlns="urn:mvm:1" name="streams">
  <source name="side" language="c"><file path="side.c"/></source>
  <task name="left" source="side"><argument>left.txt</argument><argument>told</argument><argument>%[4]s</argument><resources><require property="name" equals="%[1]s"/></resources><output name="left.txt"/></task>
  <task name="right" source="side"><argument>right.txt</argument><argument>asked</argument><argument>%[4]s</argument><resources><require property="name" equals="%[2]s"/></resources><output name="right.txt"/></task>
  <edge from="left:wire" to="right:wire"/>
  <edge from="right:wire" to="left:wire"/>
  <edge from="outside:enough" to="right:enough"/>
  <policy wallTime="600" %[3]s/>
</job>`, first, second, policy, ethernet),
		"side.c": `#include <fcntl.h>
#include <mvm.h>
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
/* Writes a number to its place in a file and reads the one that was there, if not from
   the cache then from the disk. */
static int wear(int file, long number) {
	enum { places = 64, words = 512 };
	static long block[words];
	off_t at = number % places * sizeof block;
	if (number > places && (pread(file, block, sizeof block, at) != sizeof block || block[0] != number - places || block[words - 1] != number - places))
		return 0;
	for (int i = 0; i < words; i++) block[i] = number;
	if (pwrite(file, block, sizeof block, at) != sizeof block) return 0;
	if (number % 8 == 0) fdatasync(file), posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED);
	return 1;
}
static int joined(int listens) {
	struct addrinfo *right, hints;
	memset(&hints, 0, sizeof hints);
	hints.ai_family = AF_INET, hints.ai_socktype = SOCK_STREAM;
	if (getaddrinfo("right", "7000", &hints, &right) != 0) exit(4);
	for (int fd;; usleep(100000), close(fd)) {
		fd = socket(AF_INET, SOCK_STREAM, 0);
		if (!listens && connect(fd, right->ai_addr, right->ai_addrlen) == 0) return fd;
		if (listens && bind(fd, right->ai_addr, right->ai_addrlen) == 0 && listen(fd, 1) == 0) return accept(fd, NULL, NULL);
	}
}
static void whole(int fd, void *data, size_t size) {
	for (char *p = data; size > 0;) {
		ssize_t n = read(fd, p, size);
		if (n <= 0) perror("read"), exit(5);
		p += n, size -= n;
	}
}
int main(int argc, char **argv) {
	int asked = strcmp(argv[2], "asked") == 0, fd = strcmp(argv[3], "true") == 0 ? joined(asked) : -1;
	mvm_port *wire = mvm_open("wire"), *enough = asked ? mvm_open("enough") : NULL;
	long same[3], item[3], sent[3] = {0, 0, 0}, got = 0, sum = 0, over = 0;
	char any[16];
	sprintf(any, "/var/tmp/%d", getpid() % 100000);
	int file = open(any, O_RDWR | O_CREAT | O_EXCL, 0600);
	unlink(any);
	setvbuf(stdout, NULL, _IOLBF, 0);
	while (!over || !sent[2]) {
		struct timespec pace = {0, 8000000};
		nanosleep(&pace, NULL);
		if (!sent[2]) {
			sent[0]++, sent[1] = sent[1] * 31 + sent[0];
			sent[2] = over || enough && mvm_try_dequeue(enough, any, sizeof any) > 0;
			if (mvm_enqueue(wire, sent, sizeof sent) < 0) return 1;
			if (file >= 0 && !wear(file, sent[0])) {
				printf("the disk has lost number %ld\n", sent[0]);
				return 3;
			}
			if (fd >= 0 && write(fd, sent, sizeof sent) != sizeof sent) return perror("write"), 3;
		}
		while (!over && mvm_try_dequeue(wire, item, sizeof item) == sizeof item) {
			got++, sum = sum * 31 + got;
			if (fd >= 0) {
				whole(fd, same, sizeof same);
				if (memcmp(same, item, sizeof item) != 0) {
					printf("number %ld comes over the network where %ld is due\n", same[0], got);
					return 6;
				}
			}
			if (item[0] != got || item[1] != sum) {
				printf("number %ld with sum %ld comes where %ld with %ld is due\n", item[0], item[1], got, sum);
				return 2;
			}
			over = item[2];
			if (got % 10 == 0) printf("has %ld\n", got);
		}
	}
	FILE *f = fopen(argv[1], "w");
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
		for deadline := time.Now().Add(vmtest.Limit); l.has(job, process) < begin+40; time.Sleep(400 * time.Millisecond) {
			if time.Now().After(deadline) {
				l.t.Fatalf("%s has %d numbers, as it had %v ago: mvm job says\n%s", process, begin, vmtest.Limit, l.must("job", job))
			}
		}
	}
}

// agree ends such a job, and says that each side has what the other has sent.
func (l *lab) agree(job string) {
	l.t.Helper()
	put := exec.CommandContext(l.t.Context(), program, "queue", "put", job, "enough")
	put.Env = append(os.Environ(), "MVM_GRID="+l.front.URL)
	put.Stdin = strings.NewReader("enough\n")
	if text, err := put.CombinedOutput(); err != nil {
		l.t.Fatalf("mvm queue put: %v\n%s", err, text)
	}
	l.eventually("done", job, func(text string) bool { return strings.Contains(text, "succeeded") }, "job", job)
	var counts [2][2]int
	for i, side := range []string{"left", "right"} {
		if _, err := fmt.Sscan(l.must("output", job, side+".txt", "-o", "-"), &counts[i][0], &counts[i][1]); err != nil {
			l.t.Fatal(err)
		}
	}
	l.t.Logf("sent and received: %v", counts)
	if counts[0][0] != counts[1][1] || counts[0][1] != counts[1][0] || counts[0][0] < 80 {
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
	text := l.must("submit", l.write(streams("mover", "worker2", "")))
	job, _, _ := strings.Cut(text, "\n")
	l.more(job)
	t.Log(l.must("vm", "migrate", "mover", "worker2"))
	l.more(job)
	l.workers[0].Kill()
	l.more(job)
	l.agree(job)
	l.must("vm", "destroy", "mover")
}

// stream submits such a job in VMs of an image, the first of worker1 and the second of
// worker2, and waits until it runs; vm is the first.
func (l *lab) stream(image, policy string) (job, vm string) {
	l.t.Helper()
	text := l.must("submit", l.write(streams("worker1", "worker2", fmt.Sprintf(`isolation="vm" image="%s" %s`, image, policy))))
	job, _, _ = strings.Cut(text, "\n")
	l.more(job)
	found, _ := filepath.Glob(filepath.Join(l.dir, "worker1", "node", "vm", "machines", "job-"+job+"*"))
	if len(found) != 1 {
		l.t.Fatalf("VMs of job %s on worker1: %v", job, found)
	}
	return job, filepath.Base(found[0])
}

// move moves the VM of a job, and holds that it is where it was to go.
func (l *lab) move(job, vm, node string) {
	l.t.Helper()
	l.t.Log(l.must("vm", "migrate", vm, node))
	if text := l.must("vm", "ls"); !regexp.MustCompile(vm + ` +` + node + ` +running .* ` + job + `/1 `).MatchString(text) {
		l.t.Errorf("moved, it is not on %s: mvm vm ls says\n%s", node, text)
	}
}

// failed waits until a job has, for a reason.
func (l *lab) failed(job, why string) {
	l.t.Helper()
	l.eventually("failed, with the words: "+why, job, func(text string) bool {
		return strings.Contains(text, "failed") && strings.Contains(text, why)
	}, "job", job)
	l.clean()
}

// TestMoveOfAJobsVM has what would tear a job's checkpoints refused, and moves a VM
// that was made for a job, with its disk, to a third node, on to a second, and back: the
// job goes on, and the TCP connection in the network of its VMs, and with the job the VM is gone. So is it when the other node's machine
// ends, and then the job has failed with that reason.
func TestMoveOfAJobsVM(t *testing.T) {
	l := newLab(t, 3)
	l.pushDisk(t)
	job, vm := l.stream("disk", `network="job"`)
	for _, verb := range []string{"suspend", "resume", "checkpoint", "clone"} {
		if text, err := l.mvm("vm", verb, vm); err == nil || !strings.Contains(text, "with its whole job only") {
			t.Errorf("mvm vm %s of a job's VM: %v, %s", verb, err, text)
		}
	}
	for _, node := range []string{"worker3", "worker2", "worker1"} {
		l.move(job, vm, node)
		l.more(job)
		if text, err := l.mvm("vm", "migrate", vm, node); err == nil || !strings.Contains(text, "already") {
			t.Errorf("moved to where it is: %v, %s", err, text)
		}
	}
	l.agree(job)
	l.clean()

	job, vm = l.stream("minimal", "")
	l.move(job, vm, "worker3")
	l.must("vm", "stop", vm, "--force")
	l.failed(job, "its VM "+vm+" is lost: on node")
}
