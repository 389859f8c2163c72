package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"

	"mvm/services/image"
	"mvm/wsdl"
)

// ImageMaker makes the files of images on this machine. The program that has
// OS-level VMs in it gives one to Commands.
type ImageMaker interface {
	// Build makes the minimal image in a folder, or with gcc the one that has it
	// on a disk: the files of image's Parts, which the manifest lists without
	// sizes and digests.
	Build(ctx context.Context, folder string, gcc bool) (*image.Manifest, error)
	// Import makes an image of a cloud image's disk, which it copies.
	Import(ctx context.Context, folder, disk string) (*image.Manifest, error)
}

// Images lists registered images, every version, whose name or description
// contains search.
func (c *Client) Images(ctx context.Context, search string) ([]*wsdl.Image, error) {
	answer, err := c.image.ListImagesContext(ctx, &wsdl.ListImages{Search: search})
	if err != nil {
		return nil, err
	}
	return answer.Image, nil
}

// Image is a registered image, the newest version for 0, and the base addresses
// of nodes that have it.
func (c *Client) Image(ctx context.Context, name string, version int) (*wsdl.Image, []string, error) {
	answer, err := c.image.GetImageContext(ctx, &wsdl.GetImage{Name: name, Version: int32(version)})
	if err != nil {
		return nil, nil, err
	}
	if answer.Image == nil {
		return nil, nil, errors.New("the image service answered without an image")
	}
	return answer.Image, answer.Source, nil
}

// RemoveImage forgets a version of an image, all of them for 0, and says which
// these were.
func (c *Client) RemoveImage(ctx context.Context, name string, version int) ([]string, error) {
	answer, err := c.image.RemoveImageContext(ctx, &wsdl.RemoveImage{Name: name, Version: int32(version)})
	if err != nil {
		return nil, err
	}
	return answer.Removed, nil
}

// PushImage uploads the image in a folder, goes on where an earlier try was cut
// off, sends nothing that the grid has, and registers it; name "" is the
// manifest's. uploaded, which may be nil, is told how far it is.
func (c *Client) PushImage(ctx context.Context, folder, name string, uploaded func(done, total int64)) (*wsdl.RegisterImageResponse, error) {
	m, manifest, digest, err := image.ReadFolder(folder)
	if err != nil {
		return nil, err
	}
	var done int64
	for _, f := range m.Files {
		if err := c.pushFile(ctx, folder, f, func(n int64) {
			done += n
			if uploaded != nil {
				uploaded(done, m.Size())
			}
		}); err != nil {
			return nil, fmt.Errorf("upload of the image's %s: %w", f.Part, err)
		}
	}
	if err := c.upload(ctx, digest, bytes.NewReader(manifest), int64(len(manifest)), func(int64) {}); err != nil {
		return nil, fmt.Errorf("upload of the image's manifest: %w", err)
	}
	return c.image.RegisterImageContext(ctx, &wsdl.RegisterImage{Name: name, Digest: digest})
}

func (c *Client) pushFile(ctx context.Context, folder string, f image.File, sent func(int64)) error {
	// Better now than after some gigabytes, or when the grid has what it was before.
	if err := image.CheckFile(folder, f); err != nil {
		return err
	}
	file, err := os.Open(filepath.Join(folder, string(f.Part)))
	if err != nil {
		return err
	}
	defer file.Close()
	return c.upload(ctx, f.Digest, file, f.Size, sent)
}

// halfPulled is the folder, within an image's, of what has arrived of it so far.
const halfPulled = ".pulling"

// PullImage downloads an image into a folder, which is made: from the nodes that
// the image service names, and from any other that has it. Every byte is verified;
// what was cut off goes on in the next call with the same folder. What the folder
// had of another image is replaced when all is here.
func (c *Client) PullImage(ctx context.Context, name string, version int, folder string) (*wsdl.Image, error) {
	found, sources, err := c.Image(ctx, name, version)
	if err != nil {
		return nil, err
	}
	if nodes, err := c.Nodes(ctx); err == nil {
		for _, n := range nodes {
			if !slices.Contains(sources, n.Url) {
				sources = append(sources, n.Url)
			}
		}
	}
	arriving := filepath.Join(folder, halfPulled)
	blobs, err := image.New(image.Config{Dir: arriving})
	if err != nil {
		return nil, err
	}
	files, err := blobs.Files(ctx, http.DefaultClient, sources, found.Digest, "pull")
	if err != nil {
		return nil, err
	}
	whole, err := os.MkdirTemp(arriving, "whole-")
	if err != nil {
		return nil, err
	}
	for _, f := range files.Manifest.Files {
		// Two parts may be one blob.
		if err := errors.Join(os.Chmod(files.Path(f.Part), 0o644), os.Link(files.Path(f.Part), filepath.Join(whole, string(f.Part)))); err != nil {
			return nil, err
		}
	}
	if digest, err := image.Seal(whole, files.Manifest); err != nil || digest != found.Digest {
		return nil, errors.Join(err, fmt.Errorf("what was stored in %s is not what was received: its manifest is %s, expected %s", arriving, digest, found.Digest))
	}
	if err := image.Install(folder, whole); err != nil {
		return nil, err
	}
	return found, os.RemoveAll(arriving)
}
