package build

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Key names a build: "sha256:" and the digest of all that goes into the
// artifact: language, flags in order, file names and digests, compiler and
// version, machine, and the client library it is linked with. Where files lie
// and what the source is called do not matter; of the files' order, only which
// is first. It reads the client files, never the source's.
func Key(request Request) (string, error) { return key(request, treeDigest) }

// Keys gives the keys of many builds with client files that do not change: it
// reads them once. Its zero value is ready; it may be used concurrently.
type Keys struct {
	mu      sync.Mutex        // guards digests
	digests map[string]string // by folder
}

// Key is as the function Key.
func (k *Keys) Key(request Request) (string, error) {
	return key(request, func(dir string) (string, error) {
		k.mu.Lock()
		defer k.mu.Unlock()
		if digest, known := k.digests[dir]; known {
			return digest, nil
		}
		digest, err := treeDigest(dir)
		if err == nil {
			if k.digests == nil {
				k.digests = map[string]string{}
			}
			k.digests[dir] = digest
		}
		return digest, err
	})
}

func key(request Request, treeDigest func(dir string) (string, error)) (string, error) {
	h := sha256.New()
	add := func(words ...string) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(words))))
		for _, w := range words {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(w))))
			h.Write([]byte(w))
		}
	}
	add("mvm build 1", request.Language, runtime.GOOS, runtime.GOARCH)
	add(request.Flags...)
	var files []string
	for i, f := range request.Files {
		if !strings.HasPrefix(f.Digest, "sha256:") || len(f.Digest) != len("sha256:")+64 {
			return "", fmt.Errorf("source %s: the file %s has no digest", request.Source, f.Name)
		}
		if i == 0 {
			add(f.Name)
		}
		files = append(files, f.Name+"\x00"+f.Digest)
	}
	slices.Sort(files)
	add(files...)
	add(request.Compiler.Command, request.Compiler.Version)
	if folder := clientFolder(request.Language); folder != "" {
		library, err := treeDigest(filepath.Join(request.Clients, folder))
		if err != nil {
			return "", fmt.Errorf("source %s: read the client library: %w", request.Source, err)
		}
		add(library)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// clientFolder is the part of the client files that a language's artifact
// contains. Python's is imported where it lies, and shell has none.
func clientFolder(language string) string {
	switch language {
	case C, CPP:
		return "c"
	case Go:
		return "client"
	}
	return ""
}

// treeDigest is the digest of a folder's file names and contents.
func treeDigest(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && entry.Name() == "__pycache__" {
			return filepath.SkipDir // Python leaves it wherever it runs
		}
		if err != nil || entry.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		content := sha256.New()
		if _, err := io.Copy(content, f); err != nil {
			return err
		}
		fmt.Fprintf(h, "%d %s %x\n", len(name), name, content.Sum(nil))
		return nil
	})
	return hex.EncodeToString(h.Sum(nil)), err
}
