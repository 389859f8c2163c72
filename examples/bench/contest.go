package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// bench is what all cases have in common.
type bench struct {
	mvm string // the program that is measured
	dir string // for files; it is removed at the end
}

// folder makes a folder for a case's files.
func (b *bench) folder(name string) (string, error) {
	return os.MkdirTemp(b.dir, name+"-")
}

// lay writes the embedded files named into a folder.
func (b *bench) lay(dir string, names ...string) error {
	for _, name := range names {
		data, err := programs.ReadFile("programs/" + name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// contest is one case: contestants that are measured in turns.
type contest struct {
	name   string
	title  string
	method string // how it is measured, for the report
	rounds int
	// open sets up. What it returns as close is called at the end, also when
	// the case failed half-way; it may be nil.
	open  func(ctx context.Context, b *bench) (players []player, close func(), err error)
	units map[string]string // by measure, in the order of measures
	order []string          // the measures, as the report lists them
	goals []goal
	// tell adds to the report what is not in the table; may be nil.
	tell func() string
}

// player is a contestant. The first of a contest is MVM.
type player struct {
	name string
	// measure is one round. A measure that a player does not have is left out.
	measure func(ctx context.Context) (sample, error)
}

// sample is what one round gave, by measure.
type sample map[string]float64

// goal is something that is wanted: a ratio of at least atLeast.
type goal struct {
	text    string
	atLeast float64
	ratio   func(*outcome) (float64, error)
	holds   string // what holds it, for the report when it is not met
}

// errAbsent is why a case is skipped: a peer is not installed.
var errAbsent = errors.New("not installed")

// installed finds a program of a peer.
func installed(names ...string) (string, error) {
	for _, name := range names {
		for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && filepath.IsAbs(path) {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%s: %w (`make bench-setup`)", strings.Join(names, " or "), errAbsent)
}

// outcome is what a contest gave.
type outcome struct {
	*contest
	players []string
	values  map[string]map[string][]float64 // player -> measure -> one for each round
	err     error
}

// run measures: a round is one turn of each player, and every second round
// goes the other way round.
func (c *contest) run(ctx context.Context, b *bench) *outcome {
	o := &outcome{contest: c, values: map[string]map[string][]float64{}}
	players, done, err := c.open(ctx, b)
	if done != nil {
		defer done()
	}
	if o.err = err; err != nil {
		return o
	}
	for _, p := range players {
		o.players = append(o.players, p.name)
		o.values[p.name] = map[string][]float64{}
	}
	for round := range c.rounds {
		turns := slices.Clone(players)
		if round%2 == 1 {
			slices.Reverse(turns)
		}
		for _, p := range turns {
			got, err := p.measure(ctx)
			if err != nil {
				o.err = fmt.Errorf("%s: %w", p.name, err)
				return o
			}
			for measure, value := range got {
				o.values[p.name][measure] = append(o.values[p.name][measure], value)
			}
		}
	}
	return o
}

// median of a player's measure; NaN when there is none.
func (o *outcome) median(player, measure string) float64 {
	return median(o.values[player][measure])
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ours is MVM's name among the players.
const ours = "MVM"

// less says how many times smaller ours is than the best of theirs.
func less(measure string, theirs ...string) func(*outcome) (float64, error) {
	return func(o *outcome) (float64, error) {
		best := math.Inf(1)
		for _, name := range theirs {
			if m := o.median(name, measure); m < best {
				best = m
			}
		}
		return proper(best / o.median(ours, measure))
	}
}

// more says how many times larger ours is than the best of theirs.
func more(measure string, theirs ...string) func(*outcome) (float64, error) {
	return func(o *outcome) (float64, error) {
		best := 0.0
		for _, name := range theirs {
			best = max(best, o.median(name, measure))
		}
		return proper(o.median(ours, measure) / best)
	}
}

// under says how many times over ours fits into a limit.
func under(measure string, limit float64) func(*outcome) (float64, error) {
	return func(o *outcome) (float64, error) { return proper(limit / o.median(ours, measure)) }
}

// worst is the smallest of several ratios.
func worst(ratios ...func(*outcome) (float64, error)) func(*outcome) (float64, error) {
	return func(o *outcome) (float64, error) {
		all := math.Inf(1)
		for _, ratio := range ratios {
			r, err := ratio(o)
			if err != nil {
				return 0, err
			}
			all = min(all, r)
		}
		return proper(all)
	}
}

// geometric is the geometric mean of several ratios.
func geometric(ratios ...func(*outcome) (float64, error)) func(*outcome) (float64, error) {
	return func(o *outcome) (float64, error) {
		sum := 0.0
		for _, ratio := range ratios {
			r, err := ratio(o)
			if err != nil {
				return 0, err
			}
			sum += math.Log(r)
		}
		return proper(math.Exp(sum / float64(len(ratios))))
	}
}

func proper(ratio float64) (float64, error) {
	if math.IsNaN(ratio) || math.IsInf(ratio, 0) || ratio <= 0 {
		return 0, errors.New("not measured")
	}
	return ratio, nil
}
