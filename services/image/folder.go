package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"mvm/wsdl"
)

// ManifestName is the manifest's file in a folder that holds an image; every
// other file there has the name of its Part.
const ManifestName = "manifest.json"

// Seal fills in what a folder's files have for size and digest and writes the
// manifest beside them. m lists them, with the formats of disks.
func Seal(folder string, m *Manifest) (digest string, err error) {
	m.Format = ManifestFormat
	for i := range m.Files {
		file := &m.Files[i]
		if file.Digest, file.Size, err = digestOf(filepath.Join(folder, string(file.Part))); err != nil {
			return "", err
		}
	}
	data, digest, err := m.Encode()
	if err != nil {
		return "", err
	}
	return digest, os.WriteFile(filepath.Join(folder, ManifestName), data, 0o644)
}

// ReadFolder reads the manifest of a folder that holds an image, and its digest.
// It does not look at the other files.
func ReadFolder(folder string) (m *Manifest, data []byte, digest string, err error) {
	path := filepath.Join(folder, ManifestName)
	data, err = os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, "", wsdl.NewFault(wsdl.FaultCodeNotFound, fmt.Sprintf("the folder %s holds no image: there is no %s", folder, ManifestName),
			"name a folder that `mvm image build`, import or pull has made")
	}
	if err != nil {
		return nil, nil, "", err
	}
	if m, err = ParseManifest(data); err != nil {
		return nil, nil, "", fmt.Errorf("%s: %w", path, err)
	}
	return m, data, Digest(sha256.Sum256(data)), nil
}

// Install moves the image in one folder, sealed, into another one on the same
// disk, in place of what that held. A folder that has a manifest always holds the
// image that it names.
func Install(folder, from string) error {
	if err := remove(filepath.Join(folder, ManifestName)); err != nil {
		return err
	}
	for _, part := range Parts() {
		err := os.Rename(filepath.Join(from, string(part)), filepath.Join(folder, string(part)))
		if errors.Is(err, fs.ErrNotExist) {
			err = remove(filepath.Join(folder, string(part)))
		}
		if err != nil {
			return err
		}
	}
	return os.Rename(filepath.Join(from, ManifestName), filepath.Join(folder, ManifestName))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// CheckFile says whether the file of a part is still what the manifest says.
func CheckFile(folder string, f File) error {
	path := filepath.Join(folder, string(f.Part))
	digest, size, err := digestOf(path)
	if err != nil {
		return err
	}
	if digest != f.Digest || size != f.Size {
		return wsdl.NewFault(wsdl.FaultCodeInvalidRequest, fmt.Sprintf("%s is not what the manifest says: it has %d bytes and the digest %s, expected %d and %s", path, size, digest, f.Size, f.Digest),
			"make or pull the image again")
	}
	return nil
}

func digestOf(path string) (digest string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	sum := sha256.New()
	if size, err = io.Copy(sum, f); err != nil {
		return "", 0, fmt.Errorf("%s: %w", path, err)
	}
	return Digest([32]byte(sum.Sum(nil))), size, nil
}
