package broker

import (
	"context"

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
	return nil, unserved("ChangeQueue of a running job")
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

func (c *controller) RewireEdgeContext(context.Context, *wsdl.RewireEdge) (*wsdl.RewireEdgeResponse, error) {
	return nil, unserved("RewireEdge")
}

func (c *controller) AddEdgeContext(context.Context, *wsdl.AddEdge) (*wsdl.AddEdgeResponse, error) {
	return nil, unserved("AddEdge")
}

func (c *controller) RemoveEdgeContext(context.Context, *wsdl.RemoveEdge) (*wsdl.RemoveEdgeResponse, error) {
	return nil, unserved("RemoveEdge")
}

func (c *controller) GetChangeContext(context.Context, *wsdl.GetChange) (*wsdl.GetChangeResponse, error) {
	return nil, unserved("GetChange")
}

func unserved(what string) error {
	return wsdl.NewFault(wsdl.FaultCodeUnsupported, what+" is in the contract and not yet served", "")
}
