package image

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"mvm/wsdl"
)

// Registry keeps named things in numbered versions; numbers that were removed do
// not come again. Where the grid's state is open main gives one.
type Registry interface {
	LastVersion(ctx context.Context, kind, name string) (int, error)
	AddVersion(ctx context.Context, kind, name string, number int, value []byte) (added bool, err error)
	RemoveVersion(ctx context.Context, kind, name string, number int) (removed bool, err error)
	Versions(ctx context.Context, kind, name string) (map[string]map[int][]byte, error)
}

// Images says who keeps the grid's images: this node, in its Registry and with
// their blobs pinned in its Store, or the node at Home, whom it asks.
type Images struct {
	Registry Registry      // nil where another node has it
	Home     func() string // the image service of that node; "" while it is not known
	Caller   wsdl.Caller   // to Home
}

const (
	imageKind   = "image"  // in the registry
	imageOwner  = "image:" // begins the owners of registered images' pins
	maxAttempts = 10       // to be the one who registers the next version
)

// registration is what the registry keeps of an image.
type registration struct {
	Digest     string
	Registered time.Time
	Manifest   *Manifest

	name    string
	version int
}

// RegisterImageContext keeps an image as a new version of its name, or says
// under which version it is kept. What of it this node alone has it gives to the
// node that keeps images.
func (s *Service) RegisterImageContext(ctx context.Context, request *wsdl.RegisterImage) (*wsdl.RegisterImageResponse, error) {
	if s.images.Registry == nil {
		home, err := s.home()
		if err != nil {
			return nil, err
		}
		if err := s.give(ctx, home, request.Digest); err != nil {
			return nil, err
		}
		return home.RegisterImageContext(ctx, request)
	}
	m, err := s.store.Manifest(request.Digest)
	if err != nil {
		return nil, err
	}
	name := cmp.Or(request.Name, m.Name)
	if !wsdl.ValidName(name) {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("an image cannot be named %.80q", name), "write a letter, then up to 62 letters, digits, '_', '.' or '-'")
	}
	digests := []string{request.Digest}
	for _, f := range m.Files {
		status, err := s.store.Stat(f.Digest)
		if err != nil {
			return nil, err
		}
		if status.Complete && status.Size != f.Size {
			return nil, refused("its %s has %d bytes, not %d as it says", f.Part, status.Size, f.Size)
		}
		digests = append(digests, f.Digest)
	}
	value, err := json.Marshal(registration{Digest: request.Digest, Registered: s.store.clock(), Manifest: m})
	if err != nil {
		return nil, err
	}
	s.registering.Lock()
	defer s.registering.Unlock()
	// Pins are by digest: an image that is registered twice needs them once, and
	// what another keeps is not mixed with them.
	if err := s.store.Pin(imageOwner+request.Digest, digests...); err != nil {
		return nil, err
	}
	for range maxAttempts {
		r, err := s.registered(ctx, name, 0)
		if err == nil && r.Digest == request.Digest {
			return &wsdl.RegisterImageResponse{Name: name, Version: int32(r.version), Digest: r.Digest}, nil
		}
		if err != nil && wsdl.CodeOf(err) != wsdl.FaultCodeNotFound {
			return nil, err
		}
		last, err := s.images.Registry.LastVersion(ctx, imageKind, name)
		if err != nil {
			return nil, stateless(err)
		}
		added, err := s.images.Registry.AddVersion(ctx, imageKind, name, last+1, value)
		if err != nil {
			return nil, stateless(err) // whether it happened is unknown: the pins stay until Settle knows
		}
		if added {
			return &wsdl.RegisterImageResponse{Name: name, Version: int32(last) + 1, Digest: request.Digest}, nil
		}
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeConflict, fmt.Sprintf("others register the image %s all the time", name), "try again")
}

// atHome asks the node that keeps images.
func atHome[Request, Response any](ctx context.Context, s *Service, call func(*wsdl.ImageClient, context.Context, *Request) (*Response, error), request *Request) (*Response, error) {
	home, err := s.home()
	if err != nil {
		return nil, err
	}
	return call(home, ctx, request)
}

// give sends to home what of an image is here and not there.
func (s *Service) give(ctx context.Context, home *wsdl.ImageClient, digest string) error {
	m, err := s.store.Manifest(digest)
	if wsdl.CodeOf(err) == wsdl.FaultCodeNotFound {
		return nil // it may be there
	}
	if err != nil {
		return err
	}
	for _, f := range append(m.Files, File{Digest: digest}) {
		if !s.store.Has(f.Digest) {
			continue
		}
		if err := s.store.Push(ctx, s.images.Caller, s.images.Home(), f.Digest); err != nil {
			return err
		}
	}
	return nil
}

// registered reads one version of an image, the newest for 0.
func (s *Service) registered(ctx context.Context, name string, version int) (*registration, error) {
	var list []*registration
	if wsdl.ValidName(name) {
		var err error
		if list, err = s.registrations(ctx, name); err != nil {
			return nil, err
		}
	}
	for i := len(list) - 1; i >= 0; i-- {
		if version == 0 || version == list[i].version {
			return list[i], nil
		}
	}
	what := fmt.Sprintf("no image %.80q is registered", name)
	if len(list) > 0 {
		what = fmt.Sprintf("no version %d of the image %q is registered", version, name)
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeNotFound, what, "look at what ListImages answers (`mvm image ls`), or register it (`mvm image push`)")
}

// registrations reads all versions of one image, or of all for "", by name and
// version.
func (s *Service) registrations(ctx context.Context, name string) ([]*registration, error) {
	all, err := s.images.Registry.Versions(ctx, imageKind, name)
	if err != nil {
		return nil, stateless(err)
	}
	var list []*registration
	for name, versions := range all {
		for version, value := range versions {
			r := &registration{name: name, version: version}
			if err := json.Unmarshal(value, r); err != nil || r.Manifest == nil {
				return nil, fmt.Errorf("image service: the record of the image %s@%d cannot be read: %w", name, version, err)
			}
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *registration) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.version, b.version))
	})
	return list, nil
}

func (r *registration) wire() *wsdl.Image {
	i := r.Manifest.Describe(r.Digest)
	i.Name, i.Version, i.Registered = r.name, int32(r.version), wsdl.Date(r.Registered)
	return i
}

// GetImageContext gives one image, and says where its blobs are.
func (s *Service) GetImageContext(ctx context.Context, request *wsdl.GetImage) (*wsdl.GetImageResponse, error) {
	if s.images.Registry == nil {
		return atHome(ctx, s, (*wsdl.ImageClient).GetImageContext, request)
	}
	r, err := s.registered(ctx, request.Name, int(request.Version))
	if err != nil {
		return nil, err
	}
	return &wsdl.GetImageResponse{Image: r.wire(), Source: []string{s.base()}}, nil
}

// ListImagesContext lists every version of what the request searches.
func (s *Service) ListImagesContext(ctx context.Context, request *wsdl.ListImages) (*wsdl.ListImagesResponse, error) {
	if s.images.Registry == nil {
		return atHome(ctx, s, (*wsdl.ImageClient).ListImagesContext, request)
	}
	list, err := s.registrations(ctx, "")
	if err != nil {
		return nil, err
	}
	search := strings.ToLower(request.Search)
	response := &wsdl.ListImagesResponse{}
	for _, r := range list {
		if strings.Contains(strings.ToLower(r.name), search) || strings.Contains(strings.ToLower(r.Manifest.Description), search) {
			response.Image = append(response.Image, r.wire())
		}
	}
	return response, nil
}

// RemoveImageContext forgets an image. Its blobs stay for whoever has pinned
// them besides, and for a lease.
func (s *Service) RemoveImageContext(ctx context.Context, request *wsdl.RemoveImage) (*wsdl.RemoveImageResponse, error) {
	if s.images.Registry == nil {
		return atHome(ctx, s, (*wsdl.ImageClient).RemoveImageContext, request)
	}
	s.registering.Lock()
	defer s.registering.Unlock()
	if _, err := s.registered(ctx, request.Name, int(request.Version)); err != nil {
		return nil, err
	}
	list, err := s.registrations(ctx, request.Name)
	if err != nil {
		return nil, err
	}
	response := &wsdl.RemoveImageResponse{}
	for _, r := range list {
		if request.Version != 0 && int(request.Version) != r.version {
			continue
		}
		removed, err := s.images.Registry.RemoveVersion(ctx, imageKind, r.name, r.version)
		if err != nil {
			return nil, stateless(err)
		}
		if removed {
			response.Removed = append(response.Removed, fmt.Sprintf("%s@%d", r.name, r.version))
		}
	}
	return response, s.unpin(ctx)
}

// Settle lets go of images that are registered no longer: this node died between
// pinning and registering one, or between forgetting and letting go. main calls
// it once, when the registry can be read.
func (s *Service) Settle(ctx context.Context) error {
	if s.images.Registry == nil {
		return nil
	}
	s.registering.Lock()
	defer s.registering.Unlock()
	return s.unpin(ctx)
}

// unpin unpins the images that are not registered. s.registering is held.
func (s *Service) unpin(ctx context.Context) error {
	list, err := s.registrations(ctx, "")
	if err != nil {
		return err
	}
	registered := map[string]bool{}
	for _, r := range list {
		registered[imageOwner+r.Digest] = true
	}
	for _, owner := range s.store.Owners() {
		if strings.HasPrefix(owner, imageOwner) && !registered[owner] {
			if err := s.store.Unpin(owner); err != nil {
				return err
			}
		}
	}
	return nil
}

// home is the image service of the node that keeps images.
func (s *Service) home() (*wsdl.ImageClient, error) {
	if s.images.Home != nil {
		if address := s.images.Home(); address != "" {
			return wsdl.NewImageClient(s.images.Caller, address), nil
		}
	}
	return nil, wsdl.NewFault(wsdl.FaultCodeUnavailable, "this node does not know yet which node keeps images", "try again once a node with the frontend role has joined the grid")
}

// stateless is the fault of a registry that cannot be read or written now.
func stateless(err error) error {
	return wsdl.NewFault(wsdl.FaultCodeUnavailable, "the registry of images does not answer: "+err.Error(), "try again")
}
