// Command peer is the conformance suite's program in Go.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"mvm/queuevm/client"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(3)
	}
}

func open(name string) *client.Port {
	p, err := client.Open(name)
	must(err)
	return p
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	must(err)
	return n
}

// item is the suite's k-th item: length and bytes follow from the number alone.
func item(k, most int) []byte {
	n := 8
	if most > 0 {
		n = int(uint64(k) * 2654435761 % uint64(most+1))
	}
	b := make([]byte, n)
	for j := range b {
		b[j] = byte(k*31 + j*7)
	}
	return b
}

func check(ok bool, what string) {
	if !ok {
		must(errors.New("not so: " + what))
	}
}

func main() {
	args := os.Args[2:]
	switch os.Args[1] {
	case "send":
		p, most := open(args[0]), number(args[2])
		for k := range number(args[1]) {
			must(p.Enqueue(item(k, most)))
		}
	case "receive":
		p, most, k := open(args[0]), number(args[1]), 0
		for got := range p.Items() {
			check(bytes.Equal(got, item(k, most)), "item "+strconv.Itoa(k)+" is right")
			k++
		}
		_, err := p.Dequeue()
		check(errors.Is(err, client.ErrEnd), fmt.Sprint("END stays, not ", err))
		fmt.Println(k)
	case "again":
		p, counts, which := open(args[0]), [2]int{}, 0
		for {
			_, err := p.Dequeue()
			if err == nil {
				counts[which]++
				continue
			}
			is(err, client.ErrEnd)
			if counts[1] > 0 {
				break
			}
			which = 1
			must(os.WriteFile(args[1], nil, 0o600))
			time.Sleep(time.Millisecond)
		}
		fmt.Println(counts[0], counts[1])
	case "give":
		give(args)
	case "insist":
		p := open(args[0])
		for k := range number(args[1]) {
			err := p.Enqueue(fmt.Appendf(nil, "p0 %d\n", k))
			for ; errors.Is(err, client.ErrClosed); err = p.Enqueue(fmt.Appendf(nil, "p0 %d\n", k)) {
				time.Sleep(500 * time.Microsecond)
			}
			must(err)
		}
	case "gather":
		gather(args)
	case "take":
		_, err := open(args[0]).Dequeue()
		must(err)
	case "far":
		far(args[0])
	case "fill":
		fill(args[0])
	case "forms":
		forms()
	case "wait":
		wait(args)
	case "spread":
		names, err := client.Ports()
		must(err)
		for k := range number(args[0]) {
			for _, name := range names {
				must(open(name).Enqueue(item(k, 300)))
			}
		}
	case "collect":
		names, err := client.Ports()
		must(err)
		var group sync.WaitGroup
		var mu sync.Mutex
		all := 0
		for _, name := range names {
			p := open(name)
			group.Go(func() {
				k := 0
				for got := range p.Items() {
					check(bytes.Equal(got, item(k, 300)), "item is right")
					k++
				}
				mu.Lock()
				all += k
				mu.Unlock()
			})
		}
		group.Wait()
		fmt.Println(all)
	default:
		os.Exit(2)
	}
}

func wait(args []string) {
	var live []*client.Port
	for _, name := range args {
		live = append(live, open(name))
	}
	all := 0
	for len(live) > 0 {
		p, err := client.Wait(10*time.Second, live...)
		must(err)
		_, err = p.TryDequeue()
		if errors.Is(err, client.ErrEnd) {
			for k := range live {
				if live[k] == p {
					live = append(live[:k], live[k+1:]...)
					break
				}
			}
			continue
		}
		must(err)
		all++
	}
	fmt.Println(all)
}

func is(err, want error) { check(errors.Is(err, want), fmt.Sprintf("%v, not %v", want, err)) }

func afterEnd(in *client.Port) {
	_, err := in.Dequeue()
	is(err, client.ErrEnd)
	_, err = in.TryDequeue()
	is(err, client.ErrEnd)
	_, err = in.Peek()
	is(err, client.ErrEnd)
	_, err = client.Wait(-1, in)
	must(err)
}

func far(name string) {
	port := open(name)
	everyForm(port, port)
	must(port.End())
	is(port.Enqueue([]byte("x")), client.ErrClosed)
	afterEnd(port)
	fmt.Println("ok")
}

func fill(name string) {
	port, filled := open(name), 0
	big := make([]byte, port.LargestOut())
	is(port.TryEnqueue(append(big, 0)), client.ErrTooBig)
	var err error
	for ; err == nil; filled++ {
		err = port.TryEnqueue(big)
	}
	is(err, client.ErrAgain)
	check(filled > 1, "room for one")
	is(port.EnqueueTimed(big, 20*time.Millisecond), client.ErrTimeout)
	fmt.Println(filled - 1)
}

func everyForm(out, in *client.Port) {
	_, err := in.TryDequeue()
	is(err, client.ErrAgain)
	_, err = in.DequeueTimed(20 * time.Millisecond)
	is(err, client.ErrTimeout)
	_, err = client.Wait(20*time.Millisecond, in)
	is(err, client.ErrTimeout)
	must(out.TryEnqueue([]byte("abc")))
	p, err := client.Wait(time.Second, in)
	must(err)
	check(p == in, "in is ready")
	_, err = in.DequeueInto(make([]byte, 2))
	is(err, client.ErrTooBig)
	got, err := in.TryDequeue()
	must(err)
	check(string(got) == "abc", "abc")
	must(out.Enqueue(nil))
	got, err = in.Dequeue()
	must(err)
	check(got != nil && len(got) == 0, "an empty item")
	out.SetPriority(9)
	must(out.Instruct([]byte("source")))
	must(out.Enqueue([]byte("x")))
	got, err = in.Dequeue()
	must(err)
	check(string(got) == "source" && in.IsInstruction(), "an instruction")
	_, err = in.Dequeue()
	must(err)
	check(!in.IsInstruction(), "data again")
	most := out.LargestOut()
	check(most > 0 && most == in.LargestIn(), "largest")
	_, err = out.Reserve(most + 1)
	is(err, client.ErrTooBig)
	is(out.Commit(1), client.ErrMisuse)
	is(in.Release(), client.ErrMisuse)
	for round := range 50 {
		room, err := out.Reserve(most)
		must(err)
		is(out.Enqueue([]byte("x")), client.ErrMisuse)
		want := item(round, most)
		copy(room, want)
		must(out.Commit(len(want)))
		seen, err := in.Peek()
		must(err)
		check(bytes.Equal(seen, want), "peeked")
		must(in.Release())
	}
}

func forms() {
	out, in := open("out"), open("in")
	everyForm(out, in)
	most := out.LargestOut()
	big := make([]byte, most)
	must(out.TryEnqueue(big))
	must(out.TryEnqueue(big))
	is(out.TryEnqueue(big), client.ErrAgain)
	is(out.EnqueueTimed(big, 20*time.Millisecond), client.ErrTimeout)
	is(out.TryEnqueue(make([]byte, most+1)), client.ErrTooBig)
	must(out.End())
	is(out.Enqueue([]byte("x")), client.ErrClosed)
	for range 2 {
		got, err := in.Dequeue()
		must(err)
		check(len(got) == most, "all of it")
	}
	afterEnd(in)
	is(in.Enqueue(nil), client.ErrDirection)
	_, err := client.Open("nowhere")
	check(err != nil && strings.Contains(err.Error(), `no port "nowhere"`), fmt.Sprint(err))
	names, err := client.Ports()
	must(err)
	check(strings.Join(names, " ") == "out in", "ports")
	check(client.Index() == 2 && client.Count() == 5 && client.Task() == "alone", "who I am")
	fmt.Println("ok")
}

// give PORT WHO COUNT MOST PRIORITIES: items that say whose and which they are.
func give(args []string) {
	p, most, priorities, refused := open(args[0]), number(args[3]), number(args[4]), 0
	for k := range number(args[2]) {
		head := fmt.Sprintf("%s %d\n", args[1], k)
		b := make([]byte, max(len(head), int(uint64(k)*2654435761%uint64(most+1))))
		for j := range b {
			b[j] = byte(k*31 + j*7)
		}
		copy(b, head)
		if priorities > 0 {
			p.SetPriority(uint8(k % priorities))
		}
		err := p.Enqueue(b)
		if errors.Is(err, client.ErrFull) {
			refused++
			continue
		}
		must(err)
	}
	fmt.Println(refused)
}

// gather PORT FORM: prints whose and which each item is, until END.
func gather(args []string) {
	p := open(args[0])
	for {
		var got []byte
		err := client.ErrAgain
		switch args[1] {
		case "timed":
			got, err = p.DequeueTimed(3 * time.Millisecond)
		case "try":
			got, err = p.TryDequeue()
		case "wait":
			for err != nil {
				_, err = client.Wait(5*time.Millisecond, p)
			}
			got, err = p.Dequeue()
		default:
			got, err = p.Dequeue()
		}
		if errors.Is(err, client.ErrTooBig) {
			got, err = p.Dequeue()
		}
		switch {
		case errors.Is(err, client.ErrEnd):
			return
		case errors.Is(err, client.ErrTimeout), errors.Is(err, client.ErrAgain):
			time.Sleep(200 * time.Microsecond)
			continue
		}
		must(err)
		head, _, _ := bytes.Cut(got, []byte("\n"))
		var who string
		var k int
		_, err = fmt.Sscan(string(head), &who, &k)
		must(err)
		for j := len(head) + 1; j < len(got); j++ {
			check(got[j] == byte(k*31+j*7), "item "+string(head)+" is right")
		}
		fmt.Println(string(head))
	}
}
