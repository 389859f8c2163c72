package node

import (
	"encoding/json"
	"fmt"
)

// Guest is what a host tells the node in a VM of its own: who it is to be. It
// travels as JSON with the guest's identity (osvm/guest).
type Guest struct {
	ID      string // for good
	Version string // of the program, as its host's
	Name    string // for people
	Join    string // the base address that it joins through
	Slots   int    // 0 is as many as cores
	PeerID  string `json:",omitempty"` // Config.PeerID
}

// ReadGuest reads what a host told.
func ReadGuest(text []byte) (g Guest, err error) {
	if err := json.Unmarshal(text, &g); err != nil {
		return g, fmt.Errorf("what node this guest is to be: %w", err)
	}
	if g.ID == "" || g.Join == "" {
		return g, fmt.Errorf("what node this guest is to be: %.200q names no id or nothing to join", text)
	}
	return g, nil
}
