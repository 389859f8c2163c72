//go:build !amd64

package osvm

import (
	"fmt"
	"runtime"
	"time"
)

func timeKVM() (time.Duration, error) {
	return 0, fmt.Errorf("whether KVM works cannot be told on %s", runtime.GOARCH)
}
