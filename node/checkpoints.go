package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/mux"

	"mvm/osvm"
	"mvm/services/image"
	"mvm/wsdl"
)

// checkpointPins is who pins a checkpoint's blobs, before its digest.
const checkpointPins = "checkpoint:"

// vmBlobs are the node's blobs as checkpoints use them; what is not here comes
// from the bases, if there are any.
type vmBlobs struct {
	store  *image.Store
	client *http.Client
	bases  []string
}

func (n *Node) vmBlobs(bases []string) vmBlobs { return vmBlobs{n.images, n.http, bases} }

func (b vmBlobs) Has(digest string) bool { return b.store.Has(digest) }

func (b vmBlobs) Put(ctx context.Context, _ string, content []byte) error {
	_, _, err := b.store.Put(ctx, bytes.NewReader(content))
	return err
}

func (b vmBlobs) Get(ctx context.Context, digest string, most int) ([]byte, error) {
	if len(b.bases) > 0 && !b.store.Has(digest) {
		if err := b.store.Fetch(ctx, b.client, b.bases, digest); err != nil {
			return nil, err
		}
	}
	file, size, err := b.store.Open(digest)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if size > int64(most) {
		return nil, fmt.Errorf("blob %s has %d bytes, and %d at most are expected", digest, size, most)
	}
	content := make([]byte, size)
	_, err = io.ReadFull(file, content)
	return content, err
}

// keep pins a checkpoint with all that it names.
func (n *Node) keepCheckpoint(digest string, c *osvm.Checkpoint) error {
	return n.images.Pin(checkpointPins+digest, append(c.Blobs(), digest)...)
}

// tellCheckpoint is a checkpoint as the contract has it.
func (v *machines) tellCheckpoint(digest string, c *osvm.Checkpoint) *wsdl.VMCheckpoint {
	return &wsdl.VMCheckpoint{
		Digest: digest, Node: v.node.id, Vm: c.VM, Taken: *wsdl.Date(c.At), Image: c.Image, Memory: int64(c.MemoryMiB), Accelerator: string(c.Accelerator),
	}
}

func (v *machines) CheckpointVMContext(ctx context.Context, r *wsdl.CheckpointVM) (*wsdl.CheckpointVMResponse, error) {
	m, err := v.apart(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	if m.State() == osvm.Ended {
		return nil, v.ended(m)
	}
	capture, err := m.Capture(ctx)
	if err != nil {
		return nil, v.refusal(r.Id, err)
	}
	defer capture.Close()
	blobs := v.node.vmBlobs(nil)
	saved, err := capture.Save(ctx, blobs)
	if err != nil {
		return nil, v.refusal(r.Id, err)
	}
	c, err := osvm.ReadCheckpoint(ctx, blobs, saved.Digest)
	if err == nil {
		err = v.node.keepCheckpoint(saved.Digest, c)
	}
	if err != nil {
		return nil, v.refusal(r.Id, err)
	}
	return &wsdl.CheckpointVMResponse{Checkpoint: v.tellCheckpoint(saved.Digest, c), PauseMicros: wsdl.Of(capture.Pause.Microseconds()), Written: wsdl.Of(saved.Bytes)}, nil
}

func (v *machines) ListCheckpointsContext(ctx context.Context, _ *wsdl.ListCheckpoints) (*wsdl.ListCheckpointsResponse, error) {
	response := &wsdl.ListCheckpointsResponse{}
	for _, owner := range v.node.images.Owners() {
		digest, ours := strings.CutPrefix(owner, checkpointPins)
		if !ours {
			continue
		}
		c, err := osvm.ReadCheckpoint(ctx, v.node.vmBlobs(nil), digest)
		if err != nil {
			v.node.log.WithError(err).Warn("a checkpoint cannot be read")
			continue
		}
		response.Checkpoint = append(response.Checkpoint, v.tellCheckpoint(digest, c))
	}
	slices.SortFunc(response.Checkpoint, func(a, b *wsdl.VMCheckpoint) int { return a.Taken.ToGoTime().Compare(b.Taken.ToGoTime()) })
	return response, nil
}

func (v *machines) RemoveCheckpointContext(_ context.Context, r *wsdl.RemoveCheckpoint) (*wsdl.RemoveCheckpointResponse, error) {
	if err := v.kept(r.Digest); err != nil {
		return nil, err
	}
	if err := v.node.images.Unpin(checkpointPins + r.Digest); err != nil {
		return nil, err
	}
	return &wsdl.RemoveCheckpointResponse{}, nil
}

// kept refuses what is no checkpoint of this node.
func (v *machines) kept(digest string) error {
	if !slices.Contains(v.node.images.Owners(), checkpointPins+digest) {
		return wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("node %s keeps no checkpoint %.80q", v.node.id, digest), "`mvm vm checkpoints` lists those of all nodes")
	}
	return nil
}

// RestoreVMContext makes a VM that goes on from a checkpoint.
func (v *machines) RestoreVMContext(ctx context.Context, r *wsdl.RestoreVM) (*wsdl.RestoreVMResponse, error) {
	order, err := v.orderOf(r.Id, r.Limits, 0)
	if err != nil {
		return nil, err
	}
	if _, err := v.node.images.Stat(r.Checkpoint); wsdl.CodeOf(err) == wsdl.FaultCodeInvalidRequest {
		return nil, err // it is no digest
	}
	if _, err := v.host(ctx); err != nil {
		return nil, err
	}
	if order.Segment, err = v.node.segment(r.Network, r.NetworkKey); err != nil {
		return nil, err
	}
	vm, err := v.make(ctx, order.ID, r.Id == "", fmt.Sprintf("restore %q %v %q %q", r.Checkpoint, order.Limits, r.Network, r.NetworkKey), r.Suspended, never, func(ctx context.Context) (*osvm.Machine, error) {
		return v.restore(ctx, order, v.node.vmBlobs(r.Source), r.Checkpoint)
	})
	if err != nil {
		return nil, err
	}
	return &wsdl.RestoreVMResponse{Vm: vm}, nil
}

// never is what a VM that is there already is to one that goes on from elsewhere.
func never(*osvm.Machine) bool { return false }

func (v *machines) restore(ctx context.Context, order osvm.Order, blobs vmBlobs, digest string) (_ *osvm.Machine, err error) {
	c, err := osvm.ReadCheckpoint(ctx, blobs, digest)
	if err != nil {
		return nil, err
	}
	over, err := v.book(c.MemoryMiB, order.Limits.DiskMiB, 0)
	if err != nil {
		return nil, err
	}
	defer over()
	if len(c.Disks) > 0 { // which hold what differs from the image's
		pins := vmPins + order.ID
		defer func() {
			if err != nil {
				err = errors.Join(err, v.node.images.Unpin(pins))
			}
		}()
		if order.Image, err = v.image(ctx, c.Image, pins); err != nil {
			return nil, err
		}
	}
	return v.node.host.Restore(ctx, order, blobs, digest)
}

// CloneVMContext makes a second VM from where one is. It goes through a checkpoint
// that nobody keeps.
func (v *machines) CloneVMContext(ctx context.Context, r *wsdl.CloneVM) (*wsdl.CloneVMResponse, error) {
	m, err := v.apart(ctx, r.Id)
	if err != nil {
		return nil, err
	}
	if m.State() == osvm.Ended {
		return nil, v.ended(m)
	}
	order, err := v.orderOf(r.Clone, r.Limits, 0)
	if err != nil {
		return nil, err
	}
	order.Image.Name = m.ImageName
	if err := v.free(m.MemoryMiB, order.Limits.DiskMiB, 0); err != nil {
		return nil, err
	}
	if order.Segment, err = v.node.segment(r.Network, r.NetworkKey); err != nil {
		return nil, err
	}
	vm, err := v.make(ctx, order.ID, r.Clone == "", fmt.Sprintf("clone %q %v %q %q", r.Id, order.Limits, r.Network, r.NetworkKey), r.Suspended, never, func(ctx context.Context) (*osvm.Machine, error) {
		capture, err := m.Capture(ctx)
		if err != nil {
			return nil, err
		}
		blobs := v.node.vmBlobs(nil)
		saved, err := capture.Save(ctx, blobs)
		capture.Close()
		if err != nil {
			return nil, err
		}
		return v.restore(ctx, order, blobs, saved.Digest) // its blobs go when their lease is over
	})
	if err != nil {
		return nil, err
	}
	return &wsdl.CloneVMResponse{Vm: vm}, nil
}

// Checkpoints gives and takes checkpoints as one file each: GET of a path with the
// variable digest, POST of one without.
func (n *Node) Checkpoints() http.Handler {
	v := &machines{node: n}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			v.importFrom(w, r)
			return
		}
		digest := mux.Vars(r)["digest"]
		if err := v.kept(digest); err != nil {
			sayPlainly(w, http.StatusNotFound, err)
			return
		}
		w.Header().Set("Content-Type", "application/x-tar")
		if err := osvm.Export(r.Context(), n.vmBlobs(nil), digest, w); err != nil {
			n.log.WithError(err).WithField("checkpoint", digest).Warn("an export broke off")
			panic(http.ErrAbortHandler) // so that nobody takes it for whole
		}
	})
}

func (v *machines) importFrom(w http.ResponseWriter, r *http.Request) {
	digest, c, err := osvm.Import(r.Context(), v.node.vmBlobs(nil), &steady{r.Body, http.NewResponseController(w)})
	if err == nil {
		err = v.node.keepCheckpoint(digest, c)
	}
	switch {
	case errors.Is(err, osvm.ErrCorrupt):
		sayPlainly(w, http.StatusBadRequest, err)
	case isFull(err):
		sayPlainly(w, http.StatusInsufficientStorage, err)
	case err != nil:
		sayPlainly(w, http.StatusServiceUnavailable, err)
	default:
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, digest+"\n")
	}
}

// steady gives a long body as long as it takes, as long as something comes.
type steady struct {
	body    io.Reader
	control *http.ResponseController
}

func (s *steady) Read(p []byte) (int, error) {
	const patience = time.Minute
	if err := s.control.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	return s.body.Read(p)
}
