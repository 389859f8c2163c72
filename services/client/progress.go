package client

import (
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"mvm/wsdl"
)

// progress tells a person how far long work is: bars on a terminal; elsewhere
// lines when steps are wanted, and otherwise nothing.
type progress struct {
	w     io.Writer
	bars  *mpb.Progress // nil when w is no terminal
	steps bool
}

func newProgress(w io.Writer, steps bool) *progress {
	p := &progress{w: w, steps: steps}
	if isTerminal(w) {
		p.bars = mpb.New(mpb.WithOutput(w), mpb.WithWidth(40))
	}
	return p
}

// step prints a line about what is done now.
func (p *progress) step(format string, args ...any) {
	if !p.steps {
		return
	}
	line := printable(fmt.Sprintf(format, args...)) + "\n"
	if p.bars != nil {
		if _, err := p.bars.Write([]byte(line)); err == nil {
			return
		}
	}
	io.WriteString(p.w, line)
}

// bar returns a bar, or nil where there are none; all methods take a nil one.
func (p *progress) bar(name string, total int64, bytes bool) *bar {
	if p.bars == nil || total <= 0 {
		return nil
	}
	count := decor.CountersNoUnit("%d/%d", decor.WCSyncSpace)
	if bytes {
		count = decor.CountersKibiByte("% .1f / % .1f", decor.WCSyncSpace)
	}
	return &bar{b: p.bars.AddBar(total, mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR)),
		mpb.AppendDecorators(count, decor.Elapsed(decor.ET_STYLE_GO, decor.WCSyncSpace)))}
}

// close removes what is left of the bars.
func (p *progress) close() {
	if p.bars != nil {
		p.bars.Shutdown()
	}
}

type bar struct{ b *mpb.Bar }

func (b *bar) set(n int64) {
	if b != nil {
		b.b.SetCurrent(n)
	}
}

func (b *bar) done() {
	if b != nil {
		b.b.Abort(true)
		b.b.Wait()
	}
}

// uploads returns what Request.Uploaded is told, as a bar.
func (p *progress) uploads() func(done, total int64) {
	const worthShowing = 4 << 20
	var once sync.Once
	var b *bar
	return func(done, total int64) {
		if total < worthShowing {
			return
		}
		once.Do(func() { b = p.bar("uploading", total, true) })
		if done >= total {
			b.done()
			return
		}
		b.set(done)
	}
}

// jobView shows a job's way through its states.
type jobView struct {
	p      *progress
	state  wsdl.JobState
	reason string
	try    int32
	bar    *bar
}

// changed is for Client.Wait.
func (v *jobView) changed(job *wsdl.JobStatus) {
	state, try := wsdl.Or(job.State, ""), wsdl.Or(job.Attempt, 0)
	if state != v.state || job.Reason != v.reason || try != v.try {
		switch {
		case state == wsdl.JobStatePending && job.Reason != "":
			// How many slots are free changes with every other job.
			if without := strings.Map(withoutDigits, job.Reason); state != v.state || try != v.try || without != strings.Map(withoutDigits, v.reason) {
				v.p.step("pending: %s", job.Reason)
			}
		case state == wsdl.JobStateAwakening && try > 1:
			v.p.step("attempt %d: building for %s", try, spreadText(job))
		case state == wsdl.JobStateAwakening && state != v.state:
			v.p.step("building for %s", spreadText(job))
		case state == wsdl.JobStateRunning && state != v.state:
			if text := buildsText(job); text != "" {
				v.p.step("%s", text)
			}
			v.p.step("running %s", spreadText(job))
		}
		v.state, v.reason, v.try = state, job.Reason, try
	}
	if state == wsdl.JobStateRunning || state == wsdl.JobStateTerminating {
		ended := 0
		for _, p := range job.Process {
			if s := wsdl.Or(p.State, ""); s != wsdl.ProcessStateRunning && s != wsdl.ProcessStateWaiting {
				ended++
			}
		}
		if v.bar == nil {
			v.bar = v.p.bar("processes ended", int64(len(job.Process)), false)
		}
		v.bar.set(int64(ended))
	}
	if Ended(job) {
		v.bar.done()
		v.bar = nil
	}
}

func withoutDigits(r rune) rune {
	if r >= '0' && r <= '9' {
		return -1
	}
	return r
}

// buildsText says what was compiled: "built 2 programs on 4 nodes (1 cached)".
func buildsText(job *wsdl.JobStatus) string {
	sources, nodes, cached, slowest := map[string]bool{}, map[string]bool{}, 0, int64(0)
	for _, b := range job.Build {
		sources[b.Source] = true
		nodes[b.Node] = true
		if wsdl.Or(b.Cached, false) {
			cached++
		}
		slowest = max(slowest, wsdl.Or(b.Millis, 0))
	}
	if len(sources) == 0 {
		return ""
	}
	text := fmt.Sprintf("built %s on %s", plural(len(sources), "program"), plural(len(nodes), "node"))
	switch {
	case cached == len(job.Build):
		return text + ": all from the cache"
	case cached > 0:
		text += fmt.Sprintf(", %d of %d from the cache", cached, len(job.Build))
	}
	return fmt.Sprintf("%s, the slowest in %d ms", text, slowest)
}

// spreadText says where processes are: "8 processes on 4 nodes".
func spreadText(job *wsdl.JobStatus) string {
	nodes := map[string]bool{}
	for _, p := range job.Process {
		if p.Node != "" {
			nodes[p.Node] = true
		}
	}
	return fmt.Sprintf("%s on %s", plural(len(job.Process), "process"), plural(len(nodes), "node"))
}
