package client

import (
	"encoding/xml"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// profileKinds are the kinds of registered profiles.
var profileKinds = []string{"topology", "resources", "job", "codec", "rule"}

func profilesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "profiles",
		Short: "Register profiles on the grid, list and show them",
		Long: `Topologies, resources and whole jobs can be registered under a name and used
again with other parameters: a job profile names a topology or resources by
their profile attribute, and mvm submit --registered runs a registered job.
Codecs and rules, programs that convert and order what is in a queue, are
registered likewise, and named by a queue's encoders and its rule attribute.
Each change makes a new version; the same content keeps its version.`,
		Example: `  mvm profiles list
  mvm profiles register ring.xml --name my-ring
  mvm profiles show topology my-ring@1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("`mvm profiles` has the verbs list, show and register, not %q", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(profilesListCommand(), profilesShowCommand(), profilesRegisterCommand())
	return cmd
}

func kindOf(text string) (wsdl.ProfileKind, error) {
	if !slices.Contains(profileKinds, text) {
		return "", usagef("%q is no kind of profile: there are %s", text, strings.Join(profileKinds, ", "))
	}
	return wsdl.ProfileKind(text), nil
}

func profilesListCommand() *cobra.Command {
	var v gridVerb
	var kind string
	cmd := &cobra.Command{
		Use:   "list [SEARCH]",
		Short: "List registered profiles whose name or description contains SEARCH",
		Example: `  mvm profiles list
  mvm profiles list butterfly --kind topology --json`,
		Args: between(0, "SEARCH"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var of wsdl.ProfileKind
			var err error
			if kind != "" {
				if of, err = kindOf(kind); err != nil {
					return err
				}
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			profiles, err := c.Profiles(cmd.Context(), of, strings.Join(args, ""))
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), profiles)
			}
			t := newTable(cmd.OutOrStdout(), "KIND", "NAME", "VERSION", "REGISTERED", "DESCRIPTION")
			for _, p := range profiles {
				t.row(string(wsdl.Or(p.Kind, "")), p.Name, fmt.Sprint(p.Version), timeText(dateOf(p.Registered)), shorten(p.Description, 70))
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&kind, "kind", "", "only this `kind`: "+strings.Join(profileKinds, ", "))
	cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(profileKinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func profilesShowCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "show KIND NAME[@VERSION]",
		Short: "Print a registered profile as the XML that it was registered from",
		Example: `  mvm profiles show topology my-ring
  mvm profiles show job heat@2 > heat.xml`,
		Args: exactly("a KIND (topology, resources, job, codec or rule)", "a NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			kind, err := kindOf(args[0])
			if err != nil {
				return err
			}
			name, version, err := nameVersion(args[1])
			if err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			p, err := c.Profile(cmd.Context(), kind, name, version)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), p)
			}
			var content any
			switch kind {
			case wsdl.ProfileKindTopology:
				content = p.Topology
			case wsdl.ProfileKindResources:
				content = p.Resources
			case wsdl.ProfileKindJob:
				content = p.Job
			case wsdl.ProfileKindCodec:
				content = p.Codec
			case wsdl.ProfileKindRule:
				content = p.Rule
			}
			var b strings.Builder
			e := xml.NewEncoder(&b)
			e.Indent("", "  ")
			start := xml.StartElement{Name: xml.Name{Local: string(kind)}, Attr: []xml.Attr{{Name: xml.Name{Local: "xmlns"}, Value: wsdl.Namespace}}}
			if err := e.EncodeElement(content, start); err != nil {
				return err
			}
			return writeSpelled(cmd.OutOrStdout(), b.String()+"\n", "&#x%X;")
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return profileKinds, cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	v.flags(cmd, true)
	return cmd
}

func profilesRegisterCommand() *cobra.Command {
	var v gridVerb
	var name, description string
	cmd := &cobra.Command{
		Use:   "register FILE",
		Short: "Register the topology, resources, job, codec or rule in FILE",
		Long: `Registers an XML document whose root element is topology, resources, job, codec
or rule, in the namespace urn:mvm:1. A job, codec or rule is registered under its
own name unless --name gives another; the others need --name.`,
		Example: `  mvm profiles register heat.xml
  mvm profiles register rot13.xml --description "letters, 13 places on"
  mvm profiles register ring.xml --name my-ring --description "a ring for tests"`,
		Args:              exactly("a FILE"),
		ValidArgsFunction: completeFiles("xml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, document, err := LoadProfile(args[0], name, description)
			if err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			if document != nil {
				if p.Job, err = c.ship(cmd.Context(), document, nil, nil); err != nil {
					return err
				}
			}
			version, err := c.Register(cmd.Context(), p)
			if err != nil {
				return document.locate(err)
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), struct {
					Kind    string `json:"kind"`
					Name    string `json:"name"`
					Version int    `json:"version"`
				}{string(wsdl.Or(p.Kind, "")), p.Name, version})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s %s@%d\n", wsdl.Or(p.Kind, ""), printable(p.Name), version)
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&name, "name", "", "register it under `NAME`")
	cmd.Flags().StringVar(&description, "description", "", "`text` that profiles list shows and searches")
	return cmd
}
