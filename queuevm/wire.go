package queuevm

import (
	"encoding/binary"
	"fmt"
)

// The proxy's wire: frames of 24 bytes, little-endian, of which only data is
// followed by a payload. LAYOUT.md specifies it.
const (
	frameSize    = 24
	maxFrameData = 1 << 20
)

type frameType uint8

const (
	frameData frameType = 1 // ring bytes from offset on
	frameAck  frameType = 2 // receiver to sender: received up to offset, room up to offset+length
	frameEnd  frameType = 3 // no bytes follow offset; flags is the producer's state
	frameBye  frameType = 4 // the sender is going away on purpose
	frameGone frameType = 5 // sender to receiver: nothing is left of the channel here
)

// endBits are the bits of a state that one node tells another.
const endBits = stateClosed | stateLost | stateBroken | stateSwitched

// frame is one header of the proxy's wire. Offsets count a channel's ring bytes
// from its beginning, over all connections.
type frame struct {
	kind    frameType
	flags   uint8 // state bits
	channel uint32
	offset  uint64
	length  uint32 // data: payload bytes, a multiple of 8; ack: room past offset
	items   uint32 // data: low bits of the producer's item count after this payload; ack: demand or verdict
}

func (f frame) append(b []byte) []byte {
	b = append(b, byte(f.kind), f.flags, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, f.channel)
	b = binary.LittleEndian.AppendUint64(b, f.offset)
	b = binary.LittleEndian.AppendUint32(b, f.length)
	return binary.LittleEndian.AppendUint32(b, f.items)
}

// parseFrame reads the frame at the start of b, which holds frameSize bytes or
// more, and refuses what no peer of this version writes.
func parseFrame(b []byte) (frame, error) {
	f := frame{
		kind:    frameType(b[0]),
		flags:   b[1],
		channel: binary.LittleEndian.Uint32(b[4:]),
		offset:  binary.LittleEndian.Uint64(b[8:]),
		length:  binary.LittleEndian.Uint32(b[16:]),
		items:   binary.LittleEndian.Uint32(b[20:]),
	}
	bad := b[2] != 0 || b[3] != 0 || f.flags&^endBits != 0 || f.offset&7 != 0
	switch f.kind {
	case frameData:
		bad = bad || f.flags != 0 || f.length == 0 || f.length > maxFrameData || f.length&7 != 0
	case frameAck:
		bad = bad || f.length > maxCapacity
	case frameEnd:
		bad = bad || f.flags&stateClosed == 0 || f.length != 0 || f.items != 0
	case frameGone:
		bad = bad || f != frame{kind: frameGone, channel: f.channel}
	case frameBye:
		bad = bad || f != frame{kind: frameBye}
	default:
		bad = true
	}
	if bad {
		return frame{}, fmt.Errorf("the peer sent a malformed frame: % x", b[:frameSize])
	}
	return f, nil
}
