package worker

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/osvm/vmtest"
	"mvm/services/image"
)

// pushDisk registers the image "disk".
func (l *lab) pushDisk(t *testing.T) {
	made, disk := vmtest.Image(t), vmtest.Disk(t)
	l.push("disk", image.Manifest{CommandLine: "mvm.root=/dev/vda"}, map[image.Part]string{image.Kernel: made.Kernel, image.Initrd: made.Initrd, image.Disk: disk})
}

// onDisk runs the same job in VMs whose root is a disk, as in the image with gcc,
// which would be too dear here: the disk has what the minimal image has.
func (l *lab) onDisk(t *testing.T) {
	l.pushDisk(t)
	text := l.must("submit", example+"enclosed.xml", "--param", "image=disk", "--wait")
	job, _, _ := strings.Cut(text, "\n")
	if sum := l.must("output", job, "sum.txt", "-o", "-"); sum != fmt.Sprintln(2000*2001/2) {
		t.Errorf("the sum is %q; mvm submit said\n%s", sum, text)
	}

	// What a person makes of the image goes on from a checkpoint, too, is cloned, and moves.
	l.must("vm", "create", "disk", "--name", "lab1", "--node", "worker1")
	said := strings.Fields(l.must("vm", "checkpoint", "lab1"))
	l.must("vm", "restore", said[len(said)-1], "--name", "lab2", "--node", "worker2")
	l.must("vm", "clone", "lab1", "--name", "lab3")
	l.must("vm", "migrate", "lab1", "worker2")
	for _, id := range []string{"lab1", "lab2", "lab3"} {
		if text := l.must("vm", "inspect", id); !strings.Contains(text, "running") || !strings.Contains(text, "disk@1") {
			t.Errorf("%s is not as it was:\n%s", id, text)
		}
		l.must("vm", "destroy", id)
	}
}

// noRoom has a node whose disk has no room for a VM: it is not chosen, and refuses.
func (l *lab) noRoom(t *testing.T) {
	small := filepath.Join(l.dir, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=100m"); err != nil {
		t.Skip("SKIPPED: no node had a small disk: none can be mounted here: ", err)
	}
	defer func() { _ = unix.Unmount(small, unix.MNT_DETACH) }()
	node := l.worker("small", "127.0.0.1:0")
	text, err := l.mvm("vm", "create", "minimal", "--name", "lab4", "--node", "small")
	if err == nil || !strings.Contains(text, "no room on its disk for the VM") || !strings.Contains(text, "of 100 MiB are free in "+small) {
		t.Errorf("created on a disk of 100 MiB: %v, %s", err, text)
	}
	if text := l.must("nodes", "small"); !regexp.MustCompile(`disk free: +[89]`).MatchString(text) {
		t.Errorf("mvm nodes small says\n%s", text)
	}
	files := streams("small", "worker1", `isolation="vm" image="minimal"`)
	job, _, _ := strings.Cut(l.must("submit", l.write(files)), "\n")
	l.eventually("waiting for a disk", job, func(text string) bool { return strings.Contains(text, "MiB of disk free, fewer than the") }, "job", job)
	l.must("cancel", job)
	if err := node.Stop(); err != nil {
		t.Error(err)
	}
}

// TestDiskFullUnderAJobsVM fills the disk of a node under jobs whose VMs write to theirs:
// one that takes most of it is ended with that reason, another one waits for room.
func TestDiskFullUnderAJobsVM(t *testing.T) {
	if os.Getenv("MVM_SOAK") == "" {
		t.Skip("SKIPPED: no disk was filled under a job's VM: that is for MVM_SOAK=1, as it takes half a GiB of memory")
	}
	small := ""
	l := newLabOn(t, 1, func(dir string) {
		small = filepath.Join(dir, "worker1")
		if err := os.Mkdir(small, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=520m"); err != nil {
			t.Skip("SKIPPED: no disk was filled under a job's VM: no small one can be mounted here: ", err)
		}
		t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	})
	l.pushDisk(t)
	begin := func(mebibytes int) (job, vm string) {
		t.Helper()
		text := l.must("submit", l.write(map[string]string{
			"job.xml": fmt.Sprintf(`<job xmlns="urn:mvm:1" name="writer">
  <source name="write" language="c"><file path="write.c"/></source>
  <task name="write" source="write"><argument>%d</argument></task>
  <edge from="outside:go" to="write:go"/>
  <policy wallTime="600" isolation="vm" image="disk"/>
</job>`, mebibytes),
			"write.c": `#include <fcntl.h>
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(int argc, char **argv) {
	static char block[1 << 20];
	mvm_port *go = mvm_open("go");
	printf("ready\n");
	fflush(stdout);
	if (mvm_dequeue(go, block, sizeof block) < 0) return 1;
	int file = open("/var/tmp/big", O_WRONLY | O_CREAT, 0600);
	for (int i = 0; i < atoi(argv[1]); i++)
		if (write(file, block, sizeof block) != sizeof block || fdatasync(file) != 0) return perror("write"), 1;
	printf("wrote all\n");
	return 0;
}
`}))
		job, _, _ = strings.Cut(text, "\n")
		l.eventually("ready", job, func(text string) bool { return strings.Contains(text, "ready") }, "logs", job, "--process", "write[0]")
		found, _ := filepath.Glob(filepath.Join(small, "node", "vm", "machines", "job-"+job+"*"))
		if len(found) != 1 {
			t.Fatalf("VMs of job %s: %v", job, found)
		}
		return job, filepath.Base(found[0])
	}
	fill := func(leave int64) (free func()) {
		t.Helper()
		var s unix.Statfs_t
		if err := unix.Statfs(small, &s); err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(small, "fill")
		if err := os.WriteFile(name, make([]byte, max(0, int64(s.Bavail)*s.Bsize-leave<<20)), 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
		return func() {
			if err := os.Remove(name); err != nil {
				t.Fatal(err)
			}
		}
	}
	tell := func(job string) {
		t.Helper()
		put := exec.CommandContext(t.Context(), program, "queue", "put", job, "go")
		put.Env = append(os.Environ(), "MVM_GRID="+l.front.URL)
		put.Stdin = strings.NewReader("go\n")
		if text, err := put.CombinedOutput(); err != nil {
			t.Fatalf("mvm queue put: %v\n%s", err, text)
		}
	}

	job, _ := begin(34)
	free := fill(40) // of which 26 are to stay
	tell(job)
	l.failed(job, "takes most")
	free()

	job, vm := begin(10)
	free = fill(2)
	tell(job)
	l.eventually("waiting for room", job, func(text string) bool {
		return strings.Contains(text, "suspended") && strings.Contains(text, "has no room for what it writes")
	}, "vm", "inspect", vm)
	free()
	l.eventually("done", job, func(text string) bool { return strings.Contains(text, "succeeded") }, "job", job)
	l.clean()
}
