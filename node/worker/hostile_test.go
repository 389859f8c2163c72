package worker

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/osvm/vmtest"
	"mvm/services/image"
)

// hostile: a guest whose kernel panics ends its job with that reason; one that
// floods its console and its port goes on; one that hangs at boot can be cancelled.
// Nothing is left of any.
func (l *lab) hostile(t *testing.T) {
	made := vmtest.Image(t)
	l.push("hangs", image.Manifest{CommandLine: "rdinit=/none panic=0"}, map[image.Part]string{image.Kernel: made.Kernel, image.Initrd: made.Initrd})
	submit := func(of, script string) string {
		files := sleeper("shell", `wallTime="300" isolation="vm" image="`+of+`"`)
		files["sleep.sh"] = "#!/bin/sh\n" + script
		job, _, _ := strings.Cut(l.must("submit", l.write(files)), "\n")
		return job
	}
	tells := func(words ...string) func(string) bool {
		return func(text string) bool {
			for _, w := range words {
				if !strings.Contains(text, w) {
					return false
				}
			}
			return true
		}
	}
	hangs := submit("hangs", "true\n")
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		if booting, _ := filepath.Glob(filepath.Join(l.dir, "worker*", "node", "vm", "machines", "template.*")); len(booting) > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no guest boots for job %s: %s", hangs, l.must("job", hangs))
		}
	}
	l.must("cancel", hangs)
	l.eventually("cancelled", hangs, tells("cancelled"), "job", hangs)
	panics := submit("minimal", "echo c >/proc/sysrq-trigger; sleep 1000\n")
	floods := submit("minimal", "yes on the console >/dev/console & yes on the port | head -c 4000000; sleep 2; kill %1; echo; echo outlived\n")
	l.eventually("failed with its guest's last words", panics, tells("failed", "its VM", "Kernel panic - not syncing: sysrq triggered crash"), "job", panics)
	l.eventually("over", floods, tells("succeeded"), "job", floods)
	l.clean()
}
