package node

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"mvm/osvm"
	"mvm/wsdl"
)

const (
	bearer        = "Bearer " // before a token (RFC 6750)
	arrivalLimit  = time.Minute
	mostArrivals  = 64 // that are expected at once
	arrivalSecret = 16 // bytes of a token
	ownerMost     = 200
	arrivalPins   = "arrival:" // begins who pins an image's blobs until a VM has arrived
)

// arrivals are the VMs that other nodes are about to send here. Each was asked for
// by AwaitVM, whose answer is a token that lets that VM in once: without one nobody
// can have this node take anything.
type arrivals struct {
	mu       sync.Mutex // guards what follows
	expected map[string]arrival
	coming   map[string]int // ids of those that are being let in
}

// arrival is one that is expected.
type arrival struct {
	id     string
	memory int64 // MiB
	owner  string
	slots  int
	home   string   // base address of the node that keeps its attempt
	back   *away    // the attempt is this node's, and the machine comes back to it
	image  string   // digest of what its disks lie over; "" without
	source []string // base addresses of nodes that have that
	token  string
	until  time.Duration
}

// expect gives the token for an arrival.
func (a *arrivals) expect(expected arrival, now time.Duration) (token string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for token, other := range a.expected {
		if other.until <= now {
			delete(a.expected, token)
		}
	}
	if len(a.expected) >= mostArrivals {
		return "", fmt.Errorf("%d VMs are expected already", mostArrivals)
	}
	token = random(arrivalSecret)
	expected.until, expected.token = now+arrivalLimit, token
	if a.expected == nil {
		a.expected = map[string]arrival{}
	}
	a.expected[token] = expected
	return token, nil
}

// take is what a token was given for, which it was for this once.
func (a *arrivals) take(authorization string, now time.Duration) (arrival, error) {
	token, _ := strings.CutPrefix(authorization, bearer)
	a.mu.Lock()
	defer a.mu.Unlock()
	expected, there := a.expected[token]
	delete(a.expected, token)
	if !there || expected.until <= now {
		return arrival{}, fmt.Errorf("no VM is expected with that token: AwaitVM gives one, for one VM and %v", arrivalLimit)
	}
	if a.coming == nil {
		a.coming = map[string]int{}
	}
	a.coming[expected.id]++
	return expected, nil
}

// over notes that what take let in is here, or is not.
func (a *arrivals) over(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.coming[id]--; a.coming[id] == 0 {
		delete(a.coming, id)
	}
}

// comes says whether a machine of that id is being let in: that it is not here yet
// does not mean that it will not be.
func (a *arrivals) comes(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.coming[id] > 0
}

// is refuses a machine that is not the one that was asked for.
func (a arrival) is(spec osvm.Spec) error {
	switch {
	case spec.Owner != a.owner:
		return fmt.Errorf("VM %s is expected to belong to %q, and not to %q", a.id, a.owner, spec.Owner)
	case spec.ID != a.id || int64(spec.MemoryMiB) != a.memory:
		return fmt.Errorf("VM %s of %d MiB is expected, and not VM %s of %d MiB", a.id, a.memory, spec.ID, spec.MemoryMiB)
	}
	return nil
}

// AwaitVMContext says to another node whether it may send a VM here.
func (v *machines) AwaitVMContext(ctx context.Context, r *wsdl.AwaitVM) (*wsdl.AwaitVMResponse, error) {
	order, err := v.orderOf(r.Id, nil, r.Memory)
	if err != nil {
		return nil, err
	}
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := host.Get(order.ID); err == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("node %s has a VM %q already", v.node.id, order.ID), "destroy that one first, or choose another node")
	}
	if r.Slots < 0 || len(r.Owner) > ownerMost {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a VM cannot have %d slots and the owner %.80q", r.Slots, r.Owner), "an owner is JOB/NUMBER")
	}
	if err := v.free(order.MemoryMiB, 0, int(r.Slots)); err != nil {
		return nil, err
	}
	expected := awaited(r)
	if r.Image != "" { // now, while nobody waits for the VM
		pins := arrivalPins + random(4)
		if _, err := v.node.below(ctx, expected, pins); err != nil {
			return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("node %s does not get the image below the disks of the VM %s: %v", v.node.id, order.ID, err), "see whether its registration is still there, or choose another node")
		}
		if err := v.node.images.Unpin(pins); err != nil { // it stays for a lease, far longer than a token
			return nil, err
		}
	}
	token, err := v.expect(expected)
	if err != nil {
		return nil, err
	}
	return &wsdl.AwaitVMResponse{Token: token}, nil
}

func awaited(r *wsdl.AwaitVM) arrival {
	return arrival{id: r.Id, memory: r.Memory, owner: r.Owner, slots: int(r.Slots), home: r.Home, image: r.Image, source: r.Source}
}

func (v *machines) expect(expected arrival) (token string, err error) {
	token, err = v.node.arrivals.expect(expected, v.node.clock.Now())
	if err != nil {
		return "", wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s: %v", v.node.id, err), "try again in a minute")
	}
	return token, nil
}

// below is the image that the disks of an arrival lie over, as files of this node,
// pinned; without disks it is none.
func (n *Node) below(ctx context.Context, expected arrival, pins string) (osvm.Image, error) {
	if expected.image == "" {
		return osvm.Image{}, nil
	}
	files, err := n.images.Files(ctx, n.http, expected.source, expected.image, pins)
	if err != nil {
		return osvm.Image{}, err
	}
	return imageOf(files, ""), nil
}
