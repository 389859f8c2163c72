package guest

import (
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// rootOption is what the kernel's command line names the disk by that is the root
// of all, an ext4 file system.
const rootOption = "mvm.root="

func rootDisk() (string, error) {
	text, err := os.ReadFile("/proc/cmdline")
	for word := range strings.FieldsSeq(string(text)) {
		if disk, ok := strings.CutPrefix(word, rootOption); ok {
			return disk, nil
		}
	}
	return "", err
}

// moveTo makes a disk the root of this process and all that it starts. What was
// the root before stays beneath, and its memory with it: it is the kernel's first.
func moveTo(disk string) error {
	const at = "/newroot"
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		err := unix.Mount(disk, at, "ext4", unix.MS_NOATIME, "")
		if err == nil {
			break
		}
		if !errors.Is(err, unix.ENOENT) || time.Since(begin) > portLimit { // the kernel finds disks beside us
			return err
		}
	}
	// What the initial file system has of files is of no use any more.
	for _, name := range []string{"/modules", "/bin", "/usr"} {
		_ = os.RemoveAll(name)
	}
	if err := errors.Join(unix.Chdir(at), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), unix.Chdir("/")); err != nil {
		return err
	}
	return mount()
}
