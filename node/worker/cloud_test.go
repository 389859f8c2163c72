package worker

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/osvm/vmtest"
)

// cloudLimit is for a whole distribution to be fetched and packed, and to start
// without KVM.
const cloudLimit = 20 * time.Minute

// TestCloudImage makes a disk as Debian makes its own for clouds, imports it as it is,
// and has VMs begun from it be nodes, in which a job runs.
func TestCloudImage(t *testing.T) {
	if os.Getenv("MVM_SOAK") == "" {
		t.Skip("SKIPPED: no distribution was imported: it is fetched and started for minutes, with MVM_SOAK=1 only")
	}
	ctx, cancel := context.WithTimeout(t.Context(), cloudLimit)
	defer cancel()
	vmtest.QEMU(t)
	l := &lab{t: t, outer: t, dir: t.TempDir()}
	l.front = l.start("front", "--roles", "backend,frontend", "--accelerator", "none")
	disk := os.Getenv("MVM_CLOUD_IMAGE")
	if disk == "" {
		disk = filepath.Join(l.dir, "debian.qcow2")
		began := time.Now()
		if text, err := exec.CommandContext(ctx, "../../examples/cloud/debian.sh", disk).CombinedOutput(); err != nil {
			t.Skipf("SKIPPED: no distribution was imported, because none could be made: %v\n%s", err, text[max(0, len(text)-3000):])
		}
		t.Logf("made in %v", time.Since(began))
	}
	l.must("image", "import", disk, "--name", "debian", "--push")
	l.start("worker1", "--join", l.front.URL, "--slots", "2", "--accelerator", "tcg", "--vm-templates", t.TempDir())

	began := time.Now()
	create := func(name string) {
		t.Helper()
		began := time.Now()
		l.must("vm", "create", "debian", "--name", name)
		t.Logf("%s: created and answers after %v", name, time.Since(began))
		for deadline := time.Now().Add(vmtest.Limit); !strings.Contains(l.must("nodes"), name); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				said, _ := l.mvm("vm", "console", name)
				t.Fatalf("%s is no node: mvm nodes says\n%s\nand its console ends with\n%s", name, l.must("nodes"), said[max(0, len(said)-4000):])
			}
		}
		t.Logf("%s: a node after %v", name, time.Since(began))
	}
	create("one") // boots
	create("two") // is a clone
	t.Logf("both after %v", time.Since(began))
	text := l.must("submit", l.write(map[string]string{
		"job.xml": `<job xmlns="urn:mvm:1" name="inside">
  <source name="look" language="shell"><file path="look.sh"/></source>
  <source name="count" language="python"><file path="count.py"/></source>
  <task name="look" source="look"><resources><require property="name" equals="one"/></resources></task>
  <task name="count" source="count"><resources><require property="name" equals="two"/></resources></task>
  <edge from="look:words" to="count:words"/>
</job>`,
		"look.sh":  "#!/bin/sh\n. /etc/os-release\necho $ID in $(hostname)\n",
		"count.py": "import mvm, platform\nprint('python in', platform.node(), flush=True)\n",
	}), "--wait")
	job, _, _ := strings.Cut(text, "\n")
	if said := l.must("logs", job, "--process", "look[0]"); !strings.HasSuffix(said, " in one\n") {
		t.Errorf("a job in one says %q", said)
	}
	if said := l.must("logs", job, "--process", "count[0]"); said != "python in two\n" {
		t.Errorf("a job in two says %q", said)
	}
	for _, name := range []string{"one", "two"} {
		l.must("vm", "destroy", name)
	}
	l.clean()
}
