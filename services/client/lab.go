package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// lab is one run of `mvm lab`.
type lab struct {
	nodes  int // 0: the profile's policy, or 4
	keep   bool
	out    string
	json   bool
	params arguments

	stdout, stderr io.Writer
	view           *progress
}

// labNodes is how many nodes a lab has when nobody says otherwise, and
// mostLabNodes the most that are started.
const (
	labNodes     = 4
	mostLabNodes = 256
)

func labCommand() *cobra.Command {
	l := &lab{}
	cmd := &cobra.Command{
		Use:   "lab PROFILE",
		Short: "Run a job on a grid of its own on this machine",
		Long: `Starts an ephemeral grid of separate node processes on loopback, with slots
enough for the profile spread evenly, runs the job on it, prints what its
processes wrote and a short account, and exits with the job's outcome. Nothing
is left: no process, and no file but those saved with -o and, in the user's cache
folder, Go's compiled standard library and a note of what the compilers are.
Ctrl-C cancels the job.`,
		Example: `  mvm lab examples/jobs/sunspots/sunspots.xml
  mvm lab heat.xml --nodes 2 -p steps=500 -o results
  mvm lab heat.xml --keep     # the grid stays up until Ctrl-C, for other verbs`,
		Args:              exactly("a PROFILE file"),
		ValidArgsFunction: completeFiles("xml"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("nodes") && (l.nodes < 1 || l.nodes > mostLabNodes) {
				return usagef("--nodes %d: a lab has 1 to %d nodes", l.nodes, mostLabNodes)
			}
			l.stdout, l.stderr = cmd.OutOrStdout(), cmd.ErrOrStderr()
			return l.run(cmd.Context(), args[0])
		},
	}
	cmd.Flags().IntVarP(&l.nodes, "nodes", "n", 0, "`N` node processes (default: the profile's policy nodes, else 4)")
	cmd.Flags().BoolVar(&l.keep, "keep", false, "keep the grid up after the job, until Ctrl-C")
	cmd.Flags().StringVarP(&l.out, "output", "o", "", "save the job's output files into `DIR`")
	cmd.Flags().BoolVar(&l.json, "json", false, "print the job as JSON instead of what its processes wrote")
	l.params.flag(cmd)
	return cmd
}

func (l *lab) run(ctx context.Context, path string) error {
	values, err := l.params.values()
	if err != nil {
		return err
	}
	document, err := Load(path)
	if err != nil {
		return err
	}
	compiled, err := document.Compile(values, nil)
	if err != nil {
		return err
	}
	if l.nodes == 0 {
		if l.nodes = document.policyNodes(values); l.nodes == 0 {
			l.nodes = labNodes
		}
	}
	binary, err := os.Executable()
	if err != nil {
		return err
	}
	l.view = newProgress(l.stderr, true)
	defer l.view.close()

	begin := time.Now()
	grid, err := startGrid(ctx, binary, spread(len(compiled.Processes), l.nodes))
	if err != nil {
		return err
	}
	defer grid.stop()
	up := time.Since(begin)
	l.view.step("%s up in %s: %s", plural(l.nodes, "node"), durationText(up), grid.url())

	c, err := Dial(ctx, grid.url())
	if err != nil {
		return err
	}
	job, err := l.drive(ctx, c, grid, Request{Document: document, Arguments: values, Uploaded: l.view.uploads()})
	l.view.close()
	if err != nil {
		return err
	}
	if err := l.show(ctx, c, job); err != nil {
		return err
	}
	if l.keep {
		fmt.Fprintf(l.stderr, "the grid stays up until Ctrl-C: export MVM_GRID=%s\n", grid.url())
		<-ctx.Done()
	}
	return outcome(job)
}

// drive submits the job and waits for its end. When the context ends before
// the job does, the job is cancelled first.
func (l *lab) drive(ctx context.Context, c *Client, grid *labGrid, r Request) (*wsdl.JobStatus, error) {
	if err := l.roomFor(ctx, c, r); err != nil {
		return nil, err
	}
	id, err := c.Submit(ctx, r)
	if err != nil {
		return nil, err
	}
	watching, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var short atomic.Bool // a node is gone, and a lab's grid never grows again
	go func() {
		for n := range grid.lost(watching) {
			l.view.step("%s ended: %v", n.name, n.err)
			short.Store(true)
			if n == grid.first() {
				stop(fmt.Errorf("%s, which has the broker, ended: %v%s", n.name, n.err, n.logTail()))
			}
		}
	}()
	view := &jobView{p: l.view}
	job, err := c.Wait(watching, id, func(job *wsdl.JobStatus) {
		view.changed(job)
		if !short.Load() || wsdl.Or(job.State, "") != wsdl.JobStatePending {
			return
		}
		if plan, err := c.Plan(watching, r); err == nil && !wsdl.Or(plan.Fits, false) {
			stop(&Exit{Code: ExitFailed, Err: fmt.Errorf("a node is gone, and the others cannot hold the job: %s", plan.Reason)})
		}
	})
	if err == nil {
		return job, nil
	}
	if ctx.Err() == nil {
		if cause := context.Cause(watching); cause != nil {
			return nil, cause
		}
		return nil, err
	}
	l.view.step("interrupted: cancelling the job")
	const patience = 10 * time.Second
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if _, err := c.Cancel(last, id, "the lab was interrupted"); err == nil {
		c.Wait(last, id, nil)
	}
	return nil, &Exit{Code: ExitInterrupted, Err: errors.New("interrupted; the job is cancelled")}
}

// roomFor asks for a plan first: a lab's grid never grows, so a job that does
// not fit now would wait for ever.
func (l *lab) roomFor(ctx context.Context, c *Client, r Request) error {
	plan, err := c.Plan(ctx, r)
	if err != nil {
		return err
	}
	if wsdl.Or(plan.Fits, false) {
		return nil
	}
	fmt.Fprintln(l.stderr, "this machine cannot hold the job:")
	printPlan(l.stderr, plan, c.names(ctx))
	return &Exit{Code: ExitFailed}
}

// show prints what the processes wrote, saves the outputs, and gives account.
func (l *lab) show(ctx context.Context, c *Client, job *wsdl.JobStatus) error {
	results := Results(job)
	if l.json {
		if err := writeJSON(l.stdout, job); err != nil {
			return err
		}
	} else if err := l.streams(ctx, c, job); err != nil {
		return err
	}
	if l.out != "" {
		for _, r := range results {
			if err := c.Save(ctx, job.Id, r, l.out); err != nil {
				return err
			}
		}
	}
	if l.json {
		return nil
	}
	if err := account(l.stderr, job, c.names(ctx)); err != nil {
		return err
	}
	for _, r := range results {
		if l.out != "" {
			fmt.Fprintf(l.stderr, "saved %s (%s of %s)\n", printable(filepath.Join(l.out, r.Path)), bytesText(r.Size), r.Label)
		}
	}
	if l.out == "" && len(results) > 0 {
		fmt.Fprintf(l.stderr, "%s not saved: name a folder with -o DIR\n", plural(len(results), "output file"))
	}
	describeEnd(l.stderr, job)
	return nil
}

// streams prints stdout, and of a failed job's failed processes also stderr.
func (l *lab) streams(ctx context.Context, c *Client, job *wsdl.JobStatus) error {
	chosen := speaking(job.Process, Stdout)
	var err error
	if len(chosen) == 1 {
		_, err = c.Output(ctx, job.Id, int(wsdl.Or(chosen[0].Id, 0)), Stdout, 0, false, l.stdout)
	} else {
		err = c.printAll(ctx, job, chosen, Stdout, l.stdout)
	}
	if err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		return err
	}
	for _, p := range speaking(job.Process, Stderr) {
		lines := &labeller{label: Label(job, p) + " stderr", w: l.stderr}
		_, err := c.Output(ctx, job.Id, int(wsdl.Or(p.Id, 0)), Stderr, 0, false, lines)
		lines.close()
		if err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
			return err
		}
	}
	return nil
}

// account prints a short table: what ran where, what was built, what crossed
// between nodes.
func account(w io.Writer, job *wsdl.JobStatus, names map[string]string) error {
	type row struct {
		tasks  map[string][]int
		count  int
		cpu    int64
		builds []string
	}
	rows := map[string]*row{}
	of := func(node string) *row {
		node = named(names, node)
		if rows[node] == nil {
			rows[node] = &row{tasks: map[string][]int{}}
		}
		return rows[node]
	}
	for _, p := range job.Process {
		r := of(p.Node)
		r.tasks[p.Task] = append(r.tasks[p.Task], int(wsdl.Or(p.Index, 0)))
		r.count++
		r.cpu += p.UserMicros + p.SystemMicros
	}
	for _, b := range job.Build {
		how := fmt.Sprintf("%s %d ms", b.Source, wsdl.Or(b.Millis, 0))
		if wsdl.Or(b.Cached, false) {
			how = b.Source + " cached"
		}
		of(b.Node).builds = append(of(b.Node).builds, how)
	}
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintln(w)
	t := newTable(w, "NODE", "PROCESSES", "WHICH", "BUILT", "CPU")
	for _, node := range sorted(rows) {
		r := rows[node]
		which := ""
		for _, task := range sorted(r.tasks) {
			which = join(which, " ", task+"["+ranges(r.tasks[task])+"]")
		}
		built := ""
		for _, b := range r.builds {
			built = join(built, ", ", b)
		}
		t.row(node, strconv.Itoa(r.count), which, built, durationText(time.Duration(r.cpu)*time.Microsecond))
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintf(w, "between nodes, over the proxies: %s, %s\n",
		plural(int(wsdl.Or(job.ProxyItems, 0)), "item"), bytesText(wsdl.Or(job.ProxyBytes, 0)))
	return nil
}

func join(text, with, more string) string {
	if text == "" {
		return more
	}
	return text + with + more
}

// spread gives each of n nodes its slots: enough for so many processes in all,
// as evenly as can be, at least one each.
func spread(processes, n int) []int {
	slots := make([]int, n)
	for i := range slots {
		slots[i] = processes / n
		if i < processes%n {
			slots[i]++
		}
		slots[i] = max(slots[i], 1)
	}
	return slots
}

// first is the node with all roles.
func (g *labGrid) first() *labNode {
	for _, n := range g.nodes {
		if n.name == "node1" {
			return n
		}
	}
	return nil
}

func (g *labGrid) url() string { return g.first().url }
