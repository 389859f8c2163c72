package store

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
)

const childVariable = "MVM_STORE_TEST_CHILD"

// TestMain also is the program that TestKill kills: it commits on and on, and
// prints the number of each commit once that was acknowledged.
func TestMain(m *testing.M) {
	dir := os.Getenv(childVariable)
	if dir == "" {
		os.Exit(m.Run())
	}
	s, err := Open(context.Background(), Config{Dir: dir})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	life := os.Getpid()
	for i := 1; ; i++ {
		key := fmt.Sprintf("%d/%d", life, i)
		if err := s.Commit(context.Background(), IfAbsent(key), Put(key+"/a", []byte(key)), Put(key+"/b", []byte(key))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		fmt.Println(i)
	}
}

// Every commit that was acknowledged before kill -9 is there afterwards, whole.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	acknowledged := map[int]int{}
	for life := range 3 {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), childVariable+"="+dir)
		child.Stderr = os.Stderr
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		last := 0
		for lines.Scan() {
			if last, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
			if last == 100+37*life {
				if err := child.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = child.Wait() // it was killed
		if last < 100 {
			t.Fatalf("life %d ended by itself after %d commits", life, last)
		}
		acknowledged[child.Process.Pid] = last

		s := open(t, dir)
		for pid, n := range acknowledged {
			for i := 1; i <= n+1; i++ {
				key := fmt.Sprintf("%d/%d", pid, i)
				_, _, errA := s.Get(t.Context(), key+"/a")
				_, _, errB := s.Get(t.Context(), key+"/b")
				if i <= n && errA != nil {
					t.Fatalf("commit %s was acknowledged and is lost: %v", key, errA)
				}
				if (errA == nil) != (errB == nil) {
					t.Fatalf("half of commit %s is there: %v, %v", key, errA, errB)
				}
			}
		}
		s.Close()
	}
	t.Logf("commits acknowledged in each life: %v", acknowledged)
}
