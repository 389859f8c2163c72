package client

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mvm/wsdl"
)

func queuePeekCommand() *cobra.Command {
	var v gridVerb
	var limit, bytes int32
	cmd := &cobra.Command{
		Use:   "peek [JOB] QUEUE",
		Short: "Show the first items that wait in a queue; nothing moves",
		Long: `Shows the first items that wait in a queue of a running job, those that are taken
next first. Nothing moves. Of an edge that was changed, what waits in the rings that
it had before comes first, as it does for its taker; channel:N is one ring alone.

Without a job, shows the first jobs that wait in a queue.`,
		Example: `  mvm queue peek j-3f2a jobs
  mvm queue peek j-3f2a sender[0]:out -n 100 --json
  mvm queue peek night`,
		Args: between(1, "a QUEUE, or a JOB and a QUEUE", "a QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 || limit > 1000 {
				return usagef("-n %d: write a number of items from 1 to 1000", limit)
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			job, queue := jobAndQueue(args)
			return peek(cmd, c, &wsdl.PeekQueue{Job: job, Queue: queue, Limit: limit, Bytes: bytes}, v.json)
		},
	}
	v.flags(cmd, true)
	cmd.Flags().Int32VarP(&limit, "limit", "n", 10, "at most `N` items")
	cmd.Flags().Int32Var(&bytes, "bytes", 4096, "at most so many `BYTES` of each item")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

func peek(cmd *cobra.Command, c *Client, r *wsdl.PeekQueue, json bool) error {
	items, hidden, err := c.Peek(cmd.Context(), r)
	if err != nil {
		return err
	}
	if hidden {
		defer fmt.Fprintln(cmd.ErrOrStderr(), "what waits behind these at the producer's node could not be shown: it is on its way, or that node does not answer; look again")
	}
	switch {
	case json:
		return writeJSON(cmd.OutOrStdout(), items)
	case hidden && len(items) == 0:
		fmt.Fprintln(cmd.OutOrStdout(), "nothing waits at the taker's node")
		return nil
	}
	return printItems(cmd.OutOrStdout(), r.Job, items)
}

// printItems is the table of items that wait, or of waiting jobs.
func printItems(w io.Writer, job string, items []*wsdl.QueueItem) error {
	if len(items) == 0 {
		fmt.Fprintln(w, "nothing waits")
		return nil
	}
	if job == "" {
		return printWaiting(w, items)
	}
	t := newTable(w, "PLACE", "SIZE", "KIND", "PRIORITY", "ITEM")
	for i, item := range items {
		kind := "data"
		if item.Instruction {
			kind = "instruction"
		}
		t.row(fmt.Sprint(i+1), bytesText(wsdl.Or(item.Size, 0)), kind, fmt.Sprint(item.Priority), itemText([]byte(wsdl.Or(item.Data, nil))))
	}
	return t.flush()
}

// itemText is an item's text, or its bytes where it is none.
func itemText(data []byte) string {
	const most = 60
	if len(data) == 0 {
		return `""`
	}
	cut := data[:min(len(data), 4*most)]
	for len(cut) < len(data) && len(cut) > 0 && !utf8.Valid(cut) && len(data)-len(cut) < utf8.UTFMax {
		cut = data[:len(cut)+1]
	}
	text := strings.ToValidUTF8(string(cut), "\uFFFD")
	if strings.ContainsRune(text, '\uFFFD') || strings.ContainsFunc(strings.TrimRight(text, "\n"), func(r rune) bool { return r != '\n' && r != '\t' && obeyed(r) }) {
		text = fmt.Sprintf("% x", data[:min(len(data), most/3)])
		if len(data) > most/3 {
			text += " …"
		}
		return text
	}
	return shorten(strings.TrimRight(text, "\n"), most)
}

func queueDrainCommand() *cobra.Command {
	var v gridVerb
	var limit int
	cmd := &cobra.Command{
		Use:   "drain [JOB] QUEUE",
		Short: "Take the items that wait out of a queue and print them",
		Long: `Takes what waits out of a queue of a running job and prints it, each item on a
line of its own: no taker of the job gets it. Without a job, the jobs that wait
in the queue are cancelled.`,
		Example: `  mvm queue drain j-3f2a jobs > left.txt
  mvm queue drain j-3f2a jobs -n 1 --json
  mvm queue drain night`,
		Args: between(1, "a QUEUE, or a JOB and a QUEUE", "a QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usagef("-n %d: write a number of items, or 0 for all", limit)
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			job, queue := jobAndQueue(args)
			var all []*wsdl.QueueItem
			for n := 0; ; {
				most := 1000
				if limit > 0 {
					most = min(most, limit-n)
				}
				items, more, err := c.Drain(cmd.Context(), &wsdl.DrainQueue{Job: job, Queue: queue, Limit: int32(most)})
				if err != nil {
					return err
				}
				n += len(items)
				if v.json {
					all = append(all, items...)
				} else if err := printDrained(cmd.OutOrStdout(), items); err != nil {
					return err
				}
				if !more || len(items) == 0 || limit > 0 && n >= limit {
					break
				}
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().IntVarP(&limit, "limit", "n", 0, "at most `N` items; 0 is all")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

// printDrained writes items as they are: whoever drained them has them alone.
func printDrained(w io.Writer, items []*wsdl.QueueItem) error {
	for _, item := range items {
		if item.Job != "" {
			if _, err := fmt.Fprintf(w, "%s\t%s\n", printable(item.Job), printable(item.Name)); err != nil {
				return err
			}
			continue
		}
		if err := writeItem(w, []byte(wsdl.Or(item.Data, nil))); err != nil {
			return err
		}
	}
	return nil
}

// writeItem writes an item on a line of its own.
func writeItem(w io.Writer, data []byte) error {
	if isTerminal(w) {
		_, err := fmt.Fprintln(w, printableLines(string(data)))
		return err
	}
	if !bytes.HasSuffix(data, []byte("\n")) {
		data = append(data, '\n')
	}
	_, err := w.Write(data)
	return err
}

func queuePutCommand() *cobra.Command {
	var v gridVerb
	var end, whole bool
	var instruction string
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "put JOB QUEUE [ITEM...]",
		Short: "Enqueue items from outside the job",
		Long: `Enqueues each ITEM, or else each line of standard input, into a queue of a
running job: into an end that its profile opens to the outside, or into any
served queue. --end then says that nothing more comes from outside. With
--instruction, standard input is source that a processor of the job builds and
applies to the data after it.`,
		Example: `  mvm queue put j-3f2a numbers 1 2 3 --end
  seq 1000 | mvm queue put j-3f2a numbers
  mvm queue put j-3f2a pictures --whole < picture.png
  mvm queue put j-3f2a programs --instruction "c -lm" < norm.c`,
		Args: func(cmd *cobra.Command, args []string) error {
			return exactly("a JOB", "a QUEUE")(cmd, args[:min(len(args), 2)])
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			words, instructs := strings.Fields(instruction), cmd.Flags().Changed("instruction")
			switch {
			case (whole || instructs) && len(args) > 2:
				return usagef("--whole and --instruction make one item of standard input; give no ITEM")
			case whole && instructs:
				return usagef("--whole and --instruction contradict each other: standard input is an item of data, or source")
			case instructs && len(words) == 0:
				return usagef("--instruction %q names no language", instruction)
			}
			if err := waits(wait); err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			put := putter{outsider: outsider{ctx: cmd.Context(), c: c, job: args[0], wait: wait}, queue: args[1]}
			switch {
			case instructs:
				source, err := io.ReadAll(cmd.InOrStdin())
				if err != nil {
					return err
				}
				if len(bytes.TrimSpace(source)) == 0 {
					return usagef("standard input has no source: write `mvm queue put %s %s --instruction %q < FILE`", args[0], args[1], instruction)
				}
				var in bool
				err = put.inTurns(func(turn time.Duration) (_ bool, err error) {
					in, err = c.Instruct(put.ctx, put.job, put.queue, words[0], words[1:], source, turn)
					return in, err
				})
				if err != nil {
					return err
				}
				if !in {
					return &Exit{Code: ExitTimeout, Err: fmt.Errorf("the queue %s had no room for %v", put.queue, wait)}
				}
			case whole:
				data, err := io.ReadAll(cmd.InOrStdin())
				if err != nil {
					return err
				}
				if err := put.add(data); err != nil {
					return err
				}
			case len(args) > 2:
				for _, text := range args[2:] {
					if err := put.add([]byte(text)); err != nil {
						return err
					}
				}
			default:
				lines := bufio.NewReader(cmd.InOrStdin())
				for {
					line, err := lines.ReadBytes('\n')
					if len(line) > 0 {
						if err := put.add(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
							return err
						}
					}
					if err == io.EOF {
						break
					}
					if err != nil {
						return err
					}
				}
			}
			return put.flush(end)
		},
	}
	v.flags(cmd, false)
	cmd.Flags().BoolVar(&end, "end", false, "say END after the items")
	cmd.Flags().BoolVar(&whole, "whole", false, "all of standard input is one item")
	cmd.Flags().StringVar(&instruction, "instruction", "", "all of standard input is the source of an instruction, in this `LANGUAGE` with these flags for its compiler")
	cmd.Flags().DurationVar(&wait, "wait", 30*time.Second, "how long to wait for room for each batch")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}

// putter enqueues in batches.
type putter struct {
	outsider
	queue string
	items [][]byte
	bytes int
	done  int
}

func (p *putter) add(item []byte) error {
	p.items = append(p.items, item)
	if p.bytes += len(item); len(p.items) >= 500 || p.bytes > 1<<20 {
		return p.flush(false)
	}
	return nil
}

// flush goes on until all is in, or nothing more went in for as long as it waits.
func (p *putter) flush(end bool) error {
	for len(p.items) > 0 || end {
		var n int
		err := p.inTurns(func(turn time.Duration) (over bool, err error) {
			n, err = p.c.Enqueue(p.ctx, p.job, p.queue, p.items, end, turn)
			return n > 0 || len(p.items) == 0, err
		})
		p.done += n
		if err != nil {
			if p.done > 0 {
				err = fmt.Errorf("after %s: %w", plural(p.done, "item"), err)
			}
			return err
		}
		if n == 0 && len(p.items) > 0 {
			return &Exit{Code: ExitTimeout, Err: fmt.Errorf("the queue %s had no room for %v; %s went in", p.queue, p.wait, plural(p.done, "item"))}
		}
		if p.items = p.items[n:]; len(p.items) == 0 {
			break
		}
	}
	p.items, p.bytes = nil, 0
	return nil
}

// outsider calls a job from outside, for as long as it waits.
type outsider struct {
	ctx  context.Context
	c    *Client
	job  string
	wait time.Duration
}

// inTurns asks until the answer is there or the wait is over. A job that does not run
// yet has no queues: that is waited for too.
func (o *outsider) inTurns(ask func(turn time.Duration) (over bool, err error)) error {
	until, began := time.Now().Add(o.wait), false
	for {
		over, err := ask(max(0, min(time.Until(until), longestCall)))
		var early error
		if err != nil {
			if early = o.early(err); early == nil {
				if !began && wsdl.CodeOf(err) == wsdl.FaultCodeConflict {
					began = true // it may have begun since it was refused
					continue
				}
				return err
			}
		}
		switch {
		case over:
			return nil
		case time.Until(until) < time.Millisecond:
			return early
		case early != nil && !sleep(o.ctx, min(time.Until(until), 100*time.Millisecond)):
			return o.ctx.Err()
		}
	}
}

// early is what to say of a call that was refused because the job does not run yet;
// nil where that is not why.
func (o *outsider) early(err error) error {
	if code := wsdl.CodeOf(err); code != wsdl.FaultCodeConflict && code != wsdl.FaultCodeUnavailable {
		return nil
	}
	job, asked := o.c.Job(o.ctx, o.job)
	if asked != nil {
		return nil
	}
	state := wsdl.Or(job.State, "")
	if state != wsdl.JobStatePending && state != wsdl.JobStateAwakening {
		return nil
	}
	text := fmt.Sprintf("job %s is not running yet, but %s", job.Id, state)
	if job.Reason != "" {
		text += " (" + job.Reason + ")"
	}
	return &Exit{Code: ExitTimeout, Err: fmt.Errorf("%s: its queues are there when it runs", text)}
}

// waits refuses a time to wait that is none.
func waits(wait time.Duration) error {
	if wait < 0 {
		return usagef("--wait %v: write how long to wait, or 0 not to", wait)
	}
	return nil
}

func queueGetCommand() *cobra.Command {
	var v gridVerb
	var limit int
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "get JOB QUEUE",
		Short: "Dequeue items from outside the job",
		Long: `Dequeues items from a queue of a running job, as one more of its takers, and
prints each on a line of its own, until -n have come, the queue has ended, or
none has come for --wait.`,
		Example: `  mvm queue get j-3f2a results
  mvm queue get j-3f2a results -n 10 --wait 1m`,
		Args: exactly("a JOB", "a QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usagef("-n %d: write a number of items, or 0 for all", limit)
			}
			if err := waits(wait); err != nil {
				return err
			}
			c, err := v.dial(cmd)
			if err != nil {
				return err
			}
			get := outsider{ctx: cmd.Context(), c: c, job: args[0], wait: wait}
			all := []*wsdl.Binary{}
			for n := 0; limit == 0 || n < limit; {
				most := 1000
				if limit > 0 {
					most = min(most, limit-n)
				}
				var items [][]byte
				var end bool
				err := get.inTurns(func(turn time.Duration) (over bool, err error) {
					items, end, err = c.Dequeue(cmd.Context(), args[0], args[1], most, turn)
					return end || len(items) > 0, err
				})
				if err != nil {
					return err
				}
				for _, item := range items {
					if v.json {
						all = append(all, wsdl.Of(wsdl.Binary(item)))
					} else if err := writeItem(cmd.OutOrStdout(), item); err != nil {
						return err
					}
				}
				n += len(items)
				if end {
					break
				}
				if len(items) == 0 && (limit == 0 || n < limit) {
					if v.json {
						if err := writeJSON(cmd.OutOrStdout(), all); err != nil {
							return err
						}
					}
					return &Exit{Code: ExitTimeout, Err: fmt.Errorf("no item came for %v; the queue %s has not ended", wait, args[1])}
				}
			}
			if v.json {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			return nil
		},
	}
	v.flags(cmd, true)
	cmd.Flags().IntVarP(&limit, "limit", "n", 0, "at most `N` items; 0 is all until END")
	cmd.Flags().DurationVar(&wait, "wait", 10*time.Second, "how long to wait for an item")
	cmd.ValidArgsFunction = completeJobs(&v)
	return cmd
}
