// Counts words and prints the most frequent ones.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"strconv"

	"mvm/queuevm/client"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 2 {
		log.Fatal("usage: count TOP")
	}
	top, err := strconv.Atoi(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	prev, err := client.Open("prev")
	if err != nil {
		log.Fatal(err)
	}
	count := map[string]int{}
	for {
		word, err := prev.Dequeue()
		if errors.Is(err, client.ErrEnd) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		count[string(word)]++
	}
	words := slices.SortedFunc(maps.Keys(count), func(a, b string) int {
		return cmp.Or(count[b]-count[a], cmp.Compare(a, b))
	})
	file, err := os.Create("words.txt")
	if err != nil {
		log.Fatal(err)
	}
	for i, word := range words {
		fmt.Fprintf(file, "%d %s\n", count[word], word)
		if i < top {
			fmt.Printf("%d %s\n", count[word], word)
		}
	}
	if err := file.Close(); err != nil {
		log.Fatal(err)
	}
}
