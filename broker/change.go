package broker

import (
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
	Reason string   `json:",omitempty"` // what it waits for, or why it failed
	About  []string `json:",omitempty"` // edges and queues that take no other change meanwhile

	Queues   []profile.Queue   `json:",omitempty"` // made
	Homes    []int             `json:",omitempty"` // of these: members
	Channels []profile.Channel `json:",omitempty"` // made
	After    map[int]int       `json:",omitempty"` // those of these that follow another at a port
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
	if c.State == wsdl.ChangeStateFailed {
		for _, made := range c.Channels {
			w.ended[made.ID] = c.Number
		}
		for i := range c.Queues {
			w.queues[len(w.queues)-1-i].Name = ""
		}
		return
	}
	for _, s := range c.Switches {
		w.ended[s.Channel] = c.Number
	}
	if c.State == wsdl.ChangeStatePending {
		for _, about := range c.About {
			w.busy[about] = c.Number
		}
	}
}
