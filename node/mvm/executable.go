package mvm

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Executable puts a program into memory and gives a file to run it from, as
// often as one likes; closing it removes it. The program is read piece by piece: a
// small machine has no room for it twice.
func Executable(program io.Reader) (*os.File, error) {
	writer, err := hugeFile()
	if err != nil { // no right to mount, a kernel older than 5.2, or one without huge pages
		writer, err = memoryFile()
	}
	if err != nil {
		return nil, fmt.Errorf("run a program from memory: %w", err)
	}
	return seal(writer, program)
}

// seal writes a program into a file and opens it for running.
func seal(writer *os.File, program io.Reader) (*os.File, error) {
	defer writer.Close()
	switch size, err := io.Copy(writer, program); {
	case err != nil:
		return nil, fmt.Errorf("put a program into memory, after %d bytes: %w", size, err)
	case size == 0:
		return nil, errors.New("run a program from memory: it is empty")
	}
	// What is open for writing cannot be run.
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", writer.Fd()))
}

func memoryFile() (*os.File, error) {
	fd, err := unix.MemfdCreate(ProcessName, unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // a kernel older than 6.3
		fd, err = unix.MemfdCreate(ProcessName, unix.MFD_CLOEXEC)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	return os.NewFile(uintptr(fd), ProcessName), nil
}

// hugeFile is a file in huge pages where there are any, which nobody else can
// find: it has no name, and its file system is mounted nowhere. The kernel maps
// a few of them in the place of a thousand small ones, which it would look up one
// by one in each process that runs the program, and again at its end: a sixth of
// all CPU time of a short MVM process. A memfd has them only where the machine's
// administrator says so (shmem_enabled).
func hugeFile() (*os.File, error) {
	files, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(files)
	for _, option := range [][2]string{{"huge", "always"}, {"mode", "755"}} {
		if err := unix.FsconfigSetString(files, option[0], option[1]); err != nil {
			return nil, os.NewSyscallError("fsconfig", err)
		}
	}
	if err := unix.FsconfigCreate(files); err != nil {
		return nil, os.NewSyscallError("fsconfig", err)
	}
	mount, err := unix.Fsmount(files, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return nil, os.NewSyscallError("fsmount", err)
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, ProcessName, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return nil, os.NewSyscallError("openat", err)
	}
	if err := unix.Unlinkat(mount, ProcessName, 0); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("unlinkat", err)
	}
	return os.NewFile(uintptr(fd), ProcessName), nil
}
