package osvm

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// Places of what tcc finds without being told (`tcc -vv`).
const (
	libraries = "usr/lib/x86_64-linux-gnu"
	headers   = "usr/include"
)

// The packages that a compiler in the minimal image is made of: tcc, which is
// linked to Debian's libc, and musl, which it links programs with.
const (
	tccPackage    = "tcc"
	libcPackage   = "libc6"
	muslPackage   = "musl-dev"
	kernelHeaders = "linux-libc-dev" // of what the C client asks the kernel
)

// gccInGuest is the compiler under the name that builds look for: with tcc
// everything is linked statically. It finds nothing to do in --version with more
// than that.
const gccInGuest = `#!/bin/sh
[ "$*" = --version ] && exec /usr/bin/tcc -v
exec /usr/bin/tcc -static "$@"
`

// addToolchain adds to an image's files tcc, musl and, unless client is nil, the
// C client: its header and a library that needs of its compiler neither atomics
// nor thread-local storage, which tcc has not.
func addToolchain(ctx context.Context, files map[string]guestFile, p *packages, client fs.FS) error {
	tcc := libraries + "/tcc/"
	if err := p.each(ctx, tccPackage, func(name string, mode fs.FileMode, content []byte) error {
		if name == "usr/bin/tcc" || name == tcc+"libtcc1.a" || strings.HasPrefix(name, tcc+"include/") {
			files[name] = guestFile{mode, content}
		}
		return nil
	}); err != nil {
		return err
	}
	const lib, loader = "lib/x86_64-linux-gnu/", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
	names := []string{loader, lib + "libc.so.6", lib + "libm.so.6", lib + "libdl.so.2", lib + "libpthread.so.0"}
	found, err := p.wanted(ctx, libcPackage, names...)
	if err != nil {
		return err
	}
	for name, content := range found {
		if name == loader {
			name = "lib64/" + path.Base(loader)
		}
		files[name] = guestFile{0o755, content}
	}
	const muslHeaders, muslLibraries = "usr/include/x86_64-linux-musl/", "usr/lib/x86_64-linux-musl/"
	if err := p.each(ctx, muslPackage, func(name string, mode fs.FileMode, content []byte) error {
		if rest, ok := strings.CutPrefix(name, muslHeaders); ok {
			files[headers+"/"+rest] = guestFile{mode, content}
		}
		if rest, ok := strings.CutPrefix(name, muslLibraries); ok && slices.Contains([]string{".o", ".a"}, path.Ext(rest)) {
			files[libraries+"/"+rest] = guestFile{mode, content}
		}
		return nil
	}); err != nil {
		return err
	}
	files["usr/bin/gcc"] = guestFile{0o755, []byte(gccInGuest)}
	if client == nil {
		return nil
	}
	header, err := fs.ReadFile(client, "mvm.h")
	if err != nil {
		return err
	}
	library, err := clientLibrary(ctx, files, p, client)
	if err != nil {
		return fmt.Errorf("compile the C client for the image: %w", err)
	}
	files[headers+"/mvm.h"] = guestFile{0o644, header}
	files[libraries+"/libmvm.a"] = guestFile{0o644, library}
	return nil
}

// clientLibrary compiles the C client by this machine's gcc against musl.
func clientLibrary(ctx context.Context, files map[string]guestFile, p *packages, client fs.FS) ([]byte, error) {
	folder, err := os.MkdirTemp(p.folder, "client-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(folder)
	if err := os.CopyFS(filepath.Join(folder, "c"), client); err != nil {
		return nil, err
	}
	lay := func(name string, content []byte) error {
		name = filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.WriteFile(name, content, 0o644)
	}
	for name, file := range files {
		if rest, ok := strings.CutPrefix(name, headers+"/"); ok {
			if err := lay("musl/"+rest, file.content); err != nil {
				return nil, err
			}
		}
	}
	if err := p.each(ctx, kernelHeaders, func(name string, _ fs.FileMode, content []byte) error {
		rest := strings.TrimPrefix(strings.TrimPrefix(name, "usr/include/"), "x86_64-linux-gnu/")
		for _, of := range []string{"linux/", "asm/", "asm-generic/"} {
			if strings.HasPrefix(rest, of) {
				return lay("kernel/"+rest, content)
			}
		}
		return nil
	}); err != nil {
		return nil, err
	}
	own, err := run(ctx, folder, "gcc", "-print-file-name=include") // stdatomic.h
	if err != nil {
		return nil, err
	}
	if _, err := run(ctx, folder, "gcc", "-std=gnu11", "-O2", "-DMVM_NO_TLS", "-fno-pic", "-fno-pie", "-fno-stack-protector", "-fcf-protection=none", "-frandom-seed=mvm", "-pthread",
		"-nostdinc", "-isystem", "musl", "-isystem", strings.TrimSpace(own), "-idirafter", "kernel", "-c", "c/mvm.c", "-o", "mvm.o"); err != nil {
		return nil, err
	}
	if _, err := run(ctx, folder, "ar", "rcsD", "libmvm.a", "mvm.o"); err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(folder, "libmvm.a"))
}

// addBusybox adds busybox and a link for each of its programs.
func addBusybox(ctx context.Context, files map[string]guestFile, links map[string]string, p *packages) error {
	var program []byte
	if err := p.each(ctx, busyboxPackage, func(name string, _ fs.FileMode, content []byte) error {
		if path.Base(name) == "busybox" && strings.HasSuffix(path.Dir(name), "bin") {
			program = content
		}
		return nil
	}); err != nil {
		return err
	}
	if program == nil {
		return fmt.Errorf("package %s of Debian has no busybox", busyboxPackage)
	}
	files["bin/busybox"] = guestFile{0o755, program}
	here := filepath.Join(p.folder, "busybox")
	if err := os.WriteFile(here, program, 0o755); err != nil {
		return err
	}
	list, err := run(ctx, "", here, "--list-full")
	if err != nil {
		return fmt.Errorf("ask busybox what it can do: %w", err)
	}
	for name := range strings.FieldsSeq(list) {
		// The first program is ours, and the machine's own way to its end.
		if base := path.Base(name); base != "busybox" && base != "init" && base != "linuxrc" && !strings.Contains(name, "..") {
			links[name] = "/bin/busybox"
		}
	}
	return nil
}

// guestFile is a file of an image.
type guestFile struct {
	mode    fs.FileMode
	content []byte
}

// pack writes files and links, with the folders that they are in, as an initial
// file system.
func pack(files map[string]guestFile, links map[string]string, folders ...string) ([]byte, error) {
	every := map[string]bool{}
	add := func(folder string) {
		for ; folder != "."; folder = path.Dir(folder) {
			every[folder] = true
		}
	}
	for _, folder := range folders {
		add(folder)
	}
	var names []string
	for name := range files {
		add(path.Dir(name))
		names = append(names, name)
	}
	for name := range links {
		if _, there := files[name]; !there {
			add(path.Dir(name))
			names = append(names, name)
		}
	}
	for folder := range every {
		names = append(names, folder)
	}
	slices.Sort(names) // a folder comes before what is in it
	var out bytes.Buffer
	archive := &cpio{w: &out}
	for _, name := range names {
		file, plain := files[name]
		switch {
		case every[name]:
			archive.folder(name)
		case plain:
			archive.file(name, file.mode, file.content)
		default:
			archive.link(name, links[name])
		}
	}
	err := archive.close()
	return out.Bytes(), err
}
