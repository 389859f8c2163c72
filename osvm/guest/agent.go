package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"mvm/osvm/link"
)

// Agent is what the host may call, by JSON-RPC (net/rpc/jsonrpc) on any
// connection of the link that is for it.
type Agent struct {
	node   func(ctx context.Context, identity []byte, uplink *link.Inside) // nil: this guest can be no node
	uplink *link.Inside

	mu   sync.Mutex // guards what follows
	is   []byte     // the node that it is
	stop context.CancelFunc
	gone chan struct{} // closed when that node is no more

	joining sync.Mutex // guards what follows
	place   string     // its card's, once it has one
}

// become has the guest be another node than it is.
func (a *Agent) become(identity []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if bytes.Equal(a.is, identity) {
		return
	}
	if a.stop != nil {
		a.stop()
	}
	ctx, stop := context.WithCancel(context.Background())
	before, gone := a.gone, make(chan struct{})
	a.is, a.stop, a.gone = bytes.Clone(identity), stop, gone
	go func() {
		defer close(gone)
		if before != nil {
			<-before
		}
		if ctx.Err() == nil {
			a.node(ctx, identity, a.uplink)
		}
	}()
}

// Nothing is for calls that ask or answer nothing.
type Nothing struct{}

// Greeting is the guest's answer to Hello.
type Greeting struct {
	Boot      string        // the kernel's boot id: the same in all clones of one template
	Kernel    string        // its release
	Hostname  string        // as Identify set it
	MemoryMiB uint64        // that the kernel may use
	Time      time.Time     // by the guest's clock
	Uptime    time.Duration // since its boot, suspended time left out
	Root      string        // the kind of file system that its programs see: tmpfs or ramfs, or that of a disk
}

// Hello says that the guest is ready, and what it is.
func (*Agent) Hello(_ Nothing, g *Greeting) error {
	var name unix.Utsname
	var system unix.Sysinfo_t
	var root unix.Statfs_t
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err := errors.Join(err, unix.Uname(&name), unix.Sysinfo(&system), unix.Statfs("/", &root)); err != nil {
		return err
	}
	*g = Greeting{
		Boot: strings.TrimSpace(string(boot)), Kernel: unix.ByteSliceToString(name.Release[:]), Hostname: unix.ByteSliceToString(name.Nodename[:]),
		MemoryMiB: system.Totalram * uint64(system.Unit) >> 20, Time: time.Now(), Uptime: time.Duration(system.Uptime) * time.Second,
		Root: fileSystem(int64(root.Type)),
	}
	return nil
}

// fileSystem names a kind of file system (statfs(2)).
func fileSystem(kind int64) string {
	switch kind {
	case unix.EXT4_SUPER_MAGIC:
		return "ext4"
	case unix.TMPFS_MAGIC:
		return "tmpfs"
	case unix.RAMFS_MAGIC:
		return "ramfs"
	}
	return fmt.Sprintf("%#x", kind)
}

// Random draws bytes as the guest's programs do: so a host can see that clones
// do not share theirs.
func (*Agent) Random(size int, out *[]byte) error {
	const most = 256
	*out = make([]byte, min(max(size, 0), most))
	_, err := unix.Getrandom(*out, 0)
	return err
}

// PowerOff ends the machine. It is answered before that.
func (*Agent) PowerOff(Nothing, *Nothing) error {
	go func() {
		time.Sleep(10 * time.Millisecond) // the answer goes first
		unix.Sync()
		_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	}()
	return nil
}

// Identity is what makes a guest itself, and not the template that it was cloned
// from.
type Identity struct {
	Hostname   string
	Time       time.Time
	Randomness []byte // 32 bytes or more, of the host's; used by no other guest

	// Node says what node of the grid the guest is to be from now on, in words that
	// this package does not read; nothing is none, or the one that it is.
	Node []byte `json:",omitempty"`
}

// Word is the identity as the first word of a session (package link): short, and
// quickly read by a guest that has read none before. An i64 of nanoseconds, then
// hostname, randomness and node, each after its u16 length; numbers are big-endian.
func (i Identity) Word() ([]byte, error) {
	word := binary.BigEndian.AppendUint64(nil, uint64(i.Time.UnixNano()))
	for _, part := range [][]byte{[]byte(i.Hostname), i.Randomness, i.Node} {
		if len(part) > math.MaxUint16 {
			return nil, fmt.Errorf("a part of the guest's identity has %d bytes, and may have %d", len(part), math.MaxUint16)
		}
		word = append(binary.BigEndian.AppendUint16(word, uint16(len(part))), part...)
	}
	return word, nil
}

// readIdentity is Word read.
func readIdentity(word []byte) (Identity, error) {
	if len(word) < 8 {
		return Identity{}, errors.New("an identity is cut off")
	}
	at := time.Unix(0, int64(binary.BigEndian.Uint64(word)))
	word = word[8:]
	var parts [3][]byte
	for n := range parts {
		if len(word) < 2 || len(word)-2 < int(binary.BigEndian.Uint16(word)) {
			return Identity{}, errors.New("an identity is cut off")
		}
		end := 2 + int(binary.BigEndian.Uint16(word))
		parts[n], word = word[2:end], word[end:]
	}
	return Identity{Hostname: string(parts[0]), Time: at, Randomness: parts[1], Node: parts[2]}, nil
}

// first takes an identity as a session's first word.
func (a *Agent) first(word []byte) error {
	i, err := readIdentity(word)
	if err != nil {
		return err
	}
	return a.Identify(i, nil)
}

// leastRandomness is what a guest's random numbers are seeded with.
const leastRandomness = 32

// Identify gives a guest its identity. It may be called again.
func (a *Agent) Identify(i Identity, _ *Nothing) error {
	if i.Hostname == "" || len(i.Randomness) < leastRandomness || i.Time.IsZero() {
		return fmt.Errorf("an identity has a hostname, a time, and at least %d bytes of randomness", leastRandomness)
	}
	if len(i.Node) > 0 && a.node == nil {
		return errors.New("this guest's agent brings no node: build the image anew")
	}
	if err := unix.Sethostname([]byte(i.Hostname)); err != nil {
		return fmt.Errorf("set the hostname to %q: %w", i.Hostname, err)
	}
	now := unix.NsecToTimeval(i.Time.UnixNano())
	if err := unix.Settimeofday(&now); err != nil {
		return fmt.Errorf("set the clock to %v: %w", i.Time, err)
	}
	if err := seed(i.Randomness); err != nil {
		return err
	}
	if len(i.Node) > 0 { // only now: what it draws is its own
		a.become(i.Node)
	}
	return nil
}

// seed adds to the kernel's pool and has it draw anew at once (random(4)): two
// clones would else make the same keys.
func seed(randomness []byte) error {
	device, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer device.Close()
	entropy := struct {
		bits, size int32
		bytes      [512]byte
	}{}
	entropy.size = int32(copy(entropy.bytes[:], randomness))
	entropy.bits = 8 * entropy.size
	for _, request := range []struct {
		number   uintptr
		argument unsafe.Pointer
	}{{unix.RNDADDENTROPY, unsafe.Pointer(&entropy)}, {unix.RNDRESEEDCRNG, nil}} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), request.number, uintptr(request.argument)); errno != 0 {
			return fmt.Errorf("seed the random numbers: %w", errno)
		}
	}
	return nil
}
