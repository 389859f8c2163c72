package osvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// phase is how far a migration has come on one side, as its folder has it.
type phase string

const (
	leaving  phase = "leaving"  // source: the machine is the source's
	offered  phase = "offered"  // source: it is the target's, if that has taken it
	arriving phase = "arriving" // target: it is not the target's
	taken    phase = "taken"    // target: it is the target's
)

// move is one side of a migration. What is in the folder is what another life of
// the node goes by; it survives that life, but not the machine it runs on, whose
// VMs do not either: so nothing waits for a disk.
type move struct {
	ID      string // random, of this migration alone
	Machine string
	Phase   phase
	Running bool   // its processors are to run when this is over
	Peer    string // how the source finds the target again, in the caller's words

	cancelled bool // an arriving one that may not be taken any more
	under     bool // way, here: MigrateTo will say how it ended, or that it is in doubt
}

const movesFolder = "moves"

var moveID = regexp.MustCompile(`^[0-9a-f]{32}$`)

func (h *Host) movePath(id string) string {
	return filepath.Join(h.config.Dir, movesFolder, id+".json")
}

// note writes a move down as it is; h.mu is held.
func (h *Host) note(v *move) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := replace(h.movePath(v.ID), text); err != nil {
		return err
	}
	h.moves[v.ID] = v
	return nil
}

// begin notes a new move.
func (h *Host) begin(v *move) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.moves[v.ID] != nil {
		return fmt.Errorf("migration %s: there is one of that id", v.ID)
	}
	return h.note(v)
}

// enterPhase moves a move on. It refuses one that was cancelled or forgotten.
func (h *Host) enterPhase(v *move, next phase, running bool) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v.cancelled || h.moves[v.ID] != v {
		return fmt.Errorf("migration %s: the source was told that VM %s is not here", v.ID, v.Machine)
	}
	old := *v
	v.Phase, v.Running = next, running
	if err := h.note(v); err != nil {
		*v = old
		return err
	}
	return nil
}

// forget removes what is noted of a move.
func (h *Host) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if v := h.moves[id]; v != nil {
		v.cancelled = true
		delete(h.moves, id)
		if err := os.Remove(h.movePath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.config.Log.Warnf("migration %s of VM %s: %v", id, v.Machine, err)
		}
	}
}

// loadMoves reads what an earlier Host noted, and makes sure that a machine which
// was arriving does not stay: before its machines are taken over.
func (h *Host) loadMoves() error {
	folder := filepath.Join(h.config.Dir, movesFolder)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, whole := strings.CutSuffix(e.Name(), ".json")
		v := &move{}
		if text, err := os.ReadFile(filepath.Join(folder, e.Name())); !whole || err != nil || json.Unmarshal(text, v) != nil || v.ID != id || !moveID.MatchString(id) {
			_ = os.Remove(filepath.Join(folder, e.Name())) // written by halves: the step was not taken
			continue
		}
		h.moves[id] = v
		if v.Phase == taken {
			if err := h.complete(v.Machine); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// complete has the record of a machine say that nothing more will come for it.
func (h *Host) complete(machine string) error {
	folder := filepath.Join(h.machines, machine)
	r, err := readRecord(folder)
	if err != nil || r.PID != 0 {
		return err
	}
	r.PID, r.StartTime = findProcess(r.UUID)
	return r.write(folder)
}

// recoverMoves goes on where an earlier Host was ended, once the machines have
// been taken over.
func (h *Host) recoverMoves(ctx context.Context) {
	for _, v := range h.listMoves() {
		m, err := h.Get(v.Machine)
		switch v.Phase {
		case arriving: // takeOver has removed it
			h.forget(v.ID)
		case leaving:
			if err == nil && v.Running {
				h.goOn(ctx, m)
			}
			h.forget(v.ID)
		case taken:
			if err == nil && v.Running {
				h.goOn(ctx, m)
				_ = h.enterPhase(v, taken, false)
			}
		case offered:
			if err == nil {
				_ = m.claim(inDoubt)
			}
		}
	}
}

// goOn has a machine run that stood still only because it was moved.
func (h *Host) goOn(ctx context.Context, m *Machine) {
	if err := m.Resume(ctx); err != nil {
		h.config.Log.Warnf("VM %s does not go on after its migration was cut short: %v", m.ID, err)
	}
}

func (h *Host) listMoves() []*move {
	h.mu.Lock()
	defer h.mu.Unlock()
	var list []*move
	for _, v := range h.moves {
		list = append(list, v)
	}
	return list
}

// Doubt is a migration of which only the target knows whether it has the machine.
// Until Settle says what the target's Outcome was, the machine stands still here
// and cannot be resumed.
type Doubt struct {
	ID      string // of the migration
	Machine string
	Peer    string // as Migration.Peer was
}

const inDoubt = "whether the host that it was sent to has it is not known yet"

// Doubts are the migrations from this host whose outcome is not known.
func (h *Host) Doubts() []Doubt {
	var list []Doubt
	for _, v := range h.listMoves() {
		h.mu.Lock()
		if v.Phase == offered && !v.under {
			list = append(list, Doubt{v.ID, v.Machine, v.Peer})
		}
		h.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Doubt) int { return strings.Compare(a.ID, b.ID) })
	return list
}

// Outcome is the target's answer to a source in doubt: whether the machine of a
// migration is this host's. If not, it never will be.
func (h *Host) Outcome(id string) bool {
	h.mu.Lock()
	v := h.moves[id]
	has := v != nil && v.Phase == taken
	h.mu.Unlock()
	if !has {
		h.forget(id)
	}
	return has
}

// Settle ends a doubt with the target's Outcome: the machine is removed here, or
// goes on. One that is in no doubt is left as it is.
func (h *Host) Settle(ctx context.Context, id string, taken bool) error {
	h.mu.Lock()
	v := h.moves[id]
	doubtful := v != nil && v.Phase == offered && !v.under
	h.mu.Unlock()
	if !doubtful {
		return nil
	}
	if m, err := h.Get(v.Machine); err == nil {
		if taken {
			if err := m.Destroy(); err != nil {
				return err
			}
		} else {
			m.release()
			if v.Running {
				h.goOn(ctx, m)
			}
		}
	}
	h.forget(id)
	return nil
}

// Settled tells the target that the source has no copy any more and will not ask
// again.
func (h *Host) Settled(id string) {
	h.mu.Lock()
	v := h.moves[id]
	over := v != nil && v.Phase == taken
	h.mu.Unlock()
	if over {
		h.forget(id)
	}
}
