package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"mvm/osvm"
	"mvm/services/soap"
	"mvm/wsdl"
)

// migrationUpgrade is the protocol that a connection becomes on which a VM moves
// here from another node: osvm's, of MigrateTo and MigrateFrom.
const migrationUpgrade = "mvm-migration"

// settlePause is how long a node waits before it asks again what became of a VM
// that it was sending when the connection was cut.
const settlePause = 2 * time.Second

// MigrateVMContext moves a VM to another node. That of an attempt is moved by the
// node that keeps the attempt, wherever the VM is.
func (v *machines) MigrateVMContext(ctx context.Context, r *wsdl.MigrateVM) (*wsdl.MigrateVMResponse, error) {
	n := v.node
	if e, at := n.elsewhere(r.Id); at != nil {
		return v.moveOn(ctx, e, at, r.Node)
	}
	m, err := v.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	switch {
	case m.State() == osvm.Ended:
		return nil, v.ended(m)
	case r.Node == n.id:
		return nil, onThatNode(r)
	}
	if home := n.lodgers.home(m); home != "" {
		return wsdl.NewVMClient(n.caller, home+"/services/vm").MigrateVMContext(ctx, r)
	}
	wish := wishFor(m)
	wish.Source = []string{n.base()}
	var e *enclosure
	if m.Owner != "" {
		if e = n.enclosing(m); e == nil {
			return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("the VM %s belongs to %s, of which nothing is known here any more", m.ID, m.Owner), "it will be gone in a moment")
		}
		wish.Slots, wish.Home = e.runner.request.Slots, n.base()
	}
	target, token, err := v.await(ctx, r.Node, wish)
	if err != nil {
		return nil, err
	}
	send := func(living context.Context) (osvm.Migrated, error) { return v.send(ctx, living, m, target, token) }
	var moved osvm.Migrated
	if e == nil {
		moved, err = send(n.living)
	} else {
		moved, err = e.migrate(nil, newAway(n, m.ID, r.Node, target, token), send)
	}
	if err != nil {
		return nil, v.unmoved(m, err)
	}
	return migrated(moved), nil
}

// SendVMContext has this node send on the VM of an attempt that the caller keeps.
func (v *machines) SendVMContext(ctx context.Context, r *wsdl.SendVM) (*wsdl.SendVMResponse, error) {
	m, err := v.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	if err := v.node.lodgers.may(r.Id, r.Key); err != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeForbidden, err.Error(), "ask the node that keeps its attempt")
	}
	moved, err := v.send(ctx, v.node.living, m, r.Target, r.Token)
	if err != nil {
		return nil, v.unmoved(m, err)
	}
	response := wsdl.SendVMResponse(*migrated(moved))
	return &response, nil
}

// moveOn has the node where the VM of an attempt of this node's is send it on, or back
// to here.
func (v *machines) moveOn(ctx context.Context, e *enclosure, from *away, to string) (*wsdl.MigrateVMResponse, error) {
	n := v.node
	if to == from.at {
		return nil, onThatNode(&wsdl.MigrateVM{Id: from.id, Node: to})
	}
	wish := wishFor(e.machine)
	wish.Slots, wish.Home, wish.Source = e.runner.request.Slots, n.base(), []string{from.base}
	var next *away
	if to == n.id { // where it is booked yet
		next = newAway(n, from.id, to, n.base(), "")
		next.arrived = make(chan struct{})
		next.enclosure = e
		expected := awaited(wish)
		expected.back = next
		token, err := v.expect(expected)
		if err != nil {
			return nil, err
		}
		next.token = token
	} else {
		target, token, err := v.await(ctx, to, wish)
		if err != nil {
			return nil, err
		}
		next = newAway(n, from.id, to, target, token)
	}
	var answer *wsdl.SendVMResponse
	_, err := e.migrate(from, next, func(living context.Context) (moved osvm.Migrated, err error) {
		living, cancel := context.WithTimeout(living, makeLimit)
		defer cancel()
		answer, err = wsdl.NewVMClient(n.caller, from.base+"/services/vm").SendVMContext(living, &wsdl.SendVM{Id: from.id, Key: from.token, Target: next.base, Token: next.token})
		return moved, err
	})
	if err != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("the VM %s is not moved on: %v", from.id, err), "it goes on where it was, or is looked for there and where it was to go")
	}
	response := wsdl.MigrateVMResponse(*answer)
	return &response, nil
}

func onThatNode(r *wsdl.MigrateVM) error {
	return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the VM %s is on node %s already", r.Id, r.Node), "name another node")
}

// wishFor is what another node is asked for, that it take a machine.
func wishFor(m *osvm.Machine) *wsdl.AwaitVM {
	wish := &wsdl.AwaitVM{Id: m.ID, Memory: int64(m.MemoryMiB), Owner: m.Owner}
	if len(m.Disks) > 0 {
		wish.Image = m.ImageDigest
	}
	return wish
}

// await has a node let a machine in: at that address, by that token.
func (v *machines) await(ctx context.Context, node string, wish *wsdl.AwaitVM) (target, token string, err error) {
	if target, err = v.target(ctx, node); err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, makeLimit) // it may have an image to fetch
	defer cancel()
	answer, err := wsdl.NewVMClient(v.node.caller, target+"/services/vm").AwaitVMContext(ctx, wish)
	if err != nil {
		return "", "", err
	}
	return target, answer.Token, nil
}

// send moves a machine of this node's. Whoever asked may go, by the end of ctx: a move
// is not left half done, unless living ends.
func (v *machines) send(ctx, living context.Context, m *osvm.Machine, target, token string) (osvm.Migrated, error) {
	n := v.node
	living, cancel := context.WithTimeout(living, makeLimit)
	defer cancel()
	conn, err := dialMigration(living, target, token)
	if err != nil {
		return osvm.Migrated{}, fmt.Errorf("%s does not take it: %w", target, err)
	}
	moved, err := n.host.MigrateTo(living, m.ID, conn, osvm.Migration{Peer: target})
	var doubt *osvm.DoubtError
	if errors.As(err, &doubt) {
		err = n.settle(ctx, doubt)
	}
	n.booked()
	if m.Destroyed() {
		if err := n.images.Unpin(vmPins + m.ID); err != nil {
			n.log.WithError(err).Warn("the image of a VM that has gone is kept")
		}
	}
	return moved, err
}

// unmoved is the fault about a machine that was to move.
func (v *machines) unmoved(m *osvm.Machine, err error) error {
	if m.State() == osvm.Ended && !m.Destroyed() {
		return v.ended(m)
	}
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("the VM %s is not moved: %v", m.ID, err), "it goes on where it was")
}

func migrated(moved osvm.Migrated) *wsdl.MigrateVMResponse {
	return &wsdl.MigrateVMResponse{
		Rounds: wsdl.Of(int32(moved.Rounds)), Bytes: wsdl.Of(moved.Bytes), TotalMicros: wsdl.Of(moved.Total.Microseconds()), DownMicros: wsdl.Of(moved.Downtime.Microseconds()),
	}
}

// target is the base address of a node that can have VMs.
func (v *machines) target(ctx context.Context, id string) (string, error) {
	answer, err := wsdl.NewBrokerClient(v.node.caller, v.node.brokerURL()).ListNodesContext(ctx, &wsdl.ListNodes{})
	if err != nil {
		return "", err
	}
	for _, n := range answer.Node {
		switch {
		case n == nil || n.Id != id:
		case n.State != "up":
			return "", wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s is %s", id, n.State), "choose another node")
		case n.Accelerator == "":
			return "", wsdl.NewFault(wsdl.FaultCodeWrongNode, fmt.Sprintf("node %s can have no VMs", id), "choose another node; `mvm nodes` tells which have an accelerator")
		default:
			return n.Url, nil
		}
	}
	return "", wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("there is no node %.80q", id), "`mvm nodes` lists the nodes")
}

// dialMigration makes a connection to a node on which it takes the VM that the
// token is for.
func dialMigration(ctx context.Context, base, token string) (net.Conn, error) {
	request, err := http.NewRequest(http.MethodGet, base+"/services/vm/arrivals", nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", bearer+token)
	return soap.Upgrade(ctx, request, migrationUpgrade)
}

// Arrivals takes VMs from other nodes, which have asked by AwaitVM: GET with the
// token that they got there and an upgrade to mvm-migration.
func (n *Node) Arrivals() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !asks(w, r, migrationUpgrade, "VMs come here from other nodes; `mvm vm migrate` sends one") {
			return
		}
		expected, err := n.arrivals.take(r.Header.Get("Authorization"), n.clock.Now())
		if err != nil {
			sayPlainly(w, http.StatusForbidden, err)
			return
		}
		conn, ok := soap.AcceptUpgrade(w, migrationUpgrade)
		if !ok {
			n.arrivals.over(expected.id)
			return
		}
		m, err := n.receive(conn, expected)
		if err != nil {
			n.log.WithError(err).Warn("a VM did not arrive")
			return
		}
		n.log.WithField("vm", m.ID).Info("a VM has arrived")
	})
}

// receive takes the VM that a token was given for, and has it be whose it is.
func (n *Node) receive(conn net.Conn, expected arrival) (*osvm.Machine, error) {
	defer n.arrivals.over(expected.id)
	v := &machines{node: n}
	over := n.booked
	defer func() { over() }()
	m, err := n.host.MigrateFrom(n.living, conn, func(a osvm.Arrival) (image osvm.Image, err error) {
		if err := expected.is(a.Spec); err != nil {
			return image, err
		}
		if expected.back == nil { // else it is booked
			if err := n.queueLimits.arriving(a.Spec.Limits); err != nil {
				return image, err
			}
			booked, err := v.book(a.Spec.MemoryMiB, a.Spec.Limits.DiskMiB, expected.slots)
			if err != nil {
				return image, err
			}
			over = booked
		}
		ctx, cancel := context.WithTimeout(n.living, arrivalLimit) // it is here already
		defer cancel()
		return n.below(ctx, expected, vmPins+expected.id)
	})
	if err != nil {
		n.unpinMissing(expected.id)
		return nil, err
	}
	go n.attend(m)
	switch {
	case expected.back != nil:
		err = expected.back.arrive(m)
	case m.Owner != "":
		n.lodge(m, expected)
	default:
		err = errors.Join(n.join(m, nil), n.attach(m))
	}
	if err != nil {
		n.log.WithError(err).Warn("a VM that has arrived is cut off")
	}
	return m, nil
}

// unpinMissing lets go of the image of a machine that is not here.
func (n *Node) unpinMissing(id string) {
	n.mu.Lock()
	making := n.makings[id]
	n.mu.Unlock()
	if _, err := n.host.Get(id); err == nil || making != nil {
		return
	}
	if err := n.images.Unpin(vmPins + id); err != nil {
		n.log.WithError(err).Warn("the image of a VM that is not here is kept")
	}
}

// settle asks a target whether it has a VM, until it answers or ctx ends; the
// node goes on asking then. The error says that the VM is still here, or that
// nobody knows.
func (n *Node) settle(ctx context.Context, d *osvm.DoubtError) error {
	here, err := n.outcome(ctx, d.Doubt)
	if err != nil {
		return &osvm.DoubtError{Doubt: d.Doubt, Err: fmt.Errorf("it stands still here until the other node says so: %w", err)}
	}
	if !here {
		return errors.New("the other node does not have it")
	}
	return nil
}

// outcome ends a doubt by the target's word.
func (n *Node) outcome(ctx context.Context, d osvm.Doubt) (here bool, err error) {
	target := wsdl.NewVMClient(n.caller, d.Peer+"/services/vm")
	answer, err := target.SettleMigrationContext(ctx, &wsdl.SettleMigration{Migration: d.ID})
	if err != nil {
		return false, err
	}
	here = wsdl.Or(answer.Here, false)
	if err := n.host.Settle(ctx, d.ID, here); err != nil {
		return here, err
	}
	_, _ = target.SettleMigrationContext(ctx, &wsdl.SettleMigration{Migration: d.ID, Settled: true}) // it only remembers for nothing otherwise
	return here, nil
}

// settleDoubts asks for what was in doubt, until ctx ends.
func (n *Node) settleDoubts(ctx context.Context) {
	for ctx.Err() == nil {
		for _, d := range n.host.Doubts() {
			asking, enough := context.WithTimeout(ctx, n.callTimeout)
			if here, err := n.outcome(asking, d); err == nil {
				n.log.WithField("vm", d.Machine).Infof("a migration that was cut off is settled: arrived = %v", here)
				n.booked()
			}
			enough()
		}
		select {
		case <-ctx.Done():
		case <-time.After(settlePause):
		}
	}
}

// SettleMigrationContext says to a source whether a VM has arrived.
func (v *machines) SettleMigrationContext(ctx context.Context, r *wsdl.SettleMigration) (*wsdl.SettleMigrationResponse, error) {
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	if r.Settled {
		host.Settled(r.Migration)
		return &wsdl.SettleMigrationResponse{Here: wsdl.Of(false)}, nil
	}
	return &wsdl.SettleMigrationResponse{Here: wsdl.Of(host.Outcome(r.Migration))}, nil
}
