package osvm_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"mvm/osvm"
	"mvm/osvm/guest"
	"mvm/osvm/vmtest"
)

// Some tests need a node that is another process: to be killed, or to be somebody
// else. That is this program again, told by its environment what to be.
const helperVariable = "MVM_TEST_OSVM_HELPER"

// helping is what such a process is told on its standard input.
type helping struct {
	Dir, Templates string
	QEMU           osvm.QEMU
	Image          osvm.Image
	IDs            []string // of the machines that it starts
	Template       bool
	Move           *moving // it does nothing else
}

// helped is its answer. When its input ends it destroys its machines; it does not
// when it is killed.
type helped struct {
	Isolation osvm.Isolation
	PIDs      []int
	Error     string
}

func TestMain(m *testing.M) {
	if os.Getenv(helperVariable) == "" {
		os.Exit(m.Run())
	}
	var told helping
	input := json.NewDecoder(os.Stdin)
	answer, end := helped{Error: "it was told nothing"}, func() {}
	if err := input.Decode(&told); err == nil {
		answer, end = help(told)
	}
	text, _ := json.Marshal(answer)
	fmt.Printf("\n%s\n", text)
	_, _ = io.Copy(io.Discard, os.Stdin)
	end()
}

func help(told helping) (answer helped, end func()) {
	if told.Move != nil {
		return helpMoving(told), func() {}
	}
	ctx, cancel := context.WithTimeout(context.Background(), vmtest.Limit)
	defer cancel()
	h, err := osvm.NewHost(ctx, osvm.HostConfig{Dir: told.Dir, Templates: told.Templates, QEMU: told.QEMU, Accelerator: osvm.TCG})
	if err != nil {
		return helped{Error: err.Error()}, func() {}
	}
	for _, id := range told.IDs {
		m, err := h.Create(ctx, osvm.Order{ID: id, Image: told.Image, MemoryMiB: 128, Owner: "job/1", Template: told.Template})
		if err == nil && told.Template {
			_, err = m.Start(ctx, guest.Identity{})
		}
		if err == nil {
			err = m.Publish(80, "192.0.2.1:8080")
		}
		if err != nil {
			answer.Error = err.Error()
			break
		}
		answer.Isolation = m.Isolation()
		answer.PIDs = append(answer.PIDs, m.PID())
	}
	return answer, func() {
		for _, m := range h.List() {
			_ = m.Destroy()
		}
	}
}

// startHelper runs the process and waits for its answer. Its input ends with the
// test.
func startHelper(t *testing.T, told helping, change func(*exec.Cmd)) (*exec.Cmd, helped) {
	t.Helper()
	c, out := beginHelper(t, told, change)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var answer helped
		if json.Unmarshal(lines.Bytes(), &answer) == nil {
			if answer.Error != "" {
				t.Fatal(answer.Error)
			}
			return c, answer
		}
	}
	t.Fatal("the process ended without an answer")
	return nil, helped{}
}

// beginHelper runs the process, which answers on what it returns.
func beginHelper(t *testing.T, told helping, change func(*exec.Cmd)) (*exec.Cmd, io.Reader) {
	t.Helper()
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	c := exec.Command("/proc/self/fd/3", "-test.run=^$") // a path that another user may walk
	c.ExtraFiles = []*os.File{program}
	c.Env = append(os.Environ(), helperVariable+"=1", "TMPDIR="+told.Dir)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(c)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		late := time.AfterFunc(vmtest.Limit, func() { _ = c.Process.Kill() })
		defer late.Stop()
		_ = c.Wait()
	})
	if err := json.NewEncoder(in).Encode(told); err != nil {
		t.Fatal(err)
	}
	return c, out
}
