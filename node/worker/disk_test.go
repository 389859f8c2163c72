package worker

import (
	"fmt"
	"strings"
	"testing"

	"mvm/osvm/vmtest"
	"mvm/services/image"
)

// onDisk runs the same job in VMs whose root is a disk, as in the image with gcc,
// which would be too dear here: the disk has what the minimal image has.
func (l *lab) onDisk(t *testing.T) {
	made, disk := vmtest.Image(t), vmtest.Disk(t)
	l.push("disk", image.Manifest{CommandLine: "mvm.root=/dev/vda"}, map[image.Part]string{image.Kernel: made.Kernel, image.Initrd: made.Initrd, image.Disk: disk})
	text := l.must("submit", example+"enclosed.xml", "--param", "image=disk", "--wait")
	job, _, _ := strings.Cut(text, "\n")
	if sum := l.must("output", job, "sum.txt", "-o", "-"); sum != fmt.Sprintln(2000*2001/2) {
		t.Errorf("the sum is %q; mvm submit said\n%s", sum, text)
	}
}
