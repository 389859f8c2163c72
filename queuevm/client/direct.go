package client

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// direct is an end of a direct channel: a socket, and bytes between it and the
// program (LAYOUT.md, section 7). The ring beside it tells of ends only.
type direct struct {
	fd     int
	out    bool
	both   bool   // the other way leads over it too
	ended  bool   // consumer: the socket has no more
	torn   bool   // and not because it was closed
	buffer []byte // consumer: start to end was read and not taken; producer: what reserve gave
	start  int
	end    int
	rest   []byte    // consumer: where the rest of an item goes, past the buffer
	parts  [2][]byte // producer: what is still to be sent
}

const (
	directHeader = 8
	ahead        = 16 << 10 // read at once of what comes after an item: what is more is copied once, not twice
	lengthBits   = 48
	sioOutq      = 0x5411 // SIOCOUTQ: bytes that are not acknowledged
	pollIn       = 1
	pollOut      = 4
)

// connectSockets asks for the sockets of a port's direct channels. The caller
// holds mu.
func (s *session) connectSockets(p *Port) error {
	if (p.out.served|p.in.served)&servedDirect == 0 {
		return nil
	}
	answer, fds, err := s.ask("direct " + p.name)
	if err != nil {
		return err
	}
	var there [2]int
	var both int
	if n, err := fmt.Sscanf(answer, "ok %d %d %d", &there[0], &there[1], &both); n < 2 || there[0]+there[1] != len(fds) {
		closeAll(fds)
		return fmt.Errorf("the answer %q is not understood: %w", answer, err)
	}
	for k, e := range []*end{&p.out, &p.in} {
		if there[k] == 0 {
			continue
		}
		e.direct = &direct{fd: fds[0], out: k == 0, both: both == 1}
		fds = fds[1:]
		if k == 1 {
			e.direct.buffer = make([]byte, max(chunk, int(e.capacity/2))+chunk)
		}
	}
	return nil
}

// counted tells of an item that went through.
func (e *end) counted(word *uint64) {
	e.items++
	atomic.StoreUint64(word, e.items)
}

// awaitSocket waits until enough says so, as await does, but for a socket.
func (e *end) awaitSocket(until deadline, enough func() (bool, error)) error {
	if ok, err := enough(); ok || err != nil {
		return err
	}
	if until == atOnce {
		return ErrAgain
	}
	settle()
	if ok, err := lingerFor(current.spin/10, enough); ok || err != nil { // a look is a system call
		return err
	}
	d := e.direct
	for {
		if d.ended { // why it ended is told through the ring
			return await(&e.header.consumerWaits, until, func() (bool, error) { return false, e.endOfSocket() })
		}
		limit, over := until.left()
		if over {
			return ErrTimeout
		}
		events := int16(pollIn)
		if d.out {
			events = pollOut
		}
		poll([]pollfd{{fd: int32(d.fd), events: events}}, limit)
		if ok, err := enough(); ok || err != nil {
			return err
		}
	}
}

type pollfd struct {
	fd      int32
	events  int16
	revents int16
}

// poll sleeps until a socket has something, or limit is over.
func poll(fds []pollfd, limit *syscall.Timespec) {
	_, _, _ = syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(limit)), 0, 0, 0)
}

func vector(parts ...[]byte) (v [2]syscall.Iovec, n uintptr) {
	for _, part := range parts {
		if len(part) > 0 {
			v[n].Base = &part[0]
			v[n].SetLen(len(part))
			n++
		}
	}
	return v, n
}

// read reads once, what is there: to where the rest of an item goes, and past it,
// up to want bytes or a little more, into the buffer, which is empty then. It is
// true when something came.
func (d *direct) read(want int) bool {
	if d.ended {
		return false
	}
	if d.start == d.end {
		d.start, d.end = 0, 0
	}
	v, parts := vector(d.rest, d.buffer[d.end:min(len(d.buffer), d.end+max(want, ahead))])
	for {
		r, _, errno := syscall.RawSyscall(syscall.SYS_READV, uintptr(d.fd), uintptr(unsafe.Pointer(&v)), parts)
		switch n := int(r); {
		case errno == syscall.EINTR:
			continue
		case errno == syscall.EAGAIN:
			return false
		case errno != 0 || n == 0:
			d.ended, d.torn = true, errno != 0
			return false
		default:
			part := min(n, len(d.rest))
			d.rest = d.rest[part:]
			d.end += n - part
			return true
		}
	}
}

// endOfSocket is why a socket that has ended did; nil while that is not known.
func (e *end) endOfSocket() error {
	switch state := atomic.LoadUint32(&e.header.producerState); {
	case state == 0:
		return nil
	case e.direct.torn:
		return ErrLost
	default:
		return e.ended(state)
	}
}

// gather has n bytes in the buffer.
func (e *end) gather(n int, until deadline) error {
	d := e.direct
	return e.awaitSocket(until, func() (bool, error) {
		if n > len(d.buffer)-d.start {
			d.end = copy(d.buffer, d.buffer[d.start:d.end])
			d.start = 0
		}
		for d.end-d.start < n {
			if !d.read(n - (d.end - d.start)) {
				if d.ended {
					return false, e.endOfSocket()
				}
				return false, nil
			}
		}
		return true, nil
	})
}

// send sends what parts hold, and begins nothing when the taker is gone.
func (e *end) send(parts ...[]byte) error {
	if err := e.gone(); err != nil {
		return err
	}
	d := e.direct
	d.parts = [2][]byte{}
	copy(d.parts[:], parts)
	err := e.awaitSocket(never, func() (bool, error) {
		for len(d.parts[0])+len(d.parts[1]) > 0 {
			v, n := vector(d.parts[:]...)
			message := syscall.Msghdr{Iov: &v[0]}
			message.Iovlen = uint64(n)
			r, _, errno := syscall.RawSyscall(syscall.SYS_SENDMSG, uintptr(d.fd), uintptr(unsafe.Pointer(&message)), syscall.MSG_NOSIGNAL|syscall.MSG_DONTWAIT)
			switch errno {
			case 0:
			case syscall.EINTR:
				continue
			case syscall.EAGAIN:
				return false, nil
			default: // why is told through the ring
				e.deaf = true
				return false, await(&e.header.producerWaits, never, func() (bool, error) { return false, e.gone() })
			}
			for k := range d.parts {
				part := min(int(r), len(d.parts[k]))
				d.parts[k] = d.parts[k][part:]
				r -= uintptr(part)
			}
		}
		return true, nil
	})
	d.parts = [2][]byte{}
	if err == nil {
		e.counted(&e.header.itemsIn)
	}
	return err
}

// awaitVacancy waits until an item would leave at once: a form with a limit
// begins nothing that it might have to finish after it.
func (e *end) awaitVacancy(n int, until deadline) error {
	for turn, nap := 0, 20*time.Microsecond; ; turn++ {
		if err := e.gone(); err != nil {
			return err
		}
		size, err := syscall.GetsockoptInt(e.direct.fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF)
		var used int32
		_, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(e.direct.fd), sioOutq, uintptr(unsafe.Pointer(&used)))
		if err != nil || errno != 0 || used == 0 || int(used)+n <= size/2 {
			return nil
		}
		if until == atOnce {
			return ErrAgain
		}
		if _, over := until.left(); over {
			return ErrTimeout
		}
		if turn == 0 {
			settle()
		}
		if turn < yields {
			_, _, _ = syscall.RawSyscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
			continue
		}
		time.Sleep(nap)
		nap = min(2*nap, time.Millisecond)
	}
}

func (e *end) directHeader(length int) []byte {
	return binary.LittleEndian.AppendUint64(nil, uint64(length)|uint64(e.meta)<<lengthBits)
}

func (e *end) directEnqueue(item []byte, until deadline) error {
	if e.finished {
		return ErrClosed
	}
	if e.holding {
		return ErrMisuse
	}
	if until != never {
		if len(item) > e.largest() {
			return ErrTooBig
		}
		if err := e.awaitVacancy(len(item)+directHeader, until); err != nil {
			return err
		}
	}
	return e.send(e.directHeader(len(item)), item)
}

func (e *end) directReserve(length int) ([]byte, error) {
	if err := e.gone(); err != nil {
		return nil, err
	}
	d := e.direct
	if len(d.buffer) < length+directHeader {
		d.buffer = make([]byte, length+directHeader)
	}
	e.holding, e.held = true, uint64(length)
	return d.buffer[directHeader : directHeader+length : directHeader+length], nil
}

func (e *end) directCommit(length int) error {
	e.holding = false
	copy(e.direct.buffer, e.directHeader(length))
	e.deaf = true // the item is this channel's
	defer func() { e.deaf = false }()
	return e.send(e.direct.buffer[:directHeader+length])
}

// directFirst reads the header of the next item, waiting for it.
func (e *end) directFirst(until deadline) (int, error) {
	if e.broken {
		return 0, ErrBroken
	}
	if err := e.gather(directHeader, until); err != nil {
		return 0, err
	}
	header := binary.LittleEndian.Uint64(e.direct.buffer[e.direct.start:])
	if header>>60 != 0 {
		return 0, e.breaks()
	}
	e.meta = uint32(header >> lengthBits)
	return int(header & (1<<lengthBits - 1)), nil
}

// directWhole has the whole of a next item of at most LargestIn in the buffer.
func (e *end) directWhole(until deadline) (int, error) {
	length, err := e.directFirst(until)
	if err != nil {
		return 0, err
	}
	if length > e.largest() {
		return 0, ErrTooBig
	}
	return length, e.gather(directHeader+length, until)
}

func (e *end) directDequeue(buffer []byte, fixed bool, until deadline) ([]byte, error) {
	whole := e.directWhole
	if until == never {
		whole = e.directFirst
	}
	length, err := whole(until)
	if err != nil {
		return nil, err
	}
	if fixed && length > len(buffer) {
		return nil, ErrTooBig
	}
	item := buffer[:0]
	if !fixed { // not more at once than was proven to come
		item = make([]byte, 0, min(length, 64<<20))
	}
	d := e.direct
	have := min(d.end-d.start-directHeader, length)
	from := d.start + directHeader
	item = append(item, d.buffer[from:from+have]...)
	d.start = from + have
	for len(item) < length {
		if len(item) == cap(item) {
			item = append(item, 0)[:len(item)]
		}
		room := item[len(item):min(cap(item), length)]
		d.rest = room
		err := e.awaitSocket(never, func() (bool, error) {
			for len(d.rest) > 0 {
				if !d.read(0) {
					if d.ended {
						return false, e.endOfSocket()
					}
					return false, nil
				}
			}
			return true, nil
		})
		d.rest = nil
		if err != nil {
			return nil, err
		}
		item = item[:len(item)+len(room)]
	}
	e.counted(&e.header.itemsOut)
	return item, nil
}

func (e *end) directPeek() ([]byte, error) {
	length, err := e.directWhole(never)
	if err != nil {
		return nil, err
	}
	e.holding, e.held = true, uint64(length)
	from := e.direct.start + directHeader
	return e.direct.buffer[from : from+length : from+length], nil
}

func (e *end) directRelease() {
	e.direct.start += directHeader + int(e.held)
	e.counted(&e.header.itemsOut)
}

// sleepOnSockets sleeps until a direct port among the ports may have something.
// Among rings too there is nothing to sleep on for both: then it only naps.
func sleepOnSockets(ports []*Port, until deadline, nap time.Duration) {
	var fds []pollfd
	for _, p := range ports {
		if d := p.in.direct; d != nil && !d.ended {
			fds = append(fds, pollfd{fd: int32(d.fd), events: pollIn})
		}
	}
	limit, _ := until.left()
	if len(fds) < len(ports) && (limit == nil || limit.Nano() > int64(nap)) {
		short := syscall.NsecToTimespec(int64(nap))
		limit = &short
	}
	poll(fds, limit)
}

// shut ends the socket's way, if there is one, for the other end and for whoever
// else has it. The giver hears of a taker that reads no more of two ways from the
// proxies alone: a shut one would answer with a reset, which ends the other way too.
func (d *direct) shut() {
	if d == nil || d.both && !d.out {
		return
	}
	how := syscall.SHUT_RDWR
	if d.out {
		how = syscall.SHUT_WR
	}
	_ = syscall.Shutdown(d.fd, how)
}
