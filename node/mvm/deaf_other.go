//go:build !amd64 && !arm64

package mvm

import (
	"os"
	"os/signal"
)

// deaf keeps programs from ending this process by signals. Handlers, not
// SIG_IGN: that would pass to the programs.
func deaf() error {
	for _, s := range signals() {
		signal.Notify(make(chan os.Signal, 1), s)
	}
	return nil
}
