package broker

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/broker/jobqueue"
	"mvm/wsdl"
)

var update = flag.Bool("update", false, "write the golden transcripts anew")

// TestLife plays the transcripts in testdata/life: each line that begins with
// ">" is an event (or sets the job up), and what follows it is what the life
// answers.
func TestLife(t *testing.T) {
	files, err := filepath.Glob("testdata/life/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no transcripts: %v", err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txt"), func(t *testing.T) {
			golden, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(golden))
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != string(golden) {
				t.Errorf("the transcript differs; it is now (go test -run TestLife -update writes it):\n%s", got)
			}
		})
	}
}

// play answers the transcript's events anew.
func play(t *testing.T, transcript string) string {
	var out strings.Builder
	var l *life
	for line := range strings.Lines(transcript) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case strings.HasPrefix(line, "#"):
			fmt.Fprintln(&out, line)
			continue
		case !strings.HasPrefix(line, ">"):
			continue
		}
		fmt.Fprintln(&out, line)
		words := strings.Fields(line[1:])
		if words[0] == "job" {
			l = parseLife(t, words[1:])
			continue
		}
		var actions []action
		if words[0] == "restart" {
			crash(l)
			actions = l.step(time.Time{}, recovered{})
		} else {
			actions = l.step(time.Time{}, parseEvent(t, l, words))
		}
		for _, a := range actions {
			fmt.Fprintln(&out, "    "+l.print(a))
		}
		state := string(l.Phase)
		if l.Reason != "" {
			state += ": " + strings.ReplaceAll(l.Reason, "\n", " | ")
		}
		fmt.Fprintln(&out, "  = "+state)
		if final(l.Phase) {
			for _, p := range l.Processes {
				s := fmt.Sprintf("    %s: %s", p.label(), p.State)
				if p.ExitCode != nil {
					s += fmt.Sprintf(" %d", *p.ExitCode)
				}
				if p.Message != "" {
					s += ", " + p.Message
				}
				fmt.Fprintln(&out, s)
			}
		}
	}
	return out.String()
}

// crash leaves of a life what the journal would.
func crash(l *life) {
	l.Probing, l.Answers = 0, nil
	if l.Held != nil {
		l.Phase, l.Outcome, l.Cause, l.Reason = wsdl.JobStateRunning, undecided, "", ""
		l.Members[l.Held.Member].Reported = l.Held.Report.Sequence - 1
		for _, p := range l.Held.Report.Processes {
			l.Processes[p.ID].State = wsdl.ProcessStateWaiting
		}
		l.Held = nil
	}
	if l.Phase == wsdl.JobStateTerminating && l.Outcome == requeue {
		l.Phase, l.Outcome, l.Cause, l.Reason = wsdl.JobStateAwakening, undecided, "", ""
	}
	for i := range l.Members {
		m := &l.Members[i]
		m.Acked, m.Gone, m.Settled, m.Lost, m.Dropped, m.Last = false, false, false, false, false, 0
		m.Unstarted, m.Absent, m.Absences, m.Resumed, m.Quiet = "", false, 0, true, 0
		m.Awake = l.Running
	}
	for i := range l.Processes {
		if p := &l.Processes[i]; !p.ended() {
			p.State = wsdl.ProcessStateWaiting
		}
	}
}

func parseLife(t *testing.T, words []string) *life {
	l := &life{Job: "j", Phase: wsdl.JobStatePending, Gone: true, Rules: rules{Lease: 10 * time.Second, Grace: 2 * time.Second,
		Drift: time.Second, Drop: 3 * time.Second, Flush: 5 * time.Second, Slack: 10 * time.Second}}
	for _, word := range words {
		name, value, _ := strings.Cut(word, "=")
		switch name {
		case "retries":
			l.Retries, _ = strconv.Atoi(value)
		case "wall":
			l.WallTime, _ = time.ParseDuration(value)
		case "every":
			l.Every, _ = time.ParseDuration(value)
		case "tasks":
			for _, one := range strings.Split(value, ",") {
				task, count, _ := strings.Cut(one, "*")
				n, err := strconv.Atoi(count)
				if err != nil {
					n = 1
				}
				for i := range n {
					l.Processes = append(l.Processes, process{ID: len(l.Processes), Task: task, Index: i, Count: n, State: wsdl.ProcessStateWaiting})
				}
			}
		default:
			t.Fatalf("what is %q?", word)
		}
	}
	return l
}

func parseEvent(t *testing.T, l *life, words []string) event {
	number := l.Attempt
	// An event of an older attempt is written verb@number.
	verb, at, old := strings.Cut(words[0], "@")
	if old {
		number, _ = strconv.Atoi(at)
	}
	rest := func(n int) string {
		if len(words) <= n {
			return ""
		}
		return strings.Join(words[n:], " ")
	}
	at1 := func() int {
		i := slices.IndexFunc(l.Members, func(m member) bool { return m.Node == words[1] })
		if i < 0 {
			t.Fatalf("no member %q", words[1])
		}
		return i
	}
	switch verb {
	case "placed":
		var members []member
		for _, word := range words[1:] {
			node, ids, _ := strings.Cut(word, ":")
			m := member{Node: node, Incarnation: "a"}
			for _, id := range strings.Split(ids, ",") {
				n, err := strconv.Atoi(id)
				if err != nil {
					t.Fatal(err)
				}
				m.Processes = append(m.Processes, n)
			}
			m.Slots = len(m.Processes)
			members = append(members, m)
		}
		return placed{Members: members}
	case "awoke":
		return awoke{Attempt: number, Member: at1(), Address: words[1] + ":9", Fingerprint: "f"}
	case "refused":
		return refused{Attempt: number, Member: at1(), Code: wsdl.FaultCode(words[2]), Message: rest(3)}
	case "instantiated":
		return instantiated{Attempt: number, Member: at1()}
	case "unstarted":
		return unstarted{Attempt: number, Member: at1(), Code: wsdl.FaultCode(words[2]), Message: rest(3)}
	case "absent":
		return absent{Attempt: number, Member: at1()}
	case "present":
		return present{Attempt: number, Member: at1()}
	case "reported":
		e := reported{Attempt: number, Member: at1()}
		e.Report.Sequence, _ = strconv.ParseInt(words[2], 10, 64)
		for _, word := range words[3:] {
			id, what, _ := strings.Cut(word, "=")
			if id == "failure" {
				e.Report.Failure = strings.ReplaceAll(what, "_", " ")
				continue
			}
			if id == "lost" {
				e.Report.Failure, e.Report.Lost = strings.ReplaceAll(what, "_", " "), true
				continue
			}
			if id == "quiet" {
				e.Report.Quiet, _ = strconv.ParseInt(what, 10, 64)
				continue
			}
			n, err := strconv.Atoi(id)
			if err != nil {
				t.Fatal(err)
			}
			p := process{ID: n, State: wsdl.ProcessStateExited}
			if code, ok := strings.CutPrefix(what, "exit"); ok {
				status, message, _ := strings.Cut(code, ":")
				c, _ := strconv.Atoi(status)
				p.ExitCode, p.Message = &c, strings.ReplaceAll(message, "_", " ")
			} else if signal, ok := strings.CutPrefix(what, "kill:"); ok {
				p.State, p.Signal = wsdl.ProcessStateKilled, signal
			} else {
				p.State = wsdl.ProcessState(what)
			}
			e.Report.Processes = append(e.Report.Processes, p)
		}
		return e
	case "terminated":
		n, _ := strconv.ParseInt(words[2], 10, 64)
		return terminated{Attempt: number, Member: at1(), Sequence: n}
	case "lost":
		return lost{Attempt: number, Member: at1()}
	case "rejoined":
		return rejoined{Attempt: number, Member: at1()}
	case "elapsed":
		e := elapsed{Attempt: number, Timer: timer(words[1])}
		if name, turn, ok := strings.Cut(words[1], "#"); ok {
			e.Timer = timer(name)
			e.Turn, _ = strconv.Atoi(turn)
		}
		for _, name := range words[2:] {
			e.Members = append(e.Members, slices.IndexFunc(l.Members, func(m member) bool { return m.Node == name }))
		}
		return e
	case "cancelled":
		return cancelled{Reason: rest(1)}
	case "drained":
		return cancelled{Reason: rest(1), Waiting: true}
	case "moved", "seated": // QUEUE PRIORITY; seated only where it waits
		priority, _ := strconv.Atoi(words[2])
		return moved{Place: jobqueue.Place{Queue: words[1], Priority: priority}, Waiting: verb == "seated"}
	case "unreadable":
		return unreadable{}
	case "saved": // NUMBER, and the members' records, or nothing; RECORD/DURATION says when
		e := saved{Attempt: number}
		e.Number, _ = strconv.ParseInt(words[1], 10, 64)
		for _, word := range words[2:] {
			if e.Set == nil {
				e.Set = &set{Attempt: number, Number: e.Number, Made: time.Unix(0, 0)}
			}
			name, record, _ := strings.Cut(word, "=")
			record, after, timed := strings.Cut(record, "/") // of the attempt's go
			if took, err := time.ParseDuration(after); timed && err == nil {
				e.Set.Made = l.Begun.Add(took)
			}
			m := l.Members[slices.IndexFunc(l.Members, func(m member) bool { return m.Node == name })]
			e.Set.Members = append(e.Set.Members, setMember{Node: name, Processes: m.Processes, Record: record, Address: name + ":9"})
		}
		return e
	case "answered":
		return parseAnswers(t, l, number, words[1:])
	}
	t.Fatalf("what is %q?", verb)
	return nil
}

// parseAnswers reads "ROUND NODE=quiet/PERIOD/SENT/RECEIVED NODE=moves/PERIOD
// NODE=failed", and waits: "0.next>1=DEPTH/CAPACITY" for room, "<" for an item.
func parseAnswers(t *testing.T, l *life, number int, words []string) event {
	e := answered{Attempt: number, Answers: make([]quiet, len(l.Members))}
	e.Round, _ = strconv.Atoi(words[0])
	for _, word := range words[1:] {
		name, value, _ := strings.Cut(word, "=")
		if i := slices.IndexFunc(l.Members, func(m member) bool { return m.Node == name }); i >= 0 {
			a := &e.Answers[i]
			how, _, _ := strings.Cut(value, "/")
			a.Failed, a.Quiet = how == "failed", how == "quiet"
			_, _ = fmt.Sscanf(value, how+"/%d/%d/%d", &a.Period, &a.Sent, &a.Received)
			continue
		}
		var w waiting
		end := strings.IndexAny(name, "<>")
		from, port, ok := strings.Cut(name[:max(end, 0)], ".")
		w.Process, _ = strconv.Atoi(from)
		w.Port, w.Enqueues = port, name[max(end, 0)] == '>'
		w.Other, _ = strconv.Atoi(name[end+1:])
		if _, err := fmt.Sscanf(value, "%d/%d", &w.Depth, &w.Capacity); err != nil || !ok {
			t.Fatalf("what is %q?", word)
		}
		i := slices.IndexFunc(l.Members, func(m member) bool { return slices.Contains(m.Processes, w.Process) })
		e.Answers[i].Waits = append(e.Answers[i].Waits, w)
	}
	return e
}

func (l *life) print(a action) string {
	name := func(i int) string { return l.Members[i].Node }
	switch a := a.(type) {
	case commit:
		s := "commit"
		if a.Attempt {
			s += fmt.Sprintf(" attempt=%d live=", l.Attempt)
			for i, m := range l.Members {
				if i > 0 {
					s += ","
				}
				s += m.Node
			}
		}
		if a.Go {
			s += " go"
		}
		if a.Report != nil {
			s += fmt.Sprintf(" report=%s/%d", name(a.Report.Member), a.Report.Report.Sequence)
		}
		if a.Outcome {
			s += " outcome=" + string(l.Outcome)
		}
		for _, i := range a.Drop {
			s += " drop=" + name(i)
		}
		if a.Requeue {
			s += " requeue"
		}
		if a.Moved {
			s += " place=" + l.Place.Queue
		}
		if a.Set {
			s += " set"
			if l.Set == nil {
				s += "=none"
			}
		}
		if a.End {
			s += " end"
		}
		return s
	case snapshot:
		return fmt.Sprintf("snapshot %d", a.Number)
	case awaken:
		s := "awaken " + name(a.Member)
		if m := l.Members[a.Member]; m.Restore != "" {
			s += " restore=" + m.Restore + " former=" + m.Former
		}
		return s
	case instantiate:
		return "instantiate " + name(a.Member)
	case terminate:
		return fmt.Sprintf("terminate %s grace=%s", name(a.Member), a.Grace)
	case release:
		return "release " + name(a.Member)
	case ask:
		return fmt.Sprintf("ask round %d", a.Round)
	case wait:
		label := string(a.Timer)
		if a.Turn > 0 {
			label += fmt.Sprintf("#%d", a.Turn)
		}
		s := fmt.Sprintf("wait %s %s", label, a.For)
		for _, i := range a.Members {
			s += " " + name(i)
		}
		return s
	case queue:
		return fmt.Sprintf("queue refusals=%d", a.Refusals)
	case reseat:
		return "reseat"
	case done:
		return "done"
	}
	return fmt.Sprintf("%T", a)
}

// TestLifeAnyOrder throws events at lives in any order, many times: whatever
// comes, no attempt begins before nothing of the one before can run, nothing is
// called before it is durable, and a job ends once.
func TestLifeAnyOrder(t *testing.T) {
	for seed := range uint64(3000) {
		playAnyOrder(t, seed)
	}
}

func FuzzLife(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(playAnyOrder)
}
