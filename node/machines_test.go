package node

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// VMs that are wanted at once get no more memory than there is, though none of them is
// there yet; what did not come of them is free again.
func TestVMsAtOnce(t *testing.T) {
	g := newGrid(t)
	m := g.with(t.TempDir(), quickParts(), nil)
	v := &machines{node: m.Node}
	third := int(m.total.Memory / 3)
	var all sync.WaitGroup
	var overs [8]func()
	var booked atomic.Int32
	for i := range overs {
		all.Go(func() {
			over, err := v.book(third, 0, 0)
			switch {
			case err == nil:
				booked.Add(1)
				overs[i] = over
			case code(err) != "busy" || !strings.Contains(err.Error(), "MiB of memory free"):
				t.Error(err)
			}
		})
	}
	all.Wait()
	if booked.Load() != 3 {
		t.Errorf("%d VMs of a third of the memory each are let in", booked.Load())
	}
	for _, over := range overs {
		if over != nil {
			over()
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ledger.vms != (room{}) {
		t.Errorf("VMs that did not come take %+v", m.ledger.vms)
	}
}
