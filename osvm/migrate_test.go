package osvm_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// pipe is a connection over loopback.
func pipe(t testing.TB) (net.Conn, net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	near, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	far, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return near, far
}

// admit takes whatever comes, with the disks of the one image that there is.
func admit(image osvm.Image) func(osvm.Arrival) (osvm.Image, error) {
	return func(osvm.Arrival) (osvm.Image, error) { return image, nil }
}

// migrate moves a machine from one host to another in this process.
func migrate(t testing.TB, from, to *osvm.Host, id string, how osvm.Migration) (*osvm.Machine, osvm.Migrated, error) {
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	leaves, err := from.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	image := osvm.Image{Kernel: leaves.Kernel, Disks: leaves.Disks}
	near, far := pipe(t)
	type arrived struct {
		m   *osvm.Machine
		err error
	}
	done := make(chan arrived, 1)
	go func() {
		m, err := to.MigrateFrom(ctx, far, admit(image))
		done <- arrived{m, err}
	}()
	moved, err := from.MigrateTo(ctx, id, near, how)
	there := <-done
	if there.m != nil {
		t.Cleanup(func() { _ = there.m.Destroy() })
	}
	if err == nil {
		err = there.err
	}
	return there.m, moved, err
}

// TestMigrate moves a machine back and forth while its guest writes and verifies
// all over its memory and its disk: first a clone, then what arrived.
func TestMigrate(t *testing.T) {
	hosts := []*osvm.Host{vmtest.Host(t), vmtest.Host(t)}
	m := vmtest.MachineOf(t, hosts[0], osvm.Order{ID: "traveller", Image: vmtest.DiskPatterns(t), MemoryMiB: 160, Template: true})
	agent := vmtest.Start(t, m)
	hello := vmtest.Call[guest.Greeting](t, agent, "Hello", guest.Nothing{})
	moves := 4
	if os.Getenv("MVM_SOAK") != "" {
		moves = 24
	}
	for i := range moves {
		from, to := hosts[i%2], hosts[(i+1)%2]
		before, _ := vmtest.Verified(t, m)
		there, moved, err := migrate(t, from, to, m.ID, osvm.Migration{})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v", moved)
		if _, err := from.Get(m.ID); !errors.Is(err, osvm.ErrUnknown) {
			t.Errorf("moved, it is still found where it was: %v", err)
		}
		if there.State() != osvm.Running || there.ImageDigest != m.ImageDigest {
			t.Errorf("it arrives %s, of image %q", there.State(), there.ImageDigest)
		}
		m = there
		after, bad := vmtest.Verified(t, m)
		if after <= before || bad != 0 {
			t.Fatalf("it had verified %d pages, and then %d, of which %d were bad", before, after, bad)
		}
	}
	session, got, err := m.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = session.Close()
	if got.Boot != hello.Boot || got.Hostname != hello.Hostname || got.Uptime < hello.Uptime {
		t.Errorf("after %d moves it is %+v, before it was %+v", moves, got, hello)
	}

	// One that stands still stays so.
	if err := m.Suspend(t.Context()); err != nil {
		t.Fatal(err)
	}
	capture, err := m.Capture(t.Context()) // for which QEMU has given the disk out of its hands
	if err != nil {
		t.Fatal(err)
	}
	capture.Close()
	m, moved, err := migrate(t, hosts[0], hosts[1], m.ID, osvm.Migration{})
	if err != nil {
		t.Fatal(err)
	}
	if m.State() != osvm.Suspended || moved.Rounds != 0 {
		t.Errorf("suspended, it arrives %s after %d rounds", m.State(), moved.Rounds)
	}
	if _, bad := vmtest.Verified(t, resumed(t, m)); bad != 0 {
		t.Errorf("%d pages are bad", bad)
	}
}

// BenchmarkMigration moves a machine whose guest is moderately busy, running and
// then standing still all the time. Its ratio is the first one's downtime to the
// second one's.
func BenchmarkMigration(b *testing.B) { benchmarkMigration(b, vmtest.Patterns(b), 0) }

// BenchmarkMigrationOfDisk is that of a machine that has written 256 MiB to its disk,
// and goes on writing.
func BenchmarkMigrationOfDisk(b *testing.B) { benchmarkMigration(b, vmtest.DiskPatterns(b), 256) }

func benchmarkMigration(b *testing.B, image osvm.Image, written int) {
	if written > 0 {
		folder := b.TempDir()
		for _, parent := range []string{folder, filepath.Dir(folder)} { // QEMU is not us
			if err := os.Chmod(parent, 0o755); err != nil {
				b.Fatal(err)
			}
		}
		content, err := os.ReadFile(image.Disks[0].Path)
		if err != nil {
			b.Fatal(err)
		}
		large := filepath.Join(folder, "disk")
		if err := errors.Join(os.WriteFile(large, content, 0o644), os.Truncate(large, int64(len(content)+written<<20))); err != nil {
			b.Fatal(err)
		}
		image.Disks = []osvm.Disk{{Path: large, Format: osvm.Raw}}
	}
	hosts := []*osvm.Host{vmtest.Host(b), vmtest.Host(b)}
	m := vmtest.MachineOf(b, hosts[0], osvm.Order{ID: "traveller", Image: image, MemoryMiB: 160, Template: written == 0})
	if err := m.Resume(b.Context()); err != nil {
		b.Fatal(err)
	}
	vmtest.Rest(b, m)
	const piece = 32 // MiB that QEMU writes at once
	for at := 0; at < written; at += piece {
		if said, err := m.QEMUIO(b.Context(), fmt.Sprintf("write -P %d %dM %dM", 1+at/piece, 16+at, piece)); err != nil || said != "" {
			b.Fatal(said, err)
		}
	}
	var down [2][]time.Duration
	at := 0
	for b.Loop() {
		for way := range down {
			_, moved, err := migrate(b, hosts[at], hosts[1-at], m.ID, osvm.Migration{StopAndCopy: way == 1})
			if err != nil {
				b.Fatal(err)
			}
			b.Logf("%+v", moved)
			down[way] = append(down[way], moved.Downtime)
			at = 1 - at
		}
	}
	live, still := median(down[0]), median(down[1])
	b.ReportMetric(float64(live.Microseconds())/1000, "live-ms")
	b.ReportMetric(float64(still.Microseconds())/1000, "stop-and-copy-ms")
	b.ReportMetric(float64(live)/float64(still), "ratio")
	b.ReportMetric(0, "ns/op")
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}
