package mvm

import (
	"os"
	"slices"
	"testing"
	"time"
)

func TestStartCost(t *testing.T) {
	if raced() {
		t.Skip("SKIPPED: the race detector starts slowly")
	}
	binary := slim(t)
	cleaning := Probe(binary)
	var used, took []time.Duration
	for range 15 {
		began := time.Now()
		l := launch(t, binary, cleaning, nil)
		took = append(took, time.Since(began))
		l.terminate()
		used = append(used, l.Used())
	}
	slices.Sort(used)
	slices.Sort(took)
	t.Logf("start to Ready in %v, CPU of start and end %v (medians; the least is %v)", took[7], used[7], used[0])
	if used[0] > 10*time.Millisecond {
		t.Errorf("the MVM process takes at least %v of CPU to start and end; 5 ms is the aim", used[0])
	}
}

// TestIdleCost: while its programs sleep, so does the MVM process.
func TestIdleCost(t *testing.T) {
	if raced() {
		t.Skip("SKIPPED: the race detector starts slowly")
	}
	binary := slim(t)
	l := launch(t, binary, Probe(binary), func(s *Start) { s.Listen, s.Plain = "127.0.0.1:0", true })
	l.run(sh(0, "echo here; sleep 2"), sh(1, "(exit 0); setsid sleep 1000 & sleep 2"))
	l.await(0)
	l.await(1)
	l.terminate()
	t.Logf("CPU in two idle seconds, with start, end and two shells: %v", l.Used())
	if l.Used() > 100*time.Millisecond {
		t.Errorf("an idle MVM process takes %v of CPU in two seconds", l.Used())
	}
}

func TestSpawnMany(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		var specs []ProcessSpec
		for id := range 64 {
			specs = append(specs, ProcessSpec{ID: id, Task: "many", Index: id, Count: 64, Command: []string{"/bin/true"}})
		}
		began := time.Now()
		l.run(specs...)
		started := time.Since(began)
		for id := range 64 {
			if s := l.await(id); s.ExitCode != 0 {
				t.Errorf("%+v", s)
			}
		}
		over := time.Since(began)
		began = time.Now()
		var raw []*os.Process
		for range 64 {
			p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
			if err != nil {
				t.Fatal(err)
			}
			raw = append(raw, p)
		}
		bare := time.Since(began)
		var least time.Duration
		for _, p := range raw {
			state, err := p.Wait()
			if err != nil {
				t.Fatal(err)
			}
			least += state.UserTime() + state.SystemTime()
		}
		l.terminate()
		t.Logf("64 processes: started in %v, %.1f times the bare start of as many; over in %v; CPU of all %v, of 64 bare ones %v", started, float64(started)/float64(bare), over, l.Used(), least)
		if started > 10*time.Second { // the ratio says more, but a busy machine moves it tenfold
			t.Errorf("64 processes take %v to start; as many bare ones %v", started, bare)
		}
	})
}
