package client

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"mvm/broker/profile"
)

// drawings are the formats that topology draws.
var drawings = []string{"text", "svg", "dot"}

func topologyCommand() *cobra.Command {
	var v gridVerb
	var params arguments
	var out, format string
	cmd := &cobra.Command{
		Use:   "topology PROFILE",
		Short: "Draw how a profile wires its processes",
		Long: `Draws the processes of a job profile and the channels between their ports, as
text, SVG or Graphviz DOT. No grid is needed, unless the profile names a
registered topology: then --grid or MVM_GRID says where it is registered.`,
		Example: `  mvm topology examples/jobs/sunspots/sunspots.xml
  mvm topology sunspots.xml -p processes=16 -o butterfly.svg
  mvm topology heat.xml --format dot | neato -Tpng > heat.png`,
		Args:              exactly("a PROFILE file"),
		ValidArgsFunction: completeFiles("xml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if format == "" {
				format = drawings[0]
				switch ending := strings.TrimPrefix(filepath.Ext(out), "."); {
				case slices.Contains(drawings, ending):
					format = ending
				case ending != "" && ending != "txt":
					return usagef("-o %s: its ending names no format that is drawn; end it in .txt, .svg or .dot, or say --format", out)
				}
			}
			if !slices.Contains(drawings, format) {
				return usagef("--format %s: there are %s", format, strings.Join(drawings, ", "))
			}
			values, err := params.values()
			if err != nil {
				return err
			}
			document, err := Load(args[0])
			if err != nil {
				return err
			}
			var lookup profile.Lookup
			if v.grid != "" || os.Getenv("MVM_GRID") != "" {
				c, err := v.dial(cmd)
				if err != nil {
					return err
				}
				lookup = c.lookup(cmd.Context())
			}
			job, err := document.Compile(values, lookup)
			if err != nil {
				return err
			}
			drawing, err := profile.Draw(job, format)
			if err != nil {
				return err
			}
			if out == "" || out == "-" {
				_, err = cmd.OutOrStdout().Write(drawing)
				return err
			}
			if err := os.WriteFile(out, drawing, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s, %s\n", out, plural(len(job.Processes), "process"), plural(len(job.Channels), "channel"))
			return nil
		},
	}
	v.flags(cmd, false)
	params.flag(cmd)
	cmd.Flags().StringVarP(&out, "output", "o", "", "write to `FILE`; its ending chooses the format")
	cmd.Flags().StringVar(&format, "format", "", "text, svg or dot (default: by the ending of FILE, else text)")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(drawings, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
