package node

import (
	"bytes"
	"context"
	"testing"

	"mvm/wsdl"
)

// keeping counts what it is given.
type keeping struct {
	wsdl.ImageContext
	bytes int
}

func (k *keeping) PutBlobContext(_ context.Context, r *wsdl.PutBlob) (*wsdl.PutBlobResponse, error) {
	k.bytes += len(*r.Data)
	return &wsdl.PutBlobResponse{}, nil
}

// TestUploads: a guest gives its host so much to keep, and no more.
func TestUploads(t *testing.T) {
	host := &keeping{}
	u := &uploads{ImageContext: host}
	u.left.Store(10)
	put := func(size int) error {
		data := wsdl.Binary(bytes.Repeat([]byte("x"), size))
		_, err := u.PutBlobContext(t.Context(), &wsdl.PutBlob{Data: &data})
		return err
	}
	for range 2 {
		if err := put(5); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := put(1); wsdl.CodeOf(err) != wsdl.FaultCodeTooLarge {
			t.Errorf("above the quota: %v", err)
		}
	}
	if host.bytes != 10 {
		t.Errorf("the host was given %d bytes", host.bytes)
	}
}
