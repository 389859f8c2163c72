// Package confine runs a program that nobody vouches for: a registered codec or
// rule. It reads and writes descriptors 0, 1 and 2 and computes, and that is all.
//
// What always holds for a program that Main has become: it has no descriptor but
// these three and no environment; it opens no socket and starts no process; it
// writes no file and reads none but its own, the system's libraries and
// interpreters; it signals nobody else; its memory is bounded. Namespaces,
// Landlock, a seccomp filter, limits and the lack of every privilege are walls of
// which one alone would do for most of this, so one that a machine lacks is told
// (Missing) and not fatal, as long as Enough of them stand.
//
// The package must never start anything itself but for the probe: who starts a
// program here waits for it, too.
package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The walls, as Missing tells them.
const (
	Namespaces = "namespaces" // its own users, mounts, network, processes and IPC, or some of them
	Landlock   = "landlock"   // of the kernel: files by their path
	Seccomp    = "seccomp"    // of the kernel: system calls by their number
)

// Enough says whether a program may be run where these walls are missing: system
// calls are filtered, and one more wall stands before files.
func Enough(missing []string) bool {
	return !slices.Contains(missing, Seccomp) && (!slices.Contains(missing, Namespaces) || !slices.Contains(missing, Landlock))
}

// Program is what to run, and what it may have.
type Program struct {
	Argv []string // the first an absolute path; none: only tell what walls are missing
	// Folders are what it may read besides the system's libraries: where it lies.
	Folders []string
	Hidden  []string // folders that it must not see though they lie in one that it may
	DataMiB int64    // memory of its own, in all

	Level Level // that Attributes was asked for
	Dies  bool  // with the thread that starts it
}

// Level is how much of Namespaces a machine gives, from the best to none.
type Level int

const (
	AsNobody Level = iota // all, and it is a user who has no file
	AsSelf                // all, and it is the user that this process is
	AsRoot                // all but that of users, where there is the right to make them
	Alone                 // none
)

// Levels are all, the best first.
func Levels() []Level { return []Level{AsNobody, AsSelf, AsRoot, Alone} }

// nobody is the user and group that has no files.
const nobody = 65534

// Attributes puts into sys what the start of a program needs at a level.
func (l Level) Attributes(sys *syscall.SysProcAttr) {
	if l == Alone {
		return
	}
	sys.Cloneflags |= unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC
	if l == AsRoot {
		return
	}
	sys.Cloneflags |= unix.CLONE_NEWUSER
	one := func(id int) []syscall.SysProcIDMap {
		return []syscall.SysProcIDMap{{ContainerID: 0, HostID: id, Size: 1}}
	}
	sys.UidMappings, sys.GidMappings = one(os.Geteuid()), one(os.Getegid())
	if l == AsNobody { // only root may map somebody else
		other := syscall.SysProcIDMap{ContainerID: nobody, HostID: nobody, Size: 1}
		sys.UidMappings, sys.GidMappings = append(sys.UidMappings, other), append(sys.GidMappings, other)
		sys.GidMappingsEnableSetgroups = true
	}
}

// Arguments are what Main understands as this program.
func (p Program) Arguments() []string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // strings and numbers alone
	}
	return []string{string(text)}
}

// Main takes every privilege from this process and becomes the program. It
// returns only when it fails. Without a program to become it tells on descriptor 1
// what walls are missing, and exits.
func Main(arguments []string) error {
	var p Program
	if len(arguments) != 1 {
		return errors.New("it takes one argument")
	}
	if err := json.Unmarshal([]byte(arguments[0]), &p); err != nil {
		return fmt.Errorf("what to confine: %w", err)
	}
	// Landlock, seccomp and capabilities are a thread's own: the one that becomes
	// the program must be the one that has given them up.
	runtime.LockOSThread()
	unix.Umask(0o022) // it must reach what is made for it
	command := ""
	if len(p.Argv) > 0 {
		command = p.Argv[0]
	}
	readable := p.readable(command)
	missing, err := p.build(readable)
	if err != nil {
		return err
	}
	if len(p.Argv) == 0 {
		if _, err := os.Stdout.WriteString(strings.Join(missing, "\n")); err != nil {
			return err
		}
		os.Exit(0)
	}
	if !Enough(missing) {
		return fmt.Errorf("this machine cannot confine it: it lacks %s", strings.Join(missing, " and "))
	}
	return fmt.Errorf("run %s: %w", command, syscall.Exec(command, p.Argv, []string{}))
}

// build puts up the walls, those that need a privilege first, and says which
// this machine has not.
func (p *Program) build(readable []string) (missing []string, err error) {
	if p.Level != Alone {
		if err := p.enter(readable); err != nil {
			return nil, fmt.Errorf("make a root of its own: %w", err)
		}
	} else {
		missing = append(missing, Namespaces)
	}
	if err := p.limit(); err != nil {
		return nil, err
	}
	if err := p.drop(); err != nil {
		return nil, fmt.Errorf("give up privileges: %w", err)
	}
	for _, wall := range []struct {
		name string
		set  func() error
	}{{Landlock, func() error { return landlock(readable) }}, {Seccomp, seccomp}} {
		switch err := wall.set(); {
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL):
			missing = append(missing, wall.name)
		case err != nil:
			return nil, fmt.Errorf("%s: %w", wall.name, err)
		}
	}
	// What this program has open is so already, and kernels before 5.11 cannot.
	_ = unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	return missing, nil
}

// readable are the files and folders that a program needs to start: libraries and
// interpreters, where Linux systems have them, and its own.
func (p *Program) readable(command string) []string {
	all := []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
		"/etc/ld.so.cache", "/etc/alternatives", "/etc/localtime", "/dev/null", "/dev/urandom"}
	all = append(all, p.Folders...)
	// An interpreter elsewhere has its library beside it: /opt/python/bin, and
	// /opt/python/lib.
	if real, err := filepath.EvalSymlinks(command); err == nil && !within(real, all) {
		prefix := filepath.Dir(filepath.Dir(real))
		if prefix == "/" || strings.HasPrefix(prefix, "/nix/store") || strings.HasPrefix(prefix, "/gnu/store") {
			prefix = filepath.Dir(real)
		}
		for _, store := range []string{"/nix/store", "/gnu/store"} {
			if strings.HasPrefix(real, store+"/") {
				prefix = store
			}
		}
		all = append(all, prefix)
		if !within(command, all) {
			all = append(all, filepath.Dir(command)) // the link to it
		}
	}
	return slices.DeleteFunc(all, func(path string) bool {
		_, err := os.Lstat(path)
		return err != nil
	})
}

func within(path string, folders []string) bool {
	return slices.ContainsFunc(folders, func(f string) bool { return path == f || strings.HasPrefix(path, f+"/") })
}

// enter makes a root folder that has what is readable and nothing else, and
// nothing of it can be written.
func (p *Program) enter(readable []string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	base := "/tmp" // any folder does
	if info, err := os.Stat(base); err != nil || !info.IsDir() {
		base = "/dev"
	}
	// Taken hold of before the new root comes to lie over some of it.
	shown := make([]tree, len(readable))
	for i, path := range readable {
		var err error
		if shown[i], err = take(path); err != nil {
			return fmt.Errorf("take hold of %s: %w", path, err)
		}
	}
	if err := unix.Mount("root", base, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mount it: %w", err)
	}
	for _, t := range shown {
		if err := t.show(base); err != nil {
			return fmt.Errorf("show %s there: %w", t.path, err)
		}
	}
	for _, path := range p.Hidden {
		if !within(path, readable) {
			continue
		}
		if err := unix.Mount("hidden", base+path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0,size=4k"); err != nil {
			return fmt.Errorf("hide %s there: %w", path, err)
		}
	}
	attributes := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID}
	if err := unix.MountSetattr(unix.AT_FDCWD, base, unix.AT_RECURSIVE, &attributes); err != nil {
		return fmt.Errorf("forbid writing: %w", err)
	}
	if err := unix.Chdir(base); err != nil {
		return err
	}
	// The old root comes to lie over the new one, and goes (pivot_root(2), Notes).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("enter it: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the old one: %w", err)
	}
	return unix.Chdir("/")
}

// tree is a file, folder or link to be shown at its own path.
type tree struct {
	path   string
	target string // of a link
	folder bool
	fd     int // of a copy of its mount
}

func take(path string) (t tree, err error) {
	t.path = path
	info, err := os.Lstat(path)
	if err != nil {
		return t, err
	}
	if info.Mode()&os.ModeSymlink != 0 {
		t.target, err = os.Readlink(path)
		return t, err
	}
	t.folder = info.IsDir()
	t.fd, err = unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	return t, err
}

// show has the tree appear below base.
func (t tree) show(base string) error {
	at := base + t.path
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		return err
	}
	var err error
	switch {
	case t.target != "":
		return os.Symlink(t.target, at)
	case t.folder:
		err = os.MkdirAll(at, 0o755)
	default:
		err = os.WriteFile(at, nil, 0o644)
	}
	if err == nil {
		err = unix.MoveMount(t.fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH)
	}
	return errors.Join(err, unix.Close(t.fd))
}

// Limits that are the same for every program.
const (
	mostFiles   = 64
	mostThreads = 64
	reserved    = 4 << 30 // bytes of addresses besides its data: Go's programs reserve much and use little
)

func (p *Program) limit() error {
	limits := []struct {
		name     string
		resource int
		most     uint64
	}{
		{"memory", unix.RLIMIT_DATA, uint64(p.DataMiB) << 20},
		{"addresses", unix.RLIMIT_AS, uint64(p.DataMiB)<<20 + reserved},
		{"locked memory", unix.RLIMIT_MEMLOCK, 0},
		{"files", unix.RLIMIT_NOFILE, mostFiles},
		{"file sizes", unix.RLIMIT_FSIZE, 0},
		{"core dumps", unix.RLIMIT_CORE, 0},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
	}
	if p.Level == AsNobody || p.Level == AsSelf { // elsewhere all that this user runs would count
		limits = append(limits, struct {
			name     string
			resource int
			most     uint64
		}{"threads", unix.RLIMIT_NPROC, mostThreads})
	}
	for _, l := range limits {
		var old unix.Rlimit
		err := unix.Getrlimit(l.resource, &old)
		if err == nil {
			most := min(old.Max, l.most)
			err = unix.Setrlimit(l.resource, &unix.Rlimit{Cur: most, Max: most})
		}
		if err != nil {
			return fmt.Errorf("limit %s: %w", l.name, err)
		}
	}
	return nil
}

// drop gives up every privilege, for good.
func (p *Program) drop() error {
	for capability := uintptr(0); ; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) { // the last has been before
			break
		}
		if err != nil && !errors.Is(err, unix.EPERM) { // who has none cannot, and need not
			return err
		}
		if err != nil {
			break
		}
	}
	if p.Level == AsNobody || p.Level == AsRoot {
		// Alone a program might not reach its own folder as somebody else. Raw
		// calls, for this thread alone: the others end when it becomes the program.
		for _, call := range []struct{ number, a, b, c uintptr }{
			{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, nobody, nobody, nobody}, {unix.SYS_SETRESUID, nobody, nobody, nobody},
		} {
			_, _, errno := unix.RawSyscall(call.number, call.a, call.b, call.c)
			// Where this process is root in a world of its own there may be no nobody.
			if errno != 0 && p.Level == AsNobody {
				return fmt.Errorf("become nobody: %w", errno)
			}
		}
	}
	_ = unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) // a kernel before 4.3 has none
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&header, &none[0]); err != nil {
		return err
	}
	if p.Dies { // to become somebody else has undone it
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return err
		}
	}
	return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
}
