package client

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

func planCommand() *cobra.Command {
	var v gridVerb
	var profile profileArgument
	cmd := &cobra.Command{
		Use:   "plan PROFILE",
		Short: "Show where each process of a job would go now, and why not elsewhere",
		Long: `Asks the broker for a dry run: which node would take which process, which
channels would cross between nodes, and why nodes are out. Nothing runs.
Exits with 1 when there is no room now; the reason is told step by step.`,
		Example: `  mvm plan examples/jobs/heat/heat.xml
  mvm plan heat.xml -p rows=4 --json`,
		Args:              between(0, "a PROFILE file"),
		ValidArgsFunction: completeFiles("xml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r, err := profile.request(cmd, args)
			if err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			plan, err := c.Plan(cmd.Context(), r)
			if err != nil {
				return err
			}
			if v.json {
				err = writeJSON(cmd.OutOrStdout(), plan)
			} else {
				err = printPlan(cmd.OutOrStdout(), plan, c.names(cmd.Context()))
			}
			if err == nil && !wsdl.Or(plan.Fits, false) {
				err = &Exit{Code: ExitFailed}
			}
			return err
		},
	}
	v.flags(cmd, true)
	profile.flags(cmd)
	return cmd
}

func printPlan(w io.Writer, plan *wsdl.PlanJobResponse, names map[string]string) error {
	if !wsdl.Or(plan.Fits, false) {
		fmt.Fprintln(w, "does not fit now: "+printable(plan.Reason))
	}
	if len(plan.Placement) > 0 {
		t := newTable(w, "NODE", "PROCESSES", "WHICH")
		var order []string
		tasks := map[string]map[string][]int{}
		count := map[string]int{}
		for _, p := range plan.Placement {
			if tasks[p.Node] == nil {
				tasks[p.Node] = map[string][]int{}
				order = append(order, p.Node)
			}
			tasks[p.Node][p.Task] = append(tasks[p.Node][p.Task], int(wsdl.Or(p.Index, 0)))
			count[p.Node]++
		}
		for _, node := range order {
			which := ""
			for _, task := range sorted(tasks[node]) {
				if which != "" {
					which += " "
				}
				which += task + "[" + ranges(tasks[node][task]) + "]"
			}
			t.row(named(names, node), fmt.Sprint(count[node]), which)
		}
		if err := t.flush(); err != nil {
			return err
		}
		fmt.Fprintf(w, "%s within a node, %d between nodes\n",
			plural(int(wsdl.Or(plan.LocalChannels, 0)), "channel"), wsdl.Or(plan.RemoteChannels, 0))
	}
	if len(plan.Rejection) > 0 {
		fmt.Fprintln(w, "nodes that are out:")
		t := newTable(w)
		for _, r := range plan.Rejection {
			t.row("  "+named(names, r.Node), r.Task, r.Reason)
		}
		return t.flush()
	}
	return nil
}

// ranges writes ascending numbers shortly: 0-3,7.
func ranges(numbers []int) string {
	text := ""
	for i := 0; i < len(numbers); {
		j := i
		for j+1 < len(numbers) && numbers[j+1] == numbers[j]+1 {
			j++
		}
		if text != "" {
			text += ","
		}
		text += fmt.Sprint(numbers[i])
		if j > i {
			text += fmt.Sprintf("-%d", numbers[j])
		}
		i = j + 1
	}
	return text
}
