package osvm

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// importedMemoryMiB is what distributions' cloud images start in.
const importedMemoryMiB = 512

// ImportDisk makes an image in folder, as disk and seed, of a stock cloud image: a disk
// with a boot loader and cloud-init, which is copied as it is. What a disk refers
// to outside itself is refused. An interrupted copy is not left.
func ImportDisk(ctx context.Context, folder, disk string, agent []byte) (Image, error) {
	var image Image
	info, err := ProbeDisk(disk)
	if err != nil {
		return image, err
	}
	if info.Backed {
		return image, fmt.Errorf("%s: %w: it holds only the differences from another file; make it whole with `qemu-img convert -O qcow2`", disk, ErrDisk)
	}
	seed, err := Seed(agent)
	if err != nil {
		return image, err
	}
	copied, seeded := filepath.Join(folder, "disk"), filepath.Join(folder, "seed")
	if err := copyInto(ctx, copied, disk); err != nil {
		_ = os.Remove(copied)
		return image, err
	}
	if err := os.WriteFile(seeded, seed, 0o644); err != nil {
		_ = os.Remove(copied)
		_ = os.Remove(seeded)
		return image, err
	}
	return Image{
		LeastMemoryMiB: importedMemoryMiB, Release: filepath.Base(disk),
		Disks: []Disk{{Path: copied, Format: info.Format}, {Path: seeded, Format: Raw, ReadOnly: true}},
	}, nil
}

func copyInto(ctx context.Context, path, from string) error {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer source.Close()
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = source.Close() })
	defer stop()
	_, err = io.Copy(file, source)
	if ended := file.Close(); err == nil {
		err = ended
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
