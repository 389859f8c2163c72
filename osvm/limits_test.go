package osvm

import (
	"io"
	"maps"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestLimitsInGroups writes limits into folders as each version of control groups
// has them.
func TestLimitsInGroups(t *testing.T) {
	spec := Spec{ID: "one", MemoryMiB: 128, Limits: Limits{CPUs: 0.5}}
	for name, c := range map[string]struct {
		folders    []string
		enabled    string
		membership string
		want       map[string]string
	}{
		"version 1": {
			folders: []string{"memory/node", "cpu"}, membership: "4:memory:/node\n3:cpu,cpuacct:/\n0::/\n",
			want: map[string]string{
				"memory/node/mvm-vm-u/memory.limit_in_bytes": "402653184", "memory/node/mvm-vm-u/cgroup.procs": "77",
				"cpu/mvm-vm-u/cpu.cfs_period_us": "50000", "cpu/mvm-vm-u/cpu.cfs_quota_us": "25000", "cpu/mvm-vm-u/cpu.shares": "512", "cpu/mvm-vm-u/cgroup.procs": "77",
			},
		},
		"version 2": {
			folders: []string{"machine", "machine/node"}, enabled: "cpu io memory pids", membership: "0::/machine/node\n",
			want: map[string]string{
				"machine/mvm-vm-u/memory.max": "402653184", "machine/mvm-vm-u/cpu.max": "25000 50000", "machine/mvm-vm-u/cpu.weight": "50", "machine/mvm-vm-u/cgroup.procs": "77",
			},
		},
		"version 2, memory alone": {
			folders: []string{"machine", "machine/node"}, enabled: "memory", membership: "0::/machine/node\n",
			want: map[string]string{"machine/mvm-vm-u/memory.max": "402653184", "machine/mvm-vm-u/cgroup.procs": "77"},
		},
		"none": {folders: []string{"machine"}, membership: "0::/machine/node\n", want: map[string]string{}},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for _, folder := range c.folders {
				folder = filepath.Join(root, folder)
				if err := os.MkdirAll(folder, 0o755); err != nil {
					t.Fatal(err)
				}
				fill(t, filepath.Join(folder, "cgroup.procs"), "")
				fill(t, filepath.Join(folder, "cgroup.subtree_control"), c.enabled)
			}
			groups, err := limitIn(root, c.membership, 77, "u", spec)
			if err != nil {
				t.Fatal(err)
			}
			for path := range c.want {
				if group := filepath.Join(root, filepath.Dir(path)); !slices.Contains(groups, group) {
					t.Errorf("%s is not among the groups %v", group, groups)
				}
			}
			got := map[string]string{}
			err = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
				if err == nil && !entry.IsDir() && strings.Contains(path, groupPrefix) {
					text, err := os.ReadFile(path)
					got[strings.TrimPrefix(path, root+"/")] = string(text)
					return err
				}
				return err
			})
			if err != nil || !maps.Equal(got, c.want) {
				t.Errorf("%v, %v\nexpected %v", got, err, c.want)
			}
		})
	}
}

func fill(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestNiceness(t *testing.T) {
	var got []int
	for _, cpus := range []float64{0, 2, 1, 0.8, 0.5, 0.25, 0.01} {
		got = append(got, niceness(cpus))
	}
	if want := []int{0, 0, 0, 1, 3, 6, 19}; !slices.Equal(got, want) {
		t.Errorf("%v, expected %v", got, want)
	}
}

func TestLimitsThatCannotBe(t *testing.T) {
	for _, l := range []Limits{{CPUs: -1}, {CPUs: math.NaN()}, {CPUs: 0.001}, {NetworkBytesPerSecond: 1}, {NetworkBytesPerSecond: -1}, {DiskMiB: -1}, {DiskBytesPerSecond: -1}} {
		if l.Check() == nil {
			t.Errorf("%+v is allowed", l)
		}
	}
}

// TestTraffic holds a connection to its limit, each way, and ends what waits for
// its turn when it is closed.
func TestTraffic(t *testing.T) {
	const perSecond, more = 256 << 10, 64 << 10 // beside what passes at once
	for _, way := range []string{"to the guest", "to the host"} {
		far, near := net.Pipe()
		limited := newTraffic(perSecond)
		conn := limited.count(near)
		from, to, counter := conn, far, &limited.in
		if way == "to the host" {
			from, to, counter = far, conn, &limited.out
		}
		begin := time.Now()
		go func() { _, _ = from.Write(make([]byte, trafficBurst+more)) }()
		if _, err := io.ReadFull(to, make([]byte, trafficBurst+more)); err != nil {
			t.Fatal(err)
		}
		if took, least := time.Since(begin), time.Second*more/perSecond*9/10; took < least {
			t.Errorf("%s: %d bytes above the burst passed in %v, which take %v", way, more, took, least)
		}
		eventually(t, func() bool { return counter.Load() == trafficBurst+more })
		ended := make(chan error, 1)
		go func() {
			_, err := conn.Write(make([]byte, 100<<20))
			ended <- err
		}()
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Errorf("%s: written to what was closed", way)
		}
		_ = far.Close()
	}
	if _, err := newTraffic(0).count(fails{}).Read(nil); err != io.EOF {
		t.Errorf("without a limit: %v", err)
	}
}

type fails struct{ net.Conn }

func (fails) Read([]byte) (int, error) { return 0, io.EOF }

func eventually(t *testing.T, is func() bool) {
	t.Helper()
	for begin := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			t.Fatal("it never came to that")
		}
	}
}
