// Command soap measures MVM's SOAP server against gSOAP's and prints a table.
// Run it in the project's folder:
//
//	go run ./examples/bench/soap
//
// With -serve it is the server that is measured.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"mvm/examples/bench/soap/versus"
)

func main() {
	rounds := flag.Int("rounds", 5, "so many rounds of each, in turns")
	lasting := flag.Duration("lasting", 5*time.Second, "how long each round is")
	serving := flag.Bool("serve", false, "be the server that is measured")
	profile := flag.String("profile", "", "with -serve: write a CPU profile to this `FILE`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := errors.New("-rounds must be at least 1")
	switch {
	case *serving:
		err = serve(ctx, *profile)
	case *rounds > 0:
		err = compare(ctx, *rounds, *lasting)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "soap:", err)
		os.Exit(1)
	}
}

// wanted is a measure and the ratio to gSOAP that is asked for, if any.
type wanted struct {
	measure string
	ratio   func(ours, theirs float64) float64 // above 1 is better
	atLeast float64
}

func compare(ctx context.Context, rounds int, lasting time.Duration) error {
	dir, err := os.MkdirTemp("", "mvm-soap-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	contest, err := versus.Open(ctx, dir)
	if err != nil {
		return err
	}
	defer contest.Close()
	players := []string{versus.MVM, versus.GSOAP}
	values := map[string]map[string][]float64{}
	for _, p := range players {
		if _, err := contest.Round(ctx, p, time.Second); err != nil { // to warm up
			return err
		}
		values[p] = map[string][]float64{}
	}
	for range rounds {
		for _, p := range players {
			got, err := contest.Round(ctx, p, lasting)
			if err != nil {
				return err
			}
			for measure, v := range got {
				values[p][measure] = append(values[p][measure], v)
			}
		}
	}
	more := func(ours, theirs float64) float64 { return ours / theirs }
	less := func(ours, theirs float64) float64 { return theirs / ours }
	fmt.Printf("| median of %d rounds | %s | %s | ratio | at least |\n|---|---|---|---|---|\n", rounds, versus.MVM, versus.GSOAP)
	for _, w := range []wanted{{versus.PerCPU, more, 1.5}, {versus.P99, less, 0.5}, {versus.P50, less, 0}, {versus.Rate, more, 0}} {
		ours, theirs := median(values[versus.MVM][w.measure]), median(values[versus.GSOAP][w.measure])
		limit := ""
		if w.atLeast > 0 {
			limit = fmt.Sprint(w.atLeast)
		}
		fmt.Printf("| %s | %.0f | %.0f | %.2f | %s |\n", w.measure, ours, theirs, w.ratio(ours, theirs), limit)
	}
	return nil
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
