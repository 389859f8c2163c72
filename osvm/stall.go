package osvm

import (
	"context"
	"errors"
	"time"
)

// When this machine's disk is full QEMU stops the processors of a guest that writes to
// its own, and keeps the write (werror=enospc, which is its default): nothing is lost
// but time. The machine is a running one all the same, and goes on by itself when there
// is room.

// ErrStalled is the error of what cannot be done with a machine that stands still for
// want of room.
var ErrStalled = errors.New("its guest stands still, because this machine's disk has no room for what it writes")

const (
	stallPause  = time.Second // between two tries to go on
	stallLimit  = 10 * time.Second
	stallStatus = "io-error" // QEMU's
)

// Stalled says whether the guest stands still for want of room on this machine's disk.
func (m *Machine) Stalled() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.stalled && m.state != Ended
}

// stall notes that it does, and has it go on when it can.
func (m *Machine) stall() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stalled || m.told == nil {
		return
	}
	m.stalled = true
	go m.goOnWithRoom(m.told)
}

// goOnWithRoom tries to, until it has gone on, or nobody here has the machine any more.
func (m *Machine) goOnWithRoom(over <-chan struct{}) {
	ticker := time.NewTicker(stallPause)
	defer ticker.Stop()
	for {
		select {
		case <-over:
			return
		case <-ticker.C:
		}
		if m.moves() {
			return
		}
	}
}

// moves says whether the guest runs again, after a while in which it was let.
func (m *Machine) moves() bool {
	ctx, cancel := context.WithTimeout(context.Background(), stallLimit)
	defer cancel()
	var status struct{ Status string }
	m.turning.Lock()
	defer m.turning.Unlock()
	if m.monitor.Execute(ctx, "query-status", nil, &status) != nil {
		return false
	}
	m.mu.Lock()
	if status.Status != stallStatus {
		m.stalled = false
	}
	moves, wanted := !m.stalled, m.state == Running && m.free() == nil
	m.mu.Unlock()
	if !moves && wanted {
		_ = m.execute(ctx, "cont") // or the next time
	}
	return moves
}
