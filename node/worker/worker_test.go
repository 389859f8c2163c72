package worker

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"mvm/examples/launch"
	"mvm/node"
	"mvm/node/mvm"
	"mvm/osvm/link"
)

// program is the real mvm.
var program string

// The test program is also the MVM process, where the slim one is not embedded.
func TestMain(m *testing.M) {
	if mvm.IsProcess(os.Args) {
		os.Exit(mvm.Main(os.Args))
	}
	os.Exit(launch.Main(m, &program))
}

// uplink is a guest's link without a VM: two ends of a socket, with a host at one
// of them that notes what the guest dials.
type uplink struct {
	inside  *link.Inside
	outside *link.Outside

	mu     sync.Mutex // guards dialled
	dialed map[string]bool
}

func newUplink(t *testing.T, relay string) *uplink {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]net.Conn
	for i, fd := range pair {
		file := os.NewFile(uintptr(fd), "uplink")
		if ends[i], err = net.FileConn(file); err != nil {
			t.Fatal(err)
		}
		_ = file.Close()
	}
	u := &uplink{dialed: map[string]bool{}}
	u.inside = link.NewInside(func(conn net.Conn) { _ = conn.Close() })
	u.outside, err = link.NewOutside(link.OutsideConfig{
		Relay: func(conn net.Conn) {
			out, err := net.Dial("tcp", relay)
			if err != nil {
				_ = conn.Close()
				return
			}
			go func() { _, _ = io.Copy(out, conn); _ = out.Close() }()
			_, _ = io.Copy(conn, out)
			_ = conn.Close()
		},
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			u.mu.Lock()
			u.dialed[address] = true
			u.mu.Unlock()
			var d net.Dialer
			return d.DialContext(ctx, "tcp", address)
		},
		Listen: func(_ int, known string) (net.Listener, error) { return link.Listener("127.0.0.1", known) },
	})
	if err != nil {
		t.Fatal(err)
	}
	var both sync.WaitGroup
	both.Go(func() { _ = link.Serve(ends[0], nil, u.inside.Serve) })
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := link.Begin(ctx, ends[1])
	if err != nil {
		t.Fatal(err)
	}
	both.Go(func() { u.outside.Serve(s) })
	t.Cleanup(func() {
		u.outside.Close()
		_ = ends[0].Close()
		both.Wait()
	})
	return u
}

// TestNodesBehindTheirHosts has two nodes, whose only way out is an uplink, join a
// real grid and run a job with a plain node in which each speaks to each: the one
// dials the others' proxies, the other is dialled.
func TestNodesBehindTheirHosts(t *testing.T) {
	dir := t.TempDir()
	start := func(name string, args ...string) *launch.Node {
		n, err := launch.Start(launch.Config{Program: program, Log: filepath.Join(dir, name+".log"),
			Args: append([]string{"--listen", "127.0.0.1:0", "--data", filepath.Join(dir, name), "--name", name}, args...)})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := n.Stop(); err != nil {
				t.Error(err)
			}
			if t.Failed() {
				t.Logf("the log of %s ends with\n%s", name, n.Tail(3000))
			}
		})
		return n
	}
	front := start("front", "--roles", "backend,frontend")
	plain := start("plain", "--join", front.URL, "--slots", "1")
	services := map[string]bool{front.URL: true, plain.URL: true}

	lowest, highest := "00000000-lowest", "zzzzzzzz-highest"
	dialed := map[string]*uplink{}
	for _, id := range []string{lowest, highest} {
		u := newUplink(t, strings.TrimPrefix(front.URL, "http://"))
		dialed[id] = u
		log := logrus.New()
		log.SetLevel(logrus.WarnLevel)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- Run(ctx, Config{Guest: node.Guest{ID: id, Name: "guest", Join: "http://" + link.RelayAddress, Slots: 1, Version: "test"},
				Dir: t.TempDir(), Uplink: u.inside, Log: log})
		}()
		defer func() {
			cancel()
			if err := <-done; err != nil {
				t.Error(err)
			}
			if left := u.outside.Published(); len(left) > 0 {
				t.Errorf("ports of %s are published still: %v", id, left)
			}
		}()
	}

	for name, text := range map[string]string{
		"job.xml": `<job xmlns="urn:mvm:1" name="three">
  <source name="give" language="c"><file path="give.c"/></source>
  <source name="pass" language="c"><file path="pass.c"/></source>
  <source name="take" language="c"><file path="take.c"/></source>
  <task name="give" source="give"/>
  <task name="pass" source="pass"/>
  <task name="take" source="take"><output name="sum.txt"/></task>
  <edge from="give:far" to="pass:in"/>
  <edge from="pass:out" to="take:far"/>
  <edge from="give:near" to="take:near"/>
  <policy wallTime="120" nodes="3"/>
</job>`,
		"give.c": `#include <mvm.h>
#include <stdio.h>
int main(void) {
	mvm_port *far = mvm_open("far"), *near = mvm_open("near");
	for (int i = 1; i <= 20000; i++)
		if (mvm_enqueue(far, &i, sizeof i) < 0 || mvm_enqueue(near, &i, sizeof i) < 0) return 1;
	printf("gave all\n");
	return 0;
}`,
		"pass.c": `#include <mvm.h>
int main(void) {
	mvm_port *in = mvm_open("in"), *out = mvm_open("out");
	for (int i; mvm_dequeue(in, &i, sizeof i) == sizeof i;)
		if (mvm_enqueue(out, &i, sizeof i) < 0) return 1;
	return 0;
}`,
		"take.c": `#include <mvm.h>
#include <stdio.h>
int main(void) {
	mvm_port *ports[2] = {mvm_open("far"), mvm_open("near")};
	long sum = 0;
	for (int k = 0; k < 2; k++)
		for (int i; mvm_dequeue(ports[k], &i, sizeof i) == sizeof i;) sum += i;
	FILE *f = fopen("sum.txt", "w");
	fprintf(f, "%ld\n", sum);
	return fclose(f);
}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	command := func(args ...string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		c := exec.CommandContext(ctx, program, args...)
		c.Env = append(os.Environ(), "MVM_GRID="+front.URL)
		text, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("mvm %s: %v\n%s", strings.Join(args, " "), err, text)
		}
		return string(text)
	}
	text := command("submit", filepath.Join(dir, "job.xml"), "--wait")
	job, _, _ := strings.Cut(text, "\n")
	if sum := command("output", job, "sum.txt", "-o", "-"); sum != fmt.Sprintln(20000*20001) {
		t.Errorf("the sum is %q; mvm submit said\n%s", sum, text)
	}
	if said := command("logs", job, "--process", "give[0]"); said != "gave all\n" {
		t.Errorf("mvm logs says %q", said)
	}
	for id, want := range map[string]int{lowest: 2, highest: 0} {
		u := dialed[id]
		u.mu.Lock()
		proxies := 0
		for address := range u.dialed {
			if !services["http://"+address] {
				proxies++
			}
		}
		if proxies != want {
			t.Errorf("through the uplink of %s went %v, of which %d are to be proxies", id, u.dialed, want)
		}
		u.mu.Unlock()
	}
}
