package worker

import (
	"fmt"
	"os"
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
	if text := l.must("nodes", "small"); !regexp.MustCompile(`disk free: +9`).MatchString(text) {
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
