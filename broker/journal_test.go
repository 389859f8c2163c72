package broker

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"mvm/broker/profile"
	"mvm/services/store"
	"mvm/wsdl"
)

// noBlobs is an image store with nothing in it.
type noBlobs struct{}

func (noBlobs) Put(context.Context, io.Reader) (string, int64, error) { return "", 0, os.ErrInvalid }
func (noBlobs) Open(string) (*os.File, int64, error)                  { return nil, 0, os.ErrNotExist }
func (noBlobs) Has(string) bool                                       { return false }
func (noBlobs) Pin(string, ...string) error                           { return os.ErrNotExist }
func (noBlobs) Unpin(string) error                                    { return nil }
func (noBlobs) Owners() []string                                      { return nil }

type noJournal struct{ *store.Store }

type noCaller struct{}

func (noCaller) Call(context.Context, string, string, any, any) error { return os.ErrInvalid }

// FuzzJournal restores a job from whatever stands in its journal: it is refused,
// or goes on.
func FuzzJournal(f *testing.F) {
	f.Add(`{"Phase":"pending","Attempt":0,"Gone":true}`, `{"Members":[{"Node":"n1","Incarnation":"a","Processes":[0,1],"Slots":2}]}`,
		`{"Proxies":[{"Address":"h:1","Fingerprint":"f"}]}`, "report/000000/000000000001",
		`{"Sequence":1,"Processes":[{"ID":0,"State":"exited","ExitCode":0},{"ID":1,"State":"exited","ExitCode":1}]}`, true)
	f.Add(`{"Phase":"terminating","Attempt":1,"Outcome":"cancel"}`, `{"Members":[{"Processes":[3]}]}`, `{}`, "report/9/9", `{}`, false)
	f.Add(`{"Phase":"running"}`, `@sha256:00`, `null`, "go", `[]`, false)
	f.Fuzz(func(t *testing.T, s, attempt, start, key, report string, readable bool) {
		b, err := New(Config{Journal: noJournal{}, Blobs: noBlobs{}, Caller: noCaller{}, URL: func() string { return "http://h" }})
		if err != nil {
			t.Fatal(err)
		}
		b.ctx = t.Context()
		var compiled *profile.Job
		if readable {
			compiled = &profile.Job{Processes: make([]profile.Process, 4), WallTime: time.Minute}
		}
		j := b.newJob("j-00000001", compiled, status{})
		var was status
		if b.unpack([]byte(s), &was) != nil || final(was.Phase) {
			return
		}
		records := []store.KV{{Key: attemptKey("j", 1) + "attempt", Value: []byte(attempt)}}
		if start != "" {
			records = append(records, store.KV{Key: attemptKey("j", 1) + "go", Value: []byte(start)})
		}
		records = append(records, store.KV{Key: attemptKey("j", 1) + key, Value: []byte(report)})
		for _, kv := range records {
			if _, _, _, ok := parseAttemptKey(kv.Key); !ok {
				return
			}
		}
		if b.restoreAttempt(j, was, records) != nil {
			return
		}
		j.life.step(time.Time{}, recovered{})
		for i := range j.life.Members {
			j.life.step(time.Time{}, terminated{Attempt: j.life.Attempt, Member: i})
		}
	})
}

func TestIDs(t *testing.T) {
	b := &Service{}
	now := time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC)
	last := ""
	for i := range 1000 {
		if i == 500 {
			now = now.Add(-time.Hour) // the clock goes back
		}
		id := b.newID(now)
		if id <= last || len(id) != 10 {
			t.Fatalf("%s follows %s", id, last)
		}
		if n, ok := parseID(id); !ok || formatID(n) != id {
			t.Fatalf("%s is read as %d, %v", id, n, ok)
		}
		last = id
	}
	for _, bad := range []string{"", "j-", "j-0000000", "j-000000000", "j-0000000i", "k-00000000", "j-0000000O"} {
		if _, ok := parseID(bad); ok {
			t.Errorf("%q is read as an id", bad)
		}
	}
}

func TestTail(t *testing.T) {
	g := newGrid(t, nil)
	b := g.start()
	for text, want := range map[string]string{
		"":                        "",
		"one\n":                   "one",
		"1\n2\n3\n4\n5\n6\n7\n\n": "3\n4\n5\n6\n7",
		"bell\a and \xff\n":       "bell and ?",
		strings.Repeat("x", 9000): "..." + strings.Repeat("x", tailBytes),
		// Lines are whole: as many of the last as there is room for.
		strings.Repeat("x", 500) + "\n" + strings.Repeat("y", 500) + "\n  and\nmore\n":             strings.Repeat("y", 500) + "\n  and\nmore",
		strings.Repeat("one\n", 9000) + strings.Repeat("z", 4*tailBytes-6) + "\nlast\n":            "last",
		"Traceback (most recent call last):\n  File \"a.py\", line 9\n    main()\nValueError: 7\n": "Traceback (most recent call last):\n  File \"a.py\", line 9\n    main()\nValueError: 7",
		"a\nb\nc\n  File \"a.py\"\n    main()\n      ^^^\nValueError\n":                            "c\n  File \"a.py\"\n    main()\n      ^^^\nValueError",
		"\n\n  indented\nless\n": "  indented\nless",
	} {
		digest, size, err := g.images.Put(context.Background(), strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := b.tail(file{Name: "stderr", Digest: digest, Size: size}); got != want {
			t.Errorf("the tail of %.20q is %q, expected %q", text, got, want)
		}
	}
}

// A stream with its middle left out is read in the offsets of what was printed.
func TestReadAcrossGap(t *testing.T) {
	g := newGrid(t, nil)
	b := g.start()
	head, tail := strings.Repeat("h", 501), strings.Repeat("t", 500)
	const dropped = 9000
	note := "\n[mvm: 9000 bytes left out]\n"
	digest, size, err := g.images.Put(context.Background(), strings.NewReader(head+note+tail))
	if err != nil {
		t.Fatal(err)
	}
	f := file{Name: "stdout", Digest: digest, Size: size, Dropped: dropped}
	for _, length := range []int{1, 100, 333, 501, 4096} {
		var got strings.Builder
		var offset int64
		for range 100 {
			answer, err := b.readBlob(f, offset, length)
			if err != nil {
				t.Fatal(err)
			}
			if answer.Data != nil {
				got.Write(*answer.Data)
			}
			offset = *answer.Next
			if *answer.End {
				break
			}
		}
		if got.String() != head+note+tail || offset != int64(len(head)+len(tail)+dropped) {
			t.Errorf("read %d bytes at once: %d bytes to offset %d", length, got.Len(), offset)
		}
	}
	// Whoever followed the stream while it ran goes on in the tail.
	last, err := b.readBlob(f, 501+dropped+490, 100)
	if err != nil || string(*last.Data) != "tttttttttt" || !*last.End {
		t.Errorf("the last ten bytes: %v %v", last, err)
	}
	// Bytes that the node did not write so are read as they are.
	f.Dropped = 1
	plain, err := b.readBlob(f, 0, 4096)
	if err != nil || int64(len(*plain.Data)) != size || !*plain.End {
		t.Errorf("another blob: %v %v", plain, err)
	}
}

// A failure's reason says once how the process ended, and shows its last words
// as they stood.
func TestDescribe(t *testing.T) {
	one, l := 1, &life{Members: []member{{Node: "n1", Name: "ada"}}}
	for _, c := range []struct {
		message, tail, want string
	}{
		{"exit status 1", "", "w on node ada exited with 1"},
		{"exit status 1", "no such file", "w on node ada exited with 1: no such file"},
		{"exit status 1; its output x is missing", "", "w on node ada exited with 1: its output x is missing"},
		{"", "  File a\n    main()\nValueError", "w on node ada exited with 1:\n  File a\n    main()\nValueError"},
		{"exit status 10", "", "w on node ada exited with 1: exit status 10"},
	} {
		p := process{Task: "w", Count: 1, Node: "n1", State: wsdl.ProcessStateExited, ExitCode: &one, Message: c.message, Tail: c.tail}
		if got := l.describe(p); got != c.want {
			t.Errorf("%q and %q make %q, expected %q", c.message, c.tail, got, c.want)
		}
	}
	for message, want := range map[string]string{
		"ended by SIGKILL":         "w on node ada was killed by SIGKILL",
		"ended by SIGKILL; gone":   "w on node ada was killed by SIGKILL: gone",
		"it had 2 GiB":             "w on node ada was killed by SIGKILL: it had 2 GiB",
		"wall time of 3s exceeded": "w on node ada was killed by SIGKILL: wall time of 3s exceeded",
	} {
		p := process{Task: "w", Count: 1, Node: "n1", State: wsdl.ProcessStateKilled, Signal: "SIGKILL", Message: message}
		if got := l.describe(p); got != want {
			t.Errorf("%q makes %q, expected %q", message, got, want)
		}
	}
}
