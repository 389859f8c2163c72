package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mvm/services/client"
	"mvm/wsdl"
)

//go:embed messages
var messages embed.FS

const (
	openMPI  = "Open MPI"
	mpich    = "MPICH"
	mpichTCP = "MPICH over TCP"
)

// message is one run of messages/patterns.c.
type message struct {
	measure   string
	profile   string // below messages, without .xml
	pattern   string
	processes int
	bytes     int // points for fft
	value     func(micros float64, bytes int) float64
	times     map[string]int // by player, "" for all others: how often, about a quarter of a second
}

func micros(us float64, _ int) float64        { return us }
func perSecond(us float64, _ int) float64     { return 1 / us } // in millions
func gigabytes(us float64, bytes int) float64 { return float64(bytes) / us / 1e3 }

// messageCase measures programs that pass messages within one host: the same
// patterns over MVM's ports and over MPI.
func messageCase() *contest {
	list := []message{
		{measure: "one way", profile: "pair", pattern: "pingpong", processes: 2, bytes: 8, value: micros, times: map[string]int{"": 100_000}},
		{measure: "rate", profile: "pair", pattern: "stream", processes: 2, bytes: 8, value: perSecond, times: map[string]int{"": 2_000_000}},
		{measure: "copied", profile: "pair", pattern: "stream", processes: 2, bytes: 1 << 20, value: gigabytes, times: map[string]int{"": 3000}},
		{measure: "in place", profile: "pair", pattern: "inplace", processes: 2, bytes: 1 << 20, value: gigabytes, times: map[string]int{"": 100_000}},
	}
	c := &contest{
		name:   "messages",
		title:  "Two processes on one host that pass messages",
		method: "The patterns of messages/patterns.c over both, -O2, timed inside the program by process 0: 8 bytes to and fro, a stream of 8 bytes, a stream of 1 MiB; MPI streams in windows of 64 non-blocking calls. In place: made and read where it travels, the first and last word written and checked; MPI has no such thing, and its stream by copy stands there. MVM is a job on a real node, with channels of 4 MiB.",
		rounds: 9,
		order:  []string{"one way", "rate", "copied", "in place"},
		units:  map[string]string{"one way": "us", "rate": "million messages/s", "copied": "GB/s of 1 MiB", "in place": "GB/s of 1 MiB"},
		goals: []goal{
			{text: "8 bytes one way, against Open MPI", atLeast: 2, ratio: less("one way", openMPI), holds: "the wake-ups and yields of two processes on the machine's cores."},
			{text: "messages a second, against Open MPI", atLeast: 3, ratio: more("rate", openMPI), holds: "the two ends' cache lines."},
			{text: "1 MiB by copy, against the best", atLeast: 1, ratio: more("copied", openMPI, mpich), holds: "the memory's bandwidth."},
			{text: "1 MiB in place, against the best", atLeast: 2, ratio: more("in place", openMPI, mpich), holds: "wake-ups."},
		},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		return openMessages(ctx, b, list, []string{openMPI, mpich}, 4<<20)
	}
	return c
}

// patternCases measures more processes than cores, without and with two foreign
// processes that use all the processor they get.
func patternCases() []*contest {
	var list []message
	var order []string
	units := map[string]string{}
	for _, n := range []int{8, 16, 64} {
		// MPICH's default spins, and takes thousands of times as long.
		for _, m := range []message{
			{pattern: "ring", profile: "ring", bytes: 8, times: map[string]int{"": 16_000 / n, mpich: 1}},
			{pattern: "butterfly", profile: "butterfly", bytes: 8, times: map[string]int{"": 10_000 / n, mpich: 1}},
			{pattern: "fft", profile: "butterfly", bytes: 1 << 16, times: map[string]int{"": 60, mpich: 1}},
		} {
			m.processes, m.value, m.measure = n, micros, fmt.Sprintf("%s on %d", m.pattern, n)
			list, order = append(list, m), append(order, m.measure)
			units[m.measure] = map[string]string{"ring": "us a hop", "butterfly": "us an iteration", "fft": "us a transform of 65,536 points"}[m.pattern]
		}
	}
	each := func(theirs ...string) (all []func(*outcome) (float64, error)) {
		for _, measure := range order {
			all = append(all, less(measure, theirs...))
		}
		return all
	}
	const method = "As above, with channels of 1 MiB, all on one node. Open MPI runs with mpi_yield_when_idle, MPICH over TCP with UCX_TLS=tcp,self."
	many := &contest{
		name: "patterns", title: "Ring, butterfly and FFT on more processes than cores", method: method,
		rounds: 5, order: order, units: units,
		goals: []goal{
			{text: "geometric mean of the nine, against the best of each", atLeast: 1, ratio: geometric(each(openMPI, mpich, mpichTCP)...), holds: "the table tells which."},
			{text: "the worst of the nine, against the best of each", atLeast: 0.8, ratio: worst(each(openMPI, mpich, mpichTCP)...), holds: "the table tells which."},
			{text: "the worst of the nine, against MPICH's default", atLeast: 50, ratio: worst(each(mpich)...), holds: "the table tells which."},
		},
	}
	many.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		return openMessages(ctx, b, list, []string{openMPI, mpich, mpichTCP}, 1<<20)
	}
	hogs := &contest{
		name: "hogs", title: "The same beside two foreign processes that use all the processor they get", method: method,
		rounds: 3, order: order, units: units,
		goals: []goal{{text: "geometric mean of the nine, against Open MPI", atLeast: 5, ratio: geometric(each(openMPI)...), holds: "the table tells which."}},
	}
	hogs.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		fewer := make([]message, len(list))
		for i, m := range list {
			m.times = map[string]int{"": max(1, m.times[""]/50), ours: max(1, m.times[""]/4)}
			fewer[i] = m
		}
		players, done, err := openMessages(ctx, b, fewer, []string{openMPI}, 1<<20)
		if err != nil {
			return nil, done, err
		}
		var running []*exec.Cmd
		stop := func() {
			for _, c := range running {
				c.Process.Kill()
				c.Wait()
			}
			done()
		}
		for range 2 {
			hog := exec.Command("sh", "-c", "while :; do :; done")
			if err := hog.Start(); err != nil {
				return nil, stop, err
			}
			running = append(running, hog)
		}
		return players, stop, nil
	}
	return []*contest{many, hogs}
}

// openMessages builds the patterns for MPI, and starts a node for MVM.
func openMessages(ctx context.Context, b *bench, list []message, theirs []string, capacity int) ([]player, func(), error) {
	dir, err := b.folder("messages")
	if err != nil {
		return nil, nil, err
	}
	if err := os.CopyFS(dir, messages); err != nil {
		return nil, nil, err
	}
	dir = filepath.Join(dir, "messages")
	runs := map[string][]string{}
	for _, mpi := range []struct {
		suffix string
		flags  map[string][]string
	}{
		{"openmpi", map[string][]string{openMPI: {"env", "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", "", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1"}}},
		{"mpich", map[string][]string{mpich: {"env", ""}, mpichTCP: {"env", "UCX_TLS=tcp,self", ""}}},
	} {
		mpicc, err := installed("mpicc." + mpi.suffix)
		if err != nil {
			return nil, nil, err
		}
		mpiexec, err := installed("mpiexec." + mpi.suffix)
		if err != nil {
			return nil, nil, err
		}
		program := filepath.Join(dir, mpi.suffix)
		if _, _, err := command(ctx, dir, mpicc, "-std=gnu11", "-O2", "-o", program, "patterns.c", "mpi.c", "-lm"); err != nil {
			return nil, nil, err
		}
		for name, flags := range mpi.flags {
			for i := range flags {
				if flags[i] == "" {
					flags[i] = mpiexec
				}
			}
			runs[name] = append(flags, "-n", "PROCESSES", program)
		}
	}
	g, err := startGrid(ctx, b, nil, 64)
	if err != nil {
		return nil, nil, err
	}
	mine := func(ctx context.Context, m message, times int) (string, error) {
		return g.pattern(ctx, filepath.Join(dir, m.profile+".xml"), m, times, capacity)
	}
	players := []player{{ours, measureAll(list, ours, mine)}}
	for _, name := range theirs {
		players = append(players, player{name, measureAll(list, name, func(ctx context.Context, m message, times int) (string, error) {
			if m.pattern == "inplace" {
				m.pattern, times = "stream", times/30
			}
			args := append([]string{}, runs[name]...)
			for i := range args {
				if args[i] == "PROCESSES" {
					args[i] = strconv.Itoa(m.processes)
				}
			}
			args = append(args, m.pattern, strconv.Itoa(times), strconv.Itoa(m.bytes))
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			c := exec.CommandContext(ctx, args[0], args[1:]...)
			var complaints strings.Builder
			c.Stderr = &complaints
			out, err := c.Output()
			if err != nil {
				return "", fmt.Errorf("%s: %w: %.300s", strings.Join(args, " "), err, complaints.String())
			}
			return string(out), nil
		})})
	}
	return players, g.stop, nil
}

// measureAll is one round of a player: every message once.
func measureAll(list []message, player string, run func(context.Context, message, int) (string, error)) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		got := sample{}
		for _, m := range list {
			times, own := m.times[player]
			if !own {
				times = m.times[""]
			}
			out, err := run(ctx, m, times)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", m.measure, err)
			}
			us, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
			if err != nil {
				return nil, fmt.Errorf("%s printed %.100q, not a number", m.measure, out)
			}
			got[m.measure] = m.value(us, m.bytes)
		}
		return got, nil
	}
}

// pattern runs a job and returns what process 0 printed.
func (g *grid) pattern(ctx context.Context, profile string, m message, times, capacity int) (string, error) {
	document, err := client.Load(profile)
	if err != nil {
		return "", err
	}
	id, err := g.Submit(ctx, client.Request{Document: document, Arguments: map[string]string{
		"pattern": m.pattern, "times": strconv.Itoa(times), "bytes": strconv.Itoa(m.bytes),
		"processes": strconv.Itoa(m.processes), "capacity": strconv.Itoa(capacity),
	}})
	if err != nil {
		return "", err
	}
	job, err := g.Wait(ctx, id, nil)
	if err != nil {
		return "", err
	}
	if wsdl.Or(job.State, "") != wsdl.JobStateSucceeded {
		return "", errors.New("job " + id + ": " + job.Reason)
	}
	var out strings.Builder
	_, err = g.Output(ctx, id, 0, "stdout", 0, false, &out)
	return out.String(), err
}
