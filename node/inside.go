package node

import (
	"context"
	"fmt"
	"slices"

	"mvm/wsdl"
)

// inside is the queue service of the guest in which a job of this node runs, nil
// for one that does not run in a VM. Where the job has several VMs here, each is asked
// until one has what name means (held), because changes of a live job move it about;
// that of the plan is taken where none says so, as at the attempt's end. sent wants a
// channel's giver, and not its taker.
func (n *Node) inside(ctx context.Context, job, name string, sent bool) (*wsdl.QueueClient, error) {
	var all []*enclosure
	n.mu.Lock()
	for k, r := range n.runners {
		if !k.of(job) {
			continue
		}
		if e := r.enclosed(); e != nil {
			all = append(all, e)
		}
	}
	n.mu.Unlock()
	all = slices.DeleteFunc(all, func(e *enclosure) bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.node == nil
	})
	switch len(all) {
	case 0:
		return nil, nil
	case 1:
		return all[0].queue(), nil
	}
	var silent error
	choose := func(say func(*enclosure) (*wsdl.AttemptState, error)) (of *enclosure) {
		for _, e := range all {
			state, err := say(e)
			if err != nil {
				silent = err
				continue
			}
			switch here, there := holds(state, name, sent); {
			case here:
				return e
			case there:
				of = e
			}
		}
		return of
	}
	of := choose(func(e *enclosure) (*wsdl.AttemptState, error) { return e.look(ctx) })
	if of == nil {
		of = choose(func(e *enclosure) (*wsdl.AttemptState, error) { return e.planned(), nil })
	}
	switch {
	case of != nil:
		return of.queue(), nil
	case silent != nil:
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("a VM of job %q on node %s, which may have %s, does not answer: %v", job, n.id, name, silent), "try again in a moment")
	}
	return all[0].queue(), nil // which says that it knows no such queue
}

// holds says whether what name means is in a VM: it is that queue's home, or has the
// end of a channel outside the job, or its taker (with sent its giver); and whether it
// has the other end of the channel at least.
func holds(state *wsdl.AttemptState, name string, sent bool) (here, there bool) {
	id, channel, outside := held(name)
	if id > 0 && slices.ContainsFunc(state.Queue, func(q *wsdl.QueueState) bool { return q != nil && int(q.Id) == id }) {
		return true, false
	}
	for _, c := range state.Channel {
		switch {
		case c == nil || c.From == nil || c.To == nil:
		case outside != "":
			here = here || c.From.Outside == outside || c.To.Outside == outside
		case id > 0:
			here = here || int(c.From.Queue) == id && c.From.Peer == "" || int(c.To.Queue) == id && c.To.Peer == ""
		case int(wsdl.Or(c.Id, -1)) == channel:
			end := c.To
			if sent {
				end = c.From
			}
			here, there = here || end.Peer == "", true
		}
	}
	return here, there
}

// planned is what the VM was to have at first.
func (e *enclosure) planned() *wsdl.AttemptState {
	e.runner.mu.Lock()
	defer e.runner.mu.Unlock()
	state := &wsdl.AttemptState{}
	if plan := e.runner.plan; plan != nil {
		for _, c := range plan.Channel {
			state.Channel = append(state.Channel, &wsdl.ChannelState{Id: c.Id, From: c.From, To: c.To})
		}
	}
	return state
}

// look is what the guest says of the attempt; nothing where it knows none.
func (e *enclosure) look(ctx context.Context) (*wsdl.AttemptState, error) {
	ctx, cancel := context.WithTimeout(ctx, e.runner.node.callTimeout)
	defer cancel()
	answer, err := e.queue().InspectContext(ctx, &wsdl.Inspect{Job: e.runner.key.job})
	if err != nil {
		return nil, err
	}
	for _, a := range answer.Attempt {
		if a != nil && a.Attempt != nil && int(a.Attempt.Number) == e.number {
			return a, nil
		}
	}
	return &wsdl.AttemptState{}, nil
}

// inspect adds what the guest says of the attempt's channels and queues.
func (e *enclosure) inspect(ctx context.Context, state *wsdl.AttemptState) {
	if a, err := e.look(ctx); err == nil {
		state.Channel, state.Queue, state.Micros = a.Channel, a.Queue, a.Micros
	}
}
