package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// rooms says who may import whom: each room of the house, and the rooms whose
// packages it may import besides its own. "services/*" and the like are every
// room below, but those that follow with a minus.
var rooms = map[string][]string{
	"wsdl":                 {},
	"queuevm":              {},
	"queuevm/client":       {},
	"node/build":           {},
	"services/store":       {},
	"osvm/qmp":             {},
	"osvm/link":            {},
	"osvm/guest":           {},
	"services/soap":        {"wsdl"},
	"services/security":    {"wsdl"},
	"services/bootstrap":   {"wsdl"},
	"services/image":       {"wsdl"},
	"broker/profile":       {"wsdl"},
	"services/information": {"wsdl", "services/store"},
	"services/policy":      {"wsdl", "services/store", "services/security"},
	"services/client":      {"wsdl", "services/soap", "services/security", "services/image", "broker/profile"},
	"broker/place":         {"broker/profile"},
	"broker/peer":          {"wsdl", "services/soap"},
	"broker":               {"wsdl", "services/*", "-services/client", "broker/*", "queuevm"},
	"node/mvm":             {"queuevm", "node/build"},
	"osvm":                 {"osvm/*"},
	"node":                 {"wsdl", "services/*", "-services/client", "-services/store", "node/*", "queuevm", "osvm"},
	"examples":             {"wsdl", "services/client", "queuevm/client"},
	"":                     {"*"},
}

// testRooms are what a room's tests may import besides: the other side of what
// they test, never anything that would let the room itself lean on it.
var testRooms = map[string][]string{
	"queuevm": {"queuevm/client"},
}

const module = "mvm"

// source is one parsed Go file of the project.
type source struct {
	path    string // slash-separated, from the root
	room    string
	test    bool
	imports []string
	file    *ast.File
}

// sources parses every Go file of the project, whatever its build tags.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(name), test: strings.HasSuffix(name, "_test.go"), file: file}
		s.room = roomOf(t, path.Dir(s.path))
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, imported)
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d Go files found: the test does not run at the root", len(all))
	}
	return all
}

// roomOf is the room that a package's folder belongs to: the nearest one above.
func roomOf(t *testing.T, dir string) string {
	t.Helper()
	if dir == "." {
		return ""
	}
	for at := dir; at != "."; at = path.Dir(at) {
		if _, ok := rooms[at]; ok {
			return at
		}
	}
	t.Errorf("%s belongs to no room of the house", dir)
	return dir
}

// allows tells whether a list of rooms, with its stars and minuses, has room.
func allows(list []string, room string) bool {
	ok := false
	for _, entry := range list {
		forbid := strings.HasPrefix(entry, "-")
		entry = strings.TrimPrefix(entry, "-")
		match := entry == room || entry == "*"
		if above, star := strings.CutSuffix(entry, "/*"); star {
			match = strings.HasPrefix(room, above+"/")
		}
		if match {
			ok = !forbid
		}
	}
	return ok
}

// ours is the project's folder that an import path names.
func ours(imported string) (dir string, ok bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

func TestImportsFollowTheHouse(t *testing.T) {
	for _, s := range sources(t) {
		for _, imported := range s.imports {
			dir, ok := ours(imported)
			if !ok {
				continue
			}
			to := roomOf(t, dir)
			if to == s.room || allows(rooms[s.room], to) || (s.test && allows(testRooms[s.room], to)) {
				continue
			}
			t.Errorf("%s (room %q) imports %s: the house allows it only %v", s.path, s.room, imported, rooms[s.room])
		}
	}
}

func TestPlacementIsPure(t *testing.T) {
	impure := []string{"net", "os", "time", "math/rand", "crypto/rand", "syscall"}
	for _, s := range sources(t) {
		if s.room != "broker/place" || s.test {
			continue
		}
		for _, imported := range s.imports {
			for _, bad := range impure {
				if imported == bad || strings.HasPrefix(imported, bad+"/") {
					t.Errorf("%s imports %s: placement is a pure function", s.path, imported)
				}
			}
		}
	}
}

func TestMVMProcessIsSlim(t *testing.T) {
	packages := map[string][]string{} // folder -> what its files import
	for _, s := range sources(t) {
		if !s.test {
			dir := path.Dir(s.path)
			packages[dir] = append(packages[dir], s.imports...)
		}
	}
	seen := map[string]string{"node/mvm": "node/mvm", "node/mvm/process": "node/mvm/process"} // folder -> how it was reached
	queue := slices.Sorted(maps.Keys(seen))
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		for _, imported := range packages[dir] {
			way := seen[dir] + " -> " + imported
			if next, ok := ours(imported); ok {
				if next == "wsdl" || strings.HasPrefix(next, "services/") {
					t.Errorf("%s: the MVM process speaks no SOAP", way)
				}
				if _, done := seen[next]; !done {
					seen[next] = way
					queue = append(queue, next)
				}
				continue
			}
			standard := !strings.Contains(strings.Split(imported, "/")[0], ".")
			heavy := imported == "net/http" || strings.HasPrefix(imported, "net/http/") || imported == "net/rpc" || imported == "expvar"
			if heavy || (!standard && !strings.HasPrefix(imported, "golang.org/x/sys/")) {
				t.Errorf("%s: the MVM process links only the standard library without net/http, and golang.org/x/sys", way)
			}
		}
	}
}

func TestNoGlobalMachinery(t *testing.T) {
	for _, s := range sources(t) {
		for _, declaration := range s.file.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function: only main wires", s.path)
			}
		}
		switch s.file.Name.Name {
		case "util", "utils", "common", "types", "helpers", "misc":
			t.Errorf("%s: a package is named for one idea, not %q", s.path, s.file.Name.Name)
		}
	}
}

func TestTopLevelIsTheHouse(t *testing.T) {
	house := []string{
		"wsdl", "services", "broker", "node", "queuevm", "osvm", "examples",
		"go.mod", "go.sum", "Makefile", "LICENSE", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md",
		"main.go", "main_test.go",
	}
	ignored, err := os.ReadFile(".gitignore")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || slices.Contains(house, name) {
			continue
		}
		if slices.ContainsFunc(strings.Fields(string(ignored)), func(line string) bool { return strings.Trim(line, "/") == name }) {
			continue
		}
		t.Errorf("%s does not belong at the top level, which holds %v", name, house)
	}
}
