package confine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// What a filter answers (seccomp(2)): to let a call be, or to have it fail.
const (
	letBe = 0x7fff0000 // SECCOMP_RET_ALLOW
	fail  = 0x00050000 // SECCOMP_RET_ERRNO, and the error
)

// Where struct seccomp_data has the number of the call, the machine that it is
// meant for, and the low half of argument i.
const (
	atNumber  = 0
	atMachine = 4
)

func atArgument(i int) uint32 { return uint32(16 + 8*i) }

// filter is a program for the kernel that judges each system call.
type filter struct{ code []unix.SockFilter }

func (f *filter) load(offset uint32) {
	f.code = append(f.code, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset})
}

func (f *filter) answer(what uint32) {
	f.code = append(f.code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: what})
}

// unless skips the next n instructions where what was loaded is not value.
func (f *filter) unless(value uint32, n uint8) {
	f.code = append(f.code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value, Jf: n})
}

// on judges one system call by more than its number: body ends with an answer.
func (f *filter) on(number uintptr, body func(*filter)) {
	var inner filter
	body(&inner)
	f.unless(uint32(number), uint8(len(inner.code)))
	f.code = append(f.code, inner.code...)
}

// among lets a call be where its argument is one of some values.
func among(argument int, values ...uint32) func(*filter) {
	return func(f *filter) {
		f.load(atArgument(argument))
		for _, v := range values {
			f.unless(v, 1)
			f.answer(letBe)
		}
		f.answer(fail | uint32(unix.EPERM))
	}
}

// seccomp lets this thread, and what it becomes, use the system calls that a
// program needs to compute, and no other: what is not known here is forbidden.
func seccomp() error {
	if machine == 0 {
		return unix.ENOSYS
	}
	self := uint32(unix.Getpid()) // it is the program's, too
	var f filter
	f.load(atMachine)
	f.unless(machine, 1)
	f.code = append(f.code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JA, K: 1})
	f.answer(fail | uint32(unix.EPERM))
	f.load(atNumber)
	for _, number := range append(allowed(), allowedHere()...) {
		f.unless(uint32(number), 1)
		f.answer(letBe)
	}
	// Threads, but no process. The newer call hides its flags from us; libraries
	// go back to the older where it is not known.
	f.on(unix.SYS_CLONE, func(f *filter) {
		f.load(atArgument(0))
		f.code = append(f.code, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: unix.CLONE_THREAD})
		f.unless(unix.CLONE_THREAD, 1)
		f.answer(letBe)
		f.answer(fail | uint32(unix.EPERM))
	})
	f.on(unix.SYS_CLONE3, func(f *filter) { f.answer(fail | uint32(unix.ENOSYS)) })
	// Shared memory of nobody's counts as no data: it would be without a limit.
	f.on(unix.SYS_MMAP, func(f *filter) {
		f.load(atArgument(3))
		f.code = append(f.code, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: unix.MAP_SHARED | unix.MAP_ANONYMOUS})
		f.unless(unix.MAP_SHARED|unix.MAP_ANONYMOUS, 1)
		f.answer(fail | uint32(unix.EPERM))
		f.answer(letBe)
	})
	f.on(unix.SYS_KILL, among(0, self))
	f.on(unix.SYS_TGKILL, among(0, self))
	f.on(unix.SYS_PRLIMIT64, among(0, 0, self))
	f.on(unix.SYS_PRCTL, among(0, unix.PR_SET_NAME, unix.PR_GET_NAME, unix.PR_SET_VMA))
	f.on(unix.SYS_FCNTL, among(1, unix.F_DUPFD, unix.F_DUPFD_CLOEXEC, unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL))
	f.on(unix.SYS_IOCTL, func(f *filter) { f.answer(fail | uint32(unix.ENOTTY)) }) // as for what is no terminal
	f.answer(fail | uint32(unix.EPERM))
	program := unix.SockFprog{Len: uint16(len(f.code)), Filter: &f.code[0]}
	return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
}

// allowed are the system calls of every machine that need no judging: on memory,
// on what is open, on files that other walls let be opened, on threads, on time,
// and on what this process is.
func allowed() []uintptr {
	return []uintptr{
		unix.SYS_BRK, unix.SYS_MUNMAP, unix.SYS_MREMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_MEMBARRIER,
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_LSEEK, unix.SYS_CLOSE,
		unix.SYS_CLOSE_RANGE, unix.SYS_DUP, unix.SYS_DUP3, unix.SYS_PPOLL, unix.SYS_PSELECT6,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_PWAIT2, unix.SYS_EVENTFD2,
		unix.SYS_OPENAT, unix.SYS_FSTAT, unix.SYS_STATX, unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2, unix.SYS_READLINKAT,
		unix.SYS_GETDENTS64, unix.SYS_GETCWD, unix.SYS_CHDIR, unix.SYS_FCHDIR, unix.SYS_UMASK, unix.SYS_STATFS, unix.SYS_FSTATFS, unix.SYS_FADVISE64,
		unix.SYS_EXECVE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_WAIT4, unix.SYS_WAITID,
		unix.SYS_FUTEX, unix.SYS_SET_ROBUST_LIST, unix.SYS_GET_ROBUST_LIST, unix.SYS_SET_TID_ADDRESS, unix.SYS_RSEQ,
		unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_GETTID, unix.SYS_GETCPU,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_RT_SIGPENDING, unix.SYS_RT_SIGSUSPEND,
		unix.SYS_RT_SIGTIMEDWAIT, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
		unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_NANOSLEEP, unix.SYS_GETTIMEOFDAY,
		unix.SYS_TIMES, unix.SYS_GETITIMER, unix.SYS_SETITIMER,
		unix.SYS_GETPID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID, unix.SYS_GETRESUID,
		unix.SYS_GETRESGID, unix.SYS_GETGROUPS, unix.SYS_GETPGID, unix.SYS_GETSID, unix.SYS_GETRUSAGE, unix.SYS_CAPGET,
		unix.SYS_UNAME, unix.SYS_SYSINFO, unix.SYS_GETRANDOM,
	}
}
