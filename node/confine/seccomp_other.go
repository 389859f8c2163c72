//go:build !amd64 && !arm64

package confine

// machine is none: the numbers of this one's calls were never looked at, so
// there is no filter.
const machine = 0

func allowedHere() []uintptr { return nil }
