#!/bin/sh
# Makes DISK, a qcow2 file, the way Debian makes its genericcloud image, for who has
# no way to that one: GUID partitions with GRUB in one of their own and the root in
# the first, Debian's cloud kernel and its initrd, systemd with networkd, resolved and
# netplan, OpenSSH's server, and cloud-init with all of its data sources. Nothing in it
# knows of MVM.
#
#   examples/cloud/debian.sh debian.qcow2
#   mvm image import debian.qcow2 --name debian --push
#   mvm vm create debian
#
# It needs root, Debian's packages mmdebstrap, qemu-utils, fdisk and e2fsprogs, and
# the mirror that this machine's own packages come from.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DISK" >&2; exit 2; }
disk=$1
for tool in mmdebstrap qemu-img sfdisk mke2fs; do
	PATH=$PATH:/usr/sbin command -v $tool >/dev/null || { echo "$0: $tool is missing: apt-get install mmdebstrap qemu-utils fdisk e2fsprogs" >&2; exit 1; }
done
PATH=$PATH:/usr/sbin
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
. /etc/os-release

# Where a number is, of so many bytes, in a file: little-endian.
put() { # FILE OFFSET NUMBER
	n=$3 bytes= i=0
	while [ $i -lt 8 ]; do
		bytes="$bytes\\$(printf %03o $((n % 256)))"
		n=$((n / 256)) i=$((i + 1))
	done
	printf "$bytes" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

lists=$(ls /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null || true)
apt-config dump | grep -i '^Acquire::' >"$work/apt.conf" || true
mmdebstrap --mode=root --variant=minbase --aptopt="$work/apt.conf" \
	--include=systemd-sysv,udev,dbus,kmod,init,procps,iproute2,iputils-ping,less,sudo,locales,ca-certificates,openssh-server,apparmor,unattended-upgrades,libpam-systemd \
	--include=linux-image-cloud-amd64,initramfs-tools,grub-pc-bin,grub-common,e2fsprogs,fdisk,cloud-init,cloud-guest-utils,netplan.io,systemd-resolved,systemd-timesyncd \
	"$VERSION_CODENAME" "$root" $lists

# As Debian's configuration of its cloud images has it.
echo debian >"$root/etc/hostname"
echo uninitialized >"$root/etc/machine-id"
uuid=$(cat /proc/sys/kernel/random/uuid)
echo "PARTUUID=$uuid / ext4 rw,discard,errors=remount-ro 0 1" >"$root/etc/fstab"
cat >"$root/etc/cloud/cloud.cfg.d/01_debian_cloud.cfg" <<END
apt_preserve_sources_list: true
manage_etc_hosts: true
END
cat >"$root/etc/netplan/90-default.yaml" <<END
network:
    version: 2
    ethernets:
        all-en:
            match:
                name: en*
            dhcp4: true
            dhcp6: true
        all-eth:
            match:
                name: eth*
            dhcp4: true
            dhcp6: true
END
chmod 600 "$root/etc/netplan/90-default.yaml"
chroot "$root" systemctl enable systemd-networkd.service systemd-resolved.service >/dev/null 2>&1
rm -f "$root"/etc/ssh/ssh_host_* "$root/etc/apt/apt.conf.d/99mmdebstrap"
kernel=$(basename "$root"/boot/vmlinuz-*)
mkdir -p "$root/boot/grub"
cat >"$root/boot/grub/grub.cfg" <<END
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=1
menuentry 'Debian GNU/Linux' {
	linux /boot/$kernel root=PARTUUID=$uuid ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0
	initrd /boot/initrd.img-${kernel#vmlinuz-}
}
END
chroot "$root" grub-mkimage -O i386-pc -p '(hd0,gpt1)/boot/grub' -o /core.img biosdisk part_gpt ext2 linux normal serial terminal
mv "$root/core.img" "$work/core.img"
cp "$root/usr/lib/grub/i386-pc/boot.img" "$work/boot.img"

# The disk: what grub-install would do is to write where its core begins into the
# boot sector, and where the core goes on into the core.
sector=512 core=2048 first=8192 size=4194304
put "$work/boot.img" 92 $core
put "$work/core.img" 500 $((core + 1))
truncate -s $((size * sector)) "$work/raw"
printf 'label: gpt\nfirst-lba: 34\n14: start=%s, size=%s, type=21686148-6449-6E6F-744E-656564454649\n1: start=%s, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=%s\n' \
	$core $((first - core)) $first "$uuid" | sfdisk -q "$work/raw"
dd if="$work/boot.img" of="$work/raw" bs=1 count=440 conv=notrunc status=none
dd if="$work/core.img" of="$work/raw" bs=$sector seek=$core conv=notrunc status=none
mke2fs -q -F -t ext4 -E offset=$((first * sector)) -d "$root" "$work/raw" $(((size - first - 2048) / 2))k
qemu-img convert -q -c -m 2 -f raw -O qcow2 "$work/raw" "$disk"
