package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Collective is a pattern over all processes of a topology: a tree, star,
// complete graph, hypercube or butterfly (over one task). A process is told
// neither who the others are nor who is the root: that is the wiring's. All
// processes open the collective and make the same calls in the same order, else
// ErrMisuse; nothing else goes over these ports. Where a topology has a complete
// graph besides a tree, with the same prefix, AllToAll takes it. After an error a
// collective is of no more use. LAYOUT.md, section 8, has the bytes; programs in
// other languages take part.
//
// What always holds: each call sends one item over each edge and way that it
// uses, and takes all that was sent to it, so one call's items never reach
// another. One goroutine at a time.
type Collective struct {
	index, size int
	parent      *Port // nil at the root
	branches    []branch
	peers       []*Port // by index; nil, but for a complete graph
	dims        []*Port // nil, but for a cube
	calls       uint32
}

// branch is a child, and the members below it, itself first, in the order in
// which their items come.
type branch struct {
	port    *Port
	number  int
	members []int
}

// What an item of a collective is of.
const (
	callSetup = iota
	callBarrier
	callBroadcast
	callReduce
	callGather
	callScatter
	callAllToAll

	callHead = 16 // u32 number of the call, u32 what it is, u64 bytes that follow
)

// OpenCollective waits for all the others. prefix is what the topology puts before
// its ports' names.
func OpenCollective(prefix string) (*Collective, error) {
	names, err := Ports()
	if err != nil {
		return nil, err
	}
	c := &Collective{size: 1}
	if err := c.meet(prefix, names); err != nil {
		return nil, err
	}
	return c, nil
}

// Index is this process's place among the members of the topology, 0 at the root.
func (c *Collective) Index() int { return c.index }

// Size is how many members there are.
func (c *Collective) Size() int { return c.size }

// ---- one item ----

func (c *Collective) post(p *Port, call uint32, data []byte) error {
	return p.Enqueue(c.compose(call, data))
}

func (c *Collective) compose(call uint32, data []byte) []byte {
	m := make([]byte, callHead, callHead+len(data))
	binary.LittleEndian.PutUint32(m, c.calls)
	binary.LittleEndian.PutUint32(m[4:], call)
	binary.LittleEndian.PutUint64(m[8:], uint64(len(data)))
	return append(m, data...)
}

func (c *Collective) fetch(p *Port, call uint32) ([]byte, error) {
	m, err := p.Dequeue()
	if err != nil {
		return nil, err
	}
	if len(m) < callHead || binary.LittleEndian.Uint32(m) != c.calls || binary.LittleEndian.Uint32(m[4:]) != call || binary.LittleEndian.Uint64(m[8:]) != uint64(len(m)-callHead) {
		return nil, fmt.Errorf("port %s: the processes make different calls: %w", p.Name(), ErrMisuse)
	}
	return m[callHead:], nil
}

// swap sends to a neighbour and takes from it: whatever the lengths, one of the
// two first sends and the other one first takes.
func (c *Collective) swap(p *Port, call uint32, data []byte, first bool) ([]byte, error) {
	m := c.compose(call, data)
	err := p.TryEnqueue(m)
	sent := !errors.Is(err, ErrAgain) && !errors.Is(err, ErrTooBig)
	if !sent && first {
		sent, err = true, p.Enqueue(m)
	}
	if sent && err != nil {
		return nil, err
	}
	got, err := c.fetch(p, call)
	if err == nil && !sent {
		err = p.Enqueue(m)
	}
	return got, err
}

// bundle and unbundle are several items in one: each a u64 length and its bytes.
func bundle(to []byte, items ...[]byte) []byte {
	for _, item := range items {
		to = binary.LittleEndian.AppendUint64(to, uint64(len(item)))
		to = append(to, item...)
	}
	return to
}

func unbundle(data []byte, count int) (items [][]byte, err error) {
	for range count {
		if len(data) < 8 || binary.LittleEndian.Uint64(data) > uint64(len(data)-8) {
			return nil, fmt.Errorf("an item has another number of parts than %d: %w", count, ErrMisuse)
		}
		n := 8 + int(binary.LittleEndian.Uint64(data))
		items = append(items, data[8:n:n])
		data = data[n:]
	}
	if len(data) > 0 {
		return nil, fmt.Errorf("an item has another number of parts than %d: %w", count, ErrMisuse)
	}
	return items, nil
}

// ---- who is where ----

// numbered is the number behind a port's name of one of the words, -1 for none.
func numbered(name, prefix string, words ...string) int {
	for _, word := range words {
		if digits, ok := strings.CutPrefix(name, prefix+word); ok && len(digits) < 8 {
			if k, err := strconv.ParseUint(digits, 10, 32); err == nil {
				return int(k)
			}
		}
	}
	return -1
}

// inOrder opens the ports that are numbered from 0; nil unless all are there, but
// for one if gap.
func inOrder(names []string, prefix string, gap bool, words ...string) (ports []*Port, missing int, err error) {
	byNumber := map[int]string{}
	most := -1
	for _, name := range names {
		if k := numbered(name, prefix, words...); k >= 0 {
			byNumber[k] = name
			most = max(most, k)
		}
	}
	if len(byNumber) == 0 {
		return nil, 0, nil
	}
	count := len(byNumber)
	if gap {
		count++
	}
	if most >= count {
		return nil, 0, nil
	}
	ports = make([]*Port, count)
	for k := range ports {
		if name, ok := byNumber[k]; !ok {
			missing = k
		} else if ports[k], err = Open(name); err != nil {
			return nil, 0, err
		}
	}
	return ports, missing, nil
}

func (c *Collective) meet(prefix string, names []string) error {
	for _, name := range names {
		k := numbered(name, prefix, "child", "leaf")
		up := name == prefix+"parent" || name == prefix+"hub"
		if k < 0 && !up {
			continue
		}
		p, err := Open(name)
		if err != nil {
			return err
		}
		if up {
			c.parent = p
		} else {
			c.branches = append(c.branches, branch{port: p, number: k})
		}
	}
	slices.SortFunc(c.branches, func(a, b branch) int { return a.number - b.number })
	peers, own, err := inOrder(names, prefix, true, "peer")
	if err != nil {
		return err
	}
	c.peers = peers
	if c.parent != nil || len(c.branches) > 0 {
		if err := c.survey(); err != nil {
			return fmt.Errorf("the processes do not open the same tree: %w", err)
		}
		if peers != nil && (len(peers) != c.size || own != c.index) {
			return fmt.Errorf("the tree is over %d processes, the complete graph over %d: %w", c.size, len(peers), ErrMisuse)
		}
		return nil
	}
	if peers != nil {
		c.size, c.index = len(peers), own
		c.lay()
		return nil
	}
	if c.dims, _, err = inOrder(names, prefix, false, "dim", "stage"); err != nil {
		return err
	}
	if c.dims != nil {
		c.size, c.index = 1<<len(c.dims), Index()
		if Count() != c.size {
			return fmt.Errorf("a cube of %d processes has to be over one task with so many; %s has %d: %w", c.size, Task(), Count(), ErrMisuse)
		}
		c.lay()
		return nil
	}
	if Count() == 1 {
		return nil
	}
	return fmt.Errorf("a collective needs ports named %[1]sparent or %[1]schild0, %[1]shub or %[1]sleaf0, %[1]speer0, %[1]sdim0 or %[1]sstage0: let a topology be a tree, star, complete, hypercube or butterfly: %[2]w", prefix, ErrMisuse)
}

// survey numbers the members of a tree level by level, as its topology does, and
// learns who is below each child: how many there are on each level goes up, where
// each level begins comes down, and who is where goes up again.
func (c *Collective) survey() error {
	numbers := func(data []byte) (list []uint32) {
		for ; len(data) >= 4; data = data[4:] {
			list = append(list, binary.LittleEndian.Uint32(data))
		}
		return list
	}
	var data []byte
	text := func(list []uint32) []byte {
		data = data[:0]
		for _, n := range list {
			data = binary.LittleEndian.AppendUint32(data, n)
		}
		return data
	}
	sum := []uint32{1} // members on each level from here
	below := make([][]uint32, len(c.branches))
	for k, b := range c.branches {
		got, err := c.fetch(b.port, callSetup)
		if err != nil {
			return err
		}
		below[k] = numbers(got)
		for level, n := range below[k] {
			if level+1 == len(sum) {
				sum = append(sum, 0)
			}
			sum[level+1] += n
		}
	}
	start := make([]uint32, 1+len(sum)) // how many members, and then the first of each level
	if c.parent == nil {
		for level, n := range sum {
			start[0] += n
			if level > 0 {
				start[level+1] = start[level] + sum[level-1]
			}
		}
	} else {
		if err := c.post(c.parent, callSetup, text(sum)); err != nil {
			return err
		}
		got, err := c.fetch(c.parent, callSetup)
		if err != nil {
			return err
		}
		if start = numbers(got); len(start) != 1+len(sum) {
			return ErrMisuse
		}
	}
	c.size, c.index = int(start[0]), int(start[1])
	next := slices.Clone(start[2:])
	for k, b := range c.branches {
		if err := c.post(b.port, callSetup, text(append([]uint32{start[0]}, next[:len(below[k])]...))); err != nil {
			return err
		}
		for level, n := range below[k] {
			next[level] += n
		}
	}
	all := []uint32{start[1]}
	for k := range c.branches {
		got, err := c.fetch(c.branches[k].port, callSetup)
		if err != nil {
			return err
		}
		for _, n := range numbers(got) {
			if int(n) >= c.size {
				return ErrMisuse
			}
			c.branches[k].members = append(c.branches[k].members, int(n))
			all = append(all, n)
		}
	}
	if c.parent != nil {
		return c.post(c.parent, callSetup, text(all))
	}
	return nil
}

// lay lays a tree into a complete graph (binary) or a cube (binomial).
func (c *Collective) lay() {
	children := func(member int) (list []int) {
		if c.dims == nil {
			for child := 2*member + 1; child <= 2*member+2 && child < c.size; child++ {
				list = append(list, child)
			}
			return list
		}
		for d := 0; d < len(c.dims) && member>>d&1 == 0; d++ {
			list = append(list, member|1<<d)
		}
		return list
	}
	var below func(member int) []int
	below = func(member int) []int {
		list := []int{member}
		for _, child := range children(member) {
			list = append(list, below(child)...)
		}
		return list
	}
	mine := children(c.index)
	for d, child := range mine {
		b := branch{members: below(child)}
		if c.dims != nil {
			b.port = c.dims[d]
		} else {
			b.port = c.peers[child]
		}
		c.branches = append(c.branches, b)
	}
	if c.index > 0 && c.dims != nil {
		c.parent = c.dims[len(mine)]
	} else if c.index > 0 {
		c.parent = c.peers[(c.index-1)/2]
	}
}

// ---- the patterns ----

func (c *Collective) up(call uint32, data []byte, combine func(a, b []byte) []byte) ([]byte, error) {
	for _, b := range c.branches {
		got, err := c.fetch(b.port, call)
		if err != nil {
			return nil, err
		}
		if combine != nil {
			data = combine(data, got)
		}
	}
	if c.parent != nil {
		return nil, c.post(c.parent, call, data)
	}
	return data, nil
}

func (c *Collective) down(call uint32, data []byte) (_ []byte, err error) {
	if c.parent != nil {
		if data, err = c.fetch(c.parent, call); err != nil {
			return nil, err
		}
	}
	for _, b := range c.branches {
		if err := c.post(b.port, call, data); err != nil {
			return nil, err
		}
	}
	return data, nil
}

// Barrier waits until all have come.
func (c *Collective) Barrier() error {
	c.calls++
	_, err := c.up(callBarrier, nil, nil)
	if err == nil {
		_, err = c.down(callBarrier, nil)
	}
	return err
}

// Broadcast gives the root's data to all; what others put in is ignored.
func (c *Collective) Broadcast(data []byte) ([]byte, error) {
	c.calls++
	return c.down(callBroadcast, data)
}

// Reduce gives everyone's data, combined, to the root, and nil to the others.
// combine joins two; it may change the first. It has to be associative; the order
// in which items are joined is always the same.
func (c *Collective) Reduce(data []byte, combine func(a, b []byte) []byte) ([]byte, error) {
	c.calls++
	return c.up(callReduce, data, combine)
}

// AllReduce gives it to all.
func (c *Collective) AllReduce(data []byte, combine func(a, b []byte) []byte) ([]byte, error) {
	data, err := c.Reduce(data, combine)
	if err != nil {
		return nil, err
	}
	return c.Broadcast(data)
}

// Gather gives everyone's item, by index, to the root, and nil to the others.
func (c *Collective) Gather(item []byte) ([][]byte, error) {
	c.calls++
	all := make([][]byte, c.size)
	all[c.index] = item
	message := bundle(nil, item)
	for _, b := range c.branches {
		got, err := c.fetch(b.port, callGather)
		if err != nil {
			return nil, err
		}
		if c.parent != nil {
			message = append(message, got...)
			continue
		}
		items, err := unbundle(got, len(b.members))
		if err != nil {
			return nil, err
		}
		for k, member := range b.members {
			all[member] = items[k]
		}
	}
	if c.parent != nil {
		return nil, c.post(c.parent, callGather, message)
	}
	return all, nil
}

// Scatter gives each its item of the root's, by index; what others put in is
// ignored.
func (c *Collective) Scatter(all [][]byte) ([]byte, error) {
	c.calls++
	count := 1
	for _, b := range c.branches {
		count += len(b.members)
	}
	var rest [][]byte
	if c.parent == nil {
		if len(all) != c.size {
			return nil, fmt.Errorf("%d items are for %d processes: %w", len(all), c.size, ErrMisuse)
		}
		rest = append(rest, all[c.index])
		for _, b := range c.branches {
			for _, member := range b.members {
				rest = append(rest, all[member])
			}
		}
	} else {
		got, err := c.fetch(c.parent, callScatter)
		if err != nil {
			return nil, err
		}
		if rest, err = unbundle(got, count); err != nil {
			return nil, err
		}
	}
	own, rest := rest[0], rest[1:]
	for _, b := range c.branches {
		if err := c.post(b.port, callScatter, bundle(nil, rest[:len(b.members)]...)); err != nil {
			return nil, err
		}
		rest = rest[len(b.members):]
	}
	return own, nil
}

// AllToAll gives the k-th of the items to the k-th member, and what each has for
// this one, by index.
func (c *Collective) AllToAll(items [][]byte) ([][]byte, error) {
	if len(items) != c.size {
		return nil, fmt.Errorf("%d items are for %d processes: %w", len(items), c.size, ErrMisuse)
	}
	items = slices.Clone(items)
	switch {
	case c.peers != nil:
		c.calls++
		// Each pair meets once, in rounds in which everyone has one partner: whoever
		// waits, waits for somebody in an earlier round, or for one who deals with it.
		for round := range c.size {
			peer := (round - c.index + c.size) % c.size
			if peer == c.index {
				continue
			}
			got, err := c.swap(c.peers[peer], callAllToAll, items[peer], c.index < peer)
			if err != nil {
				return nil, err
			}
			items[peer] = got
		}
		return items, nil
	case c.dims != nil:
		c.calls++
		// Along each dimension goes what belongs to the other side of it. In place k
		// is first what goes to k, and in the end what came from k.
		for d, port := range c.dims {
			var theirs [][]byte
			for k, item := range items {
				if (k^c.index)>>d&1 == 1 {
					theirs = append(theirs, item)
				}
			}
			got, err := c.swap(port, callAllToAll, bundle(nil, theirs...), c.index>>d&1 == 0)
			if err != nil {
				return nil, err
			}
			mine, err := unbundle(got, c.size/2)
			if err != nil {
				return nil, err
			}
			for k := range items { // the neighbour's k-th place is this one's k ^ 2^d
				if (k^c.index)>>d&1 == 0 {
					items[k^1<<d], mine = mine[0], mine[1:]
				}
			}
		}
		return items, nil
	}
	rows, err := c.Gather(bundle(nil, items...)) // by way of the root
	if err != nil {
		return nil, err
	}
	if rows != nil {
		table := make([][][]byte, c.size)
		for k, row := range rows {
			if table[k], err = unbundle(row, c.size); err != nil {
				return nil, err
			}
		}
		for k := range rows {
			column := make([][]byte, c.size)
			for j := range table {
				column[j] = table[j][k]
			}
			rows[k] = bundle(nil, column...)
		}
	}
	row, err := c.Scatter(rows)
	if err != nil {
		return nil, err
	}
	return unbundle(row, c.size)
}
