package image

import (
	"context"
	"fmt"
	"net/http"

	"mvm/wsdl"
)

// Files is an image as files of this node, to be read only.
type Files struct {
	Digest   string // of the manifest
	Manifest *Manifest
	path     map[Part]string
}

// Path is the file of a part, "" where the image has none.
func (f *Files) Path(part Part) string { return f.path[part] }

// Files makes an image files of this node: what is missing is fetched from bases
// (see Fetch), every byte verified. All of it is pinned for owner until Unpin,
// also over restarts; what nobody has pinned is swept away when it was not asked
// for during a lease. A fault leaves no pins and nothing that is half there: what
// was fetched whole stays for a lease, and what was cut off goes on from there.
func (s *Store) Files(ctx context.Context, client *http.Client, bases []string, digest, owner string) (*Files, error) {
	if err := s.Fetch(ctx, client, bases, digest); err != nil {
		return nil, fmt.Errorf("image %s: its manifest: %w", digest, err)
	}
	m, err := s.Manifest(digest)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", digest, err)
	}
	f := &Files{Digest: digest, Manifest: m, path: map[Part]string{}}
	digests := []string{digest}
	for _, file := range m.Files {
		h, err := hexOf(file.Digest)
		if err != nil {
			return nil, err
		}
		if err := s.Fetch(ctx, client, bases, file.Digest); err != nil {
			return nil, fmt.Errorf("image %s@%.12s: its %s: %w", m.Name, digest[len(prefix):], file.Part, err)
		}
		status, err := s.Stat(file.Digest)
		if err != nil {
			return nil, err
		}
		if status.Size != file.Size {
			return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("the image %s %s: its %s has %d bytes, not %d as the manifest says", m.Name, digest, file.Part, status.Size, file.Size),
				"push the image again")
		}
		f.path[file.Part] = s.path(h)
		digests = append(digests, file.Digest)
	}
	if err := s.Pin(owner, digests...); err != nil {
		return nil, err
	}
	return f, nil
}
