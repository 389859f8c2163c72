package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// SharedLibrary gives the path of libmvm.so, which Python programs load: the
// one that came with the client files, else one compiled with a C compiler
// into cache, once for each version of the sources. The error says that there
// is neither.
func SharedLibrary(ctx context.Context, clients, cache string, compilers []Compiler) (string, error) {
	compiler, _ := For(C, compilers)
	temp, err := os.MkdirTemp(cache, "library-")
	if err != nil {
		return "", fmt.Errorf("build libmvm.so: %w", err)
	}
	defer os.RemoveAll(temp)
	b := &builder{Request: Request{Source: "libmvm", Language: C, Compiler: compiler, Clients: clients, Cache: cache}, runner: Alone{}, temp: temp}
	return b.library(ctx, "libmvm.so")
}

// library finds libmvm.a or libmvm.so among the client files, or compiles it.
// In place of an archive with one object file in it comes that object file.
func (b *builder) library(ctx context.Context, name string) (string, error) {
	ready := filepath.Join(b.Clients, "c", "lib", name)
	if _, err := os.Stat(ready); err == nil {
		return ready, nil
	}
	if b.Compiler.Command == "" {
		return "", fmt.Errorf("there is no %s in %s and no C compiler to make it; install gcc and libc6-dev", name, filepath.Dir(ready))
	}
	mode := "-shared"
	if name == "libmvm.a" {
		name, mode = "mvm.o", "-c"
	}
	digest, err := Key(Request{Language: C, Compiler: b.Compiler, Clients: b.Clients, Flags: []string{mode}})
	if err != nil {
		return "", err
	}
	to := filepath.Join(b.Cache, "libmvm-"+digest[len("sha256:"):][:16])
	return filepath.Join(to, name), once(to, func(dir string) error {
		err := b.compile(ctx, filepath.Join(b.Clients, "c"), nil, b.Compiler.Command, "-O2", "-fPIC", "-fdiagnostics-color=never",
			mode, "-o", filepath.Join(dir, name), "-x", "c", "-std=gnu11", "./mvm.c", "-lpthread")
		var failure *Failure
		if errors.As(err, &failure) { // ours to mend, not the job's
			return fmt.Errorf("the client library does not compile: %s\n%s", failure.Message, failure.Output)
		}
		return err
	})
}

// once makes the folder to with fill unless it exists: filled under another
// name first, so that to is always whole, also when several make it at once.
func once(to string, fill func(dir string) error) error {
	if _, err := os.Stat(to); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	// What a build that was killed left half-made.
	stale, _ := filepath.Glob(to + ".new-*")
	for _, dir := range stale {
		if info, err := os.Stat(dir); err == nil && time.Since(info.ModTime()) > time.Hour {
			os.RemoveAll(dir)
		}
	}
	dir, err := os.MkdirTemp(filepath.Dir(to), filepath.Base(to)+".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	if err := fill(dir); err != nil {
		return err
	}
	err = os.Rename(dir, to)
	if _, there := os.Stat(to); err != nil && there == nil {
		return nil // someone else was faster
	}
	return err
}
