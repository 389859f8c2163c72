package build

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Step is one program to run to its end during a build.
type Step struct {
	Argv        []string // Argv[0] is an absolute path
	Dir         string
	Environment []string // all of it
	Output      *os.File // takes stdout and stderr; stdin is empty
}

// Runner runs a Step: in a session and process group of its own, limited by
// Limits, and when it ends or ctx does, all that it started is killed. It
// returns the exit status (128 + the signal's number when a signal ended it),
// and an error when it could not be started or ctx ended.
type Runner interface {
	Run(ctx context.Context, s Step) (exit int, err error)
}

// Limit is one resource limit of a build's processes (getrlimit(2)).
type Limit struct {
	Resource int
	Max      uint64
}

// Limits bound what a build's processes may take: no core dumps, files of at
// most 1 GiB, 20 minutes of CPU each, 1,024 open files.
func Limits() []Limit {
	return []Limit{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_FSIZE, 1 << 30},
		{unix.RLIMIT_CPU, 20 * 60},
		{unix.RLIMIT_NOFILE, 1024},
	}
}

// niceness of a build: it must not keep the node from its heartbeats.
const niceness = 10

// Limited sets Limits on a running process and makes it give way to others;
// what it starts later inherits both. A limit that is lower already stays.
func Limited(pid int) error {
	problems := []error{ended(unix.Setpriority(unix.PRIO_PROCESS, pid, niceness))}
	for _, l := range Limits() {
		var old unix.Rlimit
		if err := unix.Prlimit(pid, l.Resource, nil, &old); err != nil {
			return ended(err)
		}
		if old.Max > l.Max {
			problems = append(problems, ended(unix.Prlimit(pid, l.Resource, &unix.Rlimit{Cur: l.Max, Max: l.Max}, nil)))
		}
	}
	return errors.Join(problems...)
}

// FirstToKill is the rank of who goes first when a machine is out of memory (proc(5),
// oom_score_adj).
const FirstToKill = "1000"

// RankForKilling has the kernel end a program first when the whole machine is out of
// memory, not the node or an MVM process.
func RankForKilling(pid int) {
	// Only that it must not be done at all could keep it from working.
	if file, err := os.OpenFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", os.O_WRONLY, 0); err == nil {
		_, _ = file.WriteString(FirstToKill)
		_ = file.Close()
	}
}

// ended forgives that a short program is over before its limits are set.
func ended(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// Environment is all that a build's or a job's program is told of this machine;
// temp becomes its home and its folder for temporary files.
func Environment(temp string) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + temp, "TMPDIR=" + temp, "LC_ALL=C.UTF-8",
	}
}

// Alone is the Runner for a program that waits for its own children only, such
// as the node. It kills a step's process group; what left the group is out
// of its reach.
type Alone struct{}

func (Alone) Run(ctx context.Context, s Step) (int, error) {
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.Dir, s.Environment, s.Output, s.Output
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	group := func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Cancel, cmd.WaitDelay = group, time.Second
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	RankForKilling(cmd.Process.Pid)
	limits := Limited(cmd.Process.Pid)
	if limits != nil {
		group()
	}
	err := cmd.Wait()
	group() // what it left behind; the group's number is not reused while one lives in it
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if limits != nil {
		return 0, limits
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return Status(exit.Sys().(syscall.WaitStatus)), nil
	}
	return 0, err
}

// Status is the exit status as a shell gives it.
func Status(w syscall.WaitStatus) int {
	if w.Signaled() {
		return 128 + int(w.Signal())
	}
	return w.ExitStatus()
}
