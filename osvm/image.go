package osvm

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/pierrec/lz4/v4"
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
	Kernel         string // path; "" where the first disk has a boot loader
	Initrd         string // path
	Disks          []Disk
	CommandLine    string // of the kernel, after what the machine needs
	LeastMemoryMiB int
	Release        string // of what it was made
}

// kernelPackage is Debian's name for the newest kernel for virtual machines.
const kernelPackage = "linux-image-cloud-amd64"

// busyboxPackage has a busybox that needs no library.
const busyboxPackage = "busybox-static"

// BuildMinimal makes the minimal image in folder, as kernel and initrd, out of
// Debian's packages: the kernel, its drivers, busybox, tcc with musl, agent as PID
// 1, and the C client whose files are in client (mvm.c and what it includes; nil
// for none). It needs apt-get, dpkg-deb and gcc, and asks the package registry that
// they are set up for. The same packages, agent, client and gcc give the same
// bytes.
func BuildMinimal(ctx context.Context, folder string, agent []byte, client fs.FS) (Image, error) {
	image := Image{Kernel: filepath.Join(folder, "kernel"), Initrd: filepath.Join(folder, "initrd")}
	kernel, err := newestKernel(ctx)
	if err != nil {
		return image, err
	}
	temporary, err := os.MkdirTemp(folder, "packages-")
	if err != nil {
		return image, err
	}
	defer os.RemoveAll(temporary)
	p, err := download(ctx, temporary, kernel, busyboxPackage, tccPackage, libcPackage, muslPackage, kernelHeaders)
	if err != nil {
		return image, err
	}
	image.Release = strings.TrimPrefix(kernel, "linux-image-") + " " + p.version(kernel)
	unpacked, order, err := kernelOf(ctx, p, kernel, guestModules)
	if err != nil {
		return image, err
	}
	files, links := map[string]guestFile{initAt: {0o755, agent}}, map[string]string{}
	addAccounts(files)
	addModules(files, order)
	if err := addBusybox(ctx, files, links, p); err != nil {
		return image, err
	}
	if err := addToolchain(ctx, files, p, client); err != nil {
		return image, err
	}
	initrd, err := pack(files, links, "dev", "proc", "root", "run", "sys", "tmp", "var/tmp")
	if err != nil {
		return image, err
	}
	image.LeastMemoryMiB = leastMemoryFor(len(initrd))
	if initrd, err = compress(initrd); err != nil {
		return image, err
	}
	for name, content := range map[string][]byte{image.Kernel: unpacked, image.Initrd: initrd} {
		if err := os.WriteFile(name, content, 0o644); err != nil {
			return image, err
		}
	}
	return image, nil
}

// leastMemoryFor is how many MiB Debian's kernel boots in with an initial file
// system of so many bytes, which it holds once as it came, and once unpacked.
func leastMemoryFor(unpacked int) int {
	const kernel, step = 80, 8
	least := kernel + 3*(unpacked>>20)/2
	return (least + step - 1) / step * step
}

// compress packs an initial file system as the kernel takes it ("legacy" frames):
// LZ4 costs its boot least time, and it needs not hold the whole twice.
func compress(initrd []byte) ([]byte, error) {
	var out bytes.Buffer
	w := lz4.NewWriter(&out)
	if err := w.Apply(lz4.LegacyOption(true), lz4.CompressionLevelOption(lz4.Level9), lz4.ConcurrencyOption(1)); err != nil {
		return nil, err
	}
	if _, err := w.Write(initrd); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

// addAccounts adds what programs ask about users and the machine's own address.
func addAccounts(files map[string]guestFile) {
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":  "root:x:0:\nnogroup:x:65534:\n",
		"etc/hosts":  "127.0.0.1 localhost\n",
	} {
		files[name] = guestFile{0o644, []byte(text)}
	}
}

// addModules adds the kernel's modules and the order in which they are loaded.
func addModules(files map[string]guestFile, order []module) {
	var names []string
	for _, m := range order {
		names = append(names, m.name)
		files[modulesFolder+"/"+m.name+".ko"] = guestFile{0o644, m.file}
	}
	files[modulesOrder] = guestFile{0o644, []byte(strings.Join(names, "\n") + "\n")}
}

// kernelOf takes a kernel out of its package, unpacked, and those of its modules
// that are wanted, with what they depend on, in the order of loading.
func kernelOf(ctx context.Context, p *packages, kernel string, wanted []string) ([]byte, []module, error) {
	var compressed []byte
	modules := map[string]module{}
	if err := p.each(ctx, kernel, func(name string, _ fs.FileMode, content []byte) error {
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
		return nil, nil, err
	}
	unpacked, err := vmlinux(compressed)
	if err != nil {
		return nil, nil, fmt.Errorf("the kernel of Debian's package %s: %w", kernel, err)
	}
	order, err := inOrder(modules, wanted)
	if err != nil {
		return nil, nil, fmt.Errorf("package %s of Debian: %w", kernel, err)
	}
	return unpacked, order, nil
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
