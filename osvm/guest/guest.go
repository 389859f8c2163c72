// Package guest is the agent inside an OS-level VM: PID 1 of the minimal image.
// It mounts what a Linux program expects, loads the drivers that the image
// brings, reaps the dead, and serves the host over the VM's port.
//
// What always holds: the guest is ready when it answers Hello. A clone is a copy
// of a guest that does not know that it is one: whatever must differ between two
// of them comes from the host, by Identify.
//
// It must never trust that a host stays: sessions come and go.
package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"net/rpc/jsonrpc"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm/link"
)

// Port is the name of the virtio-serial port to the host.
const Port = "mvm.agent"

// portLimit is how long the port's driver may take to make it.
const portLimit = 30 * time.Second

// Config is what else PID 1 does.
type Config struct {
	// Node, if given, is called when the host has said what node this guest is to be
	// (Identity.Node), and in a goroutine of its own. uplink is its only way out. When
	// the host says another, as to a clone of a guest that is a node, ctx ends, and it
	// is called again once it has returned.
	Node func(ctx context.Context, identity []byte, uplink *link.Inside)
}

// Run is the life of PID 1, and of the agent that it starts out of the same
// program; it returns only what went wrong. In a stock image, where others have
// begun, it is a service, and only serves.
func Run(config Config) error {
	if os.Getpid() == 1 {
		return first()
	}
	inside := os.Getenv(insideVariable)
	_ = os.Unsetenv(insideVariable)
	if inside == withModules {
		if err := loadModules("/modules"); err != nil {
			return err
		}
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("bring the loopback interface up: %w", err)
	}
	port, err := openPort()
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	agent := &Agent{node: config.Node}
	if err := server.Register(agent); err != nil {
		return err
	}
	agent.uplink = link.NewInside(func(conn net.Conn) { server.ServeCodec(jsonrpc.NewServerCodec(conn)) })
	return link.Serve(port, agent.first, agent.uplink.Serve)
}

// Client calls an agent over a connection of its link; close it when done.
func Client(conn net.Conn) *rpc.Client { return jsonrpc.NewClient(conn) }

// loopback brings the interface lo up: a guest speaks to itself over it.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

func mount() error {
	for _, m := range []struct{ source, target, kind string }{
		{"proc", "/proc", "proc"},
		{"sysfs", "/sys", "sysfs"},
		{"devtmpfs", "/dev", "devtmpfs"},
		{"tmpfs", "/tmp", "tmpfs"},
		{"tmpfs", "/run", "tmpfs"},
	} {
		if err := os.MkdirAll(m.target, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, ""); err != nil && !errors.Is(err, unix.EBUSY) { // the kernel may have been quicker
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// loadModules loads what the image's builder wrote down, in that order.
func loadModules(folder string) error {
	order, err := os.ReadFile(filepath.Join(folder, "order"))
	if err != nil {
		return err
	}
	for name := range strings.FieldsSeq(string(order)) {
		file, err := os.Open(filepath.Join(folder, name+".ko"))
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(file.Fd()), "", 0)
		_ = file.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load the kernel module %s: %w", name, err)
		}
	}
	return nil
}

// openPort waits for the port to appear: the kernel makes it beside us.
func openPort() (device, error) {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err == nil && strings.TrimSpace(string(text)) == Port {
				return openDevice("/dev/" + filepath.Base(filepath.Dir(name)))
			}
		}
		if time.Since(begin) > portLimit {
			return device{}, fmt.Errorf("this machine has no port %s", Port)
		}
	}
}
