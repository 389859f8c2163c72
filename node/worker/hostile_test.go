package worker

import (
	"os"
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

// hang: a guest that hangs at boot is given up after a time, as its person's and as its
// job's, and both are told what it said last.
func (l *lab) hang(t *testing.T) {
	made := vmtest.Image(t)
	l.push("stuck", image.Manifest{CommandLine: "rdinit=/none panic=0"}, map[image.Part]string{image.Kernel: made.Kernel, image.Initrd: made.Initrd})
	const limit = "2s"
	bounds := filepath.Join(l.dir, "bounds.xml")
	if err := os.WriteFile(bounds, []byte(`<queueLimits xmlns="urn:mvm:1"><vm cpu="80"/></queueLimits>`), 0o600); err != nil {
		t.Fatal(err)
	}
	hasty := l.start("hasty", "--join", l.front.URL, "--slots", "2", "--accelerator", "tcg", "--vm-templates", t.TempDir(), "--vm-boot", limit, "--queue-limits", bounds)
	files := sleeper("shell", `wallTime="300" isolation="vm" image="stuck"`)
	files["job.xml"] = strings.Replace(files["job.xml"], `source="sleep"/>`, `source="sleep"><resources><require property="name" equals="hasty"/></resources></task>`, 1)
	job, _, _ := strings.Cut(l.must("submit", l.write(files)), "\n")
	if text, err := l.mvm("vm", "create", "minimal", "--cpu", "81", "--node", "hasty"); err == nil || !strings.Contains(text, `a VM with 81 % of a core: the rule vm cpu="80"`) {
		t.Errorf("mvm vm create --cpu 81: %v, %s", err, text)
	}
	files["job.xml"] = strings.Replace(files["job.xml"], `image="stuck"/>`, `image="stuck"><vm cpu="81"/></policy>`, 1)
	if text, err := l.mvm("plan", l.write(files)); err == nil || !strings.Contains(text, "lets a VM have 80 % of a core at most, fewer than 81") {
		t.Errorf("mvm plan: %v, %s", err, text)
	}
	want := "its guest has not answered for " + limit + " since its boot began"
	if text, err := l.mvm("vm", "create", "stuck", "--memory", "160", "--node", "hasty"); err == nil || !strings.Contains(text, want) {
		t.Errorf("mvm vm create: %v, %s", err, text)
	}
	l.eventually("given up for its guest", job, func(text string) bool { return strings.Contains(text, want) }, "job", job)
	l.must("cancel", job) // else it tries five times
	l.eventually("cancelled", job, func(text string) bool { return strings.Contains(text, "cancelled") }, "job", job)
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		left, _ := filepath.Glob(filepath.Join(l.dir, "hasty", "node", "vm", "machines", "*"))
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("VMs are left: %v", left)
		}
	}
	if err := hasty.Stop(); err != nil { // else it takes other jobs
		t.Error(err)
	}
}
