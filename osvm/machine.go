package osvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-qemu/qemu"

	"mvm/osvm/qmp"
)

// LeastMemoryMiB is what the minimal image's kernel and initial file system
// boot in.
const LeastMemoryMiB = 80

// Spec is a VM as it is asked for.
type Spec struct {
	ID          string // a letter or digit, then up to 62 letters, digits, '_', '.' or '-'; names its folder
	Kernel      string // paths of files; QEMU reads them through descriptors
	Initrd      string
	CommandLine string // of the kernel, after what the machine needs
	MemoryMiB   int
	Accelerator Accelerator // KVM or TCG
	Machine     string      // QEMU's type of machine with its version; "" is the newest that QEMU has
	Owner       string      // for whom it is there: a job's attempt; "" is a person's
	Limits      Limits
	ImageName   string    // for people
	ImageDigest string    // of what it began from
	Created     time.Time // when it was asked for

	// Template is what the machine is a clone of: it then begins where that was
	// frozen, and shares the template's memory until it writes. All else must be
	// as it was there.
	Template *Template `json:"-"`
}

var specID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

// ErrOrder is wrapped by what says that a machine cannot be as it is asked for.
var ErrOrder = errors.New("it cannot be as it is asked for")

func (s *Spec) check() error {
	switch {
	case !specID.MatchString(s.ID):
		return fmt.Errorf("VM %q: %w: its id is not a letter or digit, then up to 62 letters, digits, '_', '.' or '-'", s.ID, ErrOrder)
	case s.MemoryMiB < LeastMemoryMiB:
		return fmt.Errorf("VM %s: %w: %d MiB of memory are not enough: at least %d", s.ID, ErrOrder, s.MemoryMiB, LeastMemoryMiB)
	case s.Accelerator != KVM && s.Accelerator != TCG:
		return fmt.Errorf("VM %s: %w: accelerator %q is not %s or %s: Choose says which", s.ID, ErrOrder, s.Accelerator, KVM, TCG)
	}
	return nil
}

// Names of the sockets in a machine's folder. QEMU gets them listening, by
// descriptor, so that whoever owns the folder may hang up and come back.
const (
	monitorSocket = "monitor"
	agentSocket   = "agent"
	consoleSocket = "console"
	recordName    = "machine.json"
	memoryName    = "memory"   // the guest's memory, while the machine is no clone
	templateName  = "template" // a clone's: the memory that it began with
)

// AgentPort is the name of the virtio-serial port to the agent in the guest.
const AgentPort = "mvm.agent"

// record is what a machine's folder says of it, for whoever comes after us.
type record struct {
	Spec
	PID       int
	StartTime uint64         // of that process in clock ticks since boot: pids come again
	Published map[int]string `json:",omitempty"`
}

// Machine is one running QEMU. All methods may be called from any goroutine.
type Machine struct {
	Spec
	folder  string
	process *os.Process
	monitor *qmp.Monitor
	domain  *qemu.Domain
	console *Console
	ended   chan struct{} // when the process is gone

	destroyed func()            // for who keeps a list
	awaits    bool              // its memory and state come from elsewhere, after it is started
	known     written           // of its checkpoints
	passing   func(step string) // a test's

	mu        sync.Mutex // guards what follows
	state     State
	reason    error          // why it is gone
	published map[int]string // addresses of the host that lead to ports of the guest
}

// Create starts QEMU with the machine's processors stopped; Resume starts them.
// Its folder is made in parent, and removed by Destroy. The error names the VM
// and, where QEMU ended at once, what it said.
func Create(ctx context.Context, q QEMU, parent string, spec Spec) (*Machine, error) {
	return create(ctx, q, parent, spec, false)
}

// createAwaiting starts QEMU with the memory of its own that is in the folder's
// file, all zeros, for who asks to fill it; loadFrom then gives it the state that
// belongs to it. Until write it has no record: a node that begins anew removes
// it. It boots from nothing: files of kernel and initial file system are not
// needed.
func createAwaiting(ctx context.Context, q QEMU, parent string, spec Spec) (*Machine, error) {
	return create(ctx, q, parent, spec, true)
}

func create(ctx context.Context, q QEMU, parent string, spec Spec, awaits bool) (*Machine, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	m := &Machine{Spec: spec, awaits: awaits, folder: filepath.Join(parent, spec.ID), ended: make(chan struct{}), state: Created, published: map[int]string{}}
	if err := os.Mkdir(m.folder, 0o700); err != nil {
		return nil, fmt.Errorf("VM %s: %w", spec.ID, err)
	}
	if err := m.start(ctx, q); err != nil {
		_ = os.RemoveAll(m.folder)
		return nil, fmt.Errorf("VM %s: %w", spec.ID, err)
	}
	return m, nil
}

// files are what QEMU inherits: its descriptors are 3 and up, in order.
type files struct {
	list   []*os.File
	failed error
}

func (f *files) add(file *os.File, err error) string {
	if err != nil {
		if f.failed == nil {
			f.failed = err
		}
		return "-1"
	}
	f.list = append(f.list, file)
	return strconv.Itoa(2 + len(f.list))
}

func (f *files) close() {
	for _, file := range f.list {
		_ = file.Close()
	}
}

// listen makes the listening socket that QEMU gets.
func (m *Machine) listen(name string) (*os.File, error) {
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(m.folder, name), Net: "unix"})
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	listener.SetUnlinkOnClose(false)
	return listener.File()
}

// memory opens the file that is the guest's memory: its own, which a checkpoint
// can read while it runs, or the template's, which stays with the machine when the
// template goes.
func (m *Machine) memory() (*os.File, error) {
	if m.Template != nil {
		kept := filepath.Join(m.folder, templateName)
		if os.Link(m.Template.memory(), kept) != nil { // it is on another disk
			if err := os.Symlink(m.Template.memory(), kept); err != nil {
				return nil, err
			}
		}
		return os.Open(kept)
	}
	file, err := os.OpenFile(filepath.Join(m.folder, memoryName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	return file, file.Truncate(int64(m.MemoryMiB) << 20)
}

// start runs QEMU and connects to its monitor. QEMU reads, but does not open:
// what it is given comes as descriptors.
func (m *Machine) start(ctx context.Context, q QEMU) error {
	var inherited files
	defer inherited.close()
	monitor := inherited.add(m.listen(monitorSocket))
	agent := inherited.add(m.listen(agentSocket))
	console := inherited.add(m.listen(consoleSocket))
	memory := inherited.add(m.memory())
	var kernel, initrd string
	if m.boots() {
		kernel = inherited.add(os.Open(m.Kernel))
		initrd = inherited.add(os.Open(m.Initrd))
	}
	if inherited.failed != nil {
		return inherited.failed
	}
	if m.Machine == "" {
		newest, err := q.machine()
		if err != nil {
			return err
		}
		m.Machine = newest
	}
	command := exec.Command(q.Path, m.arguments(m.Machine, descriptors{monitor, agent, console, kernel, initrd, memory})...)
	said, err := os.Create(filepath.Join(m.folder, "log"))
	if err != nil {
		return err
	}
	defer said.Close()
	command.Stdout, command.Stderr = said, said
	command.ExtraFiles = inherited.list
	command.Env = []string{}
	command.Dir = "/"
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // no terminal's signal reaches it
	if err := command.Start(); err != nil {
		return err
	}
	inherited.close() // else QEMU's sockets would outlive it
	m.process = command.Process
	go func() {
		err := command.Wait()
		m.mu.Lock()
		m.reason = errors.New("QEMU has ended")
		if err != nil {
			m.reason = fmt.Errorf("QEMU has ended: %w", err)
		}
		m.state = Ended
		m.mu.Unlock()
		close(m.ended)
	}()
	if err := m.connect(ctx); err != nil {
		m.kill()
		return m.explain(errors.Join(m.Reason(), err))
	}
	if m.Template != nil {
		if err := m.load(ctx, m.Template.state()); err != nil {
			_ = m.domain.Close()
			m.kill()
			return m.explain(err)
		}
	}
	if m.awaits {
		return nil
	}
	return m.write()
}

// boots says whether the machine begins with a boot: others begin where one was
// saved, and never come back to what they once booted from.
func (m *Machine) boots() bool { return m.Template == nil && !m.awaits }

// descriptors are the numbers under which QEMU has what it inherits.
type descriptors struct{ monitor, agent, console, kernel, initrd, memory string }

// arguments are QEMU's. Those of a clone are its template's, but for how they
// begin and what tells two machines from each other.
func (m *Machine) arguments(machine string, fd descriptors) []string {
	share := "on"
	if m.Template != nil {
		share = "off"
	}
	list := append([]string{"-name", "guest=" + m.ID}, m.Spec.hardware(machine, fd, share)...)
	if m.boots() {
		return append(list, m.Spec.boot(fd)...)
	}
	return append(list, "-incoming", "defer")
}

// boot is what a machine boots from.
func (s *Spec) boot(fd descriptors) []string {
	return []string{
		"-kernel", "/proc/self/fd/" + fd.kernel, "-initrd", "/proc/self/fd/" + fd.initrd,
		"-append", strings.TrimSpace("console=ttyS0 panic=-1 quiet " + s.CommandLine),
	}
}

// hardware is what the guest sees, and what runs it.
func (s *Spec) hardware(machine string, fd descriptors, share string) []string {
	socket := func(id, fd string) string { return "socket,server=on,wait=off,id=" + id + ",fd=" + fd }
	return []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-S", "-global", "migration.send-configuration=off", "-machine", machine + ",memory-backend=memory", "-accel", string(s.Accelerator), "-cpu", "max",
		"-smp", "1,maxcpus=1", "-m", strconv.Itoa(s.MemoryMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=memory,size=%dM,mem-path=/proc/self/fd/%s,share=%s", s.MemoryMiB, fd.memory, share),
		"-chardev", socket("monitor", fd.monitor), "-mon", "chardev=monitor,mode=control",
		"-chardev", socket("agent", fd.agent), "-chardev", socket("console", fd.console),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci,romfile=", "-device", "virtserialport,chardev=agent,name=" + AgentPort,
		"-device", "virtio-rng-pci,romfile=",
	}
}

// connect makes the monitor's connection. QEMU's sockets listen from the
// beginning, so that a connection waits for QEMU's own start.
func (m *Machine) connect(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.ended:
			cancel(m.Reason())
		case <-ctx.Done():
		}
	}()
	if m.monitor, err = qmp.Dial(ctx, filepath.Join(m.folder, monitorSocket)); err != nil {
		return err
	}
	if m.domain, err = qemu.NewDomain(m.monitor, m.ID); err != nil {
		_ = m.monitor.Disconnect()
		return err
	}
	m.console = newConsole(func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, consoleSocket) }, m.ended)
	return nil
}

// explain adds what QEMU wrote before it ended.
func (m *Machine) explain(err error) error {
	text, _ := os.ReadFile(filepath.Join(m.folder, "log"))
	if said := strings.TrimSpace(string(text)); said != "" {
		return fmt.Errorf("QEMU says %q: %w", said[:min(len(said), 500)], err)
	}
	return err
}

// write keeps what whoever comes after us needs to find the process again.
func (m *Machine) write() error {
	start, err := startTime(m.process.Pid)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(record{Spec: m.Spec, PID: m.process.Pid, StartTime: start, Published: m.published}, "", "  ")
	if err != nil {
		return err
	}
	file := filepath.Join(m.folder, recordName)
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// startTime tells two processes of one pid from each other (proc(5), field 22 of
// stat).
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	const after = 19 // fields between the name, which may hold anything, and it
	_, rest, _ := strings.Cut(string(text), ") ")
	fields := strings.Fields(rest)
	if len(fields) <= after {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	return strconv.ParseUint(fields[after], 10, 64)
}

var twoNumbers = regexp.MustCompile(`^([0-9]+)\.([0-9]+)`)

// machine is the versioned machine type: one that means the same devices in all
// later QEMUs, so that a checkpoint of it loads there.
func (q QEMU) machine() (string, error) {
	version := twoNumbers.FindString(q.Version)
	if version == "" {
		return "", fmt.Errorf("QEMU's version %q has no two numbers", q.Version)
	}
	return "pc-q35-" + version, nil
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

// Agent connects to the guest's agent. It serves one connection at a time: another
// one waits, and bytes that nobody reads make the guest wait.
func (m *Machine) Agent(ctx context.Context) (net.Conn, error) { return m.dial(ctx, agentSocket) }

// Console is the guest's serial port.
func (m *Machine) Console() *Console { return m.console }

func (m *Machine) dial(ctx context.Context, name string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", filepath.Join(m.folder, name))
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

// PID is that of the QEMU process.
func (m *Machine) PID() int { return m.process.Pid }

// kill ends QEMU and waits until it is gone.
func (m *Machine) kill() {
	_ = m.process.Kill() // refused only when it is gone already
	<-m.ended
}

// Destroy ends the machine at once and removes its folder. Calling it twice
// changes nothing.
func (m *Machine) Destroy() error {
	_ = m.domain.Close()
	m.kill()
	if err := os.RemoveAll(m.folder); err != nil {
		return fmt.Errorf("VM %s: %w", m.ID, err)
	}
	if m.destroyed != nil {
		m.destroyed()
	}
	return nil
}

// Stop asks the guest to end by its power button, waits for that as long as ctx
// allows, and ends it if it does not.
func (m *Machine) Stop(ctx context.Context) error {
	if err := m.execute(ctx, "system_powerdown"); err == nil {
		select {
		case <-m.ended:
		case <-ctx.Done():
		}
	}
	m.kill()
	return nil
}
