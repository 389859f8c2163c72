package queuevm

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ring is one channel's shared memory on this node: a sealed memfd. The header
// is always mapped; the data area only when the daemon holds an end. Nothing in
// shared memory is believed: capacity is private, and the private indices of
// the daemon's ends live in giver and taker.
type ring struct {
	file     *os.File
	capacity uint64
	inode    uint64 // of the memfd: the ring's name in other processes' maps
	header   *ringHeader
	memory   []byte // the whole mapping: header page, data, data again
	data     []byte // 2*capacity bytes, nil unless the daemon holds an end
}

func newRing(channel uint32, capacity uint64, withData bool) (*ring, error) {
	fd, err := unix.MemfdCreate("mvm-ring", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make shared memory for channel %d: %w", channel, err)
	}
	r := &ring{file: os.NewFile(uintptr(fd), "mvm-ring"), capacity: capacity}
	if err := r.build(fd, channel, withData); err != nil {
		r.free()
		return nil, fmt.Errorf("make shared memory of %d bytes for channel %d: %w", capacity, channel, err)
	}
	return r, nil
}

func (r *ring) build(fd int, channel uint32, withData bool) error {
	if err := unix.Ftruncate(fd, int64(headerSize+r.capacity)); err != nil {
		return err
	}
	// Without the seals a child could shrink the file under the daemon's
	// mapping, and the daemon would die of SIGBUS.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return err
	}
	r.inode = stat.Ino
	if err := r.mapped(fd, withData); err != nil {
		return err
	}
	r.header.magic, r.header.version = ringMagic, ringVersion
	r.header.capacity, r.header.channel = r.capacity, channel
	return nil
}

// mapped maps the header and, if asked for, the data area.
func (r *ring) mapped(fd int, withData bool) error {
	size := uintptr(headerSize)
	if withData {
		size += 2 * uintptr(r.capacity)
	}
	// One reservation, so that the two views of the data area are neighbours
	// and nothing that is read or written ever wraps.
	base, err := unix.MmapPtr(-1, 0, nil, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	r.memory = unsafe.Slice((*byte)(base), size)
	const rw = unix.PROT_READ | unix.PROT_WRITE
	first := size
	if withData {
		first = headerSize + uintptr(r.capacity)
	}
	if _, err := unix.MmapPtr(fd, 0, base, first, rw, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
		return err
	}
	if withData {
		second := unsafe.Add(base, first)
		if _, err := unix.MmapPtr(fd, headerSize, second, uintptr(r.capacity), rw, unix.MAP_SHARED|unix.MAP_FIXED); err != nil {
			return err
		}
		r.data = r.memory[headerSize:size:size]
	}
	r.header = (*ringHeader)(base)
	return nil
}

func (r *ring) free() {
	r.unmap()
	_ = r.file.Close()
}

func (r *ring) unmap() {
	if r.memory != nil {
		_ = unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(r.memory)), uintptr(len(r.memory)))
		r.memory, r.data, r.header = nil, nil, nil
	}
}

// at is n bytes of the data area from the stream offset on, contiguous thanks
// to the double mapping. n is at most capacity.
func (r *ring) at(offset uint64, n uint64) []byte {
	from := offset & (r.capacity - 1)
	return r.data[from : from+n : from+n]
}

// wake ends the sleep that a waits word announces. The compare-and-swap makes
// one waker pay for one sleep; what a child put there can only waste its own.
func wake(word *uint32, bell int) {
	switch value := atomic.LoadUint32(word); value {
	case awake:
	case waitsDaemon:
		if atomic.CompareAndSwapUint32(word, value, awake) {
			ring1(bell)
		}
	default:
		if atomic.CompareAndSwapUint32(word, value, awake) {
			// Raw: it never blocks, and telling the scheduler costs more than the call.
			_, _, _ = syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 1 /* FUTEX_WAKE */, 1<<30, 0, 0, 0)
		}
	}
}

// ring1 rings a bell (an eventfd) once.
func ring1(bell int) {
	one := [8]byte{1}
	_, _, _ = syscall.RawSyscall(unix.SYS_WRITE, uintptr(bell), uintptr(unsafe.Pointer(&one)), 8)
}

// rouse wakes whoever sleeps on a waits word, also when the word says that nobody
// does: a program can be killed after it took the word back and before it called
// the kernel, and then nobody else would.
func rouse(word *uint32, bell int) {
	value := atomic.SwapUint32(word, awake)
	_, _, _ = syscall.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), 1 /* FUTEX_WAKE */, 1<<30, 0, 0, 0)
	if value == waitsDaemon {
		ring1(bell)
	}
}

// endProducer finishes the producing end: the consumer gets what is whole in
// the ring and then END, or the error that the state names.
func (r *ring) endProducer(state uint32, bell int) {
	atomic.OrUint32(&r.header.producerState, state)
	atomic.AddUint32(&r.header.epoch, 1)
	rouse(&r.header.consumerWaits, bell)
	rouse(&r.header.producerWaits, bell)
}

// endConsumer finishes the consuming end: producers get "closed", or the error
// that the state names.
func (r *ring) endConsumer(state uint32, bell int) {
	atomic.OrUint32(&r.header.consumerState, state)
	atomic.AddUint32(&r.header.epoch, 1)
	rouse(&r.header.producerWaits, bell)
	rouse(&r.header.consumerWaits, bell)
}

// giver is the daemon's producing end of a ring. Its user synchronises.
type giver struct {
	*ring
	tail  uint64 // ours; the shared word is only its publication
	head  uint64 // the consumer's, as last believed
	items uint64
}

// free is the bytes that may be written, or an error when the consumer's word
// is impossible.
func (g *giver) free() (uint64, error) {
	head := atomic.LoadUint64(&g.header.head)
	if head-g.head > g.tail-g.head || head&7 != 0 {
		return 0, fmt.Errorf("%w: head %d is not between %d and %d", ErrBroken, head, g.head, g.tail)
	}
	g.head = head
	return g.capacity - (g.tail - head), nil
}

// publish shows bytes up to tail, a multiple of 8, and wakes the consumer.
func (g *giver) publish(bell int) {
	atomic.StoreUint64(&g.header.itemsIn, g.items)
	atomic.StoreUint64(&g.header.tail, g.tail) // a full fence on its own in Go
	if atomic.LoadUint32(&g.header.consumerWaits) != awake {
		wake(&g.header.consumerWaits, bell)
	}
}

// put writes one whole record that is known to fit.
func (g *giver) put(flags, meta uint32, total uint64, payload []byte) {
	n := len(payload)
	first := flags&(flagMore|flagCont) == flagMore
	if first {
		n += totalHeader
	}
	size := recordSize(n)
	b := g.at(g.tail, size)
	binary.LittleEndian.PutUint32(b, uint32(n)|flags)
	binary.LittleEndian.PutUint32(b[4:], meta)
	b = b[recordHeader:]
	if first {
		binary.LittleEndian.PutUint64(b, total)
		b = b[totalHeader:]
	}
	copy(b, payload)
	g.tail += size
	if flags&flagMore == 0 {
		g.items++
	}
}

// taker is the daemon's consuming end of a ring. Its user synchronises.
type taker struct {
	*ring
	head  uint64 // ours; the shared word is only its publication
	tail  uint64 // the producer's, as last believed
	items uint64

	answers bool // it leads from a served queue, which may answer that it has none
}

// ready is the published bytes from head on, or an error when the producer's
// word is impossible.
func (t *taker) ready() (uint64, error) {
	tail := atomic.LoadUint64(&t.header.tail)
	if tail-t.tail > t.head+t.capacity-t.tail || tail&7 != 0 {
		return 0, fmt.Errorf("%w: tail %d is not between %d and %d", ErrBroken, tail, t.tail, t.head+t.capacity)
	}
	t.tail = tail
	return tail - t.head, nil
}

// record is one record as it was read: its payload still lies in shared memory
// and may change until it is copied.
type record struct {
	payload []byte
	size    uint64
	meta    uint32
	more    bool
	cont    bool
	control bool // no item: the answer of a served queue that has none
}

// next is the record at head when it is there whole; ok is false when it is not:
// then size is 0, or the header is there, and of the payload what ready says. The
// header is copied once and then checked.
func (t *taker) next() (r record, ok bool, err error) {
	n, err := t.ready()
	if err != nil || n < recordHeader {
		return record{}, false, err
	}
	word := atomic.LoadUint64((*uint64)(unsafe.Pointer(&t.at(t.head, 8)[0])))
	length := int(uint32(word) & lengthMask)
	r = record{
		meta: uint32(word >> 32),
		more: uint32(word)&flagMore != 0,
		cont: uint32(word)&flagCont != 0,
		size: recordSize(length),
	}
	if t.answers && uint32(word) == flagControl && r.meta == controlNothing {
		r.control = true
	} else if length > largest(t.capacity) || uint32(word)&flagControl != 0 || (r.more && !r.cont && length < totalHeader) {
		return record{}, false, fmt.Errorf("%w: a record of %d bytes with flags %#x", ErrBroken, length, uint32(word)&^lengthMask)
	}
	r.payload = t.at(t.head+recordHeader, uint64(length))
	return r, n >= r.size, nil
}

// release gives the bytes up to head back to the producer and wakes it.
func (t *taker) release(bell int) {
	atomic.StoreUint64(&t.header.itemsOut, t.items)
	atomic.StoreUint64(&t.header.head, t.head)
	if atomic.LoadUint32(&t.header.producerWaits) != awake {
		wake(&t.header.producerWaits, bell)
	}
}
