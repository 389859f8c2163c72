package queuevm

import "sync/atomic"

// Discard takes channels back that a change made and that came to nothing, because
// the change failed at another node: before anybody was told to go on with them. Who
// opened the port meanwhile is told that it is closed, and goes on with what follows.
// What was not made here will not be any more. Doing it again changes nothing.
func (vm *VM) Discard(ids ...uint32) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed {
		return ErrDown
	}
	for _, id := range ids {
		switch c := vm.channels[id]; {
		case vm.removed[id] || c != nil && (c.void || c.forwards()): // what was forwarded stays where it is
		case c != nil:
			c.discard(vm)
		default:
			vm.removed[id], vm.unmade[id] = true, true
			for _, p := range vm.peers { // that made it
				if _, early := p.early[id]; early {
					delete(p.early, id)
					p.dispel(id)
				}
			}
		}
	}
	vm.changes++
	ring1(vm.bell)
	return nil
}

// DiscardQueue ends what converts and orders the items of a queue that Discard left
// without a channel.
func (vm *VM) DiscardQueue(id int) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if q := vm.queues[id]; q != nil && !vm.closed && len(q.fronts)+len(q.backs) == 0 {
		q.treat(nil, nil, true, true)
	}
	return nil
}

func (c *channel) discard(vm *VM) {
	c.void, c.told = true, true
	h := c.ring.header
	if c.From.local() {
		atomic.OrUint32(&h.consumerState, controlSwitch)
		q := vm.processes[c.From.Process].port(c.From.Port)
		q.outs = c.unchain(q.outs, nextOut)
	}
	if c.To.local() {
		q := vm.processes[c.To.Process].port(c.To.Port)
		q.ins = c.unchain(q.ins, nextIn)
	}
	switch {
	case c.front != nil:
		c.front.discard(vm)
	case c.back != nil && !c.back.removed:
		if q := c.back.queue; q.Type == QueueBroadcast {
			q.store.leave(c.back.lane)
		}
		c.back.dismiss(vm)
	}
	if name := c.From.Outside; name != "" && vm.givers[name] == c {
		delete(vm.givers, name)
	}
	if name := c.To.Outside; name != "" {
		if vm.takers[name] == c {
			delete(vm.takers, name)
		}
		for o := vm.takers[name]; o != nil; o = o.after {
			if o.after == c {
				o.after = c.after
			}
		}
	}
	if c.back == nil || c.back.removed { // else it is in the middle of an item, and ends it
		c.ring.endProducer(stateClosed|stateSwitched, vm.bell)
		c.ring.endConsumer(stateClosed|stateSwitched, vm.bell)
	}
	if o := c.out; o != nil {
		o.refused = true
		if o.synced {
			c.dispel()
		} else {
			vm.unmade[c.ID] = true // as far as the peer knows
		}
	}
	vm.heat(c)
	vm.review(c)
}

// unchain takes the channel from those of a port, unless a program may stand at it.
func (c *channel) unchain(chain []*channel, next uint32) []*channel {
	for k := 1; k < len(chain); k++ {
		if chain[k] == c {
			if k == len(chain)-1 {
				atomic.AndUint32(&chain[k-1].ring.header.next, ^next)
			}
			return without(chain, c)
		}
	}
	return chain
}

// discard has the queue know a producer no more that never was one.
func (f *front) discard(vm *VM) {
	if f.first && len(f.queue.fronts) == 1 {
		f.queue.had = false // so it has not ended
	}
	f.behind = nil
	switch {
	case f.removed:
	case f.ended:
		f.remove(vm)
	default:
		f.finish(vm, stateClosed|stateSwitched)
	}
}

// dispel tells the peer, which has made the channel too, that nothing of it is here.
func (c *channel) dispel() {
	c.out.over = true
	delete(c.out.peer.vm.unmade, c.ID)
	c.out.peer.again = append(c.out.peer.again, c.ID)
}

// dispel is as channel.dispel, of one that was never made here.
func (p *peer) dispel(id uint32) {
	if p.vm.unmade[id] {
		delete(p.vm.unmade, id)
		p.vm.past.sent++ // as the peer counts what it hears
	}
	p.again = append(p.again, id)
}
