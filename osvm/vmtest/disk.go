package vmtest

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/pierrec/lz4/v4"
)

// Disk is a raw disk with all that the minimal image has, which can be its root:
// mvm.root=/dev/vda on the kernel's command line. Like the image it is made once.
func Disk(t testing.TB) string {
	t.Helper()
	made := Image(t)
	disk := filepath.Join(filepath.Dir(made.Initrd), "disk")
	if _, err := os.Stat(disk); err == nil {
		return disk
	}
	scratch := t.TempDir()
	root, raw := filepath.Join(scratch, "root"), disk+"."+filepath.Base(filepath.Dir(scratch))
	if err := unpack(made.Initrd, root); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(raw)
	const size = "96M" // twice what it has
	if said, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", root, raw, size).CombinedOutput(); err != nil {
		t.Skipf("SKIPPED: no VM began from a disk: mke2fs: %v, %s: make setup installs it", err, said)
	}
	if err := os.Link(raw, disk); err != nil && !os.IsExist(err) { // another test may have been quicker
		t.Fatal(err)
	}
	return disk
}

// unpack lays the files of an initial file system in a folder. It is the format of
// package osvm's: "newc" (Linux, Documentation/driver-api/early-userspace).
func unpack(initrd, folder string) error {
	packed, err := os.ReadFile(initrd)
	if err != nil {
		return err
	}
	rest, err := io.ReadAll(lz4.NewReader(bytes.NewReader(packed)))
	if err != nil {
		return err
	}
	const head = 110
	for len(rest) > head {
		field := func(n int) (value int) {
			_, _ = fmt.Sscanf(string(rest[6+8*n:14+8*n]), "%x", &value)
			return value
		}
		up := func(n int) int { return (n + 3) &^ 3 }
		mode, size, named := field(1), field(6), field(11)
		begin := up(head + named)
		name, content := string(rest[head:head+named-1]), rest[begin:begin+size]
		rest = rest[begin+up(size):]
		path := filepath.Join(folder, name)
		switch mode &^ 0o7777 {
		case 0o040000:
			err = os.MkdirAll(path, 0o755)
		case 0o120000:
			err = os.Symlink(string(content), path)
		case 0o100000:
			err = os.WriteFile(path, content, fs.FileMode(mode&0o777))
		}
		if err != nil {
			return err
		}
	}
	return nil
}
