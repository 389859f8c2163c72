package node

import (
	"context"
	"fmt"
	"slices"
	"time"

	"mvm/node/mvm"
	"mvm/queuevm"
	"mvm/wsdl"
)

// queue is the node's queue service.
type queue struct {
	wsdl.QueueWithoutContext
	node *Node
}

var _ wsdl.QueuePortType = (*queue)(nil)

// Queue is the node's queue service: it serves from New on, and refuses
// attempts until Run has registered.
func (n *Node) Queue() wsdl.QueueContext {
	q := &queue{node: n}
	q.Server = q
	return q
}

const (
	longestWait   = 60 * time.Second
	defaultTTL    = 60 * time.Second
	longestTTL    = time.Hour
	longestStream = 1 << 20
	mostItems     = 1000
)

func fenceOf(a *wsdl.Attempt) fence {
	if a == nil {
		return fence{}
	}
	return fence{key{a.Job, int(a.Number)}, a.Node, a.Incarnation}
}

// ask tells the ledger of a call and waits for its answer. prepare runs first,
// under the node's lock.
func (n *Node) ask(ctx context.Context, request *wsdl.Awaken, event func(call uint64) any, prepare func()) (answer, error) {
	reply := make(chan answer, 1)
	n.mu.Lock()
	n.lastCall++
	call := n.lastCall
	n.calls[call] = reply
	if prepare != nil {
		prepare()
	}
	n.stepLocked(event(call), request)
	n.mu.Unlock()
	select {
	case a := <-reply:
		if a.fault != nil {
			return a, a.fault
		}
		return a, nil
	case <-ctx.Done():
		n.mu.Lock()
		delete(n.calls, call)
		n.mu.Unlock()
		return answer{}, wsdl.NewFault(wsdl.FaultCodeTimeout, "the caller did not wait for the answer", "call again: it joins what is under way")
	}
}

func (q *queue) AwakenContext(ctx context.Context, request *wsdl.Awaken) (*wsdl.AwakenResponse, error) {
	n, f := q.node, fenceOf(request.Attempt)
	need := room{Slots: int(request.Slots), Memory: request.Memory, Cores: int(request.Cores)}
	_, err := n.ask(ctx, request, func(call uint64) any {
		return awakenCall{call: call, at: n.clock.Now(), fence: f, need: need, against: n.queueLimits.awakening(request)}
	}, nil)
	if err != nil {
		return nil, err
	}
	r, err := n.runner(f)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answer, nil
}

func (q *queue) InstantiateContext(ctx context.Context, request *wsdl.Instantiate) (*wsdl.InstantiateResponse, error) {
	n, f := q.node, fenceOf(request.Attempt)
	_, err := n.ask(ctx, nil, func(call uint64) any {
		return instantiateCall{call: call, at: n.clock.Now(), fence: f}
	}, func() {
		r := n.runners[f.key]
		if r == nil || n.ledger.refuse(f) != nil {
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.plan == nil {
			r.plan = request // the first one counts; a repeated one is the same
		}
	})
	if err != nil {
		return nil, err
	}
	return &wsdl.InstantiateResponse{Processes: int32(len(request.Process))}, nil
}

func (q *queue) TerminateContext(ctx context.Context, request *wsdl.Terminate) (*wsdl.TerminateResponse, error) {
	a, err := q.node.ask(ctx, nil, func(call uint64) any {
		return terminateCall{call: call, fence: fenceOf(request.Attempt), grace: max(0, millis(request.GraceMillis)), reason: request.Reason}
	}, nil)
	if err != nil {
		return nil, err
	}
	return &wsdl.TerminateResponse{Sequence: wsdl.Of(a.sequence)}, nil
}

// runner finds the held attempt of a call that its fence lets in.
func (n *Node) runner(f fence) (*runner, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if fault := n.ledger.refuse(f); fault != nil {
		return nil, fault
	}
	if r := n.runners[f.key]; r != nil {
		return r, nil
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("node %s does not hold attempt %s", n.id, f.key),
		"it has ended here, or runs elsewhere: ask the broker for the job")
}

// process finds a job's MVM process.
func (n *Node) process(job string) (process, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, r := range n.runners {
		if !k.of(job) {
			continue
		}
		r.mu.Lock()
		p := r.process
		r.mu.Unlock()
		if p != nil {
			return p, nil
		}
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("attempt %s is still awakening on node %s", k, n.id), "try again in a moment")
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("no process of job %q runs on node %s", job, n.id),
		"the job's status names the nodes of its outside queues: ask the broker")
}

// passOn asks the guest of an attempt that is in a VM, in the words that fit makes it
// know; passed is false of one that is not.
func passOn[Request, Response any](ctx context.Context, r *runner, request Request, fit func(*Request, *enclosure), call func(*wsdl.QueueClient, context.Context, *Request) (*Response, error)) (answer *Response, passed bool, err error) {
	e, err := r.guest()
	if err != nil || e == nil {
		return nil, err != nil, err
	}
	fit(&request, e)
	answer, err = call(e.queue(), ctx, &request)
	return answer, true, err
}

func (q *queue) ReadStreamContext(ctx context.Context, request *wsdl.ReadStream) (*wsdl.ReadStreamResponse, error) {
	n, f := q.node, fenceOf(request.Attempt)
	length := int64(request.Length)
	if length <= 0 || length > longestStream {
		length = longestStream
	}
	deadline := time.Now().Add(min(max(0, millis(int64(request.WaitMillis))), longestWait))
	for {
		r, err := n.runner(f)
		if err != nil {
			return nil, err
		}
		if answer, passed, err := passOn(ctx, r, *request, func(r *wsdl.ReadStream, e *enclosure) { r.Attempt = e.attempt() }, (*wsdl.QueueClient).ReadStreamContext); passed {
			return answer, err
		}
		id := int(wsdl.Or(request.Process, 0))
		r.mu.Lock()
		_, known := r.specs[id]
		ended := known && terminal(r.statuses[id]) // first, or it could print before it ended
		r.mu.Unlock()
		if !known {
			return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("process %d of attempt %s is not on node %s", id, f.key, n.id), "the job's status names the node of each process")
		}
		data, next, end, _, err := mvm.ReadStream(r.work, id, request.Name, request.Offset, length)
		if err != nil {
			return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "the name is stdout or stderr")
		}
		end = end || ended && len(data) == 0
		if len(data) > 0 || end || !time.Now().Before(deadline) {
			answer := &wsdl.ReadStreamResponse{Next: &next, End: &end}
			if len(data) > 0 {
				answer.Data = wsdl.Of(wsdl.Binary(data))
			}
			return answer, nil
		}
		select { // the writer is another process and rings no bell
		case <-ctx.Done():
			return nil, wsdl.NewFault(wsdl.FaultCodeTimeout, "the caller did not wait", "read again at the same offset")
		case <-time.After(min(50*time.Millisecond, max(time.Until(deadline), time.Millisecond))):
		}
	}
}

// GetQuietContext asks the attempt's MVM process at this moment, and keeps
// nothing: rounds of questions prove something only because each answer is fresh.
func (q *queue) GetQuietContext(ctx context.Context, request *wsdl.GetQuiet) (*wsdl.GetQuietResponse, error) {
	n, f := q.node, fenceOf(request.Attempt)
	r, err := n.runner(f)
	if err != nil {
		return nil, err
	}
	if answer, passed, err := passOn(ctx, r, *request, func(r *wsdl.GetQuiet, e *enclosure) { r.Attempt = e.attempt() }, (*wsdl.QueueClient).GetQuietContext); passed {
		return answer, err
	}
	r.mu.Lock()
	p := r.process
	r.mu.Unlock()
	if p == nil {
		return &wsdl.GetQuietResponse{Quiet: wsdl.Of(false), Period: wsdl.Of(int64(0)), Sent: wsdl.Of(int64(0)), Received: wsdl.Of(int64(0))}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.callTimeout)
	defer cancel()
	reply, err := p.Call(ctx, mvm.Request{Quiet: &struct{}{}})
	if err != nil {
		return nil, r.fault("ask whether it is quiet", err)
	}
	found := reply.Quiet
	if found == nil {
		found = &queuevm.Quiet{}
	}
	answer := &wsdl.GetQuietResponse{
		Quiet: &found.Quiet, Period: wsdl.Of(int64(found.Period)), Sent: wsdl.Of(int64(found.Sent)), Received: wsdl.Of(int64(found.Received)),
	}
	if request.Waits {
		for _, w := range found.Waits {
			answer.Wait = append(answer.Wait, &wsdl.Wait{Process: wsdl.Of(int32(w.Process)), Channel: wsdl.Of(int32(w.Channel)), Enqueues: wsdl.Of(w.Out),
				Depth: wsdl.Of(int64(w.Depth)), Capacity: wsdl.Of(int64(w.Capacity))})
		}
	}
	return answer, nil
}

func (q *queue) InspectContext(ctx context.Context, request *wsdl.Inspect) (*wsdl.InspectResponse, error) {
	n := q.node
	type view struct {
		attempt
		runner *runner
	}
	var held []view
	n.mu.Lock()
	for _, a := range n.ledger.held {
		if request.Job == "" || a.of(request.Job) {
			held = append(held, view{*a, n.runners[a.key]})
		}
	}
	n.mu.Unlock()
	response := &wsdl.InspectResponse{}
	for _, v := range held {
		state := &wsdl.AttemptState{Attempt: v.runner.attempt(), State: v.phase.String(), Slots: wsdl.Of(int32(v.need.Slots))}
		r := v.runner
		r.mu.Lock()
		for _, s := range r.statuses {
			copied := *s
			state.Process = append(state.Process, &copied)
		}
		p, e := r.process, r.vm
		r.mu.Unlock()
		if e != nil && v.phase == running {
			e.inspect(ctx, state)
		}
		slices.SortFunc(state.Process, func(a, b *wsdl.ProcessStatus) int { return int(*a.Id - *b.Id) })
		if p != nil && v.phase == running {
			ctx, cancel := context.WithTimeout(ctx, n.callTimeout)
			reply, err := p.Call(ctx, mvm.Request{Inspect: &struct{}{}})
			cancel()
			if err == nil && reply.Inspect != nil {
				state.Micros = wsdl.Of(n.clock.Now().Microseconds())
				for _, c := range reply.Inspect.Channels {
					state.Channel = append(state.Channel, channelState(c))
				}
				for _, q := range reply.Inspect.Queues {
					state.Queue = append(state.Queue, queueState(q))
				}
			}
		}
		response.Attempt = append(response.Attempt, state)
	}
	return response, nil
}

func channelState(c queuevm.ChannelState) *wsdl.ChannelState {
	s := &wsdl.ChannelState{
		Id: wsdl.Of(int32(c.ID)), From: channelEnd(c.From), To: channelEnd(c.To),
		Capacity: int64(c.Capacity), Depth: wsdl.Of(int64(c.Depth)),
		ItemsIn: wsdl.Of(int64(c.ItemsIn)), ItemsOut: wsdl.Of(int64(c.ItemsOut)), BytesIn: wsdl.Of(int64(c.BytesIn)), BytesOut: wsdl.Of(int64(c.BytesOut)),
		ProducerWaits: &c.GiverWaits, ConsumerWaits: &c.TakerWaits, Closed: &c.GiverClosed, TakerClosed: &c.TakerClosed,
	}
	if c.From.Peer != "" || c.To.Peer != "" {
		items, bytes := crossed(c)
		s.ProxyItems, s.ProxyBytes = &items, &bytes
	}
	return s
}

func queueState(q queuevm.QueueState) *wsdl.QueueState {
	long := func(n uint64) *int64 { return wsdl.Of(int64(n)) }
	return &wsdl.QueueState{
		Id: int32(q.ID), Name: q.Name, Type_: wsdl.Of(wsdl.QueueType(q.Type)), Full: wsdl.Of(wsdl.FullPolicy(q.Full)), Capacity: int64(q.Capacity),
		Items: wsdl.Of(int64(q.Items)), Depth: long(q.Bytes), ItemsIn: long(q.ItemsIn), ItemsOut: long(q.ItemsOut),
		Dropped: long(q.Dropped), Refused: long(q.Refused), Producers: int32(q.Producers), Takers: int32(q.Takers),
		ProducersClosed: wsdl.Of(int32(q.ProducersClosed)), TakersClosed: wsdl.Of(int32(q.TakersClosed)),
		ProducersWait: wsdl.Of(int32(q.ProducersWait)), TakersWait: wsdl.Of(int32(q.TakersWait)),
	}
}

// crossed is what a remote channel has carried, as its end on this node counts.
func crossed(c queuevm.ChannelState) (items, bytes int64) {
	if c.From.Peer != "" {
		return int64(c.ItemsIn), int64(c.Carried)
	}
	return int64(c.ItemsOut), int64(c.Carried)
}

func channelEnd(e queuevm.Endpoint) *wsdl.ChannelEnd {
	switch {
	case e.Peer != "":
		return &wsdl.ChannelEnd{Peer: e.Peer, Queue: int32(e.Queue)}
	case e.Queue != 0:
		return &wsdl.ChannelEnd{Queue: int32(e.Queue)}
	case e.Outside != "":
		return &wsdl.ChannelEnd{Outside: e.Outside}
	}
	return &wsdl.ChannelEnd{Process: wsdl.Of(int32(e.Process)), Port: e.Port}
}

// outside sends a request about an outside queue to a job's MVM process.
func (q *queue) outside(ctx context.Context, job string, wait time.Duration, request mvm.Request) (mvm.Reply, error) {
	p, err := q.node.process(job)
	if err != nil {
		return mvm.Reply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, wait+q.node.callTimeout)
	defer cancel()
	reply, err := p.Call(ctx, request)
	if err != nil {
		n := q.node
		r := &runner{node: n, key: key{job: job}}
		return reply, r.fault("reach the queue", err)
	}
	return reply, nil
}

func bounded(millis int32) time.Duration {
	return min(max(0, time.Duration(millis)*time.Millisecond), longestWait)
}

func (q *queue) enqueue(ctx context.Context, name string, request *wsdl.Enqueue) (*wsdl.EnqueueResponse, error) {
	id, channel, outside := held(name)
	if channel >= 0 {
		return nil, between(channel)
	}
	if guest, err := q.node.inside(ctx, request.Job, name, false); err != nil {
		return nil, err
	} else if guest != nil {
		passed := *request
		passed.Queue = name
		return guest.EnqueueContext(ctx, &passed)
	}
	if request.Priority < 0 || request.Priority > 255 {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a priority of %d", request.Priority), "write 0 to 255")
	}
	message := &mvm.Enqueue{Queue: outside, ID: id, Meta: queuevm.Item{Priority: uint8(request.Priority), Instruction: request.Instruction}, End: request.End, Timeout: bounded(request.TimeoutMillis)}
	for _, item := range request.Item {
		message.Items = append(message.Items, []byte(*item))
	}
	reply, err := q.outside(ctx, request.Job, message.Timeout, mvm.Request{Enqueue: message})
	if err != nil && (reply.Count == 0 || reply.Count >= len(message.Items)) {
		return nil, err
	}
	// What is in the queue must not be sent again: that something kept the
	// others out is heard by whoever sends them.
	return &wsdl.EnqueueResponse{Accepted: wsdl.Of(int32(reply.Count))}, nil
}

func (q *queue) dequeue(ctx context.Context, name string, request *wsdl.Dequeue) (*wsdl.DequeueResponse, error) {
	id, channel, outside := held(name)
	if channel >= 0 {
		return nil, between(channel)
	}
	if guest, err := q.node.inside(ctx, request.Job, name, false); err != nil {
		return nil, err
	} else if guest != nil {
		passed := *request
		passed.Queue = name
		return guest.DequeueContext(ctx, &passed)
	}
	message := &mvm.Dequeue{Queue: outside, ID: id, Limit: min(max(1, int(request.Limit)), mostItems), Timeout: bounded(request.TimeoutMillis)}
	reply, err := q.outside(ctx, request.Job, message.Timeout, mvm.Request{Dequeue: message})
	if err != nil {
		return nil, err
	}
	response := &wsdl.DequeueResponse{End: wsdl.Of(false)}
	if reply.Dequeue != nil {
		for _, item := range reply.Dequeue.Items {
			response.Item = append(response.Item, wsdl.Of(wsdl.Binary(item)))
		}
		response.End = &reply.Dequeue.End
	}
	return response, nil
}

// published is where a job's proxy, at a local address, is reached: Awaken has
// told it.
func (q *queue) published(job, local string) (string, error) {
	n := q.node
	if n.config.Publish == nil {
		return n.reachable(local), nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for k, r := range n.runners {
		if k.of(job) {
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.answer != nil {
				return r.answer.Address, nil
			}
		}
	}
	return "", wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("no process of job %q runs on node %s any more", job, n.id), "ask the broker for the job's state")
}

func (q *queue) openSocket(ctx context.Context, name string, request *wsdl.OpenSocket) (*wsdl.OpenSocketResponse, error) {
	if id, channel, _ := held(name); id > 0 || channel >= 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("%s is no end outside the job: a plain socket leads to such an end only", name), "use Enqueue and Dequeue, or add an edge from or to outside:NAME")
	}
	if guest, err := q.node.inside(ctx, request.Job, name, false); err != nil {
		return nil, err
	} else if guest != nil {
		passed := *request
		passed.Queue = name
		return guest.OpenSocketContext(ctx, &passed)
	}
	ttl := time.Duration(request.TtlMillis) * time.Millisecond
	if ttl <= 0 {
		ttl = defaultTTL
	}
	reply, err := q.outside(ctx, request.Job, 0, mvm.Request{OpenSocket: &mvm.OpenSocket{Queue: name, TTL: min(ttl, longestTTL)}})
	if err != nil {
		return nil, err
	}
	if reply.Socket == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeInternal, fmt.Sprintf("the MVM process of job %q opened no socket", request.Job), "look into the node's log")
	}
	address, err := q.published(request.Job, reply.Socket.Address)
	if err != nil {
		return nil, err
	}
	return &wsdl.OpenSocketResponse{Address: address, Token: reply.Socket.Token}, nil
}
