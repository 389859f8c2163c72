package osvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/digitalocean/go-qemu/qemu"
	goqmp "github.com/digitalocean/go-qemu/qmp"
	"golang.org/x/sys/unix"

	"mvm/osvm/qmp"
)

// lastWords is how long we wait for why QEMU has ended, once it seems to have: the
// word is there already, but for a machine that is too busy to read it.
const lastWords = 5 * time.Second

// process is a QEMU, a child of ours or of a node that is no more.
type process struct {
	pid   int
	start uint64             // in clock ticks since boot: pids come again
	kill  func()             // harmless when it is gone
	wait  func() (err error) // until it is gone; err says how, where that can be known
}

func childProcess(command *exec.Cmd) (*process, error) {
	start, err := startTime(command.Process.Pid)
	return &process{command.Process.Pid, start, func() { _ = command.Process.Kill() }, command.Wait}, err
}

// startTime tells two processes of one pid from each other.
func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	const start = 19
	return strconv.ParseUint(fields[start], 10, 64)
}

// statFields are what the kernel says of a process after its name, which may hold
// anything (proc(5), fields 3 and on of stat): 50 fields.
func statFields(pid int) ([]string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil, err
	}
	const least = 40
	end := strings.LastIndex(string(text), ") ")
	fields := strings.Fields(string(text[max(0, end):]))
	if len(fields) < least || end < 0 {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields after the name", pid, len(fields))
	}
	return fields[1:], nil
}

// inFolder does something with a file's path, made short enough for the address of
// a unix socket, which has room for 107 bytes (unix(7)).
func inFolder(folder, name string, do func(path string) error) error {
	handle, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer handle.Close()
	return do(fmt.Sprintf("/proc/self/fd/%d/%s", handle.Fd(), name))
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
func (m *Machine) listen(name string) (file *os.File, err error) {
	err = inFolder(m.folder, name, func(path string) error {
		listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			return err
		}
		defer listener.Close()
		listener.SetUnlinkOnClose(false)
		file, err = listener.File()
		return err
	})
	return file, err
}

// memory makes the file that is the guest's memory, which a checkpoint can read
// while it runs.
func (m *Machine) memory(user *user) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(m.folder, memoryName), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	size := int64(m.MemoryMiB) << 20
	err = errors.Join(file.Truncate(size), user.own(file))
	if err == nil { // now, or a full disk would end the machine some day
		if err = unix.Fallocate(int(file.Fd()), 0, 0, size); errors.Is(err, unix.EOPNOTSUPP) {
			err = nil
		}
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("make room for its memory: %w", err)
	}
	return file, nil
}

// start runs QEMU and connects to its monitor. QEMU reads, but finds no file by
// its name: what it is given comes as descriptors, which it opens again, as the
// user that it is.
func (m *Machine) start(ctx context.Context, q QEMU) error {
	user, err := newUser(m.Accelerator)
	if err != nil {
		return err
	}
	defer user.close()
	var inherited files
	defer inherited.close()
	fd := descriptors{
		monitor: inherited.add(m.listen(monitorSocket)),
		agent:   inherited.add(m.listen(agentSocket)),
		console: inherited.add(m.listen(consoleSocket)),
	}
	if m.Spec.Network {
		fd.network = inherited.add(m.listen(networkSocket))
	}
	if m.boots() {
		if m.Kernel != "" {
			fd.kernel = inherited.add(user.open(m.Kernel))
		}
		if m.Initrd != "" {
			fd.initrd = inherited.add(user.open(m.Initrd))
		}
	}
	if fd.disks, err = m.openDisks(user, &inherited); err != nil {
		return err
	}
	var state *os.File
	if m.Template == nil {
		fd.memory = inherited.add(m.memory(user))
	} else {
		memory, devices, err := m.Template.open(int64(m.MemoryMiB) << 20)
		fd.memory = inherited.add(memory, err)
		state = devices
		defer state.Close()
	}
	if inherited.failed != nil {
		return inherited.failed
	}
	if m.Machine == "" {
		if m.Machine, err = q.machine(); err != nil {
			return err
		}
	}
	said, err := os.OpenFile(filepath.Join(m.folder, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer said.Close()
	if err := m.write(); err != nil { // so that QEMU is found by its uuid, were we killed now
		return err
	}
	command, err := user.run(func() *exec.Cmd {
		c := exec.Command(q.Path, m.arguments(m.Machine, fd)...)
		c.Stdout, c.Stderr = said, said
		c.ExtraFiles = inherited.list
		c.Env = []string{}
		c.Dir = "/"
		return c
	})
	if err != nil {
		return err
	}
	m.isolation = user.isolation
	inherited.close() // else QEMU's sockets would outlive it
	m.process, err = childProcess(command)
	if err == nil {
		m.groups, err = limit(m.process.pid, m.uuid, m.Spec)
	}
	if err != nil {
		_ = command.Process.Kill()
		_ = command.Wait()
		return err
	}
	go m.watch()
	go m.boundLog()
	if err := m.connect(ctx); err != nil {
		m.kill()
		return m.explain(errors.Join(m.Reason(), err))
	}
	if m.Template != nil {
		err = m.loadFrom(ctx, state)
	}
	if err == nil {
		err = niceThreads(m.process.pid, m.Spec)
	}
	if err == nil && !m.awaits {
		err = m.write()
	}
	if err != nil {
		m.kill()
		m.letGo()
		return m.explain(err)
	}
	return nil
}

// descriptors are the numbers under which QEMU has what it inherits.
type descriptors struct {
	monitor, agent, console, network, kernel, initrd, memory string
	disks                                                    []string // arguments
}

// boots says whether the machine begins with a boot: others begin where one was
// saved, and never come back to what they once booted from.
func (m *Machine) boots() bool { return m.Template == nil && !m.awaits }

// arguments are QEMU's. Those of a clone are its template's, but for how they
// begin and what tells two machines from each other.
func (m *Machine) arguments(machine string, fd descriptors) []string {
	share := "on"
	if m.Template != nil {
		share = "off"
	}
	list := append([]string{"-name", "guest=" + m.ID, "-uuid", m.uuid}, m.Spec.hardware(machine, fd, share)...)
	if m.boots() {
		return append(list, m.Spec.boot(fd)...)
	}
	return append(list, "-incoming", "defer")
}

// boot is what a machine boots from.
func (s *Spec) boot(fd descriptors) []string {
	if s.Kernel == "" {
		return nil // the firmware finds the first disk's boot loader
	}
	list := []string{"-kernel", "/proc/self/fd/" + fd.kernel, "-append", strings.TrimSpace("console=ttyS0 panic=-1 quiet " + s.CommandLine)}
	if s.Initrd != "" {
		list = append(list, "-initrd", "/proc/self/fd/"+fd.initrd)
	}
	return list
}

// hardware is what the guest sees, and what runs it.
func (s *Spec) hardware(machine string, fd descriptors, share string) []string {
	socket := func(id, fd string) string { return "socket,server=on,wait=off,id=" + id + ",fd=" + fd }
	accelerator := string(s.Accelerator)
	if s.Accelerator == TCG {
		accelerator += ",tb-size=" + strconv.Itoa(translationMiB)
	}
	list := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-S", "-global", "migration.send-configuration=off", "-machine", machine + ",memory-backend=memory", "-accel", accelerator, "-cpu", "max",
		"-smp", "1,maxcpus=1", "-m", strconv.Itoa(s.MemoryMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=memory,size=%dM,mem-path=/proc/self/fd/%s,share=%s", s.MemoryMiB, fd.memory, share),
		"-chardev", socket("monitor", fd.monitor), "-mon", "chardev=monitor,mode=control",
		"-chardev", socket("agent", fd.agent), "-chardev", socket("console", fd.console),
		"-serial", "chardev:console",
		"-device", "virtio-serial-pci,romfile=", "-device", "virtserialport,chardev=agent,name=" + AgentPort,
		"-device", "virtio-rng-pci,romfile=",
	}
	if s.Network {
		list = append(list, "-netdev", "stream,id=network,server=on,addr.type=fd,addr.str="+fd.network,
			"-device", "virtio-net-pci,romfile=,netdev=network,mac="+templateMAC)
	}
	return append(list, fd.disks...)
}

// templateMAC is the address that every network card begins with: a template's
// clones have it, too, until their agents hear their own.
const templateMAC = "02:4d:56:4d:00:00"

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

// connect makes the monitor's connection, and begins to read the console. QEMU's sockets
// listen from the beginning, so that a connection waits for QEMU's own start.
func (m *Machine) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.ended:
			cancel(m.Reason())
		case <-ctx.Done():
		}
	}()
	monitor, err := m.dialMonitor(ctx)
	if err != nil {
		return err
	}
	events, err := monitor.Events(context.Background())
	if err != nil {
		return err
	}
	domain, err := qemu.NewDomain(monitor, m.ID)
	if err != nil {
		_ = monitor.Disconnect()
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.monitor, m.domain = monitor, domain
	m.console = newConsole(func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, consoleSocket) }, m.ended)
	m.told = make(chan struct{})
	go m.listenTo(events)
	return nil
}

func (m *Machine) dialMonitor(ctx context.Context) (monitor *qmp.Monitor, err error) {
	err = inFolder(m.folder, monitorSocket, func(path string) (err error) {
		monitor, err = qmp.Dial(ctx, path)
		return err
	})
	return monitor, err
}

// listenTo keeps what QEMU says of its own end, and that the guest stands still for
// want of room.
func (m *Machine) listenTo(events <-chan goqmp.Event) {
	defer close(m.told)
	for event := range events {
		switch event.Event {
		case "SHUTDOWN":
			reason, _ := event.Data["reason"].(string)
			m.mu.Lock()
			m.shutdown = reason
			m.mu.Unlock()
		case "BLOCK_IO_ERROR":
			if event.Data["action"] == "stop" {
				m.stall()
			}
		}
	}
}

// ErrPoweredOff is why a machine has ended whose guest ended by itself, as asked.
var ErrPoweredOff = errors.New("the guest has powered off")

// watch waits until QEMU is gone and finds out why.
func (m *Machine) watch() {
	err := m.process.wait()
	m.mu.Lock()
	told := m.told
	m.mu.Unlock()
	if told != nil {
		select {
		case <-told:
		case <-time.After(lastWords):
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.shutdown == "guest-shutdown":
		m.reason = ErrPoweredOff
	case strings.HasPrefix(m.shutdown, "guest-"): // -no-reboot ends what resets itself
		m.reason = errors.New("the guest has ended by a reset, as its kernel does when it panics")
	case m.shutdown != "":
		m.reason = fmt.Errorf("QEMU has ended by %s", m.shutdown)
	case err != nil:
		m.reason = fmt.Errorf("QEMU has ended: %w", err)
	default:
		m.reason = errors.New("QEMU has ended")
	}
	if strings.HasPrefix(m.shutdown, "guest-") {
		if said := m.console.failures(); said != "" {
			m.reason = fmt.Errorf("%w; its console says %q", m.reason, said)
		}
	}
	m.state = Ended
	close(m.ended)
}

// logMost is how many bytes there may be of what QEMU writes, which its guest may
// cause as often as it likes.
const (
	logMost = 1 << 20
	logLook = 2 * time.Second
)

// boundLog begins QEMU's log anew when it has become too long. QEMU only ever writes
// at its end.
func (m *Machine) boundLog() {
	ticker := time.NewTicker(logLook)
	defer ticker.Stop()
	for {
		select {
		case <-m.ended:
			return
		case <-ticker.C:
			boundFile(filepath.Join(m.folder, logName), logMost)
		}
	}
}

func boundFile(path string, most int64) {
	if info, err := os.Stat(path); err == nil && info.Size() > most {
		_ = os.Truncate(path, 0)
	}
}

// explain adds what QEMU wrote before it ended.
func (m *Machine) explain(err error) error {
	text, _ := os.ReadFile(filepath.Join(m.folder, logName))
	if said := strings.TrimSpace(string(text)); said != "" {
		return fmt.Errorf("QEMU says %q: %w", said[:min(len(said), 500)], err)
	}
	return err
}

// record is what a machine's folder says of it, for whoever comes after us. It is
// written before QEMU is started, without its number, and again after it.
type record struct {
	Spec
	UUID      string
	PID       int            `json:",omitempty"`
	StartTime uint64         `json:",omitempty"`
	Isolation Isolation      `json:",omitempty"`
	Groups    []string       `json:",omitempty"`
	Published map[int]string `json:",omitempty"`
}

// write keeps what whoever comes after us needs to find the process again. Who
// calls it holds mu, or is alone.
func (m *Machine) write() error {
	r := record{Spec: m.Spec, UUID: m.uuid, Isolation: m.isolation, Groups: m.groups, Published: m.published}
	if m.process != nil {
		r.PID, r.StartTime = m.process.pid, m.process.start
	}
	return r.write(m.folder)
}

func (r *record) write(folder string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replace(filepath.Join(folder, recordName), text)
}

// replace writes a file whole, or leaves the one that there was.
func replace(path string, text []byte) error {
	err := os.WriteFile(path+".new", text, 0o600)
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		_ = os.Remove(path + ".new")
	}
	return err
}

func newUUID() string {
	text, err := os.ReadFile("/proc/sys/kernel/random/uuid")
	if err != nil {
		panic(err) // there is no Linux without it
	}
	return strings.TrimSpace(string(text))
}
