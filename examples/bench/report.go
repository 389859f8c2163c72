package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// report is the whole of RESULTS.md.
func report(m machine, all []*outcome) string {
	var b strings.Builder
	fmt.Fprintf(&b, "# What MVM was measured at\n\n")
	fmt.Fprintf(&b, "`make bench` writes this page. Contestants take turns, round by round, in one run on one machine; "+
		"a cell is the median, with the smallest and the largest. A ratio is of medians, and above 1 is better than the other or than the limit.\n\n")
	fmt.Fprintf(&b, "%s\n\n", m)
	fmt.Fprintf(&b, "| case | wanted | at least | measured | |\n|---|---|---|---|---|\n")
	for _, o := range all {
		for _, g := range o.goals {
			value, word := o.judge(g)
			fmt.Fprintf(&b, "| [%s](#%s) | %s | %s | %s | %s |\n", o.name, o.name, g.text, times(g.atLeast), value, word)
		}
		if len(o.goals) == 0 && o.err != nil {
			fmt.Fprintf(&b, "| [%s](#%s) | | | | %s |\n", o.name, o.name, failure(o.err))
		}
	}
	for _, o := range all {
		fmt.Fprintf(&b, "\n## %s\n\n%s. %s\n\n", o.name, o.title, o.method)
		if o.err != nil {
			fmt.Fprintf(&b, "%s\n", failure(o.err))
			continue
		}
		o.table(&b)
		for _, g := range o.goals {
			if r, err := g.ratio(o); err == nil && r < g.atLeast && g.holds != "" {
				fmt.Fprintf(&b, "\nShort of %q by %.0f %%: %s\n", g.text, 100*(1-r/g.atLeast), g.holds)
			}
		}
		if o.tell != nil {
			fmt.Fprintf(&b, "\n%s\n", strings.TrimSpace(o.tell()))
		}
	}
	return b.String()
}

func failure(err error) string {
	if errors.Is(err, errAbsent) {
		return "**not measured**: " + err.Error()
	}
	return "**failed**: " + strings.ReplaceAll(err.Error(), "\n", " ")
}

// table is one row for each measure.
func (o *outcome) table(b *strings.Builder) {
	fmt.Fprintf(b, "| %d rounds | %s |\n|---|%s\n", o.rounds, strings.Join(o.players, " | "), strings.Repeat("---|", len(o.players)))
	for _, measure := range o.order {
		fmt.Fprintf(b, "| %s, %s |", measure, o.units[measure])
		for _, p := range o.players {
			fmt.Fprintf(b, " %s |", spread(o.values[p][measure]))
		}
		fmt.Fprintln(b)
	}
}

func spread(values []float64) string {
	switch len(values) {
	case 0:
		return ""
	case 1:
		return figure(values[0])
	}
	return fmt.Sprintf("**%s** (%s to %s)", figure(median(values)), figure(slices.Min(values)), figure(slices.Max(values)))
}

// figure has three digits that count.
func figure(v float64) string {
	if v == 0 {
		return "0"
	}
	decimals := max(0, 2-int(math.Floor(math.Log10(math.Abs(v)))))
	return strconv.FormatFloat(v, 'f', min(decimals, 6), 64)
}

func times(ratio float64) string { return strconv.FormatFloat(ratio, 'g', 3, 64) + " x" }

// judge says what became of a goal.
func (o *outcome) judge(g goal) (value, word string) {
	if o.err != nil {
		if errors.Is(o.err, errAbsent) {
			return "", "not measured"
		}
		return "", "failed"
	}
	r, err := g.ratio(o)
	switch {
	case err != nil:
		return "", err.Error()
	case r >= g.atLeast:
		return fmt.Sprintf("%.2f x", r), "met"
	}
	return fmt.Sprintf("%.2f x", r), fmt.Sprintf("**not met**, %.0f %% short", 100*(1-r/g.atLeast))
}

// verdicts is a line for each goal, for whoever watches.
func (o *outcome) verdicts() string {
	var b strings.Builder
	if o.err != nil {
		fmt.Fprintf(&b, "  %s\n", failure(o.err))
	}
	for _, g := range o.goals {
		value, word := o.judge(g)
		fmt.Fprintf(&b, "  %s: %s, %s\n", g.text, value, word)
	}
	return b.String()
}
