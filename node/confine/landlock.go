package confine

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// landlock forbids every file but those that are readable, TCP, and abstract
// sockets and signals to who is not confined with it, as far as the kernel knows
// how (landlock(7)).
func landlock(readable []string) error {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errno
	}
	// Struct landlock_ruleset_attr, whose later fields later versions added.
	rules := struct{ files, network, scoped uint64 }{files: 1<<13 - 1}
	size := unsafe.Sizeof(rules.files)
	if abi >= 2 {
		rules.files |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if abi >= 3 {
		rules.files |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	if abi >= 4 {
		rules.network = unix.LANDLOCK_ACCESS_NET_BIND_TCP | unix.LANDLOCK_ACCESS_NET_CONNECT_TCP
		size += unsafe.Sizeof(rules.network)
	}
	if abi >= 5 {
		rules.files |= unix.LANDLOCK_ACCESS_FS_IOCTL_DEV
	}
	if abi >= 6 {
		rules.scoped = 1 | 2 // LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET, LANDLOCK_SCOPE_SIGNAL
		size += unsafe.Sizeof(rules.scoped)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&rules)), size, 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd))
	for _, path := range readable {
		if err := allow(int(fd), path); err != nil {
			return err
		}
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// allow lets what is at a path be read and run; /dev/null may be written, too.
func allow(rules int, path string) error {
	at, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil // a link to where nothing is
	}
	defer unix.Close(at)
	info, err := os.Stat(path)
	if err != nil {
		return nil
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: unix.LANDLOCK_ACCESS_FS_READ_FILE, Parent_fd: int32(at)}
	switch {
	case info.IsDir():
		rule.Allowed_access |= unix.LANDLOCK_ACCESS_FS_READ_DIR | unix.LANDLOCK_ACCESS_FS_EXECUTE
	case path == "/dev/null":
		rule.Allowed_access |= unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
