package queuevm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	batchParts  = 128       // iovecs in one writev
	batchBytes  = 1 << 20   // and bytes, more or less
	receiveSize = 256 << 10 // bytes of one read that do not go straight into a ring
	wakeBytes   = 256 << 10 // of a frame that must have come before a near link wakes the loop for it
	nearBuffer  = 384 << 10 // of a near link's socket, to send
	nearTrip    = 1000      // microseconds there and back of a near link, at most
	earlyFrames = 1 << 16   // channels that a peer may mention before we know them

	framePatience = 2 * time.Millisecond // that what has come of a frame waits for more of it
)

// peer is another node of the job group and the one connection to it. Guarded
// by VM.mu but for the channels, which have their own rules.
type peer struct {
	Peer
	vm       *VM
	channels []*channel
	again    []uint32         // channels of which the peer must hear once more that they are gone
	early    map[uint32]frame // where the peer stands on channels that were not added here yet

	fd          int    // non-blocking; -1 without a connection
	connections uint64 // that there have been
	up, cut     chan struct{}
	failure     error         // why the connection was cut
	open        bool          // it may carry plain bytes
	near        bool          // there and back takes less than nearTrip
	wakesAt     int           // bytes that wake the loop, as the socket was told
	patient     time.Duration // until when more than one byte does
	ends        string        // its addresses
	left        bool          // the peer said goodbye
	untold      bool          // it would dial this node where that is no more: this node dials
	gone        bool          // reported lost; no connection is taken any more

	batch   [][]byte // what is being written: frame headers and ring memory, in turn
	bytes   int
	arena   []byte // the batch's frame headers; never grows under the batch
	blocked bool   // the socket is full: EPOLLOUT is awaited

	buffer     []byte // received, not yet parsed: buffer[start:end]
	start, end int
	target     *channel // whose data frame is being received
	left32     uint32   // bytes of it still to come
	items      uint32   // of that frame
	touched    []*channel
}

// peer is the entry for an id, made at its first mention. The caller holds VM.mu.
func (vm *VM) peer(id string) *peer {
	p := vm.peers[id]
	if p == nil {
		p = &peer{Peer: Peer{ID: id}, vm: vm, fd: -1, early: map[uint32]frame{}, up: make(chan struct{}, 1), cut: make(chan struct{}, 1), untold: vm.moved != ""}
		vm.peers[id] = p
		vm.links = append(vm.links, p)
	}
	return p
}

func (p *peer) add(c *channel) {
	p.channels = append(p.channels, c)
	if p.gone {
		c.lose(p.vm)
	}
}

// Connect makes the links to the peers and returns when every one of them has
// proven its key, or with the first failure. Of two nodes the one with the
// lower id dials, again and again until ctx ends; the other waits for it. Call
// it once with the whole group.
func (vm *VM) Connect(ctx context.Context, peers []Peer) error {
	vm.mu.Lock()
	if vm.closed || vm.connected || (vm.listener == nil && len(peers) > 0) {
		vm.mu.Unlock()
		return errors.New("connect to the peers: the queue-level VM connects once, with a proxy, and not after Close")
	}
	vm.connected = true
	var group []*peer
	for _, d := range peers {
		if d.ID == "" || d.ID == vm.config.Self {
			vm.mu.Unlock()
			return fmt.Errorf("connect to peer %q: this node is %q", d.ID, vm.config.Self)
		}
		p := vm.peer(d.ID)
		p.Peer = d
		group = append(group, p)
	}
	close(vm.told)
	vm.mu.Unlock()
	first := make(chan error, len(group))
	for _, p := range group {
		vm.tasks.Add(1)
		go func() {
			defer vm.tasks.Done()
			vm.keep(ctx, p, first)
		}()
	}
	for range group {
		select {
		case err := <-first:
			if err != nil {
				return err
			}
		case <-vm.done:
			return ErrDown
		}
	}
	return vm.connectDirect(ctx)
}

// keep holds the link to one peer up: the lower id dials, the other waits, unless
// it has moved and the peer cannot know where it is (moved.go). The first time for
// as long as ctx allows, later for Config.Redial.
func (vm *VM) keep(ctx context.Context, p *peer, first chan<- error) {
	err := vm.link(ctx, p)
	if err != nil {
		err = fmt.Errorf("connect to peer %s at %s: %w", p.ID, p.Address, err)
	}
	first <- err
	for err == nil {
		select {
		case <-p.cut:
		case <-vm.done:
			return
		}
		vm.mu.Lock()
		failure, left := p.failure, p.left
		vm.mu.Unlock()
		if left || errors.Is(failure, errProtocol) {
			err = failure
			break
		}
		if failure != nil { // else the peer was quicker to make it again
			vm.logf("peer %s: the link was cut and is made again: %v", p.ID, failure)
		}
		limit, cancel := context.WithTimeout(context.Background(), vm.config.Redial)
		err = vm.link(limit, p)
		cancel()
	}
	vm.lose(p, err)
}

var errProtocol = errors.New("the peer broke the protocol")

// link brings one connection up, or says why there is none when limit ends.
func (vm *VM) link(limit context.Context, p *peer) error {
	for vm.config.Self > p.ID {
		vm.mu.Lock()
		linked, untold := p.fd >= 0, p.untold
		vm.mu.Unlock()
		if linked {
			return nil
		}
		if untold {
			break
		}
		select {
		case <-p.up:
		case <-limit.Done():
			return fmt.Errorf("it did not dial in time: %w", limit.Err())
		case <-vm.done:
			return ErrDown
		}
	}
	wait := 2 * time.Millisecond
	wanted := vm.config.Plain || len(vm.config.PlainLinks) > 0
	plain := wanted
	for {
		err := vm.dial(limit, p, plain)
		if err == nil || errors.Is(err, errGivenUp) {
			return err
		}
		if vm.connectedTo(p) { // by the other, from where it is now
			return nil
		}
		// A peer that wants all links encrypted hangs up on a plain greeting.
		hungUp := errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE)
		plain = wanted && !(plain && hungUp)
		select {
		case <-time.After(wait):
			wait = min(2*wait, 200*time.Millisecond)
		case <-limit.Done():
			return fmt.Errorf("%w (last try: %w)", limit.Err(), err)
		case <-vm.done:
			return ErrDown
		}
	}
}

// dial makes one connection, unencrypted if plain and where that is safe.
func (vm *VM) dial(limit context.Context, p *peer, plain bool) error {
	attempt, cancel := context.WithTimeout(limit, 5*time.Second)
	defer cancel()
	vm.mu.Lock()
	to, purpose := p.Peer, greeting{address: []byte(vm.moved)}
	vm.mu.Unlock()
	conn, err := vm.reach(attempt, to.Address)
	if err != nil {
		return err
	}
	deadline, _ := attempt.Deadline()
	_ = conn.SetDeadline(deadline)
	secured, theirs, err := vm.key.dial(conn, plain && vm.open(conn), vm.config.Self, to, purpose)
	if err != nil {
		_ = conn.Close()
		return err
	}
	vm.mu.Lock()
	current := vm.moved == string(purpose.address)
	p.untold = p.untold && !current
	vm.mu.Unlock()
	if !current { // it has moved meanwhile, and said nothing of that
		_ = conn.Close()
		return errMoved
	}
	return vm.attach(p, conn, secured, theirs)
}

// reach connects to where a peer listens.
func (vm *VM) reach(ctx context.Context, address string) (net.Conn, error) {
	if vm.config.Dial != nil {
		return vm.config.Dial(ctx, address)
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "tcp", address)
}

// attach makes a proven connection the peer's link, in place of an older one.
func (vm *VM) attach(p *peer, raw, secured net.Conn, theirs greeting) error {
	_ = raw.SetDeadline(time.Time{})
	fd, err := vm.loopEnd(raw, secured)
	if err != nil {
		_ = raw.Close()
		return err
	}
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.closed || p.gone {
		_ = unix.Close(fd)
		return ErrDown
	}
	if p.fd >= 0 { // its other end is as dead as ours will be
		vm.unwatch(p.fd)
	}
	p.fd = fd
	if p.connections++; p.connections == 1 && len(theirs.machine) > 0 && bytes.Equal(theirs.machine, vm.key.machine) {
		vm.neighbours++
	}
	p.near, p.wakesAt = near(fd), 1
	p.open, p.ends = vm.open(raw), fmt.Sprintf("%v and %v", raw.LocalAddr(), raw.RemoteAddr())
	p.batch, p.bytes, p.blocked, p.failure = nil, 0, false, nil
	p.start, p.end, p.target, p.left32 = 0, 0, nil, 0
	if p.buffer == nil {
		p.buffer = make([]byte, receiveSize)
		p.arena = make([]byte, 0, batchParts*frameSize)
	}
	for _, c := range p.channels {
		c.starts()
		vm.heat(c)
	}
	clear(p.early)
	p.again = nil
	if err := vm.watch(fd, unix.EPOLLIN, p); err != nil {
		_ = unix.Close(fd)
		p.fd = -1
		return err
	}
	select {
	case <-p.cut: // an old one
	default:
	}
	select {
	case p.up <- struct{}{}:
	default:
	}
	ring1(vm.bell)
	return nil
}

// onlyReader and onlyWriter hide a connection's shortcuts for io.Copy: they
// would splice past TLS, or copy with buffers of their own.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)

// loopEnd is the descriptor that the loop reads and writes: the socket itself
// where the bytes go as they are, else one end of a socket pair whose other end
// two goroutines pump through TLS.
func (vm *VM) loopEnd(raw, secured net.Conn) (int, error) {
	socket, ok := raw.(syscall.Conn) // of TCP, or the agent's of a guest
	if !ok {
		return -1, errors.New("not a socket")
	}
	control, err := socket.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	var dupErr error
	if err := control.Control(func(own uintptr) { // not File: it would make both blocking
		vm.tune(int(own))
		if secured == raw {
			fd, dupErr = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 0)
		}
	}); err != nil || dupErr != nil {
		return -1, errors.Join(err, dupErr)
	}
	if secured == raw {
		_ = raw.Close() // ours is a duplicate
		return fd, unix.SetNonblock(fd, true)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	far, err := newFileConn(pair[1])
	if err != nil {
		_ = unix.Close(pair[0])
		return -1, err
	}
	vm.tasks.Add(2)
	for _, way := range [][2]net.Conn{{far, secured}, {secured, far}} {
		go func() {
			defer vm.tasks.Done()
			_, _ = io.CopyBuffer(onlyWriter{way[0]}, onlyReader{way[1]}, make([]byte, 64<<10))
			_ = raw.Close()
			_ = far.Close()
		}()
	}
	return pair[0], nil
}

// tune sets what makes a link quick, and makes a dead one known.
func (vm *VM) tune(fd int) {
	set := func(level, option, value int) { _ = unix.SetsockoptInt(fd, level, option, value) }
	set(unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	set(unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	// A peer that vanished without a word is known to be gone after Redial, idle
	// or not: half of it in silence, then three probes; and what is sent must be
	// acknowledged, or taken into the peer's buffer, within it.
	limit := max(vm.config.Redial, 3*time.Second)
	set(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, max(1, int(limit/2/time.Second)))
	set(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, max(1, int(limit/6/time.Second)))
	set(unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
	set(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	// A small send buffer keeps ring memory in cache until it is sent; over a
	// long way it would hold the window down. With 128 KiB items of 1 MiB go a fifth
	// slower, with 640 KiB a third.
	if near(fd) {
		set(unix.SOL_SOCKET, unix.SO_SNDBUF, nearBuffer)
	}
}

// near says that a socket's other end is so close that what it sends is here at
// once. It is false of what is no TCP.
func near(fd int) bool {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.Rtt < nearTrip
}

// wakeAt has the loop sleep until enough of the frame has come to be worth a
// switch between processes: woken for each segment it had half of the
// processors' time go to waking and yielding. What has come of the frame's items
// waits for the rest, but not for long: the link may be slower than it is near, or
// the peer have stopped. Over a far link takers would always wait for that long: there
// every byte wakes it.
func (p *peer) wakeAt() {
	enough := 1
	if p.near && p.left32 >= wakeBytes/8 {
		enough = min(int(p.left32), wakeBytes)
		p.patient = p.vm.now() + framePatience
		p.vm.due = min(p.vm.due, p.patient)
	}
	p.wakes(enough)
}

func (p *peer) wakes(at int) {
	if at != p.wakesAt && unix.SetsockoptInt(p.fd, unix.SOL_SOCKET, unix.SO_RCVLOWAT, at) == nil {
		p.wakesAt = at
	}
}

// hurry has every byte wake the loop once the rest of a frame is late.
func (p *peer) hurry(now time.Duration) {
	switch {
	case p.fd < 0 || p.wakesAt == 1:
	case p.patient <= now:
		p.wakes(1)
	default:
		p.vm.due = min(p.vm.due, p.patient)
	}
}

// lose gives a peer up: its channels end with "lost", and it is reported once.
func (vm *VM) lose(p *peer, err error) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if p.gone || vm.closed {
		return
	}
	p.gone = true
	p.disconnect()
	open := false
	for _, c := range p.channels {
		before := c.lost
		c.lose(vm)
		open = open || c.lost && !before
	}
	ring1(vm.bell)
	if p.left && !open {
		return // all was said
	}
	vm.report(PeerLost{p.ID, err})
}

// report delivers a loss, whenever somebody looks.
func (vm *VM) report(lost PeerLost) {
	select {
	case vm.lostPeer <- lost:
	default:
		go func() {
			select {
			case vm.lostPeer <- lost:
			case <-vm.done:
			}
		}()
	}
}

// cut ends the connection; keep decides what follows. The caller holds VM.mu.
func (vm *VM) cut(p *peer, err error) {
	if p.fd < 0 {
		return
	}
	p.disconnect()
	p.failure = err
	select {
	case p.cut <- struct{}{}:
	default:
	}
}

func (p *peer) disconnect() {
	if p.fd >= 0 {
		p.vm.unwatch(p.fd)
		p.fd = -1
	}
	for _, c := range p.channels {
		c.starts() // nothing more on this connection
	}
}

// goodbye tells the peer that the link ends on purpose. The caller holds VM.mu.
func (p *peer) goodbye() {
	if p.fd >= 0 && len(p.batch) == 0 {
		_, _ = unix.Write(p.fd, frame{kind: frameBye}.append(nil))
	}
	p.disconnect()
}

// writable says that a frame queued now can go out with this round's batch.
func (p *peer) writable() bool {
	return p.fd >= 0 && !p.blocked && len(p.batch) < batchParts-1 && p.bytes < batchBytes
}

// queue adds a frame and its payload to the batch; the payload is sent straight
// from ring memory, which nobody gives back before the peer acknowledged it.
func (p *peer) queue(f frame, payload []byte) {
	at := len(p.arena)
	p.arena = f.append(p.arena)
	p.batch = append(p.batch, p.arena[at:])
	p.bytes += frameSize
	if len(payload) > 0 {
		p.batch = append(p.batch, payload)
		p.bytes += len(payload)
	}
}

// repeat tells the peer once more of channels that are gone: what it was told went
// down with a connection.
func (p *peer) repeat() {
	for len(p.again) > 0 && p.writable() {
		p.queue(frame{kind: frameGone, channel: p.again[0]}, nil)
		p.again = p.again[1:]
	}
}

// flush writes the batch with one writev, or as much of it as the socket takes.
func (p *peer) flush() bool {
	if len(p.batch) == 0 || p.blocked || p.fd < 0 {
		return false
	}
	for len(p.batch) > 0 {
		var parts [batchParts]unix.Iovec
		for k, b := range p.batch {
			parts[k].Base = unsafe.SliceData(b)
			parts[k].SetLen(len(b))
		}
		n, _, errno := syscall.RawSyscall(unix.SYS_WRITEV, uintptr(p.fd), uintptr(unsafe.Pointer(&parts)), uintptr(len(p.batch)))
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			p.blocked = true
			_ = unix.EpollCtl(p.vm.epoll, unix.EPOLL_CTL_MOD, p.fd, &unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT, Fd: int32(p.fd)})
			return true
		default:
			p.vm.cut(p, errno)
			return true
		}
		p.wrote(int(n))
	}
	p.batch, p.bytes, p.arena = p.batch[:0], 0, p.arena[:0]
	return true
}

func (p *peer) wrote(n int) {
	k := 0
	for ; k < len(p.batch) && n >= len(p.batch[k]); k++ {
		n -= len(p.batch[k])
	}
	if k == len(p.batch) {
		p.batch = p.batch[:0]
		return
	}
	p.batch = append(p.batch[:0], p.batch[k:]...)
	p.batch[0] = p.batch[0][n:]
}

// event serves the socket: more room to write, or something to read.
func (p *peer) event(events uint32) {
	if events&unix.EPOLLOUT != 0 && p.blocked {
		p.blocked = false
		_ = unix.EpollCtl(p.vm.epoll, unix.EPOLL_CTL_MOD, p.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(p.fd)})
		p.flush()
		for _, c := range p.channels {
			p.vm.heat(c)
		}
	}
	if events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR) != 0 && p.fd >= 0 {
		if err := p.receive(); err != nil {
			p.vm.cut(p, err)
		}
	}
}

// receive reads once: the rest of a data frame straight into its ring, what
// follows into the buffer; then it parses the buffer and wakes the takers.
func (p *peer) receive() error {
	var parts [2]unix.Iovec
	used := 0
	var direct []byte
	if p.left32 > 0 {
		i := p.target.in
		direct = i.at(i.received, uint64(p.left32))
		parts[0].Base = unsafe.SliceData(direct)
		parts[0].SetLen(len(direct))
		used = 1
	}
	if p.start > 0 {
		copy(p.buffer, p.buffer[p.start:p.end])
		p.start, p.end = 0, p.end-p.start
	}
	parts[used].Base = &p.buffer[p.end]
	parts[used].SetLen(len(p.buffer) - p.end)
	r, _, errno := syscall.RawSyscall(unix.SYS_READV, uintptr(p.fd), uintptr(unsafe.Pointer(&parts)), uintptr(used+1))
	n := int(r)
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return nil
	case errno != 0:
		return errno
	case n == 0:
		return io.EOF
	}
	if direct != nil {
		k := min(n, len(direct))
		p.took(uint32(k))
		n -= k
	}
	p.end += n
	err := p.parse()
	p.wakeAt()
	for _, c := range p.touched {
		c.show(p.vm)
		p.vm.heat(c)
	}
	p.touched = p.touched[:0]
	return err
}

// took accounts for k bytes of the current data frame that are now in its ring.
func (p *peer) took(k uint32) {
	i := p.target.in
	i.received += uint64(k)
	p.target.carried += uint64(k)
	p.left32 -= k
	if p.left32 == 0 {
		i.items = uint64(p.items)
	}
	if n := len(p.touched); n == 0 || p.touched[n-1] != p.target {
		p.touched = append(p.touched, p.target)
	}
}

func (p *peer) parse() error {
	for {
		if p.left32 > 0 {
			k := min(uint32(p.end-p.start), p.left32)
			if k == 0 {
				return nil
			}
			i := p.target.in
			copy(i.at(i.received, uint64(k)), p.buffer[p.start:])
			p.start += int(k)
			p.took(k)
			continue
		}
		if p.end-p.start < frameSize {
			return nil
		}
		f, err := parseFrame(p.buffer[p.start:p.end])
		if err == nil {
			p.start += frameSize
			err = p.handle(f)
		}
		if err != nil {
			return fmt.Errorf("%w: %w", errProtocol, err)
		}
		if p.left {
			return io.EOF
		}
	}
}

// handle takes one frame's header.
func (p *peer) handle(f frame) error {
	if f.kind == frameBye {
		p.left = true
		return nil
	}
	c := p.vm.channels[f.channel]
	if f.kind == frameAck {
		switch {
		case c == nil && p.vm.removed[f.channel], c != nil && c.out != nil && c.out.over && c.To.Peer == p.ID:
			if !slices.Contains(p.again, f.channel) {
				p.dispel(f.channel)
			}
			return nil
		case c != nil && c.void && c.out != nil && c.To.Peer == p.ID: // it made what came to nothing
			c.dispel()
			p.vm.review(c)
			return nil
		case c == nil && len(p.early) < earlyFrames:
			p.early[f.channel] = f
			return nil
		case c == nil || c.out == nil || c.To.Peer != p.ID:
			return fmt.Errorf("it acknowledges channel %d, which does not lead to it", f.channel)
		}
		return c.acknowledge(p.vm, f)
	}
	if f.kind == frameGone && c == nil && p.vm.removed[f.channel] {
		return nil
	}
	if c == nil || c.in == nil || c.From.Peer != p.ID || c.in.ended && f.kind == frameData {
		return fmt.Errorf("it sends on channel %d, which does not come from it", f.channel)
	}
	for _, t := range p.touched { // END after data of the same read
		t.show(p.vm)
	}
	switch f.kind {
	case frameEnd:
		return c.finish(p.vm, f)
	case frameGone:
		c.forget(p.vm)
		return nil
	}
	i := c.in
	if f.offset != i.received || f.offset+uint64(f.length) > i.limit {
		return fmt.Errorf("channel %d: %d bytes from %d, but %d were received and there is room up to %d", c.ID, f.length, f.offset, i.received, i.limit)
	}
	p.target, p.left32, p.items = c, f.length, f.items
	return nil
}
