// Command bench measures MVM against its peers: real nodes, real jobs, the real
// command line, beside what people use today, in one run on one machine.
//
// What always holds: every figure was measured in this run; the contestants of
// a case take turns, round by round, so that what disturbs the machine disturbs
// all; what is judged is the ratio of medians, or a limit, never a bare time;
// and a case leaves nothing running. A case is a file: it says how to set up, how
// each contestant is measured once, and what is wanted. It must never reach
// behind the services: what it measures, anyone could.
package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

//go:embed programs
var programs embed.FS

// cases are all of them, in the order of the report.
func cases() []*contest {
	return []*contest{launchCase(), jobsCase(), blobCase(), sizeCase(), startCase(), placeCase(), soapCase(), messageCase(), hostsCase(), crowdCase(), hogCase(), vmCase()}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	chosen := flags.String("case", "", "run only these cases, by `NAME,NAME`; the report is then only printed")
	rounds := flags.Int("rounds", 0, "so many rounds of each case, instead of its own number")
	binary := flags.String("mvm", "mvm", "the mvm `PROGRAM` to measure, as `make build` leaves it")
	out := flags.String("o", "", "also write the report into this `FILE`")
	list := flags.Bool("list", false, "list the cases")
	if err := flags.Parse(args); err != nil {
		return err
	}
	all := cases()
	if *list {
		for _, c := range all {
			fmt.Printf("%-10s %s\n", c.name, c.title)
		}
		return nil
	}
	if *chosen != "" {
		names := strings.Split(*chosen, ",")
		for _, name := range names {
			if !slices.ContainsFunc(all, func(c *contest) bool { return c.name == name }) {
				return fmt.Errorf("there is no case %q; -list names them", name)
			}
		}
		all = slices.DeleteFunc(all, func(c *contest) bool { return !slices.Contains(names, c.name) })
	}
	path, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("%w; `make build` makes it", err)
	}
	dir, err := os.MkdirTemp("", "mvm-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{mvm: path, dir: dir}
	var done []*outcome
	for _, c := range all {
		if *rounds > 0 {
			c.rounds = *rounds
		}
		fmt.Fprintf(os.Stderr, "%s: %s\n", c.name, c.title)
		o := c.run(ctx, b)
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		done = append(done, o)
		fmt.Fprint(os.Stderr, o.verdicts())
	}
	report := report(thisMachine(ctx), done)
	if *out != "" {
		if err := os.WriteFile(*out, []byte(report), 0o644); err != nil {
			return err
		}
	} else {
		fmt.Print(report)
	}
	return nil
}
