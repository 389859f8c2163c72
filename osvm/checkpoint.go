package osvm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
)

// Blobs is where checkpoints are kept: bytes by their digest, "sha256:" and 64
// hexadecimal digits. A node gives its own.
type Blobs interface {
	Has(digest string) bool
	Put(ctx context.Context, digest string, content []byte) error
	// Get gives a blob of at most so many bytes. What it gives is checked here.
	Get(ctx context.Context, digest string, most int) ([]byte, error)
}

// ErrCorrupt is wrapped by the error about a checkpoint whose bytes are not what
// its digests say, or not what a checkpoint has.
var ErrCorrupt = errors.New("the checkpoint is damaged")

// Bounds of a checkpoint.
const (
	checkpointFormat = "mvm-checkpoint-1"
	manifestMost     = 64 << 20
	memoryMostMiB    = 1 << 18
	disksMost        = 16
	packedMost       = 2 * chunkSize // bytes of a blob that is a chunk
	digestPrefix     = "sha256:"
)

// Checkpoint is the manifest of a machine's state: its memory and the state of its
// devices as chunks of chunkSize bytes, the last one shorter, each a blob of its
// own, compressed by zstd. A chunk of zeros is "" and no blob. The manifest is a
// blob, too, written after all that it names; its digest is the checkpoint's name.
type Checkpoint struct {
	Format      string      `json:"format"`
	VM          string      `json:"vm"` // the id of the machine that it is of
	At          time.Time   `json:"at"`
	Image       string      `json:"image,omitempty"` // digest of what the machine was booted from
	Machine     string      `json:"machine"`         // QEMU's type of machine, with its version
	Accelerator Accelerator `json:"accelerator"`
	CommandLine string      `json:"commandLine,omitempty"`
	Network     bool        `json:"network,omitempty"` // it has a network card
	MemoryMiB   int         `json:"memoryMiB"`
	StateBytes  int         `json:"stateBytes"`
	State       []string    `json:"state"`
	Memory      []string    `json:"memory"`
	Disks       []SavedDisk `json:"disks,omitempty"` // all that it has
}

// SavedDisk is what a guest has written to a disk: a qcow2 file over the image's,
// or nothing where it may not write.
type SavedDisk struct {
	Bytes  int64    `json:"bytes"`
	Chunks []string `json:"chunks,omitempty"`
}

// Saved is what Save has done.
type Saved struct {
	Digest  string // of the manifest
	Chunks  int    // that are no zeros
	Written int    // of them: the others were there already
	Bytes   int64  // that were written, compressed
}

// Blobs are the digests of all blobs of a checkpoint but the manifest's, each
// once.
func (c *Checkpoint) Blobs() []string {
	var digests []string
	seen := map[string]bool{"": true}
	for _, list := range c.chunks() {
		for _, digest := range list {
			if !seen[digest] {
				seen[digest] = true
				digests = append(digests, digest)
			}
		}
	}
	return digests
}

// chunks are all lists of them.
func (c *Checkpoint) chunks() [][]string {
	lists := [][]string{c.State, c.Memory}
	for _, disk := range c.Disks {
		lists = append(lists, disk.Chunks)
	}
	return lists
}

// written remembers which blob a machine's chunks became, by their content, so
// that what has not changed since is not compressed again.
type written struct {
	mu     sync.Mutex // guards chunks
	chunks map[[sha256.Size]byte]string
}

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return digestPrefix + hex.EncodeToString(sum[:])
}

// Save makes a checkpoint of the capture, while the machine runs on: a blob for
// each chunk that is not there yet, then the manifest. When it fails there is no
// checkpoint; chunks that were written are blobs that nobody names.
func (c *Capture) Save(ctx context.Context, blobs Blobs) (*Saved, error) {
	saved, err := c.save(ctx, blobs)
	if err != nil {
		return nil, fmt.Errorf("VM %s: save its checkpoint: %w", c.Spec.ID, err)
	}
	return saved, nil
}

func (c *Capture) save(ctx context.Context, blobs Blobs) (*Saved, error) {
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false))
	if err != nil {
		return nil, err
	}
	defer encoder.Close()
	k := &keeper{blobs: blobs, encoder: encoder, known: c.known, next: map[[sha256.Size]byte]string{}}
	state := c.state
	manifest := &Checkpoint{
		Format: checkpointFormat, VM: c.Spec.ID, At: c.At.UTC(), Image: c.Spec.ImageDigest, Machine: c.Spec.Machine, Accelerator: c.Spec.Accelerator,
		CommandLine: c.Spec.CommandLine, Network: c.Spec.Network, MemoryMiB: c.Spec.MemoryMiB, StateBytes: len(state),
	}
	for at := 0; at < len(state); at += chunkSize {
		digest, err := k.keep(ctx, state[at:min(at+chunkSize, len(state))])
		if err != nil {
			return nil, err
		}
		manifest.State = append(manifest.State, digest)
	}
	for at := 0; at < c.Spec.MemoryMiB<<20; at += chunkSize {
		digest, err := k.keep(ctx, c.chunk(at))
		if err != nil {
			return nil, err
		}
		manifest.Memory = append(manifest.Memory, digest)
	}
	for _, disk := range c.disks {
		saved, err := k.disk(ctx, disk)
		if err != nil {
			return nil, err
		}
		manifest.Disks = append(manifest.Disks, saved)
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return nil, err
	}
	k.saved.Digest = digestOf(text)
	if err := blobs.Put(ctx, k.saved.Digest, text); err != nil {
		return nil, err
	}
	c.known.mu.Lock()
	defer c.known.mu.Unlock()
	c.known.chunks = k.next
	return &k.saved, nil
}

// keeper writes chunks.
type keeper struct {
	blobs   Blobs
	encoder *zstd.Encoder
	known   *written
	next    map[[sha256.Size]byte]string // what the machine will know
	packed  []byte
	saved   Saved
}

// disk keeps an overlay, nil for none.
func (k *keeper) disk(ctx context.Context, file *os.File) (saved SavedDisk, err error) {
	if file == nil {
		return saved, nil
	}
	info, err := file.Stat()
	if err != nil {
		return saved, err
	}
	saved.Bytes = info.Size()
	chunk := make([]byte, chunkSize)
	for at := int64(0); at < saved.Bytes; at += chunkSize {
		piece := chunk[:min(chunkSize, saved.Bytes-at)]
		if _, err := file.ReadAt(piece, at); err != nil {
			return saved, err
		}
		digest, err := k.keep(ctx, piece)
		if err != nil {
			return saved, err
		}
		saved.Chunks = append(saved.Chunks, digest)
	}
	return saved, nil
}

// keep gives the digest of the blob that a chunk is.
func (k *keeper) keep(ctx context.Context, chunk []byte) (string, error) {
	if zero(chunk) {
		return "", nil
	}
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	k.saved.Chunks++
	sum := sha256.Sum256(chunk)
	digest, here := k.next[sum]
	if !here {
		k.known.mu.Lock()
		digest, here = k.known.chunks[sum]
		k.known.mu.Unlock()
		here = here && k.blobs.Has(digest)
	}
	if !here {
		k.packed = k.encoder.EncodeAll(chunk, k.packed[:0])
		digest = digestOf(k.packed)
		if !k.blobs.Has(digest) {
			if err := k.blobs.Put(ctx, digest, k.packed); err != nil {
				return "", err
			}
			k.saved.Written++
			k.saved.Bytes += int64(len(k.packed))
		}
	}
	k.next[sum] = digest
	return digest, nil
}

var zeros [chunkSize]byte

func zero(chunk []byte) bool { return bytes.Equal(chunk, zeros[:len(chunk)]) }

var (
	digestForm  = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	machineForm = regexp.MustCompile(`^pc-q35-[0-9]{1,3}\.[0-9]{1,3}$`)
)

// ReadCheckpoint reads and checks a manifest.
func ReadCheckpoint(ctx context.Context, blobs Blobs, digest string) (*Checkpoint, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("checkpoint %.100q: its name is sha256: and 64 hexadecimal digits", digest)
	}
	text, err := blobs.Get(ctx, digest, manifestMost)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", digest, err)
	}
	if digestOf(text) != digest {
		return nil, fmt.Errorf("checkpoint %s: %w: its manifest has other bytes than its digest says", digest, ErrCorrupt)
	}
	return parseCheckpoint(text)
}

func parseCheckpoint(text []byte) (*Checkpoint, error) {
	c := &Checkpoint{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(c); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	if decoder.More() {
		return nil, fmt.Errorf("%w: its manifest does not end", ErrCorrupt)
	}
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	return c, nil
}

func (c *Checkpoint) check() error {
	switch {
	case c.Format != checkpointFormat:
		return fmt.Errorf("its format is %.40q, and %s is known", c.Format, checkpointFormat)
	case !specID.MatchString(c.VM):
		return fmt.Errorf("the VM is %.80q", c.VM)
	case c.Image != "" && !digestForm.MatchString(c.Image):
		return fmt.Errorf("the image is %.80q, and no digest", c.Image)
	case !machineForm.MatchString(c.Machine):
		return fmt.Errorf("the machine is %.80q", c.Machine)
	case c.Accelerator != KVM && c.Accelerator != TCG:
		return fmt.Errorf("the accelerator is %.40q", c.Accelerator)
	case strings.ContainsFunc(c.CommandLine, func(r rune) bool { return r < ' ' }):
		return errors.New("the kernel's command line has control characters")
	case c.MemoryMiB < LeastMemoryMiB || c.MemoryMiB > memoryMostMiB:
		return fmt.Errorf("the memory has %d MiB", c.MemoryMiB)
	case len(c.Memory) != c.MemoryMiB<<20/chunkSize:
		return fmt.Errorf("%d MiB of memory have %d chunks", c.MemoryMiB, len(c.Memory))
	case c.StateBytes <= 0 || c.StateBytes > stateMax:
		return fmt.Errorf("the devices' state has %d bytes", c.StateBytes)
	case len(c.State) != (c.StateBytes+chunkSize-1)/chunkSize:
		return fmt.Errorf("%d bytes of devices' state have %d chunks", c.StateBytes, len(c.State))
	case len(c.Disks) > disksMost:
		return fmt.Errorf("it has %d disks", len(c.Disks))
	}
	for i, disk := range c.Disks {
		if disk.Bytes < 0 || disk.Bytes > diskMost || int64(len(disk.Chunks)) != (disk.Bytes+chunkSize-1)/chunkSize {
			return fmt.Errorf("disk %d has %d bytes and %d chunks", i, disk.Bytes, len(disk.Chunks))
		}
	}
	for _, list := range c.chunks() {
		for i, digest := range list {
			if digest != "" && !digestForm.MatchString(digest) {
				return fmt.Errorf("chunk %d is %.80q, and no digest", i, digest)
			}
		}
	}
	return nil
}

// Fetch reads the checkpoint of that digest, chunk by verified chunk, into folder,
// which must not exist: a template, whose clones go on where the machine was. The
// error names the chunk that is missing or damaged, and nothing is left then.
func Fetch(ctx context.Context, blobs Blobs, digest, folder string) (*Template, *Checkpoint, error) {
	c, err := ReadCheckpoint(ctx, blobs, digest)
	if err != nil {
		return nil, nil, err
	}
	t, err := c.unpack(ctx, blobs, folder)
	if err != nil {
		return nil, nil, fmt.Errorf("checkpoint %s: %w", digest, err)
	}
	return t, c, nil
}

func (c *Checkpoint) unpack(ctx context.Context, blobs Blobs, folder string) (t *Template, err error) {
	if err := os.Mkdir(folder, 0o700); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(folder)
		}
	}()
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(4*chunkSize))
	if err != nil {
		return nil, err
	}
	defer decoder.Close()
	t = &Template{folder: folder}
	type part struct {
		what, path string
		size       int64
		chunks     []string
	}
	parts := []part{
		{"its devices' state", t.state(), int64(c.StateBytes), c.State},
		{"its memory", t.memory(), int64(c.MemoryMiB) << 20, c.Memory},
	}
	for i, disk := range c.Disks {
		if disk.Bytes > 0 {
			parts = append(parts, part{"its disk " + strconv.Itoa(i), filepath.Join(folder, diskName(i)), disk.Bytes, disk.Chunks})
		}
	}
	for _, part := range parts {
		if err := writeChunks(ctx, blobs, decoder, part.path, part.size, part.chunks); err != nil {
			return nil, fmt.Errorf("%s: %w", part.what, err)
		}
	}
	for i, disk := range c.Disks {
		if disk.Bytes == 0 {
			continue
		}
		// The checkpoint may be a stranger's: its disk must not mean files of this host's.
		info, err := ProbeDisk(filepath.Join(folder, diskName(i)))
		if err == nil && (info.Format != QCOW2 || info.Backed) {
			err = fmt.Errorf("%w: it is no overlay of ours", ErrDisk)
		}
		if err != nil {
			return nil, fmt.Errorf("its disk %d: %w: %w", i, ErrCorrupt, err)
		}
	}
	return t, nil
}

func writeChunks(ctx context.Context, blobs Blobs, decoder *zstd.Decoder, path string, size int64, chunks []string) error {
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		return err
	}
	var chunk []byte
	for i, digest := range chunks {
		if digest == "" {
			continue
		}
		packed, err := blobs.Get(ctx, digest, packedMost)
		if err != nil {
			return fmt.Errorf("chunk %d of %d, %s: %w", i, len(chunks), digest, err)
		}
		if digestOf(packed) != digest {
			return fmt.Errorf("chunk %d of %d, %s: %w: it has other bytes than its digest says", i, len(chunks), digest, ErrCorrupt)
		}
		at := int64(i) * chunkSize
		chunk, err = decoder.DecodeAll(packed, chunk[:0])
		if err == nil && int64(len(chunk)) != min(chunkSize, size-at) {
			err = fmt.Errorf("it has %d bytes", len(chunk))
		}
		if err != nil {
			return fmt.Errorf("chunk %d of %d, %s: %w: %w", i, len(chunks), digest, ErrCorrupt, err)
		}
		if _, err := file.WriteAt(chunk, at); err != nil {
			return fmt.Errorf("chunk %d of %d: %w", i, len(chunks), err)
		}
	}
	return file.Close()
}

// Restore makes a machine that goes on from a checkpoint once it is resumed. Its
// image is the checkpoint's, of which only the disks' files need to be here. The
// guest believes that it is the machine that it was: identity, clock and randomness
// are for the host to give, and Start does.
func (h *Host) Restore(ctx context.Context, order Order, blobs Blobs, digest string) (*Machine, error) {
	c, err := ReadCheckpoint(ctx, blobs, digest)
	if err != nil {
		return nil, err
	}
	switch {
	case order.Image.Digest != "" && order.Image.Digest != c.Image:
		return nil, fmt.Errorf("VM %s: checkpoint %s is of a machine with the image %q, not %q", order.ID, digest, c.Image, order.Image.Digest)
	case len(c.Disks) != len(order.Image.Disks):
		return nil, fmt.Errorf("VM %s: checkpoint %s is of a machine with %d disks over those of its image %s: have the image here", order.ID, digest, len(c.Disks), c.Image)
	case order.Segment != nil && !c.Network:
		return nil, fmt.Errorf("%w: VM %s is to be on the network %s, and checkpoint %s is of a machine without a network card", ErrOrder, order.ID, order.Segment.Name, digest)
	case c.Accelerator != h.accelerator:
		return nil, fmt.Errorf("VM %s: checkpoint %s is of a machine that %s ran, and this host's run by %s", order.ID, digest, c.Accelerator, h.accelerator)
	}
	order.MemoryMiB, order.Image.Digest, order.Image.CommandLine, order.Network = c.MemoryMiB, c.Image, c.CommandLine, c.Network
	return h.add(order, func(spec Spec) (*Machine, error) {
		folder, err := os.MkdirTemp(h.machines, ".restoring-") // swept by the next Host if this one is killed
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(folder) // the machine has its own link to the memory
		if spec.Template, err = c.unpack(ctx, blobs, filepath.Join(folder, "template")); err != nil {
			return nil, fmt.Errorf("VM %s: checkpoint %s: %w", spec.ID, digest, err)
		}
		spec.Machine = c.Machine
		return Create(ctx, h.config.QEMU, h.machines, spec)
	})
}
