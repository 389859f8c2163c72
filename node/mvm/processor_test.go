package mvm

import (
	"os"
	"strings"
	"testing"
	"time"

	"mvm/queuevm"
)

// built answers the next instruction with a command.
func (l *launched) built(command ...string) Instruction {
	l.t.Helper()
	limit := time.After(30 * time.Second)
	for {
		for k, e := range l.other {
			if e.Build != nil {
				l.other = append(l.other[:k:k], l.other[k+1:]...)
				l.must(Request{Built: &Built{ID: e.Build.ID, Command: command}})
				return *e.Build
			}
		}
		select {
		case e := <-l.Events():
			if e.Process != nil && e.Process.State != "running" {
				l.ended[e.Process.ID] = *e.Process
			} else if e.Process == nil {
				l.keep(e)
			}
		case <-limit:
			l.t.Fatal("no instruction is to be built")
		}
	}
}

// A processor asks for what its instruction says, whatever its limits are, and
// nothing of it or of the program that it applies outlives the attempt.
func TestProcessor(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		l.must(Request{Instantiate: &Instantiate{
			Processes: []ProcessSpec{{ID: 0, Task: "free", Count: 1, Processor: true}, {ID: 1, Task: "bound", Count: 1, Processor: true, MemoryMiB: 512}},
			Channels: []queuevm.Channel{
				{ID: 0, From: queuevm.Endpoint{Outside: "free"}, To: queuevm.Endpoint{Process: 0, Port: "in"}},
				{ID: 1, From: queuevm.Endpoint{Outside: "bound"}, To: queuevm.Endpoint{Process: 1, Port: "in"}},
			},
		}})
		for k, name := range []string{"free", "bound"} {
			instruction := []byte("mvm-instruction 1 shell -e  -x\necho here")
			l.must(Request{Enqueue: &Enqueue{Queue: name, Items: [][]byte{instruction}, Meta: queuevm.Item{Instruction: true}, Timeout: time.Second}})
			got := l.built("/bin/sh", "-c", "echo here; exec 1>&-; sleep 1000 & sleep 1000")
			if got.Process != k || got.Language != "shell" || strings.Join(got.Flags, " ") != "-e -x" || string(got.Source) != "echo here" {
				t.Errorf("%s asks for %+v", name, got)
			}
			eventually(t, "the program runs", func() bool { return l.printed(k, "stdout") == "here\n" })
		}
		l.terminate()
	})
}

func TestParseInstruction(t *testing.T) {
	for _, bad := range []string{"", "\n", "mvm-instruction 1 c", "mvm-instruction 2 c\n", "mvm-instruction 1\nint", "x mvm-instruction 1 c\n",
		"mvm-instruction 1 c\n" + strings.Repeat("x", instructionMax)} {
		if i, err := parseInstruction([]byte(bad)); err == nil {
			t.Errorf("%.60q is taken for %+v", bad, i)
		}
	}
	i, err := parseInstruction([]byte("mvm-instruction 1 c -lm\n"))
	if err != nil || i.Language != "c" || len(i.Flags) != 1 || len(i.Source) != 0 {
		t.Errorf("%+v, %v", i, err)
	}
}
