package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// profileArgument is a verb's PROFILE: a file, or the name of a registered
// profile given by --registered.
type profileArgument struct {
	registered string
	queue      string
	params     arguments
}

func (a *profileArgument) flags(cmd *cobra.Command) {
	a.params.flag(cmd)
	cmd.Flags().StringVar(&a.queue, "queue", "", "wait in the broker's queue `NAME`, whatever the profile's policy says")
	cmd.Flags().StringVar(&a.registered, "registered", "", "use the registered job profile `NAME[@VERSION]` instead of a file")
}

// request loads the file or takes the name.
func (a *profileArgument) request(cmd *cobra.Command, args []string) (Request, error) {
	r := Request{Queue: a.queue}
	var err error
	if r.Arguments, err = a.params.values(); err != nil {
		return r, err
	}
	switch {
	case a.registered != "" && len(args) > 0:
		return r, usagef("give a PROFILE file or --registered, not both")
	case a.registered != "":
		r.Profile, r.Version, err = nameVersion(a.registered)
	case len(args) == 0:
		err = usagef("`%s` needs a PROFILE file, or --registered NAME; see `%s --help`", cmd.CommandPath(), cmd.CommandPath())
	default:
		r.Document, err = Load(args[0])
	}
	return r, err
}

// nameVersion splits NAME[@VERSION].
func nameVersion(text string) (string, int, error) {
	name, version, given := strings.Cut(text, "@")
	if !given {
		return name, 0, nil
	}
	n, err := strconv.Atoi(version)
	if err != nil || n < 1 || name == "" {
		return "", 0, usagef("%q: write a registered profile as NAME or NAME@VERSION, versions from 1", text)
	}
	return name, n, nil
}

func submitCommand() *cobra.Command {
	var v gridVerb
	var profile profileArgument
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "submit PROFILE",
		Short: "Send a job profile to the grid's broker",
		Long: `Checks the profile, uploads the files that it names beside itself, and sends it
to the grid's broker. When the job's id is printed, the job is durable: it will
be finished, or failed with a reason, whatever is restarted meanwhile.`,
		Example: `  mvm submit examples/jobs/sunspots/sunspots.xml
  mvm submit heat.xml -p steps=2000 -p columns=4 --wait
  mvm submit --registered heat@2 -p steps=500 --grid http://10.0.0.7:7480`,
		Args:              between(0, "a PROFILE file"),
		ValidArgsFunction: completeFiles("xml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if timeout < 0 {
				return usagef("--timeout %v: write how long to wait, for example 90s", timeout)
			}
			if timeout != 0 && !wait {
				return usagef("--timeout is for --wait: a job's own limit is its profile's policy wallTime")
			}
			r, err := profile.request(cmd, args)
			if err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			shown := newProgress(cmd.ErrOrStderr(), wait && !v.json)
			defer shown.close()
			r.Uploaded = shown.uploads()
			id, err := c.Submit(cmd.Context(), r)
			if err != nil {
				return err
			}
			if !wait {
				if v.json {
					return writeJSON(cmd.OutOrStdout(), struct {
						ID string `json:"id"`
					}{id})
				}
				fmt.Fprintln(cmd.OutOrStdout(), printable(id))
				return nil
			}
			if !v.json {
				fmt.Fprintln(cmd.OutOrStdout(), printable(id))
			}
			ctx := cmd.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			view := &jobView{p: shown}
			job, err := c.Wait(ctx, id, view.changed)
			shown.close()
			if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return &Exit{Code: ExitTimeout, Err: fmt.Errorf("job %s has not ended within %v; it goes on: `mvm job %s` shows it, `mvm cancel %s` ends it", id, timeout, id, id)}
			}
			if err != nil && cmd.Context().Err() != nil {
				return &Exit{Code: ExitInterrupted, Err: fmt.Errorf("interrupted; job %s goes on: `mvm cancel %s` ends it", id, id)}
			}
			if err != nil {
				return err
			}
			if v.json {
				if err := writeJSON(cmd.OutOrStdout(), job); err != nil {
					return err
				}
			} else {
				describeEnd(cmd.ErrOrStderr(), job)
			}
			return outcome(job)
		},
	}
	v.flags(cmd, true)
	profile.flags(cmd)
	cmd.Flags().BoolVarP(&wait, "wait", "w", false, "wait for the job's end and exit with its outcome")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: wait so long at most (for example 90s)")
	return cmd
}
