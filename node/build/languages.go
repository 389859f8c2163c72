package build

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// program is what a compiled program is called in its artifact folder.
const program = "program"

// native compiles C or C++ with everything in one command: sources, then the
// user's flags (so that -lm finds what the sources left open), then libmvm.
func (b *builder) native(ctx context.Context) error {
	source := filepath.Join(b.temp, "source")
	if err := b.lay(source); err != nil {
		return err
	}
	extensions := []string{".c"}
	if b.Language == CPP {
		extensions = []string{".cpp", ".cc", ".cxx", ".c++", ".C", ".c"}
	}
	var units []string
	for _, f := range b.Files {
		if slices.Contains(extensions, filepath.Ext(f.Name)) {
			units = append(units, "./"+f.Name)
		}
	}
	if len(units) == 0 {
		return &Failure{Message: fmt.Sprintf("source %s has no file to compile; expected one that ends in %s", b.Source, strings.Join(extensions, ", "))}
	}
	argv := []string{b.Compiler.Command, "-O2", "-pipe", "-fdiagnostics-color=never", "-I."}
	library := "-lmvm" // which tcc finds beside the C library, as mvm.h
	if b.Compiler.Name != TCC {
		var err error
		if library, err = b.library(ctx, "libmvm.a"); err != nil {
			return err
		}
		argv = append(argv, "-I"+filepath.Join(b.Clients, "c"))
	} else {
		argv = append(argv, "-static") // it knows no other C library's loader
	}
	argv = append(append(argv, "-o", filepath.Join(b.Out, program)), units...)
	argv = append(argv, b.Flags...)
	argv = append(argv, library, "-lpthread")
	b.manifest = manifest{Language: b.Language, Program: program}
	return b.compile(ctx, source, nil, argv...)
}

// golang compiles a Go program as module job. Module mvm, with the client
// alone in it, comes from the client files; nothing comes from a network.
func (b *builder) golang(ctx context.Context) error {
	client, err := b.goClient()
	if err != nil {
		return err
	}
	source := filepath.Join(b.temp, "source")
	if err := b.lay(source); err != nil {
		return err
	}
	module := fmt.Sprintf("module job\n\ngo %s\n\nrequire mvm v0.0.0\n\nreplace mvm => %q\n", b.goVersion(), client)
	if err := os.WriteFile(filepath.Join(source, "go.mod"), []byte(module), 0o644); err != nil {
		return err
	}
	goCache := b.GoCache
	if goCache == "" {
		goCache = filepath.Join(b.Cache, "go")
	}
	environment := []string{
		"GOFLAGS=-mod=mod", "GOPROXY=off", "GOSUMDB=off", "GOTOOLCHAIN=local", "GOWORK=off", "GOENV=off", "GO111MODULE=on",
		"GOTELEMETRY=off", "CGO_ENABLED=0", "GOCACHE=" + goCache, "GOPATH=" + filepath.Join(b.temp, "go"), "GOTMPDIR=" + b.temp,
	}
	unlock, err := warm(ctx, goCache, b.Compiler.Version)
	if err != nil {
		return fmt.Errorf("wait for Go's build cache %s: %w", goCache, err)
	}
	done, err := use(goCache)
	if err != nil {
		unlock(false)
		return fmt.Errorf("use Go's build cache %s: %w", goCache, err)
	}
	defer done()
	argv := append([]string{b.Compiler.Command, "build", "-buildvcs=false", "-o", filepath.Join(b.Out, program)}, b.Flags...)
	b.manifest = manifest{Language: b.Language, Program: program}
	err = b.compile(ctx, source, environment, append(argv, ".")...)
	unlock(err == nil)
	return err
}

// goVersion is the language version of the compiler found, so that neither
// module asks for a newer one.
func (b *builder) goVersion() string {
	// By hand: package regexp, and Unicode's tables with it, would be a part of
	// each start of the MVM process.
	if minor, ok := strings.CutPrefix(b.Compiler.Version, "go1."); ok {
		if minor = minor[:len(minor)-len(strings.TrimLeft(minor, "0123456789"))]; minor != "" {
			return "1." + minor
		}
	}
	return "1.23"
}

// goClient lays out module mvm, once for each version of the client files.
func (b *builder) goClient() (string, error) {
	from := filepath.Join(b.Clients, "client")
	digest, err := treeDigest(from)
	if err != nil {
		return "", fmt.Errorf("read the Go client: %w", err)
	}
	to := filepath.Join(b.Cache, "goclient-"+digest[:16]+"-"+b.goVersion())
	return to, once(to, func(dir string) error {
		module := fmt.Sprintf("module mvm\n\ngo %s\n", b.goVersion())
		if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(module), 0o644); err != nil {
			return err
		}
		client := filepath.Join(dir, "queuevm", "client")
		if err := os.MkdirAll(client, 0o755); err != nil {
			return err
		}
		return copyTree(from, client, func(name string) bool {
			return strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		})
	})
}

// python keeps the files with their byte code, so that syntax errors show
// before anything runs and a read-only artifact still starts fast.
func (b *builder) python(ctx context.Context) error {
	source := filepath.Join(b.Out, "source")
	if err := b.lay(source); err != nil {
		return err
	}
	var modules []string
	for _, f := range b.Files {
		if filepath.Ext(f.Name) == ".py" {
			modules = append(modules, "./"+f.Name)
		}
	}
	if !slices.Contains(modules, "./"+b.Files[0].Name) {
		return &Failure{Message: fmt.Sprintf("source %s: its first file, %s, is what Python runs and must end in .py", b.Source, b.Files[0].Name)}
	}
	b.manifest = manifest{Language: b.Language, Program: filepath.Join("source", filepath.FromSlash(b.Files[0].Name)),
		Interpreter: append([]string{b.Compiler.Command}, b.Flags...)}
	return b.compile(ctx, source, nil, append([]string{b.Compiler.Command, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"}, modules...)...)
}

// shell reads every script once without running it.
func (b *builder) shell(ctx context.Context) error {
	source := filepath.Join(b.Out, "source")
	if err := b.lay(source); err != nil {
		return err
	}
	b.manifest = manifest{Language: b.Language, Program: filepath.Join("source", filepath.FromSlash(b.Files[0].Name)),
		Interpreter: append([]string{b.Compiler.Command}, b.Flags...)}
	for i, f := range b.Files {
		if i == 0 || filepath.Ext(f.Name) == ".sh" {
			if err := b.compile(ctx, source, nil, b.Compiler.Command, "-n", "./"+f.Name); err != nil {
				return err
			}
		}
	}
	return nil
}
