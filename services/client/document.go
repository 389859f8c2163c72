package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"mvm/broker/profile"
	"mvm/wsdl"
)

// uploadChunk is how much of a file one call uploads; a call carries at most
// 4 MiB, and base64 makes them a third longer.
const uploadChunk = 2 << 20

// Document is a job profile read from a file.
type Document struct {
	Path string
	Job  *wsdl.Job

	positions profile.Positions
}

// Load reads a job profile and checks it against the schema. What is wrong is
// a *wsdl.Fault (invalidProfile) that lists every problem with its line.
func Load(path string) (*Document, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, missing(err)
	}
	defer f.Close()
	job, positions, err := profile.Parse(f, path)
	if err != nil {
		return nil, &inFile{path, err}
	}
	return &Document{Path: path, Job: job, positions: positions}, nil
}

// missing says of a file that is not there what exit code it deserves.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return &Exit{Code: ExitNotFound, Err: err}
	}
	return err
}

// locate adds the document's lines to the problems of a fault.
func (d *Document) locate(err error) error {
	if d == nil || err == nil {
		return err
	}
	return &inFile{d.Path, d.positions.Locate(err)}
}

// read gives the bytes of a file that the profile names. It lies beside the
// profile or below: a profile that someone else wrote must not be able to
// send away what lies elsewhere on this machine.
func (d *Document) read(path string, arguments map[string]string) ([]byte, error) {
	expanded, err := profile.Text(d.Job, arguments, path)
	if err != nil {
		return nil, err
	}
	name := filepath.FromSlash(expanded)
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%s: only files in the profile's folder or below are sent", path)
	}
	root, err := os.OpenRoot(filepath.Dir(d.Path))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	return io.ReadAll(f)
}

// Compile resolves the profile here, without a grid: for drawing it, and to
// know how many processes it has. lookup finds registered profiles and may be
// nil.
func (d *Document) Compile(arguments map[string]string, lookup profile.Lookup) (*profile.Job, error) {
	job, err := profile.Compile(d.Job, arguments, lookup, func(reference string) ([]byte, error) {
		return d.read(reference, arguments)
	})
	return job, d.locate(err)
}

// policyNodes is the number of nodes that the profile asks for; 0 when it does
// not say.
func (d *Document) policyNodes(arguments map[string]string) int {
	if d.Job.Policy == nil || d.Job.Policy.Nodes == nil {
		return 0
	}
	text, err := profile.Text(d.Job, arguments, string(*d.Job.Policy.Nodes))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0
	}
	return n
}

// ship uploads the files that the profile names, and returns the profile with
// their digests in place of their paths.
func (c *Client) ship(ctx context.Context, d *Document, arguments map[string]string, uploaded func(done, total int64)) (*wsdl.Job, error) {
	copied, err := json.Marshal(d.Job)
	if err != nil {
		return nil, err
	}
	job := new(wsdl.Job)
	if err := json.Unmarshal(copied, job); err != nil {
		return nil, err
	}
	blobs, err := profile.Blobs(job, func(path string) ([]byte, error) { return d.read(path, arguments) })
	if err != nil {
		return nil, d.locate(err)
	}
	var done, total int64
	for _, data := range blobs {
		total += int64(len(data))
	}
	for _, digest := range sorted(blobs) {
		if err := c.upload(ctx, digest, bytes.NewReader(blobs[digest]), int64(len(blobs[digest])), func(n int64) {
			done += n
			if uploaded != nil {
				uploaded(done, total)
			}
		}); err != nil {
			return nil, fmt.Errorf("upload of %s: %w", digest, err)
		}
	}
	return job, nil
}

// upload puts a blob into the grid, in chunks, from where an earlier try was
// cut off. Nothing is sent when the grid has it.
func (c *Client) upload(ctx context.Context, digest string, data io.ReaderAt, size int64, sent func(n int64)) error {
	var offset int64
	stat, err := c.image.StatBlobContext(ctx, &wsdl.StatBlob{Digest: digest})
	switch {
	case err == nil && stat.Blob != nil && wsdl.Or(stat.Blob.Complete, false):
		sent(size)
		return nil
	case err == nil && stat.Blob != nil:
		offset = min(wsdl.Or(stat.Blob.Received, 0), size)
	case wsdl.CodeOf(err) != wsdl.FaultCodeNotFound:
		return err
	}
	sent(offset)
	buffer := make(wsdl.Binary, min(uploadChunk, size-offset))
	for first := true; first || offset < size; first = false {
		chunk := buffer[:min(uploadChunk, size-offset)]
		if n, err := data.ReadAt(chunk, offset); n < len(chunk) {
			return err
		}
		err := c.patiently(ctx, func() error {
			_, err := c.image.PutBlobContext(ctx, &wsdl.PutBlob{Digest: digest, Size: wsdl.Of(size), Offset: offset, Data: &chunk})
			return err
		})
		if err != nil {
			return err
		}
		offset += int64(len(chunk))
		sent(int64(len(chunk)))
	}
	return nil
}
