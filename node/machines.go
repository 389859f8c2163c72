package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/services/image"
	"mvm/wsdl"
)

// machines is the node's vm service: the OS-level VMs of this machine, which a
// Host keeps. A VM that was made for a person is the ledger's business only in
// that its memory is not there for attempts; one that was made for an attempt is
// booked with it.
type machines struct {
	wsdl.VMWithoutContext
	node *Node
}

var _ wsdl.VMPortType = (*machines)(nil)

// Machines is the node's vm service. It serves from New on.
func (n *Node) Machines() wsdl.VMContext {
	v := &machines{node: n}
	v.Server = v
	return v
}

const (
	vmPins       = "vm:"            // before the id: who pins an image's blobs for a VM
	makeLimit    = 15 * time.Minute // for a VM to be made, its image's way here included
	roomInVM     = 64               // MiB beside what the image starts in, where nobody says: for its being a node, as broker gives it to a job's
	defaultGrace = 10 * time.Second
	longestGrace = time.Minute

	statisticsLimit = 2 * time.Second // for QEMU to answer
)

// making is a VM that is being made: who asks for it again waits for the same.
type making struct {
	wish string // what it is to be
	done chan struct{}
	vm   *osvm.Machine
	err  error
}

// openHost finds QEMU and opens the VMs of this machine: those of an earlier life
// are taken over. Whatever is wrong with them, the node does without.
func (n *Node) openHost() error {
	if n.config.Accelerator == "" {
		n.hostless = "it was started without (--accelerator none)"
		return nil
	}
	q, err := osvm.Probe(n.living)
	switch {
	case errors.Is(err, osvm.ErrNone):
		n.hostless = err.Error()
		return nil
	case err != nil:
		n.hostless = "its QEMU does not work: " + err.Error()
		n.log.WithError(err).Warn("QEMU is installed but does not work")
		return nil
	}
	n.qemu = q.Version
	host, err := osvm.NewHost(n.living, osvm.HostConfig{
		Dir: filepath.Join(n.folders.root, "vm"), Templates: n.config.VMTemplates, QEMU: q, Accelerator: n.config.Accelerator, Boot: n.config.VMBoot, Log: n.log.Logger,
	})
	if err != nil {
		n.hostless = err.Error()
		n.log.WithError(err).Warn("there can be no VMs on this node")
		return nil
	}
	n.host = host
	for _, m := range host.List() {
		if m.Owner != "" { // the attempt that it was for ended with the node's last life
			if err := m.Destroy(); err != nil {
				n.log.WithError(err).Warn("the VM of an old attempt is left")
			}
			continue
		}
		go n.attend(m)
		if err := n.join(m, nil); err != nil {
			n.log.WithError(err).Warn("a VM that runs on is cut off")
		}
	}
	for _, owner := range n.images.Owners() {
		id, ours := strings.CutPrefix(owner, vmPins)
		if ours {
			_, err := host.Get(id)
			ours = err != nil
		}
		if ours || strings.HasPrefix(owner, arrivalPins) {
			if err := n.images.Unpin(owner); err != nil {
				return err
			}
		}
	}
	return nil
}

// closeHost lets the VMs run on for the node's next life, or ends them with a node
// that has none.
func (n *Node) closeHost() {
	if n.host == nil {
		return
	}
	if n.config.EndVMs {
		for _, m := range n.host.List() {
			if err := n.destroy(m); err != nil {
				n.log.WithError(err).Warn("a VM is left")
			}
		}
	}
	if err := n.host.Close(); err != nil {
		n.log.WithError(err).Warn("the VMs are not let go")
	}
}

// accelerator is what VMs run with here, "" where there are none.
func (n *Node) accelerator() string {
	if n.host == nil {
		return ""
	}
	return string(n.host.Accelerator())
}

// attend has the memory of a VM be free once it has ended, and notes why one has
// whose end nobody asked for.
func (n *Node) attend(m *osvm.Machine) {
	<-m.Ended()
	n.booked()
	if !m.Wanted() {
		last := m.Console().Last()
		n.log.WithError(m.Reason()).WithField("vm", m.ID).WithField("console", string(last[max(0, len(last)-consoleKept):])).Warn("a VM has ended by itself")
	}
}

// vmsTake is what VMs take that no attempt has booked, those included that are to come.
// n.taking is held.
func (n *Node) vmsTake() vmsTake {
	sum := n.lodgers.take()
	for _, c := range n.coming {
		sum.Memory += c.Memory
		sum.Slots += c.Slots
	}
	if n.host != nil {
		for _, m := range n.host.List() {
			if m.Owner == "" && m.State() != osvm.Ended {
				sum.Memory += int64(m.MemoryMiB)
			}
		}
	}
	return vmsTake{sum}
}

// find is one of this node's VMs.
func (v *machines) find(ctx context.Context, id string) (*osvm.Machine, error) {
	host, err := v.host(ctx)
	if err != nil {
		return nil, err
	}
	coming := v.node.arrivals.comes(id) // asked first: it is in one of the two
	m, err := host.Get(id)
	switch {
	case err == nil:
		return m, nil
	case coming:
		return nil, wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("the VM %s is arriving on node %s", id, v.node.id), "try again in a moment")
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("node %s has no VM %.80q", v.node.id, id), "`mvm vm ls` lists those of all nodes")
}

// host is what keeps the VMs, or a fault that names nodes which have some.
func (v *machines) host(ctx context.Context) (*osvm.Host, error) {
	if v.node.host != nil {
		return v.node.host, nil
	}
	fault := wsdl.NewFault(wsdl.FaultCodeWrongNode, fmt.Sprintf("node %s has no VMs: %s", v.node.id, v.node.hostless), "install QEMU on a node of the grid (Debian: qemu-system-x86) and start it again")
	var others []string
	for _, other := range v.others(ctx) {
		if fault.Address == "" {
			fault.Address = other.Url + "/services/vm"
		}
		others = append(others, other.Id+" ("+other.Url+")")
	}
	if len(others) > 0 {
		fault.Advice = "ask a node that can have VMs: " + strings.Join(others, ", ")
	}
	return nil, fault
}

// others are nodes that can have VMs, as far as the broker says so at once.
func (v *machines) others(ctx context.Context) []*wsdl.Node {
	const patience, most = 2 * time.Second, 5
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	answer, err := wsdl.NewBrokerClient(v.node.caller, v.node.brokerURL()).ListNodesContext(ctx, &wsdl.ListNodes{})
	if err != nil {
		return nil
	}
	able := slices.DeleteFunc(answer.Node, func(n *wsdl.Node) bool { return n == nil || n.Accelerator == "" || n.State != "up" })
	return able[:min(len(able), most)]
}

// stateOf is a machine's state as others see it: one that waits for room on the disk
// stands still, too.
func stateOf(m *osvm.Machine) osvm.State {
	if m.Stalled() {
		return osvm.Suspended
	}
	return m.State()
}

// tell is a VM as the contract has it, with what it uses where that can be said
// soon.
func (v *machines) tell(ctx context.Context, m *osvm.Machine) *wsdl.VirtualMachine {
	state := stateOf(m)
	vm := &wsdl.VirtualMachine{
		Id: m.ID, Node: v.node.id, State: wsdl.Of(wsdl.VMState(state)), Image: m.ImageDigest, ImageName: m.ImageName,
		Accelerator: string(m.Accelerator), Memory: int64(m.MemoryMiB), Owner: m.Owner, Created: wsdl.Date(m.Created),
		Console: m.Console().Holder(),
	}
	if s := m.Segment; s != nil {
		vm.Network = s.Name
		vm.Address, _, _ = strings.Cut(s.Address, "/")
	}
	if reason := m.Reason(); state == osvm.Ended && reason != nil {
		vm.Reason = reason.Error()
	}
	if m.Stalled() {
		vm.Reason = fmt.Sprintf("the disk of node %s has no room for what it writes: it goes on when there is some, there or on a node that it moves to", v.node.id)
	}
	vm.Limits = toldLimits(m.Limits)
	if state != osvm.Ended {
		ctx, cancel := context.WithTimeout(ctx, statisticsLimit)
		defer cancel()
		if s, err := m.Statistics(ctx); err == nil {
			vm.Statistics = &wsdl.VMStatistics{
				CpuMillis: wsdl.Of(s.CPU.Milliseconds()), Memory: wsdl.Of(s.MemoryBytes), DiskRead: wsdl.Of(s.DiskRead), DiskWritten: wsdl.Of(s.DiskWritten),
				Received: wsdl.Of(s.NetworkToGuest), Sent: wsdl.Of(s.NetworkToHost),
			}
		}
	}
	return vm
}

func (v *machines) ListVMsContext(ctx context.Context, _ *wsdl.ListVMs) (*wsdl.ListVMsResponse, error) {
	response := &wsdl.ListVMsResponse{}
	if v.node.host == nil {
		return response, nil
	}
	all := v.node.host.List()
	response.Vm = make([]*wsdl.VirtualMachine, len(all))
	var asking sync.WaitGroup
	for i, m := range all {
		asking.Go(func() { response.Vm[i] = v.tell(ctx, m) })
	}
	asking.Wait()
	return response, nil
}

func (v *machines) GetVMContext(ctx context.Context, r *wsdl.GetVM) (*wsdl.GetVMResponse, error) {
	m, err := v.find(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	return &wsdl.GetVMResponse{Vm: v.tell(ctx, m)}, nil
}

// CreateVMContext makes a VM, or finds it made.
func (v *machines) CreateVMContext(ctx context.Context, r *wsdl.CreateVM) (*wsdl.CreateVMResponse, error) {
	order, err := v.orderOf(r.Id, r.Limits, r.Memory)
	if err != nil {
		return nil, err
	}
	if _, err := v.host(ctx); err != nil {
		return nil, err
	}
	if order.Segment, err = v.node.segment(r.Network, r.NetworkKey); err != nil {
		return nil, err
	}
	order.Network = order.Segment != nil
	vm, err := v.make(ctx, order.ID, r.Id == "", fmt.Sprintf("create %q %d %v %q %q", r.Image, order.MemoryMiB, order.Limits, r.Network, r.NetworkKey), r.Suspended, func(m *osvm.Machine) bool {
		return m.Owner == "" && order.Segment.Same(m.Segment) && slices.Contains([]string{m.ImageName, m.ImageDigest, imageName(m.ImageName)}, r.Image) &&
			(order.MemoryMiB == 0 || order.MemoryMiB == m.MemoryMiB) && order.Limits == m.Limits
	}, func(ctx context.Context) (*osvm.Machine, error) { return v.create(ctx, order, r.Image) })
	if err != nil {
		return nil, err
	}
	return &wsdl.CreateVMResponse{Vm: vm}, nil
}

// orderOf is what a request asks of a machine, all but what it begins from.
func (v *machines) orderOf(id string, l *wsdl.VMLimits, memory int64) (order osvm.Order, err error) {
	order.ID, order.MemoryMiB = id, int(memory)
	if order.ID == "" {
		order.ID = "vm-" + random(4)
	}
	if !osvm.ValidID(order.ID) {
		return order, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("%.80q cannot be the id of a VM", order.ID), "write a letter or digit, then up to 62 letters, digits, '_', '.' or '-'")
	}
	if memory < 0 || memory > vmMost {
		return order, notSoMuch(memory)
	}
	order.Limits, err = v.node.boundedLimits(l)
	return order, err
}

// boundedLimits are a machine's limits as they are asked for, within what this node
// lets one have.
func (n *Node) boundedLimits(want *wsdl.VMLimits) (osvm.Limits, error) {
	bounded, against := n.queueLimits.bounded(want)
	if against != "" {
		return osvm.Limits{}, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("node %s does not make %s", n.id, against), "ask for less, or for another node")
	}
	return limitsOf(&bounded)
}

const vmMost = 1 << 40 // of any limit: it then fits wherever it is multiplied

func notSoMuch(number int64) error {
	return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("a VM cannot have a memory or limit of %d", number), "leave out what is not to be limited")
}

// limitsOf are a machine's limits as they are asked for.
func limitsOf(l *wsdl.VMLimits) (limits osvm.Limits, err error) {
	if l == nil {
		return limits, nil
	}
	for _, number := range []int64{int64(l.CpuPercent), l.Disk, l.DiskRate, l.NetworkRate} {
		if number < 0 || number > vmMost {
			return limits, notSoMuch(number)
		}
	}
	limits = osvm.Limits{CPUs: float64(l.CpuPercent) / 100, DiskMiB: int(l.Disk), DiskBytesPerSecond: l.DiskRate << 10, NetworkBytesPerSecond: l.NetworkRate << 10}
	if err := limits.Check(); err != nil {
		return limits, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "leave out what is not to be limited")
	}
	return limits, nil
}

// toldLimits are a machine's limits as the contract has them, nil where it has none.
func toldLimits(l osvm.Limits) *wsdl.VMLimits {
	if l == (osvm.Limits{}) {
		return nil
	}
	return &wsdl.VMLimits{CpuPercent: int32(l.CPUs*100 + 0.5), Disk: int64(l.DiskMiB), DiskRate: l.DiskBytesPerSecond >> 10, NetworkRate: l.NetworkBytesPerSecond >> 10}
}

// make has a VM made and started, unless it is there or being made, which it must
// be as it is wished now: fits says so of one that is there. The making goes on
// when the caller is gone, for whoever calls again with its id; where the id was
// given here, it is undone then.
func (v *machines) make(ctx context.Context, id string, given bool, wish string, suspended bool, fits func(*osvm.Machine) bool, do func(context.Context) (*osvm.Machine, error)) (*wsdl.VirtualMachine, error) {
	made, err := v.begin(id, wish, suspended, fits, do)
	if err != nil {
		return nil, err
	}
	select {
	case <-made.done:
	case <-ctx.Done():
		if given {
			go v.forsake(made)
		}
		return nil, wsdl.NewFault(wsdl.FaultCodeTimeout, "the caller did not wait for the VM", "call again: with an id it joins what is under way")
	}
	if made.err != nil {
		return nil, made.err
	}
	return v.tell(ctx, made.vm), nil
}

func (v *machines) begin(id, wish string, suspended bool, fits func(*osvm.Machine) bool, do func(context.Context) (*osvm.Machine, error)) (*making, error) {
	n := v.node
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.living.Err() != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, "node "+n.id+" shuts down", "ask another node")
	}
	if under := n.makings[id]; under != nil {
		if under.wish != wish {
			return nil, differs(id, n.id)
		}
		return under, nil
	}
	if m, err := n.host.Get(id); err == nil {
		if !fits(m) {
			return nil, differs(id, n.id)
		}
		done := make(chan struct{})
		close(done)
		return &making{done: done, vm: m}, nil
	}
	made := &making{wish: wish, done: make(chan struct{})}
	n.makings[id] = made
	n.running.Go(func() {
		ctx, cancel := context.WithTimeout(n.living, makeLimit)
		defer cancel()
		if made.vm, made.err = do(ctx); made.err == nil {
			n.booked()
			go n.attend(made.vm)
			if !suspended {
				if err := v.start(ctx, made.vm); err != nil {
					made.err = errors.Join(err, n.destroy(made.vm))
				}
			}
		}
		if made.err != nil {
			made.err = v.refusal(id, made.err)
		}
		n.mu.Lock()
		delete(n.makings, id)
		n.mu.Unlock()
		close(made.done)
	})
	return made, nil
}

func differs(id, node string) error {
	return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("node %s has a VM %q already, and not as it is wished now", node, id), "choose another id, or destroy that VM first")
}

// imageName is NAME of NAME@VERSION.
func imageName(text string) string {
	name, _, _ := strings.Cut(text, "@")
	return name
}

// forsake removes what was made for a caller that is gone.
func (v *machines) forsake(made *making) {
	<-made.done
	if made.err == nil {
		if err := v.node.destroy(made.vm); err != nil {
			v.node.log.WithError(err).Warn("a VM that nobody waited for is left")
		}
	}
}

// create makes a VM out of an image, or leaves nothing.
func (v *machines) create(ctx context.Context, order osvm.Order, name string) (_ *osvm.Machine, err error) {
	n := v.node
	pins := vmPins + order.ID
	defer func() {
		if err != nil {
			err = errors.Join(err, n.images.Unpin(pins))
		}
	}()
	if order.Image, err = v.image(ctx, name, pins); err != nil {
		return nil, err
	}
	if order.MemoryMiB == 0 {
		order.MemoryMiB = max(order.Image.LeastMemoryMiB+roomInVM, osvm.LeastMemoryMiB)
	}
	over, err := v.book(order.MemoryMiB, order.Limits.DiskMiB, 0)
	if err != nil {
		return nil, err
	}
	defer over()
	order.Template = true
	return n.host.Create(ctx, order)
}

// coming is what a VM takes that is being made or arrives.
type coming struct{ room }

// book is free, and has the memory and the slots be taken until over is called, when the
// VM is there, and takes them itself, or does not come.
func (v *machines) book(memoryMiB, diskMiB, slots int) (over func(), err error) {
	n := v.node
	n.taking.Lock()
	defer n.taking.Unlock()
	if err := v.free(memoryMiB, diskMiB, slots); err != nil {
		return nil, err
	}
	c := &coming{room{Slots: slots, Memory: int64(memoryMiB)}}
	n.coming = append(n.coming, c)
	n.step(n.vmsTake())
	return func() {
		n.taking.Lock()
		defer n.taking.Unlock()
		n.coming = slices.DeleteFunc(n.coming, func(other *coming) bool { return other == c })
		n.step(n.vmsTake())
	}, nil
}

// free refuses a VM that this machine has no memory or disk for, or no slots for the
// attempt that comes in it.
func (v *machines) free(memoryMiB, diskMiB, slots int) error {
	v.node.mu.Lock()
	free := v.node.ledger.free()
	v.node.mu.Unlock()
	if int64(memoryMiB) > free.Memory {
		return wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s has %d MiB of memory free, and the VM is to have %d", v.node.id, free.Memory, memoryMiB), "ask for less, or for another node")
	}
	if slots > free.Slots {
		return wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("node %s has %d slots free, and the VM's attempt has %d", v.node.id, free.Slots, slots), "choose another node")
	}
	return v.node.diskFor(int64(memoryMiB), int64(diskMiB))
}

// start has a VM begin to run, as a guest of its own.
func (v *machines) start(ctx context.Context, m *osvm.Machine) error {
	n := v.node
	identity, err := json.Marshal(Guest{ID: n.id + "." + m.ID, Name: m.ID, Version: n.config.Version, Join: relayURL})
	if err != nil {
		return err
	}
	session, err := m.Start(ctx, guest.Identity{Node: identity})
	if err != nil {
		return err
	}
	return errors.Join(n.join(m, session), n.attach(m), n.place(ctx, m))
}

// join has a person's VM be a node of the grid, as long as it lives: it joins
// through this one. session is nil for a VM that was taken over.
func (n *Node) join(m *osvm.Machine, session *link.Session) error {
	up, err := n.connect(m, link.OutsideConfig{Relay: n.toSelf, Dial: dialOut})
	if err != nil {
		if session != nil {
			_ = session.Close()
		}
		return err
	}
	go up.keep(n.living, session)
	return nil
}

// image makes a registered image files of this node, pinned.
func (v *machines) image(ctx context.Context, name, pins string) (osvm.Image, error) {
	n := v.node
	n.mu.Lock()
	service := wsdl.NewImageClient(n.caller, n.url+"/services/image")
	n.mu.Unlock()
	request, err := imageNamed(ctx, service, name)
	if err != nil {
		return osvm.Image{}, err
	}
	answer, err := service.GetImageContext(ctx, request)
	if err != nil {
		return osvm.Image{}, err
	}
	files, err := n.images.Files(ctx, n.http, answer.Source, answer.Image.Digest, pins)
	if err != nil {
		return osvm.Image{}, err
	}
	return imageOf(files, fmt.Sprintf("%s@%d", answer.Image.Name, answer.Image.Version)), nil
}

// imageOf is an image as machines have it.
func imageOf(files *image.Files, name string) osvm.Image {
	m := files.Manifest
	of := osvm.Image{
		Name: name, Digest: files.Digest, Kernel: files.Path(image.Kernel), Initrd: files.Path(image.Initrd),
		CommandLine: m.CommandLine, LeastMemoryMiB: m.LeastMemory, Release: m.Release,
	}
	if disk, there := m.File(image.Disk); there {
		of.Disks = append(of.Disks, osvm.Disk{Path: files.Path(image.Disk), Format: disk.Format})
		if base, there := m.File(image.Base); there {
			of.Disks[0].Base, of.Disks[0].BaseFormat = files.Path(image.Base), base.Format
		}
	}
	if seed, there := m.File(image.Seed); there {
		of.Disks = append(of.Disks, osvm.Disk{Path: files.Path(image.Seed), Format: seed.Format, ReadOnly: true})
	}
	return of
}

// imageNamed says which image NAME, NAME@VERSION or a digest is.
func imageNamed(ctx context.Context, service *wsdl.ImageClient, name string) (*wsdl.GetImage, error) {
	if !strings.Contains(name, ":") {
		name, version, given := strings.Cut(name, "@")
		number, err := strconv.ParseInt(version, 10, 32)
		if given && (err != nil || number < 1) {
			return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the image %q has no version %q", name, version), "write NAME or NAME@NUMBER; `mvm image ls` lists them")
		}
		return &wsdl.GetImage{Name: name, Version: int32(number)}, nil
	}
	answer, err := service.ListImagesContext(ctx, &wsdl.ListImages{})
	if err != nil {
		return nil, err
	}
	for _, i := range answer.Image {
		if i != nil && i.Digest == name {
			return &wsdl.GetImage{Name: i.Name, Version: i.Version}, nil
		}
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("no image with the digest %s is registered", name), "`mvm image ls` lists those that are")
}

// refusal is why a VM is not made, as a fault.
func (v *machines) refusal(id string, err error) error {
	var fault *wsdl.Fault
	switch {
	case errors.As(err, &fault):
		return err
	case errors.Is(err, osvm.ErrOrder):
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "ask for it otherwise")
	case isFull(err):
		return wsdl.NewFault(wsdl.FaultCodeBusy, fmt.Sprintf("VM %s: the disk of node %s is full: %v", id, v.node.id, err), "free some space there, or ask another node")
	case errors.Is(err, context.DeadlineExceeded):
		return wsdl.NewFault(wsdl.FaultCodeTimeout, fmt.Sprintf("VM %s was not made in %v: %v", id, makeLimit, err), "look into the node's log")
	}
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, err.Error(), "look into the log of node "+v.node.id)
}

// turn has a VM go on or stand still; state is the one in which nothing is to do.
func (v *machines) turn(ctx context.Context, id string, state osvm.State, do func(ctx context.Context, m *osvm.Machine) error) (*wsdl.VirtualMachine, error) {
	m, err := v.apart(ctx, id)
	if err != nil {
		return nil, err
	}
	switch now := m.State(); {
	case now == osvm.Ended:
		return nil, v.ended(m)
	case now == osvm.Created && state == osvm.Suspended:
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("the VM %s has not begun to run", m.ID), "`mvm vm resume` starts it")
	case now == state:
		return v.tell(ctx, m), nil
	}
	if err := do(ctx, m); err != nil {
		if m.State() == osvm.Ended {
			return nil, v.ended(m)
		}
		return nil, v.refusal(id, err)
	}
	return v.tell(ctx, m), nil
}

func (v *machines) ended(m *osvm.Machine) error {
	return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("the VM %s has ended: %v", m.ID, m.Reason()), "destroy it, and create another")
}

func (v *machines) SuspendVMContext(ctx context.Context, r *wsdl.SuspendVM) (*wsdl.SuspendVMResponse, error) {
	vm, err := v.turn(ctx, r.Id, osvm.Suspended, func(ctx context.Context, m *osvm.Machine) error { return m.Suspend(ctx) })
	return &wsdl.SuspendVMResponse{Vm: vm}, err
}

func (v *machines) ResumeVMContext(ctx context.Context, r *wsdl.ResumeVM) (*wsdl.ResumeVMResponse, error) {
	vm, err := v.turn(ctx, r.Id, osvm.Running, func(ctx context.Context, m *osvm.Machine) error {
		if m.State() == osvm.Created {
			return v.start(ctx, m)
		}
		return m.Resume(ctx)
	})
	return &wsdl.ResumeVMResponse{Vm: vm}, err
}

// mine refuses what would end an attempt's VM behind the back of its job.
func mine(m *osvm.Machine, force bool) error {
	if m.Owner != "" && !force {
		return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("the VM %s belongs to %s, which would fail by that", m.ID, m.Owner), "cancel the job, or say force (--force)")
	}
	return nil
}

// apart finds a VM that is no job's. A job's VMs stand still and go on together, by
// its broker's word (CheckpointAttempt): one that runs for a moment amid that tears
// the cut, and a second one of it would have the keys of its links.
func (v *machines) apart(ctx context.Context, id string) (*osvm.Machine, error) {
	m, err := v.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if m.Owner != "" {
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("the VM %s belongs to %s: it is suspended, resumed, checkpointed and cloned with its whole job only", m.ID, m.Owner), `have its job make checkpoints (<policy checkpoint="SECONDS">), or migrate the VM`)
	}
	return m, nil
}

func (v *machines) StopVMContext(ctx context.Context, r *wsdl.StopVM) (*wsdl.StopVMResponse, error) {
	m, err := v.find(ctx, r.Id)
	if err == nil {
		err = mine(m, r.Force)
	}
	if err != nil {
		return nil, err
	}
	grace := defaultGrace
	if r.GraceMillis != nil {
		grace = min(max(0, millis(*r.GraceMillis)), longestGrace)
	}
	if m.State() != osvm.Ended {
		ctx, cancel := context.WithTimeout(ctx, grace)
		defer cancel()
		if err := m.Stop(ctx); err != nil {
			return nil, v.refusal(r.Id, err)
		}
		v.node.booked()
	}
	return &wsdl.StopVMResponse{Vm: v.tell(ctx, m)}, nil
}

func (v *machines) DestroyVMContext(ctx context.Context, r *wsdl.DestroyVM) (*wsdl.DestroyVMResponse, error) {
	m, err := v.find(ctx, r.Id)
	if err == nil {
		err = mine(m, r.Force)
	}
	if err != nil {
		return nil, err
	}
	if err := v.node.destroy(m); err != nil {
		return nil, v.refusal(r.Id, err)
	}
	return &wsdl.DestroyVMResponse{}, nil
}

// destroy ends a VM and lets go of its image.
func (n *Node) destroy(m *osvm.Machine) error {
	err := errors.Join(m.Destroy(), n.images.Unpin(vmPins+m.ID))
	n.booked()
	return err
}

// booked tells the ledger, and by it the grid, what VMs take.
func (n *Node) booked() {
	n.taking.Lock() // or what is told last may not be the newest
	defer n.taking.Unlock()
	n.step(n.vmsTake())
}
