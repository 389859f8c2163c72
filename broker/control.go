package broker

import (
	"context"
	"fmt"

	"mvm/wsdl"
)

// controller is the queue service of the broker's node: the controller's
// operations on running jobs and on the broker's own queues are served here, and
// everything else by the node itself.
type controller struct {
	wsdl.QueueContext
	broker *Service
}

// Queue is the queue service of the node that the broker is on. node is that
// node's own, which serves what is not the broker's to do.
func (b *Service) Queue(node wsdl.QueueContext) wsdl.QueueContext {
	return &controller{QueueContext: node, broker: b}
}

// An operation without a job is about the broker's own queues.

func (c *controller) ListQueuesContext(ctx context.Context, r *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	if r.Job == "" {
		return c.broker.listJobQueues(ctx, r)
	}
	return c.broker.listQueues(ctx, r)
}

func (c *controller) PeekQueueContext(ctx context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	if r.Job != "" {
		return c.QueueContext.PeekQueueContext(ctx, r)
	}
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	return c.broker.peekJobQueue(ctx, r)
}

func (c *controller) DrainQueueContext(ctx context.Context, r *wsdl.DrainQueue) (*wsdl.DrainQueueResponse, error) {
	if r.Job != "" {
		return c.QueueContext.DrainQueueContext(ctx, r)
	}
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	return c.broker.drainJobQueue(ctx, r)
}

func (c *controller) ChangeQueueContext(ctx context.Context, r *wsdl.ChangeQueue) (*wsdl.ChangeQueueResponse, error) {
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	if r.Job == "" {
		return c.broker.changeJobQueue(ctx, r)
	}
	s, err := c.broker.change(ctx, r.Job, r.WaitMillis, r.Token, func(w *wiring) (*change, error) { return w.changeQueue(r, c.broker.profiles.find) })
	if err != nil {
		return nil, err
	}
	return &wsdl.ChangeQueueResponse{Change: s}, nil
}

func (c *controller) MakeQueueContext(ctx context.Context, r *wsdl.MakeQueue) (*wsdl.MakeQueueResponse, error) {
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	return c.broker.makeJobQueue(ctx, r)
}

func (c *controller) RemoveQueueContext(ctx context.Context, r *wsdl.RemoveQueue) (*wsdl.RemoveQueueResponse, error) {
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	return c.broker.removeJobQueue(ctx, r)
}

func (c *controller) MoveJobContext(ctx context.Context, r *wsdl.MoveJob) (*wsdl.MoveJobResponse, error) {
	if err := c.broker.up(ctx); err != nil {
		return nil, err
	}
	return c.broker.moveJob(ctx, r)
}

func (c *controller) RewireEdgeContext(ctx context.Context, r *wsdl.RewireEdge) (*wsdl.RewireEdgeResponse, error) {
	s, err := c.broker.change(ctx, r.Job, r.WaitMillis, r.Token, func(w *wiring) (*change, error) {
		return w.rewire(r, func(channel int) (bool, error) { return c.broker.left(ctx, w, r.Job, channel) })
	})
	if err != nil {
		return nil, err
	}
	return &wsdl.RewireEdgeResponse{Change: s}, nil
}

func (c *controller) AddEdgeContext(ctx context.Context, r *wsdl.AddEdge) (*wsdl.AddEdgeResponse, error) {
	s, err := c.broker.change(ctx, r.Job, r.WaitMillis, r.Token, func(w *wiring) (*change, error) { return w.addEdge(r, c.broker.profiles.find) })
	if err != nil {
		return nil, err
	}
	return &wsdl.AddEdgeResponse{Change: s}, nil
}

func (c *controller) RemoveEdgeContext(ctx context.Context, r *wsdl.RemoveEdge) (*wsdl.RemoveEdgeResponse, error) {
	s, err := c.broker.change(ctx, r.Job, r.WaitMillis, r.Token, func(w *wiring) (*change, error) { return w.removeEdge(r.Edge) })
	if err != nil {
		return nil, err
	}
	return &wsdl.RemoveEdgeResponse{Change: s}, nil
}

func (c *controller) GetChangeContext(ctx context.Context, r *wsdl.GetChange) (*wsdl.GetChangeResponse, error) {
	b := c.broker
	if err := b.up(ctx); err != nil {
		return nil, err
	}
	j, err := b.job(r.Job)
	if err != nil {
		return nil, err
	}
	_, attempt, err := j.wiring()
	if err != nil {
		return nil, err
	}
	if r.Number < 1 {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("there is no change %d", r.Number), "changes are numbered from 1")
	}
	s, err := b.awaitChange(ctx, j, attempt, r.Number, r.WaitMillis)
	if err != nil {
		return nil, err
	}
	return &wsdl.GetChangeResponse{Change: s}, nil
}
