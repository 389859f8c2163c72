package node

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mvm/wsdl"
)

// A node that stood still for longer than its lease ends what it holds once it
// goes on, before anything else, and serves.
func TestNodeStoppedPastItsLease(t *testing.T) {
	g := newGrid(t)
	g.lease = time.Second
	dir := t.TempDir()
	child, m := g.alone(dir, "")
	m.dir = dir
	tr := trace(t, dir, child.Process.Pid)
	s := &staged{member: m, mark: "stopped-" + random(6), folder: t.TempDir()}
	s.running(leaver, spec(0, "main", s.mark))
	eventually(t, "the programs run", func() bool { return len(pids(t, s.mark)) >= 3 })
	if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	eventually(t, "its lease is over", func() bool { return time.Since(stopped) > g.lease+g.lease/2 })
	if err := child.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the failure is told", func() bool { return g.failures("j") != "" })
	tr.nothingLeft()
	// Either the node or the MVM process ended it, each by its own count.
	for _, why := range strings.Split(g.failures("j"), "\n") {
		switch why {
		case "its lease ran out: no heartbeat was answered for 1s":
		case "its lease ran out, and its node, which stood still, did not end it":
		default:
			t.Errorf("it is told to have failed because %s", why)
		}
	}
	if left := pids(t, s.mark); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	g.set(func() { delete(g.live, key{"j", 1}) })
	m.works()
	tr.nothingLeft()
}

// A node, an MVM process and a program that stand still for less than that, one
// after the other, lose nothing.
func TestStoppedAndContinued(t *testing.T) {
	g := newGrid(t)
	dir := t.TempDir()
	child, m := g.alone(dir, "")
	m.dir = dir
	tr := trace(t, dir, child.Process.Pid)
	s := &staged{member: m, mark: "stopped-" + random(6), folder: t.TempDir()}
	s.running("until [ -e stop ]; do sleep 0.02; done; echo well; exit 6 # "+s.mark, spec(0, "main", s.mark))
	eventually(t, "the program runs", func() bool { return len(pids(t, s.mark)) == 1 })
	program, err := strconv.Atoi(pids(t, s.mark)[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []int{child.Process.Pid, s.mvms()[0], program} {
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it stands still", func() bool {
			stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
			return err == nil && bytes.Contains(stat[bytes.LastIndexByte(stat, ')'):], []byte(" T "))
		})
		time.Sleep(g.lease / 4) // the fault lasts
		if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	folder, _ := filepath.Glob(filepath.Join(m.folders.work, "j.*", "process-0"))
	if len(folder) != 1 {
		t.Fatal(folder)
	}
	if err := os.WriteFile(filepath.Join(folder[0], "stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its end is told", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if p := g.status("j", 0); wsdl.Or(p.ExitCode, 0) != 6 || g.text(p, "stdout") != "well\n" || g.failures("j") != "" {
		t.Errorf("the process is %+v, the failure %q", p, g.failures("j"))
	}
	m.terminate("j", 1, 0)
	tr.nothingLeft()
}

// A stopped program is ended like any other.
func TestStoppedProgramEnds(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	tr := trace(t, m.dir, 0)
	m.run("j", "kill -STOP $$")
	answer := func() string {
		a, err := m.queue.InspectContext(context.Background(), &wsdl.Inspect{Job: "j"})
		if err != nil || len(a.Attempt) != 1 {
			return ""
		}
		return a.Attempt[0].State
	}
	eventually(t, "it runs", func() bool { return answer() == "running" })
	began := time.Now()
	m.terminate("j", 1, 300*time.Millisecond)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("Terminate took %v", took)
	}
	tr.nothingLeft()
	m.clean()
}

// Whatever a program does to its folder, its descriptors and its control socket,
// the job ends, the node serves, and nothing is left.
func TestProgramsThatMisbehave(t *testing.T) {
	python, err := exec.LookPath("python3")
	if err != nil {
		t.Skip("SKIPPED: python3 is needed to misbehave; install it")
	}
	for name, script := range map[string]string{
		"folder": "mkfifo fifo; ln -s / all; ln -s loop loop; mkdir -p a/b/c; : > a/b/c/f; chmod 000 a/b a; chmod 000 .; echo done",
		"socket": python + ` -c "
import socket
s = socket.socket(socket.AF_UNIX); s.bind('here'); print('done')"`,
		"control closed": "exec 3>&-; echo done",
		"control garbled": python + ` -c "
import os, socket
s = socket.socket(fileno=3); s.setblocking(False)
for n in range(1, 3000):
    try: s.send(os.urandom(n % 200 + 1))
    except OSError: break
print('done')"`,
		"descriptors": python + ` -c "
import os
try:
    while True: os.dup(1)
except OSError: os.write(1, b'done\n')"`,
		"threads": python + ` -c "
import threading, time
try:
    for i in range(3000): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
except RuntimeError: pass
print('done', flush=True); import os; os._exit(0)"`,
		"children": "(setsid sleep 1000 &); (trap '' TERM HUP; sleep 1000 & ) ; nohup sleep 1000 >/dev/null 2>&1 & echo done",
		"flood":    "head -c 100000000 /dev/zero; echo; echo done",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGrid(t)
			g.lease = 20 * time.Second // the machine is busy meanwhile
			m := g.node()
			tr := trace(t, m.dir, 0)
			m.run("j", script)
			eventually(t, "it ends", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
			s := g.status("j", 0)
			out := g.text(s, "stdout")
			if wsdl.Or(s.ExitCode, -1) != 0 || !strings.HasSuffix(out, "done\n") || len(out) > 1<<20+100 {
				t.Errorf("it ended as %+v; %d bytes, stderr %q; failures %q", s, len(out), g.text(s, "stderr"), g.failures("j"))
			}
			m.terminate("j", 1, 0)
			tr.nothingLeft()
			m.works()
			m.clean()
		})
	}
}
