package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// hostsCase measures two processes on two hosts: two network namespaces, this one
// and one that is made, with a pair of veth devices between them.
func hostsCase() *contest {
	list := []message{
		{measure: "one way", profile: "hosts", pattern: "pingpong", processes: 2, bytes: 8, value: micros, times: 10_000},
		{measure: "rate", profile: "hosts", pattern: "stream", processes: 2, bytes: 8, value: perSecond, times: 10_000_000},
		{measure: "copied", profile: "hosts", pattern: "stream", processes: 2, bytes: 1 << 20, value: gigabytes, times: 1000},
		{measure: "direct, one way", profile: "direct", pattern: "pingpong", processes: 2, bytes: 8, value: micros, times: 20_000},
		{measure: "direct, copied", profile: "direct", pattern: "stream", processes: 2, bytes: 1 << 20, value: gigabytes, times: 2000},
	}
	const kernel = "the kernel's TCP, and that both hosts share the machine's cores."
	c := &contest{
		name:   "hosts",
		title:  "Two processes on two hosts",
		method: "The patterns of messages/patterns.c, timed by process 0, between two network namespaces that a pair of veth devices joins. MVM is a job on two real nodes, told that the link needs no encryption, once through both nodes' proxies and once over direct channels. Open MPI (btl tcp, mpi_yield_when_idle) and MPICH (UCX_TLS=tcp,self) start their processes by a launcher that enters the other namespace; what they reach stands in the rows of direct channels, too. What 1 MiB reaches hangs on what TCP is by: see ARCHITECTURE.md.",
		rounds: 5,
		order:  []string{"one way", "rate", "copied", "direct, one way", "direct, copied"},
		units: map[string]string{
			"one way": "us, through the proxies", "rate": "million messages/s, through the proxies", "copied": "GB/s of 1 MiB, through the proxies",
			"direct, one way": "us, direct", "direct, copied": "GB/s of 1 MiB, direct",
		},
		goals: []goal{
			{text: "messages a second through the proxies, against the best", atLeast: 50, ratio: more("rate", openMPI, mpichTCP), holds: kernel},
			{text: "1 MiB through the proxies, against the best", atLeast: 1.2, ratio: more("copied", openMPI, mpichTCP), holds: "that four processes share two cores, and that each item is copied four times. Where TCP is not by bbr, which paces them, the MPIs reach more."},
			{text: "8 bytes one way over a direct channel, against the best", atLeast: 1, ratio: less("direct, one way", openMPI, mpichTCP), holds: kernel},
			{text: "1 MiB over a direct channel, against the best", atLeast: 2, ratio: more("direct, copied", openMPI, mpichTCP), holds: kernel},
		},
	}
	c.open = func(ctx context.Context, b *bench) ([]player, func(), error) { return openHosts(ctx, b, list) }
	return c
}

// openHosts makes the other host, starts a node on each, and prepares the MPIs.
func openHosts(ctx context.Context, b *bench, list []message) ([]player, func(), error) {
	dir, runs, err := buildMessages(ctx, b)
	if err != nil {
		return nil, nil, err
	}
	h, err := newHost(dir)
	if err != nil {
		return nil, nil, err
	}
	node := func(address string) []string {
		return []string{"--listen", address + ":0", "--insecure", "--plain-links", h.network}
	}
	g, err := startGridAt(ctx, b, []site{
		{slots: 1, flags: node(h.here)},
		{slots: 1, flags: node(h.there), via: []string{"ip", "netns", "exec", h.name}},
	})
	if err != nil {
		h.remove()
		return nil, nil, err
	}
	players := []player{{ours, measureAll(list, func(ctx context.Context, m message) (string, error) {
		return g.pattern(ctx, filepath.Join(dir, m.profile+".xml"), m, 4<<20)
	})}}
	hosts := h.here + ":1," + h.there + ":1"
	for _, mpi := range []struct {
		name               string
		environment, flags []string
	}{
		{openMPI, nil, []string{"--host", hosts, "--mca", "plm_rsh_agent", h.agent, "--mca", "pml", "ob1", "--mca", "btl", "tcp,self",
			"--mca", "btl_tcp_if_include", h.name, "--mca", "oob_tcp_if_include", h.name}},
		{mpichTCP, []string{"UCX_NET_DEVICES=" + h.name}, []string{"-launcher", "ssh", "-launcher-exec", h.agent, "-localhost", h.here,
			"-hosts", strings.ReplaceAll(hosts, ":1", ""), "-ppn", "1"}},
	} {
		r := runs[mpi.name]
		r.environment = append(r.environment, mpi.environment...)
		r.mpiexec = append(r.mpiexec, mpi.flags...)
		theirs := []message{list[0], list[1], list[2]}
		theirs[0].times, theirs[1].times, theirs[2].times = 5000, 50_000, 300
		measure := measureAll(theirs, func(ctx context.Context, m message) (string, error) { return r.among(ctx, m) })
		players = append(players, player{mpi.name, func(ctx context.Context) (sample, error) {
			got, err := measure(ctx)
			if err == nil {
				got["direct, one way"], got["direct, copied"] = got["one way"], got["copied"]
			}
			return got, err
		}})
	}
	return players, func() { g.stop(); h.remove() }, nil
}

// among runs a pattern, and leaves nothing of it on either host.
func (r mpiRun) among(ctx context.Context, m message) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c := r.command(ctx, m)
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
	c.WaitDelay = time.Second
	var complaints strings.Builder
	c.Stderr = &complaints
	out, err := c.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %.300s", strings.Join(c.Args, " "), err, complaints.String())
	}
	return string(out), nil
}

// host is a network namespace that stands for another machine. Its device has the
// namespace's name on both sides, so that one setting serves both.
type host struct {
	name, network, here, there string
	agent                      string // starts a command on a host, as ssh does
}

func newHost(dir string) (*host, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("two hosts need network namespaces, which only root makes: %w", errAbsent)
	}
	if _, err := installed("ip"); err != nil {
		return nil, err
	}
	k := os.Getpid() % 16000
	subnet := fmt.Sprintf("10.214.%d.", k/64)
	h := &host{
		name: fmt.Sprintf("mvmb%d", k), network: fmt.Sprintf("%s%d/30", subnet, k%64*4),
		here: fmt.Sprintf("%s%d", subnet, k%64*4+1), there: fmt.Sprintf("%s%d", subnet, k%64*4+2), agent: filepath.Join(dir, "agent"),
	}
	// Options, host and command, as mpiexec gives them to ssh. The other host has a
	// name of its own: by that MPIs tell hosts apart.
	agent := fmt.Sprintf("#!/bin/sh\nwhile [ \"${1#-}\" != \"$1\" ]; do shift; done\nshift\nexec ip netns exec %s unshare --uts sh -c \"hostname %s; $*\"\n", h.name, h.name)
	if err := os.WriteFile(h.agent, []byte(agent), 0o755); err != nil {
		return nil, err
	}
	for _, line := range []string{
		"netns add NAME",
		"link add NAME type veth peer name NAME netns NAME",
		"addr add HERE/30 dev NAME", "link set NAME up",
		"-n NAME addr add THERE/30 dev NAME", "-n NAME link set NAME up", "-n NAME link set lo up",
	} {
		if err := h.ip(line); err != nil {
			h.remove()
			return nil, fmt.Errorf("two hosts cannot be made here (%w): %w", err, errAbsent)
		}
	}
	return h, nil
}

func (h *host) ip(line string) error {
	args := strings.Fields(strings.NewReplacer("NAME", h.name, "THERE", h.there, "HERE", h.here).Replace(line))
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// remove ends all that still runs on the other host, and the host.
func (h *host) remove() {
	out, _ := exec.Command("ip", "netns", "pids", h.name).Output()
	for _, pid := range strings.Fields(string(out)) {
		var n int
		if _, err := fmt.Sscan(pid, &n); err == nil && n > 1 {
			_ = syscall.Kill(n, syscall.SIGKILL)
		}
	}
	_ = h.ip("link del NAME")
	_ = h.ip("netns del NAME")
}
