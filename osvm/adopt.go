package osvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// adoptLimit is how long a QEMU that an earlier node left may take until it has
// answered; that one greets within a millisecond, when nothing is wrong.
const adoptLimit = 20 * time.Second

// takeOver adopts each machine that an earlier Host left, all at once, and removes
// what is left of those that it cannot adopt.
func (h *Host) takeOver(ctx context.Context) error {
	entries, err := os.ReadDir(h.machines)
	if err != nil {
		return err
	}
	failed := make([]error, len(entries))
	var group sync.WaitGroup
	for i, e := range entries {
		group.Go(func() {
			folder := filepath.Join(h.machines, e.Name())
			m, err := adopt(ctx, folder)
			if err == nil {
				h.keep(m)
				h.config.Log.Infof("VM %s, which an earlier node left, goes on: it is %s", m.ID, m.State())
				return
			}
			h.config.Log.Warnf("VM %s, which an earlier node left, is removed: %v", e.Name(), err)
			failed[i] = os.RemoveAll(folder)
		})
	}
	group.Wait()
	return errors.Join(failed...)
}

// adopt takes over the machine of a folder, or ends its process.
func adopt(ctx context.Context, folder string) (*Machine, error) {
	r, err := readRecord(folder)
	if err != nil {
		return nil, fmt.Errorf("its record: %w", err)
	}
	begun := r.PID != 0
	if !begun { // the node was killed while it started QEMU
		r.PID, r.StartTime = findProcess(r.UUID)
	}
	p, err := takeProcess(r)
	if err != nil {
		return nil, errors.Join(err, removeGroups(r.UUID, r.Groups))
	}
	m := newMachine(r.Spec, folder)
	m.uuid, m.isolation, m.groups, m.process = r.UUID, r.Isolation, r.Groups, p
	if r.Published != nil {
		m.published = r.Published
	}
	go m.watch()
	go m.boundLog()
	ctx, cancel := context.WithTimeout(ctx, adoptLimit)
	defer cancel()
	switch {
	case isTemplate(m.ID):
		err = errors.New("it was to become a template")
	case !begun:
		err = errors.New("the node ended while it was being made")
	default:
		err = m.reconnect(ctx)
	}
	if err != nil {
		m.kill()
		m.letGo()
		return nil, errors.Join(err, removeGroups(r.UUID, r.Groups))
	}
	return m, nil
}

// reconnect finds out what a machine is doing.
func (m *Machine) reconnect(ctx context.Context) error {
	if err := m.connect(ctx); err != nil {
		return err
	}
	var status struct{ Status string }
	if err := m.monitor.Execute(ctx, "query-status", nil, &status); err != nil {
		return err
	}
	if status.Status == stallStatus {
		m.stall()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch status.Status {
	case "running", stallStatus:
		m.state = Running
	case "prelaunch":
		m.state = Created
	case "paused", "postmigrate":
		m.state = Suspended
	default: // it was being moved, or is broken
		return fmt.Errorf("QEMU says that it is %q", status.Status)
	}
	return nil
}

func readRecord(folder string) (record, error) {
	var r record
	text, err := os.ReadFile(filepath.Join(folder, recordName))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && (r.ID != filepath.Base(folder) || r.UUID == "") {
		err = errors.New("it is not of this machine")
	}
	return r, err
}

// takeProcess takes hold of a recorded process: by its number, verified once it
// cannot become another one's any more.
func takeProcess(r record) (*process, error) {
	if r.PID <= 0 {
		return nil, errors.New("it was never started")
	}
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("QEMU, process %d, is gone: %w", r.PID, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	start, err := startTime(r.PID)
	if err == nil && (start != r.StartTime || !isMachine(r.PID, r.UUID)) {
		err = errors.New("that number is another process's now")
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("QEMU, process %d, is gone: %w", r.PID, err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	return &process{
		pid: r.PID, start: start,
		kill: func() {
			_ = raw.Control(func(fd uintptr) { _ = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
		},
		wait: func() error { // as no parent of its we never learn how it ended
			defer file.Close()
			return raw.Read(func(fd uintptr) bool {
				polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				n, _ := unix.Poll(polled, 0)
				return n > 0
			})
		},
	}, nil
}

// isMachine says whether a process is the QEMU of a machine, by its arguments.
func isMachine(pid int, uuid string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(text), "\x00-uuid\x00"+uuid+"\x00")
}

// findProcess looks for the QEMU of a machine among all processes.
func findProcess(uuid string) (pid int, start uint64) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil || !isMachine(number, uuid) {
			continue
		}
		if start, err := startTime(number); err == nil {
			return number, start
		}
	}
	return 0, 0
}
