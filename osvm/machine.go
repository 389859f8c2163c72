package osvm

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"time"

	"github.com/digitalocean/go-qemu/qemu"

	"mvm/osvm/link"
	"mvm/osvm/qmp"
)

// LeastMemoryMiB is what no machine has less of: Debian's kernel boots in it, with
// a small initial file system.
const LeastMemoryMiB = 80

// Spec is a VM as it is asked for.
type Spec struct {
	ID          string // a letter or digit, then up to 62 letters, digits, '_', '.' or '-'; names its folder
	Kernel      string // paths of files; QEMU reads them through descriptors; "" boots from the first disk
	Initrd      string // "" for none
	Disks       []Disk `json:",omitempty"`
	CommandLine string // of the kernel, after what the machine needs
	MemoryMiB   int
	Accelerator Accelerator // KVM or TCG
	Machine     string      // QEMU's type of machine with its version; "" is the newest that QEMU has
	Owner       string      // for whom it is there: a job's attempt; "" is a person's
	Limits      Limits
	Network     bool      `json:",omitempty"` // it has a network card, which Network connects
	Segment     *Segment  `json:",omitempty"` // where that belongs; nil where its owner knows
	ImageName   string    // for people
	ImageDigest string    // of what it began from
	Created     time.Time // when it was asked for

	// Template is what the machine is a clone of: it then begins where that was
	// frozen, and shares the template's memory until it writes. All else must be
	// as it was there.
	Template *Template `json:"-"`
}

// Segment is a place in a network, for whoever connects the card. It goes where the
// machine goes, and is in no checkpoint.
type Segment struct {
	Name, Key string // of the network
	MAC       string
	Address   string // with the length of its prefix
}

// Same says whether both are places in one network, or no places.
func (s *Segment) Same(other *Segment) bool {
	if s == nil || other == nil {
		return s == other
	}
	return s.Name == other.Name && s.Key == other.Key
}

var specID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// ErrOrder is wrapped by what says that a machine cannot be as it is asked for.
var ErrOrder = errors.New("it cannot be as it is asked for")

// ValidID tells whether a machine can have the id, which names its folder.
func ValidID(id string) bool { return specID.MatchString(id) }

func (s *Spec) check() error {
	switch {
	case !ValidID(s.ID):
		return fmt.Errorf("VM %q: %w: its id is not a letter or digit, then up to 62 letters, digits, '_', '.' or '-'", s.ID, ErrOrder)
	case s.MemoryMiB < LeastMemoryMiB:
		return fmt.Errorf("VM %s: %w: %d MiB of memory are not enough: at least %d", s.ID, ErrOrder, s.MemoryMiB, LeastMemoryMiB)
	case s.Accelerator != KVM && s.Accelerator != TCG:
		return fmt.Errorf("VM %s: %w: accelerator %q is not %s or %s: Choose says which", s.ID, ErrOrder, s.Accelerator, KVM, TCG)
	}
	if err := s.Limits.Check(); err != nil {
		return fmt.Errorf("VM %s: %w: %w", s.ID, ErrOrder, err)
	}
	return nil
}

// Names of the sockets in a machine's folder. QEMU gets them listening, by
// descriptor, so that whoever owns the folder may hang up and come back.
const (
	monitorSocket = "monitor"
	agentSocket   = "agent"
	consoleSocket = "console"
	networkSocket = "network"
	recordName    = "machine.json"
	logName       = "log"    // what QEMU writes
	memoryName    = "memory" // the guest's memory, while the machine is no clone
)

// AgentPort is the name of the virtio-serial port to the agent in the guest.
const AgentPort = "mvm.agent"

// Machine is one running QEMU. All methods may be called from any goroutine.
type Machine struct {
	Spec
	folder    string
	uuid      string // tells it from all other machines, of all hosts
	process   *process
	isolation Isolation
	groups    []string // control groups
	monitor   *qmp.Monitor
	domain    *qemu.Domain
	console   *Console
	traffic   *traffic
	ended     chan struct{}                // when the process is gone, and reason says why
	latest    atomic.Pointer[link.Session] // session with its agent

	destroyed func()            // for who keeps a list
	awaits    bool              // its memory and state come from elsewhere, after it is started
	known     written           // of its checkpoints
	passing   func(step string) // a test's

	turning sync.Mutex // held while the guest is run or stopped, and while a claim begins; before mu

	mu        sync.Mutex // guards what follows
	state     State
	reason    error          // why it is gone
	wanted    bool           // its end, by who has it
	shutdown  string         // why it said that it would be
	stalled   bool           // for want of room on this machine's disk
	told      chan struct{}  // when it says nothing more; nil before it is connected
	published map[int]string // addresses of the host that lead to ports of the guest
	cleared   bool           // Destroy has removed it
	claims    claims
}

// Create starts QEMU with the machine's processors stopped; Resume starts them.
// Its folder is made in parent, and removed by Destroy. The error names the VM
// and, where QEMU ended at once, what it said.
func Create(ctx context.Context, q QEMU, parent string, spec Spec) (*Machine, error) {
	return create(ctx, q, parent, spec, false)
}

// createAwaiting starts QEMU with the memory of its own that is in the folder's
// file, all zeros, for who asks to fill it; loadFrom then gives it the state that
// belongs to it. Until write its record has no process: a node that begins anew
// removes it. It boots from nothing: files of kernel and initial file system are not
// needed.
func createAwaiting(ctx context.Context, q QEMU, parent string, spec Spec) (*Machine, error) {
	return create(ctx, q, parent, spec, true)
}

func create(ctx context.Context, q QEMU, parent string, spec Spec, awaits bool) (*Machine, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	m := newMachine(spec, filepath.Join(parent, spec.ID))
	m.uuid = newUUID()
	m.awaits = awaits
	if m.boots() && spec.Kernel == "" && (spec.Initrd != "" || spec.CommandLine != "") {
		return nil, fmt.Errorf("VM %s: %w: it has an initial file system or a command line, and no kernel", spec.ID, ErrOrder)
	}
	if err := os.Mkdir(m.folder, 0o700); err != nil {
		return nil, fmt.Errorf("VM %s: %w", spec.ID, err)
	}
	if err := m.start(ctx, q); err != nil {
		return nil, fmt.Errorf("VM %s: %w", spec.ID, errors.Join(err, m.clear()))
	}
	return m, nil
}

func newMachine(spec Spec, folder string) *Machine {
	return &Machine{
		Spec: spec, folder: folder, traffic: newTraffic(spec.Limits.NetworkBytesPerSecond),
		ended: make(chan struct{}), state: Created, published: map[int]string{},
	}
}

// Status is the state that QEMU says the machine is in.
func (m *Machine) Status() (qemu.Status, error) { return m.domain.Status() }

// State is where a machine is in its life.
type State string

const (
	Created   State = "created"   // its processors have not run here yet
	Running   State = "running"   //
	Suspended State = "suspended" // its processors stand still
	Ended     State = "ended"     // QEMU is gone; Reason says why, and Destroy removes what is left
)

// State is what the machine was last made to be.
func (m *Machine) State() State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.state
}

// Resume starts the processors, from the beginning or where they were stopped.
func (m *Machine) Resume(ctx context.Context) error { return m.turn(ctx, "cont", Running) }

// Suspend stops the processors; the guest notices nothing but the time.
func (m *Machine) Suspend(ctx context.Context) error { return m.turn(ctx, "stop", Suspended) }

func (m *Machine) turn(ctx context.Context, command string, into State) error {
	m.turning.Lock()
	defer m.turning.Unlock()
	if err := m.unclaimed(); err != nil {
		return err
	}
	if err := m.execute(ctx, command); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.state != Ended {
		m.state = into
	}
	return nil
}

// Publish notes that address leads to a port of the guest, for as long as the
// machine lives and for whoever adopts it.
func (m *Machine) Publish(port int, address string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.published[port] = address
	if m.cleared { // its guest lives elsewhere
		return nil
	}
	return m.write()
}

// Published are the addresses that Publish noted, by port of the guest.
func (m *Machine) Published() map[int]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.published)
}

func (m *Machine) execute(ctx context.Context, command string) error {
	if err := m.monitor.Execute(ctx, command, nil, nil); err != nil {
		return fmt.Errorf("VM %s: %w", m.ID, err)
	}
	return nil
}

// Agent connects to the guest's agent, within the machine's limit for the network:
// it is the guest's only way out. It serves one connection at a time: another one
// waits, and bytes that nobody reads make the guest wait.
func (m *Machine) Agent(ctx context.Context) (net.Conn, error) {
	conn, err := m.dial(ctx, agentSocket)
	if err != nil {
		return nil, err
	}
	return m.traffic.count(conn), nil
}

// Network connects to the guest's network card, within the machine's limit for the
// network: frames as package vswitch has them. It serves one connection at a time.
// While there is none, what the guest sends is lost.
func (m *Machine) Network(ctx context.Context) (net.Conn, error) {
	if !m.Spec.Network {
		return nil, fmt.Errorf("VM %s: %w: it has no network card", m.ID, ErrOrder)
	}
	conn, err := m.dial(ctx, networkSocket)
	if err != nil {
		return nil, err
	}
	return m.traffic.count(conn), nil
}

// Console is the guest's serial port.
func (m *Machine) Console() *Console { return m.console }

// dial connects to a socket in the machine's folder.
func (m *Machine) dial(ctx context.Context, name string) (net.Conn, error) {
	var conn net.Conn
	err := inFolder(m.folder, name, func(path string) (err error) {
		var dialer net.Dialer
		conn, err = dialer.DialContext(ctx, "unix", path)
		return err
	})
	if err == nil {
		conn, err = m.keep(conn)
	}
	if err != nil {
		return nil, fmt.Errorf("VM %s: its %s: %w", m.ID, name, err)
	}
	return conn, nil
}

// Ended is closed when QEMU is gone; Reason then says why.
func (m *Machine) Ended() <-chan struct{} { return m.ended }

// Reason is why QEMU is gone, nil while it is not.
func (m *Machine) Reason() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.reason
}

// Wanted says whether Stop or Destroy was called: then it has not ended by itself.
func (m *Machine) Wanted() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted
}

func (m *Machine) want() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wanted = true
}

// PID is that of the QEMU process.
func (m *Machine) PID() int { return m.process.pid }

// Isolation is what keeps QEMU, were it taken over, from all else.
func (m *Machine) Isolation() Isolation { return m.isolation }

// kill ends QEMU and waits until it is gone.
func (m *Machine) kill() {
	m.process.kill()
	<-m.ended
}

// Destroy ends the machine at once and removes its folder. Calling it twice
// changes nothing.
func (m *Machine) Destroy() error {
	m.want()
	m.kill()
	m.letGo()
	if err := m.clear(); err != nil {
		return fmt.Errorf("VM %s: %w", m.ID, err)
	}
	m.mu.Lock()
	m.cleared = true
	m.mu.Unlock()
	if m.destroyed != nil {
		m.destroyed()
	}
	return nil
}

// Destroyed says whether it was: nothing is left of it here.
func (m *Machine) Destroyed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cleared
}

// letGo closes what connects this process to the machine.
func (m *Machine) letGo() {
	if m.console != nil {
		m.console.close()
	}
	if m.domain != nil {
		_ = m.domain.Close()
	}
}

// clear removes all that there is of a machine besides its process.
func (m *Machine) clear() error {
	return errors.Join(removeGroups(m.uuid, m.groups), os.RemoveAll(m.folder))
}

// Stop asks the guest to end, by its agent and its power button, waits for that as
// long as ctx allows, and ends it if it does not.
func (m *Machine) Stop(ctx context.Context) error {
	m.want()
	if err := m.execute(ctx, "system_powerdown"); err == nil {
		go m.powerOff(ctx)
		select {
		case <-m.ended:
		case <-ctx.Done():
		}
	}
	m.kill()
	return nil
}
