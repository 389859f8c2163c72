package osvm

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Isolation is what keeps a QEMU that its guest has taken over from all else,
// besides its seccomp sandbox: the best of these that the machine allows.
type Isolation string

const (
	// OwnUser is a user of its own, without capabilities, in namespaces of its own:
	// no network, no other processes, no one else's files. It needs root.
	OwnUser Isolation = "user+namespaces"
	// OwnUserOnly is where root may make no namespaces, as in many containers.
	OwnUserOnly Isolation = "user"
	// OwnNamespaces is without root, where anybody may make a user namespace: QEMU
	// is the node's user there, and may read its files.
	OwnNamespaces Isolation = "namespaces"
	// SandboxOnly is seccomp alone: no new processes, no more rights.
	SandboxOnly Isolation = "sandbox"
)

const namespaces = unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS

// Numbers of the users that QEMUs are, one each. The first range is far above all
// that people and programs have; the second, where only 16 bits are mapped, is
// what systemd gives out for the same purpose.
const (
	firstUser, users           = 1_836_449_792, 65_536
	firstShortUser, shortUsers = 61_184, 4_336
)

// insideUser is what our own user is called in a user namespace of QEMU's: as
// root of it, QEMU would have all capabilities there.
const insideUser = 1

// usersFile is where a number is locked, a byte each, by a QEMU that has it: the
// lock is its own, so that it ends with it.
const usersFile = "/run/mvm-vm-users"

// user is who a QEMU is.
type user struct {
	number    uint32 // 0: the same as we are
	groups    []uint32
	lock      *os.File
	isolation Isolation
}

// newUser chooses a user that no QEMU on this machine has. Without root it is
// ours.
func newUser(accelerator Accelerator) (*user, error) {
	u := &user{}
	if os.Geteuid() != 0 {
		return u, nil
	}
	first, count := firstUser, users
	if !mapped(first, count) {
		first, count = firstShortUser, shortUsers
	}
	if !mapped(first, count) { // we are root among ourselves alone
		return u, nil
	}
	lock, err := os.OpenFile(usersFile, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil { // a container's, which is not to be written
		lock, err = os.OpenFile(filepath.Join(os.TempDir(), filepath.Base(usersFile)), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	}
	if err != nil {
		return nil, fmt.Errorf("choose a user for QEMU: %w", err)
	}
	const tries = 100
	for range tries {
		number := first + rand.IntN(count)
		err = unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: int64(number), Len: 1})
		if err == nil {
			u.number, u.lock = uint32(number), lock
			break
		}
	}
	if u.lock == nil {
		_ = lock.Close()
		return nil, fmt.Errorf("choose a user for QEMU: none of %d is free: %w", tries, err)
	}
	var device unix.Stat_t
	if accelerator == KVM && unix.Stat("/dev/kvm", &device) == nil {
		u.groups = []uint32{device.Gid}
	}
	return u, nil
}

func (u *user) close() {
	if u.lock != nil {
		_ = u.lock.Close()
	}
}

// mapped says whether there are such users here (user_namespaces(7)).
func mapped(first, count int) bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		var inside, outside, size int
		if n, _ := fmt.Sscan(line, &inside, &outside, &size); n == 3 && first >= inside && first+count <= inside+size {
			return true
		}
	}
	return false
}

// own makes a file the user's.
func (u *user) own(file *os.File) error {
	if u.number == 0 {
		return nil
	}
	return file.Chown(int(u.number), int(u.number))
}

// open opens a file to be read by the user, who gets a copy of one that only we
// may read: a descriptor alone is not enough, because QEMU opens it again.
func (u *user) open(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	const everybody = 0o004
	if u.number == 0 || info.Mode()&everybody != 0 {
		return file, nil
	}
	defer file.Close()
	return sealed("mvm-file", file, info.Size())
}

// run starts what command makes, with as much isolation as is to be had.
func (u *user) run(command func() *exec.Cmd) (*exec.Cmd, error) {
	own := func() *syscall.SysProcAttr {
		return &syscall.SysProcAttr{
			Setsid:     true, // no terminal's signal reaches it
			Credential: &syscall.Credential{Uid: u.number, Gid: u.number, Groups: u.groups},
		}
	}
	apart := own()
	apart.Cloneflags = namespaces
	unprivileged := &syscall.SysProcAttr{
		Setsid: true, Cloneflags: namespaces | unix.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: insideUser, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: insideUser, HostID: os.Getegid(), Size: 1}},
	}
	type way struct {
		name       Isolation
		attributes *syscall.SysProcAttr
	}
	ways := []way{{OwnNamespaces, unprivileged}, {SandboxOnly, &syscall.SysProcAttr{Setsid: true}}}
	if u.number != 0 {
		ways = []way{{OwnUser, apart}, {OwnUserOnly, own()}, {SandboxOnly, &syscall.SysProcAttr{Setsid: true}}}
	}
	var failed error
	for _, w := range ways {
		c := command()
		c.SysProcAttr = w.attributes
		if u.lock != nil && w.name != SandboxOnly {
			c.ExtraFiles = append(c.ExtraFiles[:len(c.ExtraFiles):len(c.ExtraFiles)], u.lock)
		}
		err := c.Start()
		if err == nil {
			u.isolation = w.name
			// What is left of a QEMU that crashes must not be a guest's memory on a disk,
			// and where memory runs out a VM goes before its node. Neither is worth a VM.
			_ = unix.Prlimit(c.Process.Pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
			_ = os.WriteFile("/proc/"+strconv.Itoa(c.Process.Pid)+"/oom_score_adj", []byte("500"), 0)
			return c, nil
		}
		failed = errors.Join(failed, err)
		if !slices.ContainsFunc([]error{unix.EPERM, unix.EACCES, unix.EINVAL, unix.ENOSPC, unix.ENOSYS, unix.EUSERS}, func(refusal error) bool { return errors.Is(err, refusal) }) {
			break // it is not the isolation that is refused
		}
	}
	return nil, failed
}

// sealed is a copy of a file in memory, which everybody who has it may open and
// map, and nobody can write (memfd_create(2)); /proc calls it memfd:NAME. Zeros take
// no room in it.
func sealed(name string, from io.Reader, size int64) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if err := copySparse(file, from, size); err != nil {
		_ = file.Close()
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("seal a file in memory: %w", err)
	}
	return file, nil
}

// copySparse leaves holes where there are zeros only.
func copySparse(to *os.File, from io.Reader, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	piece := make([]byte, len(zeros))
	for at := int64(0); at < size; {
		n, err := io.ReadFull(from, piece[:min(int64(len(piece)), size-at)])
		if err != nil {
			return err
		}
		if string(piece[:n]) != string(zeros[:n]) {
			if _, err := to.WriteAt(piece[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
	}
	return nil
}
