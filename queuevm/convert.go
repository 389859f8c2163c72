package queuevm

import (
	"fmt"
	"slices"
	"sync/atomic"
)

// Converter changes the items of a served queue on their way through its home.
// It is used by one goroutine at a time, which no other work waits for. What
// Convert answers may be overwritten by its next call; an error is for people.
type Converter interface {
	Convert(item []byte) ([]byte, error)
}

// SeveralConverter is a Converter to which several items are given at once where
// they are there: each by itself costs it a trip to somewhere else. ConvertAll
// answers those before the first that it cannot convert, and why not that one; what
// it answers is not overwritten.
type SeveralConverter interface {
	Converter
	ConvertAll(items [][]byte) ([][]byte, error)
}

// ConvertedMax is the largest item, in bytes, that a queue with a Converter
// takes or makes, whatever its capacity.
const ConvertedMax = 64 << 20

// convertBatch is how many bytes, of items as they came or of what became of
// them, go to a converter and back at once, but one item at least.
const convertBatch = 64 << 10

// convertAhead is how many batches lie before a converter.
const convertAhead = 4

// batch is items of one producer on their way through the converter. Whoever
// has it works on it alone: the loop, then the converter until done.
type batch struct {
	by      *treatment // nil lets all through as it is
	items   []item     // as they came; those before next are converted
	next    int
	bytes   int    // of all items
	most    uint64 // bytes that an item may become
	first   uint64 // number of items[0] among all that the producer brought, from 1
	ready   []item // converted, and not yet in the queue
	dropped bool   // nobody wants it any more
	failed  error  // why items[next] cannot be converted
	done    atomic.Bool
}

// add takes one more item, and says how many bytes there are now.
func (b *batch) add(it item) int {
	b.items = append(b.items, it)
	b.bytes += len(it.data)
	return b.bytes
}

// run converts until the batch or what may be made of it at once is through.
func (b *batch) run(most uint64) {
	for made := 0; b.next < len(b.items) && made < convertBatch && b.failed == nil; {
		next := b.items[b.next:][:b.by.many(len(b.items)-b.next, most)]
		n := 0
		n, b.failed = b.by.apply(next, most)
		for k := range n {
			b.ready = append(b.ready, next[k])
			made += len(next[k].data)
			next[k].data = nil
		}
		b.next += n
	}
	b.done.Store(true)
}

// rest is what is still to be converted, nil when nothing is.
func (b *batch) rest() *batch {
	if b.next == len(b.items) {
		return nil
	}
	return &batch{by: b.by, items: b.items[b.next:], first: b.first + uint64(b.next)}
}

// convert runs a queue's batches, in their order, until the VM is closed.
func (vm *VM) convert(q *queue) {
	defer vm.tasks.Done()
	for {
		select {
		case b := <-q.work:
			b.run(b.most)
			ring1(vm.bell)
		case <-vm.done:
			return
		}
	}
}

// handOver gives what the front holds to the converter.
func (f *front) handOver(vm *VM) {
	q := f.queue
	if q.work == nil {
		q.work = make(chan *batch, convertAhead)
		vm.tasks.Add(1)
		go vm.convert(q)
	}
	f.pending, f.converting = true, true
	q.converting = append(q.converting, f)
	f.batch.most = q.ceiling
	q.feed()
}

// feed has a few batches lie before the converter.
func (q *queue) feed() {
	for q.fed < min(len(q.converting), convertAhead) {
		q.work <- q.converting[q.fed].batch
		q.fed++
	}
}

// converted has what came back from the converter enter, in the order in which
// it was handed over; true when there was some.
func (q *queue) converted(vm *VM) bool {
	worked := false
	for !q.halted && len(q.converting) > 0 && q.converting[0].batch.done.Load() {
		f := q.converting[0]
		b := f.batch
		q.converting = slices.Delete(q.converting, 0, 1)
		q.fed--
		q.feed()
		worked = true
		wanted := !q.gone() && !b.dropped
		var ready []item
		if wanted {
			ready, b.ready = b.ready, nil
		}
		q.halted = wanted && b.failed != nil && f.guest == nil
		if !q.halted {
			f.converting, f.pending = false, false
			f.guest.failed(b.failed)
			by := b.by
			if b.failed != nil || !wanted {
				b = nil
			} else {
				b = b.rest()
			}
			if f.batch = b; b == nil {
				by.through()
			}
			if !wanted {
				f.guest.done()
			}
		}
		f.pass(vm, f.head, ready...)
		if q.halted {
			vm.refuse(f)
		}
		if f.guest == nil {
			vm.heat(f.channel)
		}
		for _, w := range q.waiting { // whoever is impatient waited for this
			if w.guest == nil {
				vm.heat(w.channel)
			}
		}
	}
	return worked
}

// refuse says that an item cannot be converted. The queue stands still from
// here on: END or an item after this one would say that it had come through.
func (vm *VM) refuse(f *front) {
	f.channel.broken = true
	number := f.batch.first + uint64(f.batch.next)
	who := f.channel.Label
	if who == "" {
		who = fmt.Sprintf("channel %d", f.channel.ID)
	}
	err := fmt.Errorf("queue %s: item %d of %s: %w", f.queue.Name, number, who, f.batch.failed)
	vm.logf("%v", err)
	select {
	case vm.refused <- err:
	default: // another was first
	}
}

// Refused delivers why a served queue stands still for ever: an item that its
// Converter refuses. Nothing after that item is handed out, and neither its
// producers nor its takers see an end, so whoever runs the VM must end the
// attempt. Of several queues at once only some are told. The channel is never
// closed.
func (vm *VM) Refused() <-chan error { return vm.refused }
