package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"
	"time"

	"mvm/wsdl"
)

// The operations on queues go to the node that Dial was given, whichever it is:
// any node of the grid passes them on to who can carry them out.

// Queues lists the queues of a running job, or with r.Job empty those in which
// jobs wait.
func (c *Client) Queues(ctx context.Context, r *wsdl.ListQueues) (*wsdl.ListQueuesResponse, error) {
	return c.queue.ListQueuesContext(ctx, r)
}

// Peek copies the first items that wait in a queue; hidden says that behind them
// others may wait, at the producer's node, which could not be shown.
func (c *Client) Peek(ctx context.Context, r *wsdl.PeekQueue) (items []*wsdl.QueueItem, hidden bool, err error) {
	answer, err := c.queue.PeekQueueContext(ctx, r)
	if err != nil {
		return nil, false, err
	}
	return answer.Item, answer.Next != nil, nil
}

// Drain takes items that wait out of a queue; more says whether any are left. What
// is answered is nowhere else any more.
func (c *Client) Drain(ctx context.Context, r *wsdl.DrainQueue) (items []*wsdl.QueueItem, more bool, err error) {
	answer, err := c.queue.DrainQueueContext(ctx, r)
	if err != nil {
		return nil, false, err
	}
	return answer.Item, wsdl.Or(answer.More, false), nil
}

// ChangeQueue, RewireEdge, AddEdge and RemoveEdge change a running job's topology.
// A change that is answered is durable; it may still be pending. Without a token a
// call gets a random one: with it a broker that restarts is asked again, and a
// change that it had journalled is not made twice.
func (c *Client) ChangeQueue(ctx context.Context, r *wsdl.ChangeQueue) (*wsdl.ChangeStatus, error) {
	message := *r
	return changed(ctx, c, &message, &message.Token, c.queue.ChangeQueueContext, func(a *wsdl.ChangeQueueResponse) *wsdl.ChangeStatus { return a.Change })
}

// RewireEdge leads an edge from or to another process.
func (c *Client) RewireEdge(ctx context.Context, r *wsdl.RewireEdge) (*wsdl.ChangeStatus, error) {
	message := *r
	return changed(ctx, c, &message, &message.Token, c.queue.RewireEdgeContext, func(a *wsdl.RewireEdgeResponse) *wsdl.ChangeStatus { return a.Change })
}

// AddEdge makes an edge.
func (c *Client) AddEdge(ctx context.Context, r *wsdl.AddEdge) (*wsdl.ChangeStatus, error) {
	message := *r
	return changed(ctx, c, &message, &message.Token, c.queue.AddEdgeContext, func(a *wsdl.AddEdgeResponse) *wsdl.ChangeStatus { return a.Change })
}

// RemoveEdge ends an edge.
func (c *Client) RemoveEdge(ctx context.Context, r *wsdl.RemoveEdge) (*wsdl.ChangeStatus, error) {
	message := *r
	return changed(ctx, c, &message, &message.Token, c.queue.RemoveEdgeContext, func(a *wsdl.RemoveEdgeResponse) *wsdl.ChangeStatus { return a.Change })
}

// changed is one call of these, which answers with a change.
func changed[Request, Response any](ctx context.Context, c *Client, message *Request, token *string, call func(context.Context, *Request) (*Response, error), of func(*Response) *wsdl.ChangeStatus) (*wsdl.ChangeStatus, error) {
	return c.change(ctx, token, func() (*wsdl.ChangeStatus, error) {
		answer, err := call(ctx, message)
		if err != nil {
			return nil, err
		}
		return of(answer), nil
	})
}

// change asks for a change until it is answered. What it was not answered for may
// be made all the same.
func (c *Client) change(ctx context.Context, token *string, ask func() (*wsdl.ChangeStatus, error)) (change *wsdl.ChangeStatus, err error) {
	if *token == "" {
		*token = rand.Text()
	}
	err = c.patiently(ctx, func() (err error) {
		change, err = ask()
		return err
	})
	if err != nil && transient(err) {
		err = fmt.Errorf("nobody answered what became of the change: if it was journalled the broker goes on with it until it is made or a node refuses it; `mvm queue ls JOB` lists the changes of a job, and says which: %w", err)
	}
	return change, err
}

// Change is how far a change of a running job is, once it is no longer pending or
// wait is over, which is 60 s at most.
func (c *Client) Change(ctx context.Context, job string, number int64, wait time.Duration) (change *wsdl.ChangeStatus, err error) {
	err = c.patiently(ctx, func() error {
		answer, err := c.queue.GetChangeContext(ctx, &wsdl.GetChange{Job: job, Number: number, WaitMillis: int32(wait.Milliseconds())})
		if err == nil {
			change = answer.Change
		}
		return err
	})
	return change, err
}

// longestCall is how long a node or broker holds a call.
const longestCall = time.Minute

// await has a change made by ask, and asks on until it is no longer pending or wait
// is over.
func (c *Client) await(ctx context.Context, job string, wait time.Duration, ask func(millis int32) (*wsdl.ChangeStatus, error)) (*wsdl.ChangeStatus, error) {
	until := time.Now().Add(wait)
	change, err := ask(int32(min(wait, longestCall).Milliseconds()))
	for err == nil && wsdl.Or(change.State, "") == wsdl.ChangeStatePending && time.Until(until) >= time.Millisecond {
		taken := change
		if change, err = c.Change(ctx, job, taken.Number, min(time.Until(until), longestCall)); err != nil {
			err = fmt.Errorf("change %d was taken (%s), but then: %w", taken.Number, taken.What, err)
		}
	}
	return change, err
}

// MakeQueue makes a queue in which jobs wait.
func (c *Client) MakeQueue(ctx context.Context, r *wsdl.MakeQueue) (*wsdl.QueueStatus, error) {
	answer, err := c.queue.MakeQueueContext(ctx, r)
	if err != nil {
		return nil, err
	}
	return answer.Queue, nil
}

// RemoveQueue removes a queue in which jobs waited. Its jobs move to the queue
// into; without one there must be none.
func (c *Client) RemoveQueue(ctx context.Context, name, into string) error {
	_, err := c.queue.RemoveQueueContext(ctx, &wsdl.RemoveQueue{Name: name, Into: into})
	return err
}

// MoveJob gives a job that waits another place, and says which.
func (c *Client) MoveJob(ctx context.Context, r *wsdl.MoveJob) (*wsdl.MoveJobResponse, error) {
	return c.queue.MoveJobContext(ctx, r)
}

// Enqueue puts items into a queue of a running job from outside; end says that
// nothing more comes from there. accepted counts those that are in when wait, of
// 60 s at most, is over.
func (c *Client) Enqueue(ctx context.Context, job, queue string, items [][]byte, end bool, wait time.Duration) (accepted int, err error) {
	message := &wsdl.Enqueue{Job: job, Queue: queue, End: end, TimeoutMillis: int32(wait.Milliseconds())}
	for _, item := range items {
		message.Item = append(message.Item, wsdl.Of(wsdl.Binary(item)))
	}
	answer, err := c.queue.EnqueueContext(ctx, message)
	if err != nil {
		return 0, err
	}
	return int(wsdl.Or(answer.Accepted, 0)), nil
}

// Instruct puts an instruction into a queue of a running job: source for a processor
// to build and to apply to the data after it. accepted is false when there was no
// room for as long as wait, of 60 s at most.
func (c *Client) Instruct(ctx context.Context, job, queue, language string, flags []string, source []byte, wait time.Duration) (accepted bool, err error) {
	head := strings.Join(append([]string{"mvm-instruction 1", language}, flags...), " ") + "\n"
	answer, err := c.queue.EnqueueContext(ctx, &wsdl.Enqueue{
		Job: job, Queue: queue, Instruction: true, TimeoutMillis: int32(wait.Milliseconds()),
		Item: []*wsdl.Binary{wsdl.Of(wsdl.Binary(head + string(source)))},
	})
	return err == nil && wsdl.Or(answer.Accepted, 0) > 0, err
}

// Dequeue takes up to limit items from a queue of a running job, waiting for the
// first of them up to wait, of 60 s at most. end says that none will ever come.
func (c *Client) Dequeue(ctx context.Context, job, queue string, limit int, wait time.Duration) (items [][]byte, end bool, err error) {
	answer, err := c.queue.DequeueContext(ctx, &wsdl.Dequeue{Job: job, Queue: queue, Limit: int32(limit), TimeoutMillis: int32(wait.Milliseconds())})
	if err != nil {
		return nil, false, err
	}
	for _, item := range answer.Item {
		items = append(items, []byte(wsdl.Or(item, nil)))
	}
	return items, wsdl.Or(answer.End, false), nil
}
