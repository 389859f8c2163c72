package osvm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// guestModules are the drivers of what a machine has; Debian's cloud kernel has
// each of them as a module. What they depend on is found in them.
var guestModules = []string{"virtio_pci", "virtio_console", "virtio_rng", "virtio_blk", "virtio_net"}

// Places in the initial file system that the agent knows, too.
const (
	initAt        = "init"
	modulesFolder = "modules"
	modulesOrder  = modulesFolder + "/order" // names of modules in the order in which they are loaded
)

// Image is what a machine boots from: files, which everybody may read (QEMU runs
// as a user of its own), and what is said with them.
type Image struct {
	Name           string // for people
	Digest         string // names the content of all of it; machines of one digest can be clones of one template
	Kernel         string // path
	Initrd         string // path
	CommandLine    string // of the kernel, after what the machine needs
	LeastMemoryMiB int
}

// kernelPackage is Debian's name for the newest kernel for virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// BuildMinimal makes the minimal image in folder out of Debian's packages: the
// kernel, its drivers, busybox, and agent as PID 1. It needs apt-get and dpkg-deb
// and asks the package registry that they are set up for. The same packages and
// agent give the same bytes.
func BuildMinimal(ctx context.Context, folder string, agent []byte) (Image, error) {
	image := Image{Kernel: filepath.Join(folder, "vmlinux"), Initrd: filepath.Join(folder, "initrd")}
	kernel, err := newestKernel(ctx)
	if err != nil {
		return image, err
	}
	packages, err := os.MkdirTemp(folder, "packages-")
	if err != nil {
		return image, err
	}
	defer os.RemoveAll(packages)
	var compressed []byte
	modules := map[string]module{}
	if err := unpack(ctx, packages, kernel, func(name string, _ fs.FileMode, content []byte) error {
		switch {
		case strings.HasPrefix(name, "boot/vmlinuz-"):
			compressed = content
		case strings.HasSuffix(name, ".ko"):
			m, err := readModule(content)
			if err != nil {
				return err
			}
			modules[m.name] = m
		}
		return nil
	}); err != nil {
		return image, err
	}
	unpacked, err := vmlinux(compressed)
	if err != nil {
		return image, fmt.Errorf("the kernel of Debian's package %s: %w", kernel, err)
	}
	order, err := inOrder(modules, guestModules)
	if err != nil {
		return image, fmt.Errorf("package %s of Debian: %w", kernel, err)
	}
	var busybox []byte
	if err := unpack(ctx, packages, "busybox-static", func(name string, _ fs.FileMode, content []byte) error {
		if path.Base(name) == "busybox" && strings.HasSuffix(path.Dir(name), "bin") {
			busybox = content
		}
		return nil
	}); err != nil {
		return image, err
	}
	if busybox == nil {
		return image, errors.New("package busybox-static of Debian has no busybox")
	}
	var out bytes.Buffer
	archive := &cpio{w: &out}
	for _, name := range []string{"bin", "dev", "etc", modulesFolder, "proc", "root", "run", "sys", "tmp", "usr", "usr/bin"} {
		archive.folder(name)
	}
	archive.file(initAt, 0o755, agent)
	archive.file("bin/busybox", 0o755, busybox)
	archive.link("bin/sh", "busybox")
	var names []string
	for _, m := range order {
		names = append(names, m.name)
		archive.file(modulesFolder+"/"+m.name+".ko", 0o644, m.file)
	}
	archive.file(modulesOrder, 0o644, []byte(strings.Join(names, "\n")+"\n"))
	if err := archive.close(); err != nil {
		return image, err
	}
	for name, content := range map[string][]byte{image.Kernel: unpacked, image.Initrd: out.Bytes()} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return image, err
		}
	}
	return image, nil
}

// newestKernel is the package that kernelPackage, which is empty, depends on.
func newestKernel(ctx context.Context) (string, error) {
	text, err := run(ctx, "", "apt-cache", "depends", "--important", kernelPackage)
	if err != nil {
		return "", fmt.Errorf("ask Debian's packages for a kernel: %w", err)
	}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("there is no package %s: `apt-get update` may help", kernelPackage)
}

// unpack fetches one of Debian's packages and visits its plain files, named
// without a slash before them.
func unpack(ctx context.Context, folder, name string, visit func(name string, mode fs.FileMode, content []byte) error) error {
	if _, err := run(ctx, folder, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", name); err != nil {
		return fmt.Errorf("fetch Debian's package %s: %w", name, err)
	}
	found, err := filepath.Glob(filepath.Join(folder, name+"_*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("fetch Debian's package %s: %d files came: %w", name, len(found), err)
	}
	command := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", found[0])
	stream, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	err = eachFile(tar.NewReader(stream), visit)
	if err != nil {
		_ = command.Process.Kill()
	}
	_, _ = io.Copy(io.Discard, stream)
	if ended := command.Wait(); err == nil {
		err = ended
	}
	if err != nil {
		return fmt.Errorf("unpack Debian's package %s: %w", name, err)
	}
	return nil
}

func eachFile(archive *tar.Reader, visit func(name string, mode fs.FileMode, content []byte) error) error {
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		if err := visit(path.Clean(header.Name), header.FileInfo().Mode(), content); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

// run gives what a command prints; the error has what it complains of.
func run(ctx context.Context, folder string, words ...string) (string, error) {
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Dir = folder
	var complaint bytes.Buffer
	command.Stderr = &complaint
	text, err := command.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(complaint.String()), "\n")
		slices.Reverse(lines) // the last say most
		return "", fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.Join(lines[:min(len(lines), 3)], "; "))
	}
	return string(text), nil
}
