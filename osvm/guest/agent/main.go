// Command agent is PID 1 of the minimal image, and a service in stock images: a
// static program without libc. It is also the node of the grid that the guest is
// once its host has said which: in the same process, so that in a clone nothing
// has to be started.
package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"mvm/node"
	"mvm/node/mvm"
	"mvm/node/worker"
	"mvm/osvm/guest"
	"mvm/osvm/link"
)

// Where the node has its data: in memory, as all of the minimal image; on the disk of a
// stock image, where no program can be run of what is in /run.
const (
	inMemory = "/run/mvm"
	onDisk   = "/var/lib/mvm"
)

func main() {
	if mvm.IsProcess(os.Args) { // where no slim one is embedded
		os.Exit(mvm.Main(os.Args))
	}
	serve := len(os.Args) == 2 && os.Args[1] == "serve" // as a service of a stock image
	if !guest.Inside() && !serve {
		fmt.Fprintln(os.Stderr, "agent: this is the first program of an OS-level VM; `mvm vm create` starts one")
		os.Exit(2)
	}
	dir := inMemory
	if serve {
		dir = onDisk
	}
	_ = os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	fmt.Println("agent:", guest.Run(guest.Config{Node: func(ctx context.Context, identity []byte, uplink *link.Inside) {
		run(ctx, dir, identity, uplink)
	}}))
	if serve {
		os.Exit(1) // the machine is another's, who starts us again
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) // with -no-reboot a panic would do as well, and say less
}

// run is the node, until ctx ends. What ends it is written to the console.
func run(ctx context.Context, dir string, identity []byte, uplink *link.Inside) {
	log := logrus.New()
	log.SetOutput(io.Writer(os.Stdout))
	log.SetLevel(logrus.WarnLevel)
	who, err := node.ReadGuest(identity)
	if err == nil {
		err = worker.Run(ctx, worker.Config{Guest: who, Dir: dir, Uplink: uplink, Log: log})
	}
	fmt.Println("agent: this guest is no node any more:", err)
}
