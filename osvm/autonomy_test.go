package osvm_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/link"
	"mvm/osvm/vmtest"
)

// shell runs a line in the guest's shell, and gives what it says.
func shell(t *testing.T, agent *link.Session, line string) guest.Output {
	t.Helper()
	return vmtest.Call[guest.Output](t, agent, "Run", guest.Command{Words: []string{"/bin/sh", "-c", line}})
}

// TestTwoAutonomousHosts has two VMs on one machine, and looks at each thing that
// makes hosts of them (paper, section 2.1): each changes in one and not in the
// other.
func TestTwoAutonomousHosts(t *testing.T) {
	outer := t
	h, image := vmtest.Host(t), vmtest.Image(t)
	limits := map[string]osvm.Limits{"large": {CPUs: 0.9, NetworkBytesPerSecond: 64 << 20}, "small": {CPUs: 0.3, NetworkBytesPerSecond: 16 << 20}}
	machines, agents := map[string]*osvm.Machine{}, map[string]*link.Session{}
	for id, l := range limits {
		machines[id] = vmtest.MachineOf(t, h, osvm.Order{ID: id, Image: image, MemoryMiB: 128, Limits: l, Owner: "owner of " + id, Template: true})
		agents[id] = vmtest.Start(t, machines[id])
	}
	large, small := machines["large"], machines["small"]

	t.Run("accounts", func(t *testing.T) {
		if out := shell(t, agents["large"], `echo ada:x:1000:1000::/:/bin/sh >>/etc/passwd && busybox id ada`); out.Status != 0 || !strings.Contains(out.Said, "uid=1000(ada)") {
			t.Errorf("the account was not made: %+v", out)
		}
		if out := shell(t, agents["small"], "busybox id ada"); out.Status == 0 {
			t.Errorf("one VM's account is the other's: %s", out.Said)
		}
		if out := vmtest.Call[guest.Output](t, agents["large"], "Run", guest.Command{Words: []string{"/bin/busybox", "id", "-u"}, User: 1000}); strings.TrimSpace(out.Said) != "1000" {
			t.Errorf("as ada: %+v", out)
		}
	})

	t.Run("services", func(t *testing.T) {
		for id, agent := range agents {
			out := shell(t, agent, `busybox ifconfig lo 127.0.0.1 up; echo service of $(busybox hostname) >/tmp/index.html; busybox httpd -p 127.0.0.1:8080 -h /tmp`)
			if out.Status != 0 {
				t.Fatalf("%s: %+v", id, out)
			}
		}
		for id, agent := range agents { // one port, two services
			outside, err := link.NewOutside(link.OutsideConfig{})
			if err != nil {
				t.Fatal(err)
			}
			go outside.Serve(agent)
			ctx, cancel := context.WithTimeout(outer.Context(), vmtest.Limit)
			defer cancel()
			conn, err := outside.Port(ctx, 8080)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, "GET /index.html HTTP/1.0\r\n\r\n"); err != nil {
				t.Fatal(err)
			}
			said, err := io.ReadAll(conn)
			if err != nil || !strings.HasSuffix(string(said), "service of "+id+"\n") {
				t.Errorf("%s serves %q, %v", id, said, err)
			}
			_ = conn.Close()
		}
	})

	t.Run("logs", func(t *testing.T) {
		shell(t, agents["large"], "echo a line of the large one >/dev/console")
		eventually(t, "the large VM's log has its line", func() bool {
			return strings.Contains(string(large.Console().Last()), "a line of the large one")
		})
		if strings.Contains(string(small.Console().Last()), "a line of the large one") {
			t.Error("one VM's log is the other's")
		}
	})

	t.Run("monitoring", func(t *testing.T) {
		before, err := small.Statistics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			vmtest.Call[[]byte](t, agents["large"], "Random", 256)
		}
		after, err := small.Statistics(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if after.NetworkToHost-before.NetworkToHost > 4096 {
			t.Errorf("%d bytes of the other's are counted as the small VM's", after.NetworkToHost-before.NetworkToHost)
		}
		of, err := large.Statistics(t.Context())
		if err != nil || of.CPU <= 0 || of.MemoryBytes < 5<<20 || of.NetworkToHost <= 20*256 || of.NetworkToGuest <= 0 {
			t.Errorf("the large VM's: %+v, %v", of, err)
		}
		t.Logf("large %+v, small %+v", of, after)
	})

	t.Run("sharing", func(t *testing.T) {
		shell(t, agents["large"], "echo secret >/tmp/file; (busybox sleep 1000 >/dev/null 2>&1 </dev/null &)")
		if out := shell(t, agents["small"], "cat /tmp/file || busybox cat /tmp/file"); out.Status == 0 {
			t.Errorf("one VM's file is the other's: %s", out.Said)
		}
		if out := shell(t, agents["small"], "busybox ps"); out.Status != 0 || strings.Contains(out.Said, "sleep 1000") {
			t.Errorf("the small VM's processes: %s", out.Said)
		}
		if out := shell(t, agents["large"], "busybox ps"); !strings.Contains(out.Said, "sleep 1000") {
			t.Errorf("the large VM's processes: %s", out.Said)
		}
	})

	t.Run("rules", func(t *testing.T) {
		for id, m := range machines {
			for _, group := range m.Groups() {
				procs, err := os.ReadFile(filepath.Join(group, "cgroup.procs"))
				if err != nil || strings.TrimSpace(string(procs)) != strconv.Itoa(m.PID()) {
					t.Errorf("%s: in its control group %s are %q, %v", id, group, procs, err)
				}
				for _, file := range []string{"memory.limit_in_bytes", "memory.max"} {
					if text, err := os.ReadFile(filepath.Join(group, file)); err == nil && strings.TrimSpace(string(text)) != strconv.Itoa(384<<20) {
						t.Errorf("%s: %s is %s", id, file, text)
					}
				}
			}
			if m.Limits != limits[id] || m.Owner != "owner of "+id {
				t.Errorf("%s has %+v of %q", id, m.Limits, m.Owner)
			}
		}
		if err := large.Suspend(t.Context()); err != nil {
			t.Fatal(err)
		}
		if out := shell(t, agents["small"], "echo still here"); out.Said != "still here\n" {
			t.Errorf("beside a suspended VM: %+v", out)
		}
		if err := large.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("processor", func(t *testing.T) {
		if !osvm.LimitsProcessors() {
			t.Skip("SKIPPED: shares of the processor were not measured: no control group can be made here")
		}
		for _, agent := range agents {
			shell(t, agent, "(while :; do :; done) >/dev/null 2>&1 </dev/null &")
		}
		used := func(m *osvm.Machine) time.Duration {
			s, err := m.Statistics(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return s.CPU
		}
		const enough, most, tries = time.Second, 30 * time.Second, 3
		var ratio float64
		for range tries { // others' load is not even
			begin, before := time.Now(), [2]time.Duration{used(large), used(small)}
			eventually(t, "the small VM has used enough", func() bool { return used(small)-before[1] >= enough/4 || time.Since(begin) > most })
			of := [2]time.Duration{used(large) - before[0], used(small) - before[1]}
			ratio = float64(of[0]) / float64(of[1])
			t.Logf("in %v: %v and %v of processor time, %.2f : 1", time.Since(begin), of[0], of[1], ratio)
			if ratio > 2 && ratio < 4.5 {
				return
			}
		}
		t.Errorf("two busy VMs with shares of 3 : 1 use %.2f : 1", ratio)
	})
}

// TestProcessorWeights has two busy VMs on one core, whose quotas leave each of them
// all of it: what divides it is their weights alone.
func TestProcessorWeights(t *testing.T) {
	h, image := vmtest.Host(t), vmtest.Image(t)
	if !osvm.LimitsProcessors() {
		t.Skip("SKIPPED: weights were not measured: no control group can be made here")
	}
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		t.Fatal(err)
	}
	for core := 0; one.Count() == 0; core++ {
		if may.IsSet(core) {
			one.Set(core)
		}
	}
	var machines [2]*osvm.Machine
	for i, cpus := range []float64{3, 1} {
		m := vmtest.MachineOf(t, h, osvm.Order{ID: fmt.Sprint("weighs-", cpus), Image: image, MemoryMiB: 128, Limits: osvm.Limits{CPUs: cpus}, Template: true})
		agent := vmtest.Start(t, m)
		shell(t, agent, "(while :; do :; done) >/dev/null 2>&1 </dev/null &")
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", m.PID()))
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if number, err := strconv.Atoi(thread.Name()); err == nil {
				_ = unix.SchedSetaffinity(number, &one) // it may have ended
			}
		}
		machines[i] = m
	}
	used := func() (of [2]time.Duration) {
		for i, m := range machines {
			s, err := m.Statistics(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			of[i] = s.CPU
		}
		return of
	}
	const enough = 400 * time.Millisecond // of the lighter one: forty of the kernel's ticks
	begin, before := time.Now(), used()
	var ratio float64
	eventually(t, "the light VM has used enough", func() bool {
		now := used()
		ratio = float64(now[0]-before[0]) / float64(now[1]-before[1])
		return now[1]-before[1] >= enough
	})
	t.Logf("in %v one used %.2f times as much as the other", time.Since(begin), ratio)
	if ratio < 2 || ratio > 4.5 {
		t.Errorf("two busy VMs of weights 3 : 1 use %.2f : 1", ratio)
	}
}
