package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/services/image"
	"mvm/wsdl"
)

// frozen is one VM of a checkpoint of a whole job: what a node makes another
// enclosure of. The guest in it believes to be where it was: its own names, its
// attempt's number and its peers' addresses stay, and its host translates.
type frozen struct {
	Checkpoint  string // of the VM
	Guest       string // its id as a node
	Incarnation string
	URL         string // of its services, as it was published
	Image, Name string
	MemoryMiB   int
	Number      int    // of the attempt, in the guest
	Address     string // of its proxy, as its peers know it
	Fingerprint string
	Published   map[int]string // by port of the guest: addresses at the host that it had
	Sequence    int64          // of its last report that was heard
	Processes   []*wsdl.ProcessStatus
	Build       []*wsdl.BuildStatus
	Network     *wsdl.VMNetwork // its place, also where it goes on
	Bytes       int64           // that its proxy had carried
	Items       int64
}

const (
	frozenMost = 64 << 20         // bytes of one
	takenLimit = 30 * time.Second // for which a VM stands still when nobody says what follows
	blobLease  = 20 * time.Minute // for which a blob on the node that takes results is not asked for again; well below its lease there
)

// snapshots are an enclosure's part in the checkpoints of its job.
type snapshots struct {
	mu     sync.Mutex // one step at a time; guards what follows
	taken  *taken
	pushed map[string]time.Time // blobs that are on the node that takes results, and since when that is known
}

// taken is a state that was taken and is not saved yet.
type taken struct {
	set     int64
	capture *osvm.Capture
	record  frozen
	begun   time.Time
	release *time.Timer // has the VM go on when nobody says what follows
}

// CheckpointAttemptContext is this node's part in a checkpoint of a job in VMs.
func (q *queue) CheckpointAttemptContext(ctx context.Context, request *wsdl.CheckpointAttempt) (*wsdl.CheckpointAttemptResponse, error) {
	n, f := q.node, fenceOf(request.Attempt)
	r, err := n.runner(f)
	if err != nil {
		return nil, err
	}
	step := wsdl.Or(request.Step, "")
	e := r.enclosed()
	switch {
	case e == nil && step == wsdl.CheckpointStepDrop:
		return &wsdl.CheckpointAttemptResponse{}, nil
	case e == nil:
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("attempt %s on node %s is in no OS-level VM", f.key, n.id), `checkpoints are of jobs with isolation="vm"`)
	}
	ctx, stop := r.within(ctx)
	defer stop()
	switch step {
	case wsdl.CheckpointStepTake:
		return &wsdl.CheckpointAttemptResponse{}, e.take(ctx, request.Set)
	case wsdl.CheckpointStepSave:
		return e.save(ctx, request.Set)
	}
	e.snapshots.mu.Lock()
	defer e.snapshots.mu.Unlock()
	e.letGo()
	return &wsdl.CheckpointAttemptResponse{}, nil
}

// within is ctx, and is over when the attempt is: its end, by which its VM is removed,
// must not wait for a store that is perhaps where the broker is, out of reach.
func (r *runner) within(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	over := context.AfterFunc(r.ctx, cancel)
	return ctx, func() { over(); cancel() }
}

// take suspends the VM and takes its state, and what is known of it here: of one
// moment, for nothing that the guest says is heard meanwhile.
func (e *enclosure) take(ctx context.Context, set int64) error {
	s, r := &e.snapshots, e.runner
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.taken != nil && s.taken.set == set {
		return nil // asked twice: another state would not be of the same moment as the other VMs'
	}
	e.letGo()
	if a := e.whereabouts().away; a != nil {
		return wsdl.NewFault(wsdl.FaultCodeUnsupported, fmt.Sprintf("VM %s has moved to node %s, and its state is not taken there", e.machine.ID, a.at), "the job goes on without checkpoints, and from the one before when it must")
	}
	if state := e.here().State(); state != osvm.Running {
		return wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("VM %s is %s", e.machine.ID, state), "resume it: a checkpoint is of a job that runs")
	}
	t := &taken{set: set, begun: time.Now()}
	e.reporting.Lock()
	defer e.reporting.Unlock()
	err := e.here().Suspend(ctx)
	if err == nil {
		t.capture, err = e.here().Capture(ctx)
	}
	if err != nil {
		e.goOn()
		return r.fault("take its VM's state", e.because(err))
	}
	s.taken = t
	e.mu.Lock()
	t.record = frozen{Guest: e.id, Incarnation: e.node.Incarnation, URL: e.home, Image: e.machine.ImageDigest, Name: e.machine.ImageName, MemoryMiB: e.machine.MemoryMiB,
		Number: e.number, Address: e.address, Published: maps.Clone(e.published), Sequence: e.sequence, Network: e.place}
	e.mu.Unlock()
	for port, address := range e.uplink.outside.Published() {
		if _, known := t.record.Published[port]; !known {
			if t.record.Published == nil {
				t.record.Published = map[int]string{}
			}
			t.record.Published[port] = address
		}
	}
	r.mu.Lock()
	t.record.Fingerprint, t.record.Build, t.record.Bytes, t.record.Items = r.answer.Fingerprint, r.answer.Build, r.traffic.Bytes, r.traffic.Items
	for _, p := range r.statuses {
		copied := *p
		t.record.Processes = append(t.record.Processes, &copied)
	}
	r.mu.Unlock()
	t.release = time.AfterFunc(takenLimit, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.taken == t {
			r.log.Warn("nobody says what follows on the VM's state that was taken: it goes on, and the state is forgotten")
			e.letGo()
		}
	})
	return nil
}

// letGo has the VM go on and forgets what was taken of it. snapshots.mu is held.
func (e *enclosure) letGo() {
	t := e.snapshots.taken
	if t == nil {
		return
	}
	e.snapshots.taken = nil
	t.release.Stop()
	e.goOn()
	t.capture.Close()
}

func (e *enclosure) goOn() {
	ctx, cancel := context.WithTimeout(context.Background(), takenLimit)
	defer cancel()
	if err := e.here().Resume(ctx); err != nil {
		e.runner.log.WithError(err).Warn("the VM does not go on") // its watcher sees why
	}
}

// save has the VM go on at once and stores what was taken on the node that takes
// results.
func (e *enclosure) save(ctx context.Context, set int64) (*wsdl.CheckpointAttemptResponse, error) {
	s, r := &e.snapshots, e.runner
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.taken
	if t == nil || t.set != set {
		return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("of attempt %s no state for set %d was taken on node %s, or it was given up", r.key, set, r.node.id), "begin with another set")
	}
	s.taken = nil
	t.release.Stop()
	defer t.capture.Close()
	e.goOn()
	pause := time.Since(t.begun)
	blobs := e.stored()
	saved, err := t.capture.Save(ctx, blobs)
	if sent := blobs.sent(); err == nil {
		err = sent
	}
	if ctx.Err() != nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, fmt.Sprintf("the state of attempt %s on node %s is not stored: who asked for it has hung up", r.key, r.node.id), "begin with another checkpoint")
	}
	if err != nil {
		return nil, r.fault("save its VM's state", err)
	}
	t.record.Checkpoint = saved.Digest
	text, err := json.Marshal(t.record)
	if err != nil {
		return nil, r.internal("save its VM's state", err)
	}
	record := image.Digest(sha256.Sum256(text))
	if err = blobs.Put(ctx, record, text); err == nil {
		err = blobs.sent()
	}
	if err != nil {
		return nil, r.fault("save its VM's state", err)
	}
	for _, p := range t.record.Processes {
		for _, f := range p.File {
			if f != nil && f.Digest != "" {
				blobs.named[f.Digest] = true
			}
		}
	}
	maps.DeleteFunc(s.pushed, func(digest string, _ time.Time) bool { return !blobs.named[digest] })
	r.log.WithField("bytes", saved.Bytes).WithField("chunks", saved.Written).WithField("pause", pause).Info("checkpoint of the VM is stored")
	return &wsdl.CheckpointAttemptResponse{Record: record, Address: t.record.Address, Blob: slices.Sorted(maps.Keys(blobs.named)), PauseMillis: pause.Milliseconds()}, nil
}

// drop forgets what was taken, of a VM that ends.
func (e *enclosure) drop() {
	e.snapshots.mu.Lock()
	defer e.snapshots.mu.Unlock()
	if t := e.snapshots.taken; t != nil {
		e.snapshots.taken = nil
		t.release.Stop()
		t.capture.Close()
	}
}

// stored is the store of the node that takes an attempt's results, as checkpoints
// use it. snapshots.mu is held while it is used to save, by one goroutine.
type stored struct {
	enclosure *enclosure
	named     map[string]bool // all that was asked about

	sending sync.WaitGroup
	places  chan struct{} // of those at once
	mu      sync.Mutex    // guards what follows, and snapshots.pushed while there are any
	failed  error         // the first
}

const sendAtOnce = 8 // a blob costs its store waits for the disk, which several can share

func (e *enclosure) stored() *stored {
	return &stored{enclosure: e, named: map[string]bool{}, places: make(chan struct{}, sendAtOnce)}
}

func (s *stored) Has(digest string) bool {
	s.named[digest] = true
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.enclosure.snapshots.pushed[digest]
	return known && time.Since(at) < blobLease
}

// Put begins to send a blob. That all are there, sent says.
func (s *stored) Put(ctx context.Context, digest string, content []byte) error {
	s.named[digest] = true
	s.places <- struct{}{}
	s.mu.Lock()
	err := s.failed
	s.mu.Unlock()
	if err != nil {
		<-s.places
		return err
	}
	data := wsdl.Binary(slices.Clone(content))
	s.sending.Go(func() {
		defer func() { <-s.places }()
		e := s.enclosure
		client := wsdl.NewImageClient(e.runner.node.caller, e.runner.request.Image[0]+"/services/image")
		_, err := client.PutBlobContext(ctx, &wsdl.PutBlob{Digest: digest, Size: wsdl.Of(int64(len(data))), Offset: 0, Data: &data})
		s.mu.Lock()
		defer s.mu.Unlock()
		switch {
		case err == nil && e.snapshots.pushed == nil:
			e.snapshots.pushed = map[string]time.Time{digest: time.Now()}
		case err == nil:
			e.snapshots.pushed[digest] = time.Now()
		case s.failed == nil:
			s.failed = err
		}
	})
	return nil
}

// sent waits until all blobs that were put are there.
func (s *stored) sent() error {
	s.sending.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *stored) Get(ctx context.Context, digest string, most int) ([]byte, error) {
	r := s.enclosure.runner
	if err := r.node.images.Fetch(ctx, r.node.http, r.request.Image, digest); err != nil {
		return nil, err
	}
	file, size, err := r.node.images.Open(digest)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > int64(most) {
		return nil, fmt.Errorf("blob %s has %d bytes, and may have %d: %w", digest, size, most, osvm.ErrCorrupt)
	}
	return io.ReadAll(file)
}

// restore is load for an attempt that goes on from a checkpoint: the VM is there,
// and stands still until Instantiate says where its peers are.
func (e *enclosure) restore() (err error) {
	r, n := e.runner, e.runner.node
	blobs := e.stored()
	text, err := blobs.Get(r.ctx, r.request.Restore, frozenMost)
	if err != nil {
		return err
	}
	was := &frozen{}
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(was); err != nil || was.Guest == "" || was.Number < 1 {
		return fmt.Errorf("%w: its record %s cannot be read: %w", osvm.ErrCorrupt, r.request.Restore, errors.Join(err, errors.New("it names no guest")))
	}
	if e.place = was.Network; e.place != nil {
		if err := checkNetwork(e.place); err != nil {
			return fmt.Errorf("%w: %w", osvm.ErrCorrupt, err)
		}
	}
	e.was, e.id, e.number, e.address, e.home, e.published, e.sequence = was, was.Guest, was.Number, was.Address, was.URL, was.Published, was.Sequence
	order := osvm.Order{ID: r.vmID(), Owner: r.key.String(), Image: osvm.Image{Name: was.Name, Digest: was.Image}}
	if order.Limits, err = n.boundedLimits(r.request.Vm.Limits); err != nil {
		return err
	}
	c, err := osvm.ReadCheckpoint(r.ctx, blobs, was.Checkpoint)
	if err != nil {
		return err
	}
	if len(c.Disks) > 0 { // which hold what differs from the image's
		files, err := n.images.Files(r.ctx, n.http, r.request.Image, c.Image, vmPins+order.ID)
		if err != nil {
			return err
		}
		order.Image = imageOf(files, was.Name)
	}
	if e.machine, err = n.host.Restore(r.ctx, order, blobs, was.Checkpoint); err != nil {
		return errors.Join(err, n.images.Unpin(vmPins+order.ID))
	}
	r.mu.Lock()
	r.vm = e // from here on its end is the runner's
	r.mu.Unlock()
	for port, address := range was.Published {
		if err := e.machine.Publish(port, address); err != nil {
			return err
		}
	}
	if err := e.connect(); err != nil {
		return err
	}
	if e.place != nil {
		if err := e.plug(); err != nil {
			return err
		}
	}
	now := e.uplink.outside.Published()
	answer := &wsdl.AwakenResponse{Fingerprint: was.Fingerprint, Build: was.Build, Trunk: e.trunk()}
	for port, address := range was.Published {
		if address == was.Address {
			answer.Address = now[port]
		}
		if "http://"+address == was.URL {
			e.node = &wsdl.Node{Id: was.Guest, Incarnation: was.Incarnation, Url: "http://" + now[port]}
		}
	}
	if e.node == nil || answer.Address == "" && was.Address != "" {
		return fmt.Errorf("%w: its record says nothing of where its services were", osvm.ErrCorrupt)
	}
	close(e.up)
	for _, b := range answer.Build {
		b.Node = n.id
	}
	r.mu.Lock()
	r.answer = answer
	r.traffic.Bytes, r.traffic.Items = was.Bytes, was.Items
	r.mu.Unlock()
	return nil
}

// unrestored is the fault about what cannot be gone on from: what is damaged or
// missing will be so again, and the job begins anew.
func (e *enclosure) unrestored(err error) *wsdl.Fault {
	r := e.runner
	fault := r.fault("restore its VM", err)
	if errors.Is(err, osvm.ErrCorrupt) {
		fault = wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("node %s could not restore the VM of attempt %s: %v", r.node.id, r.key, err), "begin the job anew")
	}
	return fault
}

// resume is spawn for such an attempt. What had ended before is told again: the
// broker has not heard of it in this attempt.
func (e *enclosure) resume() *wsdl.Fault {
	r := e.runner
	var ended []*wsdl.ProcessStatus
	e.mu.Lock()
	e.heard = time.Now()
	e.mu.Unlock()
	r.mu.Lock()
	for _, p := range e.was.Processes {
		if s := r.statuses[int(wsdl.Or(p.Id, -1))]; s != nil {
			*s = *p
			s.Node = r.node.id
			if terminal(s) {
				ended = append(ended, s)
			}
		}
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(r.ctx, guestStart)
	defer cancel()
	session, err := e.machine.Start(ctx, guest.Identity{})
	if err != nil {
		return r.fault("have its VM go on", e.because(err))
	}
	living := e.live(session)
	r.node.running.Go(func() { e.watch(living) })
	if len(ended) > 0 {
		r.report(ended, "", true)
	}
	return nil
}
