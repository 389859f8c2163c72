package node

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mvm/node/build"
	"mvm/node/mvm"
	"mvm/services/image"
	"mvm/wsdl"
)

const (
	// inlineMax is the size up to which a result travels inside the report.
	inlineMax = 16 << 10
	// inlineTotal bounds what travels so of one process.
	inlineTotal = 1 << 20
	// outputMax bounds one output file: a file may say that it has any size
	// without taking any room.
	outputMax = 16 << 30
)

// processFolder is where a process runs, below its attempt's work folder.
func processFolder(work string, process int) string {
	return filepath.Join(work, fmt.Sprintf("process-%d", process))
}

// lay puts files into a new folder, as copies: a process owns its folder and
// must not reach the store.
func lay(images *image.Store, dir string, files []*wsdl.FileRef) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range files {
		if err := build.CheckName(f.Name); err != nil {
			return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, err.Error(), "give a relative path without '..'")
		}
		if err := layOne(images, root, filepath.FromSlash(f.Name), f.Digest); err != nil {
			return fmt.Errorf("lay the file %s: %w", f.Name, err)
		}
	}
	return nil
}

func layOne(images *image.Store, root *os.Root, name, digest string) error {
	if dir := filepath.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	from, _, err := images.Open(digest)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if closing := to.Close(); err == nil {
		err = closing
	}
	return err
}

// openOutput opens a file that a process left. Nothing on the way may be a
// symbolic link, and it must be a regular file: otherwise a job could have the
// node read what is not the job's.
func openOutput(dir, name string) (*os.File, error) {
	if !filepath.IsLocal(filepath.FromSlash(name)) {
		return nil, errors.New("it is not below the process's folder")
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	steps := strings.Split(filepath.ToSlash(filepath.Clean(name)), "/")
	for i, step := range steps {
		flags := unix.O_PATH | unix.O_DIRECTORY
		if i == len(steps)-1 {
			// Not blocking: a fifo would wait for a writer.
			flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY
		}
		next, err := unix.Openat(at, step, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(at)
		switch {
		case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO):
			return nil, errNotRegular
		case errors.Is(err, unix.ENOTDIR):
			return nil, fmt.Errorf("%s is no folder of the process's own", strings.Join(steps[:i+1], "/"))
		case err != nil:
			return nil, err
		}
		at = next
	}
	f := os.NewFile(uintptr(at), name)
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errNotRegular
	}
	return f, nil
}

var errNotRegular = errors.New("it is no regular file")

// fits is the size of an output, if a copy of it leaves room on the disk for
// others.
func fits(work string, f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	if size > outputMax {
		return 0, fmt.Errorf("it has %d bytes, expected at most %d", size, int64(outputMax))
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(work, &disk); err != nil {
		return 0, err
	}
	if room := int64(disk.Bavail) * disk.Bsize / 10 * 9; size > room {
		return 0, fmt.Errorf("it has %d bytes, and may take %d of its node's disk: %w", size, room, unix.ENOSPC)
	}
	return size, nil
}

// keep stores a result and describes it: one of up to inline bytes travels
// inside the report.
func keep(ctx context.Context, images *image.Store, name string, from io.Reader, inline int) (*wsdl.File, error) {
	head := make([]byte, inline+1)
	n, err := io.ReadFull(from, head)
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	head = head[:n]
	if n <= inline {
		return &wsdl.File{Name: name, Digest: image.Digest(sha256.Sum256(head)), Size: wsdl.Of(int64(n)), Data: wsdl.Of(wsdl.Binary(head))}, nil
	}
	digest, size, err := images.Put(ctx, io.MultiReader(bytes.NewReader(head), from))
	if err != nil {
		return nil, err
	}
	return &wsdl.File{Name: name, Digest: digest, Size: wsdl.Of(size)}, nil
}

// streamReader reads what is kept of a stream from its start. It ends where
// nothing more is there, also when the stream was never completed.
type streamReader struct {
	work    string
	process int
	name    string
	offset  int64
	dropped int64
	rest    []byte
}

func (s *streamReader) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		data, next, _, dropped, err := mvm.ReadStream(s.work, s.process, s.name, s.offset, 256<<10)
		if err != nil {
			return 0, err
		}
		s.dropped += dropped
		if next == s.offset {
			return 0, io.EOF
		}
		s.offset, s.rest = next, data
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// collect gathers an ended process's streams and outputs. What cannot be had of
// the streams is named in trouble; what is missing without being optional, or
// cannot be kept, in missing. full is why something could not be kept that could
// be with more room on the disk.
func collect(ctx context.Context, images *image.Store, work string, spec *wsdl.ProcessSpec) (files []*wsdl.File, missing, trouble []string, full error) {
	id := int(wsdl.Or(spec.Id, 0))
	left := inlineTotal
	take := func(name string, from io.Reader) (*wsdl.File, error) {
		f, err := keep(ctx, images, name, from, min(left, inlineMax))
		if err == nil && f.Data != nil {
			left -= len(*f.Data)
		}
		if image.IsFull(err) {
			full = err
		}
		return f, err
	}
	for _, name := range []string{"stdout", "stderr"} {
		s := &streamReader{work: work, process: id, name: name}
		f, err := take(name, s)
		if image.IsFull(err) {
			missing = append(missing, fmt.Sprintf("its %s cannot be kept: %v", name, err))
			continue
		}
		if err != nil {
			trouble = append(trouble, fmt.Sprintf("its %s cannot be kept: %v", name, err))
			continue
		}
		f.Dropped = s.dropped
		files = append(files, f)
	}
	for _, o := range spec.Output {
		if o.Process != nil && string(*o.Process) != strconv.Itoa(int(wsdl.Or(spec.Index, 0))) {
			continue
		}
		from, err := openOutput(processFolder(work, id), o.Name)
		if errors.Is(err, fs.ErrNotExist) {
			if !o.Optional {
				missing = append(missing, fmt.Sprintf("it left no output %s", o.Name))
			}
			continue
		}
		var f *wsdl.File
		if err == nil {
			var size int64
			if size, err = fits(work, from); err == nil {
				// Another process of the job may go on writing to it.
				f, err = take(o.Name, io.LimitReader(from, size))
			} else if errors.Is(err, unix.ENOSPC) {
				full = err
			}
			from.Close()
		}
		if err != nil {
			missing = append(missing, fmt.Sprintf("its output %s cannot be kept: %v", o.Name, err))
			continue
		}
		files = append(files, f)
	}
	return files, missing, trouble, full
}
