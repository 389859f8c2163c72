package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"mvm/examples/bench/soap/versus"
)

// soapCase compares the SOAP server with gSOAP's. Both are made for it alone,
// with the same handler: a node's services would measure etcd, too.
func soapCase() *contest {
	return &contest{
		name:  "soap",
		title: "SOAP calls of 1.3 KB with answers as long",
		method: "A heartbeat that names six attempts, answered with them. MVM: the transport as a node configures it. gSOAP: a strict C server from the published WSDL, a thread for each connection, `gcc -O2`. " +
			"Both log one line a call. `wrk` with 16 kept connections for 5 s a turn; CPU time is the server's process.",
		rounds: 5,
		order:  []string{versus.PerCPU, versus.P99, versus.P50, versus.Rate},
		units:  map[string]string{versus.PerCPU: "calls", versus.P99: "µs", versus.P50: "µs", versus.Rate: "calls"},
		goals: []goal{
			{text: "SOAP calls a CPU second", atLeast: 1.5, ratio: more(versus.PerCPU, versus.GSOAP),
				holds: "net/http's own work for each request, and the system calls; the codec is a sixth of the CPU time."},
			{text: "p99 latency under load", atLeast: 0.5, ratio: less(versus.P99, versus.GSOAP),
				holds: "who waits for what: the load generator shares the cores, and when the kernel takes one of Go's few threads off its core, all calls that are queued for it wait a time slice; gSOAP has a thread a connection, which the kernel serves in turn. More processors for Go than there are cores (GOMAXPROCS=8) took a fifth off and cost as much CPU; a larger heap changed nothing."},
		},
		open: func(ctx context.Context, b *bench) ([]player, func(), error) {
			dir, err := b.folder("soap")
			if err != nil {
				return nil, nil, err
			}
			contest, err := versus.Open(ctx, dir)
			if errors.Is(err, versus.ErrMissing) {
				return nil, nil, fmt.Errorf("%w: %w (`make bench-setup`)", err, errAbsent)
			}
			if err != nil {
				return nil, nil, err
			}
			turn := func(name string) player {
				return player{name, func(ctx context.Context) (sample, error) {
					got, err := contest.Round(ctx, name, 5*time.Second)
					return got, err
				}}
			}
			return []player{turn(versus.MVM), turn(versus.GSOAP)}, contest.Close, nil
		},
	}
}
