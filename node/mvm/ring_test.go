package mvm

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"mvm/node/build"
	"mvm/queuevm"
)

// ringSources are one program in three languages: process 0 of the ring sends a
// number round; everyone adds one; after the given rounds all print and end.
var ringSources = map[string][2]string{
	build.C: {"ring.c", `
#include <mvm.h>
#include <stdio.h>
#include <stdlib.h>
int main(int n, char **a) {
    mvm_port *next = mvm_open("next"), *prev = mvm_open("prev");
    if (!next || !prev) { fprintf(stderr, "%s\n", mvm_error()); return 1; }
    long rounds = atol(a[1]), x = 0;
    if (mvm_index() == 0 && mvm_enqueue(next, &x, sizeof x)) return 2;
    for (long i = 0; i < rounds; i++) {
        long r = mvm_dequeue(prev, &x, sizeof x);
        if (r != sizeof x) { fprintf(stderr, "%s\n", mvm_strerror(r)); return 3; }
        x++;
        if ((mvm_index() != 0 || i < rounds - 1) && mvm_enqueue(next, &x, sizeof x)) return 4;
    }
    printf("%ld\n", x);
}`},
	build.Go: {"ring.go", `package main
import ("encoding/binary"; "fmt"; "os"; "strconv"; "mvm/queuevm/client")
func must[T any](x T, err error) T { if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }; return x }
func main() {
	next, prev := must(client.Open("next")), must(client.Open("prev"))
	rounds := must(strconv.Atoi(os.Args[1]))
	x := make([]byte, 8)
	if client.Index() == 0 { must(0, next.Enqueue(x)) }
	for i := range rounds {
		x = must(prev.Dequeue())
		binary.LittleEndian.PutUint64(x, binary.LittleEndian.Uint64(x)+1)
		if client.Index() != 0 || i < rounds-1 { must(0, next.Enqueue(x)) }
	}
	fmt.Println(binary.LittleEndian.Uint64(x))
}`},
	build.Python: {"ring.py", `
import mvm, struct, sys
next, prev = mvm.open("next"), mvm.open("prev")
rounds, x = int(sys.argv[1]), 0
if mvm.index() == 0: next.enqueue(struct.pack("<q", x))
for i in range(rounds):
    x = struct.unpack("<q", bytes(prev.dequeue()))[0] + 1
    if mvm.index() != 0 or i < rounds - 1: next.enqueue(struct.pack("<q", x))
print(x)`},
}

// clients is the client files' folder, and libmvm.so for Python.
func clients(t *testing.T) (dir, library string, compilers []build.Compiler) {
	t.Helper()
	compilers = build.NewDetector("", "").Compilers(t.Context())
	dir, err := filepath.Abs("../../queuevm")
	if err == nil {
		library, err = build.SharedLibrary(t.Context(), dir, t.TempDir(), compilers)
	}
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	return dir, library, compilers
}

// ringPrograms builds the ring's program inside an MVM process, which is gone
// when they run.
func ringPrograms(t *testing.T, binary *os.File, clients string, compilers []build.Compiler, languages ...string) map[string][]string {
	t.Helper()
	l := launch(t, binary, Probe(binary), nil)
	dir := t.TempDir()
	goCache, _ := exec.Command("go", "env", "GOCACHE").Output()
	commands := map[string][]string{}
	for _, language := range languages {
		compiler, ok := build.For(language, compilers)
		if !ok {
			t.Skipf("SKIPPED: this machine has no compiler for %s; install one", language)
		}
		source := filepath.Join(dir, language)
		file := ringSources[language]
		if err := errors.Join(os.Mkdir(source, 0o755), os.WriteFile(filepath.Join(source, file[0]), []byte(file[1]), 0o644)); err != nil {
			t.Fatal(err)
		}
		request := build.Request{Source: "ring", Language: language, Files: []build.File{{Name: file[0]}}, Dir: source, Out: source + ".out",
			Compiler: compiler, Clients: clients, Cache: filepath.Join(dir, "cache"), GoCache: strings.TrimSpace(string(goCache))}
		reply, err := l.call(Request{Build: &request})
		if err != nil {
			t.Fatal(err, err.(*Error).Output)
		}
		if reply.Build.Took <= 0 {
			t.Errorf("the build took %v", reply.Build.Took)
		}
		if commands[language], err = build.Command(request.Out, nil); err != nil {
			t.Fatal(err)
		}
	}
	l.terminate()
	return commands
}

// group is MVM processes that are each other's peers.
func group(t *testing.T, binary *os.File, cleaning string, plain bool, size int, library, clients string) []*launched {
	t.Helper()
	var all []*launched
	for i := range size {
		all = append(all, launch(t, binary, cleaning, func(s *Start) {
			s.Node, s.Listen, s.Plain, s.Library, s.Clients = nodeName(i), "127.0.0.1:0", plain, library, clients
		}))
	}
	return all
}

func nodeName(i int) string { return string(rune('a' + i)) }

// ring lays a ring of processes over the group, process i on node i mod size,
// and instantiates it everywhere at once.
func ring(group []*launched, commands [][]string) error {
	size, length := len(group), len(commands)
	answers := make(chan error, size)
	for node, l := range group {
		r := &Instantiate{}
		for i, command := range commands {
			next := (i + 1) % length
			here, there := i%size, next%size
			if here == node {
				r.Processes = append(r.Processes, ProcessSpec{ID: i, Task: "ring", Index: i, Count: length, Command: command})
			}
			c := queuevm.Channel{ID: uint32(i + 1), From: queuevm.Endpoint{Process: i, Port: "next"}, To: queuevm.Endpoint{Process: next, Port: "prev"}}
			switch {
			case here == node && there != node:
				c.To = queuevm.Endpoint{Peer: nodeName(there)}
			case here != node && there == node:
				c.From = queuevm.Endpoint{Peer: nodeName(here)}
			case here != node:
				continue
			}
			r.Channels = append(r.Channels, c)
		}
		for other, peer := range group {
			if other != node {
				r.Peers = append(r.Peers, queuevm.Peer{ID: nodeName(other), Address: peer.Ready().Address, Fingerprint: peer.Ready().Fingerprint})
			}
		}
		go func() {
			_, err := l.call(Request{Instantiate: r})
			answers <- err
		}()
	}
	var failed error
	for range group {
		failed = errors.Join(failed, <-answers)
	}
	return failed
}

func TestRingAcrossMVMProcesses(t *testing.T) {
	clients, library, compilers := clients(t)
	programs := ringPrograms(t, slim(t), clients, compilers, build.C, build.Go, build.Python)
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		for _, plain := range []bool{true, false} {
			t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
				g := group(t, binary, cleaning, plain, 2, library, clients)
				const rounds = 200
				var commands [][]string
				for _, language := range []string{build.C, build.Python, build.Go, build.C, build.Go, build.Python} {
					commands = append(commands, append(slices.Clone(programs[language]), strconv.Itoa(rounds)))
				}
				if err := ring(g, commands); err != nil {
					t.Fatal(err)
				}
				for i := range commands {
					if s := g[i%2].await(i); s.ExitCode != 0 {
						t.Errorf("process %d: %+v\n%s", i, s, g[i%2].printed(i, "stderr"))
					}
				}
				if got, want := g[0].printed(0, "stdout"), fmt.Sprintln(rounds*len(commands)); got != want {
					t.Errorf("the ring counted to %q, want %q", got, want)
				}
				for _, l := range g {
					l.terminate()
					if len(l.other) != 1 || l.other[0].Traffic == nil || l.other[0].Traffic.Items != 3*rounds || l.other[0].Traffic.Bytes < 8*3*(rounds-1) {
						t.Errorf("other events: %+v", l.other)
					} else {
						t.Logf("traffic: %+v", *l.other[0].Traffic)
					}
				}
			})
		}
	})
}

// TestCrashInARing kills one program: its neighbours must hear of it and end.
func TestCrashInARing(t *testing.T) {
	clients, library, compilers := clients(t)
	binary := slim(t)
	g := group(t, binary, Probe(binary), true, 2, library, clients)
	command := append(ringPrograms(t, binary, clients, compilers, build.C)[build.C], "1000000000")
	if err := ring(g, [][]string{command, command, {"/bin/sh", "-c", "sleep 0.2; kill -9 $$"}, command}); err != nil {
		t.Fatal(err)
	}
	if s := g[0].await(2); s.Signal != "SIGKILL" || s.State != "killed" {
		t.Errorf("the one that crashes: %+v", s)
	}
	for _, i := range []int{0, 1, 3} {
		// Where the machine is busy, the news may be there before the first item.
		if s := g[i%2].await(i); s.ExitCode < 2 || s.ExitCode > 4 {
			t.Errorf("process %d: %+v", i, s)
		}
	}
	for _, l := range g {
		l.terminate()
	}
}

func TestPeerThatIsNotThere(t *testing.T) {
	binary := slim(t)
	l := launch(t, binary, Probe(binary), func(s *Start) { s.Listen, s.Plain = "127.0.0.1:0", true })
	ended := make(chan error, 1)
	go func() {
		_, err := l.call(Request{Instantiate: &Instantiate{Peers: []queuevm.Peer{{ID: "b", Address: "127.0.0.1:1", Fingerprint: strings.Repeat("0", 64)}}}})
		ended <- err
	}()
	// It would dial for long; Terminate ends that too.
	time.Sleep(50 * time.Millisecond)
	l.terminate()
	if err := <-ended; err == nil {
		t.Error("instantiated without its peer")
	}
}

func TestOutside(t *testing.T) {
	clients, library, compilers := clients(t)
	binary := slim(t)
	l := launch(t, binary, Probe(binary), func(s *Start) { s.Listen, s.Plain, s.Clients, s.Library = "127.0.0.1:0", true, clients, library })
	command := append(ringPrograms(t, binary, clients, compilers, build.C)[build.C], "3")
	l.must(Request{Instantiate: &Instantiate{
		Processes: []ProcessSpec{{ID: 0, Task: "t", Index: 1, Count: 2, Command: command}},
		Channels: []queuevm.Channel{
			{ID: 1, From: queuevm.Endpoint{Outside: "in"}, To: queuevm.Endpoint{Process: 0, Port: "prev"}},
			{ID: 2, From: queuevm.Endpoint{Process: 0, Port: "next"}, To: queuevm.Endpoint{Outside: "out"}},
		},
	}})
	if d := l.must(Request{Dequeue: &Dequeue{Queue: "out", Limit: 5, Timeout: 20 * time.Millisecond}}).Dequeue; len(d.Items) != 0 || d.End {
		t.Errorf("an empty queue: %+v", d)
	}
	for _, unknown := range []Request{
		{Enqueue: &Enqueue{Queue: "nowhere", Items: [][]byte{{1}}, Timeout: time.Second}},
		{Enqueue: &Enqueue{Queue: "nowhere", Timeout: time.Second}},
		{Enqueue: &Enqueue{Queue: "out", End: true}},
		{Dequeue: &Dequeue{Queue: "nowhere", Timeout: time.Second}},
	} {
		_, err := l.call(unknown)
		if e := new(Error); !errors.As(err, &e) || e.Code != "notFound" {
			t.Errorf("an unknown queue: %v", err)
		}
	}
	item := func(n byte) []byte { return []byte{n, 0, 0, 0, 0, 0, 0, 0} }
	if n := l.must(Request{Enqueue: &Enqueue{Queue: "in", Items: [][]byte{item(1), item(10), item(20)}, Timeout: time.Second}}).Count; n != 3 {
		t.Errorf("%d items taken", n)
	}
	var got []byte
	for end := false; !end; {
		d := l.must(Request{Dequeue: &Dequeue{Queue: "out", Limit: 2, Timeout: 5 * time.Second}}).Dequeue
		if len(d.Items) > 2 || len(d.Items) == 0 && !d.End {
			t.Fatalf("%+v", d)
		}
		for _, item := range d.Items {
			got = append(got, item[0])
		}
		end = d.End
	}
	if string(got) != "\x02\x0b\x15" {
		t.Errorf("got %v", got)
	}
	if s := l.must(Request{OpenSocket: &OpenSocket{Queue: "in", TTL: time.Second}}).Socket; s.Token == "" || s.Address != l.Ready().Address {
		t.Errorf("socket %+v", s)
	}
	l.await(0)
	l.terminate()
}

// TestEarlyOutsiders: who reaches an outside queue before Instantiate makes it
// waits for it, and whom the attempt's end overtakes is told so.
func TestEarlyOutsiders(t *testing.T) {
	binary := slim(t)
	q := queuevm.Endpoint{Outside: "q"}
	early := []Request{
		{Enqueue: &Enqueue{Queue: "q", Items: [][]byte{{1}}}},
		{Dequeue: &Dequeue{Queue: "q", Timeout: 10 * time.Second}},
		{OpenSocket: &OpenSocket{Queue: "q", TTL: time.Second}},
	}
	for _, instantiated := range []bool{true, false} {
		l := launch(t, binary, Probe(binary), func(s *Start) { s.Listen, s.Plain = "127.0.0.1:0", true })
		answers := make(chan error, len(early))
		for _, r := range early {
			go func() {
				_, err := l.call(r)
				answers <- err
			}()
		}
		l.must(Request{Inspect: new(struct{})}) // the others are on their way
		if instantiated {
			l.must(Request{Instantiate: &Instantiate{Channels: []queuevm.Channel{{ID: 1, Capacity: 4096, From: q, To: q}}}})
		} else {
			l.terminate()
		}
		for range early {
			err := <-answers
			e := new(Error)
			gone := errors.Is(err, errGone) || errors.As(err, &e) && e.Code == "unavailable"
			if instantiated && err != nil || !instantiated && !gone {
				t.Errorf("instantiated %t: %v", instantiated, err)
			}
		}
		if instantiated {
			l.terminate()
		}
	}
}

// TestFullQueue: who enqueues to a queue that nobody empties learns how many of
// the items are in, and those are there, in order, with END only after the last.
func TestFullQueue(t *testing.T) {
	binary := slim(t)
	l := launch(t, binary, Probe(binary), nil)
	q := queuevm.Endpoint{Outside: "q"}
	l.must(Request{Instantiate: &Instantiate{Channels: []queuevm.Channel{{ID: 1, Capacity: 4096, From: q, To: q}}}})
	var items [][]byte
	for k := range 10 {
		items = append(items, []byte(strings.Repeat(strconv.Itoa(k), 1000)))
	}
	enqueue := func(r Enqueue) int {
		t.Helper()
		r.Queue, r.Timeout = "q", 20*time.Millisecond
		return l.must(Request{Enqueue: &r}).Count
	}
	var got []string
	dequeue := func(n int) (end bool) {
		t.Helper()
		for n > 0 {
			d := l.must(Request{Dequeue: &Dequeue{Queue: "q", Limit: n, Timeout: 5 * time.Second}}).Dequeue
			for _, item := range d.Items {
				got = append(got, string(item))
			}
			n -= len(d.Items)
			if d.End {
				return true
			}
		}
		return false
	}
	for _, step := range []struct{ from, want, take int }{{0, 4, 0}, {4, 0, 2}, {4, 2, 4}, {6, 4, 1}} {
		if n := enqueue(Enqueue{Items: items[step.from:], End: step.from < 6}); n != step.want {
			t.Fatalf("%d items from %d on are in, want %d", n, step.from, step.want)
		}
		if dequeue(step.take) {
			t.Error("END before the last item")
		}
	}
	big := strings.Repeat("b", 9000)
	if n := enqueue(Enqueue{Items: [][]byte{[]byte(big)}, End: true}); n != 1 {
		t.Errorf("%d of one item whose beginning fits is in", n)
	}
	if !dequeue(5) {
		t.Error("there is no END")
	}
	for k, item := range append(items, []byte(big)) {
		if k >= len(got) || got[k] != string(item) {
			t.Errorf("item %d of %d is wrong", k, len(got))
		}
	}
	l.terminate()
}

// TestBuildInTheMVMProcess: a compiler's complaint and its leftovers, in the MVM process.
func TestBuildInTheMVMProcess(t *testing.T) {
	levels(t, func(t *testing.T, binary *os.File, cleaning string) {
		l := launch(t, binary, cleaning, nil)
		source := t.TempDir()
		daemon := filepath.Join(source, "sh") // a "compiler" that leaves a daemon behind
		if err := errors.Join(os.WriteFile(source+"/main.sh", nil, 0o644), os.WriteFile(daemon, []byte("#!/bin/sh\nsetsid sleep 1000 &\necho no good; exit 4\n"), 0o755)); err != nil {
			t.Fatal(err)
		}
		r := build.Request{Source: "bad", Language: build.Shell, Files: []build.File{{Name: "main.sh"}}, Dir: source, Out: l.dir + "/out",
			Compiler: build.Compiler{Language: build.Shell, Command: daemon}}
		_, err := l.call(Request{Build: &r})
		var e *Error
		if !errors.As(err, &e) || e.Code != "buildFailed" || e.Output != "no good\n" || !strings.Contains(e.Message, "source bad") {
			t.Fatalf("%+v", err)
		}
		for _, p := range withMark(l.mark) {
			if strings.Contains(p, "sleep") {
				t.Errorf("left: %s", p)
			}
		}
		if err := os.WriteFile(daemon, []byte("#!/bin/sh\nsleep 1000 & sleep 1000\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		r.Limit = 100 * time.Millisecond
		if _, err := l.call(Request{Build: &r}); !errors.As(err, &e) || e.Code != "buildFailed" || !strings.Contains(e.Message, "100ms") {
			t.Fatalf("%+v", err)
		}
		l.terminate()
	})
}
