//go:build amd64 || arm64

package mvm

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// handler is the address of a signal handler that does nothing.
func handler() uintptr

// deaf keeps programs from ending this process by signals. Go has a handler for
// each signal, and ends by most. Its own way, to have them delivered, takes two
// threads and a handover between them for each signal, a tenth of the CPU of an
// MVM process's whole life; SIG_IGN would pass to the programs; and SIG_DFL, which
// the kernel does not let through to PID 1 of a namespace, it lets through (seen
// with Linux 6.18) while the first thread blocks signals, as it does to start a
// program.
func deaf() error {
	for _, s := range signals() {
		const size = 64 / 8 // of a set of signals
		var action [4]uintptr
		_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&action)), size, 0, 0)
		if errno == 0 {
			action[0] = handler()
			_, _, errno = unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&action)), 0, size, 0, 0)
		}
		if errno != 0 {
			return fmt.Errorf("take the handler of %v away: %w", s, errno)
		}
	}
	return nil
}
