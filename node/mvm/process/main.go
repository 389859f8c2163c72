// The node says how many threads there may be: see mvm.Start.Threads.
//go:debug containermaxprocs=0

// Command process is the MVM process on its own: what a node runs, from
// memory, once for each attempt. It links next to nothing, because every job
// pays for its start.
package main

import (
	"os"

	"mvm/node/mvm"
)

func main() { os.Exit(mvm.Main(os.Args)) }
