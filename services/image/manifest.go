package image

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode"

	"mvm/wsdl"
)

// Part is what a file of an image is for.
type Part string

const (
	Kernel Part = "kernel" // an ELF image or a bzImage; without one the machine's firmware starts the disk
	Initrd Part = "initrd" // the kernel's initial file system
	Disk   Part = "disk"   // what each machine has a writable overlay on
	Base   Part = "base"   // what Disk, a qcow2 file, holds the differences from
	Seed   Part = "seed"   // a read-only disk from which a cloud image takes the agent
)

// Formats of disks.
const (
	Raw   = "raw"
	QCOW2 = "qcow2"
)

// ManifestFormat is what every manifest begins with.
const ManifestFormat = "mvm-image-1"

// Bounds of what a manifest may say.
const (
	maxManifest    = 64 << 10
	maxText        = 2048    // bytes of the kernel's command line, a description
	maxPart        = 1 << 46 // bytes
	maxLeastMemory = 1 << 24 // MiB
)

// Manifest says what an image is made of. It is a blob itself, whose digest is
// the image's: one image has one manifest, byte by byte (Encode).
type Manifest struct {
	Format       string   `json:"format"`
	Name         string   `json:"name"`
	Release      string   `json:"release,omitempty"` // of what it was made, by its maker's own count
	Description  string   `json:"description,omitempty"`
	Architecture string   `json:"architecture"` // as Go names it
	CommandLine  string   `json:"commandLine,omitempty"`
	LeastMemory  int      `json:"leastMemory"`         // MiB that it starts in
	Languages    []string `json:"languages,omitempty"` // that it can build and run
	Files        []File   `json:"files"`               // in the order of Parts
}

// File is one file of an image.
type File struct {
	Part   Part   `json:"part"`
	Digest string `json:"digest"`
	Size   int64  `json:"size"`             // bytes
	Format string `json:"format,omitempty"` // Raw or QCOW2, of disks
}

// Parts lists what an image may have, in the order in which manifests list it.
func Parts() []Part { return []Part{Kernel, Initrd, Disk, Base, Seed} }

// File is the image's file for a part; false where it has none.
func (m *Manifest) File(part Part) (File, bool) {
	i := slices.IndexFunc(m.Files, func(f File) bool { return f.Part == part })
	if i < 0 {
		return File{}, false
	}
	return m.Files[i], true
}

// Size is how many bytes all files have.
func (m *Manifest) Size() (size int64) {
	for _, f := range m.Files {
		size += f.Size
	}
	return size
}

// Encode writes a manifest as it is named by its digest, which it returns too.
// The fault is as ParseManifest's.
func (m *Manifest) Encode() (data []byte, digest string, err error) {
	if err := m.check(); err != nil {
		return nil, "", err
	}
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(m); err != nil {
		return nil, "", err
	}
	if out.Len() > maxManifest {
		return nil, "", refused("it has %d bytes, more than %d", out.Len(), maxManifest)
	}
	return out.Bytes(), Digest(sha256.Sum256(out.Bytes())), nil
}

// ParseManifest reads what Encode wrote, and nothing else. The fault is
// invalidRequest, and says what is wrong.
func ParseManifest(data []byte) (*Manifest, error) {
	if len(data) > maxManifest {
		return nil, refused("it has %d bytes, more than %d", len(data), maxManifest)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	m := new(Manifest)
	if err := decoder.Decode(m); err != nil {
		return nil, refused("%v", err)
	}
	if m.Format != ManifestFormat {
		return nil, refused("its format is %.40q, not %q", m.Format, ManifestFormat)
	}
	again, _, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(again, data) {
		return nil, refused("it is written otherwise than `mvm image build` writes it, and would be another image by another digest")
	}
	return m, nil
}

func refused(format string, args ...any) error {
	return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, "the manifest of an image is refused: "+fmt.Sprintf(format, args...),
		"make images with `mvm image build` or `mvm image import`")
}

func (m *Manifest) check() error {
	switch {
	case m.Format != ManifestFormat:
		return refused("its format is %.40q, not %q", m.Format, ManifestFormat)
	case !wsdl.ValidName(m.Name):
		return refused("an image cannot be named %.80q: write a letter, then up to 62 letters, digits, '_', '.' or '-'", m.Name)
	case m.Architecture != "amd64" && m.Architecture != "arm64":
		return refused("its architecture is %.40q: there are amd64 and arm64", m.Architecture)
	case m.LeastMemory < 1 || m.LeastMemory > maxLeastMemory:
		return refused("it needs %d MiB of memory, expected 1 to %d", m.LeastMemory, maxLeastMemory)
	}
	for _, text := range []struct{ what, is string }{{"release", m.Release}, {"description", m.Description}, {"command line", m.CommandLine}} {
		if len(text.is) > maxText || strings.ContainsFunc(text.is, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return refused("its %s has more than %d bytes, or what cannot be printed", text.what, maxText)
		}
	}
	languages := []string{string(wsdl.LanguageC), string(wsdl.LanguageCpp), string(wsdl.LanguageGo_), string(wsdl.LanguagePython), string(wsdl.LanguageShell)}
	for i, language := range m.Languages {
		if !slices.Contains(languages, language) || slices.Contains(m.Languages[:i], language) {
			return refused("%.40q is no language, or is named twice: there are %s", language, strings.Join(languages, ", "))
		}
	}
	return m.checkFiles()
}

func (m *Manifest) checkFiles() error {
	last := -1
	for _, f := range m.Files {
		at := slices.Index(Parts(), f.Part)
		disk := f.Part == Disk || f.Part == Base || f.Part == Seed
		_, wrong := hexOf(f.Digest)
		switch {
		case at < 0:
			return refused("%.40q is no part of an image: there are %v", f.Part, Parts())
		case at <= last:
			return refused("its files are not one for each part, in the order %v", Parts())
		case wrong != nil:
			return refused("the digest of its %s is %.100q", f.Part, f.Digest)
		case f.Size < 1 || f.Size > maxPart:
			return refused("its %s has %d bytes, expected 1 to %d", f.Part, f.Size, int64(maxPart))
		case disk && f.Format != Raw && f.Format != QCOW2, !disk && f.Format != "":
			return refused("the format of its %s is %.40q: disks have %s or %s, others none", f.Part, f.Format, Raw, QCOW2)
		}
		last = at
	}
	has := func(part Part) bool { _, there := m.File(part); return there }
	disk, _ := m.File(Disk)
	seed, _ := m.File(Seed)
	switch {
	case !has(Kernel) && !has(Disk):
		return refused("it has neither a kernel nor a disk to start from")
	case has(Initrd) && !has(Kernel):
		return refused("it has an initial file system and no kernel")
	case m.CommandLine != "" && !has(Kernel):
		return refused("it has a command line and no kernel")
	case has(Base) && disk.Format != QCOW2:
		return refused("it has a base, and no disk of the format %s over it", QCOW2)
	case has(Seed) && (!has(Disk) || seed.Format != Raw):
		return refused("it has a seed that is not %s, or no disk to go with it", Raw)
	}
	return nil
}

// Describe is the manifest as the image service tells it, without what only
// registering gives.
func (m *Manifest) Describe(digest string) *wsdl.Image {
	i := &wsdl.Image{Name: m.Name, Digest: digest, Release: m.Release, Description: m.Description,
		Architecture: m.Architecture, CommandLine: m.CommandLine, LeastMemory: int32(m.LeastMemory)}
	for _, language := range m.Languages {
		i.Language = append(i.Language, wsdl.Of(wsdl.Language(language)))
	}
	for _, f := range m.Files {
		i.File = append(i.File, &wsdl.ImageFile{Part: string(f.Part), Digest: f.Digest, Size: wsdl.Of(f.Size), Format: f.Format})
	}
	return i
}

// Manifest reads the manifest that a digest names; its blob is here.
func (s *Store) Manifest(digest string) (*Manifest, error) {
	f, size, err := s.Open(digest)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxManifest {
		return nil, refused("%s has %d bytes, more than %d", digest, size, maxManifest)
	}
	data, err := io.ReadAll(f)
	if err != nil {
		return nil, s.diskError(err)
	}
	return ParseManifest(data)
}
