package queuevm

import (
	"fmt"
	"io"
)

// Rule gives each item that arrives at a served queue its place in it: the lowest
// rank goes first, and what is equal in the order of arrival. With drop the item
// goes no further; where the policy is to fail its producer is told so. An error
// is for people, and the end of the queue, as a Converter's is. It is used like a
// Converter, and after it.
type Rule interface {
	Rank(item Item) (rank int64, drop bool, err error)
}

// ruled says whether a type leaves the order to a Rule.
func (t QueueType) ruled() bool { return t == QueueFifo || t == QueueWork || t == QueueBroadcast }

// checkRule refuses a type that a rule cannot have.
func checkRule(t QueueType, r Rule) error {
	if r != nil && !t.ruled() {
		return fmt.Errorf("the type %s orders by itself: with a rule the type is fifo, work or broadcast", t)
	}
	return nil
}

// treatment is what becomes of the items that arrive at a queue, from one change
// of it to the next. Guarded by VM.mu but for what Convert and Rank do.
type treatment struct {
	converter Converter
	rule      Rule
	closers   []*closer
	batches   int // that are on their way through it
	retired   bool
}

// closer is a Converter or Rule to be closed once no treatment uses it.
type closer struct {
	what io.Closer
	uses int
}

// treat has items that arrive from now on be treated so. What the queue had before
// and has no more is closed, if it can be, when the last item is through.
func (q *queue) treat(c Converter, r Rule, newConverter, newRule bool) {
	old := q.treatment
	q.Converter, q.Rule = c, r
	q.treatment = nil
	if c != nil || r != nil {
		t := &treatment{converter: c, rule: r}
		for k, part := range []struct {
			what  any
			fresh bool
		}{{c, newConverter}, {r, newRule}} {
			var use *closer
			if what, ok := part.what.(io.Closer); ok {
				if use = (&closer{what: what}); !part.fresh {
					use = old.closers[k]
				}
				use.uses++
			}
			t.closers = append(t.closers, use)
		}
		q.treatment = t
	}
	if old != nil {
		old.retired = true
		old.close()
	}
}

// through says that a batch is no longer on its way.
func (t *treatment) through() {
	if t != nil {
		t.batches--
		t.close()
	}
}

func (t *treatment) close() {
	if !t.retired || t.batches > 0 {
		return
	}
	for _, c := range t.closers {
		if c == nil {
			continue
		}
		if c.uses--; c.uses == 0 {
			go c.what.Close() // it may take its time
		}
	}
	t.closers = nil
}

// newBatch begins one that is treated as things are now.
func (q *queue) newBatch(first uint64) *batch {
	if q.treatment != nil {
		q.treatment.batches++
	}
	return &batch{first: first, by: q.treatment}
}

// apply treats one item; it is called without VM.mu.
func (t *treatment) apply(it *item, most uint64) error {
	if t == nil {
		return nil
	}
	if t.converter != nil && !it.instructs() { // program text is no value of the channel's type
		data, err := t.converter.Convert(it.data)
		if err == nil && uint64(len(data)) > most {
			err = fmt.Errorf("it becomes %d bytes, over the %d that the queue can hold", len(data), most)
		}
		if err != nil {
			return err
		}
		it.data = append([]byte{}, data...)
	}
	if t.rule != nil {
		rank, drop, err := t.rule.Rank(outsideItems([]item{*it})[0])
		if err != nil {
			return fmt.Errorf("its rule: %w", err)
		}
		it.rank, it.drop = uint64(rank)^1<<63, drop
	}
	return nil
}
