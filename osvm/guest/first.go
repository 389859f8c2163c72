package guest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// insideVariable tells the second process that the first has started it, and
// whether it is to load the kernel's modules.
const (
	insideVariable = "MVM_GUEST"
	withModules    = "1"
	withoutModules = "2"
)

// What the kernel goes by when it is out of memory (proc(5), oom_score_adj). Children
// have their parent's, until they are told otherwise.
const (
	unkillable = "-1000"
	killable   = "0"
)

func rank(pid int, as string) {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(as), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		fmt.Println("agent:", err)
	}
}

// Inside says whether this process is one of the first two of a guest, which Run
// is for. Elsewhere Run would mount and load what it must not.
func Inside() bool { return os.Getpid() == 1 || os.Getenv(insideVariable) != "" }

// first is PID 1's life: it starts this program again, as the agent, and reaps
// whoever has lost his parent. The agent's own children are the agent's to wait
// for: nobody could do both in one process.
func first() error {
	if err := mount(); err != nil {
		return err
	}
	root, err := rootDisk()
	if err != nil {
		return err
	}
	modules := withModules
	if root != "" {
		modules = withoutModules
		if err := loadModules("/modules"); err != nil { // a disk is not there before its driver is
			return err
		}
		if err := moveTo(root); err != nil {
			return fmt.Errorf("make %s the root: %w", root, err)
		}
	}
	agent, err := os.StartProcess("/proc/self/exe", os.Args, &os.ProcAttr{
		Env: append(os.Environ(), insideVariable+"="+modules), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return fmt.Errorf("start the agent: %w", err)
	}
	rank(agent.Pid, unkillable) // out of memory, the kernel ends what the guest runs: without the agent the VM is over
	for {
		var status unix.WaitStatus
		if pid, err := unix.Wait4(-1, &status, 0, nil); err == nil && pid == agent.Pid {
			return fmt.Errorf("the agent has ended: exit status %d, signal %d", status.ExitStatus(), status.Signal())
		}
	}
}
