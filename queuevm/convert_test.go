package queuevm

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/queuevm/codec"
)

func chain(t testing.TB, capacity int, steps ...codec.Step) Converter {
	t.Helper()
	c, err := codec.New(steps, codec.Limits{Item: capacity}, nil)
	must(t, err)
	return c
}

// Each codec, in both directions, from and to each language: items that have
// every byte in them come out as they went in.
func TestConvertedThere(t *testing.T) {
	const capacity, count, most = 256 << 10, 30, 20000
	turn := 0
	for name, steps := range map[string][]codec.Step{
		"raw":    {{Codec: codec.Raw, Decode: true}, {Codec: codec.Raw}},
		"lines":  {{Codec: codec.Base64}, {Codec: codec.Lines, Decode: true}, {Codec: codec.Lines}, {Codec: codec.Lines, Decode: true}, {Codec: codec.JSON}, {Codec: codec.JSON, Decode: true}, {Codec: codec.Lines}, {Codec: codec.Base64, Decode: true}},
		"json":   {{Codec: codec.Raw, Decode: true}, {Codec: codec.JSON}, {Codec: codec.JSON, Decode: true}, {Codec: codec.Raw}, {Codec: codec.Base64, Decode: true}},
		"xml":    {{Codec: codec.Raw, Decode: true}, {Codec: codec.JSON}, {Codec: codec.JSON, Decode: true}, {Codec: codec.XML, Type: "bytes"}, {Codec: codec.XML, Decode: true}, {Codec: codec.Raw}, {Codec: codec.Base64, Decode: true}},
		"xdr":    {{Codec: codec.Raw, Decode: true}, {Codec: codec.XDR, Type: "opaque<>"}, {Codec: codec.XDR, Type: "opaque<>", Decode: true}, {Codec: codec.Raw}},
		"base64": {{Codec: codec.Base64}, {Codec: codec.Base64, Decode: true}},
		"zstd":   {{Codec: codec.Zstd}, {Codec: codec.Zstd, Decode: true}},
	} {
		for _, giver := range languages() {
			for _, taker := range languages() {
				// Without soak each codec meets a few of the ways and pairings.
				if turn++; os.Getenv("MVM_SOAK") == "" && turn%4 != 0 {
					continue
				}
				way := routes[turn/4%4]
				t.Run(fmt.Sprintf("%s/%s/%s-%s", name, way.name, giver.name, taker.name), func(t *testing.T) {
					b := newBench(t, way.start(t), way.home, Queue{Type: QueueFifo, Full: FullBlock, Capacity: capacity, Converter: chain(t, capacity, steps...)}, []int{way.producer}, []int{way.taker})
					s := spawn(t, b.vms[way.producer], 0, giver.program, "send", "queue", strconv.Itoa(count), strconv.Itoa(most))
					r := spawn(t, b.vms[way.taker], 100, taker.program, "receive", "queue", strconv.Itoa(most))
					if got := r.result(); got != strconv.Itoa(count) {
						t.Errorf("%s items of %d came", got, count)
					}
					s.result()
				})
			}
		}
	}
}

// Many producers and takers of every form and language at once, as without a
// converter: nothing is lost, doubled or out of its producer's order.
func TestConvertedFlow(t *testing.T) {
	converter := func() Converter {
		return chain(t, 8<<10, codec.Step{Codec: codec.Zstd}, codec.Step{Codec: codec.Zstd, Decode: true})
	}
	for _, kind := range []QueueType{QueueWork, QueueBroadcast} {
		t.Run(string(kind), func(t *testing.T) { flowOf(t, kind, routes[3], converter(), func(*bench) {}) })
	}
}

// slow is a converter that a test lets go on, item by item.
type slow struct{ begun, go_ chan bool }

func (s slow) Convert(item []byte) ([]byte, error) {
	s.begun <- true
	<-s.go_
	if string(item) == "bad" {
		return nil, errors.New("it is bad")
	}
	return bytes.ToUpper(item), nil
}

// While one item is being converted, other channels go on, whoever asks
// impatiently gets what was there, and END follows what comes of it.
func TestConvertingStallsNobody(t *testing.T) {
	vm := start(t, Config{})
	s := slow{make(chan bool), make(chan bool)}
	newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 4096, Converter: s}, []int{-1}, []int{-1})
	must(t, vm.AddChannel(Channel{ID: 50, Capacity: 4096, From: Endpoint{Outside: "a"}, To: Endpoint{Outside: "b"}}))
	must(t, vm.AddQueue(Queue{ID: 2, Name: "other", Type: QueueFifo, Full: FullBlock, Capacity: 4096, Producers: 1, Takers: 1}))
	must(t, vm.AddChannel(Channel{ID: 51, Capacity: 4096, From: Endpoint{Outside: "c"}, To: Endpoint{Queue: 2}}))
	must(t, vm.AddChannel(Channel{ID: 52, Capacity: 4096, From: Endpoint{Queue: 2}, To: Endpoint{Outside: "d"}}))
	must(t, vm.Enqueue(within(t, 10*time.Second), "in0", []byte("one")))
	<-s.begun
	for range 100 {
		must(t, vm.Enqueue(within(t, 10*time.Second), "c", []byte("x")))
		if _, err := vm.Dequeue(within(t, 10*time.Second), "d"); err != nil {
			t.Fatal(err)
		}
	}
	must(t, vm.CloseOutside("in0"))
	if vm.Quiet().Quiet {
		t.Error("it is quiet while an item is being converted")
	}
	over, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
	defer cancel()
	got := make(chan string, 1)
	go func() {
		item, err := vm.Dequeue(over, "out0")
		got <- fmt.Sprint(string(item), err)
	}()
	<-over.Done()
	s.go_ <- true
	if said := <-got; said != "ONE<nil>" {
		t.Errorf("whose time was over got %q, not the item that was there", said)
	}
	if _, err := vm.Dequeue(within(t, 10*time.Second), "out0"); err != io.EOF {
		t.Errorf("got %v, not END", err)
	}
}

// After an item that cannot be converted nothing comes, not even an end, and
// the reason says which it was.
func TestItemThatCannotBeConverted(t *testing.T) {
	vm := start(t, Config{})
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 4096, Converter: chain(t, 4096, codec.Step{Codec: codec.XDR, Decode: true, Type: "double<>"}, codec.Step{Codec: codec.JSON})}, []int{-1, -1}, []int{-1})
	vm.mu.Lock()
	vm.channels[1].Label = "sender[0]"
	vm.mu.Unlock()
	one := func(f float64) []byte {
		item, err := binary.Append(nil, binary.BigEndian, struct {
			N uint32
			F float64
		}{1, f})
		must(t, err)
		return item
	}
	for k := range 16 {
		must(t, vm.Enqueue(within(t, 10*time.Second), "in0", one(float64(k)+0.5)))
	}
	must(t, vm.Enqueue(within(t, 10*time.Second), "in0", []byte("hello")))
	must(t, vm.Enqueue(within(t, 10*time.Second), "in0", one(99)))
	select {
	case err := <-vm.Refused():
		if want := "queue the queue: item 17 of sender[0]: step 1, decode xdr double<>: at byte 4 of 5: element 0: 8 bytes are needed, 1 are left"; err.Error() != want {
			t.Errorf("it says %q, not %q", err, want)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody is told")
	}
	must(t, vm.Enqueue(within(t, 10*time.Second), "in1", one(98)))
	must(t, vm.CloseOutside("in0"))
	must(t, vm.CloseOutside("in1"))
	for k := range 16 {
		if got, err := vm.Dequeue(within(t, 10*time.Second), "out0"); err != nil || string(got) != fmt.Sprintf("[%v]", float64(k)+0.5) {
			t.Errorf("item %d is %q, %v", k, got, err)
		}
	}
	if got, err := vm.Dequeue(within(t, 100*time.Millisecond), "out0"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after them comes %q, %v", got, err)
	}
	if !state(vm, 1).Broken || vm.Quiet().Quiet {
		t.Error("the channel does not show it")
	}
	if q := b.queue(); q.ItemsOut != 16 || q.Dropped != 0 {
		t.Errorf("the queue is %+v", q)
	}
}

// What grows beyond the queue's capacity is an item that cannot be converted;
// what is too big before is refused to its producer.
func TestConvertedItemTooBig(t *testing.T) {
	vm := start(t, Config{})
	newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 4096, Converter: chain(t, 4096, codec.Step{Codec: codec.Base64})}, []int{-1}, []int{-1})
	if err := vm.Enqueue(within(t, 10*time.Second), "in0", make([]byte, 4090)); !errors.Is(err, ErrTooBig) {
		t.Errorf("an item over the capacity gives %v", err)
	}
	must(t, vm.Enqueue(within(t, 10*time.Second), "in0", make([]byte, 4000)))
	select {
	case err := <-vm.Refused():
		if !strings.Contains(err.Error(), "item 1 of channel 1: step 1, encode base64: gives 5336 bytes, over the limit of 4096") {
			t.Errorf("it says %q", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("nobody is told")
	}
}

// Small items that become big ones do so a few at a time, and those that come
// while the queue is full wait.
func TestConvertedBombs(t *testing.T) {
	vm := start(t, Config{})
	const capacity, size, count = 1 << 20, 500 << 10, 40
	zip := chain(t, capacity, codec.Step{Codec: codec.Zstd})
	small, err := zip.Convert(make([]byte, size))
	must(t, err)
	small = append([]byte{}, small...)
	b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: capacity, Converter: chain(t, capacity, codec.Step{Codec: codec.Zstd, Decode: true})}, []int{-1}, []int{-1})
	for range count {
		must(t, vm.Enqueue(within(t, 10*time.Second), "in0", small))
	}
	must(t, vm.CloseOutside("in0"))
	eventually(t, "the queue is full", func() bool { q := b.queue(); return q.Items == 2 && q.ProducersWait == 1 })
	vm.mu.Lock()
	held := 0
	for _, it := range vm.channels[1].front.entering {
		held += len(it.data)
	}
	vm.mu.Unlock()
	if held > convertBatch+size {
		t.Errorf("%d bytes wait for room beside the queue", held)
	}
	for k := range count {
		if got, err := vm.Dequeue(within(t, 10*time.Second), "out0"); err != nil || len(got) != size {
			t.Fatalf("item %d has %d bytes, %v", k, len(got), err)
		}
	}
	if _, err := vm.Dequeue(within(t, 10*time.Second), "out0"); err != io.EOF {
		t.Errorf("got %v, not END", err)
	}
}

// Takers that leave while an item is being converted leave nobody waiting, also
// when it turns out that it cannot be.
func TestConvertedForNobody(t *testing.T) {
	for _, word := range []string{"good", "bad"} {
		vm := start(t, Config{})
		s := slow{make(chan bool, 1), make(chan bool, 1)}
		b := newBench(t, []*VM{vm}, 0, Queue{Type: QueueWork, Full: FullBlock, Capacity: 4096, Converter: s}, []int{-1}, []int{0})
		taker := b.gather(0, 0, built.c, "block")
		must(t, vm.Enqueue(within(t, 10*time.Second), "in0", []byte(word)))
		<-s.begun
		must(t, taker.cmd.Process.Kill())
		eventually(t, "the taker is gone", func() bool { return b.queue().TakersClosed == 1 })
		s.go_ <- true
		eventually(t, "the producer is told", func() bool {
			return errors.Is(vm.Enqueue(within(t, 10*time.Second), "in0", []byte("more")), ErrClosed)
		})
		select {
		case err := <-vm.Refused():
			t.Errorf("nobody wanted it, and yet: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// A queue that fails while full judges what comes of an item, and tells each
// producer of its own.
func TestConvertedVerdict(t *testing.T) {
	vm := start(t, Config{})
	newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullFail, Capacity: 4096, Converter: chain(t, 4096, codec.Step{Codec: codec.Base64})}, []int{-1}, []int{-1})
	must(t, vm.Enqueue(within(t, 10*time.Second), "in0", make([]byte, 2000))) // 2668 in base64
	if err := vm.Enqueue(within(t, 10*time.Second), "in0", make([]byte, 1500)); !errors.Is(err, ErrFull) {
		t.Errorf("what is 2000 bytes in base64 gets %v where 1400 have room", err)
	}
	must(t, vm.Enqueue(within(t, 10*time.Second), "in0", make([]byte, 900)))
}

// Plain sockets at both ends.
func TestConvertedSocket(t *testing.T) {
	vm := start(t, Config{Listen: "127.0.0.1:0", Self: "a", Plain: true})
	newBench(t, []*VM{vm}, 0, Queue{Type: QueueFifo, Full: FullBlock, Capacity: 1 << 20, Converter: chain(t, 1<<20, codec.Step{Codec: codec.Base64})}, []int{-1}, []int{-1})
	run := func(program, queue string) string {
		address, token, err := vm.OpenSocket(queue, time.Minute)
		must(t, err)
		host, port, _ := net.SplitHostPort(address)
		out, err := exec.Command("python3", "-c", program, host, port, token).CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return string(out)
	}
	if got := run(bareEnqueue, "in0"); got != "OK 3\n" {
		t.Errorf("the giver got %q", got)
	}
	want := fmt.Sprintf("4\n0\n%d\n", base64.StdEncoding.EncodedLen(100000))
	if got := run(bareDequeue, "out0"); got != want {
		t.Errorf("the taker got %q, not %q", got, want)
	}
}
