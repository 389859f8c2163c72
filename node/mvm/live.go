package mvm

import (
	"context"
	"fmt"
	"slices"

	"mvm/queuevm"
)

// drainMax is how many bytes of items one answer to Drain may have, unless one
// item has more.
const drainMax = 4 << 20

// peek copies the first items that wait.
func (p *process) peek(r *Peek) (items []queuevm.Item, sizes []int, next *uint64, err error) {
	if err := p.awaitWiring(); err != nil {
		return nil, nil, nil, err
	}
	var seen queuevm.Glance
	switch {
	case r.Queue > 0:
		seen.Items, err = p.vm.PeekQueue(r.Queue, r.Limit)
	case r.After != nil:
		seen, err = p.vm.PeekSent(r.Channel, *r.After, r.Limit)
	default:
		seen, err = p.vm.PeekChannel(r.Channel, r.Limit)
	}
	items = seen.Items
	for i := range items {
		sizes = append(sizes, len(items[i].Data))
		items[i].Data = items[i].Data[:min(len(items[i].Data), r.Bytes)]
	}
	if len(items) > 0 {
		sizes[len(items)-1] += seen.Rest
	}
	return items, sizes, seen.Next, err
}

// drained takes items out of a queue, a few at a time: what is taken must fit
// into one answer, and nobody knows before how big the next are.
func (p *process) drained(r *Drain) (items []queuevm.Item, more bool, err error) {
	if err := p.awaitWiring(); err != nil {
		return nil, false, err
	}
	const few = 64
	for size := 0; size < drainMax && len(items) < r.Limit; {
		next, err := p.vm.PeekQueue(r.Queue, min(few, r.Limit-len(items)))
		if err != nil {
			return nil, false, err
		}
		n := 0
		for n < len(next) && (n == 0 || size < drainMax) {
			size += len(next[n].Data)
			n++
		}
		if n == 0 {
			return items, false, nil
		}
		// Others may have taken these meanwhile; what comes is not much bigger.
		next, err = p.vm.DrainQueue(r.Queue, n)
		if err != nil {
			return nil, false, err
		}
		items = append(items, next...)
	}
	left, err := p.vm.PeekQueue(r.Queue, 1)
	return items, err == nil && len(left) > 0, nil
}

// change makes one step of a live change, unless it was made before, and says how
// far its switches are.
func (p *process) change(r *Change) (*Changed, error) {
	if err := p.awaitWiring(); err != nil {
		return nil, err
	}
	p.changing.Lock()
	defer p.changing.Unlock()
	if d := r.Discard; d != nil {
		p.discarded[r.Number] = true
		if err := p.vm.Discard(d.Channels...); err != nil {
			return nil, fmt.Errorf("change %d: %w", r.Number, err)
		}
		for _, id := range d.Queues {
			if err := p.vm.DiscardQueue(id); err != nil {
				return nil, fmt.Errorf("change %d: %w", r.Number, err)
			}
		}
		return &Changed{Done: true}, nil
	}
	if p.discarded[r.Number] {
		return nil, &Error{Code: "conflict", Message: fmt.Sprintf("change %d has failed, and what it made was taken back", r.Number)}
	}
	if made := p.changes[r.Number]; made < r.Step {
		if err := p.makeStep(r); err != nil {
			return nil, fmt.Errorf("change %d: %w", r.Number, err)
		}
		p.changes[r.Number] = r.Step
	}
	answer := &Changed{Done: true}
	for _, s := range r.Switches {
		state, err := p.vm.Switched(s.Channel)
		if err != nil {
			return nil, fmt.Errorf("change %d: %w", r.Number, err)
		}
		answer.Switches = append(answer.Switches, SwitchState{Channel: s.Channel, Written: state.Written, Read: state.Read})
		answer.Done = answer.Done && state.Written
	}
	return answer, nil
}

func (p *process) makeStep(r *Change) error {
	p.know(r.Logic)
	if len(r.Peers) > 0 {
		p.spread()
		ctx, cancel := context.WithTimeout(p.life, connectLimit)
		defer cancel()
		if err := p.vm.AddPeers(ctx, r.Peers); err != nil {
			return err
		}
	}
	channels := make([]queuevm.Channel, len(r.Channels))
	for i, c := range r.Channels {
		channels[i] = c.Channel
		for _, before := range []*uint32{c.AfterOut, c.AfterIn} {
			switch {
			case before == nil:
			case before == c.AfterIn && c.To.Queue != 0:
				channels[i].Behind = *before
			default:
				channels[i].After = max(*before, 1) // that it is above 0 says that it follows one, and a port knows its last
			}
		}
	}
	var fresh []Queue
	for _, q := range r.Queues {
		if !p.queues[q.ID] {
			fresh = append(fresh, q)
		}
	}
	if err := p.lay(fresh, channels); err != nil {
		return err
	}
	for _, id := range r.Resume {
		if err := p.vm.Resume(id); err != nil {
			return err
		}
	}
	for _, a := range r.Alter {
		if err := p.alter(a); err != nil {
			return err
		}
	}
	swaps := make([]queuevm.Swap, len(r.Switches))
	for i, s := range r.Switches {
		swaps[i].Channel = s.Channel
		if s.Next != nil {
			swaps[i].Next = *s.Next
		}
	}
	return p.vm.Switch(swaps...) // all or none: what a refused change made is taken back
}

// alter changes a served queue.
func (p *process) alter(a Alteration) error {
	change := queuevm.QueueChange{Type: a.Type, Full: a.Full, Capacity: a.Capacity, Link: a.Link}
	if a.Steps != nil {
		q := Queue{Queue: queuevm.Queue{ID: a.ID, Capacity: queuevm.ConvertedMax}, Steps: *a.Steps}
		converter, err := p.converter(q)
		if err != nil {
			return err
		}
		change.Converter = &converter
	}
	if a.Rule != nil {
		change.Rule = new(p.rule(Queue{Program: *a.Rule}))
	}
	var err error
	if slices.ContainsFunc(p.vm.InspectQueues(), func(q queuevm.QueueState) bool { return q.ID == a.ID }) { // it is kept here
		err = p.begin(change.Converter, change.Rule)
	}
	if err == nil {
		err = p.vm.ChangeQueue(a.ID, change)
	}
	if err != nil {
		for _, program := range programs(change.Converter, change.Rule) {
			program.end()
		}
	}
	return err
}
