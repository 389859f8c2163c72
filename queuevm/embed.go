package queuevm

import (
	"embed"
	"io/fs"
)

//go:embed c/mvm.h c/mvm.c c/collective.c c/lib python/mvm.py client/client.go client/collective.go client/ring.go client/switch.go client/direct.go client/wait.go
var clientFiles embed.FS

// ClientFiles are the client libraries for whoever builds a job's sources:
// c/mvm.h, c/*.c, python/mvm.py, client/*.go, and c/lib with libmvm.a and
// libmvm.so where `make build` put them there before this package was built.
func ClientFiles() fs.FS { return clientFiles }
