package mvm

import (
	"time"

	"mvm/queuevm"
)

// quietTick is how often to look for quiet. It is told when two looks in a row
// find the same one, so that a busy job, which waits a thousand times a second,
// costs the broker nothing.
const quietTick = 500 * time.Millisecond

// watchQuiet tells of each quiet period once, until the attempt is over.
func (p *process) watchQuiet() {
	ticker := time.NewTicker(quietTick)
	defer ticker.Stop()
	var last, told uint64
	for {
		select {
		case <-ticker.C:
		case <-p.life.Done():
			return
		}
		q := p.quiet()
		if q.Quiet && q.Period == last && q.Period != told {
			told = q.Period
			p.tell(Event{Quiet: q.Period})
		}
		last = 0
		if q.Quiet {
			last = q.Period
		}
	}
}

// quiet is the queue-level VM's, and no quiet before every program was started.
func (p *process) quiet() queuevm.Quiet {
	p.mu.Lock()
	settled := p.spawned && p.ending == ""
	p.mu.Unlock()
	if !settled {
		return queuevm.Quiet{}
	}
	return p.vm.Quiet()
}
