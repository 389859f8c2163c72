package node

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Clock tells durations. Leases are durations only, and they run on while a
// machine is suspended: a node that slept must not believe that it still has
// what it had.
type Clock interface {
	// Now is the time since some fixed instant.
	Now() time.Duration
	// Alarm returns an alarm that rings on its channel.
	Alarm() (Alarm, error)
}

// Alarm rings at the instant that was set last.
type Alarm interface {
	// Set moves the instant; ok false silences it.
	Set(at time.Duration, ok bool)
	Rings() <-chan struct{}
	Close()
}

// bootClock is CLOCK_BOOTTIME: monotonic, and counting while suspended.
type bootClock struct{}

func (bootClock) Now() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic("node: CLOCK_BOOTTIME cannot be read: " + err.Error()) // Linux has it since 2.6.39
	}
	return time.Duration(t.Nano())
}

// bootAlarm is a timerfd: Go's own timers stand still while suspended.
type bootAlarm struct {
	file  *os.File
	rings chan struct{}

	mu  sync.Mutex // guards at
	at  time.Duration
	set bool
}

func (bootClock) Alarm() (Alarm, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make a timer: %w", err)
	}
	a := &bootAlarm{file: os.NewFile(uintptr(fd), "timerfd"), rings: make(chan struct{}, 1)}
	go a.run()
	return a, nil
}

func (a *bootAlarm) run() {
	var count [8]byte
	for {
		if _, err := a.file.Read(count[:]); err != nil {
			if errors.Is(err, unix.ECANCELED) {
				continue
			}
			return // closed
		}
		if binary.NativeEndian.Uint64(count[:]) > 0 {
			select {
			case a.rings <- struct{}{}:
			default:
			}
		}
	}
}

func (a *bootAlarm) Set(at time.Duration, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.at == at && a.set == ok {
		return
	}
	a.at, a.set = at, ok
	var spec unix.ItimerSpec
	if ok {
		// The zero instant would silence the timer.
		spec.Value = unix.NsecToTimespec(int64(max(at, 1)))
	}
	conn, err := a.file.SyscallConn()
	if err != nil {
		return
	}
	_ = conn.Control(func(fd uintptr) { // fails only once closed
		_ = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil)
	})
}

func (a *bootAlarm) Rings() <-chan struct{} { return a.rings }

func (a *bootAlarm) Close() { a.file.Close() }
