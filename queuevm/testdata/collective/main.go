// Command collective is the collectives' program in Go: see collective.c.
package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"

	"mvm/queuevm/client"
)

func fill(n, seed int) []byte {
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(seed*31 + j*7)
	}
	return b
}

func add(a, b []byte) []byte {
	for j := range a {
		a[j] += b[j]
	}
	return a
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
	return value
}

func main() {
	c := must(client.OpenCollective(os.Args[1]))
	own, size := c.Index(), c.Size()
	check := func(ok bool, what string) {
		if !ok {
			fmt.Fprintf(os.Stderr, "%d of %d: not so: %s\n", own, size, what)
			os.Exit(6)
		}
	}
	total := func(n, seed int) []byte {
		sum := fill(n, seed)
		for k := 1; k < size; k++ {
			sum = add(sum, fill(n, seed+k))
		}
		return sum
	}
	for a, argument := range os.Args[2:] {
		n, seed := must(strconv.Atoi(argument)), (a+2)*1000
		must(0, c.Barrier())
		mine := seed
		if own > 0 {
			mine += 77
		}
		check(bytes.Equal(must(c.Broadcast(fill(n, mine))), fill(n, seed)), "the root's data is everywhere")
		got := must(c.Reduce(fill(n, seed+own), add))
		check(own > 0 && got == nil || own == 0 && bytes.Equal(got, total(n, seed)), "the sum is at the root")
		check(bytes.Equal(must(c.AllReduce(fill(n, seed+1+own), add)), total(n, seed+1)), "the sum is everywhere")
		all := must(c.Gather(fill(n, seed+2+own)))
		check(own == 0 && len(all) == size || own > 0 && all == nil, "gathered at the root")
		for k, item := range all {
			check(bytes.Equal(item, fill(n, seed+2+k)), "gathered in order")
		}
		if own == 0 {
			for k := range all {
				all[k] = fill(n, seed+3+k)
			}
		}
		check(bytes.Equal(must(c.Scatter(all)), fill(n, seed+3+own)), "scattered")
		all = make([][]byte, size)
		for k := range all {
			all[k] = fill(n, seed+own*size+k)
		}
		for k, item := range must(c.AllToAll(all)) {
			check(bytes.Equal(item, fill(n, seed+k*size+own)), "what each had for each")
		}
	}
	fmt.Println(own, "of", size)
}
