package queuevm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// doubtTime is how long the end of a direct channel's socket may be known before
// the proxies' word for why. Without it the socket was cut.
const doubtTime = 500 * time.Millisecond

// directBuffer is the bytes of a direct socket's send buffer over a short way.
const directBuffer = 256 << 10

// direct is the daemon's share in a direct channel: a duplicate of the socket
// that the process has. Items are none of its business; it sees to it that each
// end hears of the other's end, and of a cut. The channel's ring carries no item:
// its state words and the proxies' frames tell of ends as on any channel, so that
// an end and a cut are never taken for each other. Guarded by VM.mu. Its methods
// may be called on nil, a channel that is not direct.
type direct struct {
	vm      *VM
	channel *channel
	fd      int           // -1 before it is connected and after Close
	up      chan struct{} // closed when it is
	asked   []ask         // for it, before
	given   bool          // to the process
	doubt   bool          // the socket has ended, and why is not known yet
}

func newDirect(vm *VM, c *channel) *direct {
	c.ring.header.served |= servedDirect
	return &direct{vm: vm, channel: c, fd: -1, up: make(chan struct{})}
}

// connectDirect makes the sockets of all direct channels, once the links are up.
func (vm *VM) connectDirect(ctx context.Context) error {
	vm.mu.Lock()
	vm.linked = true
	var waiting []*direct
	for _, c := range vm.carried {
		if c.direct != nil {
			waiting = append(waiting, c.direct)
		}
	}
	vm.mu.Unlock()
	made := make(chan error, len(waiting))
	limit := make(chan struct{}, 64) // not all descriptors at once
	for _, d := range waiting {
		vm.tasks.Add(1)
		go func() {
			defer vm.tasks.Done()
			limit <- struct{}{}
			defer func() { <-limit }()
			made <- vm.makeDirect(ctx, d)
		}()
	}
	for range waiting {
		if err := <-made; err != nil {
			return err
		}
	}
	return nil
}

// joinDirect is connectDirect for a channel that is added later. The caller holds
// VM.mu; a process that opens the port meanwhile waits.
func (vm *VM) joinDirect(d *direct) {
	vm.tasks.Add(1)
	go func() {
		defer vm.tasks.Done()
		ctx, cancel := context.WithTimeout(context.Background(), vm.config.Redial)
		defer cancel()
		if err := vm.makeDirect(ctx, d); err != nil && !errors.Is(err, ErrDown) {
			vm.report(PeerLost{d.channel.far(), err})
		}
	}()
}

// far is the peer at a channel's other end.
func (c *channel) far() string {
	if c.To.Peer != "" {
		return c.To.Peer
	}
	return c.From.Peer
}

// makeDirect dials, or waits for who does: the lower id, as with links.
func (vm *VM) makeDirect(ctx context.Context, d *direct) error {
	vm.mu.Lock()
	p := vm.peers[d.channel.far()]
	open, ends := p.open, p.ends
	vm.mu.Unlock()
	if !open {
		return fmt.Errorf("channel %d is direct, and its items would go unencrypted between %s, to node %s: that is allowed on loopback, and where both nodes were told so (--plain-links); or leave the channel to the proxies", d.channel.ID, ends, p.ID)
	}
	if err := vm.raise(ctx, d, p); err != nil {
		return fmt.Errorf("connect direct channel %d to node %s at %s: %w", d.channel.ID, p.ID, p.Address, err)
	}
	return nil
}

func (vm *VM) raise(ctx context.Context, d *direct, p *peer) error {
	var last error
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		again := make(<-chan time.Time)
		if vm.config.Self < p.ID {
			if last = vm.dialDirect(ctx, d, p); last == nil {
				return nil
			}
			again = time.After(wait)
		}
		select {
		case <-d.up:
			return nil
		case <-again:
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		case <-vm.done:
			return ErrDown
		}
	}
}

func (vm *VM) dialDirect(ctx context.Context, d *direct, p *peer) error {
	attempt, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	conn, err := vm.reach(attempt, p.Address)
	if err != nil {
		return err
	}
	defer conn.Close() // the loop has a duplicate
	deadline, _ := attempt.Deadline()
	_ = conn.SetDeadline(deadline)
	if !vm.open(conn) {
		return errors.New("its items would go unencrypted")
	}
	secured, _, err := vm.key.dial(conn, true, vm.config.Self, p.Peer, greeting{direct: true, channel: d.channel.ID})
	if err != nil {
		return err
	}
	return vm.adopt(p, d.channel.ID, conn, secured)
}

// adopt makes a proven connection a direct channel's socket.
func (vm *VM) adopt(p *peer, channel uint32, raw, secured net.Conn) error {
	if raw != secured {
		return errors.New("a direct channel's bytes go as they are")
	}
	_ = raw.SetDeadline(time.Time{})
	fd, err := duplicate(raw)
	if err != nil {
		return err
	}
	defer raw.Close()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	c := vm.channels[channel]
	if err = vm.awaited(p, channel); err == nil {
		err = vm.watch(fd, unix.EPOLLRDHUP|unix.EPOLLET, c.direct) // and HUP and ERR
	}
	if err != nil {
		_ = unix.Close(fd)
		return err
	}
	c.direct.fd = fd
	close(c.direct.up)
	for _, a := range c.direct.asked {
		a.process.reply(a.process.ports[a.port].sockets(a.process, a.port))
	}
	c.direct.asked = nil
	return nil
}

// awaited is nil for a direct channel to a peer that has no socket yet. The caller
// holds VM.mu.
func (vm *VM) awaited(p *peer, channel uint32) error {
	switch c := vm.channels[channel]; {
	case vm.closed:
		return ErrDown
	case c == nil || c.direct == nil || c.far() != p.ID:
		return fmt.Errorf("channel %d is no direct channel to node %s", channel, p.ID)
	case c.direct.fd >= 0:
		return fmt.Errorf("direct channel %d has its socket", channel)
	}
	return nil
}

// duplicate is a descriptor of the daemon's own for a connection, which net has
// made non-blocking and quick. It may stay full for as long as the taker likes, so
// there is no limit on that; a peer that is gone the link between the proxies finds.
func duplicate(conn net.Conn) (fd int, err error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return -1, errors.New("not a TCP connection")
	}
	control, err := tcp.SyscallConn()
	if err != nil {
		return -1, err
	}
	failed := control.Control(func(own uintptr) {
		// More would be sent from memory that has left the cache; over a long way
		// less would hold the window down.
		if info, err := unix.GetsockoptTCPInfo(int(own), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil && info.Rtt < 1000 {
			_ = unix.SetsockoptInt(int(own), unix.SOL_SOCKET, unix.SO_SNDBUF, directBuffer)
		}
		fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(failed, err)
}

// ask is a process's question for the sockets of a port.
type ask struct {
	process *process
	port    string
}

// sockets answers a process that asks for the sockets of a port; with nothing
// while one is still to come.
func (q *port) sockets(p *process, name string) (string, []int) {
	var there [2]int
	var fds []int
	given := false
	out, in := p.current(q)
	for k, c := range []*channel{out, in} {
		if c == nil || c.direct == nil {
			continue
		}
		if c.direct.fd < 0 {
			c.direct.asked = append(c.direct.asked, ask{p, name})
			return "", nil
		}
		if c.direct.given {
			given = true
			continue
		}
		there[k] = 1
		fds = append(fds, c.direct.fd)
	}
	if given && len(fds) == 0 {
		return fmt.Sprintf("error port %q has a direct channel, which was opened before: what was read ahead of it then is gone, so a program that replaces another cannot open it again", name), nil
	}
	for _, c := range []*channel{out, in} {
		if c != nil && c.direct != nil {
			c.direct.given = true
		}
	}
	return fmt.Sprintf("ok %d %d", there[0], there[1]), fds
}

// event is told that the socket was ended, by the other end or by a cut. Which
// of them it was the proxies say, sooner or a little later.
func (d *direct) event(events uint32) {
	if d.doubt || d.over() && events&unix.EPOLLERR == 0 {
		return
	}
	d.doubt = true
	time.AfterFunc(doubtTime, func() {
		d.vm.mu.Lock()
		defer d.vm.mu.Unlock()
		d.doubt = false
		if !d.vm.closed && d.fd >= 0 && (!d.over() || d.torn(events)) {
			d.cut()
		}
	})
}

// over says that this end is done, or knows that the other one is.
func (d *direct) over() bool {
	h := d.channel.ring.header
	if d.channel.out != nil {
		return d.channel.out.refused || atomic.LoadUint32(&h.producerState) != 0
	}
	return d.channel.in.ended || atomic.LoadUint32(&h.consumerState) != 0
}

// torn says that what the producer sent before its end was lost with the socket.
func (d *direct) torn(events uint32) bool {
	return events&unix.EPOLLERR != 0 && d.channel.in != nil && atomic.LoadUint32(&d.channel.ring.header.consumerState) == 0
}

func (d *direct) doubtful() bool { return d != nil && d.doubt }

// cut ends both ways of a channel whose socket broke: items may be missing, so
// the attempt must fail.
func (d *direct) cut() {
	c, vm := d.channel, d.vm
	c.lost = true
	if c.out != nil {
		c.out.refused = true
	} else {
		c.in.ended = true
	}
	c.ring.endProducer(stateClosed|stateLost, vm.bell)
	c.ring.endConsumer(stateClosed|stateLost, vm.bell)
	d.shut(unix.SHUT_RDWR)
	vm.heat(c)
	vm.report(PeerLost{c.far(), fmt.Errorf("the socket of direct channel %d, from %v to %v, was cut", c.ID, c.From, c.To)})
}

// shut ends ways of the socket, for the process too: it wakes it.
func (d *direct) shut(how int) {
	if d != nil && d.fd >= 0 {
		_ = unix.Shutdown(d.fd, how)
	}
}

func (d *direct) close() {
	if d != nil && d.fd >= 0 {
		d.vm.unwatch(d.fd)
		d.fd = -1
	}
}

// carried is the bytes that have crossed.
func (d *direct) carried() uint64 {
	if d.fd >= 0 {
		if info, err := unix.GetsockoptTCPInfo(d.fd, unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			return info.Bytes_acked
		}
	}
	return 0
}
