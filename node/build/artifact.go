package build

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// manifestName is the file in an artifact folder that says how to run it.
const manifestName = "artifact.json"

// manifest is that file. Paths are relative to the folder, which moves.
type manifest struct {
	Language    string
	Program     string   // a binary, or the script
	Interpreter []string `json:",omitempty"` // absolute, with its flags
}

func (m manifest) write(dir string) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestName), text, 0o644)
}

// Command gives the program and arguments that run an artifact. The folder
// may have moved since Build and may be read-only. Python programs also need
// PYTHONPATH and MVM_LIBRARY, which the MVM process sets.
func Command(artifact string, arguments []string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(artifact, manifestName))
	if err != nil {
		return nil, fmt.Errorf("%s is no artifact: %w", artifact, err)
	}
	var m manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return nil, fmt.Errorf("%s is a broken artifact: %w; remove it to build anew", artifact, err)
	}
	if !filepath.IsLocal(m.Program) {
		return nil, fmt.Errorf("%s is a broken artifact: its program is %q; remove it to build anew", artifact, m.Program)
	}
	argv := append([]string(nil), m.Interpreter...)
	argv = append(argv, filepath.Join(artifact, m.Program))
	return append(argv, arguments...), nil
}

// lay copies the source's files to a folder. Copies, so that neither a
// compiler nor a program reaches the originals.
func (b *builder) lay(dir string) error {
	from, err := os.OpenRoot(b.Dir)
	if err != nil {
		return fmt.Errorf("open the source's folder: %w", err)
	}
	defer from.Close()
	for _, f := range b.Files {
		to := filepath.Join(dir, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return err
		}
		if err := copyFile(from, filepath.FromSlash(f.Name), to); err != nil {
			return fmt.Errorf("copy the file %s: %w", f.Name, err)
		}
	}
	return nil
}

func copyFile(from *os.Root, name, to string) error {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if closing := out.Close(); err == nil {
		err = closing
	}
	return err
}

// copyTree copies the regular files of a folder that match, without its
// subfolders' order or modes.
func copyTree(from, to string, match func(name string) bool) error {
	root, err := os.OpenRoot(from)
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(to, path)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		if !match(path) {
			return nil
		}
		return copyFile(root, path, target)
	})
}
