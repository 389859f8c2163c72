package node

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// folders are the parts of a node's data folder.
type folders struct {
	root     string
	work     string // a folder for each held attempt
	records  string // a file for each running MVM process
	spool    string
	cache    string
	goCache  string
	builds   string // finished artifacts
	clients  string // the client library's files, for builds and programs
	identity string
	lock     string

	compilers string // what they turned out to be
}

func foldersOf(dir string) (folders, error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir) // /proc shows real paths
	}
	f := folders{
		root:     dir,
		work:     filepath.Join(dir, "work"),
		records:  filepath.Join(dir, "processes"),
		spool:    filepath.Join(dir, "spool"),
		cache:    filepath.Join(dir, "cache"),
		goCache:  filepath.Join(dir, "cache", "go"),
		builds:   filepath.Join(dir, "cache", "builds"),
		clients:  filepath.Join(dir, "clients"),
		identity: filepath.Join(dir, "node-id"),
		lock:     filepath.Join(dir, "node.lock"),

		compilers: filepath.Join(dir, "compilers.json"),
	}
	return f, err
}

// lockFolder keeps a second node out of the same data folder. The kernel opens
// the lock when this process ends, however it ends.
func lockFolder(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("another node runs in %s; stop it or choose another data folder", filepath.Dir(path))
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// identity is the node's id: wanted, or the one kept in the file, or a new one.
func identity(path, wanted string) (string, error) {
	kept, err := os.ReadFile(path)
	id := string(bytes.TrimSpace(kept))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if wanted == "" && id != "" {
		return id, nil
	}
	if wanted == "" {
		wanted = "node-" + random(6)
	}
	if wanted == id {
		return id, nil
	}
	return wanted, writeFile(path, []byte(wanted+"\n"), true)
}

// random is n random bytes in hexadecimal.
func random(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// record says which process serves an attempt, so that the next life of the
// node can find it. A pid alone may have been given to another process since:
// the start time and the boot tell.
type record struct {
	PID     int
	Started string // field 22 of /proc/PID/stat, in clock ticks since boot
	Boot    string
	Work    string
}

func writeRecord(path string, pid int, work string) error {
	started, err := startTime(pid)
	if err != nil {
		return fmt.Errorf("record MVM process %d: %w", pid, err)
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	text, err := json.Marshal(record{pid, started, boot, work})
	if err != nil {
		return err
	}
	return writeFile(path, text, false)
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return string(bytes.TrimSpace(id)), err
}

// startTime is when a process started, as /proc says it.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return "", err
	}
	// The name in brackets may hold anything, also brackets.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	return fields[19], nil
}

// alive tells whether the very process of the record still runs.
func (r record) alive() bool {
	boot, err := bootID()
	if err != nil || boot != r.Boot {
		return false
	}
	started, err := startTime(r.PID)
	return err == nil && started == r.Started
}

// sweep ends and removes all that an earlier life of the node left: MVM
// processes, what they started, and work folders. Reports stay in the spool,
// builds in the cache. It must run before the node registers: the grid takes
// the new incarnation as proof that the old one's attempts are over.
func sweep(f folders, l launcher, grace time.Duration, log *logrus.Entry) error {
	names, err := filepath.Glob(filepath.Join(f.records, "*"))
	if err != nil {
		return err
	}
	for _, name := range names {
		var r record
		text, err := os.ReadFile(name)
		if err == nil {
			err = json.Unmarshal(text, &r)
		}
		if err != nil { // cut short by a crash: the look through /proc below finds its process
			log.WithError(err).WithField("file", name).Warn("a record of an MVM process cannot be read")
		} else if r.alive() {
			log.WithField("pid", r.PID).Warn("ending an MVM process of this node's earlier life")
			if err := r.kill(grace); err != nil {
				return err
			}
		}
		if err := os.Remove(name); err != nil {
			return err
		}
	}
	marked, err := l.Sweep()
	if err != nil {
		return err
	}
	under, err := killUnder(f.work)
	if err != nil {
		return err
	}
	if marked+under > 0 {
		log.WithField("processes", marked+under).Warn("ended processes of this node's earlier life")
	}
	// A file that cannot be removed (an immutable one, say) must not keep the
	// machine out of the grid: attempts work in folders of new names.
	if err := removeTree(f.work); err != nil {
		log.WithError(err).Error("files of this node's earlier life stay: remove them by hand")
	}
	for _, dir := range []string{f.work, f.records} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return os.MkdirAll(f.goCache, 0o700)
}

// kill waits for the process, which read the end of its control socket when
// the node died and cleans up by itself, and ends it after grace.
func (r record) kill(grace time.Duration) error {
	fd, err := unix.PidfdOpen(r.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end MVM process %d of an earlier life: %w", r.PID, err)
	}
	defer unix.Close(fd)
	if !r.alive() { // the pidfd is sure now, whatever happens to the pid
		return nil
	}
	if gone, err := waitPidfd(fd, grace); gone || err != nil {
		return err
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end MVM process %d of an earlier life: %w", r.PID, err)
	}
	gone, err := waitPidfd(fd, 10*time.Second)
	if err == nil && !gone {
		err = fmt.Errorf("MVM process %d of an earlier life does not die; this node may not join before it is gone", r.PID)
	}
	return err
}

func waitPidfd(fd int, d time.Duration) (gone bool, err error) {
	deadline := time.Now().Add(d)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// killUnder ends the processes whose working folder, root or program lies
// below dir, until there is none, and returns how many there were. It is for
// what escaped an MVM process that could not make a PID namespace.
func killUnder(dir string) (int, error) {
	killed := map[int]bool{}
	deadline := time.Now().Add(10 * time.Second)
	for {
		found, err := processesUnder(dir)
		if err != nil || len(found) == 0 {
			return len(killed), err
		}
		if time.Now().After(deadline) {
			return len(killed), fmt.Errorf("processes %v below %s do not die; this node may not join before they are gone", found, dir)
		}
		for _, pid := range found {
			killed[pid] = true
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return len(killed), fmt.Errorf("end process %d below %s: %w", pid, dir, err)
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func processesUnder(dir string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		for _, link := range []string{"cwd", "root", "exe"} {
			target, err := os.Readlink(filepath.Join("/proc", e.Name(), link))
			if err == nil && strings.HasPrefix(target, dir+string(filepath.Separator)) {
				found = append(found, pid)
				break
			}
		}
	}
	return found, nil
}

// removeTree removes a folder with all below it, also what a job made
// unwritable for itself.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	unlock(dir)
	return os.RemoveAll(dir)
}

// unlock lets the owner into a folder and all folders below it.
func unlock(dir string) {
	_ = os.Chmod(dir, 0o700) // what cannot be changed shows when it is removed
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			unlock(filepath.Join(dir, e.Name()))
		}
	}
}
