package queuevm

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
)

// What a served queue hands out is in the order that Compare says, whatever
// comes and goes meanwhile.
func TestStoreKeepsTheOrder(t *testing.T) {
	for _, kind := range []QueueType{QueueFifo, QueueWork, QueueLifo, QueuePriority} {
		t.Run(string(kind), func(t *testing.T) {
			for seed := range uint64(50) {
				rng := rand.New(rand.NewPCG(seed, 1))
				s := newStore(kind, FullBlock, 1<<20, 1)
				waits := map[uint64]Rank{}
				arrival := uint64(0)
				for step := range 400 {
					if rng.IntN(5) < 3 && step < 300 {
						arrival++
						r := Rank{Priority: rng.IntN(256), Arrival: arrival}
						if s.offer(item{meta: uint32(r.Priority) << 4, data: binary.LittleEndian.AppendUint64(nil, arrival)}) != accepted {
							t.Fatal("an item is not accepted")
						}
						waits[arrival] = r
						continue
					}
					it, ok := s.take(0)
					if ok != (len(waits) > 0) {
						t.Fatalf("seed %d: an item: %v, and %d wait", seed, ok, len(waits))
					}
					if !ok {
						continue
					}
					got := waits[binary.LittleEndian.Uint64(it.data)]
					for _, other := range waits {
						if kind.Compare(other, got) < 0 {
							t.Fatalf("seed %d: %s handed out %s while %s waited", seed, kind, fmt.Sprint(got), fmt.Sprint(other))
						}
					}
					delete(waits, got.Arrival)
				}
			}
		})
	}
}
