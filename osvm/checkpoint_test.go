package osvm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// shelf is a store of blobs in memory, which can be told to fail.
type shelf struct {
	mu    sync.Mutex // guards all below
	blobs map[string][]byte
	put   func() error // asked before each Put
}

func (s *shelf) Has(digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, has := s.blobs[digest]
	return has
}

func (s *shelf) Put(_ context.Context, digest string, content []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.put != nil {
		if err := s.put(); err != nil {
			return err
		}
	}
	if osvm.DigestOf(content) != digest {
		return fmt.Errorf("blob %s is put with other bytes", digest)
	}
	if s.blobs == nil {
		s.blobs = map[string][]byte{}
	}
	s.blobs[digest] = bytes.Clone(content)
	return nil
}

func (s *shelf) Get(_ context.Context, digest string, most int) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	content, has := s.blobs[digest]
	switch {
	case !has:
		return nil, fmt.Errorf("blob %s is not here", digest)
	case len(content) > most:
		return nil, fmt.Errorf("blob %s has %d bytes", digest, len(content))
	}
	return content, nil
}

// manifests counts the checkpoints on the shelf.
func (s *shelf) manifests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	count := 0
	for _, content := range s.blobs {
		if osvm.IsManifest(content) {
			count++
		}
	}
	return count
}

// named gives the guest a name that its memory then holds.
func named(t *testing.T, ctx context.Context, m *osvm.Machine, name string) {
	t.Helper()
	agent := session(t, ctx, m)
	defer agent.Close()
	vmtest.Call[guest.Nothing](t, agent, "Identify", guest.Identity{Hostname: name, Time: time.Now(), Randomness: make([]byte, 32)})
}

func checkpoint(t *testing.T, ctx context.Context, m *osvm.Machine, blobs osvm.Blobs) *osvm.Saved {
	t.Helper()
	c, err := m.Capture(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	saved, err := c.Save(ctx, blobs)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("checkpoint of %s: pause %v, %d chunks, %d written with %d bytes", m.ID, c.Pause, saved.Chunks, saved.Written, saved.Bytes)
	return saved
}

// TestCheckpoint is all about checkpoints that needs a guest.
func TestCheckpoint(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*vmtest.Limit)
	defer cancel()
	h := vmtest.Host(t)
	elsewhere := vmtest.Host(t)
	image := vmtest.Image(t)
	blobs := &shelf{}

	clone := func(t *testing.T, name string) *osvm.Machine {
		t.Helper()
		m := vmtest.Machine(t, h, name)
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		named(t, ctx, m, name)
		return m
	}
	// restored is a machine of the other host that goes on from a checkpoint and
	// has that name.
	restored := func(t *testing.T, from osvm.Blobs, digest, name string) *osvm.Machine {
		t.Helper()
		m, err := elsewhere.Restore(ctx, osvm.Order{ID: "restored-" + name}, from, digest)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Destroy() })
		if m.State() != osvm.Created || m.ImageDigest != image.Digest {
			t.Errorf("restored it is %s, of the image %s", m.State(), m.ImageDigest)
		}
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		agent := session(t, ctx, m)
		defer agent.Close()
		if got := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{}); got.Hostname != name {
			t.Errorf("restored: %q, want %q", got.Hostname, name)
		}
		return m
	}

	t.Run("memory in a file", func(t *testing.T) {
		m := vmtest.MachineOf(t, h, osvm.Order{ID: "cold", Image: image, MemoryMiB: 128})
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		named(t, ctx, m, "cold")
		saved := checkpoint(t, ctx, m, blobs)
		named(t, ctx, m, "later")
		restored(t, blobs, saved.Digest, "cold")
	})
	one := clone(t, "one")
	var last *osvm.Saved
	t.Run("again", func(t *testing.T) {
		checkpoint(t, ctx, one, blobs)
		last = checkpoint(t, ctx, one, blobs)
		if last.Written > last.Chunks/2 {
			t.Errorf("a guest that did nothing has %d of %d chunks written again", last.Written, last.Chunks)
		}
		named(t, ctx, one, "later")
		again := restored(t, blobs, last.Digest, "one")
		named(t, ctx, again, "twice")
		restored(t, blobs, checkpoint(t, ctx, again, blobs).Digest, "twice") // of a machine that was restored itself
	})
	t.Run("clones of a checkpoint", func(t *testing.T) {
		template, c, err := osvm.Fetch(ctx, blobs, last.Digest, filepath.Join(t.TempDir(), "again"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"left", "right"} {
			spec := one.Spec
			spec.ID, spec.Template, spec.Machine = name, template, c.Machine
			m, err := osvm.Create(ctx, vmtest.QEMU(t), t.TempDir(), spec)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = m.Destroy() })
			if err := m.Resume(ctx); err != nil {
				t.Fatal(err)
			}
			named(t, ctx, m, name)
		}
	})
	t.Run("suspended", func(t *testing.T) {
		m := clone(t, "suspended")
		if err := m.Suspend(ctx); err != nil {
			t.Fatal(err)
		}
		one, two := checkpoint(t, ctx, m, blobs), checkpoint(t, ctx, m, blobs)
		if m.State() != osvm.Suspended {
			t.Errorf("after its checkpoint it is %s", m.State())
		}
		if two.Written > 2 { // the manifest's time is not in a chunk
			t.Errorf("of a machine that stood still %d chunks were written again", two.Written)
		}
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
		named(t, ctx, m, "goes-on")
		restored(t, blobs, one.Digest, "suspended")
	})
	t.Run("full disk", func(t *testing.T) {
		m := clone(t, "full")
		whole := blobs.manifests()
		for _, room := range []int{0, 5} {
			full := &shelf{put: func() error {
				if room--; room < 0 {
					return errors.New("no space left on device")
				}
				return nil
			}}
			c, err := m.Capture(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Save(ctx, full); err == nil || !strings.Contains(err.Error(), "no space left") {
				t.Errorf("saved on a full disk: %v", err)
			}
			c.Close()
			if full.manifests() > 0 {
				t.Error("a checkpoint is there that is not whole")
			}
		}
		named(t, ctx, m, "goes-on")
		restored(t, blobs, checkpoint(t, ctx, m, blobs).Digest, "goes-on")
		if now := blobs.manifests(); now != whole+1 {
			t.Errorf("%d checkpoints, want %d", now, whole+1)
		}
	})
	t.Run("nobody waits any more", func(t *testing.T) {
		m := clone(t, "left-alone")
		gone, leave := context.WithCancel(ctx)
		m.Pass(func(step string) {
			if step == "suspended" {
				leave()
			}
		})
		if c, err := m.Capture(gone); err == nil {
			c.Close()
			t.Error("its state was taken for one who has gone")
		}
		named(t, ctx, m, "goes-on")
	})
	t.Run("killed", func(t *testing.T) {
		for _, step := range []string{"begun", "suspended", "taken", "going on", "saving"} {
			m := clone(t, "killed")
			m.Pass(func(at string) {
				if at == step {
					m.KillQEMU()
				}
			})
			saving := 0
			own := &shelf{put: func() error {
				if saving++; saving == 3 && step == "saving" {
					m.KillQEMU()
				}
				return nil
			}}
			c, err := m.Capture(ctx)
			if err == nil {
				_, err = c.Save(ctx, own)
				c.Close()
			}
			<-m.Ended()
			if m.State() != osvm.Ended || m.Reason() == nil {
				t.Errorf("%s: it is %s for the reason %v", step, m.State(), m.Reason())
			}
			early := step != "going on" && step != "saving"
			switch count := own.manifests(); {
			case early && (err == nil || count > 0):
				t.Errorf("%s: killed, and there are %d checkpoints; %v", step, count, err)
			case early && !strings.Contains(err.Error(), "QEMU has ended"):
				t.Errorf("%s: the error does not say what happened: %v", step, err)
			case !early && (err != nil || count != 1):
				t.Errorf("%s: its state was taken, and there are %d checkpoints; %v", step, count, err)
			case !early:
				for digest, content := range own.blobs {
					if osvm.IsManifest(content) {
						restored(t, own, digest, "killed")
					}
				}
			}
			if err := m.Destroy(); err != nil {
				t.Error(err)
			}
			for _, m := range elsewhere.List() {
				_ = m.Destroy()
			}
		}
	})
	t.Run("disks", func(t *testing.T) { checkpointDisks(t, ctx, h, elsewhere, image) })
	t.Run("damaged", func(t *testing.T) { damaged(t, blobs, last.Digest) })
	t.Run("not restored", func(t *testing.T) {
		other := image
		other.Digest = osvm.DigestOf(nil)
		spoilt := &shelf{blobs: maps.Clone(blobs.blobs)}
		c, err := osvm.ReadCheckpoint(ctx, blobs, last.Digest)
		if err != nil {
			t.Fatal(err)
		}
		delete(spoilt.blobs, c.State[0])
		for want, order := range map[string]osvm.Order{
			"is of a machine with the image": {ID: "other", Image: other},
			"its id is not":                  {ID: "../other", Image: image},
			"its devices' state: chunk 0":    {ID: "other", Image: image},
		} {
			dir := t.TempDir()
			there := vmtest.HostIn(t, dir)
			if _, err := there.Restore(ctx, order, spoilt, last.Digest); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error %v, want one with %q", err, want)
			}
			if len(there.List()) > 0 {
				t.Error("a machine is there")
			}
			left, _ := filepath.Glob(filepath.Join(dir, "*", "*"))
			if len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		}
	})
}

// checkpointDisks has a machine with two disks, one that it may write to, go on
// elsewhere with what was written to it.
func checkpointDisks(t *testing.T, ctx context.Context, h, elsewhere *osvm.Host, image osvm.Image) {
	tool, err := exec.LookPath("qemu-io")
	if err != nil {
		t.Skip("SKIPPED: no checkpoint of disks was looked into: ", err)
	}
	folder := t.TempDir()
	for _, parent := range []string{folder, filepath.Dir(folder)} { // QEMU is not us
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	base := filepath.Join(folder, "base")
	if err := os.WriteFile(base, bytes.Repeat([]byte{1}, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	image.Digest = osvm.DigestOf([]byte("with disks"))
	image.Disks = []osvm.Disk{{Path: base, Format: osvm.Raw}, {Path: base, Format: osvm.Raw, ReadOnly: true}}
	does := func(m *osvm.Machine, words string) {
		t.Helper()
		if said, err := m.QEMUIO(ctx, words); err != nil || said != "" {
			t.Errorf("%s: %s: %q, %v", m.ID, words, said, err)
		}
	}
	m := vmtest.MachineOf(t, h, osvm.Order{ID: "disks", Image: image, MemoryMiB: 128})
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	named(t, ctx, m, "disks")
	does(m, "write -P 7 1M 300k")
	blobs := &shelf{}
	one := checkpoint(t, ctx, m, blobs)
	does(m, "write -P 8 1M 64k")
	if err := m.Suspend(ctx); err != nil {
		t.Fatal(err)
	}
	checkpoint(t, ctx, m, blobs)
	two := checkpoint(t, ctx, m, blobs) // twice without running
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	does(m, "write -P 9 1M 64k")
	for digest, patterns := range map[string][]string{
		one.Digest: {"read -P 7 1M 300k", "read -P 1 1330k 12k"},
		two.Digest: {"read -P 8 1M 64k", "read -P 7 1088k 236k"},
	} {
		if _, err := elsewhere.Restore(ctx, osvm.Order{ID: "nothing"}, blobs, digest); err == nil || !strings.Contains(err.Error(), "2 disks") {
			t.Errorf("restored without the image: %v", err)
		}
		again, err := elsewhere.Restore(ctx, osvm.Order{ID: "disks-again", Image: image}, blobs, digest)
		if err != nil {
			t.Fatal(err)
		}
		if err := again.Resume(ctx); err != nil {
			t.Error(err)
		}
		does(again, "write -P 5 3M 64k")
		template, _, err := osvm.Fetch(ctx, blobs, digest, filepath.Join(t.TempDir(), "fetched"))
		if err != nil {
			t.Fatal(err)
		}
		for _, words := range patterns {
			if said, err := exec.Command(tool, "-r", "-f", "qcow2", "-c", words, template.Disk(0)).CombinedOutput(); err != nil || !strings.Contains(string(said), "ops") {
				t.Errorf("%s of what the checkpoint has: %s, %v", words, said, err)
			}
		}
		named(t, ctx, again, "again")
		if err := again.Destroy(); err != nil {
			t.Error(err)
		}
	}
	var out bytes.Buffer
	if err := osvm.Export(ctx, blobs, two.Digest, &out); err != nil {
		t.Error(err)
	}
	if _, _, err := osvm.Import(ctx, &shelf{}, &out); err != nil {
		t.Error(err)
	}
}

// damaged fetches a checkpoint that lacks a blob, or has one with other bytes.
func damaged(t *testing.T, blobs *shelf, digest string) {
	c, err := osvm.ReadCheckpoint(t.Context(), blobs, digest)
	if err != nil {
		t.Fatal(err)
	}
	chunk := slices.IndexFunc(c.Memory, func(digest string) bool { return digest != "" })
	for name, spoil := range map[string]struct {
		digest string
		blob   func([]byte) []byte
		says   string
	}{
		"no manifest":          {digest, nil, "is not here"},
		"manifest cut":         {digest, func(b []byte) []byte { return b[:len(b)/2] }, "its manifest has other bytes"},
		"no state":             {c.State[0], nil, "its devices' state: chunk 0 of "},
		"no memory":            {c.Memory[chunk], nil, fmt.Sprintf("its memory: chunk %d of 512, %s", chunk, c.Memory[chunk])},
		"memory cut":           {c.Memory[chunk], func(b []byte) []byte { return b[:len(b)-1] }, "other bytes"},
		"a bit of memory":      {c.Memory[chunk], func(b []byte) []byte { b = bytes.Clone(b); b[len(b)/2] ^= 4; return b }, "other bytes"},
		"nothing of a chunk":   {c.Memory[chunk], func([]byte) []byte { return nil }, "other bytes"},
		"more than a chunk is": {c.Memory[chunk], func([]byte) []byte { return make([]byte, 3*osvm.ChunkSize) }, "bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			spoilt := &shelf{blobs: maps.Clone(blobs.blobs)}
			delete(spoilt.blobs, spoil.digest)
			if spoil.blob != nil {
				spoilt.blobs[spoil.digest] = spoil.blob(blobs.blobs[spoil.digest])
			}
			folder := t.TempDir()
			_, _, err := osvm.Fetch(t.Context(), spoilt, digest, filepath.Join(folder, "fetched"))
			if err == nil || !strings.Contains(err.Error(), spoil.says) {
				t.Errorf("error %v, want one with %q", err, spoil.says)
			}
			if spoil.blob != nil && len(spoilt.blobs[spoil.digest]) < osvm.ChunkSize && !errors.Is(err, osvm.ErrCorrupt) {
				t.Errorf("error %v is not ErrCorrupt", err)
			}
			if left, _ := os.ReadDir(folder); len(left) > 0 {
				t.Errorf("%s is left", left[0].Name())
			}
		})
	}
}
