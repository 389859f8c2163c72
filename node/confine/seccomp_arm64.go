package confine

import "golang.org/x/sys/unix"

const machine = unix.AUDIT_ARCH_AARCH64

// allowedHere are calls that only older machines have, or call by other names.
func allowedHere() []uintptr { return []uintptr{unix.SYS_FSTATAT, unix.SYS_GETRLIMIT} }
