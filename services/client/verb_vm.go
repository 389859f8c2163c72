package client

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

func vmCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vm",
		Short: "Make and manage OS-level VMs on the grid's nodes",
		Long: `Makes OS-level VMs on nodes that have QEMU and manages them. Any node of the
grid takes these commands: they find the node that has the VM.

A VM is called by its id or, where several nodes have one of that id, by
NODE:ID; ` + "`mvm vm ls`" + ` lists them. Those that belong to a job come and go with
it: to stop or destroy one behind the job's back takes --force, and the job's
attempt fails by that. It is not suspended, resumed, checkpointed or cloned by
itself either: that would tear its job's checkpoints, or double its keys.`,
		Example: `  mvm vm create minimal --name lab1
  mvm vm ls
  mvm vm console lab1
  mvm vm checkpoint lab1
  mvm vm migrate lab1 n2
  mvm vm destroy lab1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("`mvm vm` has no verb %q; `mvm vm --help` lists them", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(vmListCommand(), vmCreateCommand(), vmInspectCommand(), vmConsoleCommand(),
		vmTurnCommand("suspend", "Stop a VM's processors where they are", func(cmd *cobra.Command, vm *VM) error { return vm.Suspend(cmd.Context()) }),
		vmTurnCommand("resume", "Let a VM's processors go on", func(cmd *cobra.Command, vm *VM) error { return vm.Resume(cmd.Context()) }),
		vmStopCommand(), vmDestroyCommand(),
		vmCheckpointCommand(), vmCheckpointsCommand(), vmRestoreCommand(), vmExportCommand(), vmImportCommand(), vmForgetCommand(),
		vmCloneCommand(), vmMigrateCommand())
	return cmd
}

func vmListCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the VMs of all nodes",
		Long: `Lists the VMs of all nodes, those of jobs among them: OWNER is then the job and
its attempt. CPU is the processor time that a VM has taken, and what it may take
at most of a core; MEMORY what it has, and what of it is its own: clones share the
rest.`,
		Example: `  mvm vm ls
  mvm vm ls --json`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			vms, err := c.VMs(cmd.Context())
			if err != nil && len(vms) == 0 {
				return err
			}
			// What some nodes tell is shown, and that others do not.
			if failed := printVMs(cmd.OutOrStdout(), vms, v.json); failed != nil {
				return failed
			}
			return err
		},
	}
	v.flags(cmd, true)
	return cmd
}

func printVMs(w io.Writer, vms []*VM, asJSON bool) error {
	if asJSON {
		list := []*wsdl.VirtualMachine{}
		for _, vm := range vms {
			list = append(list, vm.VirtualMachine)
		}
		return writeJSON(w, list)
	}
	columns := []string{"VM", "NODE", "STATE", "IMAGE", "MEMORY", "CPU", "ACCELERATOR", "OWNER", "CREATED"}
	ended := slices.ContainsFunc(vms, func(vm *VM) bool { return vm.Reason != "" })
	if ended {
		columns = append(columns, "REASON")
	}
	t := newTable(w, columns...)
	for _, vm := range vms {
		row := []string{vm.Id, nodeName(vm.Host), string(wsdl.Or(vm.State, "")), vm.imageText(), vm.memoryText(), vm.cpuText(), vm.Accelerator, vm.Owner, timeText(dateOf(vm.Created))}
		if ended {
			row = append(row, vm.Reason)
		}
		t.row(row...)
	}
	return t.flush()
}

// imageText is the image's name, or as much of its digest as tells it apart.
func (vm *VM) imageText() string {
	const enough = len("sha256:") + 12
	return cmp.Or(vm.ImageName, vm.Image[:min(len(vm.Image), enough)])
}

func (vm *VM) memoryText() string {
	text := bytesText(vm.Memory << 20)
	if s := vm.Statistics; s != nil && s.Memory != nil {
		text += " (" + bytesText(*s.Memory) + ")"
	}
	return text
}

func (vm *VM) cpuText() string {
	var parts []string
	if s := vm.Statistics; s != nil && s.CpuMillis != nil {
		parts = append(parts, durationText(time.Duration(*s.CpuMillis)*time.Millisecond))
	}
	if l := vm.Limits; l != nil && l.CpuPercent > 0 {
		parts = append(parts, fmt.Sprintf("at most %d %%", l.CpuPercent))
	}
	return strings.Join(parts, ", ")
}

func vmCreateCommand() *cobra.Command {
	var v gridVerb
	var node string
	var r wsdl.CreateVM
	var limits vmLimits
	var network vmNetwork
	cmd := &cobra.Command{
		Use:   "create IMAGE",
		Short: "Make a VM from an image and start it",
		Long: `Makes a VM from a registered image, starts it, and prints its id. Without --node
it is made on the node that has most memory free. With --name the command may be
repeated: the VM is made once.

With --network it has a network card, and reaches by their names all VMs that were
made with that network's name and key, on whatever nodes they are; nobody else does.
To let others in, give them the key's file.`,
		Example: `  mvm vm create minimal
  mvm vm create minimal@2 --name lab1 --memory 256 --cpu 50 --node n2
  mvm vm create minimal --name lab2 --network lab
  mvm vm create sha256:3f2a... --suspended`,
		Args: exactly("an IMAGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.Memory < 0 || r.Memory == 0 && cmd.Flags().Changed("memory") {
				return usagef("--memory %d: write a number above 0, or leave it out", r.Memory)
			}
			r.Image = args[0]
			var err error
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
			vm, err := c.CreateVM(cmd.Context(), node, &r)
			if err != nil {
				return err
			}
			return v.printNew(cmd, vm)
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&node, "node", "", "make it on this `NODE`, by its name or id")
	cmd.Flags().StringVar(&r.Id, "name", "", "its `ID` (default: one that the node gives)")
	cmd.Flags().Int64Var(&r.Memory, "memory", 0, "its memory in `MIB` (default: what the image needs)")
	limits.flags(cmd)
	network.flags(cmd)
	cmd.Flags().BoolVar(&r.Suspended, "suspended", false, "do not start it; the verb resume does")
	return cmd
}

// vmLimits are the flags for what a VM may take.
type vmLimits struct{ wsdl.VMLimits }

func (l *vmLimits) flags(cmd *cobra.Command) {
	cmd.Flags().Int32Var(&l.CpuPercent, "cpu", 0, "at most so many `PERCENT` of a core (default: all of one)")
	cmd.Flags().Int64Var(&l.Disk, "disk", 0, "at most so many `MIB` written beside its image")
	cmd.Flags().Int64Var(&l.DiskRate, "disk-rate", 0, "at most so many `KIB` a second from and to its disk")
	cmd.Flags().Int64Var(&l.NetworkRate, "network-rate", 0, "at most so many `KIB` a second over its network")
}

// given are those that are not left out; nil where all are.
func (l *vmLimits) given(cmd *cobra.Command) (*wsdl.VMLimits, error) {
	for name, value := range map[string]int64{"cpu": int64(l.CpuPercent), "disk": l.Disk, "disk-rate": l.DiskRate, "network-rate": l.NetworkRate} {
		if value < 0 || value == 0 && cmd.Flags().Changed(name) {
			return nil, usagef("--%s %d: write a number above 0, or leave it out", name, value)
		}
	}
	if l.VMLimits == (wsdl.VMLimits{}) {
		return nil, nil
	}
	return &l.VMLimits, nil
}

// printNew prints the id of a VM that was made, or all of it.
func (v *gridVerb) printNew(cmd *cobra.Command, vm *VM) error {
	if v.json {
		return writeJSON(cmd.OutOrStdout(), vm.VirtualMachine)
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), printable(vm.Id))
	return err
}

// withVM runs a verb about the VM that its first argument names.
func (v *gridVerb) withVM(do func(cmd *cobra.Command, c *Client, vm *VM) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := v.dial(cmd)
		if err != nil {
			return err
		}
		vm, err := c.VM(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		return do(cmd, c, vm)
	}
}

func vmInspectCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "inspect VM",
		Short: "Show all that is known of a VM",
		Example: `  mvm vm inspect lab1
  mvm vm inspect n2:lab1 --json`,
		Args: exactly("a VM"),
		RunE: v.withVM(func(cmd *cobra.Command, _ *Client, vm *VM) error {
			if v.json {
				return writeJSON(cmd.OutOrStdout(), vm.VirtualMachine)
			}
			return vm.print(cmd.OutOrStdout())
		}),
	}
	v.flags(cmd, true)
	return cmd
}

func (vm *VM) print(w io.Writer) error {
	t := newTable(w)
	line := func(name, value string) {
		if value != "" {
			t.row(name, value)
		}
	}
	line("vm", vm.Id)
	line("node", nodeName(vm.Host)+" ("+vm.Node+")")
	line("state", string(wsdl.Or(vm.State, "")))
	line("reason", vm.Reason)
	line("image", strings.TrimSpace(vm.ImageName+" "+vm.Image))
	line("accelerator", vm.Accelerator)
	line("memory", vm.memoryText())
	line("network", strings.TrimSpace(vm.Network+" "+vm.Address))
	line("owner", vm.Owner)
	line("created", timeText(dateOf(vm.Created)))
	line("console", vm.VirtualMachine.Console)
	if l := vm.Limits; l != nil {
		for _, limit := range []struct {
			name  string
			value int64
			text  string
		}{
			{"cpu limit", int64(l.CpuPercent), fmt.Sprintf("%d %% of a core", l.CpuPercent)},
			{"disk limit", l.Disk, bytesText(l.Disk << 20)},
			{"disk rate", l.DiskRate, bytesText(l.DiskRate<<10) + " a second"},
			{"network rate", l.NetworkRate, bytesText(l.NetworkRate<<10) + " a second"},
		} {
			if limit.value > 0 {
				line(limit.name, limit.text)
			}
		}
	}
	if s := vm.Statistics; s != nil {
		if s.CpuMillis != nil {
			line("cpu", durationText(time.Duration(*s.CpuMillis)*time.Millisecond))
		}
		for _, bytes := range []struct {
			name  string
			value *int64
		}{{"disk read", s.DiskRead}, {"disk written", s.DiskWritten}, {"received", s.Received}, {"sent", s.Sent}} {
			if bytes.value != nil {
				line(bytes.name, bytesText(*bytes.value))
			}
		}
	}
	return t.flush()
}

// vmTurnCommand is a verb that makes a VM be in another state.
func vmTurnCommand(name, short string, turn func(cmd *cobra.Command, vm *VM) error) *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:     name + " VM",
		Short:   short,
		Example: "  mvm vm " + name + " lab1\n  mvm vm " + name + " n2:lab1",
		Args:    exactly("a VM"),
		RunE: v.withVM(func(cmd *cobra.Command, _ *Client, vm *VM) error {
			if err := turn(cmd, vm); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), printable(vm.Id+" "+string(wsdl.Or(vm.State, "destroyed"))))
			return nil
		}),
	}
	v.flags(cmd, false)
	return cmd
}

func vmStopCommand() *cobra.Command {
	const most = time.Minute
	var grace time.Duration
	var force bool
	cmd := vmTurnCommand("stop", "Ask the guest to end, and end it if it does not", func(cmd *cobra.Command, vm *VM) error {
		return vm.Stop(cmd.Context(), grace, force)
	})
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if grace < 0 || grace > most {
			return usagef("--grace %v: the guest has at most %v", grace, most)
		}
		return nil
	}
	cmd.Long = "Presses the guest's power button, so to say, and ends the VM if it still runs after\n--grace. It stays listed, with its end, until `mvm vm destroy`."
	cmd.Flags().DurationVar(&grace, "grace", 10*time.Second, "for the guest to end by itself")
	forceFlag(cmd, &force)
	return cmd
}

func vmDestroyCommand() *cobra.Command {
	var force bool
	cmd := vmTurnCommand("destroy", "End a VM at once and remove all that it had", func(cmd *cobra.Command, vm *VM) error {
		vm.State = nil
		return vm.Destroy(cmd.Context(), force)
	})
	forceFlag(cmd, &force)
	return cmd
}

func forceFlag(cmd *cobra.Command, force *bool) {
	cmd.Flags().BoolVar(force, "force", false, "also a VM that belongs to a job, whose attempt fails")
}
