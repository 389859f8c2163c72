package node

import (
	"sync"
	"testing"
	"time"
)

// handClock is moved by hand.
type handClock struct {
	mu  sync.Mutex // guards what follows
	now time.Duration
	all []*handAlarm
}

type handAlarm struct {
	clock *handClock
	at    time.Duration // 0 = silent
	rings chan struct{}
}

func (c *handClock) Now() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *handClock) Alarm() (Alarm, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := &handAlarm{clock: c, rings: make(chan struct{}, 1)}
	c.all = append(c.all, a)
	return a, nil
}

func (c *handClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now += d
	for _, a := range c.all {
		if a.at > 0 && a.at <= c.now {
			select {
			case a.rings <- struct{}{}:
			default:
			}
		}
	}
}

func (a *handAlarm) Set(at time.Duration, ok bool) {
	a.clock.mu.Lock()
	defer a.clock.mu.Unlock()
	if a.at = 0; ok {
		a.at = max(at, 1)
	}
}

func (a *handAlarm) Rings() <-chan struct{} { return a.rings }
func (a *handAlarm) Close()                 {}

// A machine that was suspended for longer than its lease has lost what it had,
// although no timer of its own has run meanwhile.
func TestASuspendedMachine(t *testing.T) {
	g := newGrid(t)
	clock := &handClock{now: time.Hour}
	p := quickParts()
	p.clock = clock
	m := g.with(t.TempDir(), p, nil)
	mark := "asleep-" + random(6)
	m.run("j", "sh -c 'sleep 1000; : "+mark+"'")
	eventually(t, "the program runs", func() bool { return len(pids(t, mark)) > 0 })
	g.set(func() { g.down = true })
	clock.advance(g.lease - 1)
	time.Sleep(50 * time.Millisecond)
	if len(pids(t, mark)) == 0 {
		t.Error("it was ended within its lease")
	}
	clock.advance(2)
	eventually(t, "it is ended", func() bool { return len(pids(t, mark)) == 0 && !m.started("j") })
	m.clean()
}

func TestBootAlarm(t *testing.T) {
	var clock bootClock
	a, err := clock.Alarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	began := clock.Now()
	a.Set(began+time.Hour, true)
	a.Set(began+30*time.Millisecond, true)
	select {
	case <-a.Rings():
		if took := clock.Now() - began; took < 30*time.Millisecond {
			t.Errorf("it rang after %v, not 30 ms", took)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it does not ring")
	}
	a.Set(clock.Now()-time.Second, true)
	select {
	case <-a.Rings():
	case <-time.After(10 * time.Second):
		t.Fatal("an instant in the past does not ring")
	}
	a.Set(clock.Now()+20*time.Millisecond, true)
	a.Set(0, false)
	select {
	case <-a.Rings():
		t.Error("a silenced alarm rang")
	case <-time.After(100 * time.Millisecond):
	}
}
