package client

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

func nodesCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "List the nodes of the grid and what they can do",
		Example: `  mvm nodes
  mvm nodes --json --grid http://10.0.0.7:7480`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			nodes, err := c.Nodes(cmd.Context())
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), nodes)
			}
			t := newTable(cmd.OutOrStdout(), "NAME", "ID", "STATE", "ROLES", "CORES", "MEMORY", "SLOTS FREE", "LANGUAGES", "URL")
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
					fmt.Sprintf("%d of %d", wsdl.Or(n.FreeSlots, 0), wsdl.Or(n.Slots, 0)), strings.Join(languages, ","), n.Url)
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	return cmd
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
