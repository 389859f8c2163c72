// Command add adds up what the workers counted, in whatever order it comes, and
// sees that the whole range was counted once.
package main

import (
	"fmt"
	"log"
	"os"
	"strconv"

	"mvm/queuevm/client"
)

func main() {
	limit, err := strconv.ParseUint(os.Args[1], 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	counts, err := client.Open("counts")
	if err != nil {
		log.Fatal(err)
	}
	var numbers, primes uint64
	for item := range counts.Items() {
		var from, to, found uint64
		if _, err := fmt.Sscan(string(item), &from, &to, &found); err != nil {
			log.Fatalf("%q: %v", item, err)
		}
		numbers += to - from
		primes += found
	}
	if numbers != limit {
		log.Fatalf("%d numbers were counted of %d", numbers, limit)
	}
	if err := os.WriteFile("primes.txt", fmt.Appendln(nil, primes), 0o644); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%d primes below %d\n", primes, limit)
}
