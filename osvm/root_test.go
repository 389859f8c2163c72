package osvm_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// TestRootDisk starts a machine whose root is a disk, and a clone of it. The disk
// is made twice, and must be the same.
func TestRootDisk(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	image := vmtest.Image(t)
	folder := t.TempDir()
	var disks [2]string
	for i := range disks {
		root, temporary := filepath.Join(folder, "root"), t.TempDir()
		for _, name := range []string{"dev", "proc", "run", "sys", "tmp", "etc"} {
			if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(root, "etc", "hosts"), []byte(strings.Repeat("127.0.0.1 localhost\n", 1000)), 0o644); err != nil {
			t.Fatal(err)
		}
		disks[i] = filepath.Join(temporary, "disk")
		if err := osvm.MakeDisk(ctx, temporary, root, disks[i]); err != nil {
			t.Skip("SKIPPED: no machine was started from a disk: ", err, ": make setup installs what is missing")
		}
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
	}
	first, err := os.ReadFile(disks[0])
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(disks[1])
	if err != nil {
		t.Fatal(err)
	}
	if string(first) != string(second) {
		t.Error("two disks of the same files differ")
	}
	image.Disks = []osvm.Disk{{Path: disks[0], Format: osvm.QCOW2}}
	image.CommandLine, image.Digest = "mvm.root=/dev/vda", "sha256:"+t.Name()+folder // its template is of no use to other runs

	h, err := osvm.NewHost(ctx, osvm.HostConfig{Dir: t.TempDir(), QEMU: vmtest.QEMU(t), Accelerator: osvm.TCG})
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"one", "two"} {
		m := vmtest.MachineOf(t, h, osvm.Order{ID: id, Image: image, MemoryMiB: 128, Template: true})
		session := vmtest.Start(t, m)
		if hello := vmtest.Call[guest.Greeting](t, session, "Hello", guest.Nothing{}); hello.Root != "ext4" {
			t.Errorf("%s: its root is %q, not the disk", id, hello.Root)
		}
	}
	if after, err := os.ReadFile(disks[0]); err != nil || string(after) != string(first) {
		t.Errorf("the image's disk has changed: %v", err)
	}
}
