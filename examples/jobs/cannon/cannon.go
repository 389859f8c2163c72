// Cannon's algorithm: each process holds one block of A, B and C. Blocks of A
// wander west and blocks of B north around the torus; each process multiplies
// what comes by.
package main

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"strconv"

	"mvm/queuevm/client"
)

// a and b are the elements of the matrices that are multiplied.
func a(i, j int) int64 { return int64((3*i+7*j)%11) - 5 }
func b(i, j int) int64 { return int64((5*i+2*j)%13) - 6 }

func block(n, row, column int, element func(i, j int) int64) []int64 {
	m := make([]int64, n*n)
	for i := range n {
		for j := range n {
			m[i*n+j] = element(row*n+i, column*n+j)
		}
	}
	return m
}

func multiplyInto(c, x, y []int64, n int) {
	for i := range n {
		for k := range n {
			f := x[i*n+k]
			for j := range n {
				c[i*n+j] += f * y[k*n+j]
			}
		}
	}
}

// shift gives the block to one neighbour and takes another from the opposite one.
func shift(m []int64, to, from *client.Port) []int64 {
	item := make([]byte, 8*len(m))
	for i, v := range m {
		binary.LittleEndian.PutUint64(item[8*i:], uint64(v))
	}
	if err := to.Enqueue(item); err != nil {
		log.Fatal(err)
	}
	item, err := from.Dequeue()
	if err != nil {
		log.Fatal(err)
	}
	if len(item) != 8*len(m) {
		log.Fatalf("a block of %d bytes came, not %d", len(item), 8*len(m))
	}
	next := make([]int64, len(m))
	for i := range next {
		next[i] = int64(binary.LittleEndian.Uint64(item[8*i:]))
	}
	return next
}

func open(name string) *client.Port {
	port, err := client.Open(name)
	if err != nil {
		log.Fatal(err)
	}
	return port
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: cannon SIZE")
	}
	size, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	index, count := client.Index(), client.Count()
	side := int(math.Round(math.Sqrt(float64(count))))
	if side*side != count || size%side != 0 {
		log.Fatalf("%d processes cannot share matrices of %d x %d evenly", count, size, size)
	}
	n, row, column := size/side, index/side, index%side

	// The blocks begin where Cannon's first skew would have brought them.
	skew := (row + column) % side
	x := block(n, row, skew, a)
	y := block(n, skew, column, b)
	c := make([]int64, n*n)
	if side == 1 {
		multiplyInto(c, x, y, n)
	} else {
		west, east, north, south := open("west"), open("east"), open("north"), open("south")
		for step := range side {
			multiplyInto(c, x, y, n)
			if step < side-1 {
				x = shift(x, west, east)
				y = shift(y, north, south)
			}
		}
	}

	file, err := os.Create("block.txt")
	if err != nil {
		log.Fatal(err)
	}
	out := bufio.NewWriter(file)
	var sum int64
	for i := range n {
		for j := range n {
			fmt.Fprintf(out, "%d ", c[i*n+j])
			sum += c[i*n+j]
		}
		fmt.Fprintln(out)
	}
	if err := out.Flush(); err != nil {
		log.Fatal(err)
	}
	if err := file.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("block %d,%d of %d x %d: sum %d\n", row, column, side, side, sum)
}
