package osvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"
)

// shadow is what the target has been sent of a memory that the guest writes: it
// begins as the target's does, all zeros. A page is sent when it differs, and what
// is sent is the shadow's own copy of it, so that both always have the same,
// whatever the guest writes meanwhile; a round over a guest that stands still then
// leaves both with what the guest has.
//
// That the guest's accesses are compared, and not tracked, is because QEMU 7.2
// loses track of them under TCG.
type shadow struct {
	memory *memory
	copied []byte
	wire   *wire
	rounds int
}

func newShadow(memory *memory, w *wire) (*shadow, error) {
	copied, err := unix.Mmap(-1, 0, memory.size(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE)
	return &shadow{memory: memory, copied: copied, wire: w}, err
}

func (s *shadow) close() { _ = unix.Munmap(s.copied) }

// round sends what differs and says how many pages that were. Several workers
// look at memory when the guest waits for them.
func (s *shadow) round(workers int) (pages int, err error) {
	sent, intos := make([]int, workers), make([]byte, workers*chunkSize)
	err = inParallel(workers, (s.memory.size()+chunkSize-1)/chunkSize, func(worker, i int) error {
		n, err := s.chunk(i*chunkSize, intos[worker*chunkSize:(worker+1)*chunkSize])
		sent[worker] += n
		return err
	})
	s.rounds++
	for _, n := range sent {
		pages += n
	}
	return pages, err
}

// inParallel does something with each of so many things, by workers each of which
// takes its share, in order, until it fails; also if that is because memory is mapped
// that its file cannot give.
func inParallel(workers, things int, do func(worker, i int) error) error {
	var group sync.WaitGroup
	failed := make([]error, workers)
	for worker := range workers {
		group.Go(func() {
			debug.SetPanicOnFault(true)
			defer func() {
				if fault := recover(); fault != nil {
					failed[worker] = fmt.Errorf("the guest's memory or its disk cannot be read: %v", fault)
				}
			}()
			for i := worker * things / workers; i < (worker+1)*things/workers && failed[worker] == nil; i++ {
				failed[worker] = do(worker, i)
			}
		})
	}
	group.Wait()
	return errors.Join(failed...)
}

// chunk sends the pages of a chunk that differ, in as few frames as that gives.
func (s *shadow) chunk(at int, into []byte) (sent int, err error) {
	content, own, err := s.memory.look(at, into)
	if err != nil {
		return 0, err
	}
	if s.rounds == 0 {
		own = all
	}
	if own == 0 {
		return 0, nil
	}
	copied := s.copied[at : at+len(content)]
	var kinds [chunkSize / pageSize]byte // of each page what frame it is in; 0 is none
	for i := range len(content) / pageSize {
		from, to := i*pageSize, (i+1)*pageSize
		if own>>i&1 == 0 || bytes.Equal(content[from:to], copied[from:to]) {
			continue
		}
		copy(copied[from:to], content[from:to])
		if kinds[i] = framePage; zero(copied[from:to]) {
			kinds[i] = frameZero
		}
		sent++
	}
	if sent == 0 {
		return 0, nil
	}
	for i := 0; i < len(kinds) && err == nil; {
		n := i + 1
		for n < len(kinds) && kinds[n] == kinds[i] {
			n++
		}
		first := binary.BigEndian.AppendUint32(nil, uint32(at/pageSize+i))
		switch kinds[i] {
		case framePage:
			err = s.wire.put(framePage, first, copied[i*pageSize:n*pageSize])
		case frameZero:
			err = s.wire.put(frameZero, binary.BigEndian.AppendUint32(first, uint32(n-i)))
		}
		i = n
	}
	return sent, err
}
