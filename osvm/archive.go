package osvm

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

// An archive is a checkpoint in one file, to be kept off-line and brought in
// elsewhere (the paper's 2.1): a plain tar, its manifest first, then each blob
// that the manifest names, once, in the manifest's order.
const (
	archiveManifest = "manifest.json"
	archiveBlobs    = "sha256/" // begins the names of the others: a digest's digits follow
)

// Export writes the checkpoint of that digest as an archive. Each blob is checked
// on its way; the error names the one that is missing or damaged, and what was
// written till then is refused by Import.
func Export(ctx context.Context, blobs Blobs, digest string, to io.Writer) error {
	c, err := ReadCheckpoint(ctx, blobs, digest)
	if err != nil {
		return err
	}
	archive := tar.NewWriter(to)
	names := append([]string{digest}, c.Blobs()...)
	for i, blob := range names {
		name, most := archiveManifest, manifestMost
		if i > 0 {
			name, most = archiveBlobs+strings.TrimPrefix(blob, digestPrefix), packedMost
		}
		content, err := blobs.Get(ctx, blob, most)
		if err == nil && digestOf(content) != blob {
			err = fmt.Errorf("%w: it has other bytes than its digest says", ErrCorrupt)
		}
		if err != nil {
			return fmt.Errorf("checkpoint %s: blob %d of %d, %s: %w", digest, i, len(names), blob, err)
		}
		// The same checkpoint gives the same bytes.
		head := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: int64(len(content)), Mode: 0o444, ModTime: time.Unix(c.At.Unix(), 0), Format: tar.FormatUSTAR}
		if err := archive.WriteHeader(head); err != nil {
			return fmt.Errorf("checkpoint %s: write its archive: %w", digest, err)
		}
		if _, err := archive.Write(content); err != nil {
			return fmt.Errorf("checkpoint %s: write its archive: %w", digest, err)
		}
	}
	if err := archive.Close(); err != nil {
		return fmt.Errorf("checkpoint %s: write its archive: %w", digest, err)
	}
	return nil
}

// Import reads an archive into blobs and returns the checkpoint's digest. The
// archive may be anybody's: what is cut off, damaged, or not what its manifest
// names is refused with ErrCorrupt, and then there is no checkpoint, only blobs
// that nobody names.
func Import(ctx context.Context, blobs Blobs, from io.Reader) (digest string, c *Checkpoint, err error) {
	archive := tar.NewReader(from)
	manifest, err := next(archive, func(name string) (int, error) {
		if name != archiveManifest {
			return 0, fmt.Errorf("it begins with %.80q, not with %s", name, archiveManifest)
		}
		return manifestMost, nil
	})
	if err != nil {
		return "", nil, importing(err)
	}
	if c, err = parseCheckpoint(manifest); err != nil {
		return "", nil, importing(err)
	}
	missing := c.Blobs()
	for len(missing) > 0 {
		content, err := next(archive, func(name string) (int, error) {
			if want := archiveBlobs + strings.TrimPrefix(missing[0], digestPrefix); name != want {
				return 0, fmt.Errorf("%.100q is where %s is to be", name, want)
			}
			return packedMost, nil
		})
		if err == nil && digestOf(content) != missing[0] {
			err = fmt.Errorf("%s has other bytes than its digest says", missing[0])
		}
		if err != nil {
			return "", nil, importing(fmt.Errorf("%w; %d blobs are missing, the first of them %s", err, len(missing), missing[0]))
		}
		if !blobs.Has(missing[0]) {
			if err := blobs.Put(ctx, missing[0], content); err != nil {
				return "", nil, fmt.Errorf("import a checkpoint: %w", err)
			}
		}
		missing = missing[1:]
	}
	if head, err := archive.Next(); !errors.Is(err, io.EOF) {
		if err == nil {
			err = fmt.Errorf("%.100q is more than its manifest names", head.Name)
		}
		return "", nil, importing(err)
	}
	digest = digestOf(manifest)
	if err := blobs.Put(ctx, digest, manifest); err != nil {
		return "", nil, fmt.Errorf("import a checkpoint: %w", err)
	}
	return digest, c, nil
}

func importing(err error) error {
	if !errors.Is(err, ErrCorrupt) {
		err = fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return fmt.Errorf("import a checkpoint: its archive: %w", err)
}

// next reads the next entry, whose name expected judges: how many bytes it may
// have.
func next(archive *tar.Reader, expected func(name string) (int, error)) ([]byte, error) {
	head, err := archive.Next()
	if errors.Is(err, io.EOF) {
		return nil, errors.New("it is cut off")
	}
	if err != nil {
		return nil, err
	}
	most, err := expected(head.Name)
	switch {
	case err != nil:
		return nil, err
	case head.Typeflag != tar.TypeReg || head.Size < 0 || head.Size > int64(most):
		return nil, fmt.Errorf("%.100q is no file of at most %d bytes", head.Name, most)
	}
	content := make([]byte, head.Size)
	if _, err := io.ReadFull(archive, content); err != nil {
		return nil, fmt.Errorf("it is cut off in %.100q: %w", head.Name, err)
	}
	return content, nil
}
