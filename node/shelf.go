package node

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// shelf keeps work folders that their attempts have left just as they got them,
// for other attempts. Most programs leave nothing in their folder, and to make
// and remove folders costs ext4, which looks through all inodes that were freed
// in the last minute, more than all else that the node does for a small job.
type shelf struct {
	dir  string
	most int // folders

	mu     sync.Mutex // guards what follows
	spares []string   // paths
	made   int
}

// sketch tells whether a work folder, which holds the folder of process 0 and
// nothing else, was changed: every change of a folder moves its change time,
// which no program can set.
type sketch [2]unix.Timespec

// openShelf makes an empty one.
func openShelf(dir string, most int) (*shelf, error) {
	if err := removeTree(dir); err != nil {
		return nil, err
	}
	return &shelf{dir: dir, most: most}, os.MkdirAll(dir, 0o700)
}

// take puts an empty work folder at a path where nothing is. It may hold an
// empty folder for process 0 already.
func (s *shelf) take(path string) error {
	s.mu.Lock()
	spare := ""
	if n := len(s.spares); n > 0 {
		spare, s.spares = s.spares[n-1], s.spares[:n-1]
	}
	s.mu.Unlock()
	if spare != "" && os.Rename(spare, path) == nil {
		return nil
	}
	return os.MkdirAll(path, 0o700)
}

// sketchOf remembers how a work folder looks before its programs start.
func sketchOf(work string) (sketch, error) {
	var k sketch
	for i, dir := range []string{work, processFolder(work, 0)} {
		var s unix.Stat_t
		if err := unix.Lstat(dir, &s); err != nil {
			return k, err
		}
		k[i] = s.Ctim
	}
	return k, nil
}

// put takes a work folder if it is as it was sketched. Only for folders that no
// process can have open any more.
func (s *shelf) put(work string, was sketch) bool {
	now, err := sketchOf(work)
	if err != nil || now != was || was == (sketch{}) {
		return false
	}
	// Times have grains; a change at once after the sketch may be hidden in one.
	process := processFolder(work, 0)
	if !asNew(work, filepath.Base(process)) || !asNew(process) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.spares) >= s.most {
		return false
	}
	s.made++
	spare := filepath.Join(s.dir, fmt.Sprint(s.made))
	if os.Rename(work, spare) != nil {
		return false
	}
	s.spares = append(s.spares, spare)
	return true
}

// asNew tells whether a folder has the mode and the attributes of a new one,
// and holds nothing but names.
func asNew(dir string, names ...string) bool {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	f := os.NewFile(uintptr(fd), dir)
	defer f.Close()
	var s unix.Stat_t
	if unix.Fstat(fd, &s) != nil || s.Mode != unix.S_IFDIR|0o700 || int(s.Uid) != os.Geteuid() {
		return false
	}
	if n, err := unix.Flistxattr(fd, nil); err != nil || n > 0 {
		return false
	}
	found, err := f.Readdirnames(len(names) + 1)
	if len(names) == 0 {
		return len(found) == 0 && err != nil // io.EOF
	}
	return len(found) == len(names) && found[0] == names[0]
}
