package osvm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// What the disk with gcc has, and how large its file system is: of the file only
// what is used takes room.
const (
	gccDiskMiB      = 1024
	gccImageMiB     = 256 // memory that compiling C++ needs
	diskUUID        = "6d766d21-0000-4000-8000-000000000001"
	rootCommandLine = "mvm.root=/dev/vda"
)

var (
	gccPackages = []string{"gcc", "g++"}
	gccLeaveOut = []string{"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/gdb", "usr/share/gcc"}
	gccFolders  = []string{"dev", "etc", "newroot", "proc", "root", "run", "sys", "tmp", "var/tmp"}
	gccLinks    = map[string]string{"usr/bin/cc": "gcc", "usr/bin/c++": "g++"}
)

// BuildGCC makes an image in folder, as kernel, initrd and disk, whose root is a
// disk with gcc and g++. It needs what BuildMinimal needs, besides mke2fs and
// qemu-img. A program is compiled there as on any machine of Debian, so that it
// needs no client.
func BuildGCC(ctx context.Context, folder string, agent []byte, _ fs.FS) (Image, error) {
	disk := filepath.Join(folder, "disk")
	image := Image{
		Kernel: filepath.Join(folder, "kernel"), Initrd: filepath.Join(folder, "initrd"), Disks: []Disk{{Path: disk, Format: QCOW2}},
		CommandLine: rootCommandLine, LeastMemoryMiB: gccImageMiB,
	}
	kernel, err := newestKernel(ctx)
	if err != nil {
		return image, err
	}
	names, err := closure(ctx, gccPackages)
	if err != nil {
		return image, err
	}
	temporary, err := os.MkdirTemp(folder, "packages-")
	if err != nil {
		return image, err
	}
	defer os.RemoveAll(temporary)
	p, err := download(ctx, temporary, append([]string{kernel, busyboxPackage}, names...)...)
	if err != nil {
		return image, err
	}
	image.Release = fmt.Sprintf("%s %s, gcc %s", strings.TrimPrefix(kernel, "linux-image-"), p.version(kernel), p.version("gcc"))
	unpacked, order, err := kernelOf(ctx, p, kernel, guestModules) // ext4 is a part of the kernel
	if err != nil {
		return image, err
	}
	files := map[string]guestFile{initAt: {0o755, agent}}
	addModules(files, order)
	initrd, err := pack(files, nil, "dev", "proc", "run", "sys", "tmp", "newroot")
	if err == nil {
		initrd, err = compress(initrd)
	}
	if err != nil {
		return image, err
	}
	root := filepath.Join(temporary, "root")
	if err := layRoot(ctx, root, p, names); err != nil {
		return image, err
	}
	if err := makeDisk(ctx, temporary, root, disk); err != nil {
		return image, fmt.Errorf("make the disk with gcc: %w", err)
	}
	for name, content := range map[string][]byte{image.Kernel: unpacked, image.Initrd: initrd} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return image, err
		}
	}
	return image, nil
}

// closure is packages and all that they depend on.
func closure(ctx context.Context, packages []string) ([]string, error) {
	text, err := run(ctx, "", append([]string{"apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}, packages...)...)
	if err != nil {
		return nil, fmt.Errorf("ask what Debian's packages depend on: %w", err)
	}
	var names []string
	for line := range strings.Lines(text) {
		if name := strings.TrimSpace(line); !strings.HasPrefix(line, " ") && !strings.HasPrefix(name, "<") && !strings.ContainsAny(name, "|:") && name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// layRoot unpacks packages into a folder and adds what their scripts would.
func layRoot(ctx context.Context, root string, p *packages, names []string) error {
	for _, name := range names {
		if _, err := run(ctx, "", "dpkg-deb", "-x", p.files[name], root); err != nil {
			return err
		}
	}
	for _, name := range gccLeaveOut {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	for _, name := range gccFolders {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
	}
	files, links := map[string]guestFile{}, map[string]string{}
	addAccounts(files)
	if err := addBusybox(ctx, files, links, p); err != nil {
		return err
	}
	for name, target := range gccLinks {
		links[name] = target
	}
	for name, file := range files {
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755), os.WriteFile(filepath.Join(root, name), file.content, file.mode)); err != nil {
			return err
		}
	}
	for name, target := range links {
		at := filepath.Join(root, name)
		if _, err := os.Lstat(at); err == nil {
			continue // the real one
		}
		if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(target, at)); err != nil {
			return err
		}
	}
	return nil
}

// makeDisk makes a disk with an ext4 file system of a folder's files, which all
// belong to root there. The same files give the same bytes: it has no times of its
// own making.
func makeDisk(ctx context.Context, temporary, root, disk string) error {
	raw := filepath.Join(temporary, "disk.raw")
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		return err
	}
	if err := os.Truncate(raw, gccDiskMiB<<20); err != nil {
		return err
	}
	// Some have it in /usr/sbin, which is on root's PATH only.
	tool := "mke2fs"
	if _, err := exec.LookPath(tool); err != nil {
		tool = "/usr/sbin/mke2fs"
	}
	command := exec.CommandContext(ctx, tool, "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0", "-O", "^has_journal,^metadata_csum,^resize_inode,^64bit",
		"-U", diskUUID, "-E", "lazy_itable_init=0,nodiscard,hash_seed="+diskUUID, "-d", root, raw)
	command.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1", "SOURCE_DATE_EPOCH=1")
	if os.Geteuid() != 0 { // it writes down whose the files are
		command.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}}
	}
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs: %w: %s", err, strings.TrimSpace(string(said)))
	}
	if err := timeless(raw); err != nil {
		return err
	}
	if _, err := run(ctx, "", "qemu-img", "convert", "-q", "-c", "-m", "1", "-f", "raw", "-O", "qcow2", raw, disk); err != nil {
		_ = os.Remove(disk)
		return err
	}
	return nil
}

// Places in an ext4 file system of 4 KiB blocks without checksums of metadata
// (Linux, Documentation/filesystems/ext4). Numbers are little-endian.
const (
	extBlock         = 4096
	extSuper         = 1024
	extDescriptor    = 32
	extInode         = 256
	extInodesAt      = 0  // of the superblock: how many in all
	extGroupInodesAt = 40 // of the superblock: how many in a group
	extTableAt       = 8  // of a descriptor: the block where the group's inodes begin
)

// timeless sets the times of all files to the beginning: they tell when the
// packages were unpacked.
func timeless(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	little := binary.LittleEndian
	super := make([]byte, 1024)
	if _, err := file.ReadAt(super, extSuper); err != nil {
		return err
	}
	all, group := int(little.Uint32(super[extInodesAt:])), int(little.Uint32(super[extGroupInodesAt:]))
	if little.Uint16(super[56:]) != 0xef53 || group == 0 || all%group != 0 {
		return errors.New("what mke2fs has made is no ext4 file system")
	}
	descriptor, inodes := make([]byte, extDescriptor), make([]byte, group*extInode)
	for g := range all / group {
		if _, err := file.ReadAt(descriptor, extBlock+int64(g)*extDescriptor); err != nil {
			return err
		}
		at := int64(little.Uint32(descriptor[extTableAt:])) * extBlock
		if _, err := file.ReadAt(inodes, at); err != nil {
			return err
		}
		changed := false
		for i := range group {
			inode := inodes[i*extInode : (i+1)*extInode]
			for _, time := range []int{0x08, 0x0c, 0x10, 0x84, 0x88, 0x8c, 0x90, 0x94} { // accessed, changed, modified, their parts of seconds, created
				changed = changed || little.Uint32(inode[time:]) != 0
				little.PutUint32(inode[time:], 0)
			}
		}
		if !changed {
			continue // most are holes
		}
		if _, err := file.WriteAt(inodes, at); err != nil {
			return err
		}
	}
	return nil
}
