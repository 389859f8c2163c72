package osvm

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"time"
)

// A migration is a pre-copy of our own (QEMU's corrupts guests under TCG): while
// the guest runs, the pages of its memory and the pieces of its disks' files that
// changed are sent in rounds until few are left; then it stands still, the last of
// both and the state of its devices follow, and it goes on at the target. What of a
// disk goes along is what the guest has written; what lies below is the image's,
// which the target has.
//
// Whose it is, is decided in one place: the target takes it, by noting that in its
// folder, after the source has noted that it will not run it until the target has
// said no. So each side may be killed, or lose its QEMU, at any point:
//
//	source       target     if the source's    if the target's     if the connection
//	has noted    has noted  node is killed     node is killed      is cut
//	leaving      -          source goes on     source goes on      source goes on
//	leaving      arriving   source goes on¹    source goes on¹     source goes on¹
//	offered      arriving   asks: no,          asks: no,           asks: no,
//	                        source goes on¹    source goes on¹     source goes on¹
//	offered      taken      asks: yes,         target resumes,     asks: yes,
//	                        source destroys    as it was noted     source destroys
//	-            taken      target has it      target has it       target has it
//
//	¹ the target's next life, or its end of the connection, destroys what arrived
//
// To ask is Outcome at the target, by whoever connects the two: a no is final,
// because nothing is taken after it. Where the target cannot be asked the machine
// stands still at the source, which is the price of never both.
//
// QEMU killed at the source before it stood still, or before its last page and
// its state were read, is the end of that VM, as it is at any other time; the
// target drops what it has. Killed later it is missed by nobody: the target has
// everything. Killed at the target before it has taken the machine, the source
// goes on; later, it is the end of a VM that is the target's.

// Migration says how a machine is to leave.
type Migration struct {
	Peer        string // kept for Doubt: how to find the target again
	Extra       []byte // for the target's admit; at most extraMax
	StopAndCopy bool   // the guest stands still all the time: what live migration is measured against
	Patience    time.Duration
}

// Limits of a migration.
const (
	extraMax        = 32 << 10
	patienceDefault = 30 * time.Second // that the other side has for each thing that it is to say
	roundsMax       = 30
	roundsFew       = 64 // pages in a round after which the rest is sent with the guest standing still
)

// Migrated is what a migration was.
type Migrated struct {
	ID       string // of the migration
	Rounds   int    // while the guest ran
	Pages    int    // sent, in all rounds and the last
	Last     int    // of them while the guest stood still
	Disks    int64  // bytes sent of disks, in all rounds and the last
	LastDisk int64  // of them while the guest stood still
	Bytes    int64  // sent
	Total    time.Duration
	Downtime time.Duration // from before the guest was stopped until the target said that it runs
}

// DoubtError is the error of a migration of which the source does not know
// whether the target has taken the machine: see Doubt.
type DoubtError struct {
	Doubt
	Err error
}

func (e *DoubtError) Error() string {
	return fmt.Sprintf("VM %s: %s: %v", e.Machine, inDoubt, e.Err)
}
func (e *DoubtError) Unwrap() error { return e.Err }

// MigrationPoints are the places where the end of a node or of QEMU makes a
// difference, in the order in which a migration passes them on either side.
func MigrationPoints() (source, target []string) {
	return []string{"leaving", "offer", "round", "standing", "last page", "end", "ready", "offered", "committed", "taken", "destroyed"},
		[]string{"arriving", "waiting", "first page", "ended", "loaded", "commit", "taking", "running", "has"}
}

func (h *Host) pass(point string) {
	if h.config.Pass != nil {
		h.config.Pass(point)
	}
}

// offer is what the target hears of a machine first.
type offer struct {
	Version   int
	Migration string
	Spec      Spec
	Processor string // with KVM: what the guest sees of it
	Running   bool
	Extra     []byte
}

// MigrateTo moves a machine to the host at the other end of conn, which has to be
// in MigrateFrom: an authenticated connection, which this closes. When it returns
// no error the machine is gone from here. An error is that of a machine that goes
// on here as before, but for DoubtError and for one whose QEMU has ended.
//
// The machine's connections to agent, console and network card are cut shortly before
// it stands still, and there are no others until this is over. What is on its way in a
// network is lost then, as on any Ethernet; whoever connects the card at the target has
// the guest go on there by the same address.
func (h *Host) MigrateTo(ctx context.Context, id string, conn net.Conn, how Migration) (Migrated, error) {
	defer conn.Close()
	m, err := h.Get(id)
	if err != nil {
		return Migrated{}, err
	}
	if len(how.Extra) > extraMax {
		return Migrated{}, fmt.Errorf("VM %s: %d bytes are too many to go along with it: at most %d", id, len(how.Extra), extraMax)
	}
	if how.Patience == 0 {
		how.Patience = patienceDefault
	}
	if err := m.claim("it is being migrated"); err != nil {
		return Migrated{}, err
	}
	var random [16]byte
	_, _ = rand.Read(random[:])
	v := &move{ID: hex.EncodeToString(random[:]), Machine: id, Phase: leaving, Running: m.State() == Running, Peer: how.Peer, under: true}
	if err := h.begin(v); err != nil {
		m.release()
		return Migrated{}, fmt.Errorf("VM %s: migrate it: %w", id, err)
	}
	e := &emigration{host: h, machine: m, move: v, how: how, wire: newWire(conn, how.Patience)}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	h.pass("leaving")
	if err := e.run(ctx); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		var refused *RefusedError
		if v.Phase == offered && !errors.As(err, &refused) {
			h.mu.Lock()
			v.under = false
			h.mu.Unlock()
			return Migrated{}, &DoubtError{Doubt{v.ID, id, v.Peer}, err}
		}
		if refused == nil {
			e.wire.refuse(err)
		}
		e.undo()
		return Migrated{}, fmt.Errorf("VM %s: migrate it: %w", id, err)
	}
	h.pass("taken")
	if err := m.Destroy(); err != nil { // what is left is a folder; the target has the machine
		h.config.Log.Warnf("VM %s has been migrated and is not quite gone: %v", id, err)
	}
	h.pass("destroyed")
	_ = e.wire.say(frameGone) // unheard, the target keeps a note that nobody needs
	h.forget(v.ID)
	e.done.ID, e.done.Bytes = v.ID, e.wire.sent
	return e.done, nil
}

// emigration is the source's side.
type emigration struct {
	host    *Host
	machine *Machine
	move    *move
	how     Migration
	wire    *wire
	done    Migrated
	stopped bool
}

// undo has the machine be as it was.
func (e *emigration) undo() {
	e.machine.release()
	if e.stopped && e.move.Running {
		e.host.goOn(context.Background(), e.machine)
	}
	e.host.forget(e.move.ID)
}

func (e *emigration) run(ctx context.Context) error {
	begin := time.Now()
	h, m := e.host, e.machine
	if err := e.offer(); err != nil {
		return err
	}
	h.pass("offer")
	memory, err := m.openMemory()
	if err != nil {
		return err
	}
	defer memory.close()
	shadow, err := newShadow(memory, e.wire)
	if err != nil {
		return err
	}
	defer shadow.close()
	disks, err := m.shadowDisks(e.wire)
	if err != nil {
		return err
	}
	defer disks.close()
	if !e.how.StopAndCopy && e.move.Running {
		if err := e.rounds(shadow, disks); err != nil {
			return err
		}
	}
	h.pass("round")
	if err := m.sever(ctx); err != nil {
		return err
	}
	down := time.Now()
	e.stopped = true
	if len(disks) > 0 && m.State() == Suspended { // QEMU gives disks out of its hands once (Capture)
		if err := m.execute(ctx, "cont"); err != nil {
			return err
		}
	}
	if err := m.execute(ctx, "stop"); err != nil {
		return err
	}
	h.pass("standing")
	if err := e.last(ctx, shadow, disks); err != nil {
		return err
	}
	h.pass("end")
	if _, err := e.wire.expect(frameReady); err != nil {
		return err
	}
	h.pass("ready")
	if err := h.enterPhase(e.move, offered, e.move.Running); err != nil {
		return err
	}
	h.pass("offered")
	if err := e.wire.say(frameCommit); err != nil {
		return err
	}
	h.pass("committed")
	if _, err := e.wire.expect(frameTaken); err != nil {
		return err
	}
	e.done.Downtime, e.done.Total = time.Since(down), time.Since(begin)
	return nil
}

// offer has the target prepare for the machine.
func (e *emigration) offer() error {
	spec := e.machine.Spec
	spec.Kernel, spec.Initrd = "", "" // files of this host, as those of the disks
	spec.Disks = nil
	for i, disk := range e.machine.Disks {
		disk.Path, disk.Base = "", ""
		if !disk.ReadOnly {
			info, err := ProbeDisk(filepath.Join(e.machine.folder, diskName(i)))
			if err != nil {
				return err
			}
			disk.Size = info.Size
		}
		spec.Disks = append(spec.Disks, disk)
	}
	o := offer{wireVersion, e.move.ID, spec, "", e.move.Running, e.how.Extra}
	if spec.Accelerator == KVM {
		var err error
		if o.Processor, err = processor(); err != nil {
			return err
		}
	}
	if err := e.wire.sayJSON(frameHello, o); err != nil {
		return err
	}
	_, err := e.wire.expect(frameWelcome)
	return err
}

// rounds sends pages while the guest runs, until few are left or it writes them
// as quickly as they are sent.
func (e *emigration) rounds(s *shadow, disks diskShadows) error {
	before := 0
	for {
		pages, err := s.round(1)
		if err != nil {
			return err
		}
		written, err := disks.round(1)
		if err != nil {
			return err
		}
		e.done.Rounds++
		e.done.Pages += pages
		e.done.Disks += written
		pages += int(written / pageSize)
		number := binary.BigEndian.AppendUint32(nil, uint32(e.done.Rounds))
		if err := e.wire.say(frameRound, number); err != nil {
			return err
		}
		// What is on its way would be waited for by a guest that stands still.
		if answer, err := e.wire.expect(frameRound); err != nil {
			return err
		} else if string(answer) != string(number) {
			return fmt.Errorf("the other host has round %x in place, after round %x was sent", answer, number)
		}
		if pages <= roundsFew || e.done.Rounds == roundsMax || e.done.Rounds > 1 && pages > before*3/4 {
			return nil
		}
		before = pages
	}
}

// last sends what a machine that stands still has left.
func (e *emigration) last(ctx context.Context, s *shadow, disks diskShadows) error {
	var state []byte
	var written int64
	workers := min(4, runtime.GOMAXPROCS(0))
	saved := make(chan error, 1)
	go func() {
		var err error
		if state, err = e.machine.stateBytes(ctx); err == nil { // now QEMU has written all of the disks
			if written, err = disks.round(workers); err == nil {
				err = disks.end()
			}
		}
		saved <- err
	}()
	pages, err := s.round(workers)
	if err := errors.Join(err, <-saved); err != nil {
		return err
	}
	e.host.pass("last page")
	e.done.Last = pages
	e.done.Pages += pages
	e.done.LastDisk = written
	e.done.Disks += written
	for len(state) > 0 {
		piece := state[:min(len(state), chunkSize)]
		if err := e.wire.put(frameState, piece); err != nil {
			return err
		}
		state = state[len(piece):]
	}
	return e.wire.say(frameEnd)
}
