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
				holds: "the system calls, which are half of the CPU time of a call; the codec is a third."},
			{text: "p99 latency under load", atLeast: 0.5, ratio: less(versus.P99, versus.GSOAP),
				holds: "Go's few threads. Where two of them share a core, since the load generator wants one, too, the kernel has one wait for the other up to 250 times a second, for 2 to 4 ms, its tick here (perf sched), and with it the call that it was at. A thread a connection, as gSOAP has, sleeps after each call and waits for nobody that long. A bare Go server that does as much work without HTTP or XML has for this reason a p99 of 4.3 ms beside gSOAP's 1.1 ms. That each thread takes one connection at a time (services/soap/crew.go) took a third off, and that one core is left to others another third; more processors for Go than there are cores, shorter time slices (sched_setattr), sched_yield after each call and a larger heap took nothing off or did harm."},
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
