package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	times     int // how often: about a quarter of a second
}

func micros(us float64, _ int) float64        { return us }
func perSecond(us float64, _ int) float64     { return 1 / us } // in millions
func gigabytes(us float64, bytes int) float64 { return float64(bytes) / us / 1e3 }

// messageCase measures programs that pass messages within one host: the same
// patterns over MVM's ports and over MPI.
func messageCase() *contest {
	list := []message{
		{measure: "one way", profile: "pair", pattern: "pingpong", processes: 2, bytes: 8, value: micros, times: 100_000},
		{measure: "rate", profile: "pair", pattern: "stream", processes: 2, bytes: 8, value: perSecond, times: 2_000_000},
		{measure: "copied", profile: "pair", pattern: "stream", processes: 2, bytes: 1 << 20, value: gigabytes, times: 3000},
		{measure: "in place", profile: "pair", pattern: "inplace", processes: 2, bytes: 1 << 20, value: gigabytes, times: 100_000},
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

// mpiRun is how programs of one MPI are run, but for their arguments.
type mpiRun struct {
	environment []string
	mpiexec     []string // with flags
	program     string
}

func (r mpiRun) command(ctx context.Context, m message) *exec.Cmd {
	args := append(slices.Clone(r.mpiexec[1:]), "-n", strconv.Itoa(m.processes), r.program, m.pattern, strconv.Itoa(m.times), strconv.Itoa(m.bytes))
	c := exec.CommandContext(ctx, r.mpiexec[0], args...)
	c.Env = append(os.Environ(), r.environment...)
	return c
}

// buildMessages lays the patterns into a folder, and builds them for MPI.
func buildMessages(ctx context.Context, b *bench) (dir string, runs map[string]mpiRun, err error) {
	if dir, err = b.folder("messages"); err != nil {
		return "", nil, err
	}
	if err := os.CopyFS(dir, messages); err != nil {
		return "", nil, err
	}
	dir = filepath.Join(dir, "messages")
	runs = map[string]mpiRun{}
	for _, mpi := range []struct {
		name, suffix       string
		environment, flags []string
	}{
		{openMPI, "openmpi", []string{"OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"}, []string{"--oversubscribe", "--mca", "mpi_yield_when_idle", "1"}},
		{mpich, "mpich", nil, nil},
		{mpichTCP, "mpich", []string{"UCX_TLS=tcp,self"}, nil},
	} {
		mpicc, err := installed("mpicc." + mpi.suffix)
		if err != nil {
			return "", nil, err
		}
		mpiexec, err := installed("mpiexec." + mpi.suffix)
		if err != nil {
			return "", nil, err
		}
		program := filepath.Join(dir, mpi.suffix)
		if _, err := os.Stat(program); err != nil {
			if _, _, err := command(ctx, dir, mpicc, "-std=gnu11", "-O2", "-o", program, "patterns.c", "mpi.c", "-lm"); err != nil {
				return "", nil, err
			}
		}
		runs[mpi.name] = mpiRun{mpi.environment, append([]string{mpiexec}, mpi.flags...), program}
	}
	return dir, runs, nil
}

// openMessages builds the patterns for MPI, and starts a node for MVM.
func openMessages(ctx context.Context, b *bench, list []message, theirs []string, capacity int) ([]player, func(), error) {
	dir, runs, err := buildMessages(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	g, err := startGrid(ctx, b, nil, 64)
	if err != nil {
		return nil, nil, err
	}
	mine := func(ctx context.Context, m message) (string, error) {
		return g.pattern(ctx, filepath.Join(dir, m.profile+".xml"), m, capacity)
	}
	players := []player{{ours, measureAll(list, mine)}}
	for _, name := range theirs {
		players = append(players, player{name, measureAll(list, func(ctx context.Context, m message) (string, error) {
			if m.pattern == "inplace" {
				m.pattern, m.times = "stream", m.times/30
			}
			ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
			defer cancel()
			c := runs[name].command(ctx, m)
			var complaints strings.Builder
			c.Stderr = &complaints
			out, err := c.Output()
			if err != nil {
				return "", fmt.Errorf("%s: %w: %.300s", strings.Join(c.Args, " "), err, complaints.String())
			}
			return string(out), nil
		})})
	}
	return players, g.stop, nil
}

// measureAll is one round of a player: every message once.
func measureAll(list []message, run func(context.Context, message) (string, error)) func(context.Context) (sample, error) {
	return func(ctx context.Context) (sample, error) {
		got := sample{}
		for _, m := range list {
			out, err := run(ctx, m)
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
func (g *grid) pattern(ctx context.Context, profile string, m message, capacity int) (string, error) {
	document, err := client.Load(profile)
	if err != nil {
		return "", err
	}
	id, err := g.Submit(ctx, client.Request{Document: document, Arguments: map[string]string{
		"pattern": m.pattern, "times": strconv.Itoa(m.times), "bytes": strconv.Itoa(m.bytes),
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
