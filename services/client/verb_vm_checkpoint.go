package client

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// The verbs on VMs' checkpoints, and those that make a VM go on elsewhere.

func vmCheckpointCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "checkpoint VM",
		Short: "Keep all that a VM is at one moment, while it goes on",
		Long: `Keeps all that a VM is, its memory, processor and devices, as blobs of its node,
and prints the digest by which it is restored. The guest stands still for the
moment that it takes, and goes on.`,
		Example: `  mvm vm checkpoint lab1
  mvm vm restore $(mvm vm checkpoint lab1) --name lab2`,
		Args: exactly("a VM"),
		RunE: v.withVM(func(cmd *cobra.Command, _ *Client, vm *VM) error {
			answer, err := vm.Checkpoint(cmd.Context())
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), answer)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s stood still for %s; %s are new\n", printable(vm.Id),
				durationText(time.Duration(wsdl.Or(answer.PauseMicros, 0))*time.Microsecond), bytesText(wsdl.Or(answer.Written, 0)))
			fmt.Fprintln(cmd.OutOrStdout(), printable(answer.Checkpoint.Digest))
			return nil
		}),
	}
	v.flags(cmd, true)
	return cmd
}

func vmCheckpointsCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "checkpoints",
		Short: "List the checkpoints of VMs that the nodes keep",
		Example: `  mvm vm checkpoints
  mvm vm checkpoints --json`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			all, err := c.Checkpoints(cmd.Context())
			if err != nil && len(all) == 0 {
				return err
			}
			if v.json {
				list := []*wsdl.VMCheckpoint{}
				for _, one := range all {
					list = append(list, one.VMCheckpoint)
				}
				if failed := writeJSON(cmd.OutOrStdout(), list); failed != nil {
					return failed
				}
				return err
			}
			t := newTable(cmd.OutOrStdout(), "VM", "TAKEN", "MEMORY", "ACCELERATOR", "NODE", "CHECKPOINT")
			for _, one := range all {
				t.row(one.Vm, timeText(dateOf(&one.Taken)), bytesText(one.Memory<<20), one.Accelerator, nodeName(one.Host), one.Digest)
			}
			if failed := t.flush(); failed != nil {
				return failed
			}
			return err
		},
	}
	v.flags(cmd, true)
	return cmd
}

func vmRestoreCommand() *cobra.Command {
	var v gridVerb
	var node string
	var r wsdl.RestoreVM
	var limits vmLimits
	var network vmNetwork
	cmd := &cobra.Command{
		Use:   "restore CHECKPOINT",
		Short: "Make a VM that goes on from a checkpoint",
		Long: `Makes a VM that goes on from where a checkpoint was taken, and prints its id. It
is made on the node that keeps the checkpoint, or on --node, which fetches it. A
checkpoint is called by its digest, or enough of its first digits.

No network is part of a checkpoint: with --network the VM joins one, as with the verb
create, at a new address. It must have had a network card.`,
		Example: `  mvm vm restore 3f2a9c --name lab2
  mvm vm restore 3f2a9c --node n2`,
		Args: exactly("a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if r.Limits, err = limits.given(cmd); err != nil {
				return err
			}
			if r.Network, r.NetworkKey, err = network.given(); err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			vm, err := c.RestoreVM(cmd.Context(), node, args[0], &r)
			if err != nil {
				return err
			}
			return v.printNew(cmd, vm)
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&node, "node", "", "make it on this `NODE`, by its name or id")
	cmd.Flags().StringVar(&r.Id, "name", "", "its `ID` (default: one that the node gives)")
	limits.flags(cmd)
	network.flags(cmd)
	cmd.Flags().BoolVar(&r.Suspended, "suspended", false, "do not start it; the verb resume does")
	return cmd
}

func vmExportCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "export CHECKPOINT FILE",
		Short: "Write a checkpoint to one file, to be kept off-line",
		Example: `  mvm vm export 3f2a9c lab1.tar
  mvm vm export 3f2a9c - | ssh archive 'cat > lab1.tar'`,
		Args: exactly("a CHECKPOINT", "a FILE"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			if args[1] == "-" {
				_, err = c.ExportCheckpoint(cmd.Context(), args[0], cmd.OutOrStdout())
				return err
			}
			// Beside the file until it is whole: what is there under its name is.
			file, err := os.CreateTemp(filepath.Dir(args[1]), "."+filepath.Base(args[1])+"-")
			if err != nil {
				return err
			}
			defer func() {
				_ = file.Close()
				if err != nil {
					_ = os.Remove(file.Name())
				}
			}()
			digest, err := c.ExportCheckpoint(cmd.Context(), args[0], file)
			if err != nil {
				return err
			}
			if err := file.Close(); err != nil {
				return err
			}
			if err := os.Rename(file.Name(), args[1]); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), printable(digest))
			return nil
		},
	}
	v.flags(cmd, false)
	return cmd
}

func vmImportCommand() *cobra.Command {
	var v gridVerb
	var node string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Have a node keep a checkpoint out of a file",
		Example: `  mvm vm import lab1.tar
  mvm vm import - --node n2 < lab1.tar`,
		Args: exactly("a FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			from := cmd.InOrStdin()
			if args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return &Exit{Code: ExitNotFound, Err: err}
				}
				defer file.Close()
				from = file
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			digest, err := c.ImportCheckpoint(cmd.Context(), node, io.NopCloser(from))
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), printable(digest))
			return nil
		},
	}
	v.flags(cmd, false)
	cmd.Flags().StringVar(&node, "node", "", "the `NODE` that is to keep it (default: the one with most memory free)")
	return cmd
}

func vmForgetCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:     "forget CHECKPOINT",
		Short:   "Have no node keep a checkpoint any more",
		Example: "  mvm vm forget 3f2a9c",
		Args:    exactly("a CHECKPOINT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			return c.RemoveCheckpoint(cmd.Context(), args[0])
		},
	}
	v.flags(cmd, false)
	return cmd
}

func vmCloneCommand() *cobra.Command {
	var v gridVerb
	var r wsdl.CloneVM
	var limits vmLimits
	var network vmNetwork
	cmd := &cobra.Command{
		Use:   "clone VM",
		Short: "Make a second VM that goes on from where one is",
		Long: `Makes a second VM on the same node that goes on from where the first one is,
which goes on itself, and prints its id. The guest gets a name, a clock and
randomness of its own, and with --network an address: it is on no network else.`,
		Example: `  mvm vm clone lab1 --name lab2
  mvm vm clone lab1 --name lab3 --network lab`,
		Args: exactly("a VM"),
		RunE: v.withVM(func(cmd *cobra.Command, _ *Client, vm *VM) (err error) {
			if r.Limits, err = limits.given(cmd); err != nil {
				return err
			}
			if r.Network, r.NetworkKey, err = network.given(); err != nil {
				return err
			}
			clone, err := vm.Clone(cmd.Context(), &r)
			if err != nil {
				return err
			}
			return v.printNew(cmd, clone)
		}),
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&r.Clone, "name", "", "its `ID` (default: one that the node gives)")
	limits.flags(cmd)
	network.flags(cmd)
	cmd.Flags().BoolVar(&r.Suspended, "suspended", false, "do not start it; the verb resume does")
	return cmd
}

func vmMigrateCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "migrate VM NODE",
		Short: "Move a VM to another node while it runs",
		Long: `Moves a VM to another node, called by its name or id, while it runs: its memory
and what it has written to its disks follow in rounds, and only for the last of them
the guest stands still. The node that a job's VM was made on keeps its attempt, and
must stay for as long as the job, wherever the VM is.`,
		Example: `  mvm vm migrate lab1 n2`,
		Args:    exactly("a VM", "a NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return v.withVM(func(cmd *cobra.Command, c *Client, vm *VM) error {
				answer, err := c.Migrate(cmd.Context(), vm, args[1])
				if err != nil {
					return err
				}
				if v.json {
					return writeJSON(cmd.OutOrStdout(), answer)
				}
				micros := func(n *int64) string { return durationText(time.Duration(wsdl.Or(n, 0)) * time.Microsecond) }
				fmt.Fprintf(cmd.OutOrStdout(), "%s moved in %s and %s, %s; the guest stood still for %s\n", printable(vm.Id), micros(answer.TotalMicros),
					plural(int(wsdl.Or(answer.Rounds, 0)), "round"), bytesText(wsdl.Or(answer.Bytes, 0)), micros(answer.DownMicros))
				return nil
			})(cmd, args)
		},
	}
	v.flags(cmd, true)
	return cmd
}
