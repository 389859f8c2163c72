// Command totient is an instruction: how many numbers up to a number have no
// divisor in common with it.
package main

import (
	"fmt"
	"log"
	"strconv"

	"mvm/queuevm/client"
)

func main() {
	in, err := client.Open("in")
	if err != nil {
		log.Fatal(err)
	}
	out, err := client.Open("out")
	if err != nil {
		log.Fatal(err)
	}
	for item := range in.Items() {
		n, err := strconv.Atoi(string(item))
		if err != nil {
			log.Fatal(err)
		}
		found := n
		for rest, p := n, 2; rest > 1; p++ {
			if p*p > rest {
				p = rest
			}
			if rest%p == 0 {
				found -= found / p
				for rest%p == 0 {
					rest /= p
				}
			}
		}
		if err := out.Enqueue(fmt.Appendf(nil, "totient %d %d", n, found)); err != nil {
			log.Fatal(err)
		}
	}
}
