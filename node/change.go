package node

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mvm/node/mvm"
	"mvm/queuevm"
	"mvm/wsdl"
)

const (
	defaultPeek      = 10
	defaultPeekBytes = 4 << 10
	mostPeekBytes    = 1 << 20
)

// held is a queue or channel that a name means on its own: queue:3, channel:7,
// or, with neither, an end outside the job.
func held(name string) (queue, channel int, outside string) {
	if text, ok := strings.CutPrefix(name, "queue:"); ok {
		if id, err := strconv.Atoi(text); err == nil && id > 0 {
			return id, -1, ""
		}
	}
	if text, ok := strings.CutPrefix(name, "channel:"); ok {
		if id, err := strconv.ParseUint(text, 10, 32); err == nil {
			return 0, int(id), ""
		}
	}
	return 0, -1, name
}

// unknown is for a name that only the broker can make sense of.
func (q *queue) unknown(job, name string) error {
	return wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("node %s knows no queue %q of job %q by that name", q.node.id, name, job), "ask the broker for the job's queues")
}

// between refuses to enqueue to or dequeue from an edge that is nothing but a
// channel: its two ends are taken.
func between(channel int) error {
	return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("channel %d is a channel between two ends and nothing more: nobody else can enqueue or dequeue there", channel),
		"have a node keep it first: ChangeQueue with served (`mvm queue set JOB QUEUE --served`)")
}

// peekInOrder is peek of what an edge or queue is called by: an edge that was changed
// has a channel or queue since, and the rings that it had before still hold what its
// taker takes first.
func (q *queue) peekInOrder(ctx context.Context, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	older, err := q.older(ctx, r.Job, r.Queue)
	if err != nil {
		return nil, err
	}
	all := &wsdl.PeekQueueResponse{}
	rest := *r
	if rest.Limit <= 0 {
		rest.Limit = defaultPeek
	}
	for _, name := range append(older, r.Queue) {
		rest.Queue = name
		answer, err := q.peekOne(ctx, &rest)
		switch {
		case err == nil:
		case name != r.Queue && wsdl.CodeOf(err) == wsdl.FaultCodeNotFound: // both its ends have gone on from it
			continue
		default:
			return nil, err
		}
		all.Item, all.Next = append(all.Item, answer.Item...), answer.Next
		if rest.Limit -= int32(len(answer.Item)); rest.Limit <= 0 || all.Next != nil {
			break
		}
	}
	return all, nil
}

// older gives the channels that led from the one producer of a queue or edge to its
// one taker before it was changed, the oldest first.
func (q *queue) older(ctx context.Context, job, name string) (ids []string, err error) {
	front, err := q.front(false)
	if err != nil {
		return nil, err
	}
	one, err := front.ListQueuesContext(ctx, &wsdl.ListQueues{Job: job, Queue: name, Planned: true})
	if err != nil || len(one.Change) == 0 || len(one.Queue) != 1 {
		return nil, err
	}
	all, err := front.ListQueuesContext(ctx, &wsdl.ListQueues{Job: job, Planned: true})
	if wsdl.CodeOf(err) == wsdl.FaultCodeTooLarge { // each can still be looked at by its number
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	ends := func(s *wsdl.QueueStatus) [2]string {
		if s == nil || len(s.Producer) != 1 || len(s.Taker) != 1 {
			return [2]string{}
		}
		return [2]string{s.Producer[0].Name, s.Taker[0].Name}
	}
	now := one.Queue[0]
	var channels []int
	for _, s := range all.Queue {
		if ends(s) == ends(now) && ends(s) != [2]string{} && s.Id != now.Id {
			if _, channel, _ := held(s.Id); channel >= 0 {
				channels = append(channels, channel)
			}
		}
	}
	slices.Sort(channels)
	for _, channel := range channels {
		ids = append(ids, fmt.Sprintf("channel:%d", channel))
	}
	return ids, nil
}

func (q *queue) peek(ctx context.Context, name string, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	id, channel, outside := held(name)
	if outside != "" {
		return nil, q.unknown(r.Job, name)
	}
	if guest, err := q.node.inside(ctx, r.Job, name, r.After != nil); err != nil {
		return nil, err
	} else if guest != nil {
		passed := *r
		passed.Queue = name
		return guest.PeekQueueContext(ctx, &passed)
	}
	limit, bytes := int(r.Limit), int(r.Bytes)
	if limit <= 0 {
		limit = defaultPeek
	}
	if bytes <= 0 {
		bytes = defaultPeekBytes
	}
	message := &mvm.Peek{Queue: id, Limit: min(limit, mostItems), Bytes: min(bytes, mostPeekBytes)}
	if id == 0 {
		message.Channel = uint32(channel)
	}
	message.Bytes = min(message.Bytes, max(1, mvm.MaxMessage/4/message.Limit))
	if r.After != nil {
		message.After = wsdl.Of(uint64(*r.After))
	}
	reply, err := q.outside(ctx, r.Job, 0, mvm.Request{Peek: message})
	if err != nil {
		return nil, err
	}
	answer := &wsdl.PeekQueueResponse{Item: itemsOf(reply)}
	if reply.Next != nil {
		answer.Next = wsdl.Of(int64(*reply.Next))
	}
	return answer, nil
}

// peekTries is how often a channel is looked at again because items went from one
// node to the other meanwhile.
const peekTries = 4

// peekAll is peek, and what waits of a channel at its producer's node behind it: from
// there on, so that nothing is seen twice.
func (q *queue) peekAll(ctx context.Context, name string, r *wsdl.PeekQueue) (*wsdl.PeekQueueResponse, error) {
	limit := int(r.Limit)
	if limit <= 0 {
		limit = defaultPeek
	}
	limit = min(limit, mostItems)
	for try := 1; ; try++ {
		answer, err := q.peek(ctx, name, r)
		if err != nil || answer.Next == nil || r.After != nil || len(answer.Item) >= limit {
			return answer, err
		}
		found, err := q.locate(ctx, r.Job, name)
		if err != nil || len(found.Producer) != 1 || found.Producer[0].Url == "" {
			return answer, nil
		}
		rest := *r
		rest.Queue, rest.Limit, rest.After = found.Id, int32(limit-len(answer.Item)), answer.Next
		more, err := wsdl.NewQueueClient(q.node.caller, found.Producer[0].Url).PeekQueueContext(ctx, &rest)
		switch {
		case err == nil:
			answer.Item, answer.Next = append(answer.Item, more.Item...), nil
			return answer, nil
		case wsdl.CodeOf(err) != wsdl.FaultCodeConflict || try == peekTries:
			return answer, nil
		}
	}
}

func (q *queue) drain(ctx context.Context, name string, r *wsdl.DrainQueue) (*wsdl.DrainQueueResponse, error) {
	id, channel, outside := held(name)
	switch {
	case outside != "":
		return nil, q.unknown(r.Job, name)
	case id == 0:
		return nil, between(channel)
	}
	if guest, err := q.node.inside(ctx, r.Job, name, false); err != nil {
		return nil, err
	} else if guest != nil {
		passed := *r
		passed.Queue = name
		return guest.DrainQueueContext(ctx, &passed)
	}
	limit := int(r.Limit)
	if limit <= 0 {
		limit = mostItems
	}
	reply, err := q.outside(ctx, r.Job, 0, mvm.Request{Drain: &mvm.Drain{Queue: id, Limit: min(limit, mostItems)}})
	if err != nil {
		return nil, err
	}
	return &wsdl.DrainQueueResponse{Item: itemsOf(reply), More: &reply.More}, nil
}

func itemsOf(reply mvm.Reply) (items []*wsdl.QueueItem) {
	for i, item := range reply.Items {
		size := int64(len(item.Data))
		if i < len(reply.Sizes) {
			size = int64(reply.Sizes[i])
		}
		items = append(items, &wsdl.QueueItem{Size: &size, Data: wsdl.Of(wsdl.Binary(item.Data)), Instruction: item.Instruction, Priority: int32(item.Priority)})
	}
	return items
}

// ApplyChangeContext makes this node's part in one step of a change, if it was
// not made before, and says how far it is.
func (q *queue) ApplyChangeContext(ctx context.Context, request *wsdl.ApplyChange) (*wsdl.ApplyChangeResponse, error) {
	n, f := q.node, fenceOf(request.Attempt)
	r, err := n.runner(f)
	if err != nil {
		return nil, err
	}
	if against := n.queueLimits.against(request.QueueLimits); against != "" { // a guest has no such file
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("node %s does not let its queues have %s", n.id, against), "choose what it allows")
	}
	fit := func(r *wsdl.ApplyChange, e *enclosure) {
		e.meet(r.Peer)
		r.Attempt = e.attempt()
	}
	if answer, passed, err := passOn(ctx, r, *request, fit, (*wsdl.QueueClient).ApplyChangeContext); passed {
		return answer, err
	}
	r.mu.Lock()
	p := r.process
	r.mu.Unlock()
	if p == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("attempt %s is still awakening on node %s", f.key, n.id), "try again in a moment")
	}
	message, err := r.changeOf(ctx, request)
	if err != nil {
		return nil, r.fault("prepare a change", err)
	}
	reply, err := p.Call(ctx, mvm.Request{Change: message})
	if err != nil {
		return nil, r.fault("make a change", err)
	}
	if reply.Change == nil {
		return nil, r.internal("make a change", fmt.Errorf("its MVM process answers nothing"))
	}
	answer := &wsdl.ApplyChangeResponse{Done: &reply.Change.Done}
	for _, s := range reply.Change.Switches {
		answer.Switch_ = append(answer.Switch_, &wsdl.SwitchState{Channel: wsdl.Of(int32(s.Channel)), Written: &s.Written, Read: &s.Read})
	}
	return answer, nil
}

// changeOf is a change as the MVM process takes it. What it needs of registered
// logic is built first.
func (r *runner) changeOf(ctx context.Context, request *wsdl.ApplyChange) (*mvm.Change, error) {
	logic, err := r.logic(ctx, request)
	if err != nil {
		return nil, err
	}
	message := &mvm.Change{Number: request.Number, Step: int(request.Step), Logic: logic, Peers: peersOf(request.Peer)}
	for _, c := range request.Channel {
		channel, err := channelOf(c)
		if err != nil {
			return nil, err
		}
		link := mvm.Link{Channel: channel}
		if c.AfterOut != nil {
			link.AfterOut = wsdl.Of(uint32(*c.AfterOut))
		}
		if c.AfterIn != nil {
			link.AfterIn = wsdl.Of(uint32(*c.AfterIn))
		}
		message.Channels = append(message.Channels, link)
	}
	for _, q := range request.Queue {
		queue, err := queueOf(q)
		if err != nil {
			return nil, err
		}
		message.Queues = append(message.Queues, queue)
	}
	for _, a := range request.Alter {
		alteration, err := alterationOf(a)
		if err != nil {
			return nil, err
		}
		message.Alter = append(message.Alter, alteration)
	}
	if d := request.Discard; d != nil {
		message.Discard = &mvm.Discard{}
		for _, c := range d.Channel {
			message.Discard.Channels = append(message.Discard.Channels, uint32(wsdl.Or(c.Channel, 0)))
		}
		for _, q := range d.Queue {
			message.Discard.Queues = append(message.Discard.Queues, int(q.Id))
		}
	}
	for _, s := range request.Resume {
		message.Resume = append(message.Resume, uint32(wsdl.Or(s.Channel, 0)))
	}
	for _, s := range request.Switch_ {
		one := mvm.Switch{Channel: uint32(wsdl.Or(s.Channel, 0))}
		if s.Next != nil {
			one.Next = wsdl.Of(uint32(*s.Next))
		}
		message.Switches = append(message.Switches, one)
	}
	return message, nil
}

// logic fetches and builds the registered codecs and rules that a change brings
// and that were not built before.
func (r *runner) logic(ctx context.Context, request *wsdl.ApplyChange) ([]mvm.Logic, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	built := map[string]string{}
	for k, b := range request.Build {
		r.mu.Lock()
		dir, there := r.artifacts[b.Source]
		r.mu.Unlock()
		if !there {
			var digests []string
			for _, f := range b.File {
				digests = append(digests, f.Digest)
			}
			if err := r.fetchAll(ctx, digests); err != nil {
				return nil, err
			}
			// A folder of its own: those of Awaken are numbered from 0.
			if _, err := r.build(ctx, int(request.Number)<<16+k, b); err != nil {
				return nil, err
			}
			r.mu.Lock()
			dir = r.artifacts[b.Source]
			r.mu.Unlock()
		}
		built[b.Source] = dir
	}
	return logicOf(built)
}

func alterationOf(a *wsdl.ServedQueueChange) (mvm.Alteration, error) {
	out := mvm.Alteration{ID: int(a.Id), Rule: a.Rule}
	if a.Type_ != nil {
		out.Type = wsdl.Of(queuevm.QueueType(*a.Type_))
	}
	if a.Full != nil {
		out.Full = wsdl.Of(queuevm.FullPolicy(*a.Full))
	}
	if a.Capacity != 0 {
		out.Capacity = wsdl.Of(int(a.Capacity))
	}
	if a.Encoders != nil {
		steps := []mvm.Step{}
		for _, e := range a.Encoders.Encoder {
			steps = append(steps, stepOf(e))
		}
		out.Steps = &steps
	}
	if a.Link != nil {
		link, err := linkOf(a.Link)
		if err != nil {
			return out, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the link of queue %d: %v", a.Id, err), "write decimal numbers")
		}
		out.Link = &link
	}
	return out, nil
}

func peersOf(peers []*wsdl.Peer) (all []queuevm.Peer) {
	for _, p := range peers {
		all = append(all, queuevm.Peer{ID: p.Node, Address: p.Address, Fingerprint: p.Fingerprint})
	}
	return all
}

func channelOf(c *wsdl.Channel) (queuevm.Channel, error) {
	if c.From == nil || c.To == nil {
		return queuevm.Channel{}, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("channel %d lacks an end", wsdl.Or(c.Id, 0)), "give it from and to")
	}
	return queuevm.Channel{ID: uint32(wsdl.Or(c.Id, 0)), Capacity: int(c.Capacity), From: endpoint(c.From), To: endpoint(c.To), Label: c.Label, Direct: c.Direct, Forward: c.Forward}, nil
}

func queueOf(q *wsdl.ServedQueue) (mvm.Queue, error) {
	queue := mvm.Queue{Program: q.Rule, Queue: queuevm.Queue{
		ID: int(q.Id), Name: q.Name, Capacity: int(q.Capacity),
		Type: queuevm.QueueType(wsdl.Or(q.Type_, "")), Full: queuevm.FullPolicy(wsdl.Or(q.Full, "")),
	}}
	var err error
	if queue.Link, err = linkOf(q.Link); err != nil {
		return queue, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the link of the queue %s: %v", q.Name, err), "write decimal numbers")
	}
	for _, e := range q.Encoder {
		if e == nil {
			return queue, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("an encoder of the queue %s is empty", q.Name), "name its codec")
		}
		queue.Steps = append(queue.Steps, stepOf(e))
	}
	return queue, nil
}
