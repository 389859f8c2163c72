package osvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/rpc"
	"time"

	"mvm/osvm/guest"
	"mvm/osvm/link"
)

// Session begins a session with the guest's agent, which ends the one that there
// was, and returns when the agent answers.
func (m *Machine) Session(ctx context.Context) (*link.Session, guest.Greeting, error) {
	var hello guest.Greeting
	session, err := m.session(ctx, "Hello", guest.Nothing{}, &hello)
	return session, hello, err
}

// session is Session with what is asked first.
func (m *Machine) session(ctx context.Context, method string, question, answer any) (*link.Session, error) {
	port, err := m.Agent(ctx)
	if err != nil {
		return nil, err
	}
	session, err := link.Begin(ctx, port)
	if err == nil {
		err = call(ctx, session, method, question, answer)
	}
	return m.begun(ctx, session, err)
}

// begun is the end of beginning a session, or of having failed to.
func (m *Machine) begun(ctx context.Context, session *link.Session, err error) (*link.Session, error) {
	if err == nil {
		m.latest.Store(session)
		return session, nil
	}
	if session != nil {
		_ = session.Close()
	}
	var answered rpc.ServerError
	var refused *link.RefusedError
	if !errors.As(err, &answered) && !errors.As(err, &refused) {
		select { // it may be that QEMU is ending, and hung up first
		case <-m.ended:
			err = m.Reason()
		case <-ctx.Done():
		case <-time.After(lastWords):
		}
	}
	return nil, fmt.Errorf("VM %s: %w", m.ID, err)
}

// Start has the machine's processors run and gives the guest its identity before
// anything else; what is left out of it is made here: the hostname is the
// machine's id, the clock this machine's, the randomness fresh.
//
// It is the session's first word: a call on a connection, with JSON and all, was
// two fifths of what a clone's QEMU translated until it answered.
func (m *Machine) Start(ctx context.Context, identity guest.Identity) (*link.Session, error) {
	if identity.Hostname == "" {
		identity.Hostname = m.ID
	}
	if len(identity.Randomness) == 0 {
		identity.Randomness = make([]byte, 64)
		_, _ = rand.Read(identity.Randomness)
	}
	if identity.Time.IsZero() {
		identity.Time = time.Now()
	}
	word, err := identity.Word()
	if err != nil {
		return nil, fmt.Errorf("VM %s: %w", m.ID, err)
	}
	if err := m.Resume(ctx); err != nil {
		return nil, err
	}
	port, err := m.Agent(ctx)
	if err != nil {
		return nil, err
	}
	session, taken, err := link.BeginWith(ctx, port, word)
	if err == nil && !taken { // an agent of before there were first words
		err = call(ctx, session, "Identify", identity, &guest.Nothing{})
	}
	return m.begun(ctx, session, err)
}

// Join gives a guest that has started its place in a virtual network, to which its
// card is connected by whoever has it (Network).
func (m *Machine) Join(ctx context.Context, session *link.Session, place guest.Network) error {
	if err := call(ctx, session, "Join", place, &guest.Nothing{}); err != nil {
		return fmt.Errorf("VM %s: %w", m.ID, err)
	}
	return nil
}

// JoinAgain is Join for a guest whose place may have changed, over the session that
// whoever has it began last.
func (m *Machine) JoinAgain(ctx context.Context, place guest.Network) error {
	session := m.latest.Load()
	if session == nil {
		return fmt.Errorf("VM %s: nobody has a session with its agent", m.ID)
	}
	return m.Join(ctx, session, place)
}

// powerOff asks the guest's agent to end the machine. A guest without one does not
// answer, and one that hears the power button may be quicker.
func (m *Machine) powerOff(ctx context.Context) {
	if session := m.latest.Load(); session != nil { // whoever has it keeps the port
		if call(ctx, session, "PowerOff", guest.Nothing{}, &guest.Nothing{}) == nil {
			return
		}
	}
	session, _, err := m.Session(ctx)
	if err != nil {
		return
	}
	_ = call(ctx, session, "PowerOff", guest.Nothing{}, &guest.Nothing{})
	_ = session.Close()
}

// call asks the guest's agent.
func call(ctx context.Context, session *link.Session, method string, question, answer any) error {
	conn, err := session.Agent(ctx)
	if err != nil {
		return err
	}
	client := guest.Client(conn)
	defer client.Close()
	done := client.Go("Agent."+method, question, answer, nil).Done
	select {
	case called := <-done:
		if called.Error != nil {
			return fmt.Errorf("the guest's agent, asked for %s: %w", method, called.Error)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the guest's agent does not answer %s: %w", method, context.Cause(ctx))
	}
}
