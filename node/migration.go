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

// MigrateVMContext moves a VM to another node.
func (v *machines) MigrateVMContext(ctx context.Context, r *wsdl.MigrateVM) (*wsdl.MigrateVMResponse, error) {
	m, err := v.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	switch {
	case m.State() == osvm.Ended:
		return nil, v.ended(m)
	case r.Node == v.node.id:
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the VM %s is on node %s already", m.ID, r.Node), "name another node")
	}
	target, err := v.target(ctx, r.Node)
	if err != nil {
		return nil, err
	}
	wish := &wsdl.AwaitVM{Id: m.ID, Memory: int64(m.MemoryMiB), Owner: m.Owner}
	var e *enclosure
	if m.Owner != "" {
		if e = v.node.enclosing(m); e == nil {
			return nil, wsdl.NewFault(wsdl.FaultCodeUnsupported, fmt.Sprintf("the VM %s belongs to %s: %v", m.ID, m.Owner, errMovedOnce), "cancel the job, and submit it again where it is to run")
		}
		wish.Slots = e.runner.request.Slots
	}
	awaited, err := wsdl.NewVMClient(v.node.caller, target+"/services/vm").AwaitVMContext(ctx, wish)
	if err != nil {
		return nil, err
	}
	conn, err := dialMigration(ctx, target, awaited.Token)
	if err != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s does not take the VM %s: %v", r.Node, m.ID, err), "see whether it runs, or choose another node")
	}
	// Whoever asked may go: a move is not left half done.
	send := func(living context.Context) (osvm.Migrated, error) {
		living, cancel := context.WithTimeout(living, makeLimit)
		defer cancel()
		moved, err := v.node.host.MigrateTo(living, m.ID, conn, osvm.Migration{Peer: target})
		var doubt *osvm.DoubtError
		if errors.As(err, &doubt) {
			err = v.node.settle(ctx, doubt)
		}
		return moved, err
	}
	var moved osvm.Migrated
	if e == nil {
		moved, err = send(v.node.living)
	} else {
		moved, err = e.migrate(&away{node: v.node, id: m.ID, at: r.Node, base: target, token: awaited.Token, state: osvm.Running, ended: make(chan struct{})}, send)
		_ = conn.Close() // where it was not even begun
	}
	v.node.booked()
	if err != nil {
		if m.State() == osvm.Ended {
			return nil, v.ended(m)
		}
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("the VM %s is not moved: %v", m.ID, err), "it goes on where it was")
	}
	if err := v.node.images.Unpin(vmPins + m.ID); err != nil {
		v.node.log.WithError(err).Warn("the image of a VM that has gone is kept")
	}
	return &wsdl.MigrateVMResponse{
		Rounds: wsdl.Of(int32(moved.Rounds)), Bytes: wsdl.Of(moved.Bytes), TotalMicros: wsdl.Of(moved.Total.Microseconds()), DownMicros: wsdl.Of(moved.Downtime.Microseconds()),
	}, nil
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
	v := &machines{node: n}
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
			return
		}
		m, err := n.host.MigrateFrom(n.living, conn, func(a osvm.Arrival) error {
			if err := expected.is(a.Spec); err != nil {
				return err
			}
			return v.room(a.Spec.MemoryMiB, expected.slots)
		})
		n.booked()
		if err != nil {
			n.log.WithError(err).Warn("a VM did not arrive")
			return
		}
		go n.attend(m)
		if m.Owner != "" {
			n.lodge(m, expected)
		} else if err := n.join(m, nil); err != nil {
			n.log.WithError(err).Warn("a VM that has arrived is cut off")
		}
		n.log.WithField("vm", m.ID).Info("a VM has arrived")
	})
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
