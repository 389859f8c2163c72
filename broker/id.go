package broker

import (
	"strings"
	"time"
)

// A job's id is j- and 8 digits of base 32 without look-alikes, ascending: the
// milliseconds since idEpoch, pushed on where two jobs share one. Ids sort by
// time, can be typed, and last until the year 2060.
const (
	idDigits = "0123456789abcdefghjkmnpqrstvwxyz"
	idLength = 8
	idEpoch  = 1767225600000 // 2026-01-01T00:00:00Z
)

func formatID(n uint64) string {
	var digits [idLength]byte
	for i := idLength - 1; i >= 0; i-- {
		digits[i] = idDigits[n&31]
		n >>= 5
	}
	return "j-" + string(digits[:])
}

// parseID is the number behind an id; false for what formatID did not make.
func parseID(id string) (uint64, bool) {
	digits, ok := strings.CutPrefix(id, "j-")
	if !ok || len(digits) != idLength {
		return 0, false
	}
	var n uint64
	for i := range len(digits) {
		d := strings.IndexByte(idDigits, digits[i])
		if d < 0 {
			return 0, false
		}
		n = n<<5 | uint64(d)
	}
	return n, true
}

// bornOf is a job's place by age, as its id has it.
func bornOf(id string) uint64 {
	n, _ := parseID(id)
	return n
}

// newID returns an id above every one before, also when the clock goes back.
func (b *Service) newID(now time.Time) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = max(b.last+1, uint64(max(0, now.UnixMilli()-idEpoch)))
	return formatID(b.last)
}
