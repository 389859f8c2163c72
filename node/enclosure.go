package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/wsdl"
)

// enclosure is the OS-level VM in which a runner carries its attempt, instead of
// an MVM process of this node's: the guest is a node, which gets the attempt from
// here as from a broker. To the broker it is this node's own attempt all the same.
// Booking, fencing and leases stay this node's: when they say so, the VM ends.
type enclosure struct {
	runner  *runner
	id      string // the guest's, as a node
	machine *osvm.Machine
	uplink  *uplink
	relay   *relay
	place   *wsdl.VMNetwork // its VM's on a virtual network; nil for none
	plugged *plugged        // what the VM has there
	kept    chan struct{}   // closed when the uplink's keeper is gone
	stop    context.CancelFunc

	// What the guest believes, which is otherwise once it was restored elsewhere.
	number    int            // of its attempt
	was       *frozen        // what it goes on from, nil where it began
	published map[int]string // where it was reached, by port

	snapshots snapshots
	migrating sync.Mutex // while it moves

	reporting sync.Mutex // one report at a time
	mu        sync.Mutex // guards what follows
	node      *wsdl.Node // as it registered; nil before
	up        chan struct{}
	heard     time.Time         // its last heartbeat
	peers     map[string]string // whom its proxy may dial, by the address that it knows, and where they are
	address   string            // of its proxy, as its peers know it
	home      string            // of its services, as it registered them
	sequence  int64             // of its last report
	news      chan struct{}     // closed and made anew at each report
	over      bool              // nothing that it says counts any more
	moving    moving
}

const (
	guestStart  = 90 * time.Second // for a guest to be a node, once its processors run
	guestSilent = 60 * time.Second // without a heartbeat, and it is given up
	guestCheck  = 2 * time.Second
	consoleKept = 32 << 10 // bytes of a console that the log gets with a failure: a Go program's last words begin with their cause
)

// enclosed is the runner's VM, nil while there is none.
func (r *runner) enclosed() *enclosure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.vm
}

// guest is the enclosure of an attempt in a VM, whose guest can be called; nil where
// the attempt is in none.
func (r *runner) guest() (*enclosure, error) {
	e := r.enclosed()
	if e == nil {
		return nil, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.node == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("attempt %s is still awakening on node %s: its VM starts", r.key, r.node.id), "try again in a moment")
	}
	return e, nil
}

// enclose is load for an attempt in a VM.
func (r *runner) enclose() *wsdl.Fault {
	n, want := r.node, r.request.Vm
	if n.host == nil {
		return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("node %s has no VMs: %s", n.id, n.hostless), "place the job on a node that has QEMU")
	}
	if err := n.diskFor(want.Memory, wsdl.Or(want.Limits, wsdl.VMLimits{}).Disk); err != nil {
		return r.fault("make its VM", err)
	}
	e := &enclosure{runner: r, id: n.id + "." + r.vmID(), number: r.key.number, up: make(chan struct{}), news: make(chan struct{}), peers: map[string]string{}, kept: make(chan struct{}), place: want.Network, moving: moving{turned: make(chan struct{})}}
	if r.request.Restore != "" {
		if err := e.restore(); err != nil {
			return e.unrestored(err)
		}
		return nil
	}
	if e.place != nil {
		if err := checkNetwork(e.place); err != nil {
			return r.fault("make its VM", err)
		}
	}
	limits, err := n.boundedLimits(want.Limits)
	if err != nil {
		return r.fault("make its VM", err)
	}
	files, err := n.images.Files(r.ctx, n.http, r.request.Image, want.Image, vmPins+r.vmID())
	if err != nil {
		return r.fault("fetch the image "+want.Name, err)
	}
	order := osvm.Order{
		ID: r.vmID(), MemoryMiB: int(want.Memory), Owner: r.key.String(), Template: true, Network: e.place != nil,
		Image: imageOf(files, want.Name), Limits: limits,
	}
	if order.Image.Kernel == "" || order.Image.Initrd == "" {
		_ = n.images.Unpin(vmPins + order.ID)
		return wsdl.NewFault(wsdl.FaultCodeUnsupported, fmt.Sprintf("the image %s starts from its disk, which VMs of jobs do not", want.Name), "choose an image with a kernel and an initial file system")
	}
	if e.machine, err = n.host.Create(r.ctx, order); err != nil {
		_ = n.images.Unpin(vmPins + order.ID)
		return r.fault("make its VM", err)
	}
	r.mu.Lock()
	r.vm = e // from here on its end is the runner's
	r.mu.Unlock()
	if err := e.start(); err != nil {
		return r.fault("start its VM", err)
	}
	request := *r.request
	request.Attempt, request.Broker, request.Image, request.Vm = e.attempt(), relayURL+"/services/broker", []string{relayURL}, nil
	// Its one processor and all its memory are the attempt's; the limits of queues are
	// this node's.
	request.Cores, request.Memory, request.QueueLimits = 0, 0, nil
	answer, err := e.queue().AwakenContext(r.ctx, &request)
	if err != nil {
		return r.fault("awaken its VM", e.because(err))
	}
	for _, b := range answer.Build {
		b.Node = n.id
	}
	e.mu.Lock()
	e.address = answer.Address
	e.mu.Unlock()
	answer.Trunk = e.trunk() // whatever the guest says
	r.mu.Lock()
	r.answer = answer
	r.mu.Unlock()
	return nil
}

// vmID names the attempt's VM, and is the same whenever it is asked.
func (r *runner) vmID() string {
	id := r.work[strings.LastIndexByte(r.work, '/')+1:] // unique, and of few kinds of characters
	return "job-" + id[:min(len(id), 50)] + id[max(len(id)-8, min(len(id), 50)):]
}

// start connects the guest and has it become a node.
func (e *enclosure) start() error {
	r, n := e.runner, e.runner.node
	if err := e.connect(); err != nil {
		return err
	}
	identity, err := json.Marshal(Guest{ID: e.id, Name: e.machine.ID, Version: n.config.Version, Join: relayURL, Slots: int(r.request.Slots), PeerID: cmp.Or(r.request.Vm.Peer, n.id)})
	if err != nil {
		return err
	}
	if e.place != nil {
		if err := e.plug(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeoutCause(r.ctx, guestStart, fmt.Errorf("its guest is no node after %v", guestStart))
	defer cancel()
	session, err := e.machine.Start(ctx, guest.Identity{Node: identity})
	if err == nil && e.place != nil {
		err = e.machine.Join(ctx, session, placeOf(r.key.whole().job, e.machine.ID, e.place))
	}
	if err != nil {
		return e.because(err)
	}
	living := e.live(session)
	select {
	case <-e.up:
		n.running.Go(func() { e.watch(living) })
		return nil
	case <-e.here().Ended():
		return e.here().Reason()
	case <-ctx.Done():
		return e.because(context.Cause(ctx))
	}
}

// connect makes the guest's ways out and in.
func (e *enclosure) connect() (err error) {
	if e.relay, err = newRelay(e); err != nil {
		return err
	}
	if e.uplink, err = e.runner.node.connect(e.machine, link.OutsideConfig{Relay: e.relay.take, Dial: e.dial, Believed: e.published}); err != nil {
		return err
	}
	e.uplink.session, e.uplink.ended = e.session, nil // it may end here, and go on elsewhere
	return nil
}

// live keeps the guest connected, from its first session on.
func (e *enclosure) live(session *link.Session) context.Context {
	living, stop := context.WithCancel(context.Background())
	e.stop = stop
	go func() { defer close(e.kept); e.uplink.keep(living, session) }()
	return living
}

// guestGasp is how long a VM that cannot be called may take to show that it has ended.
const guestGasp = 5 * time.Second

// because adds to an error what is known of the guest. That it could not be called
// says nothing where its VM has ended: why it has is the error then.
func (e *enclosure) because(err error) error {
	if a := e.whereabouts().away; a != nil {
		_, reason := a.how()
		return errors.Join(reason, err)
	}
	if wsdl.CodeOf(err) == wsdl.FaultCodeUnavailable {
		select {
		case <-e.here().Ended():
		case <-time.After(guestGasp):
		}
	}
	select {
	case <-e.here().Ended():
		return fmt.Errorf("its VM %s is lost: %w", e.machine.ID, e.here().Reason())
	default:
	}
	return e.here().Console().WithLastLine(err)
}

// watch has the attempt be lost when its guest is.
func (e *enclosure) watch(ctx context.Context) {
	ticker := time.NewTicker(guestCheck)
	defer ticker.Stop()
	for {
		var why error
		at := e.whereabouts()
		ended := cmp.Or(at.back, e.machine).Ended()
		switch {
		case at.under:
			ended = nil
		case at.away != nil:
			ended = at.away.ended
		}
		select {
		case <-ctx.Done():
			return
		case <-at.turned:
		case <-ended:
			now := e.whereabouts()
			if now.under || now.away != at.away || now.back != at.back {
				continue // it was moved meanwhile
			}
			if at.away != nil {
				if next := at.away.onward(); next != nil {
					e.turn(func(m *moving) {
						if m.away == at.away { // it may have come back just now
							m.away = next
						}
					})
					continue
				}
			}
			if why = e.here().Reason(); at.away != nil {
				_, why = at.away.how()
			}
		case now := <-ticker.C:
			why = e.listen(ctx, at, now)
		}
		if why != nil {
			e.runner.node.step(lost{key: e.runner.key, reason: fmt.Sprintf("its VM %s is lost: %v", e.machine.ID, why)})
			return
		}
	}
}

// listen says why the guest is given up, nil where it has been heard or need not be.
func (e *enclosure) listen(ctx context.Context, at moving, now time.Time) error {
	if at.away != nil && e.silence(now) > awayLook {
		at.away.look(ctx)
	}
	unsettled := at.doubt || at.away != nil && at.away.onward() != nil // which may be so for ever
	if !unsettled && (e.state() != osvm.Running || at.under) {
		e.mu.Lock()
		e.heard = now // it is somebody's will that it is silent
		e.mu.Unlock()
	}
	if e.silence(now) <= guestSilent {
		return nil
	}
	return e.because(fmt.Errorf("its guest has said nothing for %v", guestSilent))
}

func (e *enclosure) silence(now time.Time) time.Duration {
	e.mu.Lock()
	defer e.mu.Unlock()
	return now.Sub(e.heard)
}

// dial is the guest's way out: to its peers in this attempt, and to nobody else.
func (e *enclosure) dial(ctx context.Context, address string) (net.Conn, error) {
	e.mu.Lock()
	there := e.peers[address]
	e.mu.Unlock()
	if there == "" {
		return nil, fmt.Errorf("the VM of a job is connected to the proxies of that job alone, and %s is none", address)
	}
	return dialOut(ctx, there)
}

func (e *enclosure) meet(peers []*wsdl.Peer) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, p := range peers {
		if p != nil {
			e.peers[cmp.Or(p.Former, p.Address)] = p.Address
		}
	}
}

// arrive takes the guest's registration.
func (e *enclosure) arrive(node *wsdl.Node) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if node == nil || node.Id != e.id || e.over {
		return wsdl.NewFault(wsdl.FaultCodeForbidden, "this VM is to be node "+e.id, "")
	}
	e.heard = time.Now()
	if e.node == nil {
		close(e.up)
	}
	e.node, e.home = node, node.Url
	return nil
}

// hear takes a heartbeat, and answers with the attempt.
func (e *enclosure) hear(id, incarnation string) (*wsdl.Attempt, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.node == nil || id != e.id || incarnation != e.node.Incarnation || e.over {
		return nil, wsdl.NewFault(wsdl.FaultCodeStale, "this VM is node "+e.id+" as it registered", "register")
	}
	e.heard = time.Now()
	return e.attemptLocked(), nil
}

// lease is what the guest gets: long, because it is not the one that counts.
func (e *enclosure) lease() time.Duration { return guestSilent }

// attempt is the fence that calls to the guest carry.
func (e *enclosure) attempt() *wsdl.Attempt {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attemptLocked()
}

func (e *enclosure) attemptLocked() *wsdl.Attempt {
	a := &wsdl.Attempt{Job: e.runner.key.job, Number: int32(e.number), Node: e.id}
	if e.node != nil {
		a.Incarnation = e.node.Incarnation
	}
	return a
}

// queue is the guest's queue service.
func (e *enclosure) queue() *wsdl.QueueClient {
	e.mu.Lock()
	defer e.mu.Unlock()
	return wsdl.NewQueueClient(e.runner.node.caller, e.node.Url+"/services/queue")
}

// instantiate is spawn for an attempt in a VM.
func (e *enclosure) instantiate() *wsdl.Fault {
	r := e.runner
	r.mu.Lock()
	plan := *r.plan
	for _, s := range plan.Process {
		id := int(wsdl.Or(s.Id, 0))
		r.specs[id] = s
		r.statuses[id] = &wsdl.ProcessStatus{Id: wsdl.Of(int32(id)), Task: s.Task, Index: s.Index, Node: r.node.id, State: wsdl.Of(wsdl.ProcessStateWaiting)}
	}
	r.mu.Unlock()
	e.meet(plan.Peer)
	if e.plugged != nil {
		e.plugged.network.meet(plan.Trunk)
		plan.Trunk = nil // the guest has no part in that
	}
	r.node.running.Go(r.guard)
	if e.was != nil {
		return e.resume()
	}
	plan.Attempt = e.attempt()
	if _, err := e.queue().InstantiateContext(r.ctx, &plan); err != nil {
		return r.fault("instantiate it in its VM", e.because(err))
	}
	return nil
}

// reported makes a report of the guest's one of this node's.
func (e *enclosure) reported(report *wsdl.Report) (acknowledged int64) {
	e.reporting.Lock()
	defer e.reporting.Unlock()
	r := e.runner
	e.mu.Lock()
	known, over := e.sequence, e.over
	e.mu.Unlock()
	if over || report.Sequence <= known {
		return max(known, report.Sequence)
	}
	var changed []*wsdl.ProcessStatus
	durable := false
	r.mu.Lock()
	for _, p := range report.Process {
		s := r.statuses[int(wsdl.Or(p.Id, -1))]
		if s == nil || terminal(s) {
			continue
		}
		task, index := s.Task, s.Index
		*s = *p
		s.Node, s.Task, s.Index = r.node.id, task, index
		changed = append(changed, s)
		durable = durable || terminal(s)
	}
	r.traffic.Bytes, r.traffic.Items = report.ProxyBytes, report.ProxyItems
	if report.Quiet != 0 {
		r.quiet = uint64(report.Quiet)
	}
	r.mu.Unlock()
	if report.Failure != "" {
		last := e.here().Console().Last()
		r.log.WithField("console", string(last[max(0, len(last)-consoleKept):])).Warn("the guest of its VM reports a failure: " + report.Failure)
	}
	r.reportAll(changed, report.Failure, report.Lost, durable || report.Failure != "")
	e.mu.Lock()
	defer e.mu.Unlock()
	e.sequence = report.Sequence
	close(e.news)
	e.news = make(chan struct{})
	return report.Sequence
}

// end ends the attempt in the guest, if it is asked to by the broker and the guest
// answers, and hears its last words. The VM is gone when it returns nil.
func (e *enclosure) end(order end) {
	if order.asked {
		ctx, cancel := context.WithTimeout(context.Background(), order.patience()+politeness) // the guest's node takes the first for itself
		if order.grace > 0 {
			go func() {
				select {
				case <-e.runner.hard:
					cancel()
				case <-ctx.Done():
				}
			}()
		}
		e.terminate(ctx, order)
		cancel()
	}
	e.mu.Lock()
	e.over = true
	e.mu.Unlock()
	e.reporting.Lock() // the last that counts is through
	defer e.reporting.Unlock()
}

func (e *enclosure) terminate(ctx context.Context, order end) {
	e.mu.Lock()
	there := e.node != nil
	e.mu.Unlock()
	if !there || e.state() != osvm.Running {
		return
	}
	answer, err := e.queue().TerminateContext(ctx, &wsdl.Terminate{Attempt: e.attempt(), GraceMillis: order.grace.Milliseconds(), Reason: order.reason})
	if err != nil {
		e.runner.log.WithError(err).Debug("the VM did not answer Terminate")
		return
	}
	for last := wsdl.Or(answer.Sequence, 0); ; {
		e.mu.Lock()
		sequence, news := e.sequence, e.news
		e.mu.Unlock()
		if sequence >= last {
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		}
	}
}

// remove ends the VM and removes all that is left of it. Calling it again tries
// again.
func (e *enclosure) remove() error {
	e.drop()
	if e.relay != nil {
		e.relay.close()
	}
	if e.plugged != nil {
		e.plugged.end()
	}
	if e.stop != nil {
		e.stop()
		<-e.kept
	}
	if e.uplink != nil {
		e.uplink.outside.Close()
	}
	e.migrating.Lock()
	defer e.migrating.Unlock()
	for _, a := range e.whereabouts().tried {
		a.destroy()
	}
	return e.runner.node.destroy(e.here())
}
