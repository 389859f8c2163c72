package osvm

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestProbeOfThisMachine(t *testing.T) {
	name := "qemu-system-" + systemName(runtime.GOARCH)
	found, err := Probe(context.Background())
	if path, missing := exec.LookPath(name); missing != nil {
		if !errors.Is(err, ErrNone) {
			t.Errorf("without %s on PATH: %v", name, err)
		}
		t.Skipf("the found case needs %s, which is not installed (Debian: qemu-system-x86)", name)
	} else if err != nil || found.Path != path || found.Version == "" {
		t.Errorf("Probe() = %+v, %v; %s is installed", found, err, path)
	}
}

func TestProbeReadsTheVersion(t *testing.T) {
	for _, c := range []struct{ name, script, version, err string }{
		{"debian", "echo 'QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)'; echo 'Copyright (c) 2003-2025'", "10.0.2", ""},
		{"garbage", "echo hello", "", "does not name a version"},
		{"broken", "echo 'error while loading shared libraries' >&2; exit 127", "", "shared libraries"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			script := "#!/bin/sh\n" + c.script + "\n"
			if err := os.WriteFile(filepath.Join(dir, "qemu-system-"+systemName(runtime.GOARCH)), []byte(script), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir)
			found, err := Probe(context.Background())
			if c.err == "" && (err != nil || found.Version != c.version) {
				t.Errorf("Probe() = %+v, %v", found, err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("the error is %v, it should say %q", err, c.err)
			}
		})
	}
}
