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

// front is the queue service of the broker's node. What was asked here and passes
// on to there is not for the broker's own node, which would be asked for ever.
func (q *queue) front(passes bool) (*wsdl.QueueClient, error) {
	n := q.node
	base, ok := strings.CutSuffix(n.brokerURL(), "/services/broker")
	if !ok {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s knows no broker yet", n.id), "try again in a moment, or ask another node")
	}
	n.mu.Lock()
	own := n.url
	n.mu.Unlock()
	if passes && base == own {
		return nil, wsdl.NewFault(wsdl.FaultCodeInternal, fmt.Sprintf("node %s is the broker's, and its queue service does not lead there", n.id), "look into the node's log")
	}
	return wsdl.NewQueueClient(n.caller, base+"/services/queue"), nil
}

// forward passes a request on to the broker's node.
func forward[Request, Response any](ctx context.Context, q *queue, call func(*wsdl.QueueClient, context.Context, Request) (Response, error), request Request) (Response, error) {
	front, err := q.front(true)
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

// route serves a call about the items of a job's queue here, if this node holds
// them, and else passes it on to the node that does. Only the broker knows all
// names: a name that this node does not know is asked for, and its answer is the
// queue's id, which the node that holds it knows; with ends, an end outside the job
// keeps its name. here says with notFound that this node does not hold it.
func route[Response any](ctx context.Context, q *queue, job, name string, ends bool,
	here func(name string) (Response, error), there func(node *wsdl.QueueClient, name string) (Response, error)) (Response, error) {
	if job == "" {
		var none Response
		return none, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "no job is named, and the items of a queue of jobs are jobs: only the broker can carry one to its end",
			"put one in with SubmitJob (`mvm submit --queue`), take one out with CancelJob, or all with DrainQueue")
	}
	if name == "" {
		var none Response
		return none, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "no queue is named", "name one of those that ListQueues tells (`mvm queue ls JOB`)")
	}
	answer, err := here(name)
	if err == nil || wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		return answer, err
	}
	var none Response
	found, asked := q.locate(ctx, job, name)
	if asked != nil {
		return none, asked
	}
	id := found.Id
	if ends {
		outside := "outside:" + strings.TrimPrefix(name, "outside:")
		for _, e := range append(found.Producer, found.Taker...) {
			if e != nil && e.Name == outside {
				id = strings.TrimPrefix(name, "outside:")
			}
		}
	}
	if found.Node != q.node.id {
		return there(wsdl.NewQueueClient(q.node.caller, found.Url), id)
	}
	if id == name {
		return none, err
	}
	return here(id)
}

// locate asks the broker for one queue of a job.
func (q *queue) locate(ctx context.Context, job, name string) (*wsdl.QueueStatus, error) {
	front, err := q.front(false)
	if err != nil {
		return nil, err
	}
	answer, err := front.ListQueuesContext(ctx, &wsdl.ListQueues{Job: job, Queue: name, Planned: true})
	if err != nil {
		return nil, err
	}
	if len(answer.Queue) != 1 || answer.Queue[0] == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeInternal, fmt.Sprintf("the broker answers %d queues that are %q of job %s", len(answer.Queue), name, job), "look into the broker's log")
	}
	return answer.Queue[0], nil
}

func (q *queue) EnqueueContext(ctx context.Context, r *wsdl.Enqueue) (*wsdl.EnqueueResponse, error) {
	return route(ctx, q, r.Job, r.Queue, true,
		func(name string) (*wsdl.EnqueueResponse, error) { return q.enqueue(ctx, name, r) },
		func(node *wsdl.QueueClient, name string) (*wsdl.EnqueueResponse, error) {
			passed := *r
			passed.Queue = name
			return node.EnqueueContext(ctx, &passed)
		})
}

func (q *queue) DequeueContext(ctx context.Context, r *wsdl.Dequeue) (*wsdl.DequeueResponse, error) {
	return route(ctx, q, r.Job, r.Queue, true,
		func(name string) (*wsdl.DequeueResponse, error) { return q.dequeue(ctx, name, r) },
		func(node *wsdl.QueueClient, name string) (*wsdl.DequeueResponse, error) {
			passed := *r
			passed.Queue = name
			return node.DequeueContext(ctx, &passed)
		})
}

func (q *queue) OpenSocketContext(ctx context.Context, r *wsdl.OpenSocket) (*wsdl.OpenSocketResponse, error) {
	return route(ctx, q, r.Job, r.Queue, true,
		func(name string) (*wsdl.OpenSocketResponse, error) { return q.openSocket(ctx, name, r) },
		func(node *wsdl.QueueClient, name string) (*wsdl.OpenSocketResponse, error) {
			passed := *r
			passed.Queue = name
			return node.OpenSocketContext(ctx, &passed)
		})
}

func (q *queue) PeekQueueContext(ctx context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	if r.Job == "" {
		return forward(ctx, q, (*wsdl.QueueClient).PeekQueueContext, r)
	}
	if r.After != nil { // asked of this node
		return q.peek(ctx, r.Queue, r)
	}
	if _, _, name := held(r.Queue); name != "" {
		return q.peekInOrder(ctx, r)
	}
	return q.peekOne(ctx, r)
}

// peekOne is peek, at the node that holds the queue or channel.
func (q *queue) peekOne(ctx context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	return route(ctx, q, r.Job, r.Queue, false,
		func(name string) (*wsdl.PeekQueueResponse, error) { return q.peekAll(ctx, name, r) },
		func(node *wsdl.QueueClient, name string) (*wsdl.PeekQueueResponse, error) {
			passed := *r
			passed.Queue = name
			return node.PeekQueueContext(ctx, &passed)
		})
}

func (q *queue) DrainQueueContext(ctx context.Context, r *wsdl.DrainQueue) (*wsdl.DrainQueueResponse, error) {
	if r.Job == "" {
		return forward(ctx, q, (*wsdl.QueueClient).DrainQueueContext, r)
	}
	return route(ctx, q, r.Job, r.Queue, false,
		func(name string) (*wsdl.DrainQueueResponse, error) { return q.drain(ctx, name, r) },
		func(node *wsdl.QueueClient, name string) (*wsdl.DrainQueueResponse, error) {
			passed := *r
			passed.Queue = name
			return node.DrainQueueContext(ctx, &passed)
		})
}
