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

// SeveralRule is to Rule what SeveralConverter is to Converter.
type SeveralRule interface {
	Rule
	RankAll(items []Item) ([]Place, error)
}

// Place is what a rule says of an item.
type Place struct {
	Rank int64
	Drop bool
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
	width     int // of the items given at once, so that what they become is no more than a batch; for who treats them
}

// severalMost is how many items are given to a SeveralConverter or SeveralRule at once.
const severalMost = 64

// severalBytes is how many bytes these may become, one by one the most that it may.
const severalBytes = 4 * ConvertedMax

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

// many says how many of the items that are there are treated at once. Nobody knows
// before what they become: so it begins with one, and takes more as that proves small,
// but no more than may all turn out as big as most.
func (t *treatment) many(there int, most uint64) int {
	if t == nil {
		return there
	}
	_, converts := t.converter.(SeveralConverter)
	_, ranks := t.rule.(SeveralRule)
	if !converts && !ranks {
		return 1
	}
	if converts {
		there = int(min(uint64(there), severalBytes/min(max(most, 1), ConvertedMax)))
	}
	return min(there, max(t.width, 1))
}

// apply treats items up to the first that it cannot treat, and says how many these
// are and why not that one. It is called without VM.mu.
func (t *treatment) apply(items []item, most uint64) (n int, err error) {
	if t == nil {
		return len(items), nil
	}
	if t.converter != nil {
		n, err = t.convert(items, most)
		items = items[:n]
	}
	if t.rule != nil && len(items) > 0 {
		ranked, wrong := t.rank(items)
		if wrong != nil {
			err = fmt.Errorf("its rule: %w", wrong)
		}
		items = items[:ranked]
	}
	made := 0
	for k := range items {
		made += len(items[k].data)
	}
	switch {
	case made > convertBatch:
		t.width = max(1, len(items)*convertBatch/made)
	case made <= convertBatch/2 && len(items) >= t.width:
		t.width = min(2*max(t.width, 1), severalMost)
	}
	return len(items), err
}

// convert is apply's first part. Instructions stay as they are: program text is no
// value of the channel's type.
func (t *treatment) convert(items []item, most uint64) (int, error) {
	var data [][]byte
	var at []int
	for k := range items {
		if !items[k].instructs() {
			data, at = append(data, items[k].data), append(at, k)
		}
	}
	var err error
	if several, ok := t.converter.(SeveralConverter); ok {
		data, err = several.ConvertAll(data)
	} else {
		for k := range data {
			var made []byte
			if made, err = t.converter.Convert(data[k]); err != nil {
				data = data[:k]
				break
			}
			data[k] = append([]byte{}, made...)
		}
	}
	for k := range data {
		if uint64(len(data[k])) > most {
			return at[k], fmt.Errorf("it becomes %d bytes, over the %d that the queue can hold", len(data[k]), most)
		}
		items[at[k]].data = data[k]
	}
	if len(data) < len(at) {
		return at[len(data)], err
	}
	return len(items), nil
}

// rank is apply's second part.
func (t *treatment) rank(items []item) (int, error) {
	var places []Place
	var err error
	seen := outsideItems(items)
	if several, ok := t.rule.(SeveralRule); ok {
		places, err = several.RankAll(seen)
	} else {
		for k := range seen {
			var p Place
			if p.Rank, p.Drop, err = t.rule.Rank(seen[k]); err != nil {
				break
			}
			places = append(places, p)
		}
	}
	for k, p := range places {
		items[k].rank, items[k].drop = uint64(p.Rank)^1<<63, p.Drop
	}
	return len(places), err
}
