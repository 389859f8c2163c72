package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"mvm/services/client"
)

// sizeCase measures what MVM takes while nothing, or little, is done. It has no
// peer: what is wanted are limits.
func sizeCase() *contest {
	const jobs = 40
	c := &contest{
		name:   "size",
		title:  "What an idle node and a job's MVM process take",
		method: "A worker's resident memory, once it has had jobs and then been idle for 5 s. The CPU time of an MVM process from its start to its end, its program's left out, as the mean over 40 jobs. `mvm --help` from start to end.",
		rounds: 5,
		order:  []string{"idle worker", "MVM process", "help"},
		units:  map[string]string{"idle worker": "MiB resident", "MVM process": "ms of CPU", "help": "ms"},
		goals: []goal{
			{text: "idle worker in 30 MiB resident", atLeast: 1, ratio: under("idle worker", 30), holds: "the Go runtime, and what was touched of the program while it worked."},
			{text: "MVM process started in 5 ms of CPU", atLeast: 1, ratio: under("MVM process", 5), holds: "the start of a Go program with its threads; the figure is of its whole life."},
			{text: "`mvm --help` in 50 ms", atLeast: 1, ratio: under("help", 50), holds: "what the packages that are linked in do before main."},
		},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		dir, err := b.folder("size")
		if err != nil {
			return nil, nil, err
		}
		if err := b.lay(dir, "trivial.c", "trivial.xml"); err != nil {
			return nil, nil, err
		}
		g, err := startGrid(ctx, b, nil, 0, 4)
		if err != nil {
			return nil, nil, err
		}
		if _, _, err := command(ctx, dir, b.mvm, "profiles", "register", "trivial.xml", "--grid", g.url); err != nil {
			return nil, g.stop, err
		}
		if _, err := g.flood(ctx, 4, 4); err != nil {
			return nil, g.stop, err
		}
		worker := g.nodes[1].Cmd.Process.Pid
		mine := func(ctx context.Context) (sample, error) {
			_, before := processorTime(worker)
			if _, err := g.flood(ctx, jobs, 4); err != nil {
				return nil, err
			}
			list, err := g.Jobs(ctx, client.JobFilter{Limit: jobs})
			if err != nil {
				return nil, err
			}
			var programs time.Duration
			for _, brief := range list {
				job, err := g.Job(ctx, brief.Id)
				if err != nil {
					return nil, err
				}
				for _, p := range job.Process {
					programs += time.Duration(p.UserMicros+p.SystemMicros) * time.Microsecond
				}
			}
			_, after := processorTime(worker)
			process := after - before - programs
			help, _, err := command(ctx, dir, b.mvm, "--help")
			if err != nil {
				return nil, err
			}
			select {
			case <-time.After(5 * time.Second):
			case <-ctx.Done():
			}
			return sample{"idle worker": residentMiB(worker), "MVM process": millis(process) / jobs, "help": millis(help)}, nil
		}
		return []player{{ours, mine}}, g.stop, nil
	}
	return c
}

// startCase measures how fast a grid of its own is up.
func startCase() *contest {
	c := &contest{
		name:   "start",
		title:  "An ephemeral grid of four nodes",
		method: "`mvm lab --nodes 4`, as it tells itself: from before the first node's process is started until all four can be given jobs.",
		rounds: 9,
		order:  []string{"up"},
		units:  map[string]string{"up": "ms"},
		goals: []goal{{text: "four nodes up in 300 ms", atLeast: 1, ratio: under("up", 300),
			holds: "four starts of the whole program, and compilers that are asked what they are, on the cores there are."}},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		dir, err := b.folder("start")
		if err != nil {
			return nil, nil, err
		}
		if err := b.lay(dir, "trivial.c", "trivial.xml"); err != nil {
			return nil, nil, err
		}
		up := regexp.MustCompile(`(?m)^4 nodes up in (\S+(?: ms| s)?):`)
		mine := func(ctx context.Context) (sample, error) {
			c := exec.CommandContext(ctx, b.mvm, "lab", "--nodes", "4", filepath.Join(dir, "trivial.xml"))
			out, err := c.CombinedOutput()
			match := up.FindSubmatch(out)
			if err != nil || match == nil {
				return nil, fmt.Errorf("mvm lab: %w: %s", err, out)
			}
			took, err := time.ParseDuration(strings.ReplaceAll(string(match[1]), " ", ""))
			return sample{"up": millis(took)}, err
		}
		if _, err := mine(ctx); err != nil {
			return nil, nil, err
		}
		return []player{{ours, mine}}, nil, nil
	}
	return c
}
