package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

func queueCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "queue",
		Short: "See and change queues: of a running job, or those in which jobs wait",
		Long: `Looks into the queues of a running job and changes them while it runs: no item
is lost or doubled by that. Any node of the grid takes these commands.

A queue is called by its name in the profile (jobs), or, where an edge is no
more than a channel, by its producer (sender[0]:out) or number (channel:7);
` + "`mvm queue ls JOB`" + ` lists them. An edge is written by its ends, as in a profile:
task[index]:port, queue:NAME, outside:NAME.

Without a job, the queues are those in which jobs wait for room.`,
		Example: `  mvm queue ls j-3f2a --watch
  mvm queue peek j-3f2a jobs
  mvm queue set j-3f2a sender[0]:out --type priority --capacity 65536
  mvm queue rewire j-3f2a sender[0]:out --to taker[1]:in
  mvm queue add j-3f2a helper:out queue:results
  echo hello | mvm queue put j-3f2a lines
  mvm queue ls`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("`mvm queue` has no verb %q; `mvm queue --help` lists them", args[0])
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(queueListCommand(), queuePeekCommand(), queueDrainCommand(), queuePutCommand(), queueGetCommand(),
		queueSetCommand(), queueRewireCommand(), queueAddCommand(), queueRemoveCommand(), queueChangeCommand(),
		queueMakeCommand(), queueMoveCommand())
	return cmd
}

// jobAndQueue takes [JOB] QUEUE: without a job the queue is one in which jobs wait.
func jobAndQueue(args []string) (job, queue string) {
	if len(args) == 1 {
		return "", args[0]
	}
	return args[0], args[1]
}

func queueListCommand() *cobra.Command {
	var v gridVerb
	var queue string
	var watch bool
	var over time.Duration
	cmd := &cobra.Command{
		Use:   "ls [JOB]",
		Short: "List a job's queues with depth, rates and who waits; or those in which jobs wait",
		Long: `Lists the queues of a running job. ITEMS and DEPTH wait now; IN/S and OUT/S are
the items that moved while the nodes watched for --over; WAIT says how many
producers wait for room, and how many takers for an item. A channel between two
nodes has a ring of its capacity on each, and DEPTH is what waits in both:
"of 2 x 64.0 KiB". What an edge had waiting when it was changed stands under its
old channel:N, until it is taken; ` + "`mvm queue peek`" + ` shows it all, in order.

Without a job it lists the queues in which jobs wait: how many JOBS do, how many
may AT MOST, how many RUN that waited there, and for how long the OLDEST has
waited; with --over also how many came and went a second.`,
		Example: `  mvm queue ls j-3f2a
  mvm queue ls j-3f2a --queue jobs
  mvm queue ls j-3f2a --watch --over 2s
  mvm queue ls --over 10s
  mvm queue ls --json`,
		Args: between(0, "JOB"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if over < 0 || over > 10*time.Second {
				return usagef("--over %v: watch for 10s at most; 0 shows no rates", over)
			}
			if watch && v.json {
				return usagef("--watch is for people, --json for programs: choose one")
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			r := &wsdl.ListQueues{Queue: queue}
			if len(args) > 0 {
				r.Job = args[0]
			}
			if r.Job != "" || cmd.Flags().Changed("over") { // jobs come and go slowly
				r.SampleMillis = int32(over.Milliseconds())
			}
			for {
				answer, err := c.Queues(cmd.Context(), r)
				if err != nil {
					return err
				}
				if v.json {
					return writeJSON(cmd.OutOrStdout(), answer)
				}
				var page bytes.Buffer
				if r.Job == "" {
					err = printJobQueues(&page, answer)
				} else {
					err = printQueues(&page, answer, queue != "", c.names(cmd.Context()))
				}
				if err != nil {
					return err
				}
				out := cmd.OutOrStdout()
				if watch && isTerminal(out) {
					fmt.Fprint(out, "\x1b[H\x1b[J")
				}
				if _, err := out.Write(page.Bytes()); err != nil || !watch {
					return err
				}
				if !isTerminal(out) {
					fmt.Fprintln(out)
				}
				if r.SampleMillis == 0 && !sleep(cmd.Context(), time.Second) {
					return cmd.Context().Err()
				}
			}
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&queue, "queue", "", "only this `QUEUE`, and each of its edges")
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on until Ctrl-C")
	cmd.Flags().DurationVar(&over, "over", time.Second/2, "watch for so long to tell rates; 0 shows none")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// printQueues is the table of a job's queues; with edges, each edge has a line.
func printQueues(w io.Writer, answer *wsdl.ListQueuesResponse, edges bool, names map[string]string) error {
	if len(answer.Queue) == 0 {
		fmt.Fprintln(w, "the job has no queues")
	}
	t := newTable(w, "QUEUE", "TYPE", "ITEMS", "DEPTH", "IN/S", "OUT/S", "BYTES/S", "WAIT", "FROM", "TO", "NODE")
	for _, q := range answer.Queue {
		in, out, bytes := "", "", ""
		if f := q.Flow; f != nil && f.Micros > 0 {
			in, out = rate(wsdl.Or(f.ItemsIn, 0), f.Micros), rate(wsdl.Or(f.ItemsOut, 0), f.Micros)
			bytes = bytesText(wsdl.Or(f.BytesIn, 0) * 1e6 / f.Micros)
		}
		t.row(q.Name, typeText(q), count(q.Items), depthText(q), in, out, bytes, waitText(q), endsText(q.Producer, "producers"), endsText(q.Taker, "takers"), named(names, q.Node))
	}
	if len(answer.Queue) > 0 {
		if err := t.flush(); err != nil {
			return err
		}
	}
	if edges {
		fmt.Fprintln(w)
		t := newTable(w, "EDGE", "END", "WAY", "ITEMS", "DEPTH", "NOW", "NODE")
		for _, q := range answer.Queue {
			for _, side := range []struct {
				way  string
				ends []*wsdl.QueueEnd
			}{{"in", q.Producer}, {"out", q.Taker}} {
				for _, e := range side.ends {
					now := "busy"
					switch {
					case wsdl.Or(e.Closed, false):
						now = "ended"
					case e.Waits == nil:
						now = ""
					case *e.Waits && side.way == "in":
						now = "waits for room"
					case *e.Waits:
						now = "waits for an item"
					}
					depth := ""
					if e.Depth != nil {
						depth = bytesText(*e.Depth)
					}
					t.row(fmt.Sprintf("channel:%d", wsdl.Or(e.Channel, 0)), e.Name, side.way, count(e.Items), depth, now, named(names, e.Node))
				}
			}
		}
		if err := t.flush(); err != nil {
			return err
		}
	}
	if len(answer.Change) > 0 {
		fmt.Fprintln(w)
		t := newTable(w, "CHANGE", "STATE", "WHAT", "REASON")
		for _, c := range answer.Change {
			t.row(fmt.Sprint(c.Number), string(wsdl.Or(c.State, "")), c.What, shorten(c.Reason, 70))
		}
		return t.flush()
	}
	return nil
}

func count(n *int64) string {
	if n == nil {
		return ""
	}
	return fmt.Sprint(*n)
}

// rate is so many in so many microseconds, for each second.
func rate(n, micros int64) string {
	switch r := float64(n) * 1e6 / float64(micros); {
	case r == 0:
		return "0"
	case r < 10:
		return fmt.Sprintf("%.1f", r)
	case r < 1e4:
		return fmt.Sprintf("%.0f", r)
	case r < 1e6:
		return fmt.Sprintf("%.1fk", r/1e3)
	default:
		return fmt.Sprintf("%.1fM", r/1e6)
	}
}

// typeText is the queue's type, and what else makes it more than a channel.
func typeText(q *wsdl.QueueStatus) string {
	if !wsdl.Or(q.Served, false) {
		return "channel"
	}
	parts := []string{string(wsdl.Or(q.Type_, ""))}
	if q.Rule != "" {
		parts[0] = fmt.Sprintf("rule %s@%d", q.Rule, q.RuleVersion)
	}
	if full := wsdl.Or(q.Full, wsdl.FullPolicyBlock); full != wsdl.FullPolicyBlock {
		parts = append(parts, string(full))
	}
	if len(q.Encoder) > 0 {
		parts = append(parts, plural(len(q.Encoder), "encoder"))
	}
	if q.Link != nil {
		parts = append(parts, "link")
	}
	return strings.Join(parts, ", ")
}

// depthText is how much waits, of how much can. A channel between two nodes has a ring
// on each.
func depthText(q *wsdl.QueueStatus) string {
	if q.Depth == nil {
		return ""
	}
	rings := ""
	if !wsdl.Or(q.Served, false) && len(q.Producer) == 1 && len(q.Taker) == 1 && q.Producer[0].Node != q.Taker[0].Node {
		rings = "2 x "
	}
	return bytesText(*q.Depth) + " of " + rings + bytesText(wsdl.Or(q.Capacity, 0))
}

func waitText(q *wsdl.QueueStatus) string {
	var parts []string
	if n := wsdl.Or(q.ProducersWait, 0); n > 0 {
		parts = append(parts, fmt.Sprintf("%d for room", n))
	}
	if n := wsdl.Or(q.TakersWait, 0); n > 0 {
		parts = append(parts, fmt.Sprintf("%d for items", n))
	}
	return strings.Join(parts, ", ")
}

// endsText is the one end, or how many there are.
func endsText(ends []*wsdl.QueueEnd, what string) string {
	var live []string
	for _, e := range ends {
		if !wsdl.Or(e.Closed, false) {
			live = append(live, e.Name)
		}
	}
	switch {
	case len(ends) == 0:
		return ""
	case len(ends) == 1 && len(live) == 0:
		return ends[0].Name + " (ended)"
	case len(live) == 0:
		return "all ended"
	case len(live) == 1:
		return live[0]
	}
	return fmt.Sprintf("%d %s", len(live), what)
}
