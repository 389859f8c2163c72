package vmtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"mvm/osvm"
)

// Patterns is the minimal image with another PID 1: mvm/osvm/vmtest/pattern, whose
// guest verifies its memory all the time.
func Patterns(t testing.TB) osvm.Image {
	t.Helper()
	image := Image(t)
	initrd, digest, err := patterns(image.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	image.Initrd, image.Digest, image.CommandLine = initrd, digest, "rdinit=/pattern"
	return image
}

// DiskPatterns is Patterns with a disk, which the guest writes and verifies too.
func DiskPatterns(t testing.TB) osvm.Image {
	t.Helper()
	image := Patterns(t)
	disk := filepath.Join(filepath.Dir(image.Initrd), "pattern.disk")
	if _, err := os.Stat(disk); err != nil {
		scratch, err := os.CreateTemp(filepath.Dir(disk), "pattern.")
		if err == nil {
			defer os.Remove(scratch.Name())
			const size, fresh = 16 << 20, 0x5a // as the guest has it
			_, err = scratch.Write(bytes.Repeat([]byte{fresh}, size))
		}
		if err == nil {
			err = errors.Join(scratch.Close(), os.Rename(scratch.Name(), disk))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	image.Disks = []osvm.Disk{{Path: disk, Format: osvm.Raw}}
	return image
}

// patterns writes the initial file system: an archive with the program before the
// one that the image has, for Linux unpacks all that there are.
func patterns(initrd string) (path, digest string, err error) {
	folder := filepath.Dir(initrd)
	program, err := os.CreateTemp(folder, "pattern.")
	if err != nil {
		return "", "", err
	}
	_ = program.Close()
	defer os.Remove(program.Name())
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	if err := build(ctx, program.Name(), "mvm/osvm/vmtest/pattern"); err != nil {
		return "", "", err
	}
	content, err := os.ReadFile(program.Name())
	if err != nil {
		return "", "", err
	}
	first, err := os.ReadFile(initrd)
	if err != nil {
		return "", "", err
	}
	var both bytes.Buffer
	for _, entry := range []struct {
		name    string
		content []byte
	}{{"pattern", content}, {"TRAILER!!!", nil}} {
		fmt.Fprintf(&both, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
			1, 0o100755, 0, 0, 1, 0, len(entry.content), 0, 0, 0, 0, len(entry.name)+1, 0, entry.name)
		both.Write(make([]byte, -both.Len()&3))
		both.Write(entry.content)
		both.Write(make([]byte, -both.Len()&3))
	}
	both.Write(first)
	sum := sha256.Sum256(both.Bytes())
	digest = fmt.Sprintf("sha256:%x", sum)
	path = fmt.Sprintf("%s-%x", initrd, sum[:8])
	if _, err := os.Stat(path); err == nil {
		return path, digest, nil
	}
	if err := os.WriteFile(program.Name(), both.Bytes(), 0o644); err != nil {
		return "", "", err
	}
	return path, digest, os.Rename(program.Name(), path)
}

// Verified waits until the guest of a Patterns machine has verified more than it
// had told on its console when this was called, and says how many pages that are
// and how many of them were bad.
//
// With a disk that is so of its blocks, too.
func Verified(t testing.TB, m *osvm.Machine) (verified, bad int) {
	t.Helper()
	before, _, blocks := told(m)
	for begin := time.Now(); time.Since(begin) < Limit; time.Sleep(2 * time.Millisecond) {
		if verified, bad, now := told(m); verified > before && (now > blocks || len(m.Disks) == 0) {
			return verified, bad
		}
	}
	t.Fatalf("the guest of VM %s, which is %s, verifies nothing: %s", m.ID, m.State(), m.Console().Last())
	return 0, 0
}

// Rest has the guest of a Patterns machine that runs rest after each page, so that
// its host has time for other things.
func Rest(t testing.TB, m *osvm.Machine) {
	t.Helper()
	Verified(t, m)
	view, err := m.Console().Attach("a test", true)
	if err != nil {
		t.Fatal(err)
	}
	defer view.Close()
	const microseconds = 2000
	if _, err := fmt.Fprintf(view, "%d\n", microseconds); err != nil {
		t.Fatal(err)
	}
}

var verifiedLine = regexp.MustCompile(`pattern verified ([0-9]+) bad ([0-9]+) disk ([0-9]+)\r?\n`)

// told is what the last whole line says.
func told(m *osvm.Machine) (verified, bad, blocks int) {
	lines := verifiedLine.FindAllSubmatch(m.Console().Last(), -1)
	if len(lines) == 0 {
		return 0, 0, 0
	}
	last := lines[len(lines)-1]
	for i, number := range []*int{&verified, &bad, &blocks} {
		*number, _ = strconv.Atoi(string(last[i+1]))
	}
	return verified, bad, blocks
}

func build(ctx context.Context, into, what string) error {
	command := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -buildid=", "-o", into, what)
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if said, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", what, err, said)
	}
	return nil
}
