package build

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// memory is a file with what compilers turned out to be, so that a node that
// starts does not ask them all again: asking takes longer than all else of a
// start. Only a full success is kept: what did not work may be mended in a way
// that no file told of here shows. A file that is missing, cut short or of
// another version is as none.
type memory struct{ path string }

// remembered is what the file holds.
type remembered struct {
	Seen  string // the programs on the search path, as stamps
	Rests string // stamps of the files that the answers rest on besides
	Files []string
	Known []Compiler
}

// recall returns what was found when the search path and the files behind it
// were as they are now.
func (m memory) recall(seen string) ([]Compiler, bool) {
	if m.path == "" {
		return nil, false
	}
	text, err := os.ReadFile(m.path)
	if err != nil {
		return nil, false
	}
	var r remembered
	if json.Unmarshal(text, &r) != nil || r.Seen != seen || len(r.Known) == 0 {
		return nil, false
	}
	rests, ok := stamps(r.Files)
	return r.Known, ok && rests == r.Rests
}

// keep remembers; that it could not is no matter.
func (m memory) keep(seen string, known []Compiler, files []string) {
	rests, ok := stamps(files)
	if m.path == "" || !ok {
		return
	}
	text, err := json.Marshal(remembered{Seen: seen, Rests: rests, Files: files, Known: known})
	if err != nil || os.MkdirAll(filepath.Dir(m.path), 0o700) != nil {
		return
	}
	// Several nodes may share the file: each puts a whole one in place.
	f, err := os.CreateTemp(filepath.Dir(m.path), filepath.Base(m.path)+".")
	if err != nil {
		return
	}
	_, err = f.Write(text)
	if closing := f.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(f.Name(), m.path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
}

// stamps is a line for each file that changes when the file does.
func stamps(files []string) (string, bool) {
	var b strings.Builder
	for _, path := range files {
		info, err := os.Stat(path)
		if err != nil {
			return "", false
		}
		b.WriteString(stamp(path, info))
	}
	return b.String(), true
}

func stamp(path string, info os.FileInfo) string {
	return fmt.Sprintf("%s %d %s\n", path, info.Size(), info.ModTime().UTC().Format(time.RFC3339Nano))
}
