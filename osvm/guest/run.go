package guest

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Bounds of what Run gives and how long it waits, if the host does not say.
const (
	outputMost = 1 << 20
	runLimit   = time.Minute
)

// Command is a program for the guest to run.
type Command struct {
	Words []string // the program's path, and its arguments
	Input string
	User  uint32        // who runs it; 0 is root
	Limit time.Duration // then it is killed; 0 is a minute
}

// Output is how it went.
type Output struct {
	Status int    // -1: it was killed
	Said   string // on standard output and error, the first MiB
}

// Run runs a program to its end: whoever has the host has the guest, and may look
// at it or set it up. What the program leaves running runs on.
func (*Agent) Run(c Command, out *Output) error {
	if len(c.Words) == 0 {
		return errors.New("a command has at least the path of a program")
	}
	if c.Limit <= 0 {
		c.Limit = runLimit
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.Limit)
	defer cancel()
	command := exec.CommandContext(ctx, c.Words[0], c.Words[1:]...)
	command.Env = []string{"PATH=/bin:/usr/bin", "HOME=/root"}
	command.Dir = "/"
	command.Stdin = strings.NewReader(c.Input)
	said := &bounded{}
	command.Stdout, command.Stderr = said, said
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: &syscall.Credential{Uid: c.User, Gid: c.User}}
	command.WaitDelay = time.Second // for what it has left behind, with its output
	err := command.Start()
	if err == nil {
		rank(command.Process.Pid, killable)
		err = command.Wait()
	}
	out.Said = said.text.String()
	var failed *exec.ExitError
	switch {
	case errors.As(err, &failed):
		out.Status = failed.ExitCode()
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return err
	}
	return nil
}

// bounded keeps the beginning of what is written to it.
type bounded struct{ text strings.Builder }

func (b *bounded) Write(from []byte) (int, error) {
	b.text.Write(from[:min(len(from), outputMost-b.text.Len())])
	return len(from), nil
}
