package queuevm

import (
	"encoding/binary"
	"fmt"
)

// assembly makes an item of the records that come of it.
type assembly struct {
	bytes []byte
	meta  uint32
	total uint64 // bytes that the item will have
	begun bool   // some of it is here
}

// add takes the next record, whose bytes it copies, and says whether the item
// is whole. The item is in bytes then, never nil, and stays until reset.
func (a *assembly) add(r record, most uint64) (whole bool, err error) {
	if r.cont != a.begun {
		return false, fmt.Errorf("%w: a fragment out of turn", ErrBroken)
	}
	payload := r.payload
	if !r.cont {
		a.meta, a.bytes = r.meta, []byte{}
		if r.more {
			a.total = binary.LittleEndian.Uint64(payload)
			payload = payload[totalHeader:]
			if a.total > most {
				return false, fmt.Errorf("%w: %d bytes, at most %d", ErrTooBig, a.total, most)
			}
		}
	}
	// Grown as it comes: the total is only what a child said.
	a.bytes = append(a.bytes, payload...)
	size := uint64(len(a.bytes))
	if size > most || (r.cont || r.more) && size > a.total {
		return false, fmt.Errorf("%w: an item longer than it said, or than %d bytes", ErrTooBig, most)
	}
	if r.cont && !r.more && size != a.total {
		return false, fmt.Errorf("%w: an item shorter than it said", ErrBroken)
	}
	a.begun = r.more
	return !r.more, nil
}

// begin takes the first bytes of a record of which no more is there: what a look at
// an item can show of it. Nothing can be added then.
func (a *assembly) begin(r record, there, most uint64) error {
	part := r.payload[:there]
	switch {
	case r.cont || r.more && there >= totalHeader:
		r.payload, r.more = part, true
		_, err := a.add(r, most)
		return err
	case r.more: // not even its length is here
		return nil
	case uint64(len(r.payload)) > most:
		return fmt.Errorf("%w: %d bytes, at most %d", ErrTooBig, len(r.payload), most)
	}
	*a = assembly{bytes: append([]byte{}, part...), meta: r.meta, total: uint64(len(r.payload)), begun: true}
	return nil
}

func (a *assembly) reset() { *a = assembly{} }
