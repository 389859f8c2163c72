package osvm

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
)

// Arrival is a machine that another host wants to send.
type Arrival struct {
	Migration string // its id, by which the source asks for the outcome
	Spec      Spec   // Kernel and Initrd are empty: it boots no more; its disks have no paths
	Running   bool   // it is to run here at once
	Extra     []byte // as Migration.Extra was
}

// MigrateFrom takes the machine that the host at the other end of conn sends by
// MigrateTo; conn is authenticated, and closed by this. Nothing of the machine is
// made before admit agrees, whose error the source hears; for a machine with disks
// it gives the image that these began as, as it is here. When it returns an error
// nothing is left here.
func (h *Host) MigrateFrom(ctx context.Context, conn net.Conn, admit func(Arrival) (Image, error)) (*Machine, error) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	i := &immigration{host: h, wire: newWire(conn, patienceDefault)}
	var m *Machine
	err := i.hear(admit)
	if err == nil {
		m, err = h.enter(i.offer.Spec.ID, func() (*Machine, error) { return i.receive(ctx) })
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if refused := (*RefusedError)(nil); !errors.As(err, &refused) {
			i.wire.refuse(err)
			i.wire.linger()
		}
		return nil, fmt.Errorf("take a VM from another host: %w", err)
	}
	h.pass("has")
	if err := i.wire.say(frameTaken); err == nil {
		if _, err := i.wire.expect(frameGone); err == nil {
			h.forget(i.move.ID)
		}
	}
	return m, nil
}

// immigration is the target's side.
type immigration struct {
	host    *Host
	wire    *wire
	offer   offer
	move    *move
	machine *Machine
	memory  *os.File // the machine's
	pages   int      // that have come
	state   []byte
	disks   map[int]*arrivingDisk // by number: those that the guest writes
}

// arrivingDisk is the overlay of a disk that is being sent.
type arrivingDisk struct {
	file *os.File
	size int64 // as the guest sees it
	come int64 // bytes
}

func (d *arrivingDisk) most() int64 { return overlayMost(d.size) }

// hear reads what is offered and judges it.
func (i *immigration) hear(admit func(Arrival) (Image, error)) error {
	text, err := i.wire.expect(frameHello)
	if err != nil {
		return err
	}
	o := &i.offer
	if len(text) > helloMax {
		return fmt.Errorf("its offer has %d bytes: at most %d", len(text), helloMax)
	}
	if err := json.Unmarshal(text, o); err != nil {
		return fmt.Errorf("its offer: %w", err)
	}
	var here string
	if o.Spec.Accelerator == KVM {
		if here, err = processor(); err != nil {
			return err
		}
	}
	o.Spec.Template, o.Spec.Kernel, o.Spec.Initrd = nil, "", ""
	for n := range o.Spec.Disks {
		o.Spec.Disks[n].Path, o.Spec.Disks[n].Base = "", ""
	}
	switch err := o.Spec.check(); {
	case err != nil:
		return err
	case o.Version != wireVersion:
		return fmt.Errorf("it is sent by version %d of the protocol, and this host speaks %d", o.Version, wireVersion)
	case !moveID.MatchString(o.Migration):
		return fmt.Errorf("migration %q: its id is not 32 hexadecimal digits", o.Migration)
	case o.Spec.Accelerator != i.host.accelerator:
		return fmt.Errorf("VM %s runs by %s, and VMs of this host by %s", o.Spec.ID, o.Spec.Accelerator, i.host.accelerator)
	case len(o.Spec.Disks) > disksMost:
		return fmt.Errorf("VM %s has %d disks: at most %d", o.Spec.ID, len(o.Spec.Disks), disksMost)
	case !machineForm.MatchString(o.Spec.Machine):
		return fmt.Errorf("VM %s is a machine %.80q, which no QEMU has", o.Spec.ID, o.Spec.Machine)
	case o.Processor != here:
		return fmt.Errorf("VM %s runs on a processor that is not like this host's", o.Spec.ID)
	case o.Spec.MemoryMiB > memoryMostMiB:
		return fmt.Errorf("VM %s has %d MiB of memory: at most %d", o.Spec.ID, o.Spec.MemoryMiB, memoryMostMiB)
	}
	image, err := admit(Arrival{o.Migration, o.Spec, o.Running, o.Extra})
	if err != nil || len(o.Spec.Disks) == 0 {
		return err
	}
	return o.Spec.lie(image)
}

// lie has the disks of a machine that comes lie over those of its image here.
func (s *Spec) lie(image Image) error {
	if len(image.Disks) != len(s.Disks) {
		return fmt.Errorf("VM %s has %d disks, and its image has %d here", s.ID, len(s.Disks), len(image.Disks))
	}
	for n, here := range image.Disks {
		switch there := s.Disks[n]; {
		case there.ReadOnly != here.ReadOnly || there.Format != here.Format || there.BaseFormat != here.BaseFormat:
			return fmt.Errorf("VM %s: its disk %d is not as that of its image is here", s.ID, n)
		case !here.ReadOnly && (there.Size <= 0 || there.Size > diskMost || there.Size%diskSector != 0):
			return fmt.Errorf("VM %s: its disk %d has %d bytes", s.ID, n, there.Size)
		default:
			here.Size = there.Size
		}
		s.Disks[n] = here
	}
	s.Kernel = image.Kernel // it is not booted: but whether its disk would be is part of its hardware
	return nil
}

// receive has the machine come into being; an error leaves nothing of it.
func (i *immigration) receive(ctx context.Context) (_ *Machine, err error) {
	h := i.host
	i.move = &move{ID: i.offer.Migration, Machine: i.offer.Spec.ID, Phase: arriving, Running: i.offer.Running}
	if err := h.begin(i.move); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			if i.machine != nil {
				err = errors.Join(err, i.machine.Destroy())
			}
			h.forget(i.move.ID)
		}
	}()
	h.pass("arriving")
	if i.machine, err = createAwaiting(ctx, h.config.QEMU, h.machines, i.offer.Spec); err != nil {
		return nil, err
	}
	if i.memory, err = os.OpenFile(filepath.Join(i.machine.folder, memoryName), os.O_RDWR, 0); err != nil {
		return nil, err
	}
	defer i.memory.Close()
	defer i.closeDisks()
	if err := i.openDisks(); err != nil {
		return nil, err
	}
	h.pass("waiting")
	if err := i.wire.say(frameWelcome); err != nil {
		return nil, err
	}
	for over := false; !over; {
		if over, err = i.take(); err != nil {
			return nil, err
		}
	}
	h.pass("ended")
	if err := i.checkDisks(); err != nil {
		return nil, err
	}
	if err := i.load(ctx); err != nil {
		return nil, err
	}
	h.pass("loaded")
	if err := i.wire.say(frameReady); err != nil {
		return nil, err
	}
	if _, err := i.wire.expect(frameCommit); err != nil {
		return nil, err
	}
	h.pass("commit")
	if _, err := i.machine.Status(); err != nil { // QEMU has ended, and the source can go on yet
		return nil, errors.Join(i.machine.Reason(), err)
	}
	if err := h.enterPhase(i.move, taken, i.move.Running); err != nil {
		return nil, err
	}
	h.pass("taking")
	i.settleIn(ctx)
	return i.machine, nil
}

// settleIn has a machine that is this host's be so. What goes wrong now is for
// who looks at the machine: there is no other.
func (i *immigration) settleIn(ctx context.Context) {
	m := i.machine
	m.mu.Lock()
	if m.state != Ended {
		m.state = Suspended
	}
	m.mu.Unlock()
	var err error
	if i.move.Running {
		err = m.Resume(ctx)
		i.host.pass("running")
	}
	m.mu.Lock()
	err = errors.Join(err, m.write())
	m.mu.Unlock()
	err = errors.Join(err, i.host.enterPhase(i.move, taken, false))
	if err != nil {
		i.host.config.Log.Warnf("VM %s has been migrated to this host: %v", m.ID, err)
	}
}

// take does what one frame says, and says whether it was the last.
func (i *immigration) take() (over bool, err error) {
	kind, payload, err := i.wire.next()
	if err != nil {
		return false, err
	}
	switch kind {
	case framePage:
		if len(payload) <= 4 || (len(payload)-4)%pageSize != 0 {
			return false, fmt.Errorf("a frame of pages has %d bytes", len(payload))
		}
		if i.pages == 0 {
			i.host.pass("first page")
		}
		at, err := i.place(payload, (len(payload)-4)/pageSize)
		if err == nil {
			_, err = i.memory.WriteAt(payload[4:], at) // not by a mapping: a full disk is an error then
		}
		if err != nil {
			return false, err
		}
	case frameZero:
		if len(payload) != 8 {
			return false, fmt.Errorf("a frame of zero pages has %d bytes", len(payload))
		}
		pages := int(binary.BigEndian.Uint32(payload[4:]))
		if pages > chunkSize/pageSize {
			return false, fmt.Errorf("a frame says %d zero pages, of at most %d", pages, chunkSize/pageSize)
		}
		at, err := i.place(payload, pages)
		if err == nil {
			_, err = i.memory.WriteAt(zeros[:pages*pageSize], at)
		}
		if err != nil {
			return false, err
		}
	case frameDisk:
		return false, i.put(payload)
	case frameRound:
		return false, i.wire.say(frameRound, payload)
	case frameState:
		if len(i.state)+len(payload) > stateMax {
			return false, fmt.Errorf("the state has more than %d bytes", stateMax)
		}
		i.state = append(i.state, payload...)
	case frameEnd:
		return true, nil
	default:
		return false, fmt.Errorf("the other host says %q where pages are expected", kind)
	}
	return false, nil
}

// place is where so many pages go, from the one whose number the payload begins
// with.
func (i *immigration) place(payload []byte, pages int) (at int64, err error) {
	first, all := int(binary.BigEndian.Uint32(payload)), i.offer.Spec.MemoryMiB<<20/pageSize
	if pages == 0 || first >= all || pages > all-first {
		return 0, fmt.Errorf("%d pages from number %d on, in a memory of %d", pages, first, all)
	}
	if i.pages += pages; i.pages > (roundsMax+1)*all {
		return 0, fmt.Errorf("more than %d pages have come, for a memory of %d", (roundsMax+1)*all, all)
	}
	return int64(first) * pageSize, nil
}

// openDisks empties the overlays that QEMU was started with. It does not mind: it
// reads them anew when it has the state of its devices (bdrv_activate_all in QEMU),
// and not before.
func (i *immigration) openDisks() error {
	i.disks = map[int]*arrivingDisk{}
	for n, disk := range i.machine.Disks {
		if disk.ReadOnly {
			continue
		}
		file, err := os.OpenFile(filepath.Join(i.machine.folder, diskName(n)), os.O_RDWR|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		i.disks[n] = &arrivingDisk{file: file, size: disk.Size}
	}
	return nil
}

func (i *immigration) closeDisks() {
	for _, d := range i.disks {
		_ = d.file.Close()
	}
}

// put writes a piece of a disk where it is to be, or ends the file there.
func (i *immigration) put(payload []byte) error {
	if len(payload) < diskHead {
		return fmt.Errorf("a frame of a disk has %d bytes", len(payload))
	}
	number, at, content := binary.BigEndian.Uint32(payload), binary.BigEndian.Uint64(payload[4:]), payload[diskHead:]
	d := i.disks[int(number)]
	if d == nil {
		return fmt.Errorf("a frame is of disk %d, which there is not", number)
	}
	if most := d.most(); at > uint64(most) || int64(at)+int64(len(content)) > most {
		return fmt.Errorf("%d bytes from %d on, in the file of a disk that has at most %d", len(content), at, most)
	}
	if d.come += int64(len(content)); d.come > (roundsMax+1)*d.most() {
		return fmt.Errorf("more than %d bytes have come for disk %d", (roundsMax+1)*d.most(), number)
	}
	if len(content) == 0 {
		return d.file.Truncate(int64(at))
	}
	_, err := d.file.WriteAt(content, int64(at))
	return err
}

// checkDisks holds what came against what was said: it must not mean files of this
// host's.
func (i *immigration) checkDisks() error {
	for n, d := range i.disks {
		info, err := d.file.Stat()
		if err != nil {
			return err
		}
		said, err := probeDisk(d.file, info.Size())
		if err == nil && said != (DiskInfo{QCOW2, d.size, false}) {
			err = fmt.Errorf("%w: it is no overlay of %d bytes", ErrDisk, d.size)
		}
		if err != nil {
			return fmt.Errorf("what came of disk %d: %w", n, err)
		}
	}
	return nil
}

// load gives QEMU the state that came.
func (i *immigration) load(ctx context.Context) error {
	file, err := anonymous()
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := file.WriteAt(i.state, 0); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, i.wire.patience)
	defer cancel()
	if err := i.machine.loadFrom(ctx, file); err != nil {
		return i.machine.explain(fmt.Errorf("VM %s: load the state that came with it: %w", i.machine.ID, err))
	}
	return nil
}

// processor is what tells processors apart that a guest can be moved between,
// where it runs on them itself.
func processor() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	first, _, _ := strings.Cut(string(text), "\n\n")
	sum := sha256.New()
	for line := range strings.Lines(first) {
		if name, _, _ := strings.Cut(line, "\t"); name == "vendor_id" || name == "model" || name == "model name" || name == "flags" {
			sum.Write([]byte(line))
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:16]), nil
}
