package queuevm

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Link is the network that a served queue's home imposes between each producer
// and the queue. An item is sent when the one before it was, at Bandwidth; it
// arrives Latency after its last byte was sent, and is offered to the queue
// then. Many items are on their way at once, and they arrive in the order in
// which they were sent. The zero value imposes nothing.
type Link struct {
	Latency   time.Duration
	Jitter    time.Duration // latency is uniform between Latency-Jitter, 0 at least, and Latency+Jitter
	Bandwidth float64       // bits a second, of the items' bytes alone; 0 is no bound
	Loss      float64       // the share of items that are sent and never arrive, 0 to 1; END always does
	Seed      uint64        // of what is lost and how much jitter each has: the same again for the same items
}

// Bounds of a link. What may be on its way at once is bounded too, by lineBytes.
const (
	LatencyMax   = time.Hour
	BandwidthMax = 1e15 // bits a second
)

func (l Link) check() error {
	switch {
	case l.Latency < 0 || l.Latency > LatencyMax || l.Jitter < 0 || l.Jitter > LatencyMax:
		return fmt.Errorf("a latency of %v with a jitter of %v: each must lie between 0 and %v", l.Latency, l.Jitter, LatencyMax)
	case !(l.Bandwidth >= 0 && l.Bandwidth <= BandwidthMax) || l.Bandwidth > 0 && l.Bandwidth < 1:
		return fmt.Errorf("a bandwidth of %v bits a second is not 0, for no bound, or between 1 and %v", l.Bandwidth, BandwidthMax)
	case !(l.Loss >= 0 && l.Loss <= 1):
		return fmt.Errorf("a loss of %v is not a share between 0 and 1", l.Loss)
	}
	return nil
}

const (
	lineLead  = 20 * time.Millisecond // of sending is taken from a producer in advance, so that a busy machine does not slow the link
	lineBytes = 256 << 20             // on their way at once, at most
	never     = time.Duration(math.MaxInt64)

	latenessMax = 100 * time.Microsecond // that is allowed for: on a busy machine all is late
	tolerance   = 30                     // the part of a latency that each wake-up may be allowed for, so that no item lands sooner than nine tenths
)

// line is the link between one producer and its queue. Guarded by VM.mu, and
// moved by the loop alone. Times are since VM.began.
type line struct {
	Link
	random  *rand.Rand
	flights []flight // by due
	first   int      // of those that have not arrived
	bytes   uint64   // of them
	sent    time.Duration
	last    time.Duration // due of the last
	behind  uint64        // ring offset up to which records waited for their turn to be sent
	full    bool          // nothing is taken from the producer
}

// flight is an item on its way, or the producer's end.
type flight struct {
	item
	due  time.Duration
	lost bool
	end  bool
	how  uint32 // the producer's state at its end
}

// SetLink changes what a served queue's home imposes, from the next item on.
// What is on its way arrives when it was to arrive before, and before all that
// follows. Nodes that are not its home take note of it.
func (vm *VM) SetLink(queue int, l Link) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	q := vm.queues[queue]
	if q == nil {
		return fmt.Errorf("queue %d: %w", queue, ErrUnknown)
	}
	if err := l.check(); err != nil {
		return fmt.Errorf("queue %d (%s): %w", q.ID, q.Name, err)
	}
	q.setLink(vm, l)
	ring1(vm.bell)
	return nil
}

func (q *queue) setLink(vm *VM, l Link) {
	q.Link = l
	for k, f := range q.fronts {
		f.impose(l, k)
		vm.heat(f.channel)
	}
}

// impose gives the k-th producer of a queue its link.
func (f *front) impose(l Link, k int) {
	if f.line == nil {
		if l == (Link{}) {
			return
		}
		f.line = &line{}
	}
	if f.line.random == nil || f.line.Seed != l.Seed {
		f.line.random = rand.New(rand.NewPCG(l.Seed, uint64(k)))
	}
	f.line.Link = l
}

// now is the loop's clock.
func (vm *VM) now() time.Duration { return time.Since(vm.began) }

// busy says that the line holds something, or that items pass one by one.
func (l *line) busy() bool {
	return l != nil && (l.Link != (Link{Seed: l.Seed}) || l.first < len(l.flights))
}

// takes says whether the line takes another item now.
func (l *line) takes(now time.Duration) bool {
	lead := lineLead
	if l.full {
		lead /= 2 // so that not every item costs a wake-up
	}
	l.full = l.first < len(l.flights) && (l.sent-now > lead || l.bytes >= lineBytes)
	return !l.full
}

// send puts an item on its way. from is where it stood in the ring.
func (l *line) send(now time.Duration, from uint64, it item) {
	start := l.sent
	if from >= l.behind { // it did not wait for its turn
		start = max(start, now)
	}
	l.sent = start
	if l.Bandwidth > 0 {
		l.sent += time.Duration(float64(len(it.data)) * 8e9 / l.Bandwidth)
	}
	l.put(flight{item: it, due: l.sent + l.delay(), lost: l.Loss > 0 && l.random.Float64() < l.Loss})
}

// finish puts the producer's end on its way.
func (l *line) finish(now time.Duration, state uint32) {
	l.put(flight{due: max(l.sent, now) + l.delay(), end: true, how: state})
}

func (l *line) delay() time.Duration {
	d := l.Latency
	if l.Jitter > 0 {
		d += time.Duration((2*l.random.Float64() - 1) * float64(l.Jitter))
	}
	return max(d, 0)
}

func (l *line) put(f flight) {
	f.due = max(f.due, l.last)
	l.last = f.due
	l.bytes += f.size()
	l.flights = append(l.flights, f)
}

// pop takes what arrives next off the line.
func (l *line) pop() flight {
	f := l.flights[l.first]
	l.flights[l.first] = flight{} // so that its bytes can go
	l.first++
	if l.first == len(l.flights) {
		l.flights, l.first = l.flights[:0], 0
	} else if l.first >= 1024 && 2*l.first >= len(l.flights) {
		n := copy(l.flights, l.flights[l.first:])
		clear(l.flights[n:])
		l.flights, l.first = l.flights[:n], 0
	}
	l.bytes -= f.size()
	return f
}

func (l *line) clear() {
	if l != nil {
		l.flights, l.first, l.bytes, l.full = nil, 0, 0, false
	}
}

// pass has whole items go on: over the link, or at once.
func (f *front) pass(vm *VM, from uint64, items ...item) {
	if !f.line.busy() {
		f.entering = append(f.entering, items...)
		f.offer(vm)
		return
	}
	now := vm.now()
	if vm.woken { // it came when the loop was woken
		now -= min(vm.lateness, f.line.Latency/tolerance)
	}
	for _, it := range items {
		f.line.send(now, from, it)
	}
	f.land(vm)
}

// finished says that the producer brings nothing more; what is on its way still
// arrives before its end.
func (f *front) finished(vm *VM, state uint32) {
	f.ended = true
	f.part.reset()
	if !f.line.busy() {
		f.finish(vm, state)
		return
	}
	f.line.finish(vm.now(), state)
	f.land(vm)
}

// land has what is due enter the queue; true when there was some.
func (f *front) land(vm *VM) bool {
	l := f.line
	if l == nil || l.first == len(l.flights) {
		return false
	}
	landed := false
	now := vm.now() + f.early(vm)
	for ; l.first < len(l.flights) && len(f.entering) == 0 && l.flights[l.first].due <= now; landed = true {
		switch it := l.pop(); {
		case it.end:
			f.finish(vm, it.how)
		case it.lost:
			f.queue.lost++
			if !it.firm {
				f.decide(vm, false)
			}
		default:
			f.entering = append(f.entering, it.item)
			f.offer(vm)
		}
	}
	vm.await(f)
	return landed
}

// hold notes what waits in the ring while the line takes nothing: it is sent as
// soon as the line is free, however late the loop looks.
func (f *front) hold(vm *VM) {
	if n, err := f.ready(); err == nil {
		f.line.behind = f.head + n
	}
	vm.await(f)
}

// early is how much sooner than its time an item lands, because of the
// wake-ups that it costs until its taker has it: they take some 50 us each, and
// latencies of a millisecond are to be within a tenth.
func (f *front) early(vm *VM) time.Duration {
	wakes := time.Duration(1)
	if f.channel.in != nil {
		wakes++ // of the producer's node
	}
	if q := f.queue; len(q.waiting) > 0 {
		if b := q.waiting[0]; b.guest != nil {
			// it is woken by a Go channel
		} else if b.channel.out != nil {
			wakes += 2 // of the taker's node, and its own
		} else if atomic.LoadUint32(&b.header.consumerWaits) != awake {
			wakes++
		}
	}
	return min(wakes*vm.lateness, 2*f.line.Latency/tolerance)
}

// late learns how late the loop is when its clock wakes it: the median, by steps
// towards each.
func (vm *VM) late(by time.Duration) {
	const step = time.Microsecond
	if by > vm.lateness {
		vm.lateness = min(vm.lateness+step, latenessMax)
	} else {
		vm.lateness = max(vm.lateness-step, 0)
	}
}

// wakes is when the link gives the loop work, if nothing else does.
func (f *front) wakes(vm *VM) time.Duration {
	l, at := f.line, never
	if l.first < len(l.flights) && len(f.entering) == 0 { // else the queue has no room
		at = l.flights[l.first].due - f.early(vm)
	}
	if l.full && l.bytes < lineBytes && !f.ended && !f.pending {
		at = min(at, l.sent-lineLead/2)
	}
	return at
}

// await has the loop look after a link in time.
func (vm *VM) await(f *front) {
	at := f.wakes(vm)
	if at == never {
		return
	}
	if !f.waits {
		f.waits = true
		vm.flying = append(vm.flying, f)
	}
	vm.due = min(vm.due, at)
}

// tick heats the links that have something to do now, and has peers whose frames
// are late be heard.
func (vm *VM) tick() {
	now := vm.now()
	if now < vm.due {
		return
	}
	vm.due = never
	kept := vm.flying[:0]
	for _, f := range vm.flying {
		at := f.wakes(vm)
		if at <= now {
			vm.heat(f.channel) // its step has it wait again
			f.waits = false
			continue
		}
		if f.waits = at != never; f.waits {
			kept = append(kept, f)
			vm.due = min(vm.due, at)
		}
	}
	clear(vm.flying[len(kept):])
	vm.flying = kept
	for _, p := range vm.links {
		p.hurry(now)
	}
}

// clock is a timer that ends the loop's sleep to the microsecond, as the
// milliseconds of epoll_wait cannot.
type clock struct {
	fd    int
	armed time.Duration // since VM.began; never when it is not
	fired time.Duration // when it was to, if the loop has not seen it yet; else never
}

func (c *clock) event(uint32) {
	var count [8]byte
	_, _ = unix.Read(c.fd, count[:])
	c.fired = c.armed
	c.armed = never
}

// alarm sets the clock to when the links are due; false when they are.
func (vm *VM) alarm() bool {
	if vm.due == never {
		return true // one set in vain does no harm
	}
	wait := vm.due - vm.now()
	if wait <= 0 {
		return false
	}
	if vm.clock.armed == vm.due {
		return true
	}
	if vm.clock.fd < 0 {
		fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
		if err == nil {
			if err = vm.watch(fd, unix.EPOLLIN, &vm.clock); err != nil {
				_ = unix.Close(fd)
			}
		}
		if err != nil {
			vm.logf("links are imposed without a timer, by looking all the time: %v", err)
			return false
		}
		vm.clock.fd = fd
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(wait))}
	if unix.TimerfdSettime(vm.clock.fd, 0, &spec, nil) != nil {
		return false
	}
	vm.clock.armed = vm.due
	return true
}
