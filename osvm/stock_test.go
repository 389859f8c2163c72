package osvm_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// TestStockImage imports a disk that starts as a cloud image does, and finds the
// agent running in it.
func TestStockImage(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*vmtest.Limit)
	defer cancel()
	h := vmtest.Host(t)
	disk, err := osvm.StockDisk(ctx, t.TempDir())
	if err != nil && strings.Contains(err.Error(), "Debian's package") {
		t.Skip("SKIPPED: no cloud image was imported, for the disk that stands in for one cannot be made: ", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	image, err := osvm.ImportDisk(ctx, t.TempDir(), disk, vmtest.Agent(t))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	image.LeastMemoryMiB = 192 // it is no whole distribution
	m := vmtest.MachineOf(t, h, osvm.Order{ID: "stock", Image: image, Limits: osvm.Limits{DiskMiB: 128}})
	t.Cleanup(func() {
		if view, err := m.Console().Attach("the test", true); t.Failed() && err == nil {
			said := make([]byte, 64<<10)
			n, _ := view.Read(said)
			t.Logf("the guest said %s", said[:n])
		}
	})
	session := vmtest.Start(t, m)
	hello := vmtest.Call[guest.Greeting](t, session, "Hello", guest.Nothing{})
	t.Logf("by its own boot loader to the agent's answer: %v", time.Since(begin))
	if hello.Root != "ext4" || hello.Hostname != "stock" {
		t.Errorf("it is %+v, expected the disk as its root and the name stock", hello)
	}
	vmtest.Call[guest.Nothing](t, session, "PowerOff", guest.Nothing{})
	select {
	case <-m.Ended():
	case <-ctx.Done():
		t.Error("it has not powered off")
	}
}
