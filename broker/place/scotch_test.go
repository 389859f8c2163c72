package place

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/broker/profile"
)

// scotchMap has Scotch map a job's processes onto as many nodes, all equally far
// from each other: it returns how many links it cuts, the most processes that it
// gives a node, and how long it took.
func scotchMap(tb testing.TB, job *profile.Job, parts int) (cut, most int, took time.Duration) {
	tb.Helper()
	scotch, err := exec.LookPath("scotch_gmap")
	if errors.Is(err, exec.ErrNotFound) {
		tb.Skip("SKIPPED: cuts are not compared with Scotch's, because scotch_gmap is not installed (Debian: scotch)")
	}
	g := newNetwork(job)
	var text strings.Builder
	fmt.Fprintf(&text, "0\n%d %d\n0 000\n", len(job.Processes), len(g.to))
	for p := range job.Processes {
		to, _ := g.row(int32(p))
		fmt.Fprintf(&text, "%d %s\n", len(to), strings.Trim(fmt.Sprint(to), "[]"))
	}
	dir := tb.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			tb.Fatal(err)
		}
		return path
	}
	mapping := filepath.Join(dir, "mapping")
	begin := time.Now()
	out, err := exec.Command(scotch, file("graph", text.String()), file("target", "cmplt "+strconv.Itoa(parts)), mapping, "/dev/stdout", "-vm", "-b0.001").CombinedOutput()
	took = time.Since(begin)
	match := regexp.MustCompile(`CommCutSz=[0-9.]+\s*\(([0-9]+)\)`).FindSubmatch(out)
	if err != nil || match == nil {
		tb.Fatalf("scotch_gmap: %v\n%s", err, out)
	}
	cut, _ = strconv.Atoi(string(match[1]))
	lines, err := os.ReadFile(mapping)
	if err != nil {
		tb.Fatal(err)
	}
	load := map[string]int{}
	for i, line := range strings.Split(strings.TrimSpace(string(lines)), "\n") {
		if _, node, ok := strings.Cut(line, "\t"); i > 0 && ok {
			load[node]++
			most = max(most, load[node])
		}
	}
	return cut, most, took
}

// Scotch maps the same graphs onto as many nodes; ours may cut at most a tenth
// more.
func TestCutsAgainstScotch(t *testing.T) {
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
		theirs, most, _ := scotchMap(t, job, c.parts)
		ours := plan.Remote / 2 // a link is two channels
		t.Logf("%-21s %5d links cut by ours, %5d by Scotch, which gives a node up to %d of %d: %.2f", c.name, ours, theirs, most, c.slots, float64(ours)/float64(theirs))
		if ours*10 > theirs*11 {
			t.Errorf("%s: %d links are cut, Scotch cuts %d", c.name, ours, theirs)
		}
	}
}

// BenchmarkAgainstScotch places some 10,000 processes on some 1,000 nodes with
// room for exactly as many; examples/bench reads what it reports.
func BenchmarkAgainstScotch(b *testing.B) {
	for _, c := range []struct {
		name, body   string
		parts, slots int
	}{
		{"mesh", `<task name="p" source="c" count="10000"/><topology kind="mesh"/>`, 1000, 10},
		{"torus", `<task name="p" source="c" count="10000"/><topology kind="torus"/>`, 1000, 10},
		{"hypercube", `<task name="p" source="c" count="8192"/><topology kind="hypercube"/>`, 1024, 8},
		{"butterfly", `<task name="p" source="c" count="8192"/><topology kind="butterfly"/>`, 1024, 8},
		{"random", `<task name="p" source="c" count="10000"/><topology kind="random"/>`, 1000, 10},
	} {
		b.Run(c.name, func(b *testing.B) {
			job := compile(b, c.body)
			theirs, most, took := scotchMap(b, job, c.parts)
			nodes := alike(c.parts, c.slots)
			var plan Plan
			before := processorTime(b)
			for b.Loop() {
				var ok bool
				if plan, ok = Place(job, nodes, ""); !ok {
					b.Fatal(plan.Reason)
				}
			}
			b.ReportMetric(float64((processorTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns")
			b.ReportMetric(float64(plan.Remote/2), "cut")
			b.ReportMetric(float64(theirs), "scotch-cut")
			b.ReportMetric(float64(took.Nanoseconds()), "scotch-ns")
			b.ReportMetric(float64(most)/float64(c.slots), "scotch-load")
		})
	}
}
