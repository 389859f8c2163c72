package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// played is a contest between players that give what they are told, round by
// round.
func played(t *testing.T, goals []goal, mine, yours []float64) (*outcome, string) {
	t.Helper()
	var turns strings.Builder
	as := func(name string, values []float64) player {
		round := 0
		return player{name, func(context.Context) (sample, error) {
			turns.WriteString(name[:1])
			round++
			return sample{"time": values[round-1]}, nil
		}}
	}
	c := &contest{name: "case", title: "A case", rounds: len(mine), order: []string{"time"}, units: map[string]string{"time": "ms"}, goals: goals}
	c.open = func(context.Context, *bench) ([]player, func(), error) {
		return []player{as(ours, mine), as("Other", yours)}, nil, nil
	}
	return c.run(t.Context(), &bench{dir: t.TempDir()}), turns.String()
}

func TestRounds(t *testing.T) {
	o, turns := played(t, []goal{
		{text: "three times", atLeast: 3, ratio: less("time", "Other")},
		{text: "five times", atLeast: 5, ratio: less("time", "Other"), holds: "the test"},
		{text: "in 20 ms", atLeast: 1, ratio: under("time", 20)},
		{text: "nobody", atLeast: 1, ratio: less("time", "Nobody")},
	}, []float64{10, 9, 30}, []float64{40, 1000, 39})
	if o.err != nil {
		t.Fatal(o.err)
	}
	if turns != "MOOMMO" {
		t.Errorf("the turns were %s; every second round goes the other way round", turns)
	}
	text := report(machine{cores: 2}, []*outcome{o})
	for _, want := range []string{
		"| three times | 3 x | 4.00 x | met |",
		"| five times | 5 x | 4.00 x | **not met**, 20 % short |",
		"| in 20 ms | 1 x | 2.00 x | met |",
		"| nobody | 1 x |  | not measured |",
		"| time, ms | **10.0** (9.00 to 30.0) | **40.0** (39.0 to 1000) |",
		`Short of "five times" by 20 %: the test`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the report lacks %q:\n%s", want, text)
		}
	}
	if strings.Contains(text, "Short of \"three") {
		t.Error("a goal that is met is called short")
	}
}

func TestRatios(t *testing.T) {
	o := &outcome{values: map[string]map[string][]float64{
		ours: {"a": {2}, "b": {8}}, "x": {"a": {8}, "b": {4}}, "y": {"a": {6}, "b": {2}},
	}}
	for _, c := range []struct {
		name  string
		ratio func(*outcome) (float64, error)
		want  float64
	}{
		{"less than the best", less("a", "x", "y"), 3},
		{"more than the best", more("b", "x", "y"), 2},
		{"worst", worst(less("a", "x"), more("b", "x")), 2},
		{"geometric mean", geometric(less("a", "x"), under("b", 8)), 2},
	} {
		if got, err := c.ratio(o); err != nil || got < c.want-1e-9 || got > c.want+1e-9 {
			t.Errorf("%s: %v (%v), expected %v", c.name, got, err, c.want)
		}
	}
}

func TestFailuresAreTold(t *testing.T) {
	for _, c := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("slurmctld: %w", errAbsent), "| not measured |"},
		{errors.New("it broke\nbadly"), "**failed**: it broke badly"},
	} {
		contest := &contest{name: "case", title: "A case", goals: []goal{{text: "much", atLeast: 1, ratio: less("time", "Other")}},
			open: func(context.Context, *bench) ([]player, func(), error) { return nil, nil, c.err }}
		o := contest.run(t.Context(), &bench{})
		if text := report(machine{}, []*outcome{o}); !strings.Contains(text, c.want) {
			t.Errorf("the report lacks %q:\n%s", c.want, text)
		}
	}
}

func TestParsePlace(t *testing.T) {
	out := "goos: linux\nBenchmarkAgainstScotch/mesh-2  \t 1\t 256842561 ns/op\t 240000000 cpu-ns\t 6904 cut\t 7036 scotch-cut\t 1.000 scotch-load\t 411648876 scotch-ns\nPASS\n"
	mine, yours, err := parsePlace(out, []string{"mesh"})
	if err != nil || mine["cut, mesh"] != 6904 || mine["time, mesh"] != 240 || yours["cut, mesh"] != 7036 {
		t.Errorf("%v %v %v", mine, yours, err)
	}
	if _, _, err := parsePlace(out, []string{"torus"}); err == nil {
		t.Error("a kind that was not measured is not missed")
	}
}

func TestParseVM(t *testing.T) {
	out := `BenchmarkClone-2         1    115.1 clone-ms    2500 cold-ms
BenchmarkClone-2         1    125.0 clone-ms    2600 cold-ms
BenchmarkTwentyClones-2  1    24.32 MiB    144.0 cpu-ms    600 median-ms
BenchmarkTwentyClones-2  1    24.19 MiB    192.0 cpu-ms    700 median-ms
BenchmarkCheckpoint-2    1    86.5 booted-ms    14.9 clone-ms
BenchmarkCheckpoint-2    1    90.0 booted-ms    28.0 clone-ms
BenchmarkMigration-2     1    54.0 live-ms    0.09 ratio    583.0 stop-and-copy-ms
BenchmarkMigration-2     1    64.9 live-ms    0.05 ratio    1277 stop-and-copy-ms
BenchmarkNetwork-2       1    16.99 qemu-MiB/s    660.0 qemu-cpu-ms    773.4 qemu-us    9.114 switch-MiB/s    1025 switch-us    7.190 trunk-MiB/s    1373 trunk-us
BenchmarkNetwork-2       1    14.90 qemu-MiB/s    700.0 qemu-cpu-ms    1064 qemu-us    8.004 switch-MiB/s    1326 switch-us    9.255 trunk-MiB/s    1346 trunk-us
PASS
`
	all, err := parseVM(out, 2, "cold boot", "stop-and-copy", "QEMU's stream")
	if err != nil || all[ours][1]["answer"] != 125 || all[ours][0]["memory"] != 24.32 || all[ours][1]["pause, clone"] != 28 ||
		all["cold boot"][0]["answer"] != 2500 || all["stop-and-copy"][1]["down"] != 1277 ||
		all[ours][1]["bandwidth, two nodes"] != 9.255 || all["QEMU's stream"][0]["round trip"] != 773.4 {
		t.Errorf("%v, %v", all, err)
	}
	if _, err := parseVM(out, 3, "cold boot", "stop-and-copy", "QEMU's stream"); err == nil {
		t.Error("a round that was not measured is not missed")
	}
	if _, err := parseVM(strings.ReplaceAll(out, "cpu-ms", "ms"), 2, "cold boot", "stop-and-copy", "QEMU's stream"); err == nil {
		t.Error("a figure that was not told is not missed")
	}
}
