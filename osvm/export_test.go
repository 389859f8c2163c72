package osvm

import (
	"context"
	"os"
	"path/filepath"
)

// ChunkSize is what a checkpoint's blobs hold each.
const ChunkSize = chunkSize

// Pass has a test told of the steps of a capture.
func (m *Machine) Pass(told func(step string)) { m.passing = told }

// KillQEMU ends QEMU as a fault would, and waits until it is gone.
func (m *Machine) KillQEMU() { m.kill() }

// DigestOf names a blob.
func DigestOf(content []byte) string { return digestOf(content) }

// IsManifest says whether a blob is a checkpoint.
func IsManifest(content []byte) bool {
	_, err := parseCheckpoint(content)
	return err == nil
}

// Archive is an initial file system with one program.
func Archive(name, text string) []byte {
	archive, err := pack(map[string]guestFile{name: {0o755, []byte(text)}}, nil)
	if err != nil {
		panic(err)
	}
	return archive
}

// LimitsProcessors says whether there are control groups for processor time here.
func LimitsProcessors() bool {
	membership, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	parent, _ := groupParent(groupRoot, string(membership), "cpu")
	return parent != ""
}

// Groups are a machine's control groups.
func (m *Machine) Groups() []string { return m.groups }

// TemplateKey names the template that an order's machine is a clone of.
func (h *Host) TemplateKey(order Order) string {
	var key string
	_, _ = h.add(order, func(spec Spec) (*Machine, error) {
		key, _ = h.templates.key(spec, order.Image.Digest)
		return nil, ErrUnknown
	})
	return key
}

// QEMUIO has QEMU read or write a machine's first disk as the guest would, by the
// words of qemu-io, and gives what it complains of.
func (m *Machine) QEMUIO(ctx context.Context, words string) (said string, err error) {
	const device = "/machine/peripheral-anon/device[3]/virtio-backend"
	err = m.monitor.Execute(ctx, "human-monitor-command", map[string]string{"command-line": "qemu-io -d " + device + " \"" + words + "\""}, &said)
	return said, err
}

// Disk is where a template has the overlay of a disk.
func (t *Template) Disk(i int) string { return filepath.Join(t.folder, diskName(i)) }

// MakeDisk makes a disk of a folder's files.
func MakeDisk(ctx context.Context, temporary, root, disk string) error {
	return makeDisk(ctx, temporary, root, disk)
}
