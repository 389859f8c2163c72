package place

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// Scotch partitions the same graphs into parts of the same size; ours may cut
// at most a tenth more.
func TestCutsAgainstScotch(t *testing.T) {
	scotch, err := exec.LookPath("scotch_gpart")
	if err != nil {
		t.Skip("SKIPPED: cuts are not compared with Scotch's, because scotch_gpart is not installed (Debian: scotch)")
	}
	cut := regexp.MustCompile(`CommCutSz=[0-9.]+\s*\(([0-9]+)\)`)
	for _, c := range []struct {
		name, body   string
		parts, slots int
	}{
		{"mesh", `<task name="p" source="c" count="1024"/><topology kind="mesh"/>`, 64, 16},
		{"mesh, few nodes", `<task name="p" source="c" count="2500"/><topology kind="mesh"/>`, 8, 313},
		{"torus", `<task name="p" source="c" count="1024"/><topology kind="torus"/>`, 16, 64},
		{"mesh of 3 dimensions", `<task name="p" source="c" count="1000"/><topology kind="mesh" dimensions="3"/>`, 25, 40},
		{"hypercube", `<task name="p" source="c" count="1024"/><topology kind="hypercube"/>`, 64, 16},
		{"butterfly", `<task name="p" source="c" count="512"/><topology kind="butterfly"/>`, 32, 16},
		{"random", `<task name="p" source="c" count="1000"/><topology kind="random"/>`, 20, 50},
		{"smallWorld", `<task name="p" source="c" count="1000"/><topology kind="smallWorld" degree="6"/>`, 20, 50},
		{"tree", `<task name="p" source="c" count="1000"/><topology kind="tree" arity="3"/>`, 20, 50},
	} {
		job := compile(t, c.body)
		plan, ok := Place(job, alike(c.parts, c.slots), "")
		if !ok {
			t.Fatal(plan.Reason)
		}
		g := newNetwork(job)
		var text strings.Builder
		fmt.Fprintf(&text, "0\n%d %d\n0 000\n", len(job.Processes), len(g.to))
		for p := range job.Processes {
			to, _ := g.row(int32(p))
			fmt.Fprintf(&text, "%d %s\n", len(to), strings.Trim(fmt.Sprint(to), "[]"))
		}
		file := filepath.Join(t.TempDir(), "graph")
		if err := os.WriteFile(file, []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(scotch, strconv.Itoa(c.parts), file, os.DevNull, "/dev/stdout", "-vm", "-b0.001").CombinedOutput()
		match := cut.FindSubmatch(out)
		if err != nil || match == nil {
			t.Fatalf("scotch_gpart: %v\n%s", err, out)
		}
		theirs, _ := strconv.Atoi(string(match[1]))
		ours := plan.Remote / 2 // a link is two channels
		t.Logf("%-21s %5d links cut by ours, %5d by Scotch: %.2f", c.name, ours, theirs, float64(ours)/float64(theirs))
		if ours*10 > theirs*11 {
			t.Errorf("%s: %d links are cut, Scotch cuts %d", c.name, ours, theirs)
		}
	}
}
