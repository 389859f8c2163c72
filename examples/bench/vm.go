package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// vmCase measures OS-level VMs on a host as a node has it. What a VM's start is
// without a template, and a migration without its pre-copy, cannot be asked of a
// node, so package osvm measures, and this reads what it says.
func vmCase() *contest {
	const boots, stops, wires = "cold boot", "stop-and-copy", "QEMU's stream"
	c := &contest{
		name:  "vm",
		title: "OS-level VMs of the minimal image with 128 MiB, by translation (tcg)",
		method: "Package osvm's own benchmarks, an iteration a round, each with a cold boot and the clones, or the live migration and the other, one after the other. " +
			"Answer: from the order to the agent's answer, which has its identity by then; of five clones the median. Twenty: asked for at once, the median of their answers, the processor time of a clone's QEMU by then, and its proportional share of memory half a second later. " +
			"Pause: for a checkpoint, of a VM that was booted, which holds all of its memory itself, and of a clone. Down: a guest that writes all over 16 of its 160 MiB moves to another host and back. " +
			"Round trip and bandwidth: of a byte, and of 8 MiB, over TCP between two guests on one virtual network, in its frames of up to 9,000 bytes; over two switches, with a trunk between them as two nodes have it; and between two whose QEMUs are joined by a socket of their own (-netdev stream), in frames of 1,500 bytes, as a card has them that nobody sets up otherwise, without any isolation of jobs, limit or way to another node.",
		rounds: 5,
		order:  []string{"answer", "twenty", "twenty, QEMU", "memory", "pause", "pause, clone", "down", "round trip", "round trip, two nodes", "bandwidth", "bandwidth, two nodes"},
		units: map[string]string{"answer": "ms", "twenty": "ms", "twenty, QEMU": "ms of CPU each", "memory": "MiB each, proportional",
			"pause": "ms", "pause, clone": "ms", "down": "ms", "round trip": "us", "round trip, two nodes": "us", "bandwidth": "MiB/s", "bandwidth, two nodes": "MiB/s"},
		goals: []goal{
			{text: "clone to the agent's answer, against a cold boot", atLeast: 10, ratio: less("answer", boots), holds: "QEMU's own start, and what the clone has to translate anew."},
			{text: "twenty clones at once in 1 s", atLeast: 1, ratio: under("twenty", 1000), holds: "the processor time of twenty QEMUs on the cores there are."},
			{text: "an idle clone in 40 MB", atLeast: 1, ratio: under("memory", 40e6/(1<<20)), holds: "QEMU itself, and what the guest has written."},
			{text: "checkpoint's pause in 150 ms", atLeast: 1, ratio: worst(under("pause", 150), under("pause, clone", 150)), holds: "the copy of the guest's memory."},
			{text: "migration's downtime, against stop-and-copy", atLeast: 5, ratio: less("down", stops), holds: "the state of the devices, and the last pages."},
		},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) {
		if _, err := installed("qemu-system-x86_64", "qemu-system-aarch64"); err != nil {
			return nil, nil, err
		}
		dir, err := b.folder("vm")
		if err != nil {
			return nil, nil, err
		}
		// One process for all rounds: each asks first what the image is made of.
		program := filepath.Join(dir, "osvm.test")
		if _, _, err := command(ctx, ".", "go", "test", "-c", "-o", program, "mvm/osvm"); err != nil {
			return nil, nil, err
		}
		var rounds map[string][]sample
		turn := func(name string) func(ctx context.Context) (sample, error) {
			return func(ctx context.Context) (sample, error) {
				if rounds == nil {
					test := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.bench", "^Benchmark(Clone|TwentyClones|Checkpoint|Migration|Network)$",
						"-test.benchtime", "1x", "-test.count", strconv.Itoa(c.rounds))
					out, err := test.CombinedOutput()
					if err != nil {
						return nil, fmt.Errorf("the benchmarks of package osvm: %w: %s", err, out)
					}
					if rounds, err = parseVM(string(out), c.rounds, boots, stops, wires); err != nil {
						return nil, err
					}
				}
				got := rounds[name][0]
				rounds[name] = rounds[name][1:]
				return got, nil
			}
		}
		return []player{{ours, turn(ours)}, {boots, turn(boots)}, {stops, turn(stops)}, {wires, turn(wires)}}, nil, nil
	}
	return c
}

// parseVM reads the lines of go test -bench: so many rounds of each player.
func parseVM(out string, rounds int, boots, stops, wires string) (map[string][]sample, error) {
	all := map[string][]sample{}
	for _, player := range []string{ours, boots, stops, wires} {
		all[player] = make([]sample, rounds)
		for i := range all[player] {
			all[player][i] = sample{}
		}
	}
	for _, of := range []struct {
		benchmark string
		metrics   []metric
	}{
		{"Clone", []metric{{"clone-ms", ours, "answer"}, {"cold-ms", boots, "answer"}}},
		{"TwentyClones", []metric{{"median-ms", ours, "twenty"}, {"cpu-ms", ours, "twenty, QEMU"}, {"MiB", ours, "memory"}}},
		{"Checkpoint", []metric{{"booted-ms", ours, "pause"}, {"clone-ms", ours, "pause, clone"}}},
		{"Migration", []metric{{"live-ms", ours, "down"}, {"stop-and-copy-ms", stops, "down"}}},
		{"Network", []metric{{"switch-us", ours, "round trip"}, {"trunk-us", ours, "round trip, two nodes"}, {"qemu-us", wires, "round trip"},
			{"switch-MiB/s", ours, "bandwidth"}, {"trunk-MiB/s", ours, "bandwidth, two nodes"}, {"qemu-MiB/s", wires, "bandwidth"}}},
	} {
		lines := regexp.MustCompile(`(?m)^Benchmark`+of.benchmark+`(?:-\d+)?\s+\d+\s+(.*)$`).FindAllStringSubmatch(out, -1)
		if len(lines) != rounds {
			return nil, fmt.Errorf("%s was measured %d times in %d rounds:\n%s", of.benchmark, len(lines), rounds, out)
		}
		for round, line := range lines {
			words := strings.Fields(line[1])
			for _, m := range of.metrics {
				found := false
				for i := 0; i+1 < len(words); i += 2 {
					if words[i+1] == m.unit {
						value, err := strconv.ParseFloat(words[i], 64)
						if err != nil {
							return nil, err
						}
						all[m.player][round][m.measure], found = value, true
					}
				}
				if !found {
					return nil, fmt.Errorf("%s does not tell %s: %s", of.benchmark, m.unit, line[0])
				}
			}
		}
	}
	return all, nil
}

// metric is where what a benchmark reports belongs.
type metric struct{ unit, player, measure string }
