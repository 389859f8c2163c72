package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"mvm/osvm"
	"mvm/osvm/link"
	"mvm/services/soap"
	"mvm/wsdl"
)

// An attempt whose VM has moved stays this node's: booking, fence, lease, relay,
// reports and end, and its proxy is reached here as before. The other node has the
// machine and nothing else: it leads the guest's ports here, byte by byte. So what
// ends this node silences the guest at the same moment, as it would have in a VM of
// this node's own, and nobody else's state knows of the move. The price is that
// this node must stay for as long as the attempt. Moved on, the machine is sent from
// the one node to the other at this node's word, which again is all that changes; it
// may come back to here, too.

// away is an enclosure's machine at another node.
type away struct {
	node  *Node
	id    string
	at    string // the other node
	base  string // its address
	token string // lets nobody else to the guest's port
	ended chan struct{}

	// Of a machine that comes back: at is this node, and it is here once it has arrived.
	enclosure *enclosure
	arrived   chan struct{}

	mu     sync.Mutex // guards what follows
	state  osvm.State
	reason error // once ended is closed
	next   *away // where it may be when it is not here any more: that was never settled
	before error // why it was thought to be here: it had gone where it was before
}

func newAway(n *Node, id, at, base, token string) *away {
	return &away{node: n, id: id, at: at, base: base, token: token, state: osvm.Running, ended: make(chan struct{})}
}

// portUpgrade is the protocol that a connection becomes on which a VM's host leads
// a port of the guest's to the node whose attempt it is in: the port's own.
const portUpgrade = "mvm-port"

// Ports of a guest, as they are named in the path.
const (
	agentPort = "port"
	cardPort  = "network"
)

const (
	awayLook     = 3 * guestCheck   // of silence, after which the other node is asked what the machine does
	awayPatience = 10 * time.Second // with the other node, when it is to end the machine
	awayPause    = 200 * time.Millisecond
)

// end notes that the machine is no more.
func (a *away) end(reason error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.reason != nil {
		return
	}
	a.reason, a.state = fmt.Errorf("on node %s, where it was moved to: %w", a.at, reason), osvm.Ended
	if a.before != nil {
		a.reason = a.before
	}
	close(a.ended)
}

// may has the machine be looked for at another node when it is not here any more.
func (a *away) may(next *away) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = next
}

// onward is where to look, nil for nowhere.
func (a *away) onward() *away {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.next != nil && a.reason != nil {
		a.next.mu.Lock()
		defer a.next.mu.Unlock()
		a.next.before = a.reason
	}
	return a.next
}

// arrive has a machine be this node's own again, or ends it where nobody has a use for
// it any more.
func (a *away) arrive(machine *osvm.Machine) error {
	e, over := a.enclosure, false
	e.turn(func(m *moving) {
		if over = e.over; !over {
			m.away, m.back = nil, machine
			e.heard = time.Now()
		}
	})
	close(a.arrived)
	if over {
		return errors.Join(errors.New("its attempt is over"), a.node.destroy(machine))
	}
	return nil
}

func (a *away) how() (osvm.State, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state, a.reason
}

// port is a connection to what the guest has of that name, over the other node.
func (a *away) port(ctx context.Context, name string) (net.Conn, error) {
	request, err := http.NewRequest(http.MethodGet, a.base+"/services/vm/"+a.id+"/"+name, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", bearer+a.token)
	return soap.Upgrade(ctx, request, portUpgrade)
}

// session begins a session with the guest over the other node.
func (a *away) session(ctx context.Context) (*link.Session, error) {
	session, err := a.connect(ctx)
	var refused *soap.RefusedUpgrade
	if errors.As(err, &refused) && (refused.Response.StatusCode == http.StatusNotFound || refused.Response.StatusCode == http.StatusGone) {
		a.end(errors.New(refused.Said))
	}
	return session, err
}

// connect is session that draws no conclusion.
func (a *away) connect(ctx context.Context) (*link.Session, error) {
	port, err := a.port(ctx, agentPort)
	if err != nil {
		return nil, err
	}
	return link.Begin(ctx, port)
}

// look asks the other node what the machine does.
func (a *away) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, guestCheck)
	defer cancel()
	answer, err := wsdl.NewVMClient(a.node.caller, a.base+"/services/vm").GetVMContext(ctx, &wsdl.GetVM{Id: a.id})
	switch {
	case wsdl.CodeOf(err) == wsdl.FaultCodeNotFound || wsdl.CodeOf(err) == wsdl.FaultCodeWrongNode:
		a.end(err)
	case err == nil && osvm.State(wsdl.Or(answer.Vm.State, "")) == osvm.Ended:
		a.end(errors.New(answer.Vm.Reason))
	case err == nil:
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.reason == nil {
			a.state = osvm.State(wsdl.Or(answer.Vm.State, ""))
		}
	}
}

// destroy has the other node end the machine, also one that is just arriving there.
// One that does not answer does so by itself when nobody has come for it for a while
// (lodgers), or when it begins anew; and nobody hears the guest meanwhile.
func (a *away) destroy() {
	if a.arrived != nil {
		return // to here: arrive ends it
	}
	ctx, cancel := context.WithTimeout(context.Background(), awayPatience)
	defer cancel()
	var err error
	for {
		_, err = wsdl.NewVMClient(a.node.caller, a.base+"/services/vm").DestroyVMContext(ctx, &wsdl.DestroyVM{Id: a.id, Force: true})
		if wsdl.CodeOf(err) != wsdl.FaultCodeBusy || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(awayPause):
		case <-ctx.Done():
		}
	}
	if err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
		a.node.log.WithError(err).Warnf("node %s does not say that it has ended the VM %s, and is left to", a.at, a.id)
	}
}

// moving is where an enclosure's machine is; e.mu guards it.
type moving struct {
	under  bool          // way: its end here means nothing
	doubt  bool          // under way, and whether it has arrived is not known: it stands still
	away   *away         // nil while it is here
	back   *osvm.Machine // what it is here, once it has come back
	tried  []*away       // where it may be, if that was never settled
	turned chan struct{} // closed and made anew when one of these changes
}

// turn changes where the machine is.
func (e *enclosure) turn(change func(m *moving)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	change(&e.moving)
	close(e.moving.turned)
	e.moving.turned = make(chan struct{})
}

func (e *enclosure) whereabouts() moving {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.moving
}

// state is what the machine does, wherever it is.
func (e *enclosure) state() osvm.State {
	if a := e.whereabouts().away; a != nil {
		state, _ := a.how()
		return state
	}
	return stateOf(e.here())
}

// here is the machine as this node has it, or had it last.
func (e *enclosure) here() *osvm.Machine { return cmp.Or(e.whereabouts().back, e.machine) }

// session begins a session with the guest, wherever it is.
func (e *enclosure) session(ctx context.Context) (*link.Session, error) {
	if a := e.whereabouts().away; a != nil {
		session, err := a.session(ctx)
		if next := a.onward(); err != nil && next != nil { // its word is not needed where the other has the machine: it is in one place
			if there, no := next.connect(ctx); no == nil {
				e.turn(func(m *moving) {
					if m.away == a {
						m.away = next
					}
				})
				return there, nil
			}
		}
		return session, err
	}
	session, _, err := e.here().Session(ctx)
	return session, err
}

// card connects to the guest's network card, wherever it is.
func (e *enclosure) card(ctx context.Context) (net.Conn, error) {
	if a := e.whereabouts().away; a != nil {
		ctx, cancel := context.WithTimeout(ctx, awayPatience)
		defer cancel()
		return a.port(ctx, cardPort)
	}
	return e.here().Network(ctx)
}

// migrate moves the machine by send, from where it is to another place: a node each,
// and from nil for this one. send's error is a DoubtError while nobody knows whether
// it has arrived: it is nowhere then, until that is settled. With any other error of
// another node's it may be there or here, and is looked for.
func (e *enclosure) migrate(from, to *away, send func(ctx context.Context) (osvm.Migrated, error)) (osvm.Migrated, error) {
	if !e.migrating.TryLock() {
		return osvm.Migrated{}, errors.New("it is being moved already")
	}
	s := &e.snapshots
	s.mu.Lock()
	over := func() {
		s.mu.Unlock()
		e.migrating.Unlock()
	}
	e.mu.Lock()
	there := e.node != nil && !e.over
	e.mu.Unlock()
	var no error
	switch {
	case s.taken != nil:
		no = errors.New("a checkpoint of its job is being taken")
	case !there:
		no = errors.New("its attempt is not running yet, or not any more")
	case e.whereabouts().away != from:
		no = errors.New("it has been moved meanwhile")
	}
	if no != nil {
		over()
		return osvm.Migrated{}, no
	}
	e.turn(func(m *moving) { m.under, m.tried = true, append(m.tried, to) })
	moved, err := send(e.runner.ctx)
	settle := func() {
		gone := err == nil || from == nil && e.here().Destroyed()
		if gone && to.arrived != nil {
			select { // the other node may have been quicker with its answer
			case <-to.arrived:
			case <-e.runner.ctx.Done():
			}
		}
		if !gone && from != nil {
			from.may(to)
		}
		e.turn(func(m *moving) {
			if m.under, m.doubt = false, false; gone && to.arrived == nil {
				m.away = to
			}
			if gone {
				e.heard = time.Now()
			}
		})
		over()
	}
	var doubt *osvm.DoubtError
	if !errors.As(err, &doubt) {
		settle()
		return moved, err
	}
	e.turn(func(m *moving) { m.doubt = true })
	n := e.runner.node
	n.running.Go(func() { // settleDoubts asks on
		for e.runner.ctx.Err() == nil && n.doubts(doubt.ID) {
			select {
			case <-time.After(settlePause / 4):
			case <-e.runner.ctx.Done():
			}
		}
		settle()
	})
	return moved, err
}

// doubts says whether the outcome of a migration from here is not known.
func (n *Node) doubts(migration string) bool {
	for _, d := range n.host.Doubts() {
		if d.ID == migration {
			return true
		}
	}
	return false
}

// enclosing is the enclosure that a machine is, nil where no attempt of this node
// is in it.
func (n *Node) enclosing(m *osvm.Machine) *enclosure {
	return n.enclosure(func(e *enclosure) bool { return e.here() == m })
}

// elsewhere is the enclosure whose machine of that id is at another node, and where;
// nil for none.
func (n *Node) elsewhere(id string) (*enclosure, *away) {
	var at *away
	e := n.enclosure(func(e *enclosure) bool {
		at = e.whereabouts().away
		return at != nil && at.id == id
	})
	if e == nil {
		return nil, nil
	}
	return e, at
}

// enclosure finds one, nil for none.
func (n *Node) enclosure(is func(*enclosure) bool) *enclosure {
	n.mu.Lock()
	var all []*runner
	for _, r := range n.runners {
		all = append(all, r)
	}
	n.mu.Unlock()
	for _, r := range all {
		if e := r.enclosed(); e != nil && is(e) {
			return e
		}
	}
	return nil
}

// base is this node's own address.
func (n *Node) base() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.url
}
