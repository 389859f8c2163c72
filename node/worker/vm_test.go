package worker

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/examples/launch"
	"mvm/osvm/vmtest"
	"mvm/services/image"
)

// lab is a grid of real nodes whose workers have VMs, with the minimal image
// registered.
type lab struct {
	t       *testing.T // the part that runs
	outer   *testing.T
	dir     string
	front   *launch.Node
	workers []*launch.Node
}

func newLab(t *testing.T, workers int) *lab { return newLabOn(t, workers, func(string) {}) }

// newLabOn is newLab with something done to its folder first.
func newLabOn(t *testing.T, workers int, first func(dir string)) *lab {
	vmtest.QEMU(t)
	made := vmtest.Image(t)
	l := &lab{t: t, outer: t, dir: t.TempDir()}
	first(l.dir)
	l.front = l.start("front", "--roles", "backend,frontend", "--accelerator", "none")
	for i := range workers {
		l.workers = append(l.workers, l.worker(fmt.Sprintf("worker%d", i+1), "127.0.0.1:0"))
	}
	l.push("minimal", image.Manifest{}, map[image.Part]string{image.Kernel: made.Kernel, image.Initrd: made.Initrd})
	return l
}

// push registers an image of files. A manifest says what else there is to it.
func (l *lab) push(name string, m image.Manifest, files map[image.Part]string) {
	l.t.Helper()
	folder := filepath.Join(l.dir, name)
	if err := os.Mkdir(folder, 0o755); err != nil {
		l.t.Fatal(err)
	}
	m.Name, m.Architecture, m.LeastMemory, m.Languages = name, "amd64", 128, []string{"c", "shell"}
	for _, part := range image.Parts() {
		path := files[part]
		if path == "" {
			continue
		}
		if err := os.Symlink(path, filepath.Join(folder, string(part))); err != nil {
			l.t.Fatal(err)
		}
		file := image.File{Part: part}
		if part == image.Disk {
			file.Format = image.Raw
		}
		m.Files = append(m.Files, file)
	}
	if _, err := image.Seal(folder, &m); err != nil {
		l.t.Fatal(err)
	}
	l.must("image", "push", folder)
}

func (l *lab) worker(name, listen string) *launch.Node {
	return l.start(name, "--listen", listen, "--join", l.front.URL, "--slots", "2", "--accelerator", "tcg", "--vm-templates", vmtest.Templates(l.t))
}

func (l *lab) start(name string, args ...string) *launch.Node {
	l.t.Helper()
	n, err := launch.Start(launch.Config{Program: program, Log: filepath.Join(l.dir, name+".log"),
		Args: append([]string{"--listen", "127.0.0.1:0", "--data", filepath.Join(l.dir, name), "--name", name}, args...)})
	if err != nil {
		l.t.Fatal(err)
	}
	l.outer.Cleanup(func() {
		if err := n.Stop(); err != nil {
			l.outer.Error(err)
		}
		if l.outer.Failed() {
			l.outer.Logf("the log of %s ends with\n%s", name, n.Tail(3000))
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

// TestJobsInVMs has profiles with isolation="vm" get their VMs with no other word.
func TestJobsInVMs(t *testing.T) {
	l := newLab(t, 2)
	for name, test := range map[string]func(t *testing.T){"two": l.two, "network": l.network, "on a disk": l.onDisk, "no room on the disk": l.noRoom, "hostile": l.hostile, "refused": l.refused, "ended": l.ended, "inside and outside": l.mixed, "host killed": l.hostKilled, "hang": l.hang, "limited": l.limited, "terminal": l.terminal, "network by hand": l.networkByHand} {
		t.Run(name, func(t *testing.T) {
			defer func(outer *testing.T) { l.t = outer }(l.t)
			l.t = t
			test(t)
		})
	}
	l.clean()
}

// two processes speak to each other from VM to VM, compiled in them with what the
// image brings.
func (l *lab) two(t *testing.T) {
	begin := time.Now()
	text := l.must("submit", example+"enclosed.xml", "--wait")
	t.Logf("the job took %v", time.Since(begin))
	job, _, _ := strings.Cut(text, "\n")
	if sum := l.must("output", job, "sum.txt", "-o", "-"); sum != fmt.Sprintln(2000*2001/2) {
		t.Errorf("the sum is %q; mvm submit said\n%s", sum, text)
	}
	if said := l.must("logs", job, "--process", "give[0]"); !strings.HasPrefix(said, "gave all in job-") {
		t.Errorf("mvm logs says %q", said)
	}
}

// network has two jobs, each with a network between its VMs on the same two nodes,
// call out at the same time: each is heard by its own alone.
func (l *lab) network(t *testing.T) {
	const ethernet = "../../examples/jobs/ethernet/ethernet.xml"
	text := l.must("submit", ethernet, "-p", "word=other", "-p", "seconds=600", "-p", "numbers=10")
	other, _, _ := strings.Cut(text, "\n")
	for _, of := range []struct{ process, hears string }{{"server[0]", "heard other client"}, {"client[0]", "heard other server"}} {
		l.eventually("heard by its "+of.process, other, func(text string) bool { return strings.Contains(text, of.hears) }, "logs", other, "--process", of.process)
	}
	text = l.must("submit", ethernet, "-p", "numbers=5000", "-p", "seconds=1", "--wait")
	job, _, _ := strings.Cut(text, "\n")
	const sum = 5000 * 5001 / 2
	if got := l.must("output", job, "sum.txt", "-o", "-"); got != fmt.Sprintln(sum) {
		t.Errorf("the sum is %q; mvm submit said\n%s", got, text)
	}
	for _, process := range []string{"server[0]", "client[0]"} {
		want := fmt.Sprintf("sum %d, calls of our own heard, foreign calls 0\n", sum)
		if said := l.must("logs", job, "--process", process); !strings.HasSuffix(said, want) {
			t.Errorf("%s says %q, and not %q", process, said, want)
		}
	}
	if said := l.must("job", other); !strings.Contains(said, "running") {
		t.Errorf("the other job did not call all the time:\n%s", said)
	}
	l.must("cancel", other)
	l.eventually("cancelled", other, func(text string) bool { return strings.Contains(text, "cancelled") }, "job", other)
}

// example has the example of a job in VMs.
const example = "../../examples/jobs/enclosed/"

// sleeper is a job of one process, which says that it runs and then sleeps.
func sleeper(language, policy string) map[string]string {
	return map[string]string{
		"job.xml": `<job xmlns="urn:mvm:1" name="sleeper">
  <source name="sleep" language="` + language + `"><file path="sleep.sh"/></source>
  <task name="sleep" source="sleep"/>
  <policy ` + policy + `/>
</job>`,
		"sleep.sh": "#!/bin/sh\necho runs\nexec sleep 1000\n",
	}
}

// eventually waits until a command says that a job is so far.
func (l *lab) eventually(what, job string, done func(text string) bool, args ...string) {
	l.t.Helper()
	for deadline := time.Now().Add(vmtest.Limit); ; time.Sleep(100 * time.Millisecond) {
		text, _ := l.mvm(args...)
		if done(text) {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("job %s is not %s: mvm %s says\n%s", job, what, strings.Join(args, " "), text)
		}
	}
}

// refused: what cannot be is refused by name, before anything runs.
func (l *lab) refused(t *testing.T) {
	for _, c := range []struct{ language, policy, want string }{
		{"shell", `isolation="vm"`, "no image is named"},
		{"shell", `isolation="vm" image="maximal"`, `no image "maximal" is registered`},
		{"shell", `isolation="vm" image="minimal@7"`, `no image "minimal@7" is registered`},
		{"python", `isolation="vm" image="minimal"`, "can build and run c, shell alone"},
	} {
		text, err := l.mvm("submit", l.write(sleeper(c.language, c.policy)))
		if err == nil || !strings.Contains(text, c.want) {
			t.Errorf("%s: %v, %s", c.policy, err, text)
		}
	}
}

// ended: however a job ends, its VM is gone and the reason is told.
func (l *lab) ended(t *testing.T) {
	run := func(policy string) string {
		text := l.must("submit", l.write(sleeper("shell", policy+` isolation="vm" image="minimal"`)))
		job, _, _ := strings.Cut(text, "\n")
		return job
	}
	has := func(word string) func(string) bool {
		return func(text string) bool { return strings.Contains(text, word) }
	}
	cancelled, killed, slow := run(`wallTime="300"`), run(`wallTime="300"`), run(`wallTime="1"`)
	for _, job := range []string{cancelled, killed} {
		l.eventually("running", job, has("runs"), "logs", job)
	}
	l.must("cancel", cancelled)
	var machine string
	records, _ := filepath.Glob(filepath.Join(l.dir, "worker*", "node", "vm", "machines", "job-"+killed+"*", "machine.json"))
	if len(records) != 1 {
		t.Fatalf("VMs of job %s: %v", killed, records)
	}
	machine = records[0]
	var record struct{ PID int }
	if text, err := os.ReadFile(machine); err != nil || json.Unmarshal(text, &record) != nil || record.PID <= 1 {
		t.Fatalf("%s: %s, %v", machine, text, err)
	}
	if err := syscall.Kill(record.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	l.eventually("cancelled", cancelled, has("cancelled"), "job", cancelled)
	l.eventually("failed for its VM", killed, func(text string) bool { return strings.Contains(text, "failed") && strings.Contains(text, "its VM") }, "job", killed)
	l.eventually("failed for its wall time", slow, func(text string) bool { return strings.Contains(text, "failed") && strings.Contains(text, "wall time") }, "job", slow)
}

// hostKilled: a node that was killed removes, when it comes back, the VM of the
// attempt that ended with its last life.
func (l *lab) hostKilled(t *testing.T) {
	text := l.must("submit", l.write(sleeper("shell", `wallTime="300" isolation="vm" image="minimal"`)))
	job, _, _ := strings.Cut(text, "\n")
	l.eventually("running", job, func(text string) bool { return strings.Contains(text, "runs") }, "logs", job)
	found, _ := filepath.Glob(filepath.Join(l.dir, "worker*", "node", "vm", "machines", "job-"+job+"*"))
	if len(found) != 1 {
		t.Fatalf("VMs of job %s: %v", job, found)
	}
	rest, _ := filepath.Rel(l.dir, found[0])
	name, _, _ := strings.Cut(rest, "/")
	host := &l.workers[int(name[len(name)-1]-'1')]
	(*host).Kill()
	*host = l.worker(name, strings.TrimPrefix((*host).URL, "http://"))
	l.eventually("failed", job, func(text string) bool { return strings.Contains(text, "failed") }, "job", job)
	l.clean()
}

// mixed has a job with one process in a VM that a person made, and one outside.
func (l *lab) mixed(t *testing.T) {
	l.must("vm", "create", "minimal", "--name", "free", "--memory", "256", "--node", "worker1")
	defer l.must("vm", "destroy", "free")
	for deadline := time.Now().Add(vmtest.Limit); !strings.Contains(l.must("nodes"), "free"); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the VM is no node: mvm nodes says\n%s", l.must("nodes"))
		}
	}
	files := map[string]string{"job.xml": `<job xmlns="urn:mvm:1" name="mixed">
  <source name="give" language="c"><file path="give.c"/></source>
  <source name="take" language="c"><file path="take.c"/></source>
  <task name="give" source="give"><resources><require property="name" equals="free"/></resources></task>
  <task name="take" source="take"><resources><require property="name" equals="worker2"/></resources><output name="sum.txt"/></task>
  <edge from="give:numbers" to="take:numbers"/>
  <policy wallTime="300"/>
</job>`}
	for _, name := range []string{"give.c", "take.c"} {
		text, err := os.ReadFile(example + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	text := l.must("submit", l.write(files), "--wait")
	job, _, _ := strings.Cut(text, "\n")
	if sum := l.must("output", job, "sum.txt", "-o", "-"); sum != fmt.Sprintln(2000*2001/2) {
		t.Errorf("the sum is %q; mvm submit said\n%s", sum, text)
	}
	if said := l.must("logs", job, "--process", "give[0]"); said != "gave all in free\n" {
		t.Errorf("mvm logs says %q", said)
	}
}

// limited: a job's VM has the limits that its policy names.
func (l *lab) limited(t *testing.T) {
	files := sleeper("shell", `wallTime="300" isolation="vm" image="minimal"`)
	files["job.xml"] = strings.Replace(files["job.xml"], "/>\n</job>", `><vm cpu="60" disk="100" diskRate="2048" networkRate="1024"/></policy></job>`, 1)
	job, _, _ := strings.Cut(l.must("submit", l.write(files)), "\n")
	l.eventually("running", job, func(text string) bool { return strings.Contains(text, "runs") }, "logs", job)
	found, _ := filepath.Glob(filepath.Join(l.dir, "worker*", "node", "vm", "machines", "job-"+job+"*"))
	if len(found) != 1 {
		t.Fatalf("VMs of job %s: %v", job, found)
	}
	text := l.must("vm", "inspect", filepath.Base(found[0]))
	for _, want := range []string{`cpu limit +60 % of a core`, `disk limit +100\.0 MiB`, `disk rate +2\.0 MiB a second`, `network rate +1\.0 MiB a second`} {
		if !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("mvm vm inspect does not say %q:\n%s", want, text)
		}
	}
	l.must("cancel", job)
	l.eventually("cancelled", job, func(text string) bool { return strings.Contains(text, "cancelled") }, "job", job)
}
