// A program that comes to a stop: stuck VERB [PORT...].
package main

import (
	"os"
	"sync"
	"time"

	"mvm/queuevm/client"
)

func main() {
	var ports []*client.Port
	for _, name := range os.Args[2:] {
		p, err := client.Open(name)
		if err != nil {
			panic(err)
		}
		ports = append(ports, p)
	}
	take := func() {
		for range ports[0].Items() {
		}
	}
	switch os.Args[1] {
	case "fill":
		for ports[0].Enqueue(make([]byte, 1000)) == nil {
		}
	case "take":
		take()
	case "any":
		_, _ = client.Wait(-1, ports...)
	case "join":
		var all sync.WaitGroup
		all.Go(take)
		all.Wait()
	case "timed":
		_, _ = ports[0].DequeueTimed(1000 * time.Second)
	case "sleep":
		time.Sleep(1000 * time.Second)
	case "take+timer":
		time.AfterFunc(1000*time.Second, func() {})
		take()
	case "take+sleep":
		go time.Sleep(1000 * time.Second)
		take()
	case "take+read":
		r, w, _ := os.Pipe()
		go func() { _, _ = r.Read(make([]byte, 1)) }()
		take()
		_ = w.Close()
	default:
		panic(os.Args[1])
	}
}
