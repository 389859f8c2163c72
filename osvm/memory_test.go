package osvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"path/filepath"
	"testing"
)

// LookAtMemory holds what a clone's memory is looked at to be against what QEMU says
// it is. A machine's low memory is its memory's beginning but for what is below
// 1 MiB, where devices have their places.
func LookAtMemory(ctx context.Context, t *testing.T, m *Machine) error {
	if err := m.Suspend(ctx); err != nil {
		return err
	}
	said := filepath.Join(t.TempDir(), "said")
	file, err := os.Create(said)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Chmod(0o666); err != nil { // QEMU is another user, who can open what it has, and finds nothing else
		return err
	}
	var given struct{ FD int }
	if err := m.monitor.ExecuteWithFile(ctx, "add-fd", map[string]int{"fdset-id": 2}, &given, file); err != nil {
		return err
	}
	if err := m.monitor.Execute(ctx, "pmemsave", map[string]any{"val": 0, "size": m.MemoryMiB << 20, "filename": fmt.Sprintf("/proc/self/fd/%d", given.FD)}, nil); err != nil {
		return err
	}
	want, err := os.ReadFile(said)
	if err != nil {
		return err
	}
	memory, err := m.openMemory()
	if err != nil {
		return err
	}
	defer memory.close()
	if memory.size() != len(want) {
		return fmt.Errorf("memory of %d bytes, QEMU says %d", memory.size(), len(want))
	}
	const low = 1 << 20
	pages, into := 0, make([]byte, chunkSize)
	for at := low; at < memory.size(); at += chunkSize {
		content, own, err := memory.look(at, into)
		if err != nil {
			return err
		}
		pages += bits.OnesCount64(own)
		if !bytes.Equal(content, want[at:at+len(content)]) {
			return fmt.Errorf("the chunk at byte %d, of which the pages %b are the clone's own, is not what QEMU has there", at, own)
		}
		for i := range len(content) / pageSize {
			page := at + i*pageSize
			if own>>i&1 == 0 && !bytes.Equal(memory.shared[page:page+pageSize], want[page:page+pageSize]) {
				return fmt.Errorf("the clone's page at byte %d differs from the template's, and is said not to be its own", page)
			}
		}
	}
	t.Logf("%d of %d pages are the clone's own", pages, memory.size()/pageSize)
	if pages == 0 || pages > memory.size()/pageSize/2 {
		return fmt.Errorf("%d pages are an idle clone's own: that is some, and far from all", pages)
	}
	return nil
}

// Copy makes a second machine of a suspended one, in parent: of its memory as it
// is looked at from outside, and its saved state.
func Copy(ctx context.Context, m *Machine, q QEMU, parent string) (*Machine, error) {
	memory, err := m.openMemory()
	if err != nil {
		return nil, err
	}
	defer memory.close()
	spec := m.Spec
	spec.Template, spec.Kernel, spec.Initrd = nil, "", ""
	other, err := createAwaiting(ctx, q, parent, spec)
	if err != nil {
		return nil, err
	}
	state := filepath.Join(parent, "state")
	file, err := os.OpenFile(filepath.Join(other.folder, memoryName), os.O_RDWR, 0)
	if err != nil {
		return other, err
	}
	defer file.Close()
	into := make([]byte, chunkSize)
	for at := 0; at < memory.size() && err == nil; at += chunkSize {
		var content []byte
		if content, _, err = memory.look(at, into); err == nil {
			_, err = file.WriteAt(content, int64(at))
		}
	}
	return other, errors.Join(err, m.save(ctx, state), other.load(ctx, state))
}
