// Command collect keeps all results, sorted, and says what the values of each
// function add up to.
package main

import (
	"cmp"
	"fmt"
	"log"
	"os"
	"slices"

	"mvm/queuevm/client"
)

type result struct {
	function string
	number   uint64
	value    uint64
}

func main() {
	port, err := client.Open("results")
	if err != nil {
		log.Fatal(err)
	}
	var all []result
	for item := range port.Items() {
		var r result
		if _, err := fmt.Sscan(string(item), &r.function, &r.number, &r.value); err != nil {
			log.Fatalf("%q: %v", item, err)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b result) int {
		return cmp.Or(cmp.Compare(a.function, b.function), cmp.Compare(a.number, b.number))
	})
	f, err := os.Create("results.txt")
	if err != nil {
		log.Fatal(err)
	}
	for k, sum, count := 0, uint64(0), 0; k < len(all); k++ {
		r := all[k]
		fmt.Fprintln(f, r.function, r.number, r.value)
		sum += r.value
		count++
		if k+1 == len(all) || all[k+1].function != r.function {
			fmt.Printf("%s of %d numbers: %d in all\n", r.function, count, sum)
			sum, count = 0, 0
		}
	}
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}
}
