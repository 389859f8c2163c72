package node

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
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
	spare    string // folders for the next ones
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
		spare:    filepath.Join(dir, "spare"),
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

// sweep ends and removes all that an earlier life of the node left: MVM
// processes, what they started, and work folders. Reports stay in the spool,
// builds in the cache. It must run before the node registers: the grid takes
// the new incarnation as proof that the old one's attempts are over.
func sweep(f folders, l launcher, grace time.Duration, log *logrus.Entry) error {
	marked, err := l.Sweep(grace)
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
	if err := os.MkdirAll(f.work, 0o700); err != nil {
		return err
	}
	return os.MkdirAll(f.goCache, 0o700)
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
