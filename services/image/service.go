package image

import (
	"context"
	"errors"
	"io"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	"mvm/wsdl"
)

const (
	maxChunk  = 4 << 20 // bytes in one PutBlob or GetBlob
	maxListed = 1000    // blobs in one ListBlobs

	servicePath = "/services/image"
	blobsPath   = servicePath + "/blobs/"
)

// Service is the image service over a Store.
type Service struct {
	wsdl.ImageWithoutContext
	store  *Store
	base   func() string
	images Images

	registering sync.Mutex // held while images are registered or removed, with their pins
}

var _ wsdl.ImagePortType = (*Service)(nil)

// NewService serves a store. base gives this node's base address,
// http://host:port, for the URLs in answers.
func NewService(store *Store, base func() string, images Images) *Service {
	s := &Service{store: store, base: base, images: images}
	s.Server = s
	return s
}

func (s *Service) blob(st Status) *wsdl.Blob {
	b := &wsdl.Blob{Digest: st.Digest, Received: wsdl.Of(st.Received), Complete: wsdl.Of(st.Complete)}
	if st.Size >= 0 {
		b.Size = wsdl.Of(st.Size)
	}
	if st.Complete {
		b.Url = BlobURL(s.base(), st.Digest)
	}
	return b
}

// PutBlobContext takes one chunk.
func (s *Service) PutBlobContext(ctx context.Context, request *wsdl.PutBlob) (*wsdl.PutBlobResponse, error) {
	if request.Size == nil {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "PutBlob: size is missing", "give the size of the whole blob in bytes")
	}
	var data []byte
	if request.Data != nil {
		data = *request.Data
	}
	if len(data) > maxChunk {
		return nil, wsdl.Faultf(wsdl.FaultCodeTooLarge, "PutBlob: the chunk has %d bytes, more than %d", len(data), maxChunk)
	}
	st, err := s.store.PutChunk(ctx, request.Digest, *request.Size, request.Offset, data)
	if err != nil {
		return nil, err
	}
	return &wsdl.PutBlobResponse{Blob: s.blob(st)}, nil
}

// GetBlobContext gives one range; an offset at or after the end gives no bytes.
func (s *Service) GetBlobContext(_ context.Context, request *wsdl.GetBlob) (*wsdl.GetBlobResponse, error) {
	if request.Offset < 0 || request.Length < 0 {
		return nil, wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "GetBlob: offset and length are not negative", "")
	}
	f, size, err := s.store.Open(request.Digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	length := int64(request.Length)
	if length == 0 || length > maxChunk {
		length = maxChunk
	}
	data := make(wsdl.Binary, max(0, min(length, size-request.Offset)))
	if _, err := f.ReadAt(data, request.Offset); err != nil && !errors.Is(err, io.EOF) {
		return nil, s.store.diskError(err)
	}
	return &wsdl.GetBlobResponse{
		Blob: s.blob(Status{Digest: request.Digest, Size: size, Received: size, Complete: true}),
		Data: &data,
	}, nil
}

// StatBlobContext says what is here; a blob of which nothing is here is no
// fault, but has received 0 and no size.
func (s *Service) StatBlobContext(_ context.Context, request *wsdl.StatBlob) (*wsdl.StatBlobResponse, error) {
	st, err := s.store.Stat(request.Digest)
	if err != nil {
		return nil, err
	}
	return &wsdl.StatBlobResponse{Blob: s.blob(st)}, nil
}

// ListBlobsContext gives a page of complete blobs.
func (s *Service) ListBlobsContext(_ context.Context, request *wsdl.ListBlobs) (*wsdl.ListBlobsResponse, error) {
	limit := int(request.Limit)
	if limit <= 0 || limit > maxListed {
		limit = maxListed
	}
	list, err := s.store.List(request.After, limit)
	if err != nil {
		return nil, err
	}
	response := &wsdl.ListBlobsResponse{}
	for _, st := range list {
		response.Blob = append(response.Blob, s.blob(st))
	}
	return response, nil
}

// Handler answers GET and HEAD, with ranges, for the blob that the last step of
// the path names: mount it at /services/image/blobs/{digest}. A response writer
// that hides io.ReaderFrom costs it sendfile.
func (s *Store) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "blobs are read with GET and HEAD, and uploaded with PutBlob of the image service", http.StatusMethodNotAllowed)
			return
		}
		digest := path.Base(r.URL.Path)
		f, _, err := s.Open(digest)
		if err != nil {
			status := http.StatusInternalServerError
			switch wsdl.CodeOf(err) {
			case wsdl.FaultCodeNotFound:
				status = http.StatusNotFound
			case wsdl.FaultCodeInvalidRequest:
				status = http.StatusBadRequest
			}
			http.Error(w, err.Error(), status)
			return
		}
		defer f.Close()
		h := w.Header()
		h.Set("ETag", `"`+digest+`"`)
		h.Set("Cache-Control", "public, max-age=31536000, immutable")
		h.Set("Content-Type", "application/octet-stream")
		h.Set("X-Content-Type-Options", "nosniff")
		http.ServeContent(w, r, "", time.Time{}, f) // no Last-Modified: the ETag is the content
	})
}

// BlobURL is where a node serves a blob to a plain GET. base is the node's base
// address, or that of its image service.
func BlobURL(base, digest string) string { return nodeBase(base) + blobsPath + digest }

func nodeBase(base string) string {
	return strings.TrimSuffix(strings.TrimRight(base, "/"), servicePath)
}
