package queuevm

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"
)

// The layout is pinned in C by _Static_assert, and here against what the C
// compiler really lays out; the Go client's copy is compared in its own test.
func TestLayoutIsTheSameInC(t *testing.T) {
	var h ringHeader
	fields := []struct {
		name   string
		offset uintptr
	}{
		{"magic", unsafe.Offsetof(h.magic)}, {"version", unsafe.Offsetof(h.version)},
		{"capacity", unsafe.Offsetof(h.capacity)}, {"channel", unsafe.Offsetof(h.channel)}, {"epoch", unsafe.Offsetof(h.epoch)},
		{"served", unsafe.Offsetof(h.served)}, {"most", unsafe.Offsetof(h.most)}, {"next", unsafe.Offsetof(h.next)}, {"begun", unsafe.Offsetof(h.begun)}, {"demand", unsafe.Offsetof(h.demand)}, {"verdict", unsafe.Offsetof(h.verdict)},
		{"tail", unsafe.Offsetof(h.tail)}, {"items_in", unsafe.Offsetof(h.itemsIn)},
		{"head", unsafe.Offsetof(h.head)}, {"items_out", unsafe.Offsetof(h.itemsOut)},
		{"producer_waits", unsafe.Offsetof(h.producerWaits)}, {"producer_state", unsafe.Offsetof(h.producerState)},
		{"consumer_waits", unsafe.Offsetof(h.consumerWaits)}, {"consumer_state", unsafe.Offsetof(h.consumerState)},
	}
	var program, want strings.Builder
	program.WriteString("#include \"mvm.c\"\nint main(void) {\n")
	for _, f := range fields {
		fmt.Fprintf(&program, "printf(\"%s %%zu\\n\", offsetof(struct header, %s));\n", f.name, f.name)
		fmt.Fprintf(&want, "%s %d\n", f.name, f.offset)
	}
	for _, c := range []struct {
		name  string
		value uint64
	}{
		{"sizeof(struct header)", uint64(unsafe.Sizeof(h))}, {"HEADER_SIZE", headerSize}, {"MAGIC", ringMagic}, {"VERSION", ringVersion},
		{"WAITS_FUTEX", waitsFutex}, {"WAITS_DAEMON", waitsDaemon},
		{"STATE_CLOSED", stateClosed}, {"STATE_LOST", stateLost}, {"STATE_BROKEN", stateBroken},
		{"RECORD_HEADER", recordHeader}, {"TOTAL_HEADER", totalHeader},
		{"FLAG_MORE", flagMore}, {"FLAG_CONT", flagCont}, {"FLAG_CONTROL", flagControl}, {"LENGTH_MASK", lengthMask},
		{"SERVED_DEMAND", servedDemand}, {"SERVED_VERDICT", servedVerdict}, {"IMPATIENT", impatient}, {"CONTROL_NOTHING", controlNothing},
		{"STATE_SWITCHED", stateSwitched}, {"CONTROL_SWITCH", controlSwitch}, {"CONTROL_CHANGED", controlChanged},
		{"NEXT_IN", nextIn}, {"NEXT_OUT", nextOut}, {"META_AWAITS", metaAwaits},
	} {
		fmt.Fprintf(&program, "printf(\"%s %%llu\\n\", (unsigned long long)(%s));\n", c.name, c.name)
		fmt.Fprintf(&want, "%s %d\n", c.name, c.value)
	}
	program.WriteString("return 0; }\n")
	dir := t.TempDir()
	source, binary := filepath.Join(dir, "layout.c"), filepath.Join(dir, "layout")
	must(t, os.WriteFile(source, []byte(program.String()), 0o600))
	if out, err := exec.Command("gcc", "-Ic", source, "-o", binary, "-lpthread").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	got, err := exec.Command(binary).Output()
	must(t, err)
	if string(got) != want.String() {
		t.Errorf("C says\n%swhere Go says\n%s", got, want.String())
	}
}

// What is embedded is what a job is built from: every file of the client, and
// no test.
func TestClientFilesAreWhole(t *testing.T) {
	embedded := ClientFiles()
	sources, err := filepath.Glob("client/*.go")
	must(t, err)
	for _, name := range append(sources, "c/mvm.h", "c/mvm.c", "c/collective.c", "c/lib/README", "python/mvm.py") {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		got, err := fs.ReadFile(embedded, name)
		must(t, err)
		want, err := os.ReadFile(name)
		must(t, err)
		if string(got) != string(want) {
			t.Errorf("%s is embedded otherwise than it is", name)
		}
	}
}

// What is embedded goes into the keys of builds: only what is meant to.
func TestClientFilesAreOnlySources(t *testing.T) {
	must(t, fs.WalkDir(ClientFiles(), ".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() && filepath.Dir(path) != "c/lib" && !slices.Contains([]string{".h", ".c", ".py", ".go"}, filepath.Ext(path)) {
			t.Errorf("%s is among the client files", path)
		}
		return err
	}))
}
