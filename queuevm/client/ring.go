package client

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// The bytes of a ring: LAYOUT.md, beside the daemon's package, specifies them.
const (
	headerSize   = 4096
	magic        = 0x524D564D
	version      = 3
	awake        = 0
	waitsFutex   = 1
	waitsDaemon  = 2
	waitsOnly    = 4 // as waitsFutex, and nothing but the other end ends the wait, in a program with Go's runtime
	stateClosed  = 1
	stateLost    = 2
	stateBroken  = 4
	switched     = 8 // ended by SWITCH: the port goes on with another ring
	recordHeader = 8
	totalHeader  = 8
	flagMore     = 1 << 31
	flagCont     = 1 << 30
	flagControl  = 1 << 29

	controlNothing = 1 // the answer of a served queue that has no item
	servedDemand   = 1 // the consumer asks for each item
	servedVerdict  = 2 // the producer awaits what became of each item
	servedDirect   = 4 // items go over a socket, and the ring tells of ends only
	impatient      = 1

	// In consumerState, from the daemon to the producer.
	controlSwitch  = 1 << 8 // end this ring before the next item, and go on with the next
	controlChanged = 1 << 9 // the queue behind it has changed: read served and most again
	controls       = controlSwitch | controlChanged

	nextIn  = 1 // the port goes on with another ring after this one
	nextOut = 2

	metaAwaits      = 1 << 12 // of a record's meta: the producer awaits what becomes of the item
	kindMask        = 0xf
	kindInstruction = 1
	countMask       = 1<<31 - 1 // demands and verdicts are counted so far
	lengthMask      = flagControl - 1
	chunk           = 64 << 10 // published at once within a record, so that both ends copy at the same time
)

type header struct {
	magic, version               uint32
	capacity                     uint64
	channel, epoch               uint32
	served                       uint32
	_                            [4]byte
	most                         uint64
	next                         uint32
	_                            [84]byte
	tail, itemsIn                uint64
	_                            [112]byte
	head, itemsOut               uint64
	demand, verdict              uint32
	begun                        uint64 // how far the record reaches that is being copied out in pieces
	_                            [96]byte
	producerWaits, producerState uint32
	_                            [120]byte
	consumerWaits, consumerState uint32
	_                            [120]byte
}

// end is one end of a ring. mine is private and true, the shared word only its
// publication; theirs is the other end's word as last read and believed.
type end struct {
	header   *header // nil when the port does not lead this way
	data     []byte  // the data area, mapped twice back to back
	capacity uint64
	bell     int
	mine     uint64
	theirs   uint64
	items    uint64
	quiet    uint64      // consumer: bytes released since the producer was last looked after
	owes     atomic.Bool // consumer: a sleeping producer may not have been woken yet
	held     uint64
	holding  bool
	broken   bool
	finished bool
	served   uint32 // bits; 0 on a plain channel
	meta     uint32 // producer: of the items to come; consumer: of the last one
	most     uint64 // producer: the largest item that the queue can hold, 0 for any
	asked    bool   // consumer: the queue owes an answer, or it lies unread
	deaf     bool   // producer: an item is begun, so the daemon's words must wait
	switched bool   // producer: this ring is ended by SWITCH
	channel  uint32
	direct   *direct // the socket of a direct channel, else nil
}

// errHeed never leaves this package: the port must heed a word of the daemon, or
// go on with another ring, and try again.
var errHeed = errors.New("heed")

// open maps a ring: header and data, and the data once more behind it.
func (e *end) open(fd int, capacity uint64) error {
	first := uintptr(headerSize) + uintptr(capacity)
	size := first + uintptr(capacity)
	if capacity == 0 || capacity&(capacity-1) != 0 || capacity > 1<<30 {
		return fmt.Errorf("a capacity of %d bytes makes no sense", capacity)
	}
	base, err := mmap(0, size, syscall.PROT_NONE, syscall.MAP_PRIVATE|syscall.MAP_ANONYMOUS|syscall.MAP_NORESERVE, -1, 0)
	if err != nil {
		return err
	}
	const rw, shared = syscall.PROT_READ | syscall.PROT_WRITE, syscall.MAP_SHARED | syscall.MAP_FIXED
	if _, err = mmap(base, first, rw, shared, fd, 0); err == nil {
		_, err = mmap(base+first, uintptr(capacity), rw, shared, fd, headerSize)
	}
	h := *(**header)(unsafe.Pointer(&base)) // the kernel's memory: the collector does not know or move it
	if err == nil && (h.magic != magic || h.version != version || h.capacity != capacity) {
		err = fmt.Errorf("it is no ring of this version")
	}
	if err != nil {
		_, _, _ = syscall.Syscall(syscall.SYS_MUNMAP, base, size, 0)
		return err
	}
	e.header, e.capacity, e.channel = h, capacity, h.channel
	e.reread()
	e.data = unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), headerSize)), 2*capacity)
	return nil
}

// reread takes what the daemon says about the queue behind a producer's ring.
func (e *end) reread() {
	e.most, e.served = atomic.LoadUint64(&e.header.most), atomic.LoadUint32(&e.header.served)
	e.meta &^= metaAwaits
	if e.served&servedVerdict != 0 {
		e.meta |= metaAwaits
	}
}

// unmap gives the ring's memory back.
func (h *header) unmap(capacity uint64) {
	_, _, _ = syscall.Syscall(syscall.SYS_MUNMAP, uintptr(unsafe.Pointer(h)), uintptr(headerSize+2*capacity), 0)
}

func mmap(at, size uintptr, protection, flags, fd int, offset uintptr) (uintptr, error) {
	got, _, errno := syscall.Syscall6(syscall.SYS_MMAP, at, size, uintptr(protection), uintptr(flags), uintptr(fd), offset)
	if errno != 0 {
		return 0, errno
	}
	return got, nil
}

func (e *end) resume(out bool, bell int) {
	e.bell = bell
	if e.header == nil {
		return
	}
	tail, head := atomic.LoadUint64(&e.header.tail), atomic.LoadUint64(&e.header.head)
	if out {
		e.mine, e.theirs, e.items = tail, head, atomic.LoadUint64(&e.header.itemsIn)
		e.switched = atomic.LoadUint32(&e.header.producerState)&switched != 0
	} else {
		e.mine, e.theirs, e.items = head, head, atomic.LoadUint64(&e.header.itemsOut)
		e.asked = e.served&servedDemand != 0 && tail != head
	}
}

func recordSize(n int) uint64 { return uint64(n+recordHeader+7) &^ 7 }

func (e *end) largest() int {
	if e.header == nil {
		return 0
	}
	return int(e.capacity/2) - recordHeader
}

// at is n bytes of the data area from a stream offset on.
func (e *end) at(offset uint64, n int) []byte {
	from := offset & (e.capacity - 1)
	return e.data[from : from+uint64(n) : from+uint64(n)]
}

func stateError(state uint32, plain error) error {
	switch {
	case state&stateBroken != 0:
		return ErrBroken
	case state&stateLost != 0:
		return ErrLost
	}
	return plain
}

// ---- the way out ----

// gone says whether the consumer is. It is asked before tail moves, and only
// then: a consumer that takes the last item and ends has taken it, and whoever
// enqueued it must not hear of an error.
func (e *end) gone() error {
	if state := atomic.LoadUint32(&e.header.consumerState); state != 0 {
		return e.says(state)
	}
	return nil
}

// says is what a consumerState that is not 0 means for the producer.
func (e *end) says(state uint32) error {
	if state&controls != 0 && !e.deaf {
		return errHeed
	}
	if state &^= controls; state != 0 {
		return stateError(state, ErrClosed)
	}
	return nil
}

// publish moves tail and wakes a sleeping consumer. Go's atomic store is a
// full fence, so that either the consumer sees the new tail or this sees that
// it sleeps.
func (e *end) publish() {
	atomic.StoreUint64(&e.header.itemsIn, e.items)
	atomic.StoreUint64(&e.header.tail, e.mine)
	if atomic.LoadUint32(&e.header.consumerWaits) != awake {
		e.wake(&e.header.consumerWaits)
	}
}

// putHeader writes a record's header at tail.
func (e *end) putHeader(length int, flags uint32) {
	binary.LittleEndian.PutUint64(e.at(e.mine, recordHeader), uint64(uint32(length)|flags)|uint64(e.meta)<<32)
}

// verdict is what became of the item just published, where the queue may
// refuse it.
func (e *end) verdict() error {
	if e.meta&metaAwaits == 0 {
		return nil
	}
	e.deaf = true
	defer func() { e.deaf = false }()
	var word uint32
	err := await(&e.header.producerWaits, never, func() (bool, error) {
		if word = atomic.LoadUint32(&e.header.verdict); word>>1 == uint32(e.items)&countMask {
			return true, nil
		}
		return false, e.gone()
	})
	if err == nil && word&1 != 0 {
		err = ErrFull
	}
	return err
}

// put publishes one item.
func (e *end) put(item []byte, until deadline) error {
	switch {
	case e.finished:
		return ErrClosed
	case e.holding:
		return ErrMisuse
	case atomic.LoadUint32(&e.header.consumerState)&controls != 0:
		return errHeed // first of all: it may change what fits
	case e.direct != nil:
		return e.directEnqueue(item, until)
	case e.most > 0 && uint64(len(item)) > e.most:
		return ErrTooBig
	case len(item) > e.largest() && until != never:
		return ErrTooBig
	case len(item) <= e.largest() && (until != never || len(item) <= chunk):
		if err := e.awaitRoom(recordSize(len(item)), until); err != nil {
			return err
		}
		if err := e.gone(); err != nil {
			return err
		}
		e.putHeader(len(item), 0)
		copy(e.at(e.mine+recordHeader, len(item)), item)
		e.mine += recordSize(len(item))
		e.items++
		e.publish()
		return nil
	case len(item) <= e.largest():
		return e.putStream(0, nil, item)
	}
	total := binary.LittleEndian.AppendUint64(nil, uint64(len(item)))
	step := int(e.capacity/8) - recordHeader - totalHeader
	for flags := uint32(flagMore); len(item) > 0; flags = flagCont | flagMore {
		part := item[:min(step, len(item))]
		item = item[len(part):]
		if len(item) == 0 {
			flags &^= flagMore
		}
		if err := e.putStream(flags, total, part); err != nil {
			return err
		}
		total = nil
	}
	return nil
}

// putStream writes a record piece by piece, publishing each, as room comes
// free. total precedes the payload.
func (e *end) putStream(flags uint32, total, item []byte) error {
	before := recordHeader + len(total)
	if err := e.awaitRoom(uint64(before), never); err != nil {
		return err
	}
	e.deaf = true
	e.putHeader(len(total)+len(item), flags)
	copy(e.at(e.mine+recordHeader, len(total)), total)
	e.mine += uint64(before)
	for len(item) > 0 {
		part := item[:min(len(item), chunk, int(e.capacity/4))]
		item = item[len(part):]
		size := uint64(len(part)+7) &^ 7
		if err := e.awaitRoom(size, never); err != nil {
			return err
		}
		if err := e.gone(); err != nil {
			return err
		}
		copy(e.at(e.mine, len(part)), part)
		e.mine += size
		if len(item) == 0 && flags&flagMore == 0 {
			e.items++
		}
		e.publish()
	}
	return nil
}

func (e *end) reserve(length int) ([]byte, error) {
	if e.finished {
		return nil, ErrClosed
	}
	e.holding = false
	switch {
	case length < 0:
		return nil, ErrMisuse
	case atomic.LoadUint32(&e.header.consumerState)&controls != 0:
		return nil, errHeed
	case length > e.largest() || e.most > 0 && uint64(length) > e.most:
		return nil, ErrTooBig
	case e.direct != nil:
		return e.directReserve(length)
	}
	if err := e.awaitRoom(recordSize(length), never); err != nil {
		return nil, err
	}
	e.holding, e.held = true, uint64(length)
	return e.at(e.mine+recordHeader, length), nil
}

func (e *end) commit(length int) error {
	if e.header == nil {
		return ErrDirection
	}
	if !e.holding || length < 0 || uint64(length) > e.held {
		return ErrMisuse
	}
	e.holding = false
	if e.direct != nil {
		return e.directCommit(length)
	}
	e.deaf = true // the room is in this ring
	err := e.gone()
	e.deaf = false
	if err != nil {
		return err
	}
	e.putHeader(length, 0)
	e.mine += recordSize(length)
	e.items++
	e.publish()
	return e.verdict()
}

// ---- the way in ----

// first is the header of the record at head.
type first struct {
	length int    // payload of this record
	total  uint64 // of the whole item
	flags  uint32
}

// first reads the header of the record at head, waiting for it. Forms with a
// deadline take no fragments, so they must not wait for the second word either.
func (e *end) first(until deadline) (first, error) {
	if e.broken {
		return first{}, ErrBroken
	}
	var err error
	if e.served&servedDemand != 0 {
		err = e.awaitAnswer(until)
	} else {
		err = e.awaitBytes(recordHeader, until)
	}
	if err != nil {
		return first{}, err
	}
	head := binary.LittleEndian.Uint64(e.at(e.mine, recordHeader))
	word := uint32(head)
	f := first{length: int(word & lengthMask), total: uint64(word & lengthMask), flags: word &^ lengthMask}
	e.meta = uint32(head >> 32)
	if f.length > e.largest() || f.flags&flagControl != 0 || f.flags == flagMore && f.length < totalHeader {
		return first{}, e.breaks()
	}
	if f.flags == flagMore {
		if until != never {
			return first{}, ErrTooBig
		}
		if err := e.awaitBytes(recordHeader+totalHeader, until); err != nil {
			return first{}, err
		}
		f.total = binary.LittleEndian.Uint64(e.at(e.mine+recordHeader, totalHeader))
		if f.total > 1<<62 || f.total <= uint64(f.length-totalHeader) {
			return first{}, e.breaks()
		}
	}
	return f, nil
}

func (e *end) breaks() error {
	e.broken = true
	return ErrBroken
}

// demand has a served queue owe an answer: an item when there is one, or, now,
// at once whether there is.
func (e *end) demand(now bool) {
	old := e.header.demand // nobody else writes it
	word := old
	if !e.asked {
		word = (word>>1 + 1) << 1
	}
	if now {
		word |= impatient
	}
	e.asked = true
	if word != old {
		atomic.StoreUint32(&e.header.demand, word)
		e.tellProducer()
	}
}

// nothing says whether the bytes at mine are the answer that there is nothing,
// and takes it off.
func (e *end) nothing() bool {
	if binary.LittleEndian.Uint64(e.at(e.mine, recordHeader)) != controlNothing<<32|flagControl {
		return false
	}
	e.asked = false
	e.giveBack(recordHeader)
	return true
}

// awaitAnswer asks a served queue, if that was not done, and waits for the
// beginning of an item. When the time is over the queue is told so, and answers:
// with the item after all, if that had left it.
func (e *end) awaitAnswer(until deadline) error {
	late := until == atOnce
	for {
		here, _ := e.hasBytes(recordHeader)
		if !e.asked || late && !here {
			e.demand(late)
		}
		limit := until
		if late {
			limit = never
		}
		err := e.awaitBytes(recordHeader, limit)
		switch {
		case err == ErrTimeout:
			late = true
		case err != nil:
			return err
		case !e.nothing():
			return nil
		case until == atOnce:
			return ErrAgain
		case late:
			return ErrTimeout
		}
	}
}

// giveBack releases n ring bytes.
func (e *end) giveBack(n uint64) {
	e.mine += n
	atomic.StoreUint64(&e.header.itemsOut, e.items)
	atomic.StoreUint64(&e.header.head, e.mine)
	e.quiet += n
	if e.quiet >= e.capacity/8 {
		e.tellProducer()
	} else if !e.owes.Load() {
		e.owes.Store(true)
		current.owing.Store(true)
	}
}

func (e *end) tellProducer() {
	e.quiet = 0
	e.owes.Store(false) // a full fence in Go
	if atomic.LoadUint32(&e.header.producerWaits) != awake {
		e.wake(&e.header.producerWaits)
	}
}

// takeStream appends one record's payload to item as it arrives; skip is what
// precedes it in the ring.
func (e *end) takeStream(item []byte, skip uint64, length int, last bool) ([]byte, error) {
	if err := e.awaitBytes(skip, never); err != nil {
		return nil, err
	}
	atomic.StoreUint64(&e.header.begun, e.mine+skip+uint64(length+7)&^7)
	e.giveBack(skip)
	for length > 0 {
		have := e.theirs - e.mine
		part := length
		if have < uint64(length+7)&^7 {
			if have == 0 {
				if err := e.awaitBytes(8, never); err != nil {
					return nil, err
				}
				continue
			}
			part = int(have)
		}
		part = min(part, chunk)
		item = append(item, e.at(e.mine, part)...)
		length -= part
		if length == 0 && last {
			e.items++
			e.asked = false
		}
		e.giveBack(uint64(part+7) &^ 7)
	}
	return item, nil
}

// dequeue takes one item, into buffer when fixed, else into fresh memory.
func (e *end) dequeue(buffer []byte, fixed bool, until deadline) ([]byte, error) {
	switch {
	case e.finished:
		return nil, ErrEnd
	case e.holding:
		return nil, ErrMisuse
	case e.direct != nil:
		return e.directDequeue(buffer, fixed, until)
	}
	f, err := e.first(until)
	if err != nil {
		return nil, err
	}
	if until != never {
		if e.served&servedDemand != 0 {
			until = never // an answer is on its way whole: it is not left behind for being late
		}
		if err := e.awaitBytes(recordSize(f.length), until); err != nil {
			return nil, err
		}
	}
	item := buffer[:0]
	if fixed && f.total > uint64(len(buffer)) {
		return nil, ErrTooBig
	}
	if !fixed { // not more at once than the ring could prove
		item = make([]byte, 0, min(f.total, max(e.capacity, 64<<20)))
	}
	if size := recordSize(f.length); f.flags == 0 && f.length <= chunk && e.theirs-e.mine >= size {
		item = append(item, e.at(e.mine+recordHeader, f.length)...)
		e.items++
		e.asked = false
		e.giveBack(size)
		return item, nil
	}
	if f.flags == 0 {
		return e.takeStream(item, recordHeader, f.length, true)
	}
	if f.flags != flagMore {
		return nil, e.breaks()
	}
	part := f.length - totalHeader
	item, err = e.takeStream(item, recordHeader+totalHeader, part, false)
	for left := f.total - uint64(part); err == nil; left -= uint64(part) {
		var next first
		if next, err = e.first(never); err != nil {
			break
		}
		part = next.length
		last := next.flags&flagMore == 0
		if next.flags&flagCont == 0 || uint64(part) > left || last && uint64(part) != left {
			return nil, e.breaks()
		}
		item, err = e.takeStream(item, recordHeader, part, last)
		if last {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return item, nil
}

func (e *end) peek() ([]byte, error) {
	if e.finished {
		return nil, ErrEnd
	}
	if e.direct != nil {
		return e.directPeek()
	}
	f, err := e.first(never)
	if err != nil {
		return nil, err
	}
	if f.flags != 0 {
		return nil, ErrTooBig
	}
	if err := e.awaitBytes(recordSize(f.length), never); err != nil {
		return nil, err
	}
	e.holding, e.held = true, recordSize(f.length)
	return e.at(e.mine+recordHeader, f.length), nil
}

func (e *end) release() error {
	if e.header == nil {
		return ErrDirection
	}
	if !e.holding {
		return ErrMisuse
	}
	e.holding = false
	if e.direct != nil {
		e.directRelease()
		return nil
	}
	e.items++
	e.asked = false
	e.giveBack(e.held)
	return nil
}

// finish sets this end's state and rouses the other end, whoever it is.
func (e *end) finish(state, other *uint32) {
	if e.finished {
		return
	}
	e.finished = true
	atomic.OrUint32(state, stateClosed)
	e.wake(other)
	e.ring() // the daemon may hold the other end without sleeping on it
	e.direct.shut()
}
