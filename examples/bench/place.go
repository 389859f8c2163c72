package main

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// placeCase compares placement with Scotch's mapping. Simulated nodes cannot be
// had from outside, so package place measures, and this reads what it says.
func placeCase() *contest {
	const theirs = "Scotch"
	kinds := []string{"mesh", "torus", "hypercube", "butterfly", "random"}
	c := &contest{
		name:   "place",
		title:  "10,000 processes onto 1,000 nodes",
		method: "Equal nodes with room for exactly all processes (8,192 onto 1,024 where a power of two is needed). Scotch: `scotch_gmap` onto as many nodes, all equally far from each other (`cmplt`, as MVM's nodes are), with the same capacities. MVM's time is processor time, Scotch's is from start to end with its files.",
		rounds: 3,
		units:  map[string]string{},
	}
	var cuts, limits []func(*outcome) (float64, error)
	for _, kind := range kinds {
		c.order = append(c.order, "cut, "+kind, "time, "+kind)
		c.units["cut, "+kind], c.units["time, "+kind] = "links", "ms"
		cuts = append(cuts, less("cut, "+kind, theirs))
		limits = append(limits, under("time, "+kind, 1000))
	}
	c.goals = []goal{
		{text: "cut within 1.1 times of Scotch's, the worst of five kinds", atLeast: 1 / 1.1, ratio: worst(cuts...)},
		{text: "placed in 1 s, the slowest of five kinds", atLeast: 1, ratio: worst(limits...)},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		if _, err := installed("scotch_gmap"); err != nil {
			return nil, nil, err
		}
		// Both are measured in one run of the benchmark; who comes first has it run.
		var mine, yours sample
		measure := func(ctx context.Context) error {
			out, err := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "AgainstScotch", "-benchtime", "1x", "-count", "1", "mvm/broker/place").CombinedOutput()
			if err != nil {
				return fmt.Errorf("the benchmark of package place: %w: %s", err, out)
			}
			mine, yours, err = parsePlace(string(out), kinds)
			return err
		}
		turn := func(which *sample) func(ctx context.Context) (sample, error) {
			return func(ctx context.Context) (sample, error) {
				if *which == nil {
					if err := measure(ctx); err != nil {
						return nil, err
					}
				}
				got := *which
				*which = nil
				return got, nil
			}
		}
		return []player{{ours, turn(&mine)}, {theirs, turn(&yours)}}, nil, nil
	}
	return c
}

// parsePlace reads the lines of go test -bench.
func parsePlace(out string, kinds []string) (mine, yours sample, err error) {
	mine, yours = sample{}, sample{}
	for _, kind := range kinds {
		line := regexp.MustCompile(`(?m)^BenchmarkAgainstScotch/` + kind + `(?:-\d+)?\s+\d+\s+(.*)$`).FindStringSubmatch(out)
		if line == nil {
			return nil, nil, fmt.Errorf("nothing was measured of %s:\n%s", kind, out)
		}
		value := map[string]float64{}
		for _, m := range regexp.MustCompile(`(\S+) (\S+)`).FindAllStringSubmatch(line[1], -1) {
			if value[m[2]], err = strconv.ParseFloat(m[1], 64); err != nil {
				return nil, nil, err
			}
		}
		mine["cut, "+kind], mine["time, "+kind] = value["cut"], value["cpu-ns"]/1e6
		yours["cut, "+kind], yours["time, "+kind] = value["scotch-cut"], value["scotch-ns"]/1e6
	}
	return mine, yours, nil
}
