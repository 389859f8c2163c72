package soap

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// crew carries conversations on: a few goroutines, one less than may run at once,
// that each wait for one connection on which something came, answer it, and put
// it back.
//
// Go's own poller would hand all connections that are ready to one of its few
// threads. When the kernel then takes that thread off its core, for another of
// the same program and until the next tick of 4 ms, all of them wait with the one
// that is being answered: measured with perf on two cores, some 250 times a
// second, which made p99 four times that of a thread a connection. Whoever takes
// one connection at a time holds up no other; and with one core left to others,
// callers on the same machine among them, it happens seldom: on two cores p99 is
// 1.8 ms with one and 3.1 with two, at a fifth fewer calls a second. A connection
// that rests costs no goroutine.
//
// A call may take long, and nobody knows before. One that asks whether its
// caller is still there, or during which a look-out passed twice, no longer
// counts: another takes its place, and it leaves afterwards.
type crew struct {
	epoll int // of level-triggered one-shot descriptors
	bell  int // closed when all are to go home
	heard int // its other end
	hands int // that there are for what comes
	begun time.Time

	looked atomic.Bool // somebody is on the look-out

	all  sync.Map     // number -> *conversation, of those that are not over
	last atomic.Int64 // number given to a conversation
	home atomic.Bool  // all are to go; changed with mu held

	mu      sync.Mutex         // guards what follows; not on the way of a call
	members map[*member]uint64 // with their turns when they were last looked at
	here    int                // members that count
	sweeps  bool               // somebody closes connections that rest for too long
}

// member is one goroutine of a crew.
type member struct {
	crew  *crew
	turns atomic.Uint64 // odd while it carries a conversation on
	away  atomic.Bool   // it no longer counts
}

// lookout is how often is seen who is held up.
const lookout = 2 * time.Millisecond

func newCrew() (*crew, error) {
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create1: %w", err)
	}
	var bell [2]int
	if err := syscall.Pipe2(bell[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		_ = syscall.Close(epoll)
		return nil, fmt.Errorf("pipe2: %w", err)
	}
	w := &crew{epoll: epoll, bell: bell[1], heard: bell[0], hands: max(1, runtime.GOMAXPROCS(0)-1), begun: time.Now(), members: map[*member]uint64{}}
	event := syscall.EpollEvent{Events: syscall.EPOLLIN}
	if err := syscall.EpollCtl(epoll, syscall.EPOLL_CTL_ADD, bell[0], &event); err != nil {
		return nil, fmt.Errorf("epoll_ctl: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fill()
	return w, nil
}

// fill brings the crew to its number. The caller holds mu.
func (w *crew) fill() {
	for !w.home.Load() && w.here < w.hands {
		m := &member{crew: w}
		w.members[m] = 0
		w.here++
		go m.work()
	}
}

// work carries conversations on until the crew has others for that.
func (m *member) work() {
	w := m.crew
	defer w.leave(m)
	buffer, registrar := make([]byte, firstRead), newRegistrar(w.epoll)
	var events [1]syscall.EpollEvent
	for {
		n, err := syscall.EpollWait(w.epoll, events[:], -1)
		if n < 1 {
			if err == nil || err == syscall.EINTR {
				continue
			}
			return
		}
		number := int64(uint32(events[0].Fd)) | int64(events[0].Pad)<<32
		if number == 0 {
			return // that was the bell
		}
		c := w.claim(number)
		if c == nil {
			continue
		}
		m.turns.Add(1)
		w.look()
		c.goOn(m, buffer, registrar)
		m.turns.Add(1)
		if m.away.Load() && !w.back(m) {
			return
		}
	}
}

// leave is a member's last word; the last one turns the light off.
func (w *crew) leave(m *member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.members, m)
	if !m.away.Load() {
		w.here--
	}
	if w.home.Load() && len(w.members) == 0 {
		_ = syscall.Close(w.epoll)
		_ = syscall.Close(w.heard)
	}
}

// without has another take the place of one who may be held up.
func (w *crew) without(m *member) {
	if m.away.CompareAndSwap(false, true) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.here--
		w.fill()
	}
}

// back says whether one who was held up is needed again.
func (w *crew) back(m *member) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.home.Load() || w.here >= w.hands {
		return false
	}
	w.here++
	m.away.Store(false)
	return true
}

// look sees to it that somebody is on the look-out.
func (w *crew) look() {
	if !w.looked.Load() && w.looked.CompareAndSwap(false, true) {
		go w.watch()
	}
}

// watch looks who is held up, for as long as there are calls.
func (w *crew) watch() {
	for {
		time.Sleep(lookout)
		if w.glance() {
			continue
		}
		w.looked.Store(false)
		// Who began between the two saw a look-out.
		if !w.glance() || !w.looked.CompareAndSwap(false, true) {
			return
		}
	}
}

// glance has those replaced who did not get on since the last one, and says
// whether there may be more of them the next time.
func (w *crew) glance() (busy bool) {
	w.mu.Lock()
	var held []*member
	for m, before := range w.members {
		switch turns := m.turns.Load(); {
		case turns != before:
			w.members[m] = turns
			busy = true
		case turns%2 == 1 && !m.away.Load():
			held = append(held, m)
			busy = true
		}
	}
	w.mu.Unlock()
	for _, m := range held {
		w.without(m)
	}
	return busy
}

// meet begins a conversation, which rests until something comes. False: it
// cannot be.
func (w *crew) meet(c *conversation) bool {
	c.number = w.last.Add(1)
	c.connection.left = func() { w.all.Delete(c.number) }
	w.all.Store(c.number, c)
	w.mu.Lock()
	if !w.sweeps {
		w.sweeps = true
		go w.sweep()
	}
	w.mu.Unlock()
	return w.rest(c, newRegistrar(w.epoll), syscall.EPOLL_CTL_ADD)
}

// rest puts a conversation back until more comes, or c.restBy. From then on it
// is somebody else's.
func (w *crew) rest(c *conversation, r *registrar, how int) bool {
	raw, number := c.raw, c.number
	c.resting.Store(true)
	if !r.register(raw, number, how) || w.home.Load() {
		return !c.resting.CompareAndSwap(true, false)
	}
	return true
}

// again puts back a conversation that was taken for nothing.
func (w *crew) again(c *conversation) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.home.Load() && w.rest(c, newRegistrar(w.epoll), syscall.EPOLL_CTL_MOD) // else the descriptor may be gone
}

// since is a moment as restBy has it, on a clock that nobody sets.
func (w *crew) since(t time.Time) int64 { return int64(t.Sub(w.begun)) }

// claim takes a conversation on which something came; nil when it is gone.
func (w *crew) claim(number int64) *conversation {
	if c, ok := w.all.Load(number); ok && c.(*conversation).resting.CompareAndSwap(true, false) {
		return c.(*conversation)
	}
	return nil
}

// release is called when a conversation's connection goes elsewhere.
func (w *crew) release(c *conversation) {
	w.all.Delete(c.number)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.home.Load() { // else the descriptor may be gone
		newRegistrar(w.epoll).register(c.raw, c.number, syscall.EPOLL_CTL_DEL)
	}
}

// registrar tells the kernel to wait for more. Each member has one, for what it
// is given is made once.
type registrar struct {
	tell   func(fd uintptr)
	number int64
	how    int
	err    error
}

func newRegistrar(epoll int) *registrar {
	r := new(registrar)
	r.tell = func(fd uintptr) {
		event := syscall.EpollEvent{Events: syscall.EPOLLIN | syscall.EPOLLRDHUP | syscall.EPOLLONESHOT, Fd: int32(r.number), Pad: int32(r.number >> 32)}
		r.err = syscall.EpollCtl(epoll, r.how, int(fd), &event)
	}
	return r
}

func (r *registrar) register(raw syscall.RawConn, number int64, how int) bool {
	r.number, r.how = number, how
	return raw.Control(r.tell) == nil && r.err == nil
}

// sweep ends conversations that rest for too long.
func (w *crew) sweep() {
	const most, least = time.Second, 20 * time.Millisecond
	for {
		now := time.Now()
		next := now.Add(most)
		none := true
		w.mu.Lock()
		w.all.Range(func(_, each any) bool {
			none = false
			c := each.(*conversation)
			if by := w.begun.Add(time.Duration(c.restBy.Load())); by.After(now) {
				if by.Before(next) {
					next = by
				}
			} else if c.resting.CompareAndSwap(true, false) {
				go c.tired()
			}
			return true
		})
		if none || w.home.Load() {
			w.sweeps = false
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
		time.Sleep(max(next.Sub(now), least))
	}
}

// dismiss ends the conversations that rest, and the crew: who is at work
// finishes that.
func (w *crew) dismiss() {
	w.mu.Lock()
	was := w.home.Swap(true)
	w.mu.Unlock()
	if was {
		return
	}
	w.all.Range(func(_, each any) bool {
		if c := each.(*conversation); c.resting.CompareAndSwap(true, false) {
			c.end()
		}
		return true
	})
	_ = syscall.Close(w.bell)
}

// cut closes what is left.
func (w *crew) cut() {
	w.all.Range(func(_, each any) bool {
		_ = each.(*conversation).conn.Close()
		return true
	})
}
