package osvm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// ErrClaimed is the error of what cannot be done with a machine while something
// else is: it is being migrated, or whose it is now is not known.
var ErrClaimed = errors.New("the VM cannot be changed now")

// claims is who has a machine for itself. The machine's lock guards it.
type claims struct {
	reason  string // why it cannot be changed; "" is nobody
	taking  int    // checkpoints that are being taken, for which it may stand still
	severed bool   // nor connected to
	ports   map[*port]struct{}
}

// port is a connection to a machine's agent or console.
type port struct {
	net.Conn
	machine *Machine
}

func (p *port) Close() error {
	p.machine.mu.Lock()
	delete(p.machine.claims.ports, p)
	p.machine.mu.Unlock()
	return p.Conn.Close()
}

// keep notes a connection that sever is to cut.
func (m *Machine) keep(conn net.Conn) (net.Conn, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.claims.severed {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: %s", ErrClaimed, m.claims.reason)
	}
	p := &port{conn, m}
	if m.claims.ports == nil {
		m.claims.ports = map[*port]struct{}{}
	}
	m.claims.ports[p] = struct{}{}
	return p, nil
}

// claim has nobody else run the machine or stop it, until release.
func (m *Machine) claim(reason string) error {
	m.turning.Lock() // whoever runs it or stops it has done so
	defer m.turning.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.free(); err != nil {
		return err
	}
	if m.claims.taking > 0 {
		return fmt.Errorf("VM %s: %w: a checkpoint of it is being taken", m.ID, ErrClaimed)
	}
	m.claims.reason = reason
	return nil
}

// beginTaking has nobody claim the machine while a checkpoint is taken of it: one
// that stands still for that would be taken for a suspended one.
func (m *Machine) beginTaking() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.free(); err != nil {
		return err
	}
	if m.stalled {
		return ErrStalled
	}
	m.claims.taking++
	return nil
}

func (m *Machine) endTaking() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.claims.taking--
}

func (m *Machine) release() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.claims.reason, m.claims.severed = "", false
}

// unclaimed is nil when nobody has claimed the machine, and it has not ended.
func (m *Machine) unclaimed() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.free()
}

// free is unclaimed; m.mu is held.
func (m *Machine) free() error {
	switch {
	case m.reason != nil:
		return fmt.Errorf("VM %s: %w", m.ID, m.reason)
	case m.claims.reason != "":
		return fmt.Errorf("VM %s: %w: %s", m.ID, ErrClaimed, m.claims.reason)
	}
	return nil
}

const (
	severLimit = 10 * time.Second
	severPoll  = time.Millisecond
)

// sever cuts a claimed machine's connections, lets no others be made, and returns
// when QEMU has noticed: nothing comes into the guest then.
func (m *Machine) sever(ctx context.Context) error {
	m.mu.Lock()
	m.claims.severed = true
	var all []*port
	for p := range m.claims.ports {
		all = append(all, p)
	}
	m.mu.Unlock()
	for _, p := range all {
		_ = p.Close()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, severLimit, fmt.Errorf("QEMU still has connections to the guest after %v", severLimit))
	defer cancel()
	for {
		var devices []struct{ Label, Filename string }
		if err := m.monitor.Execute(ctx, "query-chardev", nil, &devices); err != nil {
			return err
		}
		connected := false
		for _, d := range devices {
			if (d.Label == agentSocket || d.Label == consoleSocket) && !strings.HasPrefix(d.Filename, "disconnected:") {
				connected = true
			}
		}
		if !connected {
			return nil
		}
		select {
		case <-time.After(severPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
