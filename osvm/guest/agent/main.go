// Command agent is PID 1 of the minimal image, and a service in stock images: a
// static program without libc.
package main

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"mvm/osvm/guest"
)

func main() {
	serve := len(os.Args) == 2 && os.Args[1] == "serve" // as a service of a stock image
	if !guest.Inside() && !serve {
		fmt.Fprintln(os.Stderr, "agent: this is the first program of an OS-level VM; `mvm vm create` starts one")
		os.Exit(2)
	}
	fmt.Println("agent:", guest.Run(guest.Config{}))
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // with -no-reboot a panic would do as well, and say less
}
