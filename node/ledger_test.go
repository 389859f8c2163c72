package node

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/wsdl"
)

var update = flag.Bool("update", false, "write the transcripts' answers anew")

// Each transcript is a list of events; below each stands what the ledger
// orders. Lines that begin with '<' are the ledger's.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/ledger/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			l := newLedger("n1", "i1", room{Slots: 4, Memory: 1000, Cores: 2}, 2*time.Second)
			var got strings.Builder
			for _, line := range strings.Split(strings.TrimRight(string(text), "\n"), "\n") {
				if strings.HasPrefix(line, "<") {
					continue
				}
				got.WriteString(line + "\n")
				if line == "" || strings.HasPrefix(line, "#") {
					continue
				}
				if line == "show" {
					got.WriteString(show(l))
					continue
				}
				event, err := parseEvent(line)
				if err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				for _, a := range l.step(event) {
					got.WriteString("< " + describe(a) + "\n")
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(text) {
				t.Errorf("the ledger answers otherwise now (-update writes it):\n%s", got.String())
			}
		})
	}
}

func show(l *ledger) string {
	var b strings.Builder
	free := l.free()
	fmt.Fprintf(&b, "< free %d slots, %d MiB, %d cores\n", free.Slots, free.Memory, free.Cores)
	for _, a := range l.held {
		fmt.Fprintf(&b, "< %s %s named=%t until=%v\n", a.key, a.phase, a.named, a.until)
	}
	if at, ok := l.deadline(); ok {
		fmt.Fprintf(&b, "< tick at %v\n", at)
	}
	return b.String()
}

func describe(action any) string {
	switch a := action.(type) {
	case book:
		return "book " + a.key.String()
	case load:
		return "load " + a.key.String()
	case spawn:
		return "spawn " + a.key.String()
	case end:
		return fmt.Sprintf("end %s grace=%v asked=%t: %s", a.key, a.grace, a.asked, a.reason)
	case kill:
		return "kill " + a.key.String()
	case beat:
		return "beat"
	case answer:
		if a.fault != nil {
			return fmt.Sprintf("answer %d %s: %s", a.call, *a.fault.Code, a.fault.Message)
		}
		return fmt.Sprintf("answer %d ok sequence=%d", a.call, a.sequence)
	}
	return fmt.Sprintf("%T", action)
}

// parseEvent reads one line: a word, a call's number where one waits, the
// attempt, and name=value pairs.
func parseEvent(line string) (any, error) {
	words := strings.Fields(line)
	values := map[string]string{"node": "n1", "inc": "i1"}
	var plain []string
	for _, w := range words[1:] {
		if name, value, ok := strings.Cut(w, "="); ok {
			values[name] = value
		} else {
			plain = append(plain, w)
		}
	}
	var failed error
	fail := func(err error) {
		if err != nil && failed == nil {
			failed = err
		}
	}
	number := func(s string) int {
		if s == "" {
			return 0
		}
		n, err := strconv.Atoi(s)
		fail(err)
		return n
	}
	duration := func(s string) time.Duration {
		if s == "" {
			return 0
		}
		d, err := time.ParseDuration(s)
		fail(err)
		return d
	}
	attempt := func(s string) key {
		job, n, ok := strings.Cut(s, "/")
		if !ok {
			fail(fmt.Errorf("no attempt: %q", s))
		}
		return key{job, number(n)}
	}
	arg := func(i int) string {
		if i < len(plain) {
			return plain[i]
		}
		fail(fmt.Errorf("a word is missing"))
		return ""
	}
	var fault *wsdl.Fault
	if code := values["fault"]; code != "" {
		fault = wsdl.Faultf(wsdl.FaultCode(code), "it went wrong")
	}
	fenced := func(s string) fence { return fence{attempt(s), values["node"], values["inc"]} }
	at := duration(values["at"])
	var e any
	switch words[0] {
	case "registered":
		e = registered{duration(arg(0))}
	case "beat":
		e = beatSent{}
	case "answered":
		var live []key
		for _, s := range strings.FieldsFunc(values["live"], func(r rune) bool { return r == ',' }) {
			live = append(live, attempt(s))
		}
		sent := duration(values["sent"])
		e = beatAnswered{beat: uint64(number(arg(0))), sent: sent, at: max(at, sent), lease: 10 * time.Second, live: live}
	case "awaken":
		e = awakenCall{call: uint64(number(arg(0))), at: at, fence: fenced(arg(1)),
			need: room{number(values["slots"]), int64(number(values["memory"])), number(values["cores"])}}
	case "instantiate":
		e = instantiateCall{call: uint64(number(arg(0))), at: at, fence: fenced(arg(1))}
	case "terminate":
		e = terminateCall{call: uint64(number(arg(0))), fence: fenced(arg(1)), grace: duration(values["grace"]), reason: values["reason"]}
	case "loaded":
		e = loaded{at: at, key: attempt(arg(0)), fault: fault}
	case "spawned":
		e = spawned{key: attempt(arg(0)), fault: fault}
	case "lost":
		e = lost{key: attempt(arg(0)), reason: "the MVM process is gone"}
	case "unclean":
		e = unclean{key: attempt(arg(0)), why: "process 7 does not end"}
	case "removed":
		e = removed{key: attempt(arg(0)), sequence: int64(number(values["sequence"]))}
	case "leave":
		e = leave{}
	case "tick":
		e = tick{duration(arg(0))}
	default:
		return nil, fmt.Errorf("no such event")
	}
	return e, failed
}

// Any order of events at all must keep the promises: every call is answered
// once, never more room is booked than there is, book, load, spawn and end are
// ordered at most once an attempt and in that order, nothing is loaded or spawned
// that was not named live or whose lease is over, and no lease that has run out
// begins again.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(300) {
		anyOrder(t, fmt.Sprintf("seed %d", seed), rand.NewPCG(seed, 1), 400)
	}
}

// FuzzLedger is TestAnyOrder with the order that the input says.
func FuzzLedger(f *testing.F) {
	f.Add([]byte("awaken, instantiate, terminate"))
	f.Fuzz(func(t *testing.T, moves []byte) {
		anyOrder(t, "the order", &script{said: moves}, min(len(moves)/3, 400))
	})
}

// script is a source of numbers that were written down, and of others after
// their end: with the same one again and again a rand.Rand never comes to an end.
type script struct {
	said []byte
	more uint64
}

func (s *script) Uint64() uint64 {
	if len(s.said) == 0 {
		s.more += 0x9e3779b97f4a7c15
		return s.more
	}
	next := uint64(s.said[0])
	s.said = s.said[1:]
	return next<<56 | next<<24 // numbers are made of the upper bits, of 64 or of 32
}

func anyOrder(t *testing.T, name string, source rand.Source, steps int) {
	r := rand.New(source)
	l := newLedger("n1", "i1", room{Slots: 3, Memory: 1000, Cores: 2}, 2*time.Second)
	l.step(registered{10 * time.Second})
	var now time.Duration
	open := map[uint64]bool{}
	state := map[key]string{}
	var calls uint64
	var pending []func() any // what the shell would tell next
	apply := func(e any) {
		lapsed := map[key]bool{}
		for _, a := range l.held {
			lapsed[a.key] = now >= a.until
		}
		defer func() {
			for _, a := range l.held {
				if lapsed[a.key] && now < a.until {
					t.Fatalf("%s: %s has a lease again after it had run out", name, a.key)
				}
			}
		}()
		for _, a := range l.step(e) {
			switch a := a.(type) {
			case answer:
				if !open[a.call] {
					t.Fatalf("%s: call %d is answered twice or was never made", name, a.call)
				}
				delete(open, a.call)
			case book:
				if state[a.key] != "" {
					t.Fatalf("%s: %s is booked after %s", name, a.key, state[a.key])
				}
				state[a.key] = "book"
			case load:
				if state[a.key] != "book" {
					t.Fatalf("%s: %s is loaded after %s", name, a.key, state[a.key])
				}
				if h := l.find(a.key); !h.named || now >= h.until {
					t.Fatalf("%s: %s is loaded without a lease", name, a.key)
				}
				state[a.key] = "load"
				pending = append(pending, func() any { return loaded{at: now, key: a.key, fault: chance(r, 5)} })
			case spawn:
				if state[a.key] != "load" {
					t.Fatalf("%s: %s is spawned after %s", name, a.key, state[a.key])
				}
				if h := l.find(a.key); !h.named || now >= h.until {
					t.Fatalf("%s: %s is spawned without a lease", name, a.key)
				}
				state[a.key] = "spawn"
				pending = append(pending, func() any { return spawned{key: a.key, fault: chance(r, 5)} })
			case end:
				if state[a.key] == "end" || state[a.key] == "" {
					t.Fatalf("%s: %s is ended after %q", name, a.key, state[a.key])
				}
				state[a.key] = "end"
				pending = append(pending, func() any { return removed{key: a.key, sequence: 1} })
			}
		}
		if f := l.free(); f.Slots < 0 || f.Memory < 0 || f.Cores < 0 {
			t.Fatalf("%s: more is booked than there is: %+v", name, f)
		}
	}
	for range steps {
		k := key{string(rune('a' + r.IntN(4))), 1 + r.IntN(3)}
		f := fence{k, "n1", "i1"}
		if r.IntN(10) == 0 {
			f.incarnation = "i0"
		}
		switch r.IntN(10) {
		case 0, 1:
			calls++
			open[calls] = true
			apply(awakenCall{call: calls, at: now, fence: f, need: room{Slots: r.IntN(4), Memory: int64(r.IntN(900))}})
		case 2, 3:
			calls++
			open[calls] = true
			apply(instantiateCall{call: calls, at: now, fence: f})
		case 4:
			calls++
			open[calls] = true
			apply(terminateCall{call: calls, fence: f, grace: time.Duration(r.IntN(2)) * time.Second})
		case 5:
			apply(beatSent{})
			var live []key
			for _, a := range l.held {
				if r.IntN(8) > 0 {
					live = append(live, a.key)
				}
			}
			sent := now
			if r.IntN(5) == 0 {
				now += time.Duration(r.IntN(12_000)) * time.Millisecond // without a tick
			}
			apply(beatAnswered{beat: l.sent - uint64(r.IntN(2)), sent: sent, at: now, lease: 10 * time.Second, live: live})
		case 6:
			now += time.Duration(r.IntN(4000)) * time.Millisecond
			apply(tick{now})
		case 7:
			if len(l.held) > 0 && r.IntN(4) == 0 {
				apply(lost{key: l.held[0].key, reason: "gone"})
			}
		default:
			if len(pending) > 0 {
				i := r.IntN(len(pending))
				tell := pending[i]
				pending = append(pending[:i], pending[i+1:]...)
				apply(tell())
			}
		}
	}
	now += time.Hour
	apply(tick{now})
	for len(pending) > 0 {
		tell := pending[0]
		pending = pending[1:]
		apply(tell())
	}
	if len(open) > 0 || len(l.held) > 0 {
		t.Fatalf("%s: %d calls were never answered, %d attempts never removed", name, len(open), len(l.held))
	}
}

func chance(r *rand.Rand, n int) *wsdl.Fault {
	if r.IntN(n) == 0 {
		return wsdl.Faultf(wsdl.FaultCodeBuildFailed, "no")
	}
	return nil
}

func TestOldJobsAreForgotten(t *testing.T) {
	l := newLedger("n1", "i1", room{Slots: 1}, time.Second)
	l.step(registered{10 * time.Second})
	for i := range 3 * remembered {
		l.step(terminateCall{call: uint64(i), fence: fence{key{fmt.Sprint("job", i), 1}, "n1", "i1"}})
	}
	if len(l.jobs) > remembered || len(l.idle) > remembered {
		t.Errorf("%d jobs are remembered, at most %d should be", len(l.jobs), remembered)
	}
}

// TestVMsTakeMemory: what VMs take that are no attempt's is not free, and the grid
// hears of each change at once.
func TestVMsTakeMemory(t *testing.T) {
	l := newLedger("n1", "i1", room{Slots: 1, Memory: 1000}, time.Second)
	for _, c := range []struct {
		take, free int64
		beats      int
	}{{300, 700, 1}, {300, 700, 0}, {0, 1000, 1}} {
		if actions := l.step(vmsTake{room{Memory: c.take}}); len(actions) != c.beats || l.free().Memory != c.free {
			t.Errorf("VMs take %d MiB: %d are free, with %v to be done", c.take, l.free().Memory, actions)
		}
	}
}
