package profile

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"mvm/queuevm/codec"
	"mvm/wsdl"
)

// queueKind is a queue element: what the queues that are made from it are like,
// and the one that edges name as their end.
type queueKind struct {
	name     string
	kind     wsdl.QueueType
	full     wsdl.FullPolicy
	capacity int
	steps    []codec.Step
	rule     string // NAME@VERSION of a registered one, or ""
	at       place
	made     int // queues of this kind so far

	id                int // of the one that edges name, 0 before it is made
	producers, takers int // its
}

// queue is one of the kind, without an ID.
func (k *queueKind) queue() Queue {
	return Queue{Name: k.name, Type: string(k.kind), Full: string(k.full), Capacity: k.capacity, Steps: k.steps, Rule: k.rule}
}

// served says that such a queue is more than a fifo between two ends, and so
// needs a home.
func (k *queueKind) served() bool {
	q := k.queue()
	return q.Served()
}

// shared says that such a queue is for many takers: one of it for each pair of
// ends would be another queue.
func (k *queueKind) shared() bool {
	return k.kind == wsdl.QueueTypeWork || k.kind == wsdl.QueueTypeBroadcast
}

func (c *compiler) compileQueues(at place, queues []*wsdl.Queue) {
	plain := &queueKind{name: "fifo", kind: wsdl.QueueTypeFifo, full: wsdl.FullPolicyBlock, capacity: DefaultCapacity}
	c.queues = map[string]*queueKind{plain.name: plain}
	for i, queue := range queues {
		here := at.nth("queue", i)
		if queue == nil {
			c.add(here, "nothing", "a queue", "queue %d is empty", i+1)
			continue
		}
		name := c.textField(here, c.scope, "name", queue.Name)
		what := fmt.Sprintf("queue %d", i+1)
		if c.named(name, what) {
			what = "the queue " + quote(name.text)
			if _, taken := c.queues[name.text]; name.text == plain.name {
				c.add(name.at, name.text, "another name", "a queue cannot be named \"fifo\": that is the queue of every channel that names none")
			} else if taken {
				c.add(name.at, name.text, "a name of its own", "two queues are named %s", quote(name.text))
			}
		}
		kind := &queueKind{
			name: name.text, at: here, capacity: MinCapacity,
			kind: wsdl.Or(queue.Type, wsdl.QueueTypeFifo), full: wsdl.Or(queue.Full, wsdl.FullPolicyBlock),
		}
		switch kind.kind {
		case wsdl.QueueTypeFifo, wsdl.QueueTypePriority, wsdl.QueueTypeLifo, wsdl.QueueTypeLatest, wsdl.QueueTypeWork, wsdl.QueueTypeBroadcast:
		default:
			c.add(here.attribute("type"), string(kind.kind), "fifo, priority, lifo, latest, work or broadcast", "%s has the type %s, expected fifo, priority, lifo, latest, work or broadcast", what, quote(string(kind.kind)))
		}
		switch kind.full {
		case wsdl.FullPolicyBlock, wsdl.FullPolicyDropNewest, wsdl.FullPolicyDropOldest, wsdl.FullPolicyFail:
		default:
			c.add(here.attribute("full"), string(kind.full), "block, dropNewest, dropOldest or fail", "%s has the policy %s for a full queue, expected block, dropNewest, dropOldest or fail", what, quote(string(kind.full)))
		}
		if kind.kind == wsdl.QueueTypeLatest && queue.Full != nil {
			c.add(here.attribute("full"), string(kind.full), "nothing here", "%s is of type latest, which each item replaces: it is never full, so full means nothing for it", what)
		}
		kind.steps = c.steps(here, what, queue.Encoder)
		kind.rule = c.rule(here, what, queue)
		asked := c.whole(numberField(&c.problems, here, c.scope, "capacity", queue.Capacity),
			"the capacity of "+what, 1, MaxCapacity, DefaultCapacity)
		for int64(kind.capacity) < asked {
			kind.capacity *= 2
		}
		if name.text != plain.name {
			c.queues[name.text] = kind
			c.out.Kinds = append(c.out.Kinds, kind.queue())
		}
	}
}

// steps makes a queue's chain, and sees to it that its steps can follow each
// other.
func (c *compiler) steps(at place, what string, encoders []*wsdl.Encoder) []codec.Step {
	if len(encoders) > MaxSteps {
		c.add(at.nth("encoder", MaxSteps), fmt.Sprint(len(encoders)), fmt.Sprintf("at most %d encoders", MaxSteps), "%s has %d encoders, expected at most %d", what, len(encoders), MaxSteps)
		return nil
	}
	var steps []codec.Step
	for i, encoder := range encoders {
		if encoder == nil {
			c.add(at.nth("encoder", i), "nothing", "an encoder", "encoder %d of %s is empty", i+1, what)
			return nil
		}
		typ := c.textField(at.nth("encoder", i), c.scope, "type", encoder.Type)
		if typ.bad {
			return nil
		}
		program, ok := c.encoder(at.nth("encoder", i), fmt.Sprintf("encoder %d of %s", i+1, what), encoder)
		if !ok {
			return nil
		}
		steps = append(steps, codec.Step{Codec: string(wsdl.Or(encoder.Codec, "")), Decode: encoder.Decode, Type: typ.text, Program: program})
	}
	if _, err := codec.New(steps, codec.Limits{}, nil); err != nil {
		found := fmt.Sprint(len(steps), " encoders")
		var wrong *codec.StepError
		if errors.As(err, &wrong) {
			at, found = at.nth("encoder", wrong.Number-1), wrong.Step.String()
		}
		const most = 400 // bytes of a sentence that may quote a type
		why := err.Error()
		if len(why) > most {
			why = strings.ToValidUTF8(why[:most], "") + "..."
		}
		c.add(at, found, "encoders that can follow each other", "%s cannot convert items: %s", what, why)
		return nil
	}
	return steps
}

// kindOf is the queue that an edge or topology has between its ends.
func (c *compiler) kindOf(name field, what string) *queueKind {
	if !name.set {
		return c.queues["fifo"]
	}
	kind, known := c.queues[name.text]
	if !known {
		c.add(name.at, name.text, "the name of a queue of this job, or fifo", "%s names the queue %s, which the job does not have%s", what, quote(name.text), c.nearest(name.text, maps.Keys(c.queues)))
		return c.queues["fifo"]
	}
	return kind
}

// queue makes a served queue of a kind and gives its ID.
func (w *wirer) queue(k *queueKind, l *Link) int {
	q := k.queue()
	q.ID, q.Link = len(w.out.Queues)+1, l
	if k.made++; k.made > 1 {
		q.Name = fmt.Sprintf("%s#%d", k.name, k.made)
	}
	if l != nil { // a seed is the whole topology's: its links do not lose the same
		own := *l
		own.Seed = l.Seed<<20 + uint64(q.ID)
		q.Link = &own
	}
	w.out.Queues = append(w.out.Queues, q)
	return q.ID
}

// join lays a channel from one end to another, with a queue of its own between
// them where the kind is more than a fifo, or has a link to impose.
func (w *wirer) join(from, to End, k *queueKind, l *Link) {
	if !k.served() && l == nil {
		w.channel(from, to, k.capacity)
		return
	}
	between := End{Process: -1, Queue: w.queue(k, l)}
	w.channel(from, between, k.capacity)
	w.channel(between, to, k.capacity)
}

// named is the end at the queue of a kind that edges name.
func (w *wirer) named(k *queueKind) End {
	if k.id == 0 {
		k.id = w.queue(k, nil)
	}
	return End{Process: -1, Queue: k.id}
}

func (w *wirer) producer(k *queueKind, e End) {
	k.producers++
	w.channel(e, w.named(k), k.capacity)
}

func (w *wirer) taker(k *queueKind, e End) {
	k.takers++
	w.channel(w.named(k), e, k.capacity)
}

// layFarm joins masters and workers by one queue there and, unless it leads
// forward only, one back.
func (w *wirer) layFarm(k *queueKind, l *Link, masters, workers []int, prefix string, forward bool) {
	lay := func(producers, takers []int, out, in string) {
		between := End{Process: -1, Queue: w.queue(k, l)}
		for _, p := range producers {
			w.channel(End{Process: p, Port: prefix + out}, between, k.capacity)
		}
		for _, p := range takers {
			w.channel(between, End{Process: p, Port: prefix + in}, k.capacity)
		}
	}
	lay(masters, workers, "worker", "master")
	if !forward {
		lay(workers, masters, "master", "worker")
	}
}

// settleQueues refuses queues that edges name and that could not work.
func (w *wirer) settleQueues() {
	if len(w.list) > 0 { // what is missing may be what was refused
		return
	}
	for _, q := range w.out.Queues {
		k := w.queues[q.Name]
		if k == nil || k.id != q.ID {
			continue
		}
		what := "the queue " + quote(k.name)
		switch {
		case k.producers == 0:
			w.add(k.at, "no edge to "+quote("queue:"+k.name), "a producer", "%s has takers and no producer", what)
		case k.takers == 0:
			w.add(k.at, "no edge from "+quote("queue:"+k.name), "a taker", "%s has producers and no taker", what)
		case k.takers > 1 && k.kind == wsdl.QueueTypeFifo:
			w.add(k.at.attribute("type"), string(k.kind), "work or broadcast", "%s is a fifo with %d takers: write work for each item to one of them, or broadcast for each item to all", what, k.takers)
		}
	}
}
