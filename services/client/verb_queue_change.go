package client

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// changeVerb is a verb that changes a running job's queues.
type changeVerb struct {
	gridVerb
	wait time.Duration
}

func (v *changeVerb) flags(cmd *cobra.Command) {
	v.gridVerb.flags(cmd, true)
	cmd.Flags().DurationVar(&v.wait, "wait", 10*time.Second, "how long to wait until the change is made everywhere; 0 does not wait")
	cmd.ValidArgsFunction = completeJobs(&v.gridVerb)
}

// carry has a change made by ask, waits for it and prints what became of it.
func (v *changeVerb) carry(cmd *cobra.Command, job string, ask func(c *Client, millis int32) (*wsdl.ChangeStatus, error)) error {
	if err := waits(v.wait); err != nil {
		return err
	}
	c, err := v.dial(cmd)
	if err != nil {
		return err
	}
	change, err := c.await(cmd.Context(), job, v.wait, func(millis int32) (*wsdl.ChangeStatus, error) { return ask(c, millis) })
	if err != nil {
		return err
	}
	return v.tell(cmd.OutOrStdout(), job, change)
}

// tell prints what became of a change: pending is a wait that was too short.
func (v *changeVerb) tell(w io.Writer, job string, c *wsdl.ChangeStatus) error {
	state := wsdl.Or(c.State, "")
	if v.json {
		if err := writeJSON(w, c); err != nil {
			return err
		}
	} else {
		text := c.What + ": " + string(state)
		if c.Number > 0 {
			text = fmt.Sprintf("change %d: %s", c.Number, text)
		}
		if c.Reason != "" {
			text += ": " + c.Reason
		}
		fmt.Fprintln(w, printable(text))
		if state == wsdl.ChangeStatePending {
			fmt.Fprintf(w, "it goes on; `mvm queue change %s %d` tells how far it is\n", printable(job), c.Number)
		}
	}
	switch {
	case state == wsdl.ChangeStateFailed:
		return &Exit{Code: ExitFailed}
	case state == wsdl.ChangeStatePending && v.wait > 0:
		return &Exit{Code: ExitTimeout}
	}
	return nil
}

// settings are the flags that say what a queue is like.
type settings struct {
	kind, full string
	capacity   int64
	encoders   []string
}

var (
	queueTypes   = []string{"fifo", "priority", "lifo", "latest", "work", "broadcast"}
	fullPolicies = []string{"block", "dropNewest", "dropOldest", "fail"}
	codecs       = []string{"raw", "lines", "json", "xml", "xdr", "base64", "zstd"}
)

func (s *settings) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&s.kind, "type", "", "`TYPE`: "+strings.Join(queueTypes, ", "))
	cmd.Flags().StringVar(&s.full, "full", "", "`POLICY` when it is full: "+strings.Join(fullPolicies, ", "))
	cmd.Flags().Int64Var(&s.capacity, "capacity", 0, "`BYTES`, rounded up to a power of two from 4096")
	cmd.Flags().StringArrayVar(&s.encoders, "encoder", nil, "`CODEC` that converts each item, as in json, json,decode or xdr,decode,type=double<> or registered:NAME@VERSION; repeatable, in order; none ends all")
	cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(queueTypes, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("full", cobra.FixedCompletions(fullPolicies, cobra.ShellCompDirectiveNoFileComp))
}

func (s *settings) check() error {
	switch {
	case s.kind != "" && !slices.Contains(queueTypes, s.kind):
		return usagef("--type %s: there are %s", s.kind, strings.Join(queueTypes, ", "))
	case s.full != "" && !slices.Contains(fullPolicies, s.full):
		return usagef("--full %s: there are %s", s.full, strings.Join(fullPolicies, ", "))
	case s.capacity < 0 || s.capacity > profile.MaxCapacity:
		return usagef("--capacity %d: write how many bytes it may hold, from 1 to %d", s.capacity, profile.MaxCapacity)
	}
	return nil
}

func (s *settings) typ() *wsdl.QueueType {
	if s.kind == "" {
		return nil
	}
	return wsdl.Of(wsdl.QueueType(s.kind))
}

func (s *settings) policy() *wsdl.FullPolicy {
	if s.full == "" {
		return nil
	}
	return wsdl.Of(wsdl.FullPolicy(s.full))
}

// chain is what --encoder says: nil for nothing, and without steps for none.
func (s *settings) chain() (*wsdl.EncoderChain, error) {
	if len(s.encoders) == 0 {
		return nil, nil
	}
	chain := &wsdl.EncoderChain{}
	for _, text := range s.encoders {
		if text == "none" && len(s.encoders) == 1 {
			return chain, nil
		}
		codec, rest, more := strings.Cut(text, ",")
		e := &wsdl.Encoder{}
		if registered, ok := strings.CutPrefix(codec, "registered:"); ok {
			name, version, err := nameVersion(registered)
			if err != nil {
				return nil, err
			}
			if e.Registered = name; version > 0 {
				e.Version = wsdl.Of(wsdl.Number(strconv.Itoa(version)))
			}
		} else if !slices.Contains(codecs, codec) {
			return nil, usagef("--encoder %s: there are %s, and registered:NAME or registered:NAME@VERSION; none, alone, ends all", text, strings.Join(codecs, ", "))
		} else {
			e.Codec = wsdl.Of(wsdl.Codec(codec))
		}
		for more {
			var word string
			if typ, ok := strings.CutPrefix(rest, "type="); ok {
				e.Type, more = typ, false // a type may have commas
				continue
			}
			word, rest, more = strings.Cut(rest, ",")
			if word != "decode" {
				return nil, usagef("--encoder %s: after the codec come decode and type=TYPE, separated by commas", text)
			}
			e.Decode = true
		}
		chain.Encoder = append(chain.Encoder, e)
	}
	return chain, nil
}

func queueSetCommand() *cobra.Command {
	var v changeVerb
	var s settings
	var rule string
	var served bool
	var jobs jobSettings
	link := map[string]*string{}
	cmd := &cobra.Command{
		Use:   "set [JOB] QUEUE",
		Short: "Change a queue's type, capacity, policy, encoders, rule or link",
		Long: `Changes a queue of a running job in place, under whatever load it is; what waits
in it stays there. An edge that was no more than a channel becomes a queue that
a node keeps, if it needs one. Without a job, it changes a queue in which jobs
wait: its type, its capacity in jobs, its weight, or whether it is held.`,
		Example: `  mvm queue set j-3f2a jobs --type priority
  mvm queue set j-3f2a sender[0]:out --capacity 1048576
  mvm queue set j-3f2a results --encoder xdr,decode,type=double<> --encoder json
  mvm queue set j-3f2a alarms --encoder registered:frame@2 --rule urgent
  mvm queue set j-3f2a sender[0]:out --latency 20 --loss 0.01
  mvm queue set night --type priority --capacity 100
  mvm queue set night --hold`,
		Args: between(1, "a QUEUE, or a JOB and a QUEUE", "a QUEUE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.check(); err != nil {
				return err
			}
			job, queue := jobAndQueue(args)
			r := &wsdl.ChangeQueue{Job: job, Queue: queue, Type_: s.typ(), Full: s.policy(), Served: served}
			var err error
			if r.Encoders, err = s.chain(); err != nil {
				return err
			}
			if cmd.Flags().Changed("capacity") {
				if s.capacity == 0 && job != "" {
					return usagef("--capacity 0: write how many bytes it may hold, from 1 to %d", profile.MaxCapacity)
				}
				r.Capacity = &s.capacity
			}
			if cmd.Flags().Changed("rule") {
				name, version, err := ruleVersion(rule)
				if err != nil {
					return err
				}
				r.Rule, r.RuleVersion = &name, version
			}
			decimal := regexp.MustCompile(`^[0-9]{1,15}(\.[0-9]{1,9})?$`)
			for name, text := range link {
				if cmd.Flags().Changed(name) && !decimal.MatchString(*text) {
					return usagef("--%s %s: write a decimal number, not below 0", name, *text)
				}
			}
			quantity := func(name string) *wsdl.Quantity {
				if !cmd.Flags().Changed(name) {
					return nil
				}
				return wsdl.Of(wsdl.Quantity(*link[name]))
			}
			l := wsdl.Link{Latency: quantity("latency"), Jitter: quantity("jitter"), Bandwidth: quantity("bandwidth"), Loss: quantity("loss")}
			if l != (wsdl.Link{}) {
				r.Link = &l
			}
			if no, _ := cmd.Flags().GetBool("no-link"); no {
				if r.Link != nil {
					return usagef("--no-link and a property of the link contradict each other")
				}
				r.Link = &wsdl.Link{}
			}
			if err := jobs.apply(cmd, r); err != nil {
				return err
			}
			if r.Type_ == nil && r.Full == nil && r.Capacity == nil && r.Encoders == nil && r.Rule == nil && r.Link == nil && !served && r.Weight == 0 && r.Held == nil {
				return usagef("`mvm queue set` needs something to change; see `mvm queue set --help`")
			}
			return v.carry(cmd, job, func(c *Client, millis int32) (*wsdl.ChangeStatus, error) {
				r.WaitMillis = millis
				return c.ChangeQueue(cmd.Context(), r)
			})
		},
	}
	v.flags(cmd)
	s.flags(cmd)
	cmd.Flags().StringVar(&rule, "rule", "", "a registered rule, `NAME or NAME@VERSION`; empty is the type's own")
	cmd.Flags().BoolVar(&served, "served", false, "have a node keep it, even if it is a plain fifo: then it can be drained")
	for _, property := range [][2]string{{"latency", "`MILLISECONDS` one way that the edge imposes"}, {"jitter", "`MILLISECONDS`"}, {"bandwidth", "`MEGABITS` a second"}, {"loss", "`SHARE` of items lost, 0 to 1"}} {
		link[property[0]] = cmd.Flags().String(property[0], "", property[1])
	}
	cmd.Flags().Bool("no-link", false, "impose nothing any more")
	jobs.flags(cmd)
	return cmd
}

// ruleVersion reads NAME or NAME@VERSION, or nothing.
func ruleVersion(text string) (string, int32, error) {
	if text == "" {
		return "", 0, nil
	}
	name, version, err := nameVersion(text)
	return name, int32(version), err
}

func queueRewireCommand() *cobra.Command {
	var v changeVerb
	var from, to string
	cmd := &cobra.Command{
		Use:   "rewire JOB EDGE",
		Short: "Lead an edge from or to another process",
		Long: `Leads an edge to another taker (--to) or from another producer (--from) while the
job runs. What was enqueued before belongs to the old taker; a taker that stays
gets first what the old producer enqueued. What a taker that has ended did not
take goes to the next one, in order, when that is a process or a queue; to an
end outside it cannot be led. Who has been told END is told no more: a taker
whose last edge was led elsewhere has it, and so has every taker of a queue
whose last producer was, so lead another one there before.`,
		Example: `  mvm queue rewire j-3f2a sender[0]:out --to taker[1]:in
  mvm queue rewire j-3f2a channel:7 --to queue:jobs
  mvm queue rewire j-3f2a sender[0]:out --from sender[1]:out`,
		Args: exactly("a JOB", "an EDGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (from == "") == (to == "") {
				return usagef("`mvm queue rewire` needs --to or --from, and takes one of them")
			}
			return v.carry(cmd, args[0], func(c *Client, millis int32) (*wsdl.ChangeStatus, error) {
				return c.RewireEdge(cmd.Context(), &wsdl.RewireEdge{Job: args[0], Edge: args[1], From: from, To: to, WaitMillis: millis})
			})
		},
	}
	v.flags(cmd)
	cmd.Flags().StringVar(&from, "from", "", "the new producer, `END`")
	cmd.Flags().StringVar(&to, "to", "", "the new taker, `END`")
	return cmd
}

func queueAddCommand() *cobra.Command {
	var v changeVerb
	var s settings
	var name, like string
	cmd := &cobra.Command{
		Use:   "add JOB FROM TO",
		Short: "Add an edge, and a queue if it needs one",
		Long: `Adds an edge between two ends while the job runs: task[index]:port, queue:NAME of
a queue that is there or that the job's profile describes, or outside:NAME. A
process that opens the port finds it there from then on. With --type, --full,
--encoder or --name a queue of that kind comes between the ends, with --queue one
as the profile describes under that name.`,
		Example: `  mvm queue add j-3f2a helper:out queue:results
  mvm queue add j-3f2a sender[0]:copy outside:copy
  mvm queue add j-3f2a sender[0]:log logger:in --type latest
  mvm queue add j-3f2a sender[0]:log logger:in --queue urgent`,
		Args: exactly("a JOB", "an end FROM", "an end TO"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := s.check(); err != nil {
				return err
			}
			if cmd.Flags().Changed("capacity") && s.capacity == 0 {
				return usagef("--capacity 0: write how many bytes it may hold, from 1 to %d", profile.MaxCapacity)
			}
			r := &wsdl.AddEdge{Job: args[0], Edge: &wsdl.Edge{From: args[1], To: args[2]}}
			chain, err := s.chain()
			if err != nil {
				return err
			}
			own := name != "" || s.kind != "" || s.full != "" || s.capacity > 0 || chain != nil
			switch {
			case like != "" && own:
				return usagef("--queue %s is as the profile describes it: leave out --name, --type, --full, --capacity and --encoder", like)
			case like != "":
				r.Edge.Queue = like
			case own:
				r.Queue = &wsdl.Queue{Name: name, Type: s.typ(), Full: s.policy()}
				r.Edge.Queue = name
				if r.Queue.Name == "" {
					r.Queue.Name = "added"
				}
				if s.capacity > 0 {
					r.Queue.Capacity = wsdl.Of(wsdl.Number(strconv.FormatInt(s.capacity, 10)))
				}
				if chain != nil {
					r.Queue.Encoder = chain.Encoder
				}
			}
			return v.carry(cmd, args[0], func(c *Client, millis int32) (*wsdl.ChangeStatus, error) {
				r.WaitMillis = millis
				return c.AddEdge(cmd.Context(), r)
			})
		},
	}
	v.flags(cmd)
	s.flags(cmd)
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the queue between the ends")
	cmd.Flags().StringVar(&like, "queue", "", "`NAME` of a queue that the profile describes: one like it comes between the ends")
	return cmd
}

func queueRemoveCommand() *cobra.Command {
	var v changeVerb
	var into string
	cmd := &cobra.Command{
		Use:   "remove JOB EDGE | QUEUE",
		Short: "Remove an edge of a job, or a queue in which jobs wait",
		Long: `Ends an edge of a running job: its producer is told that nobody takes any more,
and what it enqueued before is still delivered. Its taker is then told END, and
that is final. With one argument it removes a
queue in which jobs wait: there must be none of them, waiting or running, or
--into says to which queue they go.`,
		Example: `  mvm queue remove j-3f2a sender[0]:out
  mvm queue remove night --into default`,
		Args: between(1, "a JOB and an EDGE, or a QUEUE", "an EDGE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			job, name := jobAndQueue(args)
			if job != "" && into != "" {
				return usagef("--into is for a queue in which jobs wait: write `mvm queue remove QUEUE --into %s`", into)
			}
			if job == "" {
				c, err := v.dial(cmd)
				if err != nil {
					return err
				}
				if err := c.RemoveQueue(cmd.Context(), name, into); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "the queue %s is removed\n", printable(name))
				return nil
			}
			return v.carry(cmd, job, func(c *Client, millis int32) (*wsdl.ChangeStatus, error) {
				return c.RemoveEdge(cmd.Context(), &wsdl.RemoveEdge{Job: job, Edge: name, WaitMillis: millis})
			})
		},
	}
	v.flags(cmd)
	cmd.Flags().StringVar(&into, "into", "", "the `QUEUE` to which the jobs of the one that is removed go")
	return cmd
}

func queueChangeCommand() *cobra.Command {
	var v changeVerb
	cmd := &cobra.Command{
		Use:     "change JOB NUMBER",
		Short:   "Tell how far a change of a job is, and wait for it",
		Example: `  mvm queue change j-3f2a 3 --wait 1m`,
		Args:    exactly("a JOB", "the NUMBER of a change"),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil || number < 1 {
				return usagef("%q is no number of a change: they go from 1", args[1])
			}
			return v.carry(cmd, args[0], func(c *Client, millis int32) (*wsdl.ChangeStatus, error) {
				return c.Change(cmd.Context(), args[0], number, time.Duration(millis)*time.Millisecond)
			})
		},
	}
	v.flags(cmd)
	return cmd
}
