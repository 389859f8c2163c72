// Package pid1 holds the first program of an OS-level VM, for who makes images.
//
// It is a package of its own because what it holds is a whole program: whoever
// runs VMs but makes no images of them, that program itself above all, has no use
// for it.
package pid1

import (
	"bytes"
	"compress/gzip"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
)

//go:embed all:embedded
var embedded embed.FS

// Program is the program, ready to be a file of an image. It is there when `make
// build` made this program; the error says so where it is not.
func Program() ([]byte, error) {
	packed, err := embedded.ReadFile("embedded/agent.gz")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("this program was built without the first program of images: build it with `make build`")
	}
	if err != nil {
		return nil, err
	}
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, fmt.Errorf("the first program of images: %w", err)
	}
	return io.ReadAll(r)
}
