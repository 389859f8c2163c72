package mvm

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// workshops are where processors have their instructions built: by the node,
// which has the cache, so that one is built once a node however many processors
// have it.
type workshops struct {
	tell func(Event)

	mu      sync.Mutex // guards what follows
	last    uint64
	waiting map[uint64]chan *Built
}

// open gives the processor's end of a socket to its workshop; the caller closes
// it. The workshop closes when the processor's end does.
func (w *workshops) open(process int) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("make the socket to its workshop: %w", err)
	}
	if err := unix.SetNonblock(pair[0], true); err != nil { // so that Go's poller waits for it
		unix.Close(pair[0])
		unix.Close(pair[1])
		return 0, err
	}
	ours := os.NewFile(uintptr(pair[0]), "workshop")
	go func() {
		defer ours.Close()
		w.serve(process, newWire(ours))
	}()
	return pair[1], nil
}

// serve has one instruction after the other built. What is no instruction, or
// too long for one, closes the workshop.
func (w *workshops) serve(process int, wire *wire) {
	for {
		var i Instruction
		if wire.receive(&i) != nil || len(i.Source) > instructionMax {
			return
		}
		answer := make(chan *Built, 1)
		w.mu.Lock()
		w.last++
		i.Process, i.ID = process, w.last
		w.waiting[i.ID] = answer
		w.mu.Unlock()
		w.tell(Event{Build: &i})
		if wire.send(<-answer) != nil {
			return
		}
	}
}

// answer passes on what came of an instruction.
func (w *workshops) answer(b *Built) {
	w.mu.Lock()
	answer := w.waiting[b.ID]
	delete(w.waiting, b.ID)
	w.mu.Unlock()
	if answer != nil {
		answer <- b
	}
}
