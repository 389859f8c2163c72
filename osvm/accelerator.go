package osvm

import (
	"errors"
	"fmt"
	"time"
)

// Accelerator is what carries out a guest's instructions.
type Accelerator string

const (
	Auto Accelerator = "auto" // KVM where it works, else TCG
	KVM  Accelerator = "kvm"  // the processor itself
	TCG  Accelerator = "tcg"  // QEMU, by translation
)

// loopRounds is how often the guest of the probe turns round, and slowestRound
// what a turn may take: a processor needs some 0.3 ns. There are hosts whose
// /dev/kvm opens and makes VMs, but interprets guests at microseconds an
// instruction, so that kernels do not boot; asking KVM for its version shows
// nothing of that.
const (
	loopRounds   = 100_000
	slowestRound = 20 * time.Nanosecond
	loopLimit    = 5 * loopRounds * slowestRound // of processor time: by then it is slow
)

// ErrSlow is wrapped by the reason against a KVM that works too slowly.
var ErrSlow = errors.New("KVM is there, but does not run guests on the processor")

// Choose says which accelerator a machine is started with when it is asked for
// wanted, and why it is not KVM where that was to be tried; the error is that
// reason where nothing but KVM was wanted. It takes some milliseconds.
func Choose(wanted Accelerator) (chosen Accelerator, against error, err error) {
	switch wanted {
	case TCG:
		return TCG, nil, nil
	case Auto, KVM:
	default:
		return "", nil, fmt.Errorf("accelerator %q: expected %s, %s or %s", wanted, Auto, KVM, TCG)
	}
	round, against := timeKVM()
	if against == nil && round > slowestRound {
		against = fmt.Errorf("%w: a loop takes %v a round, and may take %v", ErrSlow, round, slowestRound)
	}
	if against == nil {
		return KVM, nil, nil
	}
	if wanted == KVM {
		return "", against, fmt.Errorf("accelerator kvm: %w", against)
	}
	return TCG, against, nil
}
