package client

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

// The verbs on the queues in which jobs wait.

// jobSettings are what only such a queue has.
type jobSettings struct {
	weight       int32
	hold, resume bool
}

func (s *jobSettings) flags(cmd *cobra.Command) {
	cmd.Flags().Int32Var(&s.weight, "weight", 0, "of a queue of jobs: its `SHARE` of the room against that of others, 1 to 1000")
	cmd.Flags().BoolVar(&s.hold, "hold", false, "of a queue of jobs: start none of them")
	cmd.Flags().BoolVar(&s.resume, "resume", false, "of a queue of jobs: start them again")
}

// apply puts them into a change.
func (s *jobSettings) apply(cmd *cobra.Command, r *wsdl.ChangeQueue) error {
	given := cmd.Flags().Changed("weight")
	switch {
	case r.Job != "" && (given || s.hold || s.resume):
		return usagef("--weight, --hold and --resume are for queues in which jobs wait: write `mvm queue set QUEUE`, without a job")
	case s.hold && s.resume:
		return usagef("--hold and --resume contradict each other")
	case given && s.weight < 1:
		return usagef("--weight %d: write a share from 1 to 1000", s.weight)
	}
	r.Weight = s.weight
	if s.hold || s.resume {
		r.Held = wsdl.Of(s.hold)
	}
	return nil
}

// printJobQueues is the table of the queues in which jobs wait.
func printJobQueues(w io.Writer, answer *wsdl.ListQueuesResponse) error {
	head := []string{"QUEUE", "TYPE", "WEIGHT", "JOBS", "AT MOST", "OLDEST", "RUN", "CAME", "WENT", "REFUSED"}
	rates := len(answer.Queue) > 0 && answer.Queue[0].Flow != nil
	if rates {
		head = append(head, "IN/S", "OUT/S")
	}
	t := newTable(w, append(head, "STATE")...)
	for _, q := range answer.Queue {
		most, oldest, state := "", "", ""
		if n := wsdl.Or(q.Capacity, 0); n > 0 {
			most = fmt.Sprint(n)
		}
		if q.OldestMillis != nil {
			oldest = durationText(time.Duration(*q.OldestMillis) * time.Millisecond)
		}
		if wsdl.Or(q.Held, false) {
			state = "held"
		}
		row := []string{q.Name, string(wsdl.Or(q.Type_, "")), fmt.Sprint(q.Weight), count(q.Items), most, oldest,
			fmt.Sprint(wsdl.Or(q.Running, 0)), count(q.ItemsIn), count(q.ItemsOut), count(q.Refused)}
		if f := q.Flow; rates && f != nil && f.Micros > 0 {
			row = append(row, rate(wsdl.Or(f.ItemsIn, 0), f.Micros), rate(wsdl.Or(f.ItemsOut, 0), f.Micros))
		} else if rates {
			row = append(row, "", "")
		}
		t.row(append(row, state)...)
	}
	return t.flush()
}

// printWaiting is the table of jobs that wait.
func printWaiting(w io.Writer, items []*wsdl.QueueItem) error {
	t := newTable(w, "PLACE", "JOB", "NAME", "PRIORITY", "STATE", "REASON")
	for i, item := range items {
		t.row(fmt.Sprint(i+1), item.Job, item.Name, fmt.Sprint(item.Priority), string(wsdl.Or(item.State, "")), shorten(item.Reason, 70))
	}
	return t.flush()
}

func queueMakeCommand() *cobra.Command {
	var v gridVerb
	var kind string
	var capacity int64
	var weight int32
	var held bool
	cmd := &cobra.Command{
		Use:   "make QUEUE",
		Short: "Make a queue in which jobs wait",
		Long: `Makes a queue in which jobs wait: those whose profile names it (<policy
queue="night"/>) or that are submitted to it (mvm submit --queue night). Room
goes to queues with waiting jobs in proportion to their weights. A queue that is
full refuses jobs; it never drops one.`,
		Example: `  mvm queue make night
  mvm queue make urgent --type priority --capacity 100 --weight 5`,
		Args: exactly("the name of a QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &wsdl.MakeQueue{Name: args[0], Capacity: capacity, Weight: weight, Held: held}
			if weight < 1 {
				return usagef("--weight %d: write a share from 1 to 1000", weight)
			}
			if kind != "" {
				if kind != "fifo" && kind != "priority" {
					return usagef("--type %s: jobs wait in queues of type fifo or priority", kind)
				}
				r.Type_ = wsdl.Of(wsdl.QueueType(kind))
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			made, err := c.MakeQueue(cmd.Context(), r)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), made)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the queue %s is made\n", printable(args[0]))
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().StringVar(&kind, "type", "", "`TYPE`: fifo, the default, or priority")
	cmd.Flags().Int64Var(&capacity, "capacity", 0, "how many `JOBS` may wait; 0 is no bound")
	cmd.Flags().Int32Var(&weight, "weight", 1, "its `SHARE` of the room against that of others, 1 to 1000")
	cmd.Flags().BoolVar(&held, "hold", false, "start none of its jobs until it is set to --resume")
	return cmd
}

func queueMoveCommand() *cobra.Command {
	var v gridVerb
	var first, last bool
	var priority int32
	cmd := &cobra.Command{
		Use:   "move JOB [QUEUE]",
		Short: "Move a waiting job to another queue, or to another place in its own",
		Long: `Gives a job that waits another place. In another queue it stands by its age, as
if it had been submitted there; --first and --last put it before or behind all,
in a priority queue before or behind those of its priority.`,
		Example: `  mvm queue move j-3f2a night
  mvm queue move j-3f2a --first
  mvm queue move j-3f2a urgent --priority 90`,
		Args: between(1, "a JOB", "a QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &wsdl.MoveJob{Job: args[0]}
			if len(args) > 1 {
				r.Queue = args[1]
			}
			switch {
			case first && last:
				return usagef("--first and --last contradict each other")
			case first:
				r.Place = wsdl.Of(wsdl.JobPlaceFirst)
			case last:
				r.Place = wsdl.Of(wsdl.JobPlaceLast)
			}
			if cmd.Flags().Changed("priority") {
				if priority < 0 || priority > 100 {
					return usagef("--priority %d: write one from 0 to 100", priority)
				}
				r.Priority = &priority
			}
			if r.Queue == "" && r.Place == nil && r.Priority == nil {
				return usagef("`mvm queue move` needs a QUEUE, --first, --last or --priority")
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			at, err := c.MoveJob(cmd.Context(), r)
			if err != nil {
				return err
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), at)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "job %s is number %d in the queue %s\n", printable(args[0]), at.Place, printable(at.Queue))
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().BoolVar(&first, "first", false, "before all")
	cmd.Flags().BoolVar(&last, "last", false, "behind all")
	cmd.Flags().Int32Var(&priority, "priority", 50, "its `PRIORITY` from now, 0 to 100")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}
