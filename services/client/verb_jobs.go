package client

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// jobStates are the states that --state takes.
var jobStates = []string{"pending", "awakening", "running", "terminating", "succeeded", "failed", "cancelled"}

func jobsCommand() *cobra.Command {
	var v gridVerb
	var filter JobFilter
	var state string
	cmd := &cobra.Command{
		Use:   "jobs",
		Short: "List jobs, newest first",
		Example: `  mvm jobs
  mvm jobs --state failed --limit 5
  mvm jobs --name sunspots --json`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if state != "" && !slices.Contains(jobStates, state) {
				return usagef("--state %s: there are %s", state, strings.Join(jobStates, ", "))
			}
			if filter.Limit < 0 {
				return usagef("--limit %d: write a number of jobs, or 0 for all", filter.Limit)
			}
			filter.State = wsdl.JobState(state)
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			jobs, err := c.Jobs(cmd.Context(), filter)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), jobs)
			}
			t := newTable(cmd.OutOrStdout(), "ID", "NAME", "STATE", "SUBMITTED", "TOOK", "REASON")
			for _, job := range jobs {
				reason := ""
				if wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
					reason = shorten(job.Reason, 70)
				}
				t.row(job.Id, job.Name, string(wsdl.Or(job.State, "")), timeText(job.Submitted.ToGoTime()), took(job), reason)
			}
			return t.flush()
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&state, "state", "", "only jobs in this `state`: "+strings.Join(jobStates, ", "))
	cmd.Flags().StringVar(&filter.Name, "name", "", "only jobs whose name contains `text`")
	cmd.Flags().IntVar(&filter.Limit, "limit", 50, "list at most `N`; 0 is all")
	cmd.RegisterFlagCompletionFunc("state", cobra.FixedCompletions(jobStates, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func jobCommand() *cobra.Command {
	var v gridVerb
	cmd := &cobra.Command{
		Use:   "job ID",
		Short: "Show a job: its state and why, processes, builds, results",
		Example: `  mvm job j-3f2a
  mvm job j-3f2a --json`,
		Args: exactly("a job's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, job, err := v.job(cmd, args[0])
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), job)
			}
			return printJob(cmd.OutOrStdout(), job, c.names(cmd.Context()))
		},
	}
	v.flags(cmd, true)
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

func printJob(w io.Writer, job *wsdl.JobStatus, names map[string]string) error {
	t := newTable(w)
	t.row("job:", job.Id)
	t.row("name:", job.Name)
	t.row("state:", string(wsdl.Or(job.State, "")))
	if job.Queue != "" {
		t.row("queue:", job.Queue)
	}
	if try := wsdl.Or(job.Attempt, 0); try > 0 {
		t.row("attempt:", fmt.Sprint(try))
	}
	t.row("submitted:", timeText(job.Submitted.ToGoTime()))
	if start := dateOf(job.Started); !start.IsZero() {
		t.row("started:", timeText(start))
	}
	if end := dateOf(job.Ended); !end.IsZero() {
		t.row("ended:", timeText(end))
	}
	if text := took(job); text != "" {
		t.row("took:", text)
	}
	for _, a := range job.Argument {
		t.row("parameter:", a.Name+" = "+a.Value)
	}
	if bytes := wsdl.Or(job.ProxyBytes, 0); bytes > 0 {
		t.row("between nodes:", fmt.Sprintf("%s, %s", plural(int(wsdl.Or(job.ProxyItems, 0)), "item"), bytesText(bytes)))
	}
	for _, q := range job.Outside {
		t.row("outside queue:", fmt.Sprintf("%s (%s) at %s", q.Name, q.Direction, q.Url))
	}
	if err := t.flush(); err != nil {
		return err
	}
	if job.Reason != "" {
		fmt.Fprintf(w, "reason:\n%s", indent(printableLines(job.Reason), "  "))
	}
	if len(job.Process) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "PROCESS", "NODE", "STATE", "EXIT", "CPU", "MEMORY", "MESSAGE")
		for _, p := range job.Process {
			t.row(Label(job, p), named(names, p.Node), string(wsdl.Or(p.State, "")), exitText(p), cpuText(p), memoryText(p), shorten(p.Message, 60))
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(job.Build) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "SOURCE", "NODE", "BUILT", "DIGEST")
		for _, b := range job.Build {
			how := fmt.Sprintf("in %d ms", wsdl.Or(b.Millis, 0))
			if wsdl.Or(b.Cached, false) {
				how = "cached"
			}
			t.row(b.Source, named(names, b.Node), how, b.Digest)
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if results := Results(job); len(results) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "OUTPUT", "OF", "SIZE")
		for _, r := range results {
			t.row(r.Name, r.Label, bytesText(r.Size))
		}
		return t.flush()
	}
	return nil
}

func exitText(p *wsdl.ProcessStatus) string {
	if p.Signal != "" {
		return p.Signal
	}
	if p.ExitCode == nil {
		return ""
	}
	return fmt.Sprint(*p.ExitCode)
}

func cpuText(p *wsdl.ProcessStatus) string {
	if micros := p.UserMicros + p.SystemMicros; micros > 0 {
		return durationText(time.Duration(micros) * time.Microsecond)
	}
	return ""
}

func memoryText(p *wsdl.ProcessStatus) string {
	if p.MaxResidentKiB > 0 {
		return bytesText(p.MaxResidentKiB << 10)
	}
	return ""
}

func cancelCommand() *cobra.Command {
	var v gridVerb
	var reason string
	cmd := &cobra.Command{
		Use:   "cancel ID",
		Short: "End a job",
		Long:  "Ends a job wherever it is on its way. Cancelling an ended job changes nothing.",
		Example: `  mvm cancel j-3f2a
  mvm cancel j-3f2a --reason "wrong parameters"`,
		Args: exactly("a job's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			state, err := c.Cancel(cmd.Context(), args[0], reason)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), struct {
					ID    string        `json:"id"`
					State wsdl.JobState `json:"state"`
				}{args[0], state})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "job %s is %s\n", printable(args[0]), printable(string(state)))
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&reason, "reason", "", "`text` that the job's record keeps")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}
