package osvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of /dev/kvm and sizes of what they carry (Linux, include/uapi/linux/
// kvm.h and arch/x86/include/uapi/asm/kvm.h; Documentation/virt/kvm/api.rst).
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
	kvmGetRunSize    = 0xae04
	kvmCreateVCPU    = 0xae41
	kvmSetMemory     = 0x4020ae46
	kvmSetTSSAddress = 0xae47
	kvmRun           = 0xae80
	kvmSetRegisters  = 0x4090ae82
	kvmGetSegments   = 0x8138ae83
	kvmSetSegments   = 0x4138ae84

	kvmVersion       = 12
	kvmRegistersSize = 0x90
	kvmSegmentsSize  = 0x138
	ripAt, rflagsAt  = 128, 136 // in the registers
	immediateExitAt  = 1        // in what the kernel and we share
	exitReasonAt     = 8
	exitHalt         = 5
)

const (
	guestAt = 0x1000 // where the probe's code lies, in the guest's memory
	tssAt   = 0xfffbd000
)

// loopCode counts down from loopRounds in real mode, and halts:
// mov ecx, loopRounds; dec ecx; jnz back; hlt.
func loopCode() []byte {
	code := []byte{0x66, 0xb9, 0, 0, 0, 0, 0x66, 0x49, 0x75, 0xfc, 0xf4}
	binary.LittleEndian.PutUint32(code[2:], loopRounds)
	return code
}

// timeKVM runs a loop in a guest of KVM's and says what a round of it took; the
// error says what cannot be done.
func timeKVM() (round time.Duration, err error) {
	device, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer device.Close()
	call := func(fd, request, argument uintptr) (int, error) {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, request, argument)
		if errno != 0 {
			return 0, fmt.Errorf("KVM's request %#x: %w", request, errno)
		}
		return int(n), nil
	}
	if version, err := call(device.Fd(), kvmGetAPIVersion, 0); err != nil || version != kvmVersion {
		return 0, errors.Join(fmt.Errorf("KVM's version is %d, expected %d", version, kvmVersion), err)
	}
	machine, err := call(device.Fd(), kvmCreateVM, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(machine)
	if _, err := call(uintptr(machine), kvmSetTSSAddress, tssAt); err != nil { // Intel's processors need it in real mode
		return 0, err
	}
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(memory)
	copy(memory, loopCode())
	region := struct {
		slot, flags         uint32
		guest, size, memory uint64
	}{guest: guestAt, size: uint64(len(memory)), memory: uint64(uintptr(unsafe.Pointer(&memory[0])))}
	if _, err := call(uintptr(machine), kvmSetMemory, uintptr(unsafe.Pointer(&region))); err != nil {
		return 0, err
	}
	processor, err := call(uintptr(machine), kvmCreateVCPU, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(processor)
	size, err := call(device.Fd(), kvmGetRunSize, 0)
	if err != nil {
		return 0, err
	}
	shared, err := unix.Mmap(processor, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return 0, err
	}
	defer unix.Munmap(shared)

	var segments [kvmSegmentsSize]byte
	if _, err := call(uintptr(processor), kvmGetSegments, uintptr(unsafe.Pointer(&segments))); err != nil {
		return 0, err
	}
	clear(segments[:8])    // the code segment's base
	clear(segments[12:14]) // and selector
	if _, err := call(uintptr(processor), kvmSetSegments, uintptr(unsafe.Pointer(&segments))); err != nil {
		return 0, err
	}
	var registers [kvmRegistersSize]byte
	binary.LittleEndian.PutUint64(registers[ripAt:], guestAt)
	binary.LittleEndian.PutUint64(registers[rflagsAt:], 2)
	if _, err := call(uintptr(processor), kvmSetRegisters, uintptr(unsafe.Pointer(&registers))); err != nil {
		return 0, err
	}

	// A guest that does not come to its end is called back: the flag has the
	// kernel leave it at the next signal, and SIGURG is one that Go sends itself.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	process, thread := os.Getpid(), unix.Gettid()
	over := make(chan struct{})
	called := make(chan struct{})
	go func() {
		defer close(called)
		for timer := time.NewTimer(loopLimit + time.Millisecond); ; timer.Reset(loopLimit) {
			select {
			case <-over:
				return
			case <-timer.C:
				shared[immediateExitAt] = 1
				_ = unix.Tgkill(process, thread, unix.SIGURG)
			}
		}
	}()
	// Only time on a processor counts: the machine may be busy with other things.
	used := func() time.Duration {
		var now unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &now)
		return time.Duration(now.Nano())
	}
	begin, began := time.Now(), used()
	var took time.Duration
	for {
		_, err = call(uintptr(processor), kvmRun, 0)
		took = used() - began
		if !errors.Is(err, unix.EINTR) || took > loopLimit || time.Since(begin) > 200*loopLimit {
			break
		}
		shared[immediateExitAt] = 0
	}
	close(over)
	<-called
	if errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("%w: %d rounds of a loop take more than %v", ErrSlow, loopRounds, took)
	}
	if err != nil {
		return 0, fmt.Errorf("run a guest: %w", err)
	}
	if reason := binary.LittleEndian.Uint32(shared[exitReasonAt:]); reason != exitHalt {
		return 0, fmt.Errorf("a guest of KVM ends for reason %d, expected %d (halted)", reason, exitHalt)
	}
	return took / loopRounds, nil
}
