package osvm

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func aCheckpoint() Checkpoint {
	return Checkpoint{
		Format: checkpointFormat, VM: "a", At: time.Unix(1, 0).UTC(), Machine: "pc-q35-7.2", Accelerator: TCG, MemoryMiB: 80,
		StateBytes: 1, State: []string{digestOf(nil)}, Memory: make([]string, 80<<20/chunkSize),
	}
}

func TestManifestsThatAreNone(t *testing.T) {
	for want, spoil := range map[string]func(*Checkpoint){
		"format":          func(c *Checkpoint) { c.Format = "other" },
		"the VM is":       func(c *Checkpoint) { c.VM = "../a" },
		"the image is":    func(c *Checkpoint) { c.Image = "sha256:0" },
		"the machine is":  func(c *Checkpoint) { c.Machine = "pc-q35-7.2,accel=kvm" },
		"accelerator":     func(c *Checkpoint) { c.Accelerator = Auto },
		"command line":    func(c *Checkpoint) { c.CommandLine = "a\nb" },
		"the memory has":  func(c *Checkpoint) { c.MemoryMiB = -1 },
		"chunks":          func(c *Checkpoint) { c.Memory = c.Memory[1:] },
		"state has":       func(c *Checkpoint) { c.StateBytes = stateMax + 1 },
		"of devices' sta": func(c *Checkpoint) { c.State = nil },
		"disk 0 has":      func(c *Checkpoint) { c.Disks = []SavedDisk{{Bytes: 1}} },
		"17 disks":        func(c *Checkpoint) { c.Disks = make([]SavedDisk, 17) },
		"and no digest":   func(c *Checkpoint) { c.Memory[7] = "../../etc/passwd" },
	} {
		c := aCheckpoint()
		spoil(&c)
		text, _ := json.Marshal(c)
		if _, err := parseCheckpoint(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
	text, _ := json.Marshal(aCheckpoint())
	if _, err := parseCheckpoint(text); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "{}", string(text[:len(text)-1]), string(text) + "x", strings.Replace(string(text), "{", `{"more":1,`, 1)} {
		if _, err := parseCheckpoint([]byte(bad)); err == nil {
			t.Errorf("%.60s... is taken for a manifest", bad)
		}
	}
}

func FuzzCheckpoint(f *testing.F) {
	text, _ := json.Marshal(aCheckpoint())
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := parseCheckpoint(text); err == nil && (len(c.Memory) != c.MemoryMiB<<20/chunkSize || c.StateBytes > stateMax) {
			t.Errorf("taken: %+v", c)
		}
	})
}
