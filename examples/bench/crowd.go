package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// cell is a pattern run by many more processes than there are cores.
type cell struct {
	pattern   string
	processes int
	bytes     int // points for fft
	calm      int // how often: about a fifth of a second
	hogged    int // the same beside hogs
	spinning  int // the same by who spins all the time
}

// cells are what the two cases below measure. Times are in the units of patterns.c.
func cells() []cell {
	return []cell{
		{"ring", 8, 8, 8000, 60, 10},
		{"ring", 16, 8, 2000, 30, 4},
		{"ring", 64, 8, 150, 10, 1},
		{"butterfly", 8, 8, 15000, 60, 20},
		{"butterfly", 16, 8, 4000, 30, 8},
		{"butterfly", 64, 8, 500, 20, 2},
		{"fft", 8, 1 << 14, 600, 40, 8},
		{"fft", 16, 1 << 14, 400, 20, 4},
		{"fft", 64, 1 << 14, 100, 10, 1},
	}
}

func (c cell) name() string { return fmt.Sprintf("%s, %d", c.pattern, c.processes) }

// room is the capacity of a channel: a few messages, and no more. Room that is
// not needed is memory that is touched and never found in a cache again; with
// 1 MiB a channel an FFT of 64 processes took three times as long.
func (m message) room() int {
	const least, few, point = 64 << 10, 4, 16
	if m.pattern == "fft" {
		return max(least, few*m.bytes*point/m.processes)
	}
	return least
}

func (c cell) message(times int) message {
	profile := "butterfly"
	if c.pattern == "ring" {
		profile = "ring"
	}
	return message{measure: c.name(), profile: profile, pattern: c.pattern, processes: c.processes, bytes: c.bytes, times: times}
}

// crowd makes a contest over the cells, without players and goals.
func crowd(name, title, method string) *contest {
	c := &contest{name: name, title: title, method: method, rounds: 3, units: map[string]string{}}
	for _, cell := range cells() {
		c.order = append(c.order, cell.name())
		c.units[cell.name()] = map[string]string{"ring": "us a hop", "butterfly": "us an iteration", "fft": "us a transform"}[cell.pattern]
	}
	return c
}

// each gives the ratio of each cell against the best of theirs.
func each(theirs ...string) (all []func(*outcome) (float64, error)) {
	for _, cell := range cells() {
		all = append(all, less(cell.name(), theirs...))
	}
	return all
}

// crowdCase measures patterns among more processes than there are cores.
func crowdCase() *contest {
	c := crowd("crowd", "Ring, butterfly and FFT among 8, 16 and 64 processes on one host",
		"The patterns of messages/patterns.c, -O2, timed by process 0: a hop of 8 bytes in a ring, an exchange of 8 bytes in each stage of a butterfly, a transform of 16,384 points with binary exchange (the more points, the more it measures the transform and the less the messages). MVM is a job on a real node. Open MPI has mpi_yield_when_idle. MPICH spins, and so does its form over TCP (UCX_TLS=tcp,self): on fewer cores than processes each is measured once, a few units, with a limit. A channel of MVM has room for four messages, and 64 KiB at least.")
	c.goals = []goal{
		{text: "nine cells on average, against the best", atLeast: 1, ratio: geometric(each(openMPI, mpich, mpichTCP)...), holds: "the kernel's switches between the processes."},
		{text: "the worst of the nine, against the best", atLeast: 0.8, ratio: worst(each(openMPI, mpich, mpichTCP)...), holds: "the kernel's switches between the processes."},
		{text: "the worst of the nine, against MPICH as it comes", atLeast: 50, ratio: worst(each(mpich)...), holds: "the transform itself, where it is one."},
	}
	var ended []string
	c.tell = func() string {
		if len(ended) == 0 {
			return ""
		}
		return "Ended by the limit, so what stands there is the least that it can be, or nothing where its clock had not started: " + strings.Join(ended, "; ") + "."
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		players, runs, done, err := openCrowd(ctx, b, func(c cell) int { return c.calm })
		if err != nil {
			return nil, done, err
		}
		for _, mpi := range []struct {
			name  string
			limit time.Duration
		}{{mpich, 12 * time.Second}, {mpichTCP, 4 * time.Second}} {
			var once sync.Once
			players = append(players, player{mpi.name, func(ctx context.Context) (got sample, err error) {
				once.Do(func() {
					got = sample{}
					for _, c := range cells() {
						us, least, failed := runs[mpi.name].limited(ctx, c.message(c.spinning), mpi.limit)
						switch {
						case failed != nil:
							err = fmt.Errorf("%s: %w", c.name(), failed)
							return
						case least:
							ended = append(ended, fmt.Sprintf("%s, %s (%v)", mpi.name, c.name(), mpi.limit))
						}
						if us > 0 {
							got[c.name()] = us
						}
					}
				})
				return got, err
			}})
		}
		return players, done, nil
	}
	return c
}

// hogCase is the same beside two programs that compute and have nothing to do
// with it.
func hogCase() *contest {
	c := crowd("hogs", "The same while two foreign programs compute",
		"As crowd, while two endless loops that have nothing to do with it run; MVM and Open MPI only.")
	c.goals = []goal{{text: "nine cells on average, against Open MPI", atLeast: 5, ratio: geometric(each(openMPI)...), holds: "the turns that the kernel gives to those programs."}}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		players, _, done, err := openCrowd(ctx, b, func(c cell) int { return c.hogged })
		if err != nil {
			return nil, done, err
		}
		var hogs []*exec.Cmd
		stop := func() {
			for _, hog := range hogs {
				hog.Process.Kill()
				hog.Wait()
			}
			done()
		}
		for range 2 {
			hog := exec.Command("/bin/sh", "-c", "while kill -0 $PPID; do i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; done")
			if err := hog.Start(); err != nil {
				return nil, stop, err
			}
			hogs = append(hogs, hog)
		}
		return players, stop, nil
	}
	return c
}

// openCrowd gives MVM and Open MPI, which run each cell so many times, and all MPIs.
func openCrowd(ctx context.Context, b *bench, times func(cell) int) ([]player, map[string]mpiRun, func(), error) {
	const limit = 20 * time.Second
	dir, runs, err := buildMessages(ctx, b)
	if err != nil {
		return nil, nil, nil, err
	}
	g, err := startGrid(ctx, b, nil, 64)
	if err != nil {
		return nil, nil, nil, err
	}
	var list []message
	for _, c := range cells() {
		m := c.message(times(c))
		m.value = micros
		list = append(list, m)
	}
	mine := func(ctx context.Context, m message) (string, error) {
		return g.pattern(ctx, filepath.Join(dir, m.profile+".xml"), m, m.room())
	}
	yours := func(ctx context.Context, m message) (string, error) {
		us, least, err := runs[openMPI].limited(ctx, m, limit)
		if err == nil && least {
			err = fmt.Errorf("it is not done after %v", limit)
		}
		return strconv.FormatFloat(us, 'f', 6, 64), err
	}
	return []player{{ours, measureAll(list, mine)}, {openMPI, measureAll(list, yours)}}, runs, g.stop, nil
}

// limited runs a pattern for as long as limit. Of one that is not done then it
// gives the least that a unit took, 0 when its clock had not started.
func (r mpiRun) limited(ctx context.Context, m message, limit time.Duration) (us float64, least bool, err error) {
	short, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := r.command(short, m)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 2 * time.Second
	defer r.sweep()
	said, pipe, err := os.Pipe()
	if err != nil {
		return 0, false, err
	}
	defer said.Close()
	var out strings.Builder
	c.Stdout, c.Stderr = &out, pipe
	err = c.Start()
	pipe.Close()
	if err != nil {
		return 0, false, err
	}
	begun := make(chan time.Time, 1)
	complaints := make(chan string, 1)
	go func() {
		var words strings.Builder
		for lines := bufio.NewScanner(said); lines.Scan(); {
			if lines.Text() == "begun" {
				begun <- time.Now()
			} else {
				fmt.Fprintln(&words, lines.Text())
			}
		}
		complaints <- words.String()
	}()
	err = c.Wait()
	if short.Err() != nil && ctx.Err() == nil {
		units := float64(m.times)
		if m.pattern == "ring" {
			units *= float64(m.processes)
		}
		over, _ := short.Deadline()
		select {
		case at := <-begun:
			return float64(over.Sub(at).Microseconds()) / units, true, nil
		default:
			return 0, true, nil
		}
	}
	if err != nil {
		r.sweep() // who holds the pipe
		return 0, false, fmt.Errorf("%s: %w: %.300s", strings.Join(c.Args, " "), err, <-complaints)
	}
	us, err = strconv.ParseFloat(strings.TrimSpace(out.String()), 64)
	if err == nil && us <= 0 {
		err = errors.New("it took no time")
	}
	return us, false, err
}

// sweep ends what is left of the program, wherever its starter has put it.
func (r mpiRun) sweep() {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		if path, err := os.Readlink(link); err == nil && path == r.program {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(link))); err == nil {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}
}
