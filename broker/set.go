package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/broker/place"
	"mvm/broker/profile"
	"mvm/services/store"
	"mvm/wsdl"
)

// A set is a checkpoint of a whole job in OS-level VMs: one state of each member's
// VM, all of one consistent cut. Every VM stands still from when its state is taken
// until all have been taken, so nothing that one has received was not yet sent by
// another; what was on its way is sent again, since a ring's head moves only by its
// peer's acknowledgement (LAYOUT.md). Sets are journalled only when they are
// complete; the newest is kept, and an attempt that follows a lost node goes on
// from it.
type set struct {
	Attempt int
	Number  int64 // in the attempt
	Made    time.Time
	Used    time.Duration `json:",omitempty"` // of the wall time, up to then
	Members []setMember
	Blobs   []string `json:"-"` // all that a restore needs
	Pins    string   // under which they are kept, together and for this set alone
}

// setMember is one VM of a set.
type setMember struct {
	Node      string // that it was on
	Part      int    `json:",omitempty"`
	Processes []int
	Record    string // digest of what the node made of it
	Address   string // where the others believe its proxy to be
}

// setTimer is when the next set is due.
const setTimer timer = "set"

// nextSet is when the next set is due, nil for never.
func (l *life) nextSet() []action {
	if l.Every == 0 {
		return nil
	}
	return []action{wait{Timer: setTimer, For: l.Every}}
}

// snapshot begins a set, unless something is under way that it would tear.
func (l *life) snapshot() []action {
	if l.Phase != wsdl.JobStateRunning {
		return nil
	}
	for i := range l.Processes {
		if l.Processes[i].State == wsdl.ProcessStateWaiting {
			return l.nextSet() // not all have heard of Instantiate
		}
	}
	l.Sets++
	return []action{snapshot{Number: l.Sets}}
}

// saved takes a set, or why there is none: then the older one stays.
func (l *life) saved(e saved) []action {
	if l.Phase != wsdl.JobStateRunning || e.Number != l.Sets {
		return nil
	}
	if e.Set == nil {
		return l.nextSet()
	}
	l.changes++
	l.Set, l.Losses = e.Set, 0
	l.Set.Used = max(0, l.Used+l.Set.Made.Sub(l.Begun))
	return append([]action{commit{Set: true}}, l.nextSet()...)
}

// restores gives each member what it goes on from. A plan for a set has its
// members; any other begins the job anew.
func (l *life) restores() {
	if l.Set == nil || len(l.Set.Members) != len(l.Members) {
		return
	}
	of := make([]*setMember, len(l.Members))
	for i := range l.Members {
		k := slices.IndexFunc(l.Set.Members, func(m setMember) bool { return slices.Equal(m.Processes, l.Members[i].Processes) })
		if k < 0 {
			return
		}
		of[i] = &l.Set.Members[k]
	}
	for i, m := range of {
		l.Members[i].Restore, l.Members[i].Former = m.Record, m.Address
	}
}

// gone decides what the loss of a node, or of a VM there, leads to: a job with a set
// goes on from it, and that costs no retry. Not for ever, though: what runs in it, or
// the restore itself, may be what ends them, and would again.
func (l *life) gone(now time.Time, cause string) []action {
	if l.Set == nil {
		return l.failed(now, cause)
	}
	if l.Losses++; l.Losses > mostFromSet {
		return l.failed(now, cause)
	}
	return l.decide(now, retry, cause+"; the job goes on from its checkpoint of "+l.Set.Made.UTC().Format(time.RFC3339))
}

// unawakened is gone for a loss before all members were awake: an attempt that goes
// on from a set may have been lost by that, and another never ran.
func (l *life) unawakened(now time.Time, i int, cause string) []action {
	if l.Members[i].Restore != "" {
		if l.Losses++; l.Losses > mostFromSet {
			return l.failed(now, cause)
		}
	}
	return l.decide(now, requeue, cause)
}

// mostFromSet is how often a job may lose a node or a VM and go on from one set, until
// that is a failed attempt.
const mostFromSet = 3

// spoilt is a member's refusal of what it is to go on from: the job begins anew.
func (l *life) spoilt(now time.Time, cause string) []action {
	l.changes++
	l.Set = nil
	return append([]action{commit{Set: true}}, l.decide(now, requeue, cause+"; the job begins anew")...)
}

const setsPrefix = "broker/sets/"

// callSnapshot has all members take their state, and once all have, save it. A
// node that hears nothing more goes on by itself.
func (j *job) callSnapshot(number int, of int64) {
	b, ctx, y := j.broker, j.calls, j.layout
	if y == nil || ctx == nil {
		return // the attempt is over already
	}
	b.spawn(func() {
		made, err := b.snapshot(ctx, y, j.id, number, of)
		if ctx.Err() != nil {
			return
		}
		e := saved{Attempt: number, Number: of, Set: made}
		line := b.log.WithFields(map[string]any{"job": j.id, "attempt": number, "set": of})
		if err != nil {
			line.WithError(err).Warn("a checkpoint of the job could not be made; the one before stays")
		} else {
			made.Pins = setPins + j.id + "/" + strconv.FormatUint(rand.Uint64(), 36)
			if err := b.images.Pin(made.Pins, made.Blobs...); err != nil {
				line.WithError(err).Warn("a checkpoint of the job could not be kept; the one before stays")
				e.Set = nil
			} else {
				coming := made.Pins
				j.mu.Lock()
				if j.life.Attempt == number && !final(j.life.Phase) { // else it is dropped, as is what an older attempt's was
					coming, j.coming = j.coming, coming
				}
				j.mu.Unlock()
				j.unpin(coming)
				line.WithField("blobs", len(made.Blobs)).Info("checkpoint of the job is made")
			}
		}
		j.post(e, nil)
	})
}

// snapshot makes a set.
func (b *Service) snapshot(ctx context.Context, y *layout, id string, number int, of int64) (*set, error) {
	made := &set{Attempt: number, Number: of, Made: b.clock.Now(), Members: make([]setMember, len(y.members))}
	// A broker started anew counts from 1 again: what an earlier life asked for must not
	// be taken for this.
	token := 1 + rand.Int64N(math.MaxInt64)
	var mu sync.Mutex // guards made.Blobs
	each := func(step wsdl.CheckpointStep, timeout time.Duration) error {
		failed := make([]error, len(y.members))
		var all sync.WaitGroup
		for i := range y.members {
			all.Go(func() {
				m := &y.members[i]
				b.pass("before " + string(step))
				try, cancel := context.WithTimeout(ctx, timeout)
				defer cancel()
				answer, err := b.queueOf(m).CheckpointAttemptContext(try, &wsdl.CheckpointAttempt{Attempt: y.fence(id, number, i), Set: token, Step: &step})
				b.pass("after " + string(step))
				switch {
				case err != nil:
					failed[i] = fmt.Errorf("node %s, asked to %s: %w", m.label(), step, err)
				case step == wsdl.CheckpointStepSave && answer.Record == "":
					failed[i] = fmt.Errorf("node %s saved nothing", m.label())
				case step == wsdl.CheckpointStepSave:
					made.Members[i] = setMember{Node: m.Node, Part: m.Part, Processes: m.Processes, Record: answer.Record, Address: answer.Address}
					mu.Lock()
					defer mu.Unlock()
					made.Blobs = append(append(made.Blobs, answer.Record), answer.Blob...)
				}
			})
		}
		all.Wait()
		return errors.Join(failed...)
	}
	err := each(wsdl.CheckpointStepTake, b.config.InstantiateTimeout)
	if err == nil {
		err = each(wsdl.CheckpointStepSave, saveTimeout)
	}
	if err != nil {
		if ctx.Err() == nil {
			_ = each(wsdl.CheckpointStepDrop, b.config.InstantiateTimeout) // who does not hear it goes on by itself
		}
		return nil, err
	}
	slices.Sort(made.Blobs)
	made.Blobs = slices.Compact(made.Blobs)
	return made, nil
}

// restoreSet brings back the newest checkpoint that the journal has.
func (b *Service) restoreSet(ctx context.Context, j *job) error {
	if j.life.Every == 0 {
		return nil
	}
	value, _, err := b.journal.Get(ctx, setsPrefix+j.id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	s := new(set)
	if err := b.unpack(value, s); err != nil {
		return err
	}
	j.life.Set, j.sets = s, s.Pins
	return nil
}

// keepSet lets go of the checkpoint before the one that the journal has now.
func (j *job) keepSet() {
	old := j.sets
	j.mu.Lock()
	j.sets, j.coming = j.coming, ""
	none := j.life.Set == nil || final(j.life.Phase)
	j.mu.Unlock()
	if none {
		j.unpin(j.sets)
		j.sets = ""
	}
	j.unpin(old)
}

// unpin lets go of a set's blobs; of none with "".
func (j *job) unpin(owner string) {
	if owner == "" {
		return
	}
	if err := j.broker.images.Unpin(owner); err != nil {
		j.broker.log.WithError(err).WithField("job", j.id).Warn("a checkpoint that is no longer needed stays until the broker starts anew")
	}
}

// sweepSets unpins what is of no set that the journal has: a crash came before its
// record, or after that of the next.
func (b *Service) sweepSets(jobs []*job) error {
	needed := map[string]bool{}
	for _, j := range jobs {
		needed[j.sets] = true
	}
	for _, owner := range b.images.Owners() {
		if strings.HasPrefix(owner, setPins) && !needed[owner] {
			if err := b.images.Unpin(owner); err != nil {
				return fmt.Errorf("broker: %w", err)
			}
		}
	}
	return nil
}

// setPins begins the names under which sets are pinned: the job's id and something
// random follow.
const setPins = "broker-set/"

// redial is for how long the links of a job that goes on from its sets may stay
// down: well beyond the time in which the loss of a node at their other end is
// known here, because a link that is given up before fails the job.
func (c *Config) redial() time.Duration { return 6 * (c.Lease + c.Grace + c.Drift) }

// saveTimeout is what a node may take to store a VM's state.
const saveTimeout = 5 * time.Minute

// newestSet is what the job's next attempt goes on from, nil where it begins anew.
func (j *job) newestSet() *set {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.life.Set
}

// fitSet plans a job's set onto nodes: each of its VMs where it was, where that can be.
func fitSet(j *profile.Job, s *set, nodes []place.Node) ([]int, string, bool) {
	var groups []place.Group
	for _, m := range s.Members {
		groups = append(groups, place.Group{Processes: m.Processes, Prefer: m.Node})
	}
	plan, ok := place.Groups(j, groups, nodes)
	if !ok {
		plan.Reason = "its checkpoint has " + plural(len(groups), "VM") + ": " + plan.Reason
	}
	return plan.Node, plan.Reason, ok
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
