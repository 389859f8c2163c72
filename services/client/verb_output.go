package client

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

func outputCommand() *cobra.Command {
	var v gridVerb
	var dir string
	var list bool
	cmd := &cobra.Command{
		Use:   "output ID [NAME...]",
		Short: "Save a job's output files",
		Long: `Saves the files that the job's profile names as outputs; all of them, or those
named. A file that several processes wrote is put into a folder for each, named
task.index. Each file is verified against its digest. -o - writes to stdout.`,
		Example: `  mvm output j-3f2a -o results
  mvm output j-3f2a field.png
  mvm output j-3f2a cycle.txt -o - | head
  mvm output j-3f2a --list`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return exactly("a job's ID")(cmd, args)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, job, err := v.job(cmd, args[0])
			if err != nil {
				return err
			}
			results, err := choose(job, args[1:])
			if err != nil {
				return err
			}
			if list || v.json {
				if !list {
					if err := c.saveAll(cmd, job.Id, results, dir); err != nil {
						return err
					}
				}
				if v.json {
					return writeJSON(cmd.OutOrStdout(), results)
				}
				t := newTable(cmd.OutOrStdout(), "OUTPUT", "OF", "SIZE", "DIGEST")
				for _, r := range results {
					t.row(r.Name, r.Label, bytesText(r.Size), r.Digest)
				}
				return t.flush()
			}
			if dir == "-" {
				for _, r := range results {
					if _, err := c.Output(cmd.Context(), job.Id, int(r.Process), r.Name, 0, true, cmd.OutOrStdout()); err != nil {
						return err
					}
				}
				return nil
			}
			if err := c.saveAll(cmd, job.Id, results, dir); err != nil {
				return err
			}
			for _, r := range results {
				fmt.Fprintf(cmd.OutOrStdout(), "%s (%s of %s)\n", printable(filepath.Join(dir, r.Path)), bytesText(r.Size), r.Label)
			}
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVarP(&dir, "output", "o", ".", "`DIR` to save into, made if missing; - is stdout")
	cmd.Flags().BoolVar(&list, "list", false, "list the files, save nothing")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

// choose picks the results of the given names, all when there are none.
func choose(job *wsdl.JobStatus, names []string) ([]Result, error) {
	all := Results(job)
	if len(names) == 0 {
		if len(all) == 0 && !Ended(job) {
			return nil, wsdl.NewFault(wsdl.FaultCodeNotFound,
				fmt.Sprintf("job %s is %s and has left no output files yet", job.Id, wsdl.Or(job.State, "")),
				"wait for its end: `mvm job "+job.Id+"` shows its state")
		}
		return all, nil
	}
	var chosen []Result
	for _, name := range names {
		found := slices.DeleteFunc(slices.Clone(all), func(r Result) bool { return r.Name != name && r.Path != name })
		if len(found) == 0 {
			return nil, wsdl.NewFault(wsdl.FaultCodeNotFound,
				fmt.Sprintf("job %s has no output file %s", job.Id, name),
				"`mvm output "+job.Id+" --list` lists its files")
		}
		chosen = append(chosen, found...)
	}
	return chosen, nil
}

func (c *Client) saveAll(cmd *cobra.Command, id string, results []Result, dir string) error {
	shown := newProgress(cmd.ErrOrStderr(), false)
	defer shown.close()
	bar := shown.bar("saving files", int64(len(results)), false)
	defer bar.done()
	for i, r := range results {
		if err := c.Save(cmd.Context(), id, r, dir); err != nil {
			return err
		}
		bar.set(int64(i + 1))
	}
	return nil
}
