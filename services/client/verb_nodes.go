package client

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mvm/broker/profile"
	"mvm/wsdl"
)

func nodesCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "nodes [NODE]",
		Short: "List the nodes of the grid and what they can do",
		Long: `Lists the nodes of the grid; with the name or id of one, all that it says of
itself: also what its own file lets the queues of jobs have there.`,
		Example: `  mvm nodes
  mvm nodes lion
  mvm nodes --json --grid http://10.0.0.7:7480`,
		Args: between(0, "a NODE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			nodes, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if len(args) > 0 {
				if nodes, err = called(nodes, args[0]); err != nil {
					return err
				}
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), nodes)
			}
			if len(args) > 0 {
				for _, n := range nodes {
					if err := printNode(cmd.OutOrStdout(), n); err != nil {
						return err
					}
				}
				return nil
			}
			t := newTable(cmd.OutOrStdout(), "NAME", "ID", "STATE", "ROLES", "CORES", "MEMORY", "SLOTS FREE", "LANGUAGES", "VMS", "URL")
			for _, n := range nodes {
				var roles, languages []string
				for _, r := range n.Role {
					roles = append(roles, string(wsdl.Or(r, "")))
				}
				for _, compiler := range n.Compiler {
					if l := string(wsdl.Or(compiler.Language, "")); !slices.Contains(languages, l) {
						languages = append(languages, l)
					}
				}
				t.row(n.Name, n.Id, n.State, strings.Join(roles, ","), fmt.Sprint(n.Cores), bytesText(n.Memory<<20),
					fmt.Sprintf("%d of %d", wsdl.Or(n.FreeSlots, 0), wsdl.Or(n.Slots, 0)), strings.Join(languages, ","), offerText(n), n.Url)
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	return cmd
}

// called are the nodes of a name; or the one of an id.
func called(nodes []*wsdl.Node, name string) (some []*wsdl.Node, err error) {
	var names []string
	for _, n := range nodes {
		if n.Id == name || n.Name == name {
			some = append(some, n)
		}
		names = append(names, n.Name)
	}
	if len(some) == 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("the grid knows no node %q%s", name, profile.Nearest(name, names)), "`mvm nodes` lists them")
	}
	return some, nil
}

// printNode prints all that a node says of itself.
func printNode(w io.Writer, n *wsdl.Node) error {
	t := newTable(w)
	t.row("name:", n.Name)
	t.row("id:", n.Id)
	t.row("state:", n.State)
	t.row("url:", n.Url)
	for _, r := range n.Role {
		t.row("role:", string(wsdl.Or(r, "")))
	}
	t.row("machine:", strings.Join([]string{n.Os, n.Arch, plural(int(n.Cores), "core"), bytesText(n.Memory << 20)}, ", "))
	t.row("slots free:", fmt.Sprintf("%d of %d", wsdl.Or(n.FreeSlots, 0), wsdl.Or(n.Slots, 0)))
	if n.FreeDisk != nil {
		t.row("disk free:", bytesText(*n.FreeDisk<<20))
	}
	for _, c := range n.Compiler {
		t.row("compiler:", strings.TrimSpace(fmt.Sprintf("%s: %s %s", wsdl.Or(c.Language, ""), c.Command, c.Version)))
	}
	if n.Qemu != "" {
		t.row("qemu:", n.Qemu)
	}
	t.row("cleans by:", n.Cleaning)
	for _, wall := range n.Unconfined {
		t.row("lacks the wall:", wall)
	}
	for _, limit := range limitsOf(n.QueueLimits) {
		t.row("queue limits:", limit)
	}
	return t.flush()
}

// limitsOf is what a node lets queues have, as its file says it.
func limitsOf(l *wsdl.QueueLimits) (limits []string) {
	if l == nil {
		return []string{"none"}
	}
	for _, list := range [][2]string{{"types", l.Types}, {"codecs", l.Codecs}, {"registered codecs", l.Registered}, {"rules", l.Rules}} {
		if list[1] != "" {
			limits = append(limits, list[0]+": "+list[1])
		}
	}
	for _, number := range []struct {
		most int64
		what string
	}{{int64(l.Machines), "queue-level VM"}, {int64(l.Queues), "served queue"}, {int64(l.Channels), "channel"}} {
		if number.most > 0 {
			limits = append(limits, "at most "+plural(int(number.most), number.what))
		}
	}
	if l.Memory > 0 {
		limits = append(limits, fmt.Sprintf("at most %s of one job's queues", bytesText(l.Memory<<20)))
	}
	if m := l.Vm; m != nil {
		for _, limit := range []struct {
			most int64
			text string
		}{
			{int64(m.Cpu), fmt.Sprintf("%d %% of a core", m.Cpu)}, {m.Disk, bytesText(m.Disk<<20) + " of disk"},
			{m.DiskRate, bytesText(m.DiskRate<<10) + " a second from and to its disk"}, {m.NetworkRate, bytesText(m.NetworkRate<<10) + " a second over the network"},
		} {
			if limit.most > 0 {
				limits = append(limits, "a VM has at most "+limit.text)
			}
		}
	}
	return limits
}

// offerText is what a node offers for OS-level VMs.
func offerText(n *wsdl.Node) string {
	if n.Accelerator == "" {
		return ""
	}
	return n.Accelerator + ", QEMU " + n.Qemu
}

func servicesCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "services",
		Short: "List the SOAP services that a node publishes",
		Long: `Lists what the node named by --grid publishes, with the address of each
service's WSDL, from which any SOAP stack makes a client.`,
		Example: `  mvm services
  mvm services --json`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			services, err := c.Services(cmd.Context())
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), services)
			}
			t := newTable(cmd.OutOrStdout(), "SERVICE", "WSDL", "WHAT IT IS FOR")
			for _, s := range services {
				t.row(s.Name, s.Wsdl, shorten(s.Description, 90))
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	return cmd
}
