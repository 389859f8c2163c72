package mvm

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mvm/node/build"
)

// build compiles one source, as many at once as there are processors.
func (p *process) build(ctx context.Context, r *build.Request) (*build.Result, error) {
	select {
	case p.builds <- struct{}{}:
		defer func() { <-p.builds }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return build.Build(ctx, p, *r)
}

// Run makes the MVM process a build.Runner: compilers are children like all
// others, and what one leaves is found by a mark of its own.
func (p *process) Run(ctx context.Context, s build.Step) (int, error) {
	p.mu.Lock()
	p.lastBuild++
	mark := fmt.Sprintf("MVM_BUILD=%s.%d.", p.mark, p.lastBuild)
	p.mu.Unlock()
	defer sweep(mark, time.Now().Add(endLimit))
	type end struct {
		pid    int
		exit   int
		failed error
	}
	var e end
	done := make(chan struct{})
	output := s.Output.Fd()
	var err error
	barred := p.spawner.do(false, func() {
		err = p.spawner.start(child{argv: s.Argv, environment: append(s.Environment, mark, markName+"="+p.mark), dir: s.Dir, files: []uintptr{p.null.Fd(), output, output}},
			func(pid, _ int) {
				e.pid = pid
				if e.failed = build.Limited(pid); e.failed != nil {
					unix.Kill(-pid, unix.SIGKILL)
				}
			},
			func(status syscall.WaitStatus, _ *syscall.Rusage) {
				e.exit = build.Status(status)
				close(done)
			})
	})
	if err = cmp.Or(err, barred); err != nil {
		return 0, err
	}
	select {
	case <-done:
	case <-ctx.Done():
		unix.Kill(-e.pid, unix.SIGKILL) // not reaped yet, or else reaped this moment and its number still fresh
		<-done
		return 0, ctx.Err()
	}
	return e.exit, e.failed
}

func concurrentBuilds() int { return max(1, runtime.NumCPU()) }
