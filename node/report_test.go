package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

// However much many processes leave at once, and one of them in many files:
// what is sent stays within what a server takes.
func TestResultsBeyondOneMessage(t *testing.T) {
	const processes, files, most = 24, 40, 400
	g := newGrid(t)
	m := g.with(t.TempDir(), quickParts(), func(c *Config) { c.Slots = processes })
	if _, err := m.awaken("j", 1, processes, m.source("main", wsdl.LanguageShell,
		`x=$(head -c 16384 /dev/zero | tr '\0' x); i=0; while [ $i -lt $1 ]; do printf %s "$x" > out$i; i=$((i+1)); done; echo done; sleep 1000`)); err != nil {
		t.Fatal(err)
	}
	var all []*wsdl.ProcessSpec
	for id := range processes {
		count := files
		if id == 0 {
			count = most
		}
		s := spec(id, "main", fmt.Sprint(count))
		for i := range count {
			s.Output = append(s.Output, &wsdl.OutputFile{Name: fmt.Sprint("out", i)})
		}
		all = append(all, s)
	}
	if err := m.instantiate("j", 1, all...); err != nil {
		t.Fatal(err)
	}
	for id := range processes {
		eventually(t, "a program has written", func() bool {
			answer, err := m.queue.ReadStreamContext(context.Background(), &wsdl.ReadStream{Attempt: m.attempt("j", 1), Process: wsdl.Of(int32(id)), Name: "stdout", WaitMillis: 1000})
			return err == nil && answer.Data != nil
		})
	}
	// They all end in one report.
	m.mu.Lock()
	p := m.runners[key{"j", 1}].process
	m.mu.Unlock()
	p.Kill()
	eventually(t, "the attempt has ended", func() bool { return !m.started("j") })
	eventually(t, "the spool is empty", m.spool.empty)
	for id := range processes {
		s := g.status("j", id)
		if s == nil || *s.State != wsdl.ProcessStateLost {
			t.Fatalf("process %d is %+v", id, s)
		}
		if want := len(all[id].Output) + 2; len(s.File) != want {
			t.Errorf("process %d has %d files, not %d", id, len(s.File), want)
		}
		for _, f := range s.File {
			if f.Name != "stdout" && f.Name != "stderr" && len(g.text(s, f.Name)) != 16384 {
				t.Errorf("%s of process %d has %d bytes", f.Name, id, len(g.text(s, f.Name)))
			}
		}
	}
	if f := g.failures("j"); !strings.Contains(f, "ended unexpectedly") || strings.Contains(f, " on node ") {
		t.Errorf("the failure is %q", f)
	}
}

// A report that the broker does not take must not leave the attempt running
// for ever: a smaller one goes in its place.
func TestRefusedReports(t *testing.T) {
	for _, code := range []wsdl.FaultCode{wsdl.FaultCodeInvalidRequest, wsdl.FaultCodeTooLarge, wsdl.FaultCodeConflict} {
		t.Run(string(code), func(t *testing.T) {
			g := newGrid(t)
			m := g.node()
			g.set(func() {
				g.judge = func(r *wsdl.Report) *wsdl.Fault {
					for _, s := range r.Process {
						if len(s.File) > 0 {
							return wsdl.Faultf(code, "it has files")
						}
					}
					return nil
				}
			})
			m.run("j", "head -c 50000 /dev/zero; exit 0")
			eventually(t, "the end is told", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
			if s := g.status("j", 0); *s.State != wsdl.ProcessStateLost || !strings.Contains(s.Message, "it has files") {
				t.Errorf("the process is %+v", s)
			}
			if f := g.failures("j"); !strings.Contains(f, string(code)) || !strings.Contains(f, "it has files") {
				t.Errorf("the failure is %q", f)
			}
			m.terminate("j", 1, 0)
			eventually(t, "the spool is empty", m.spool.empty)
			eventually(t, "nothing is pinned", func() bool { return len(m.images.Owners()) == 0 })
		})
	}
}

// Also the substitute may be refused: it is sent until it is taken or stale.
func TestARefusedSubstitute(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	calls := 0
	g.set(func() {
		g.judge = func(r *wsdl.Report) *wsdl.Fault {
			if calls++; calls < 6 {
				return wsdl.Faultf(wsdl.FaultCodeInvalidRequest, "no")
			}
			return nil
		}
	})
	m.run("j", "exit 0")
	eventually(t, "the end is told", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	m.terminate("j", 1, 0)
	eventually(t, "the spool is empty", m.spool.empty)
}

func TestASpoolThatCannotBeRead(t *testing.T) {
	spoil := func(m *member) {
		t.Helper()
		eventually(t, "the end is spooled", func() bool {
			files, _ := filepath.Glob(filepath.Join(m.folders.spool, "*.xml"))
			for _, f := range files {
				if text, _ := os.ReadFile(f); strings.Contains(string(text), "exitCode") {
					return true
				}
			}
			return false
		})
		files, _ := filepath.Glob(filepath.Join(m.folders.spool, "*.xml"))
		for _, f := range files {
			if err := os.WriteFile(f, []byte("<Spooled"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Run("same life", func(t *testing.T) {
		g := newGrid(t)
		m := g.node()
		g.set(func() { g.brokerDown = true })
		m.run("j", "exit 0")
		spoil(m)
		// What it had read before may still be on its way to the broker.
		eventually(t, "a substitute is in the place of the first", func() bool {
			files, _ := filepath.Glob(filepath.Join(m.folders.spool, "*.xml"))
			text, _ := os.ReadFile(files[0])
			return len(text) > len("<Spooled")
		})
		g.set(func() { g.brokerDown = false })
		eventually(t, "the end is told", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
		if s := g.status("j", 0); *s.State != wsdl.ProcessStateLost || !strings.Contains(s.Message, "cannot be read") {
			t.Errorf("the process is %+v", s)
		}
		m.terminate("j", 1, 0)
		eventually(t, "the spool is empty", m.spool.empty)
	})
	t.Run("next life", func(t *testing.T) {
		g := newGrid(t)
		m := g.node()
		g.set(func() { g.brokerDown = true })
		m.run("a.b/c", "exit 0")
		spoil(m)
		m.terminate("a.b/c", 1, 0)
		m.stop()
		lane := laneName(m.attempt("a.b/c", 1))
		g.set(func() { g.brokerDown = false })
		next := g.with(m.dir, quickParts(), nil)
		eventually(t, "the spool is empty", next.spool.empty)
		if f := g.failures("a.b/c"); !strings.Contains(f, "cannot be read") {
			t.Errorf("the failure is %q", f)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.acked[lane] == 0 {
			t.Errorf("nothing came of %s: %v", lane, g.acked)
		}
	})
}

// What the image service will never take is told, and all else is delivered.
func TestResultsThatNobodyTakes(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	g.set(func() { g.live[key{"j", 1}] = true })
	if _, err := m.queue.AwakenContext(context.Background(), &wsdl.Awaken{Attempt: m.attempt("j", 1), Broker: g.url + "/services/broker", Slots: 1, Proxy: wsdl.Of(false),
		Image: []string{g.url}, Build: []*wsdl.Build{m.source("main", wsdl.LanguageShell, "head -c 50000 /dev/zero; exit 0")}}); err != nil {
		t.Fatal(err)
	}
	refusing := serve(t, nil, wsdl.ImageContract(refusingImages{}))
	m.mu.Lock()
	m.runners[key{"j", 1}].request.Image = []string{refusing}
	m.mu.Unlock()
	if err := m.instantiate("j", 1, spec(0, "main")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end is told", func() bool { s := g.status("j", 0); return s != nil && terminal(s) })
	if s := g.status("j", 0); wsdl.Or(s.ExitCode, -1) != 0 || len(s.File) != 1 {
		t.Errorf("the process is %+v", s)
	}
	if f := g.failures("j"); !strings.Contains(f, "stdout is lost") || !strings.Contains(f, "too much") {
		t.Errorf("the failure is %q", f)
	}
	m.terminate("j", 1, 0)
}

type refusingImages struct{ wsdl.ImageContext }

func (refusingImages) StatBlobContext(context.Context, *wsdl.StatBlob) (*wsdl.StatBlobResponse, error) {
	return nil, wsdl.Faultf(wsdl.FaultCodeTooLarge, "too much")
}

// What has ended well stays so when the lease runs out after it, because the
// grid is away: the node owes nothing any more.
func TestALeaseThatEndsAfterTheWork(t *testing.T) {
	for _, test := range []struct {
		name, second string
		failed       bool
	}{
		{"all has ended", "exit 0", false},
		{"one still runs", "sleep 1000", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGrid(t)
			g.lease = 700 * time.Millisecond
			m := g.node()
			if _, err := m.awaken("j", 1, 2, m.source("main", wsdl.LanguageShell, `case $1 in 0) echo result > result; exit 0;; esac; `+test.second)); err != nil {
				t.Fatal(err)
			}
			first := spec(0, "main", "0")
			first.Output = []*wsdl.OutputFile{{Name: "result"}}
			g.set(func() { g.brokerDown = true })
			if err := m.instantiate("j", 1, first, spec(1, "main", "1")); err != nil {
				t.Fatal(err)
			}
			g.set(func() { g.down = true })
			eventually(t, "the lease is over", func() bool { return !m.started("j") })
			g.set(func() { g.brokerDown, g.down = false, false })
			eventually(t, "the spool is empty", m.spool.empty)
			if s := g.status("j", 0); wsdl.Or(s.ExitCode, -1) != 0 || g.text(s, "result") != "result\n" {
				t.Errorf("process 0 is %+v", s)
			}
			if f := g.failures("j"); (f != "") != test.failed {
				t.Errorf("the failure is %q", f)
			}
			m.clean()
		})
	}
}

// A file that holds another report than its name says is not sent for it: the
// broker would take the one for the other's.
func TestAReportUnderAnothersName(t *testing.T) {
	g := newGrid(t)
	m := g.node()
	g.set(func() { g.brokerDown = true })
	m.run("a", "exit 3")
	m.run("b", "exit 4")
	var last [2]string
	eventually(t, "both ends are spooled", func() bool {
		for i, exit := range []string{"exitCode>3<", "exitCode>4<"} {
			last[i] = ""
			files, _ := filepath.Glob(filepath.Join(m.folders.spool, "*.xml"))
			for _, f := range files {
				if text, _ := os.ReadFile(f); strings.Contains(string(text), exit) {
					last[i] = f
				}
			}
		}
		return last[0] != "" && last[1] != ""
	})
	m.terminate("a", 1, 0)
	m.terminate("b", 1, 0)
	m.stop()
	if err := os.Rename(last[0], last[1]); err != nil {
		t.Fatal(err)
	}
	lane := laneName(m.attempt("b", 1))
	g.set(func() { g.brokerDown = false })
	next := g.with(m.dir, quickParts(), nil)
	eventually(t, "the spool is empty", next.spool.empty)
	if f := g.failures("b"); !strings.Contains(f, "cannot be read") {
		t.Errorf("the failure is %q", f)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.acked[lane] == 0 {
		t.Errorf("nothing came of %s: %v", lane, g.acked)
	}
}
