package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// Commands are the verbs of a grid's user, ready to be put under a root
// command. Errors that they return are for PrintError and ExitCode.
func Commands(images ImageMaker) []*cobra.Command {
	return []*cobra.Command{
		labCommand(),
		submitCommand(),
		planCommand(),
		jobsCommand(),
		jobCommand(),
		logsCommand(),
		outputCommand(),
		cancelCommand(),
		queueCommand(),
		vmCommand(),
		nodesCommand(),
		profilesCommand(),
		imageCommand(images),
		topologyCommand(),
		servicesCommand(),
		exitCodesTopic(),
	}
}

func exitCodesTopic() *cobra.Command {
	return &cobra.Command{Use: "exit-codes", Short: "What the exit code of each verb means", Long: ExitCodes}
}

// gridVerb adds the flags that every verb that asks a grid has.
type gridVerb struct {
	grid string
	json bool
}

func (v *gridVerb) flags(cmd *cobra.Command, lists bool) {
	cmd.Flags().StringVar(&v.grid, "grid", "", "address of any node's bootstrap (default $MVM_GRID, else "+DefaultGrid+")")
	if lists {
		cmd.Flags().BoolVar(&v.json, "json", false, "print JSON for programs")
	}
}

func (v *gridVerb) dial(cmd *cobra.Command) (*Client, error) {
	grid := v.grid
	if grid == "" {
		grid = GridFromEnvironment()
	}
	c, err := Dial(cmd.Context(), grid)
	if err != nil && transient(err) {
		var fault *wsdl.Fault
		if errors.As(err, &fault) && fault.Advice == "" {
			advised := *fault
			advised.Advice = "start a grid with `mvm node`, or name one with --grid or MVM_GRID"
			return nil, &advised
		}
	}
	return c, err
}

// job dials the grid and asks for the job that a verb is about.
func (v *gridVerb) job(cmd *cobra.Command, id string) (*Client, *wsdl.JobStatus, error) {
	c, err := v.dial(cmd)
	if err != nil {
		return nil, nil, err
	}
	job, err := c.Job(cmd.Context(), id)
	return c, job, err
}

// arguments is the -p flag: name=value, repeatable.
type arguments []string

func (a *arguments) flag(cmd *cobra.Command) {
	cmd.Flags().StringArrayVarP((*[]string)(a), "param", "p", nil, "`name=value` for a parameter of the profile; repeatable")
}

func (a arguments) values() (map[string]string, error) {
	values := map[string]string{}
	for _, text := range a {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" {
			return nil, usagef("-p %s: write it as name=value", text)
		}
		if _, twice := values[name]; twice {
			return nil, usagef("-p %s: %s is given twice", text, name)
		}
		values[name] = value
	}
	return values, nil
}

// exactly makes a wrong number of arguments a usage error that names them.
func exactly(names ...string) cobra.PositionalArgs {
	return between(len(names), names...)
}

// between is as exactly, with all names after the least-th optional.
func between(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return usagef("`%s` needs %s; see `%s --help`", cmd.CommandPath(), names[len(args)], cmd.CommandPath())
		case len(args) > len(names):
			return usagef("`%s` does not take %q; see `%s --help`", cmd.CommandPath(), args[len(names)], cmd.CommandPath())
		}
		// As from "$JOB" where JOB is unset: it must not come to mean something else.
		if i := slices.Index(args, ""); i >= 0 {
			return usagef("argument %d of `%s` is empty; see `%s --help`", i+1, cmd.CommandPath(), cmd.CommandPath())
		}
		return nil
	}
}

// completeJobs completes the id of a job, asking the grid for at most a second.
func completeJobs(v *gridVerb) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		cmd.SetContext(ctx)
		c, err := v.dial(cmd)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		jobs, err := c.Jobs(ctx, JobFilter{Limit: 50})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var ids []string
		for _, job := range jobs {
			ids = append(ids, job.Id+"\t"+job.Name+", "+string(wsdl.Or(job.State, "")))
		}
		return ids, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeFiles completes file names that end in one of the given endings.
func completeFiles(endings ...string) func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return endings, cobra.ShellCompDirectiveFilterFileExt
	}
}

// outcome is the error with which a verb that waited for a job ends, nil when
// the job succeeded. What went wrong has been printed by then.
func outcome(job *wsdl.JobStatus) error {
	switch wsdl.Or(job.State, "") {
	case wsdl.JobStateSucceeded:
		return nil
	case wsdl.JobStateCancelled:
		return &Exit{Code: ExitCancelled}
	}
	return &Exit{Code: ExitFailed}
}

// describeEnd prints how a job ended: one line, and for a failed one why.
func describeEnd(w io.Writer, job *wsdl.JobStatus) {
	line := fmt.Sprintf("job %s (%s) %s", job.Id, job.Name, wsdl.Or(job.State, ""))
	if t := took(job); t != "" {
		line += " after " + t
	}
	if try := wsdl.Or(job.Attempt, 0); try > 1 {
		line += fmt.Sprintf(", in attempt %d", try)
	}
	fmt.Fprintln(w, printable(line))
	if job.Reason != "" && wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
		fmt.Fprint(w, indent(printableLines(job.Reason), "  "))
	}
}

// printableLines is text without control characters but line ends and tabs.
func printableLines(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		parts := strings.Split(line, "\t")
		for j := range parts {
			parts[j] = printable(parts[j])
		}
		lines[i] = strings.Join(parts, "\t")
	}
	return strings.Join(lines, "\n")
}
