package broker

import (
	"maps"
	"slices"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// change is a live operation on an attempt's queues, as the journal has it: with
// all that is needed to make it again from any point on. Its number, from 1 in
// each attempt, makes it idempotent at the nodes.
type change struct {
	Number int64
	What   string // in words
	Queue  string // what it changed or made, as every operation takes it
	State  wsdl.ChangeState
	Token  string   `json:",omitempty"` // of who asked for it, who may ask again
	Reason string   `json:",omitempty"` // what it waits for, or why it failed
	About  []string `json:",omitempty"` // edges and queues that take no other change meanwhile

	Queues   []profile.Queue   `json:",omitempty"` // made
	Sources  []profile.Source  `json:",omitempty"` // of the registered logic that is new
	Homes    []int             `json:",omitempty"` // of these: members
	Channels []profile.Channel `json:",omitempty"` // made
	AfterOut map[int]int       `json:",omitempty"` // of these: the channel that each follows at its producer's port
	AfterIn  map[int]int       `json:",omitempty"` // and at its taker's
	Forward  []int             `json:",omitempty"` // of these: what lead from a port that a taker has left, and end with what it left there
	Resume   []int             `json:",omitempty"` // channels to that port, from other nodes
	Alter    *alteration       `json:",omitempty"`
	Switches []swap            `json:",omitempty"` // made once all channels are
}

// swap ends a channel at its producer, who goes on with Next, or with nothing
// when that is below 0.
type swap struct{ Channel, Next int }

// apply puts a change into the wiring. What one that failed made stays where it
// was made, and is nobody's.
func (w *wiring) apply(c *change) {
	w.queues = append(w.queues, c.Queues...)
	w.homes = append(w.homes, c.Homes...)
	w.channels = append(w.channels, c.Channels...)
	for _, made := range c.Channels {
		if c.State == wsdl.ChangeStateFailed {
			w.ended[made.ID], w.void[made.ID] = c.Number, true
		}
	}
	if c.State == wsdl.ChangeStateFailed {
		for i := range c.Queues {
			w.queues[len(w.queues)-1-i].Name = ""
		}
		return
	}
	if a := c.Alter; a != nil {
		w.queues = slices.Clone(w.queues) // the profile's stay as they are
		w.queues[a.Queue.ID-1] = a.Queue
	}
	for _, s := range c.Switches {
		w.ended[s.Channel] = c.Number
	}
	for _, id := range c.Forward { // its end is settled
		w.ended[id], w.forwards[id] = c.Number, true
	}
	if c.State == wsdl.ChangeStatePending {
		for _, about := range c.About {
			w.busy[about] = c.Number
		}
	}
}

// The steps of a change. Nobody is asked for one before all have made the one
// before.
const (
	meetStep   = 1 + iota // members make links to those that they had none to
	makeStep              // what is new, at every node with an end of it
	leaveStep             // at the nodes of takers that have left, and of who sends there: what they left begins to move
	alterStep             // what is altered, at the queue's home
	followStep            // and at the other nodes with an end of the queue
	switchStep            // at the nodes of the producers
	steps
	discardStep // at those of makeStep and of the step that was refused: see change.undone
)

// concerned are the members that take part in each step.
func (w *wiring) concerned(c *change) [steps][]int {
	var all [steps][]int
	makers, meeting, leavers := map[int]bool{}, map[int]bool{}, map[int]bool{}
	for _, home := range c.Homes {
		makers[home] = true
	}
	for i := range c.Channels {
		from, to := w.ends(&c.Channels[i])
		forwards := slices.Contains(c.Forward, c.Channels[i].ID)
		if makers[to] = true; !forwards || from == to {
			makers[from] = true
		}
		if forwards {
			leavers[from] = true
		}
		if from != to && !slices.Contains(w.plan.peers[from], to) {
			meeting[from], meeting[to] = true, true
		}
	}
	for _, id := range c.Resume {
		from, _ := w.ends(&w.channels[id])
		leavers[from] = true
	}
	all[meetStep], all[makeStep], all[leaveStep] = slices.Sorted(maps.Keys(meeting)), slices.Sorted(maps.Keys(makers)), slices.Sorted(maps.Keys(leavers))
	if c.Alter != nil {
		home := w.homes[c.Alter.Queue.ID-1]
		followers := map[int]bool{}
		for i := range w.channels {
			if made := &w.channels[i]; made.From.Queue+made.To.Queue == c.Alter.Queue.ID && !w.void[i] {
				from, to := w.ends(made)
				followers[from], followers[to] = true, true
			}
		}
		delete(followers, home)
		all[alterStep], all[followStep] = []int{home}, slices.Sorted(maps.Keys(followers))
	}
	switchers := map[int]bool{}
	for _, s := range c.Switches {
		from, _ := w.ends(&w.channels[s.Channel])
		switchers[from] = true
	}
	all[switchStep] = slices.Sorted(maps.Keys(switchers))
	return all
}

// ends are the members that hold a channel's two ends.
func (w *wiring) ends(c *profile.Channel) (from, to int) {
	return w.holder(c.From, c.To), w.holder(c.To, c.From)
}
