package soap

import (
	"fmt"
	"sync"
	"time"
)

// graces is how many of Limits.Grace a sender may stall when nobody waits for
// what it holds.
const graces = 5

// pace cuts a request off that does not go on arriving. How fast it must be
// depends on whether it is in the way: a slow link is served while there is
// room, and not at the cost of those who wait for the memory that it holds.
type pace struct {
	limits Limits
	memory *memory
	cut    func() // ends the read that is under way

	mu      sync.Mutex // guards what follows
	timer   *time.Timer
	arrived int64
	marks   [graces]int64 // what had arrived by the last ticks, the latest last
	held    bool          // it waits for memory: that is not the sender's time
	why     string        // it was cut off
	stopped bool
}

// newPace watches a request of which so many bytes have arrived.
func (s *Server) newPace(x *exchange, arrived int64) *pace {
	p := &pace{limits: s.limits, memory: s.memory, arrived: arrived}
	p.cut = func() { _ = x.out.control.SetReadDeadline(time.Unix(1, 0)) } // a recorder in a test has none
	p.mu.Lock()
	defer p.mu.Unlock()
	p.restart()
	p.timer = time.AfterFunc(s.limits.Grace, p.tick)
	return p
}

// restart counts anew from here: nothing is due before all graces are over. The
// caller holds mu.
func (p *pace) restart() {
	for i := range p.marks {
		p.marks[i] = p.arrived - p.due(p.limits.Slow, graces)
	}
	p.marks[graces-1] = p.arrived
}

// due is how much arrives in so many graces at a rate.
func (p *pace) due(rate int64, graces int) int64 {
	return int64(float64(rate) * p.limits.Grace.Seconds() * float64(graces))
}

func (p *pace) tick() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	if !p.held {
		switch {
		case p.arrived-p.marks[0] < p.due(p.limits.Slow, graces):
			p.why = stalled(p.limits)
		case p.arrived-p.marks[graces-1] < p.due(p.limits.Rate, 1) && p.memory.wanted():
			p.why = fmt.Sprintf("others wait for the memory that this request holds: it must then arrive at %d bytes a second, and did not for %s; send it again later",
				p.limits.Rate, p.limits.Grace)
		}
		if p.why != "" {
			p.cut()
			return
		}
		copy(p.marks[:], p.marks[1:])
		p.marks[graces-1] = p.arrived
	}
	p.timer.Reset(p.limits.Grace)
}

func stalled(l Limits) string {
	return fmt.Sprintf("a request must arrive at %d bytes a second; this one did not for %s", l.Slow, graces*l.Grace)
}

// got counts bytes that arrived.
func (p *pace) got(n int) {
	p.mu.Lock()
	p.arrived += int64(n)
	p.mu.Unlock()
}

// hold stops the clock, or lets it run again.
func (p *pace) hold(held bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.held = held; !held {
		p.restart()
	}
}

// stop ends the watch and says why the request was cut off, if it was.
func (p *pace) stop() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stopped = true
	p.timer.Stop()
	return p.why
}
