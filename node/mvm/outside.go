package mvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"mvm/queuevm"
)

// linger has what programs left for those outside stay a moment longer, when all
// have done their work well: it is not lost for being taken late.
func (p *process) linger() {
	p.mu.Lock()
	well := p.instantiated && p.left == 0 && p.ending == ""
	for _, program := range p.programs {
		well = well && program.state.State == "exited" && program.state.ExitCode == 0
	}
	p.mu.Unlock()
	began := time.Now()
	for wait := time.Millisecond; well; wait = min(2*wait, 20*time.Millisecond) {
		untold, visited := p.vm.Untold()
		limit := comeLimit
		if visited {
			limit = takeLimit
		}
		if !untold || time.Since(began) >= limit {
			return
		}
		select {
		case <-time.After(wait):
		case <-p.life.Done():
			return
		}
	}
}

// called counts a call from outside that is being answered, until over is called.
func (p *process) called() (over func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.calls--
		p.idle.Broadcast()
	}
}

// answered waits until the calls that came are answered: they wait for nothing any
// more.
func (p *process) answered() {
	p.mu.Lock()
	defer p.mu.Unlock()
	late := false
	timer := time.AfterFunc(callLimit, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		late = true
		p.idle.Broadcast()
	})
	defer timer.Stop()
	for p.calls > 0 && !late {
		p.idle.Wait()
	}
}

// awaitWiring waits until there are channels: a job is called running as soon as
// its Instantiate is decided, and who enqueues from outside may be faster.
func (p *process) awaitWiring() error {
	timer := time.NewTimer(wireLimit)
	defer timer.Stop()
	select {
	case <-p.wired:
		return nil
	default: // an attempt that ends may be wired nevertheless
	}
	select {
	case <-p.wired:
		return nil
	case <-p.life.Done():
		return queuevm.ErrDown
	case <-timer.C:
		return &Error{Code: "unavailable", Message: fmt.Sprintf("attempt %s is not instantiated yet", p.start.Attempt)}
	}
}

// enqueue takes items until the queue has been full for too long, and says how
// many it took; END follows only the last one.
func (p *process) enqueue(r *Enqueue) (taken int, err error) {
	if err := p.awaitWiring(); err != nil {
		return 0, err
	}
	if r.ID > 0 {
		return p.enqueueServed(r)
	}
	if err := p.vm.LeadsIn(r.Queue); err != nil {
		return 0, err
	}
	for _, item := range r.Items {
		if len(item) > itemMax {
			return 0, &Error{Code: "tooLarge", Message: fmt.Sprintf("queue %s: an item of %d bytes is over the %d that are allowed", r.Queue, len(item), itemMax)}
		}
	}
	ctx, cancel := context.WithTimeout(p.life, max(r.Timeout, time.Millisecond))
	defer cancel()
	for _, item := range r.Items {
		whole := r.Meta
		whole.Data = item
		err := p.vm.EnqueueItem(ctx, r.Queue, whole)
		if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, queuevm.ErrFull) {
			return taken, nil
		}
		if err != nil {
			return taken, fmt.Errorf("queue %s, item %d of %d: %w", r.Queue, taken+1, len(r.Items), err)
		}
		taken++
	}
	if r.End {
		err = p.vm.CloseOutside(r.Queue)
	}
	return taken, err
}

// dequeue waits for the first item only: with it come those that are there. No
// item in time is no failure.
func (p *process) dequeue(r *Dequeue) (*Dequeued, error) {
	if err := p.awaitWiring(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(p.life, max(r.Timeout, time.Millisecond))
	defer cancel()
	if r.ID > 0 {
		return p.dequeueServed(ctx, r)
	}
	var got Dequeued
	ending := false
	for size := 0; len(got.Items) < max(r.Limit, 1) && size < batchMax; {
		item, err := p.vm.Dequeue(ctx, r.Queue)
		switch {
		case errors.Is(err, context.Canceled) && !ending:
			// The attempt ends because its programs have: what they left, or
			// that there is no more, is here for whoever waited for it.
			ending = true
			last, enough := context.WithTimeout(context.Background(), time.Millisecond)
			defer enough()
			ctx = last
			continue
		case err == nil:
			got.Items = append(got.Items, item)
			size += len(item)
		case errors.Is(err, io.EOF):
			got.End = true
			return &got, nil
		case ending && len(got.Items) == 0:
			return nil, fmt.Errorf("queue %s: %w", r.Queue, context.Cause(p.life))
		case errors.Is(err, context.DeadlineExceeded), len(got.Items) > 0 && ctx.Err() != nil:
			return &got, nil
		default:
			return nil, fmt.Errorf("queue %s: %w", r.Queue, err)
		}
		if len(got.Items) == 1 {
			now, enough := context.WithTimeout(p.life, time.Millisecond)
			defer enough()
			ctx = now
		}
	}
	return &got, nil
}

// openSocket gives a token for a plain socket to an outside queue.
func (p *process) openSocket(r *OpenSocket) (*Socket, error) {
	if err := p.awaitWiring(); err != nil {
		return nil, err
	}
	address, token, err := p.vm.OpenSocket(r.Queue, r.TTL)
	return &Socket{Address: address, Token: token}, err
}

// enqueueServed puts items from outside into a queue that is kept here, and says
// how many are in when the time is over.
func (p *process) enqueueServed(r *Enqueue) (taken int, err error) {
	if r.End {
		return 0, &Error{Code: "conflict", Message: "END is for an end outside the job, which the profile opens: nobody outside is a producer of this queue that could end"}
	}
	items := make([]queuevm.Item, len(r.Items))
	for i, data := range r.Items {
		items[i] = r.Meta
		items[i].Data = data
	}
	ctx, cancel := context.WithTimeout(p.life, max(r.Timeout, time.Millisecond))
	defer cancel()
	taken, err = p.vm.EnqueueQueue(ctx, r.ID, items)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, queuevm.ErrFull) {
		return taken, nil
	}
	return taken, err
}

// dequeueServed takes items from a queue that is kept here. No item in time is no
// failure.
func (p *process) dequeueServed(ctx context.Context, r *Dequeue) (*Dequeued, error) {
	var got Dequeued
	for size := 0; len(got.Items) < max(r.Limit, 1) && size < batchMax; {
		items, end, err := p.vm.DequeueQueue(ctx, r.ID, min(16, max(r.Limit, 1)-len(got.Items)))
		for _, item := range items {
			got.Items = append(got.Items, item.Data)
			size += len(item.Data)
		}
		got.End = end
		switch {
		case err != nil && (len(got.Items) > 0 || errors.Is(err, context.DeadlineExceeded)):
			return &got, nil // what failed will fail again
		case err != nil:
			return nil, err
		case end || len(items) == 0:
			return &got, nil
		}
		now, enough := context.WithTimeout(p.life, time.Millisecond)
		defer enough()
		ctx = now
	}
	return &got, nil
}
