package worker

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/examples/launch"
	"mvm/osvm/vmtest"
	"mvm/services/image"
)

// lab is a grid of real nodes whose workers have VMs, with the minimal image
// registered.
type lab struct {
	t       *testing.T
	dir     string
	front   *launch.Node
	workers []*launch.Node
}

func newLab(t *testing.T, workers int) *lab {
	vmtest.QEMU(t)
	made := vmtest.Image(t)
	l := &lab{t: t, dir: t.TempDir()}
	l.front = l.start("front", "--roles", "backend,frontend", "--accelerator", "none")
	for i := range workers {
		l.workers = append(l.workers, l.start(fmt.Sprintf("worker%d", i+1), "--join", l.front.URL, "--slots", "2", "--accelerator", "tcg", "--vm-templates", vmtest.Templates(t)))
	}
	folder := filepath.Join(l.dir, "minimal")
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for part, path := range map[image.Part]string{image.Kernel: made.Kernel, image.Initrd: made.Initrd} {
		if err := os.Symlink(path, filepath.Join(folder, string(part))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := image.Seal(folder, &image.Manifest{Name: "minimal", Architecture: "amd64", LeastMemory: made.LeastMemoryMiB, Languages: []string{"c", "shell"},
		Files: []image.File{{Part: image.Kernel}, {Part: image.Initrd}}}); err != nil {
		t.Fatal(err)
	}
	l.must("image", "push", folder)
	return l
}

func (l *lab) start(name string, args ...string) *launch.Node {
	l.t.Helper()
	n, err := launch.Start(launch.Config{Program: program, Log: filepath.Join(l.dir, name+".log"),
		Args: append([]string{"--listen", "127.0.0.1:0", "--data", filepath.Join(l.dir, name), "--name", name}, args...)})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := n.Stop(); err != nil && n.Cmd.ProcessState == nil {
			l.t.Error(err)
		}
		if l.t.Failed() {
			l.t.Logf("the log of %s ends with\n%s", name, n.Tail(3000))
		}
	})
	return n
}

// mvm runs a command at the lab.
func (l *lab) mvm(args ...string) (string, error) {
	c := exec.CommandContext(l.t.Context(), program, args...)
	c.Env = append(os.Environ(), "MVM_GRID="+l.front.URL)
	text, err := c.CombinedOutput()
	return string(text), err
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	text, err := l.mvm(args...)
	if err != nil {
		l.t.Fatalf("mvm %s: %v\n%s", strings.Join(args, " "), err, text)
	}
	return text
}

// write lays a job's files and gives its profile's path.
func (l *lab) write(files map[string]string) string {
	l.t.Helper()
	dir, err := os.MkdirTemp(l.dir, "job-")
	if err != nil {
		l.t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			l.t.Fatal(err)
		}
	}
	return filepath.Join(dir, "job.xml")
}

// clean says that no VM is left.
func (l *lab) clean() {
	l.t.Helper()
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(50 * time.Millisecond) {
		left, _ := filepath.Glob(filepath.Join(l.dir, "worker*", "node", "vm", "machines", "*"))
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			l.t.Errorf("VMs are left: %v", left)
			return
		}
	}
}

// TestJobInVMs has a profile with isolation="vm" get its VMs, compile C in them
// with what the image brings, and its processes speak to each other between two
// VMs.
func TestJobInVMs(t *testing.T) {
	l := newLab(t, 2)
	profile := l.write(map[string]string{
		"job.xml": `<job xmlns="urn:mvm:1" name="two">
  <source name="give" language="c"><file path="give.c"/></source>
  <source name="take" language="c"><file path="take.c"/></source>
  <task name="give" source="give"/>
  <task name="take" source="take"><output name="sum.txt"/></task>
  <edge from="give:numbers" to="take:numbers"/>
  <policy wallTime="120" nodes="2" isolation="vm" image="minimal"/>
</job>`,
		"give.c": `#include <mvm.h>
#include <stdio.h>
#include <unistd.h>
int main(void) {
	mvm_port *p = mvm_open("numbers");
	char name[100];
	for (int i = 1; i <= 2000; i++)
		if (mvm_enqueue(p, &i, sizeof i) < 0) return 1;
	gethostname(name, sizeof name);
	printf("gave all in %s\n", name);
	return 0;
}`,
		"take.c": `#include <mvm.h>
#include <stdio.h>
int main(void) {
	mvm_port *p = mvm_open("numbers");
	long sum = 0;
	for (int i; mvm_dequeue(p, &i, sizeof i) == sizeof i;) sum += i;
	FILE *f = fopen("sum.txt", "w");
	fprintf(f, "%ld\n", sum);
	return fclose(f);
}`,
	})
	begin := time.Now()
	text := l.must("submit", profile, "--wait")
	t.Logf("the job took %v", time.Since(begin))
	job, _, _ := strings.Cut(text, "\n")
	if sum := l.must("output", job, "sum.txt", "-o", "-"); sum != fmt.Sprintln(2000*2001/2) {
		t.Errorf("the sum is %q; mvm submit said\n%s", sum, text)
	}
	if said := l.must("logs", job, "--process", "give[0]"); !strings.HasPrefix(said, "gave all in job-") {
		t.Errorf("mvm logs says %q", said)
	}
	l.clean()
}
