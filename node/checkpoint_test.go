package node

import (
	"context"
	"strings"
	"sync"
	"testing"

	"mvm/wsdl"
)

// shelfOf is an image service with room for so many blobs.
type shelfOf struct {
	mu    sync.Mutex // guards what follows
	room  int
	blobs map[string]int
}

func (s *shelfOf) Call(_ context.Context, _, _ string, request, response any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	put := request.(*wsdl.PutBlob)
	if len(s.blobs) == s.room {
		return wsdl.Faultf(wsdl.FaultCodeBusy, "the disk is full")
	}
	s.blobs[put.Digest] += len(*put.Data)
	*response.(*wsdl.PutBlobResponse) = wsdl.PutBlobResponse{}
	return nil
}

// A checkpoint's blobs are sent several at once; one that finds no room is a failure
// of the whole, is told with its reason, and is sent anew for the next.
func TestBlobsOfACheckpoint(t *testing.T) {
	shelf := &shelfOf{room: 20, blobs: map[string]int{}}
	e := &enclosure{runner: &runner{node: &Node{caller: shelf}, request: &wsdl.Awaken{Image: []string{"http://there"}}}}
	names := strings.Split("abcdefghijklmnopqrstuvwxyz", "")
	send := func() error {
		blobs := e.stored()
		content := make([]byte, 100) // used again for the next, as a checkpoint's are
		for _, name := range names {
			if blobs.Has(name) {
				continue
			}
			if err := blobs.Put(t.Context(), name, content); err != nil {
				break
			}
		}
		return blobs.sent()
	}
	if err := send(); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Fatalf("without room: %v", err)
	}
	shelf.room = 100
	if err := send(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if shelf.blobs[name] != 100 {
			t.Errorf("%d bytes of %s were sent", shelf.blobs[name], name)
		}
	}
}
