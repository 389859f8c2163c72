package osvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestModulesInOrder(t *testing.T) {
	modules := map[string]module{}
	for _, line := range []string{"net failover", "failover", "virtio ring", "ring", "console virtio ring", "a b", "b c", "c a", "orphan gone"} {
		words := strings.Fields(line)
		modules[words[0]] = module{name: words[0], depends: words[1:]}
	}
	order, err := inOrder(modules, []string{"console", "net", "virtio"})
	var names []string
	for _, m := range order {
		names = append(names, m.name)
	}
	if got := strings.Join(names, " "); err != nil || got != "ring virtio console failover net" {
		t.Errorf("%q, %v", got, err)
	}
	for wanted, want := range map[string]string{"a": "a -> b -> c -> a", "orphan": "orphan -> gone", "none": "none"} {
		if _, err := inOrder(modules, []string{wanted}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", wanted, err)
		}
	}
}

// TestCpioIsRead has cpio read what we write.
func TestCpioIsRead(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("SKIPPED: our initial file systems were not read by another program: make setup installs it")
	}
	var out bytes.Buffer
	c := &cpio{w: &out}
	c.folder("bin")
	c.file("bin/tool", 0o755, []byte("hello"))
	c.link("bin/sh", "tool")
	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	folder := t.TempDir()
	command := exec.Command("cpio", "-i", "-d", "--no-absolute-filenames")
	command.Dir, command.Stdin = folder, &out
	if text, err := command.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if content, err := os.ReadFile(filepath.Join(folder, "bin/sh")); err != nil || string(content) != "hello" {
		t.Errorf("through the link: %q, %v", content, err)
	}
	if info, err := os.Stat(filepath.Join(folder, "bin/tool")); err != nil || info.Mode() != fs.FileMode(0o755) {
		t.Errorf("mode: %v, %v", info, err)
	}
}

// FuzzKernel has any bytes be a kernel: an image or ErrKernel, and no memory that
// a word in it asks for.
func FuzzKernel(f *testing.F) {
	kernel := make([]byte, 0x400)
	copy(kernel[headerAt:], "HdrS")
	binary.LittleEndian.PutUint16(kernel[versionAt:], 0x20f)
	binary.LittleEndian.PutUint32(kernel[payloadLengthAt:], 0x100)
	binary.LittleEndian.PutUint32(kernel[sector:], 0x184c2102)
	f.Add(kernel)
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, kernel []byte) {
		if image, err := vmlinux(kernel); err != nil && !errors.Is(err, ErrKernel) {
			t.Errorf("%d bytes, %v", len(image), err)
		}
	})
}

func FuzzModule(f *testing.F) {
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, file []byte) {
		if m, err := readModule(file); err == nil && m.name == "" {
			t.Error("a module without a name")
		}
	})
}
