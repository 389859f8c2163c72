package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// machine is what a reader must know of where it was measured: no names and no
// paths.
type machine struct {
	cores            int
	processor        string
	memory           uint64 // GiB
	kernel           string
	congestion       string // TCP's control of it, which the rows over TCP hang on
	compiler, golang string
	peers            []string
	load             string
}

func thisMachine(ctx context.Context) machine {
	m := machine{cores: runtime.NumCPU(), golang: runtime.Version(), load: before(readFile("/proc/loadavg"), " ")}
	for line := range strings.Lines(readFile("/proc/cpuinfo")) {
		if name, ok := strings.CutPrefix(line, "model name"); ok && m.processor == "" {
			m.processor = strings.Trim(name, " \t:\n")
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		m.memory = uint64(info.Totalram) * uint64(info.Unit) >> 30
	}
	m.kernel = strings.TrimSpace(readFile("/proc/sys/kernel/ostype") + " " + strings.TrimSpace(readFile("/proc/sys/kernel/osrelease")))
	m.congestion = strings.TrimSpace(readFile("/proc/sys/net/ipv4/tcp_congestion_control"))
	m.compiler = first(ctx, "gcc", "--version")
	for _, peer := range [][]string{
		{"mpiexec.mpich", "--version"}, {"slurmctld", "-V"}, {"nginx", "-v"}, {"curl", "--version"}, {"scotch_gmap", "-V"},
	} {
		path, err := installed(peer[0])
		if err != nil {
			continue
		}
		if peer[0] == "mpiexec.mpich" {
			m.peers = append(m.peers, "MPICH "+field(output(ctx, path, peer[1]), "Version:"))
			continue
		}
		if line := first(ctx, path, peer[1]); line != "" {
			m.peers = append(m.peers, line)
		}
	}
	return m
}

func (m machine) String() string {
	s := fmt.Sprintf("Machine: %d cores (%s), %d GiB, %s, TCP by %s, %s, %s; load %s at the end.", m.cores, m.processor, m.memory,
		strings.ReplaceAll(m.kernel, "\n", ""), m.congestion, m.compiler, m.golang, m.load)
	if len(m.peers) > 0 {
		s += "\nPeers: " + strings.Join(m.peers, "; ") + "."
	}
	return s
}

func readFile(path string) string {
	data, _ := os.ReadFile(path)
	return string(data)
}

func output(ctx context.Context, name string, args ...string) string {
	out, _ := exec.CommandContext(ctx, name, args...).CombinedOutput()
	return strings.TrimSpace(string(out))
}

func first(ctx context.Context, name string, args ...string) string {
	return before(output(ctx, name, args...), "\n")
}

func before(text, mark string) string {
	head, _, _ := strings.Cut(text, mark)
	return head
}

// field is the word after a mark.
func field(text, mark string) string {
	_, rest, _ := strings.Cut(text, mark)
	if words := strings.Fields(rest); len(words) > 0 {
		return words[0]
	}
	return ""
}
