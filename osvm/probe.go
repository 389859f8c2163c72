// Package osvm manages OS-level virtual machines over QEMU. So far it finds
// out what a machine offers for them, which is what a node advertises.
//
// It must never need QEMU to be there: a node without one is a node that has
// no OS-level VMs.
package osvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"runtime"
	"time"
)

// ErrNone says that this machine has no QEMU for its own architecture.
var ErrNone = errors.New("no QEMU for this machine's architecture is installed")

// QEMU is an emulator of whole systems that is installed on this machine.
type QEMU struct {
	Path    string
	Version string // as it names itself, for example "10.0.2"
}

var versionLine = regexp.MustCompile(`QEMU emulator version ([0-9][0-9A-Za-z.+~-]*)`)

// Probe finds the QEMU system emulator for this machine's architecture on
// PATH and asks for its version. It starts one short process. The error is
// ErrNone when there is none, and says what is wrong with one that does not
// answer.
func Probe(ctx context.Context) (QEMU, error) {
	path, err := exec.LookPath("qemu-system-" + systemName(runtime.GOARCH))
	if err != nil {
		return QEMU{}, ErrNone
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, path, "--version")
	command.WaitDelay = time.Second
	output, err := command.CombinedOutput()
	if err != nil {
		return QEMU{}, fmt.Errorf("ask %s for its version: %w: %s", path, err, bytes.TrimSpace(output))
	}
	found := versionLine.FindSubmatch(output)
	if found == nil {
		return QEMU{}, fmt.Errorf("%s --version does not name a version: %q", path, output)
	}
	return QEMU{Path: path, Version: string(found[1])}, nil
}

// systemName is QEMU's name for one of Go's architectures.
func systemName(arch string) string {
	switch arch {
	case "amd64":
		return "x86_64"
	case "386":
		return "i386"
	case "arm64":
		return "aarch64"
	case "loong64":
		return "loongarch64"
	case "ppc64le":
		return "ppc64"
	}
	return arch
}
