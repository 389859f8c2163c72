// Command sort sorts by sampling: every process sorts a share of the keys, some
// of them become the borders of as many ranges as there are processes, and each
// process gets all keys of one range. Nobody names anybody: who is the root, who
// the k-th is, and which way things go is the topologies' affair.
package main

import (
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"slices"
	"strconv"

	"mvm/queuevm/client"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func pack(keys []uint64) []byte {
	data := make([]byte, 0, 8*len(keys))
	for _, k := range keys {
		data = binary.BigEndian.AppendUint64(data, k)
	}
	return data
}

func unpack(data []byte) []uint64 {
	keys := make([]uint64, 0, len(data)/8)
	for ; len(data) >= 8; data = data[8:] {
		keys = append(keys, binary.BigEndian.Uint64(data))
	}
	return keys
}

// add joins two lists of sums.
func add(a, b []byte) []byte {
	sums := unpack(a)
	for k, n := range unpack(b) {
		sums[k] += n
	}
	return pack(sums)
}

func main() {
	all := must(client.OpenCollective(""))
	root, size := all.Index() == 0, all.Size()

	var shares [][]byte
	if root { // the keys are Marsaglia's xorshift64
		count := must(strconv.Atoi(os.Args[1]))
		keys, state := make([]uint64, count), uint64(88172645463325252)
		for k := range keys {
			state ^= state << 13
			state ^= state >> 7
			state ^= state << 17
			keys[k] = state
		}
		for k := range size {
			shares = append(shares, pack(keys[count*k/size:count*(k+1)/size]))
		}
	}
	mine := unpack(must(all.Scatter(shares)))
	before := pack([]uint64{uint64(len(mine)), sum(mine)})
	slices.Sort(mine)

	var sample []uint64
	for k := range size {
		if len(mine) > 0 {
			sample = append(sample, mine[len(mine)*k/size])
		}
	}
	samples := must(all.Gather(pack(sample)))
	var borders []uint64 // of the ranges but the first
	if root {
		sample := unpack(slices.Concat(samples...))
		slices.Sort(sample)
		for k := 1; k < size && len(sample) > 0; k++ {
			borders = append(borders, sample[len(sample)*k/size])
		}
	}
	borders = unpack(must(all.Broadcast(pack(borders))))

	ranges := make([][]byte, size)
	for k := range ranges {
		end := len(mine)
		if k < len(borders) {
			end, _ = slices.BinarySearch(mine, borders[k])
		}
		ranges[k] = pack(mine[:end])
		mine = mine[end:]
	}
	mine = unpack(slices.Concat(must(all.AllToAll(ranges))...))
	slices.Sort(mine)

	after := pack([]uint64{uint64(len(mine)), sum(mine)})
	before, after = must(all.AllReduce(before, add)), must(all.AllReduce(after, add))
	if string(before) != string(after) {
		log.Fatalf("keys and their sum were %d, and are %d", unpack(before), unpack(after))
	}
	sorted := must(all.Gather(pack(mine)))
	if root {
		text, count := []byte{}, 0
		for _, part := range sorted {
			for _, k := range unpack(part) {
				text = append(strconv.AppendUint(text, k, 10), '\n')
				count++
			}
		}
		must(0, os.WriteFile("sorted.txt", text, 0o644))
		fmt.Printf("%d processes sorted %d keys\n", size, count)
	}
	must(0, all.Barrier()) // nobody goes before the result is there
}

func sum(keys []uint64) (total uint64) {
	for _, k := range keys {
		total += k
	}
	return total
}
