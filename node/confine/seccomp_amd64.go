package confine

import "golang.org/x/sys/unix"

const machine = unix.AUDIT_ARCH_X86_64

// allowedHere are calls that only older machines have, or call by other names.
func allowedHere() []uintptr {
	return []uintptr{
		unix.SYS_OPEN, unix.SYS_STAT, unix.SYS_LSTAT, unix.SYS_NEWFSTATAT, unix.SYS_ACCESS, unix.SYS_READLINK, unix.SYS_GETDENTS,
		unix.SYS_POLL, unix.SYS_SELECT, unix.SYS_EPOLL_CREATE, unix.SYS_EPOLL_WAIT, unix.SYS_DUP2, unix.SYS_GETPGRP,
		unix.SYS_TIME, unix.SYS_ALARM, unix.SYS_PAUSE, unix.SYS_ARCH_PRCTL, unix.SYS_GETRLIMIT,
	}
}
