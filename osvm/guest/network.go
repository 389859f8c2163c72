package guest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Network is a guest's place in a virtual network. Nothing leads out of that: it has
// no router.
type Network struct {
	MAC     string   // of its network card; the host passes no frames on by another one
	Address string   // with the length of the network's prefix: 10.86.0.1/16
	MTU     int      // bytes; 0 leaves it as it is
	Hosts   []string // lines of the guest's file of hosts, besides the loopback's
}

// hostsFile is where programs look names up.
const hostsFile = "/etc/hosts"

// Join has the guest's network card be the one that the host says. It may be called
// again: where only names are new the card stays as it is.
func (a *Agent) Join(n Network, _ *Nothing) error {
	a.joining.Lock()
	defer a.joining.Unlock()
	mac, err := net.ParseMAC(n.MAC)
	if err == nil && len(mac) != 6 {
		err = errors.New("it has not 6 bytes")
	}
	if err != nil {
		return fmt.Errorf("the network card's address %q: %w", n.MAC, err)
	}
	address, err := netip.ParsePrefix(n.Address)
	if err == nil && !address.Addr().Is4() {
		err = errors.New("it is not of version 4")
	}
	if err != nil {
		return fmt.Errorf("the guest's address %q: %w", n.Address, err)
	}
	card, err := networkCard()
	if err != nil {
		return err
	}
	if place := fmt.Sprint(n.MAC, n.Address, n.MTU); a.place != place {
		if err := configure(card, mac, address, n.MTU); err != nil {
			return fmt.Errorf("set up the network card %s: %w", card, err)
		}
		a.place = place
	}
	text := "127.0.0.1 localhost\n" + strings.Join(append(n.Hosts, ""), "\n")
	if err := os.WriteFile(hostsFile+".new", []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(hostsFile+".new", hostsFile) // whoever reads it has one or the other
}

// networkCard waits for the card to appear: the kernel makes it beside us.
func networkCard() (string, error) {
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		found, _ := filepath.Glob("/sys/class/net/*/device") // lo has none
		if len(found) > 0 {
			return filepath.Base(filepath.Dir(found[0])), nil
		}
		if time.Since(begin) > portLimit {
			return "", errors.New("this machine has no network card")
		}
	}
}

// configure gives a card its addresses and turns it on, as netdevice(7) says.
func configure(card string, mac net.HardwareAddr, address netip.Prefix, mtu int) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq(card)
	if err != nil {
		return err
	}
	turn := func(flags uint16) error {
		request.SetUint16(flags)
		return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
	}
	if err := turn(0); err != nil {
		return fmt.Errorf("turn it off: %w", err)
	}
	hardware := struct {
		name    [unix.IFNAMSIZ]byte
		family  uint16
		address [14]byte
		_       [8]byte
	}{family: unix.ARPHRD_ETHER}
	copy(hardware.name[:], card)
	copy(hardware.address[:], mac)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCSIFHWADDR, uintptr(unsafe.Pointer(&hardware))); errno != 0 {
		return fmt.Errorf("set its address %v: %w", mac, errno)
	}
	if mtu > 0 {
		request.SetUint32(uint32(mtu))
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFMTU, request); err != nil {
			return fmt.Errorf("have it carry %d bytes: %w", mtu, err)
		}
	}
	mask := net.CIDRMask(address.Bits(), 32)
	for _, set := range []struct {
		number uint
		value  []byte
	}{{unix.SIOCSIFADDR, address.Addr().AsSlice()}, {unix.SIOCSIFNETMASK, mask}} {
		if err := request.SetInet4Addr(set.value); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, set.number, request); err != nil {
			return fmt.Errorf("set the address %v: %w", address, err)
		}
	}
	if err := turn(unix.IFF_UP | unix.IFF_RUNNING); err != nil {
		return fmt.Errorf("turn it on: %w", err)
	}
	return nil
}
