package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"mvm/broker/profile"
	"mvm/services/image"
	"mvm/wsdl"
)

const (
	roomInVM = 64  // MiB that a VM has beside what its image starts in: for the node in it, its builds and its files
	leastVM  = 128 // MiB
)

// settleImage finds the image that a submission names, and has the job keep that one,
// by its digest, whatever is registered later.
func (b *Service) settleImage(ctx context.Context, r *resolved) error {
	vm := r.compiled.VM
	if !strings.HasPrefix(vm.Image, "sha256:") {
		digest, err := b.imageNamed(ctx, vm.Image)
		if err != nil {
			return err
		}
		job, policy := *r.job, *r.job.Policy
		policy.Image, job.Policy = digest, &policy
		vm.Image, r.job = digest, &job
	}
	return b.enclose(r.compiled)
}

// imageNamed is the digest of the registered image NAME or NAME@VERSION.
func (b *Service) imageNamed(ctx context.Context, text string) (string, error) {
	name, number, given := strings.Cut(text, "@")
	version, err := strconv.ParseInt(number, 10, 32)
	if given && (err != nil || version < 1) {
		return "", noImage(text, fmt.Sprintf("the image %q has no version %q", name, number))
	}
	answer, err := wsdl.NewImageClient(b.caller, b.url()+"/services/image").GetImageContext(ctx, &wsdl.GetImage{Name: name, Version: int32(version)})
	switch {
	case wsdl.CodeOf(err) == wsdl.FaultCodeNotFound:
		return "", noImage(text, fmt.Sprintf("no image %q is registered", text))
	case err != nil:
		return "", fmt.Errorf("look up the image %q: %w", text, err)
	}
	return answer.Image.Digest, nil
}

func noImage(found, message string) error {
	fault := wsdl.NewFault(wsdl.FaultCodeInvalidProfile, "the job cannot be accepted: "+message, "`mvm image ls` lists those that are; `mvm image build --push` makes and registers the minimal one")
	fault.Problem = []*wsdl.Problem{{Element: "/job/policy/@image", Found: found, Expected: "a registered image", Message: message}}
	return fault
}

// enclose says of a compiled job's VMs what their image's manifest says, which is
// among the blobs here.
func (b *Service) enclose(j *profile.Job) error {
	vm := j.VM
	if vm == nil {
		return nil
	}
	data, err := b.reader(nil)(vm.Image)
	if err != nil {
		return noImage(vm.Image, fmt.Sprintf("the image %s is not here: %v", vm.Image, err))
	}
	m, err := image.ParseManifest(data)
	if err != nil {
		return err
	}
	vm.Name, vm.Languages = m.Name, m.Languages
	vm.MemoryMiB = int64(max(m.LeastMemory+roomInVM, leastVM))
	vm.Blobs = []string{vm.Image}
	for _, f := range m.Files {
		vm.Blobs = append(vm.Blobs, f.Digest)
	}
	var missing []error
	for _, s := range j.Sources {
		if !slices.Contains(vm.Languages, s.Language) {
			missing = append(missing, fmt.Errorf("source %s is written in %s", s.Name, s.Language))
		}
	}
	if len(missing) > 0 {
		return wsdl.NewFault(wsdl.FaultCodeInvalidProfile,
			fmt.Sprintf("the image %s can build and run %s alone: %v", m.Name, strings.Join(vm.Languages, ", "), errors.Join(missing...)),
			"choose another image; `mvm image build --gcc` makes one with more compilers")
	}
	return nil
}
