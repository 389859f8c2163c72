package node

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mvm/services/image"
	"mvm/wsdl"
)

// disk is the room on a folder's file system, in bytes.
type disk struct {
	dir        string
	free, size int64
}

func diskOf(dir string) (disk, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return disk{}, fmt.Errorf("look how full the disk of %s is: %w", dir, err)
	}
	return disk{dir, int64(s.Bavail) * s.Bsize, int64(s.Blocks) * s.Bsize}, nil
}

// floor is what attempts must leave free: the results of others, reports and
// the node itself need some room, and a writer is not stopped at once.
func (d disk) floor() int64 { return min(1<<30, d.size/20) }

// spare is how many MiB attempts and VMs may fill.
func (d disk) spare() int64 { return max(0, d.free-d.floor()) >> 20 }

// toldSteps is in how many steps at least the free disk is told: each change that is
// told is one more that is written down and looked at.
const toldSteps = 16

// freeDisk is what the node tells of its disk, nil when that cannot be known.
func (n *Node) freeDisk() *int64 {
	d, err := diskOf(n.folders.root)
	if err != nil {
		return nil
	}
	free := d.spare()
	return wsdl.Of(free &^ (int64(1)<<max(0, bits.Len64(uint64(free/toldSteps))-1) - 1))
}

// diskFor refuses a VM that may fill more than the disk has: its memory, which may
// come to be a file, and what its limit lets it write.
func (n *Node) diskFor(memoryMiB, limitMiB int64) error {
	d, err := diskOf(n.folders.root)
	if err != nil || d.spare() >= memoryMiB+limitMiB {
		return nil // or whoever writes says so
	}
	return wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s has no room on its disk for the VM, which may fill %d MiB: %s, and %s must stay free", n.id, memoryMiB+limitMiB, d, amount(d.floor())),
		"free some space there, limit the VM's disk (disk), or choose another node")
}

func (d disk) String() string {
	return fmt.Sprintf("%s of %s are free in %s", amount(d.free), amount(d.size), d.dir)
}

func amount(bytes int64) string {
	if bytes < 10<<20 {
		return fmt.Sprintf("%d KiB", bytes>>10)
	}
	return fmt.Sprintf("%d MiB", bytes>>20)
}

// isFull tells whether an error says that a disk is full. Of those that a
// compiler or the MVM process met only the words arrive.
func isFull(err error) bool {
	if err == nil {
		return false
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || image.IsFull(err) {
		return true
	}
	return fullWords(err.Error())
}

// fullWords tells whether a line of a text ends as errors about a full disk do.
func fullWords(text string) bool {
	for line := range strings.Lines(strings.ToLower(text)) {
		line = strings.ReplaceAll(strings.TrimSpace(line), "'", "") // the assembler quotes it
		if strings.HasSuffix(line, ": "+unix.ENOSPC.Error()) || strings.HasSuffix(line, ": "+unix.EDQUOT.Error()) {
			return true
		}
	}
	return false
}

// used is what is below a folder, in bytes. What is removed meanwhile counts as
// nothing.
func used(dir string) (bytes int64) {
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		var s unix.Stat_t
		if err == nil && unix.Lstat(path, &s) == nil {
			bytes += s.Blocks * 512
		}
		return nil
	})
	return bytes
}

// guardPause is between two looks at the disk while an attempt is held.
const guardPause = 200 * time.Millisecond

// guard ends the attempt when the disk is nearly full and it is this attempt
// that takes most of it. While it is being started that is a refusal: elsewhere
// there may be room.
func (r *runner) guard() {
	ticker := time.NewTicker(guardPause)
	defer ticker.Stop()
	for {
		select {
		case <-r.ctx.Done():
			return
		case <-ticker.C:
		}
		d, err := r.disk()
		if err != nil || d.free >= d.floor() {
			continue
		}
		mine := r.wrote()
		if mine < d.floor() || mine < r.node.mostUsed(r) {
			continue
		}
		most := fmt.Errorf("%s must stay free, and attempt %s takes most, %s: let it write less, or place it where there is more room", amount(d.floor()), r.key, amount(mine))
		if !r.starve(most) {
			r.node.step(lost{key: r.key, reason: fmt.Sprintf("the disk of node %s is nearly full: %s, and %v", r.node.id, d, most)})
		}
		return
	}
}

// disk is that which its programs write to.
func (r *runner) disk() (disk, error) {
	if r.enclosed() != nil {
		return diskOf(r.node.folders.root)
	}
	return diskOf(r.work)
}

// wrote is what its programs have there, in bytes.
func (r *runner) wrote() int64 {
	if e := r.enclosed(); e != nil {
		return e.here().Written()
	}
	return used(r.work)
}

// mostUsed is what the attempt takes that takes most, but one.
func (n *Node) mostUsed(but *runner) (bytes int64) {
	n.mu.Lock()
	var others []*runner
	for _, r := range n.runners {
		if r != but {
			others = append(others, r)
		}
	}
	n.mu.Unlock()
	for _, r := range others {
		bytes = max(bytes, r.wrote())
	}
	return bytes
}
