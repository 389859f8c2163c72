package node

import (
	"context"
	"fmt"
	"strings"

	"mvm/wsdl"
)

// The controller's operations, and those of outsiders, are for the job as one:
// any node takes them. What only the broker can do goes to the queue service of
// the broker's node; what is about the items of one queue goes to the node that
// holds it, which the broker knows from its plan.

// front is the queue service of the broker's node.
func (q *queue) front() (*wsdl.QueueClient, error) {
	n := q.node
	broker := ""
	if n.config.BrokerURL != nil {
		broker = n.config.BrokerURL()
	}
	if broker == "" {
		broker = n.Broker()
	}
	base, ok := strings.CutSuffix(broker, "/services/broker")
	if !ok {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s knows no broker yet", n.id), "try again in a moment, or ask another node")
	}
	n.mu.Lock()
	own := n.url
	n.mu.Unlock()
	if base == own {
		return nil, wsdl.NewFault(wsdl.FaultCodeInternal, fmt.Sprintf("node %s is the broker's, and its queue service does not lead there", n.id), "look into the node's log")
	}
	return wsdl.NewQueueClient(n.caller, base+"/services/queue"), nil
}

// forward passes a request on to the broker's node.
func forward[Request, Response any](ctx context.Context, q *queue, call func(*wsdl.QueueClient, context.Context, Request) (Response, error), request Request) (Response, error) {
	front, err := q.front()
	if err != nil {
		var none Response
		return none, err
	}
	return call(front, ctx, request)
}

func (q *queue) ListQueuesContext(ctx context.Context, r *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).ListQueuesContext, r)
}

func (q *queue) ChangeQueueContext(ctx context.Context, r *wsdl.ChangeQueue) (*wsdl.ChangeQueueResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).ChangeQueueContext, r)
}

func (q *queue) RewireEdgeContext(ctx context.Context, r *wsdl.RewireEdge) (*wsdl.RewireEdgeResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).RewireEdgeContext, r)
}

func (q *queue) AddEdgeContext(ctx context.Context, r *wsdl.AddEdge) (*wsdl.AddEdgeResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).AddEdgeContext, r)
}

func (q *queue) RemoveEdgeContext(ctx context.Context, r *wsdl.RemoveEdge) (*wsdl.RemoveEdgeResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).RemoveEdgeContext, r)
}

func (q *queue) GetChangeContext(ctx context.Context, r *wsdl.GetChange) (*wsdl.GetChangeResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).GetChangeContext, r)
}

func (q *queue) MakeQueueContext(ctx context.Context, r *wsdl.MakeQueue) (*wsdl.MakeQueueResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).MakeQueueContext, r)
}

func (q *queue) RemoveQueueContext(ctx context.Context, r *wsdl.RemoveQueue) (*wsdl.RemoveQueueResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).RemoveQueueContext, r)
}

func (q *queue) MoveJobContext(ctx context.Context, r *wsdl.MoveJob) (*wsdl.MoveJobResponse, error) {
	return forward(ctx, q, (*wsdl.QueueClient).MoveJobContext, r)
}

func (q *queue) PeekQueueContext(ctx context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	if r.Job == "" {
		return forward(ctx, q, (*wsdl.QueueClient).PeekQueueContext, r)
	}
	return nil, unserved("PeekQueue of a running job's queues")
}

func (q *queue) DrainQueueContext(ctx context.Context, r *wsdl.DrainQueue) (*wsdl.DrainQueueResponse, error) {
	if r.Job == "" {
		return forward(ctx, q, (*wsdl.QueueClient).DrainQueueContext, r)
	}
	return nil, unserved("DrainQueue of a running job's queues")
}

func (q *queue) ApplyChangeContext(context.Context, *wsdl.ApplyChange) (*wsdl.ApplyChangeResponse, error) {
	return nil, unserved("ApplyChange")
}

func unserved(what string) error {
	return wsdl.NewFault(wsdl.FaultCodeUnsupported, what+" is in the contract and not yet served", "")
}
