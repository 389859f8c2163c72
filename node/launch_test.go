package node

import (
	"errors"
	"io/fs"
	"runtime"
	"testing"
)

// TestSlimTakesNoHeap: the program of MVM processes goes into memory once, and not
// by the heap: in the guest of a small VM that is the room that there is.
func TestSlimTakesNoHeap(t *testing.T) {
	info, err := fs.Stat(embedded, slimProgram)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip("SKIPPED: this test was built without the slim MVM process: make build makes it")
	}
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	program, err := slim()
	runtime.ReadMemStats(&after)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if inMemory, err := program.Stat(); err != nil || inMemory.Size() != info.Size() {
		t.Errorf("%v, %v; expected %d bytes", inMemory, err, info.Size())
	}
	const most = 1 << 20 // other tests' goroutines included
	if took := after.TotalAlloc - before.TotalAlloc; took > most {
		t.Errorf("it took %d bytes of the heap", took)
	}
}
