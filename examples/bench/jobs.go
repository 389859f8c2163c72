package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"mvm/services/client"
	"mvm/wsdl"
)

// jobsCase compares trivial jobs a second with Slurm's.
func jobsCase() *contest {
	const theirs = "Slurm"
	const mineJobs, theirJobs, submitters, slots = 400, 200, 8, 4
	c := &contest{
		name:   "jobs",
		title:  "Trivial jobs a second, submitted and all finished",
		method: "One node each. MVM: 8 submitters over SOAP, each job a registered profile of one C process. Slurm: one job array, its cheapest form, no accounting, tuned for short jobs, without `slurmdbd`; a job counts once its script has run.",
		rounds: 5,
		order:  []string{"rate", "node", "processes"},
		units:  map[string]string{"rate": "jobs/s", "node": "ms of CPU a job, broker and state in it", "processes": "ms of CPU a job, MVM process and program"},
		goals: []goal{{text: "jobs a second, against Slurm", atLeast: 4, ratio: more("rate", theirs),
			holds: "processor time, as the table has it: each job is seven SOAP calls (SubmitJob and WaitJob over the network; Awaken, Heartbeat, Instantiate, Report and Terminate within the node), four durable commits, a report spooled to a file, a control group, a fresh MVM process in namespaces of its own, and the program."}},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		dir, err := b.folder("jobs")
		if err != nil {
			return nil, nil, err
		}
		if err := b.lay(dir, "trivial.c", "trivial.xml"); err != nil {
			return nil, nil, err
		}
		s, err := startSlurm(ctx, b)
		if err != nil {
			return nil, nil, err
		}
		g, err := startGrid(ctx, b, nil, slots)
		if err != nil {
			return nil, s.stop, err
		}
		stop := func() { g.stop(); s.stop() }
		if _, _, err := command(ctx, dir, b.mvm, "profiles", "register", filepath.Join(dir, "trivial.xml"), "--grid", g.url); err != nil {
			return nil, stop, err
		}
		if _, err := g.flood(ctx, submitters, submitters); err != nil {
			return nil, stop, err
		}
		if _, err := s.flood(ctx, 10); err != nil {
			return nil, stop, err
		}
		mine := func(ctx context.Context) (sample, error) {
			node, processes := g.used()
			took, err := g.flood(ctx, mineJobs, submitters)
			nodeNow, processesNow := g.used()
			return sample{"rate": mineJobs / took.Seconds(), "node": millis(nodeNow-node) / mineJobs, "processes": millis(processesNow-processes) / mineJobs}, err
		}
		yours := func(ctx context.Context) (sample, error) {
			took, err := s.flood(ctx, theirJobs)
			return sample{"rate": theirJobs / took.Seconds()}, err
		}
		return []player{{ours, mine}, {theirs, yours}}, stop, nil
	}
	return c
}

// flood submits n trivial jobs and returns when all have succeeded.
func (g *grid) flood(ctx context.Context, n, submitters int) (time.Duration, error) {
	begin := time.Now()
	errs := make(chan error, submitters)
	var all sync.WaitGroup
	for k := range submitters {
		all.Go(func() {
			var ids []string
			for i := k; i < n; i += submitters {
				id, err := g.Submit(ctx, client.Request{Profile: "trivial"})
				if err != nil {
					errs <- err
					return
				}
				ids = append(ids, id)
			}
			for _, id := range ids {
				job, err := g.Wait(ctx, id, nil)
				if err == nil && wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
					err = fmt.Errorf("job %s: %s", id, job.Reason)
				}
				if err != nil {
					errs <- err
					return
				}
			}
		})
	}
	all.Wait()
	select {
	case err := <-errs:
		return 0, err
	default:
		return time.Since(begin), nil
	}
}
