package node

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mvm/services/image"
	"mvm/wsdl"
)

// small mounts a file system of so many KiB on a folder.
func small(t *testing.T, dir string, kibibytes int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", kibibytes)); err != nil {
		t.Skipf("SKIPPED: a full disk needs a small file system, which this user cannot mount: %v; run as root", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// onSmallDisk starts a node whose data, but for the blobs, is on a small disk.
func (g *grid) onSmallDisk(t *testing.T, kibibytes int) *member {
	t.Helper()
	dir, blobs := t.TempDir(), t.TempDir()
	small(t, dir, kibibytes)
	return g.with(dir, quickParts(), func(c *Config) {
		var err error
		if c.Images, err = image.New(image.Config{Dir: blobs}); err != nil {
			t.Fatal(err)
		}
	})
}

// fill leaves so many KiB free on a folder's file system, and gives them back
// when free is called.
func fill(t *testing.T, dir string, kibibytes int64) (free func()) {
	t.Helper()
	d, err := diskOf(dir)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, "filler")
	if err := os.WriteFile(name, make([]byte, d.free-kibibytes<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
}

// A full work folder refuses attempts in words, for another time or place, and
// fails no source and no job for good.
func TestWorkFolderFull(t *testing.T) {
	g := newGrid(t)
	m := g.onSmallDisk(t, 40<<10)
	refused := func(err error, words ...string) {
		t.Helper()
		fault := &wsdl.Fault{}
		if !errors.As(err, &fault) || code(err) != "busy" || fault.Advice == "" {
			t.Fatalf("it is %s, not busy: %v\n%s", code(err), err, fault.Output)
		}
		for _, w := range append(words, m.folders.work, m.id) {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q is not in: %v", w, err)
			}
		}
	}
	free := fill(t, m.folders.root, 1000)
	_, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "exit 0"))
	refused(err, "1000 KiB of 40 MiB are free", "2048 KiB must stay free")
	free()
	// There is room to begin with, and none for the compiler.
	_, err = m.awaken("k", 1, 1, m.source("big", wsdl.LanguageC, "__asm__(\".data; .fill 60000000, 1, 65; .text\");\nint main(void) { return 0; }\n"))
	refused(err, "build source big", "of 40 MiB are free")
	// Nor for an input file.
	if _, err := m.awaken("l", 1, 1, m.source("main", wsdl.LanguageShell, "exit 0")); err != nil {
		t.Fatal(err)
	}
	input := spec(0, "main")
	input.Input = []*wsdl.FileRef{{Name: "data", Digest: func() string {
		digest, _, err := m.images.Put(t.Context(), bytes.NewReader(make([]byte, 60<<20)))
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}()}}
	refused(m.instantiate("l", 1, input), "lay the file data")
	m.terminate("l", 1, 0)
	m.works()
	m.clean()
}

// A program that fills the disk ends before the disk is full; the others go on.
func TestAProgramThatFillsTheDisk(t *testing.T) {
	g := newGrid(t)
	m := g.onSmallDisk(t, 80<<10)
	m.run("k", "until [ -e stop ]; do sleep 0.05; done; dd if=/dev/zero of=small bs=64k count=16 && echo well")
	m.run("j", "dd if=/dev/zero of=big bs=64k count=1215; sleep 1000") // all but some 4 MiB
	eventually(t, "it is ended", func() bool { return strings.Contains(g.failures("j"), "nearly full") })
	f := g.failures("j")
	for _, words := range []string{m.id, "of 80 MiB are free in " + m.folders.work, "4096 KiB must stay free", "attempt j/1 takes most", "let it write less"} {
		if !strings.Contains(f, words) {
			t.Errorf("%q is not in: %s", words, f)
		}
	}
	eventually(t, "it is gone", func() bool { return !m.started("j") })
	stop, _ := filepath.Glob(filepath.Join(m.folders.work, "k.*", "process-0"))
	if len(stop) != 1 {
		t.Fatal(stop)
	}
	if err := os.WriteFile(filepath.Join(stop[0], "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other one ends", func() bool { s := g.status("k", 0); return s != nil && terminal(s) })
	if s := g.status("k", 0); wsdl.Or(s.ExitCode, -1) != 0 || g.text(s, "stdout") != "well\n" {
		t.Errorf("the other one: %+v", s)
	}
	m.terminate("k", 1, 0)
	m.terminate("j", 1, 0)
	m.clean()
}

// A disk that others have filled is no attempt's fault.
func TestADiskThatOthersFill(t *testing.T) {
	g := newGrid(t)
	m := g.onSmallDisk(t, 40<<10)
	m.run("j", "sleep 1; echo well")
	defer fill(t, m.folders.root, 100)()
	eventually(t, "it ends", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); wsdl.Or(s.ExitCode, -1) != 0 || g.text(s, "stdout") != "well\n" {
		t.Errorf("the process is %+v, and failed so: %s", s, g.failures("j"))
	}
	m.terminate("j", 1, 0)
}

// What a program printed and the disk would not take fails the attempt: it was
// its result.
func TestStreamsThatCannotBeKept(t *testing.T) {
	g := newGrid(t)
	m := g.onSmallDisk(t, 4<<10)
	m.run("j", "until [ -e go ]; do sleep 0.05; done; head -c 600000 /dev/zero")
	free := fill(t, m.folders.root, 300)
	folder, _ := filepath.Glob(filepath.Join(m.folders.work, "j.*", "process-0"))
	if len(folder) != 1 {
		t.Fatal(folder)
	}
	if err := os.WriteFile(filepath.Join(folder[0], "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it ends", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if f := g.failures("j"); !strings.Contains(f, "its stdout could not be kept whole") || !strings.Contains(f, "no space left") {
		t.Errorf("the failure is %q of %+v", f, g.status("j", 0))
	}
	free()
	m.terminate("j", 1, 0)
	m.clean()
}

// Results wait until the blob store has room for them, and arrive whole.
func TestBlobStoreFull(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	small(t, filepath.Join(dir, "blobs"), 4<<10)
	m := g.with(dir, quickParts(), nil)
	if _, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "head -c 500000 /dev/zero | tr '\\0' x; head -c 600000 /dev/zero | tr '\\0' y >out")); err != nil {
		t.Fatal(err)
	}
	free := fill(t, filepath.Join(dir, "blobs"), 550)
	with := spec(0, "main")
	with.Output = []*wsdl.OutputFile{{Name: "out"}}
	if err := m.instantiate("j", 1, with); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is told what the process waits for", func() bool {
		s := g.status("j", 0)
		return s != nil && strings.Contains(s.Message, "its results wait for room")
	})
	if s := g.status("j", 0); terminal(s) || !strings.Contains(s.Message, "disk of the image store is full") || !strings.Contains(s.Message, "free in "+dir) {
		t.Errorf("it waits as %+v", s)
	}
	// Nor can anything be fetched; that is no fault of those who have it.
	_, err := m.awaken("k", 1, 1, m.source("main", wsdl.LanguageShell, "exit 0 # "+strings.Repeat("x", 1<<20)))
	if code(err) != "busy" || !strings.Contains(err.Error(), "image store is full") {
		t.Errorf("Awaken: %v", err)
	}
	free()
	eventually(t, "its end arrives", func() bool { return terminal(g.status("j", 0)) })
	s := g.status("j", 0)
	if wsdl.Or(s.ExitCode, -1) != 0 || g.failures("j") != "" || g.text(s, "stdout") != strings.Repeat("x", 500000) || g.text(s, "out") != strings.Repeat("y", 600000) {
		t.Errorf("it ended as %+v, with %q", s, g.failures("j"))
	}
	m.terminate("j", 1, 0)
	m.works()
	m.clean()
	if left, _ := filepath.Glob(filepath.Join(dir, "blobs", "partial", "put-*")); len(left) > 0 {
		t.Errorf("torn files: %v", left)
	}
}

// Results that wait for room do not hold up the attempt's end.
func TestTerminateWhileResultsWait(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	small(t, filepath.Join(dir, "blobs"), 4<<10)
	m := g.with(dir, quickParts(), nil)
	if _, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "head -c 500000 /dev/zero")); err != nil {
		t.Fatal(err)
	}
	defer fill(t, filepath.Join(dir, "blobs"), 100)()
	if err := m.instantiate("j", 1, spec(0, "main")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits", func() bool {
		s := g.status("j", 0)
		return s != nil && strings.Contains(s.Message, "its results wait for room")
	})
	m.terminate("j", 1, 0)
	eventually(t, "the loss is told", func() bool {
		return terminal(g.status("j", 0)) && strings.Contains(g.failures("j"), "its stdout cannot be kept")
	})
	m.clean()
}

// A report that the disk would not take is on it once there is room, and
// outlives the node from then on.
func TestSpoolFull(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	spool := filepath.Join(dir, "spool")
	small(t, spool, 1<<10)
	child, m := g.alone(dir, "")
	m.dir = dir
	eventually(t, "it is awake", func() bool {
		_, err := m.awaken("j", 1, 1, m.source("main", wsdl.LanguageShell, "exit 5"))
		return err == nil
	})
	g.set(func() { g.brokerDown = true })
	free := fill(t, spool, 0)
	if err := m.instantiate("j", 1, spec(0, "main")); err != nil {
		t.Fatal(err)
	}
	reports := func() (whole int) {
		files, _ := filepath.Glob(filepath.Join(spool, "*"))
		for _, f := range files {
			text, err := os.ReadFile(f)
			if strings.HasSuffix(f, ".xml") && (err != nil || !bytes.HasSuffix(text, []byte("</Spooled>"))) {
				t.Errorf("%s is torn: %q, %v", f, text, err)
			}
			if bytes.Contains(text, []byte("exitCode>5<")) {
				whole++
			}
		}
		return whole
	}
	s := &staged{member: m}
	eventually(t, "the program is over", func() bool {
		for _, pid := range s.mvms() {
			children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
			if err == nil && len(children) == 0 {
				return true
			}
		}
		return false
	})
	if n := reports(); n > 0 {
		t.Fatalf("%d reports are on a full disk", n)
	}
	free()
	eventually(t, "the report is on disk", func() bool { return reports() == 1 })
	child.Process.Kill()
	child.Wait()
	g.set(func() { g.brokerDown = false; delete(g.live, key{"j", 1}) })
	_, m = g.alone(dir, "")
	eventually(t, "the report arrives", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); wsdl.Or(s.ExitCode, 0) != 5 {
		t.Errorf("the process is %+v", s)
	}
	m.works()
}

// A node whose disk is full says so when it starts.
func TestStartOnAFullDisk(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	m := g.with(t.TempDir(), quickParts(), nil)
	small(t, dir, 256)
	fill(t, dir, 0)
	config := m.config
	config.Dir = dir
	_, err := newNode(config, quickParts())
	if err == nil || !strings.Contains(err.Error(), "0 KiB of 256 KiB are free in "+dir) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("it starts so: %v", err)
	}
}

// What is told of a disk is what may be filled of it, and changes in steps only; a VM
// that may fill more is refused.
func TestFreeDisk(t *testing.T) {
	g := newGrid(t)
	m := g.onSmallDisk(t, 80<<10) // of which 4 MiB stay free
	whole := wsdl.Or(m.freeDisk(), -1)
	if whole < 70 || whole > 76 {
		t.Errorf("%d MiB are told of a disk of 80", whole)
	}
	if err := m.diskFor(30, 30); err != nil {
		t.Errorf("a VM of 60 MiB: %v", err)
	}
	if err := m.diskFor(60, 30); code(err) != "busy" || !strings.Contains(err.Error(), "of 80 MiB are free in "+m.folders.root) || !strings.Contains(err.Error(), "may fill 90 MiB") {
		t.Errorf("a VM of 90 MiB: %v", err)
	}
	free := fill(t, m.folders.root, 100)
	if told := wsdl.Or(m.freeDisk(), -1); told != 0 {
		t.Errorf("%d MiB are told of a full disk", told)
	}
	free()
	eventually(t, "it is told", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.disk == whole
	})
}
