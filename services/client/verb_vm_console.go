package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"mvm/wsdl"
)

// consoleEscape is Ctrl-], with which one leaves the console, as telnet's.
const consoleEscape = 0x1d

func vmConsoleCommand() *cobra.Command {
	var v gridVerb
	var force bool
	var silence time.Duration
	cmd := &cobra.Command{
		Use:   "console VM",
		Short: "Attach to the serial port of a VM's guest",
		Long: `Attaches to the serial port of a VM's guest: the last of what it wrote before is
shown first, and each key goes to the guest. Ctrl-] leaves the console, and the
guest goes on.

Where standard input is no terminal it is typed as it is; at its end the command
goes on until the guest has written nothing for --silence.

One at a time has the console; --force takes it over.`,
		Example: `  mvm vm console lab1
  echo uname -a | mvm vm console lab1
  mvm vm console lab1 </dev/null >boot.log`,
		Args: exactly("a VM"),
		PreRunE: func(*cobra.Command, []string) error {
			if silence <= 0 {
				return usagef("--silence %v: write how long to wait for the guest's next word", silence)
			}
			return nil
		},
		RunE: v.withVM(func(cmd *cobra.Command, c *Client, vm *VM) error {
			return vm.attach(cmd, c, force, silence)
		}),
	}
	v.flags(cmd, false)
	cmd.Flags().BoolVar(&force, "force", false, "take the console from whoever has it")
	cmd.Flags().DurationVar(&silence, "silence", 2*time.Second, "with no terminal: leave when the guest has been silent for so long after the input's end")
	return cmd
}

// attach connects the console with the command's own input and output until
// either ends.
func (vm *VM) attach(cmd *cobra.Command, c *Client, force bool, silence time.Duration) error {
	conn, err := vm.Console(cmd.Context(), whoAmI(), force)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(cmd.Context(), func() { _ = conn.Close() })
	defer stop()
	s := &seat{conn: conn, silence: silence}
	if f, ok := cmd.InOrStdin().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		before, err := term.MakeRaw(int(f.Fd()))
		if err != nil {
			return fmt.Errorf("make the terminal raw: %w", err)
		}
		defer func() {
			_ = term.Restore(int(f.Fd()), before)
			fmt.Fprintln(cmd.ErrOrStderr())
		}()
		fmt.Fprintf(cmd.ErrOrStderr(), "console of %s; Ctrl-] leaves it\r\n", printable(vm.Id))
		go s.typeKeys(f)
	} else {
		go s.typeAll(cmd.InOrStdin())
	}
	err = s.show(cmd.OutOrStdout())
	switch {
	case cmd.Context().Err() != nil:
		return cmd.Context().Err()
	case err != nil || s.left.Load():
		return err
	}
	return vm.whyDetached(cmd, c)
}

// seat is one who sits at a console.
type seat struct {
	conn    net.Conn
	silence time.Duration
	ended   atomic.Bool // what is typed has come to its end
	left    atomic.Bool // nobody wants to see more
}

// typeKeys types what a raw terminal gives, up to the escape.
func (s *seat) typeKeys(keys io.Reader) {
	defer s.conn.Close()
	defer s.left.Store(true)
	var buffer [1024]byte
	for {
		n, err := keys.Read(buffer[:])
		typed, _, escaped := bytes.Cut(buffer[:n], []byte{consoleEscape})
		if _, failed := s.conn.Write(typed); failed != nil || err != nil || escaped {
			return
		}
	}
}

// typeAll types all of a file or pipe; then the guest has the silence to go on.
func (s *seat) typeAll(in io.Reader) {
	_, _ = io.Copy(s.conn, in) // who reads the connection hears why it broke
	s.ended.Store(true)
	_ = s.conn.SetReadDeadline(time.Now().Add(s.silence))
}

// show writes what the guest does until the connection ends, or the seat is left.
func (s *seat) show(out io.Writer) error {
	var buffer [16 << 10]byte
	for {
		n, err := s.conn.Read(buffer[:])
		if n > 0 {
			if _, err := out.Write(buffer[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			s.left.Store(true)
			return nil
		case err != nil: // it ends for a reason that the node knows better
			return nil
		case s.ended.Load():
			_ = s.conn.SetReadDeadline(time.Now().Add(s.silence))
		}
	}
}

// whyDetached says why a console ended that nobody left.
func (vm *VM) whyDetached(cmd *cobra.Command, c *Client) error {
	now, err := c.VM(cmd.Context(), vm.name())
	switch {
	case wsdl.CodeOf(err) == wsdl.FaultCodeNotFound:
		fmt.Fprintf(cmd.ErrOrStderr(), "the VM %s was destroyed\n", printable(vm.Id))
		return nil
	case err != nil:
		return err
	case wsdl.Or(now.State, "") == wsdl.VMStateEnded:
		fmt.Fprintf(cmd.ErrOrStderr(), "the VM %s has ended: %s\n", printable(vm.Id), printable(now.Reason))
		return nil
	case now.VirtualMachine.Console != "":
		return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("%s has taken the console of %s over", now.VirtualMachine.Console, vm.Id), "--force takes it back")
	}
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, "the node has closed the console of "+vm.Id, "attach again")
}

// whoAmI is what others are told of who has a console: user@host.
func whoAmI() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}
