package node

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func resident(t *testing.T) int {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestTrim(t *testing.T) {
	garbage := make([]byte, 32<<20)
	for i := 0; i < len(garbage); i += 4096 {
		garbage[i] = 1
	}
	before := resident(t)
	garbage = nil
	began := time.Now()
	if err := trim(); err != nil {
		t.Fatal(err)
	}
	after := resident(t)
	t.Logf("from %d to %d KiB in %v", before, after, time.Since(began))
	if after > before-(30<<10) {
		t.Errorf("%d KiB were resident, %d still are", before, after)
	}
}

func TestUntouched(t *testing.T) {
	smaps := `00400000-01234000 r-xp 00000000 08:01 123   /bin/mvm node
Rss: 100 kB
Private_Dirty: 100 kB
Anonymous: 0 kB
Swap: 0 kB
VmFlags: rd ex mr mw me dw
01234000-01235000 r--p 00000000 08:01 123   /bin/mvm node
Anonymous: 4 kB
02000000-02001000 r--p 00000000 08:01 123   /bin/mvm node
Anonymous: 0 kB
Swap: 4 kB
03000000-03001000 rw-p 00000000 08:01 123   /bin/mvm node
04000000-04001000 r--p 00000000 08:01 123   /lib/libc.so
05000000-05001000 r--p 00000000 00:00 0
06000000-06002000 r--p 00000000 08:01 123   /bin/mvm node
`
	found, err := untouched(strings.NewReader(smaps), "/bin/mvm node")
	if want := []mapping{{0x400000, 0x1234000}, {0x6000000, 0x6002000}}; err != nil || !slices.Equal(found, want) {
		t.Errorf("found %x, %v; want %x", found, err, want)
	}
}

func FuzzUntouched(f *testing.F) {
	f.Add("00400000-01234000 r-xp 00000000 08:01 123   /x\nRss: 1 kB\n")
	f.Add("-  r-xp . . . /x\n")
	f.Fuzz(func(t *testing.T, smaps string) {
		found, err := untouched(strings.NewReader(smaps), "/x")
		for _, m := range found {
			if err == nil && m.to <= m.from {
				t.Errorf("an empty mapping %x", m)
			}
		}
	})
}
