package queuevm

import "unsafe"

// The bytes of a ring, as LAYOUT.md specifies them and c/mvm.c repeats them: a
// header page, then a power-of-two data area. Little-endian.
const (
	ringMagic   = 0x524D564D // "MVMR"
	ringVersion = 3
	headerSize  = 4096
	minCapacity = 4096
	maxCapacity = 1 << 30
)

// Values of a waits word: who sleeps, and so how to wake it.
const (
	awake       = 0
	waitsFutex  = 1 // on the word itself, by FUTEX_WAIT
	waitsDaemon = 2 // the daemon, on its bell (an eventfd)
	waitsOnly   = 3 // as waitsFutex, and nothing but the other end ends the wait
	waitsOnlyGo = 4 // as waitsOnly, in a program with Go's runtime
)

// Bits of a state word.
const (
	stateClosed = 1 << 0 // this end is finished: END for takers, "closed" for givers
	stateLost   = 1 << 1 // finished because the link or the other end broke: items may be missing
	stateBroken = 1 << 2 // finished because the ring held garbage

	// Finished, and the port goes on with another ring. Of a consumer: it has.
	stateSwitched = 1 << 3
)

// Bits of the next word: whose port goes on with another ring after this one.
const (
	nextIn  = 1 << 0 // the consumer's
	nextOut = 1 << 1 // the producer's
)

// A record is [u32 length and flags][u32 meta][payload], padded to 8 bytes.
const (
	recordHeader = 8
	flagMore     = 1 << 31 // fragments of the same item follow
	flagCont     = 1 << 30 // not the first fragment
	flagControl  = 1 << 29 // no item: meta says what
	lengthMask   = flagControl - 1
	totalHeader  = 8 // a first fragment with flagMore starts with the item's u64 length
)

// What a control record says.
const controlNothing = 1 // the answer to an impatient demand: the queue has none

// Control words: bits of a ring's consumerState that the daemon sets at the
// producer's node, for the producer to do before its next item.
const (
	controlSwitch  = 1 << 8 // end this ring with SWITCH, and go on with the next, if any
	controlChanged = 1 << 9 // the served word or most have changed: read them again, and clear this
	controlBits    = controlSwitch | controlChanged
)

// metaAwaits, in a record's meta: the producer awaits what became of the item.
const metaAwaits = 1 << 12

// Bits of the served word: how a served queue's channel differs from a plain one.
const (
	servedDemand  = 1 << 0 // the consumer must ask for each item
	servedVerdict = 1 << 1 // the producer awaits what became of each item
	servedDirect  = 1 << 2 // items go over a socket of the two processes' own (section 7)
)

// impatient is the demand's bit that wants an answer now.
const impatient = 1

// counted says whether count a is ahead of b, both modulo 2^31, as demands and
// verdicts count.
func counted(a, b uint32) bool {
	ahead := (a - b) & (1<<31 - 1)
	return ahead != 0 && ahead < 1<<30
}

// ringHeader is the shared header page. Each group of words sits on a 128-byte
// line of its own: two 64-byte lines, since processors prefetch lines in pairs.
type ringHeader struct {
	magic    uint32
	version  uint32
	capacity uint64
	channel  uint32
	epoch    uint32 // grows when the daemon closes an end by force
	served   uint32
	_        [4]byte
	most     uint64 // the largest item in bytes; 0 is no bound
	next     uint32 // bit 0: the consumer has another ring after this one; bit 1: the producer
	_        [84]byte

	tail    uint64 // ring bytes published; written by the producer
	itemsIn uint64 // items whose last byte is published
	_       [112]byte

	head     uint64 // ring bytes released; written by the consumer
	itemsOut uint64
	demand   uint32 // answers wanted << 1 | impatient; written by the consumer
	verdict  uint32 // items decided << 1 | the last was refused; written by the daemon
	begun    uint64 // how far the record reaches that is being copied out in pieces
	_        [96]byte

	producerWaits uint32 // the producer sleeps until head moves
	producerState uint32 // read with producerWaits as one 64-bit word
	_             [120]byte

	consumerWaits uint32 // the consumer sleeps until tail moves
	consumerState uint32
	_             [120]byte
}

// recordSize is the ring bytes that a record with n payload bytes takes.
func recordSize(n int) uint64 { return uint64(n+recordHeader+7) &^ 7 }

// largest is the biggest payload of one record: half the ring, so that a
// record always fits and can be read in place.
func largest(capacity uint64) int { return int(capacity/2) - recordHeader }

// fragment is the payload of one fragment of a bigger item: an eighth of the
// ring, so that both ends copy at the same time.
func fragment(capacity uint64) int { return int(capacity/8) - recordHeader }

func roundCapacity(n int) uint64 {
	if n <= 0 {
		n = DefaultCapacity
	}
	c := uint64(minCapacity)
	for c < uint64(n) && c < maxCapacity {
		c <<= 1
	}
	return c
}

var _ [0]byte = [unsafe.Offsetof(ringHeader{}.consumerWaits) - 512]byte{}
