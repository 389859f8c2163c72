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
	"strings"
)

// What stands in for a distribution's cloud image, none of which comes with
// Debian's packages: it starts as one does, by the firmware, a boot loader (GRUB),
// the kernel as Debian packs it, and an initial file system that looks for its root
// and leaves; but its init is a script, and that knows of cloud-init only how its
// NoCloud source is found and what bootcmd is.
const (
	stockInitrd = `#!/bin/sh
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
for name in $(cat /modules/order); do insmod /modules/$name.ko; done
mount /dev/vda1 /disk || poweroff -f
exec switch_root /disk /sbin/init
`
	stockInit = `#!/bin/sh
mount -t devtmpfs none /dev
mount -t proc none /proc
mount -t sysfs none /sys
mount -t tmpfs none /run
mkdir /run/seed
mount -t vfat -o ro "$(findfs LABEL=cidata)" /run/seed
if [ "$(head -n 1 /run/seed/user-data)" = '#cloud-config' ] && grep -q '^instance-id: ' /run/seed/meta-data; then
	sed -n '/^bootcmd:/,/^[a-z]*:$/s/^  - //p' /run/seed/user-data >/run/bootcmd
fi
umount /run/seed
sh /run/bootcmd
while :; do sleep 3600; done
`
	stockGRUB = `linux /boot/vmlinuz root=/dev/vda1 console=ttyS0 panic=-1 quiet
initrd /boot/initrd
boot
`
	stockSectors = 2048 // before the partition
	stockMiB     = 64
)

// StockDisk makes that disk, as a qcow2 file.
func StockDisk(ctx context.Context, folder string) (string, error) {
	kernel, err := newestKernel(ctx)
	if err != nil {
		return "", err
	}
	p, err := download(ctx, folder, kernel, busyboxPackage, "grub-pc-bin", "grub-common", "libdevmapper1.02.1")
	if err != nil {
		return "", err
	}
	_, order, err := kernelOf(ctx, p, kernel, append([]string{"vfat", "nls_cp437", "nls_ascii", "nls_utf8"}, guestModules...))
	if err != nil {
		return "", err
	}
	files, links := map[string]guestFile{"init": {0o755, []byte(stockInitrd)}}, map[string]string{}
	addModules(files, order)
	if err := addBusybox(ctx, files, links, p); err != nil {
		return "", err
	}
	initrd, err := pack(files, links, "dev", "proc", "sys", "disk")
	if err == nil {
		initrd, err = compress(initrd) // boot loaders read slowly
	}
	if err != nil {
		return "", err
	}
	root := filepath.Join(folder, "root")
	lay := func(name string, mode fs.FileMode, content []byte) error {
		name = filepath.Join(root, name)
		return errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, content, mode))
	}
	err = errors.Join(lay("boot/initrd", 0o644, initrd), lay("boot/grub.cfg", 0o644, []byte(stockGRUB)), lay("sbin/init", 0o755, []byte(stockInit)), lay("bin/busybox", 0o755, files["bin/busybox"].content))
	for name, target := range links {
		at := filepath.Join(root, name)
		err = errors.Join(err, os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(target, at))
	}
	for _, name := range []string{"dev", "proc", "sys", "run", "tmp"} {
		err = errors.Join(err, os.MkdirAll(filepath.Join(root, name), 0o755))
	}
	if err := errors.Join(err, p.each(ctx, kernel, func(name string, mode fs.FileMode, content []byte) error {
		if strings.HasPrefix(name, "boot/vmlinuz-") {
			return lay("boot/vmlinuz", mode, content)
		}
		return nil
	})); err != nil {
		return "", err
	}
	partition, disk := filepath.Join(folder, "partition"), filepath.Join(folder, "stock.qcow2")
	if err := os.WriteFile(partition, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(partition, stockMiB<<20); err != nil {
		return "", err
	}
	if _, err := run(ctx, "", "/usr/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", root, partition); err != nil {
		return "", err
	}
	raw, err := withGRUB(ctx, folder, p, partition)
	if err != nil {
		return "", err
	}
	_, err = run(ctx, "", "qemu-img", "convert", "-q", "-c", "-f", "raw", "-O", "qcow2", raw, disk)
	return disk, err
}

// withGRUB puts a partition behind GRUB's first sector and its core: what
// grub-install does on a disk that there is.
func withGRUB(ctx context.Context, folder string, p *packages, partition string) (string, error) {
	grub := filepath.Join(folder, "grub")
	for _, name := range []string{"grub-pc-bin", "grub-common", "libdevmapper1.02.1"} {
		if _, err := run(ctx, "", "dpkg-deb", "-x", p.files[name], grub); err != nil {
			return "", err
		}
	}
	modules, core := filepath.Join(grub, "usr/lib/grub/i386-pc"), filepath.Join(folder, "core.img")
	command := exec.CommandContext(ctx, filepath.Join(grub, "usr/bin/grub-mkimage"), "-d", modules, "-O", "i386-pc", "-o", core, "-p", "(hd0,msdos1)/boot", "biosdisk", "part_msdos", "ext2", "linux", "normal")
	command.Env = append(os.Environ(), "LD_LIBRARY_PATH="+filepath.Join(grub, "lib/x86_64-linux-gnu"))
	if said, err := command.CombinedOutput(); err != nil {
		return "", fmt.Errorf("grub-mkimage: %w: %s", err, said)
	}
	const sector = 512
	disk := make([]byte, stockSectors*sector)
	first, err := os.ReadFile(filepath.Join(modules, "boot.img"))
	if err != nil {
		return "", err
	}
	rest, err := os.ReadFile(core)
	if err != nil || len(rest) > len(disk)-sector {
		return "", fmt.Errorf("GRUB's core of %d bytes: %w", len(rest), err)
	}
	copy(disk, first[:440])
	copy(disk[sector:], rest)
	entry := disk[446:]
	entry[0], entry[4] = 0x80, 0x83 // active, Linux
	binary.LittleEndian.PutUint32(entry[8:], stockSectors)
	binary.LittleEndian.PutUint32(entry[12:], stockMiB<<20/sector)
	disk[510], disk[511] = 0x55, 0xaa
	content, err := os.ReadFile(partition)
	if err != nil {
		return "", err
	}
	raw := filepath.Join(folder, "stock.raw")
	return raw, os.WriteFile(raw, append(disk, content...), 0o600)
}
