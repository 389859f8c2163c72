package osvm

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// packages are Debian's packages in a folder of their own.
type packages struct {
	folder string
	files  map[string]string // by package
}

// download fetches packages by apt-get, from where that is set up to.
func download(ctx context.Context, folder string, names ...string) (*packages, error) {
	command := append([]string{"apt-get", "-q", "-o", "APT::Sandbox::User=root", "download"}, names...)
	if _, err := run(ctx, folder, command...); err != nil {
		return nil, fmt.Errorf("fetch Debian's packages %s: %w", strings.Join(names, ", "), err)
	}
	p := &packages{folder: folder, files: map[string]string{}}
	for _, name := range names {
		found, err := filepath.Glob(filepath.Join(folder, name+"_*.deb"))
		if err != nil || len(found) != 1 {
			return nil, fmt.Errorf("fetch Debian's package %s: %d files came: %w", name, len(found), err)
		}
		p.files[name] = found[0]
	}
	return p, nil
}

// version is a package's, as its file says.
func (p *packages) version(name string) string {
	_, rest, _ := strings.Cut(filepath.Base(p.files[name]), "_")
	version, _, _ := strings.Cut(rest, "_")
	return strings.ReplaceAll(version, "%3a", ":")
}

// each visits the plain files of a package, named without a slash before them.
func (p *packages) each(ctx context.Context, name string, visit func(name string, mode fs.FileMode, content []byte) error) error {
	command := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", p.files[name])
	stream, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	err = eachFile(tar.NewReader(stream), visit)
	if err != nil {
		_ = command.Process.Kill()
	}
	_, _ = io.Copy(io.Discard, stream)
	if ended := command.Wait(); err == nil {
		err = ended
	}
	if err != nil {
		return fmt.Errorf("unpack Debian's package %s: %w", name, err)
	}
	return nil
}

// wanted gives the content of some of a package's files, all of which must be
// there.
func (p *packages) wanted(ctx context.Context, name string, files ...string) (map[string][]byte, error) {
	found := map[string][]byte{}
	err := p.each(ctx, name, func(file string, _ fs.FileMode, content []byte) error {
		if slices.Contains(files, file) {
			found[file] = content
		}
		return nil
	})
	for _, file := range files {
		if err == nil && found[file] == nil {
			err = fmt.Errorf("package %s of Debian has no %s", name, file)
		}
	}
	return found, err
}

func eachFile(archive *tar.Reader, visit func(name string, mode fs.FileMode, content []byte) error) error {
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if header.Typeflag != tar.TypeReg {
			continue
		}
		content, err := io.ReadAll(archive)
		if err != nil {
			return err
		}
		if err := visit(path.Clean(header.Name), header.FileInfo().Mode(), content); err != nil {
			return fmt.Errorf("%s: %w", header.Name, err)
		}
	}
}

// run gives what a command prints; the error has what it complains of.
func run(ctx context.Context, folder string, words ...string) (string, error) {
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Dir = folder
	var complaint bytes.Buffer
	command.Stderr = &complaint
	text, err := command.Output()
	if err != nil {
		lines := strings.Split(strings.TrimSpace(complaint.String()), "\n")
		slices.Reverse(lines) // the last say most
		return "", fmt.Errorf("%s: %w: %s", strings.Join(words[:min(len(words), 8)], " "), err, strings.Join(lines[:min(len(lines), 3)], "; "))
	}
	return string(text), nil
}
