package queuevm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// doubtTime is how long the end of a direct channel's socket may be known before
// the proxies' word for why, if they have a link. Without it the socket was cut.
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
	twin    *direct       // the way back, over the same socket
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
	var waiting [][]*direct
	for _, c := range vm.carried {
		switch back := c.direct.back(); {
		case c.direct == nil:
		case back == nil:
			waiting = append(waiting, []*direct{c.direct})
		case c.ID < back.channel.ID:
			waiting = append(waiting, []*direct{c.direct, back})
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
			made <- vm.makeDirect(ctx, d...)
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

// back is the direct channel that leads back to the same port here from the same
// peer, nil when there is none: the two can have one socket. What an answer carries is
// also what acknowledges the question; with a socket each way every item costs a
// packet more, which was two of seven microseconds. The caller holds VM.mu.
func (d *direct) back() *direct {
	if d == nil {
		return nil
	}
	here := d.channel.From
	if d.channel.in != nil {
		here = d.channel.To
	}
	q := d.vm.processes[here.Process].ports[here.Port]
	if q == nil || len(q.outs) != 1 || len(q.ins) != 1 {
		return nil
	}
	other := q.ins[0]
	if d.channel.in != nil {
		other = q.outs[0]
	}
	if other.direct == nil || other.far() != d.channel.far() {
		return nil
	}
	return other.direct
}

// far is the peer at a channel's other end.
func (c *channel) far() string {
	if c.To.Peer != "" {
		return c.To.Peer
	}
	return c.From.Peer
}

// makeDirect dials, or waits for who does: the lower id, as with links. It makes one
// socket, of one channel or of one and its way back.
func (vm *VM) makeDirect(ctx context.Context, all ...*direct) error {
	d := all[0]
	vm.mu.Lock()
	p := vm.peers[d.channel.far()]
	open, ends := p.open, p.ends
	vm.mu.Unlock()
	if !open {
		return fmt.Errorf("channel %d is direct, and its items would go unencrypted between %s, to node %s: that is allowed on loopback, and where both nodes were told so (--plain-links); or leave the channel to the proxies", d.channel.ID, ends, p.ID)
	}
	err := vm.raise(ctx, p, all)
	for k := 0; errors.Is(err, errApart) && k < len(all); k++ {
		if err = vm.raise(ctx, p, all[k:k+1]); err == nil && k+1 < len(all) {
			err = errApart
		}
	}
	if err != nil {
		return fmt.Errorf("connect direct channel %d to node %s at %s: %w", d.channel.ID, p.ID, p.Address, err)
	}
	return nil
}

func (vm *VM) raise(ctx context.Context, p *peer, all []*direct) error {
	if vm.config.Self > p.ID {
		for _, d := range all {
			select {
			case <-d.up:
			case <-ctx.Done():
				return ctx.Err()
			case <-vm.done:
				return ErrDown
			}
		}
		return nil
	}
	for wait := 2 * time.Millisecond; ; wait = min(2*wait, 200*time.Millisecond) {
		err := vm.dialDirect(ctx, p, all...)
		if err == nil || errors.Is(err, errApart) {
			return err
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-vm.done:
			return ErrDown
		}
	}
}

func (vm *VM) dialDirect(ctx context.Context, p *peer, all ...*direct) error {
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
	var ids []uint32
	for _, d := range all {
		ids = append(ids, d.channel.ID)
	}
	secured, _, err := vm.key.dial(conn, true, vm.config.Self, p.Peer, greeting{direct: ids})
	if len(ids) > 1 && (errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)) {
		return errApart // of a version that hangs up on what it does not know, for all we know
	}
	if err != nil {
		return err
	}
	return vm.adopt(p, ids, conn, secured)
}

// adopt makes a proven connection the socket of a direct channel, or of one and its
// way back. Each has a descriptor of its own for it.
func (vm *VM) adopt(p *peer, ids []uint32, raw, secured net.Conn) (err error) {
	if raw != secured {
		return errors.New("a direct channel's bytes go as they are")
	}
	_ = raw.SetDeadline(time.Time{})
	defer raw.Close()
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if err := vm.awaited(p, ids); err != nil {
		return err
	}
	var all []*direct
	for _, id := range ids {
		all = append(all, vm.channels[id].direct)
	}
	for k, d := range all {
		fd := -1
		if fd, err = duplicate(raw); err != nil {
			break
		}
		// And HUP and ERR. Of two ways the giver's end hears nothing of the other's end.
		events := uint32(unix.EPOLLRDHUP | unix.EPOLLET)
		if len(all) > 1 && d.channel.out != nil {
			events = unix.EPOLLET
		}
		if err = vm.watch(fd, events, d); err != nil {
			_ = unix.Close(fd)
			break
		}
		d.fd = fd
		if len(all) > 1 {
			d.twin = all[1-k]
		}
	}
	if err != nil {
		for _, d := range all {
			d.close()
			d.twin = nil
		}
		return err
	}
	for _, d := range all {
		close(d.up)
	}
	for _, d := range all {
		asked := d.asked
		d.asked = nil
		for _, a := range asked {
			a.process.reply(a.process.ports[a.port].sockets(a.process, a.port))
		}
	}
	return nil
}

// awaited is nil for direct channels to a peer that have no socket yet. The caller
// holds VM.mu.
func (vm *VM) awaited(p *peer, ids []uint32) error {
	if vm.closed {
		return ErrDown
	}
	for _, id := range ids {
		switch c := vm.channels[id]; {
		case c == nil || c.direct == nil || c.far() != p.ID:
			return fmt.Errorf("channel %d is no direct channel to node %s", id, p.ID)
		case c.direct.fd >= 0:
			return fmt.Errorf("direct channel %d has its socket", id)
		}
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
	given, both := false, 0
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
		if c.direct.twin != nil {
			both = 1
		}
	}
	if given && len(fds) == 0 {
		return fmt.Sprintf("error port %q has a direct channel, which was opened before: what was read ahead of it then is gone, so a program that replaces another cannot open it again", name), nil
	}
	for _, c := range []*channel{out, in} {
		if c != nil && c.direct != nil {
			c.direct.given = true
		}
	}
	return fmt.Sprintf("ok %d %d %d", there[0], there[1], both), fds
}

// event is told that the socket was ended, by the other end or by a cut. Which
// of them it was the proxies say, sooner or a little later.
func (d *direct) event(events uint32) {
	if d.doubt || d.over() && events&unix.EPOLLERR == 0 {
		return
	}
	d.doubt = true
	d.inquire(events)
}

// inquire waits for the proxies' word, for as long as they have no link and then once
// more, and judges without it when none comes. The caller holds VM.mu.
func (d *direct) inquire(events uint32) {
	p := d.vm.peers[d.channel.far()]
	links := p.connections
	time.AfterFunc(doubtTime, func() {
		d.vm.mu.Lock()
		defer d.vm.mu.Unlock()
		if d.vm.closed || d.fd < 0 {
			return
		}
		if (p.fd < 0 || p.connections != links) && !p.gone && !d.over() {
			d.inquire(events)
			return
		}
		d.doubt = false
		if !d.over() || d.torn(events) {
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
	if d.twin != nil && !d.twin.over() {
		d.twin.cut()
	}
}

// shut ends ways of the socket, for the process too: it wakes it. Of a socket with
// two ways it ends this channel's.
func (d *direct) shut(how int) {
	if d == nil || d.fd < 0 {
		return
	}
	switch {
	case d.twin == nil:
	case d.channel.out != nil:
		how = unix.SHUT_WR
	default:
		how = unix.SHUT_RD
	}
	_ = unix.Shutdown(d.fd, how)
}

// leave ends what is taken from the socket because its taker is gone. A way back stays
// open for what still comes, which nobody reads: the giver is told by the proxies, and
// what came to an end that reads no more would be answered with a reset, which takes
// what is on its way in the other direction with it.
func (d *direct) leave() {
	if d != nil && d.twin == nil {
		d.shut(unix.SHUT_RDWR)
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
