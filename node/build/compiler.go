package build

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Compiler builds or runs one language on this machine.
type Compiler struct {
	Language string // C, CPP, Go, Python or Shell
	Name     string // what people call it: gcc, clang, go, python3, sh
	Command  string // absolute path
	Version  string // as it says itself, in one line
}

// probe is how one language's compiler is found.
type probe struct {
	language string
	names    []string // in order of preference
	ask      func(ctx context.Context, path string) (finding, bool)
}

// finding is what a program said of itself.
type finding struct {
	command, version string
	rests            string // a file that it needs besides, "" if none
}

// TCC is the name of the tiny C compiler: in OS-level VMs it is the one that there
// is.
const TCC = "tcc"

// Detector finds this machine's compilers and remembers them for as long as
// the programs on the search path stay the same.
type Detector struct {
	path   string
	memory memory
	probes []probe

	mu     sync.Mutex // guards what follows
	seen   string     // the programs found, with their sizes and times
	known  []Compiler // what they turned out to be
	looked time.Time  // when the programs were last looked at
}

// fresh is how long the search path is not looked at again: that would cost each
// of many small jobs more than the rest of finding its cached build.
const fresh = time.Second

// NewDetector looks for compilers on a search path as in $PATH; "" means this
// process's own. file is where what they are outlives this process, "" nowhere;
// several processes of one user may share it.
func NewDetector(path, file string) *Detector {
	if path == "" {
		path = os.Getenv("PATH")
	}
	return &Detector{path: path, memory: memory{file}, probes: []probe{
		{C, []string{"gcc", "cc", "clang", TCC}, askNative},
		{CPP, []string{"g++", "c++", "clang++"}, askNative},
		{Go, []string{"go"}, askGo},
		{Python, []string{"python3", "python"}, askPython},
		{Shell, []string{"sh"}, askShell},
	}}
}

// Compilers lists what works here, at most one a language, ordered C, C++, Go,
// Python, shell. The first call costs some ten milliseconds of each compiler's
// time, later ones only a look at the files.
func (d *Detector) Compilers(ctx context.Context) []Compiler {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known != nil && time.Since(d.looked) < fresh {
		return append([]Compiler(nil), d.known...)
	}
	looked := time.Now()
	var seen strings.Builder
	found := make([][]string, len(d.probes))
	for i, p := range d.probes {
		for _, name := range p.names {
			for _, dir := range filepath.SplitList(d.path) {
				path := filepath.Join(dir, name)
				info, err := os.Stat(path)
				if err != nil || info.IsDir() || info.Mode()&0o111 == 0 || !filepath.IsAbs(path) {
					continue
				}
				found[i] = append(found[i], path)
				seen.WriteString(stamp(path, info))
			}
		}
	}
	if d.known != nil && d.seen == seen.String() {
		d.looked = looked
		return append([]Compiler(nil), d.known...)
	}
	if known, ok := d.memory.recall(seen.String()); ok {
		d.known, d.seen, d.looked = known, seen.String(), looked
		return append([]Compiler(nil), known...)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	answers := make([]*Compiler, len(d.probes))
	rests := make([]string, len(d.probes))
	var all sync.WaitGroup
	for i, p := range d.probes {
		all.Go(func() {
			for _, path := range found[i] {
				if f, ok := p.ask(ctx, path); ok {
					answers[i], rests[i] = &Compiler{p.language, filepath.Base(path), f.command, f.version}, f.rests
					return
				}
			}
		})
	}
	all.Wait()
	known := []Compiler{}
	var files []string
	failed := false
	for i, c := range answers {
		if c == nil {
			failed = failed || len(found[i]) > 0
			continue
		}
		known = append(known, *c)
		files = append(files, c.Command)
		if rests[i] != "" {
			files = append(files, rests[i])
		}
	}
	if ctx.Err() == nil { // else some were cut short: ask again next time
		d.known, d.seen, d.looked = known, seen.String(), looked
		if !failed {
			d.memory.keep(d.seen, known, files)
		}
	}
	return append([]Compiler(nil), known...)
}

// For picks the compiler of a language.
func For(language string, compilers []Compiler) (Compiler, bool) {
	for _, c := range compilers {
		if c.Language == language {
			return c, true
		}
	}
	return Compiler{}, false
}

func answer(ctx context.Context, path string, arguments ...string) (string, bool) {
	c := exec.CommandContext(ctx, path, arguments...)
	c.Env = append(os.Environ(), "LC_ALL=C", "GOTOOLCHAIN=local", "GOTELEMETRY=off")
	c.WaitDelay = time.Second
	out, err := c.Output()
	return string(bytes.TrimSpace(out)), err == nil
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return strings.TrimSpace(line)
}

// askNative wants, beside the compiler, the C library's files to link with: a
// compiler alone is common and useless.
func askNative(ctx context.Context, path string) (finding, bool) {
	if filepath.Base(path) == TCC {
		return askTCC(ctx, path)
	}
	start, ok := answer(ctx, path, "-print-file-name=crt1.o")
	if !ok || !filepath.IsAbs(start) {
		return finding{}, false
	}
	version, ok := answer(ctx, path, "--version")
	return finding{command: path, version: firstLine(version), rests: start}, ok && version != ""
}

// askTCC takes the tiny C compiler where programs can be linked with the C client
// that was made for it: that client's own sources want a compiler with atomics.
func askTCC(ctx context.Context, path string) (finding, bool) {
	version, ok := answer(ctx, path, "-v")
	if !ok || !strings.HasPrefix(version, "tcc version") {
		return finding{}, false
	}
	said, _ := answer(ctx, path, "-print-search-dirs")
	_, libraries, _ := strings.Cut(said, "libraries:")
	for line := range strings.Lines(libraries) {
		library := filepath.Join(strings.TrimSpace(line), "libmvm.a")
		if _, err := os.Stat(library); err == nil {
			return finding{command: path, version: firstLine(version), rests: library}, true
		}
	}
	return finding{}, false
}

func askGo(ctx context.Context, path string) (finding, bool) {
	version, ok := answer(ctx, path, "version")
	return finding{command: path, version: strings.TrimPrefix(firstLine(version), "go version ")}, ok && strings.HasPrefix(version, "go version ")
}

// askPython follows version managers' wrappers to the program behind them:
// they would look for their own files in a home folder that a job lacks.
func askPython(ctx context.Context, path string) (finding, bool) {
	said, ok := answer(ctx, path, "-I", "-c", `import ctypes, sys; print(sys.executable); print("Python", sys.version.split()[0])`)
	command, version, two := strings.Cut(said, "\n")
	return finding{command: command, version: version}, ok && two && filepath.IsAbs(command) && strings.HasPrefix(version, "Python 3")
}

func askShell(ctx context.Context, path string) (finding, bool) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return finding{}, false
	}
	said, ok := answer(ctx, path, "-c", "echo works")
	return finding{command: path, version: filepath.Base(real)}, ok && said == "works"
}
