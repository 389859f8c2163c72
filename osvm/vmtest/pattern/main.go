// Command pattern is PID 1 of an image for tests: the agent, and beside it a
// program that writes and verifies patterns over its memory, and over its disk if it
// has one, for ever. It tells on the console how many pages it has verified, how many
// of all were not as it had left them, and how many blocks of the disk it has verified;
// a number that it reads there is how many microseconds it rests after each.
package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm/guest"
)

const (
	pageSize = 4096
	pages    = 16 << 20 / pageSize
	writers  = 2
	telling  = 50 * time.Millisecond

	disk      = "/dev/vda"
	blocks    = 16 << 20 / pageSize // of the disk; the second half is only read
	fresh     = 0x5a                // what every byte of it is at first
	diskLooks = 200                 // its driver is loaded beside us
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "verify" {
		verify()
		return
	}
	if os.Getpid() == 1 {
		begin()
	}
	fmt.Println("agent:", guest.Run(guest.Config{}))
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// begin starts this program again, as one that only computes. The kernel has
// opened no console for us: there was no file for one.
func begin() {
	_ = unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, "")
	console, err := os.OpenFile("/dev/ttyS0", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	child := exec.Command("/pattern", "verify")
	child.Stdin, child.Stdout, child.Stderr = console, console, console
	if err := child.Start(); err != nil {
		fmt.Fprintln(console, "pattern: it does not begin:", err)
	}
}

func verify() {
	var rest, verified, bad, onDisk atomic.Int64
	memory, err := unix.Mmap(-1, 0, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		fmt.Println("pattern:", err)
		return
	}
	for w := range writers {
		go write(memory, w, &rest, &verified, &bad)
	}
	go writeDisk(&rest, &onDisk, &bad)
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			if microseconds, err := strconv.ParseInt(strings.TrimSpace(lines.Text()), 10, 64); err == nil {
				rest.Store(microseconds)
			}
		}
	}()
	for {
		time.Sleep(telling)
		fmt.Printf("pattern verified %d bad %d disk %d\n", verified.Load(), bad.Load(), onDisk.Load())
	}
}

// write goes over its share of the pages in an order of its own. What a page must
// have is known from a count beside it, so that a page that has fallen back to what
// it was is found as well as one that is damaged.
func write(memory []byte, share int, rest, verified, bad *atomic.Int64) {
	own := pages / writers
	counts := make([]uint64, own)
	random := uint64(share)*0x9e3779b97f4a7c15 + 1
	for {
		random = next(random)
		i := int(random>>33) % own
		number := share*own + i
		page := memory[number*pageSize : (number+1)*pageSize]
		if counts[i] != 0 && !holds(page, number, counts[i]) {
			bad.Add(1)
		}
		counts[i]++
		fill(page, number, counts[i])
		verified.Add(1)
		if pause := rest.Load(); pause > 0 {
			time.Sleep(time.Duration(pause) * time.Microsecond)
		}
	}
}

// writeDisk does the same with the blocks of the disk, past the kernel's cache.
func writeDisk(rest, verified, bad *atomic.Int64) {
	var file *os.File
	for look := 0; file == nil; look++ {
		var err error
		if file, err = os.OpenFile(disk, os.O_RDWR|unix.O_DIRECT, 0); err != nil && look == diskLooks {
			return
		}
		time.Sleep(telling)
	}
	block, err := unix.Mmap(-1, 0, pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	if err != nil {
		fmt.Println("pattern:", err)
		return
	}
	counts := make([]uint64, blocks)
	random := uint64(0x9e3779b97f4a7c15)
	for {
		random = next(random)
		number := int(random>>33) % blocks
		_, err := file.ReadAt(block, int64(number)*pageSize)
		as := holds(block, pages+number, counts[number])
		if counts[number] == 0 {
			as = bytes.Count(block, []byte{fresh}) == pageSize
		}
		if err == nil && number < blocks/2 {
			counts[number]++
			fill(block, pages+number, counts[number])
			_, err = file.WriteAt(block, int64(number)*pageSize)
		}
		if err != nil {
			fmt.Println("pattern:", err)
		}
		if err != nil || !as {
			bad.Add(1)
		}
		verified.Add(1)
		if pause := rest.Load(); pause > 0 {
			time.Sleep(time.Duration(pause) * time.Microsecond)
		}
	}
}

func seed(number int, count uint64) uint64 { return uint64(number)<<40 ^ count<<8 ^ 0xa5 }

func fill(page []byte, number int, count uint64) {
	word := seed(number, count)
	for at := 0; at < pageSize; at += 8 {
		word = next(word)
		binary.LittleEndian.PutUint64(page[at:], word)
	}
}

func holds(page []byte, number int, count uint64) bool {
	word := seed(number, count)
	for at := 0; at < pageSize; at += 8 {
		if word = next(word); binary.LittleEndian.Uint64(page[at:]) != word {
			return false
		}
	}
	return true
}

// next is Marsaglia's xorshift.
func next(word uint64) uint64 {
	word ^= word << 13
	word ^= word >> 7
	return word ^ word<<17
}
