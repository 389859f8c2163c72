package osvm_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/vmtest"
)

// TestMinimalImage has a guest compile a program with the C client, by the name
// under which builds look for a compiler, and run it; and read and write disks.
func TestMinimalImage(t *testing.T) {
	const script = `#!/bin/sh
mount -t devtmpfs none /dev
mount -t sysfs none /sys
mount -t proc none /proc
for name in $(cat /modules/order); do insmod /modules/$name.ko; done
head -c 9 /dev/vda; echo ", $(cat /sys/block/vda/size) sectors, $(cat /sys/block/vda/serial)"
echo overlaid | dd of=/dev/vda bs=1 conv=notrunc 2>/dev/null && sync && head -c 8 /dev/vda && echo
echo "far away" | dd of=/dev/vda bs=1M seek=30 2>/dev/null && sync && dd if=/dev/vda bs=1M skip=30 count=1 2>/dev/null | head -n 1
begin=$(cut -d ' ' -f 1 /proc/uptime) && dd if=/dev/zero of=/dev/vda bs=1M seek=32 count=8 conv=fsync 2>/dev/null && echo "8 MiB from second $begin to second $(cut -d ' ' -f 1 /proc/uptime)"
head -c 8 /dev/vdb && echo && echo x >/dev/vdb || echo "vdb is read-only: $(cat /sys/block/vdb/ro)"
cd /tmp && cat >hello.c <<'EOF'
#include <math.h>
#include <mvm.h>
#include <pthread.h>
#include <stdio.h>

static void *other(void *of) { mvm_open("no such port"); return of; }

int main(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, other, NULL) || pthread_join(thread, NULL)) return 2;
    if (mvm_error()[0]) return 3; /* it was the other thread's */
    printf("%.4f %s\n", sqrt(2), mvm_open("x") == NULL && mvm_error()[0] ? "alone" : "a port");
    return 0;
}
EOF
gcc --version && gcc -O2 -pipe -fdiagnostics-color=never -I. -o hello ./hello.c /usr/lib/x86_64-linux-gnu/libmvm.a -lm -lpthread && ./hello && gcc nothing.c
echo "exit code $?"
poweroff -f
`
	image := vmtest.Image(t)
	initrd, err := os.ReadFile(image.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	// The kernel reads one archive after the other.
	image.Initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(image.Initrd, append(osvm.Archive("trial", script), initrd...), 0o644); err != nil {
		t.Fatal(err)
	}
	image.CommandLine = "rdinit=/trial"
	folder := t.TempDir()
	disk, seed := filepath.Join(folder, "disk"), filepath.Join(folder, "seed")
	for name, begin := range map[string]string{disk: "the image", seed: "the seed"} {
		if err := errors.Join(os.WriteFile(name, []byte(begin), 0o644), os.Truncate(name, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	image.Disks = []osvm.Disk{{Path: disk, Format: osvm.Raw}, {Path: seed, Format: osvm.Raw, ReadOnly: true}}
	const perSecond = 4 << 20
	lines := console(t, osvm.Order{ID: "trial", Image: image, MemoryMiB: 128, Limits: osvm.Limits{DiskMiB: 64, DiskBytesPerSecond: perSecond}})
	text := strings.Join(lines, "\n")
	if begin, err := os.ReadFile(disk); err != nil || !strings.HasPrefix(string(begin), "the image\x00") {
		t.Errorf("the image's own file has become %q, %v", begin[:min(20, len(begin))], err)
	}
	for _, want := range []string{"the image, 131072 sectors, mvm-disk0", "overlaid", "far away", "the seed", "vdb is read-only: 1", "tcc version 0.9", "1.4142 alone", "file 'nothing.c' not found", "exit code 1"} {
		if !strings.Contains(text, want) {
			t.Errorf("the guest did not say %q, but\n%s", want, text)
		}
	}
	// By the guest's clock, which nothing that holds up the test holds up. A tenth of
	// a second's bytes may pass at once.
	var begin, end float64
	for _, line := range lines {
		_, _ = fmt.Sscanf(line, "8 MiB from second %f to second %f", &begin, &end)
	}
	t.Logf("with a limit of %d bytes a second it wrote 8 MiB in %.2f s", perSecond, end-begin)
	if least := 8.0*(1<<20)/perSecond - 0.2; begin == 0 || end-begin < least {
		t.Errorf("it wrote 8 MiB from second %v to second %v, with a limit of %d bytes a second: expected %v at least", begin, end, perSecond, least)
	}
}

// console boots a machine and gives what it writes to its serial port until it
// ends.
func console(t *testing.T, order osvm.Order) (lines []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), vmtest.Limit)
	defer cancel()
	begin := time.Now()
	m := vmtest.MachineOf(t, vmtest.Host(t), order)
	view, err := m.Console().Attach("the test", false)
	if err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = view.Close() })
	defer stop()
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	scanner := bufio.NewScanner(view)
	for scanner.Scan() {
		lines = append(lines, strings.TrimSpace(scanner.Text()))
	}
	select {
	case <-m.Ended():
	case <-ctx.Done():
		t.Errorf("the guest has not ended after %v; it said\n%s", vmtest.Limit, strings.Join(lines, "\n"))
	}
	t.Logf("it ended after %v", time.Since(begin))
	return lines
}
