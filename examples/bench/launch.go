package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"mvm/services/client"
)

// launchCase compares the whole way of a job that does nothing with MPICH's.
func launchCase() *contest {
	const theirs = "MPICH"
	var steps []string // in the order of the report
	samples := map[string][]float64{}
	c := &contest{
		name:   "launch",
		title:  "16 trivial C processes from the command to its end",
		method: "MVM: 4 local nodes of 4 slots, the build cached, `mvm submit trivial.xml --wait`. MPICH: `mpiexec -n 16` of a program that calls MPI_Init and MPI_Finalize.",
		rounds: 11,
		order:  []string{"time"},
		units:  map[string]string{"time": "ms"},
		goals: []goal{{text: "time, against MPICH", atLeast: 3, ratio: less("time", theirs),
			holds: "the steps below say where the time goes."}},
		tell: func() string {
			var b strings.Builder
			b.WriteString("MVM by step, medians, from the log of the same rounds:\n\n| step | ms |\n|---|---|\n")
			for _, s := range steps {
				fmt.Fprintf(&b, "| %s | %s |\n", s, figure(median(samples[s])))
			}
			return b.String()
		},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		mpicc, err := installed("mpicc.mpich")
		if err != nil {
			return nil, nil, err
		}
		mpiexec, err := installed("mpiexec.mpich", "mpiexec.hydra")
		if err != nil {
			return nil, nil, err
		}
		dir, err := b.folder("launch")
		if err != nil {
			return nil, nil, err
		}
		if err := b.lay(dir, "trivial.c", "trivial.xml", "mpi.c"); err != nil {
			return nil, nil, err
		}
		if _, _, err := command(ctx, dir, mpicc, "-O2", "-o", "mpi", "mpi.c"); err != nil {
			return nil, nil, err
		}
		g, err := startGrid(ctx, b, nil, 4, 4, 4, 4)
		if err != nil {
			return nil, nil, err
		}
		submit := func(ctx context.Context) (time.Duration, error) {
			took, _, err := command(ctx, dir, b.mvm, "submit", "trivial.xml", "--wait", "--grid", g.url, "-p", "processes=16", "-p", "nodes=4")
			return took, err
		}
		for range 2 { // builds, then warms
			if _, err := submit(ctx); err != nil {
				return nil, g.stop, err
			}
		}
		mine := func(ctx context.Context) (sample, error) {
			begin := time.Now()
			took, err := submit(ctx)
			if err != nil {
				return nil, err
			}
			parts, err := g.breakdown(ctx, begin, begin.Add(took))
			if err != nil {
				return nil, err
			}
			steps = steps[:0]
			for _, p := range parts {
				steps = append(steps, p.name)
				samples[p.name] = append(samples[p.name], millis(p.took))
			}
			return sample{"time": millis(took)}, nil
		}
		yours := func(ctx context.Context) (sample, error) {
			took, _, err := command(ctx, dir, mpiexec, "-n", "16", filepath.Join(dir, "mpi"))
			return sample{"time": millis(took)}, err
		}
		return []player{{ours, mine}, {theirs, yours}}, g.stop, nil
	}
	return c
}

// part is one step of a job's way.
type part struct {
	name string
	took time.Duration
}

// breakdown takes the only job that ran between two moments apart, by what the
// nodes logged meanwhile.
func (g *grid) breakdown(ctx context.Context, begin, end time.Time) ([]part, error) {
	jobs, err := g.Jobs(ctx, client.JobFilter{Limit: 1})
	if err != nil || len(jobs) == 0 {
		return nil, fmt.Errorf("the job is not known: %w", err)
	}
	var accepted, placed, awake, starts, instantiated, over time.Time
	var reported, terminated time.Time
	// The log's lines are written a moment after what they tell.
	for deadline := time.Now().Add(5 * time.Second); over.IsZero() || terminated.IsZero(); time.Sleep(time.Millisecond) {
		lines, err := g.since(begin)
		if err != nil {
			return nil, err
		}
		latest := func(at *time.Time, l logged) {
			if l.Time.After(*at) {
				*at = l.Time
			}
		}
		for _, l := range lines {
			switch {
			case l.Operation == "SubmitJob":
				accepted = l.Time
			case l.Operation == "Awaken":
				latest(&awake, l)
			case l.Operation == "Instantiate":
				latest(&instantiated, l)
			case l.Operation == "Report":
				latest(&reported, l)
			case l.Operation == "Terminate":
				latest(&terminated, l)
			case l.Job != jobs[0].Id:
			case l.Msg == "job is placed":
				placed = l.Time
			case l.Msg == "job starts":
				starts = l.Time
			case l.Msg == "job has ended":
				over = l.Time
			}
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("the log does not tell the whole way of job %s", jobs[0].Id)
		}
	}
	job, err := g.Job(ctx, jobs[0].Id)
	if err != nil {
		return nil, err
	}
	var ended time.Time
	for _, p := range job.Process {
		if p.Ended != nil && p.Ended.ToGoTime().After(ended) {
			ended = p.Ended.ToGoTime()
		}
	}
	var parts []part
	last := begin
	add := func(name string, at time.Time) {
		parts = append(parts, part{name, max(0, at.Sub(last))})
		if at.After(last) {
			last = at
		}
	}
	add("submit: start of the command, profile read, files offered, job journalled", accepted)
	add("plan: nodes chosen, attempt journalled", placed)
	add("awaken: MVM processes started, builds found", awake)
	add("go: journalled", starts)
	add("instantiate: messages sent, programs started", instantiated)
	add("run: the last program has ended", ended)
	add("report: spooled, sent, journalled", reported)
	add("terminate: MVM processes gone, folders removed", terminated)
	add("end: journalled", over)
	add("answer: the command hears of it, and ends", end)
	return parts, nil
}
