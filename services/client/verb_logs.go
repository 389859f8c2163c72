package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// followAtOnce bounds how many streams are followed together: each is a long
// poll of its own.
const followAtOnce = 64

func logsCommand() *cobra.Command {
	var v gridVerb
	var process string
	var follow, stderr bool
	cmd := &cobra.Command{
		Use:   "logs ID",
		Short: "Print what a job's processes write to stdout or stderr",
		Long: `Prints what the job's processes have written so far, also after the job's end.
Without --process, lines of different processes are labelled. With -f it goes
on until the job has ended.`,
		Example: `  mvm logs j-3f2a
  mvm logs j-3f2a -f --process worker[3]
  mvm logs j-3f2a --stderr`,
		Args: exactly("a job's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, job, err := v.job(cmd, args[0])
			if err != nil {
				return err
			}
			name := Stdout
			if stderr {
				name = Stderr
			}
			if follow {
				if job, err = c.spawned(cmd.Context(), job); err != nil {
					return err
				}
			}
			chosen := job.Process
			if process != "" {
				p, err := Process(job, process)
				if err != nil {
					return err
				}
				chosen = []*wsdl.ProcessStatus{p}
			}
			out := cmd.OutOrStdout()
			if Ended(job) && process == "" {
				chosen = speaking(chosen, name)
			}
			if len(chosen) == 1 {
				_, err := c.Output(cmd.Context(), job.Id, int(wsdl.Or(chosen[0].Id, 0)), name, 0, follow, out)
				return c.nothingYet(job, err)
			}
			if follow && len(chosen) > followAtOnce {
				return usagef("job %s has %d processes; at most %d are followed at once: choose one with --process", job.Id, len(chosen), followAtOnce)
			}
			if follow {
				return c.followAll(cmd.Context(), job, chosen, name, out)
			}
			return c.printAll(cmd.Context(), job, chosen, name, out)
		},
	}
	v.flags(cmd, false)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job has ended")
	cmd.Flags().StringVar(&process, "process", "", "only `task[index]`, or a process's number")
	cmd.Flags().BoolVar(&stderr, "stderr", false, "stderr instead of stdout")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

// spawned waits until the job's processes run, or it has ended.
func (c *Client) spawned(ctx context.Context, job *wsdl.JobStatus) (*wsdl.JobStatus, error) {
	var err error
	for err == nil && !Ended(job) {
		switch wsdl.Or(job.State, "") {
		case wsdl.JobStateRunning, wsdl.JobStateTerminating:
			return job, nil
		}
		job, err = c.next(ctx, job.Id, job.Revision)
	}
	return job, err
}

// nothingYet turns "there is no such stream" into silence for a job that has
// not spawned its processes: what is not there yet is not missing.
func (c *Client) nothingYet(job *wsdl.JobStatus, err error) error {
	if wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		return err
	}
	switch wsdl.Or(job.State, "") {
	case wsdl.JobStatePending, wsdl.JobStateAwakening:
		return nil
	}
	return err
}

// speaking leaves out processes of an ended job whose stream is known to be
// empty, so that one voice alone needs no label.
func speaking(processes []*wsdl.ProcessStatus, name string) []*wsdl.ProcessStatus {
	var some []*wsdl.ProcessStatus
	for _, p := range processes {
		empty := false
		for _, f := range p.File {
			if f.Name == name && wsdl.Or(f.Size, 0) == 0 {
				empty = true
			}
		}
		if !empty {
			some = append(some, p)
		}
	}
	return some
}

// printAll prints the streams one after the other, each line labelled.
func (c *Client) printAll(ctx context.Context, job *wsdl.JobStatus, chosen []*wsdl.ProcessStatus, name string, out io.Writer) error {
	for _, p := range chosen {
		lines := &labeller{label: Label(job, p), w: out}
		_, err := c.Output(ctx, job.Id, int(wsdl.Or(p.Id, 0)), name, 0, false, lines)
		lines.close()
		if err := c.nothingYet(job, err); err != nil {
			return fmt.Errorf("%s of %s: %w", name, Label(job, p), err)
		}
	}
	return nil
}

func (c *Client) followAll(ctx context.Context, job *wsdl.JobStatus, chosen []*wsdl.ProcessStatus, name string, out io.Writer) error {
	var wait sync.WaitGroup
	var mu sync.Mutex // guards out
	errs := make([]error, len(chosen))
	for i, p := range chosen {
		wait.Add(1)
		go func() {
			defer wait.Done()
			lines := &labeller{label: Label(job, p), w: out, mu: &mu}
			_, err := c.Output(ctx, job.Id, int(wsdl.Or(p.Id, 0)), name, 0, true, lines)
			lines.close()
			errs[i] = c.nothingYet(job, err)
		}()
	}
	wait.Wait()
	return errors.Join(errs...)
}

// labeller puts "label | " before each line, and writes whole lines at once.
type labeller struct {
	label string
	w     io.Writer
	mu    *sync.Mutex // guards w where several share it; nil: it is not shared
	rest  []byte
}

func (l *labeller) Write(data []byte) (int, error) {
	l.rest = append(l.rest, data...)
	end := bytes.LastIndexByte(l.rest, '\n')
	if end < 0 {
		const longest = 64 << 10 // a line without end is not kept for ever
		if len(l.rest) < longest {
			return len(data), nil
		}
		l.rest = append(l.rest, '\n')
		end = len(l.rest) - 1
	}
	var labelled bytes.Buffer
	for line := range bytes.Lines(l.rest[:end+1]) {
		fmt.Fprintf(&labelled, "%s | %s", printable(l.label), line)
	}
	l.rest = append(l.rest[:0], l.rest[end+1:]...)
	if l.mu != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
	}
	if _, err := l.w.Write(labelled.Bytes()); err != nil {
		return 0, err
	}
	return len(data), nil
}

// close writes what is left of a last line without end.
func (l *labeller) close() {
	if len(l.rest) > 0 {
		l.Write([]byte{'\n'})
	}
}
