package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"mvm/broker/profile"
	"mvm/node/build"
	"mvm/osvm/vmtest"
	"mvm/wsdl"
)

// TestMain builds the real program once for the tests that run it.
func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "mvm-test-")
	if err == nil {
		defer os.RemoveAll(dir)
		var said []byte
		if said, err = exec.Command("go", "build", "-o", filepath.Join(dir, "mvm"), ".").CombinedOutput(); err != nil {
			err = fmt.Errorf("go build: %w\n%s", err, said)
		}
	}
	if err == nil {
		err = os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// rooms says who may import whom: each room of the house, and the rooms whose
// packages it may import besides its own. "services/*" and the like are every
// room below, but those that follow with a minus.
var rooms = map[string][]string{
	"wsdl":                 {},
	"queuevm":              {},
	"queuevm/codec":        {},
	"queuevm/client":       {},
	"node/build":           {},
	"services/store":       {},
	"osvm/qmp":             {},
	"osvm/link":            {},
	"osvm/vswitch":         {},
	"osvm/guest":           {"osvm/link"},
	"osvm/guest/agent":     {"osvm/guest", "osvm/link", "node", "node/mvm", "node/worker"},
	"services/soap":        {"wsdl"},
	"services/security":    {"wsdl"},
	"services/bootstrap":   {"wsdl"},
	"services/image":       {"wsdl"},
	"broker/profile":       {"wsdl", "queuevm/codec"},
	"services/information": {"wsdl", "services/store"},
	"services/policy":      {"wsdl", "services/store", "services/security"},
	"services/client":      {"wsdl", "services/soap", "services/security", "services/image", "broker/profile"},
	"broker/place":         {"broker/profile"},
	"broker/peer":          {"wsdl", "services/soap"},
	"broker/jobqueue":      {"queuevm"},
	"broker":               {"wsdl", "services/*", "-services/client", "broker/*", "queuevm", "queuevm/codec"},
	"node/confine":         {},
	"node/mvm":             {"queuevm", "queuevm/client", "queuevm/codec", "node/build", "node/confine"},
	"osvm":                 {"osvm/*", "-osvm/vmtest", "-osvm/vmtest/pattern"},
	"osvm/vmtest":          {"osvm", "osvm/link", "osvm/guest"},
	"osvm/vmtest/pattern":  {"osvm/guest"},
	"node":                 {"wsdl", "services/*", "-services/client", "-services/store", "node/*", "queuevm", "queuevm/codec", "osvm", "osvm/guest", "osvm/link", "osvm/vswitch"},
	"examples":             {"wsdl", "services/client", "queuevm/client", "examples/bench/soap", "examples/launch"},
	"examples/launch":      {},
	"examples/bench/soap":  {"wsdl", "services/soap"},
	"examples/soak":        {"wsdl", "services/client", "examples/launch"},
	"node/worker":          {"wsdl", "services/*", "-services/client", "-services/store", "node"},
	"":                     {"*"},
}

// testRooms are what a room's tests may import besides: the other side of what
// they test, never anything that would let the room itself lean on it.
var testRooms = map[string][]string{
	"node/worker":   {"node/mvm", "osvm/link", "osvm/vmtest", "examples/launch"},
	"examples":      {"services/soap"}, // to say what our own client says, word for word
	"node":          {"osvm/vmtest"},
	"osvm":          {"osvm/vmtest"},
	"queuevm":       {"queuevm/client", "queuevm/codec"},
	"examples/soak": {"broker", "services/store", "services/image"}, // to open the state of a grid that has ended
}

const module = "mvm"

// source is one parsed Go file of the project.
type source struct {
	path    string // slash-separated, from the root
	room    string
	test    bool
	imports []string
	file    *ast.File
}

// sources parses every Go file of the project, whatever its build tags.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	set := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(name, ".go") {
			return nil
		}
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		s := source{path: filepath.ToSlash(name), test: strings.HasSuffix(name, "_test.go"), file: file}
		s.room = roomOf(t, path.Dir(s.path))
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			s.imports = append(s.imports, imported)
		}
		all = append(all, s)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("only %d Go files found: the test does not run at the root", len(all))
	}
	return all
}

// roomOf is the room that a package's folder belongs to: the nearest one above.
func roomOf(t *testing.T, dir string) string {
	t.Helper()
	if dir == "." {
		return ""
	}
	for at := dir; at != "."; at = path.Dir(at) {
		if _, ok := rooms[at]; ok {
			return at
		}
	}
	t.Errorf("%s belongs to no room of the house", dir)
	return dir
}

// allows tells whether a list of rooms, with its stars and minuses, has room.
func allows(list []string, room string) bool {
	ok := false
	for _, entry := range list {
		forbid := strings.HasPrefix(entry, "-")
		entry = strings.TrimPrefix(entry, "-")
		match := entry == room || entry == "*"
		if above, star := strings.CutSuffix(entry, "/*"); star {
			match = strings.HasPrefix(room, above+"/")
		}
		if match {
			ok = !forbid
		}
	}
	return ok
}

// ours is the project's folder that an import path names.
func ours(imported string) (dir string, ok bool) {
	if imported == module {
		return ".", true
	}
	return strings.CutPrefix(imported, module+"/")
}

func TestImportsFollowTheHouse(t *testing.T) {
	for _, s := range sources(t) {
		for _, imported := range s.imports {
			dir, ok := ours(imported)
			if !ok {
				continue
			}
			to := roomOf(t, dir)
			if to == s.room || allows(rooms[s.room], to) || (s.test && allows(testRooms[s.room], to)) {
				continue
			}
			t.Errorf("%s (room %q) imports %s: the house allows it only %v", s.path, s.room, imported, rooms[s.room])
		}
	}
}

func TestPlacementIsPure(t *testing.T) {
	impure := []string{"net", "os", "time", "math/rand", "crypto/rand", "syscall"}
	for _, s := range sources(t) {
		if s.room != "broker/place" || s.test {
			continue
		}
		for _, imported := range s.imports {
			for _, bad := range impure {
				if imported == bad || strings.HasPrefix(imported, bad+"/") {
					t.Errorf("%s imports %s: placement is a pure function", s.path, imported)
				}
			}
		}
	}
}

func TestMVMProcessIsSlim(t *testing.T) {
	packages := map[string][]string{} // folder -> what its files import
	for _, s := range sources(t) {
		if !s.test {
			dir := path.Dir(s.path)
			packages[dir] = append(packages[dir], s.imports...)
		}
	}
	seen := map[string]string{"node/mvm": "node/mvm", "node/mvm/process": "node/mvm/process"} // folder -> how it was reached
	queue := slices.Sorted(maps.Keys(seen))
	for len(queue) > 0 {
		dir := queue[0]
		queue = queue[1:]
		for _, imported := range packages[dir] {
			way := seen[dir] + " -> " + imported
			if next, ok := ours(imported); ok {
				if next == "wsdl" || strings.HasPrefix(next, "services/") {
					t.Errorf("%s: the MVM process speaks no SOAP", way)
				}
				if _, done := seen[next]; !done {
					seen[next] = way
					queue = append(queue, next)
				}
				continue
			}
			standard := !strings.Contains(strings.Split(imported, "/")[0], ".")
			heavy := imported == "net/http" || strings.HasPrefix(imported, "net/http/") || imported == "net/rpc" || imported == "expvar"
			// zstd costs some 0.6 MB with all the codecs, and sets up nothing before it is used.
			known := strings.HasPrefix(imported, "golang.org/x/sys/") || imported == "github.com/klauspost/compress/zstd"
			if heavy || (!standard && !known) {
				t.Errorf("%s: the MVM process links only the standard library without net/http, golang.org/x/sys and zstd", way)
			}
		}
	}
}

func TestNoGlobalMachinery(t *testing.T) {
	for _, s := range sources(t) {
		for _, declaration := range s.file.Decls {
			if f, ok := declaration.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function: only main wires", s.path)
			}
		}
		switch s.file.Name.Name {
		case "util", "utils", "common", "types", "helpers", "misc":
			t.Errorf("%s: a package is named for one idea, not %q", s.path, s.file.Name.Name)
		}
	}
}

func TestTopLevelIsTheHouse(t *testing.T) {
	house := []string{
		"wsdl", "services", "broker", "node", "queuevm", "osvm", "examples",
		"go.mod", "go.sum", "Makefile", "LICENSE", "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md",
		"main.go", "main_test.go",
	}
	ignored, err := os.ReadFile(".gitignore")
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, ".") || slices.Contains(house, name) {
			continue
		}
		if slices.ContainsFunc(strings.Fields(string(ignored)), func(line string) bool { return strings.Trim(line, "/") == name }) {
			continue
		}
		t.Errorf("%s does not belong at the top level, which holds %v", name, house)
	}
}

// TestScripts runs the scripts that drive the real program, and double as
// documentation of the command line.
func TestScripts(t *testing.T) {
	testscript.Run(t, scripts(t, "script", func(*testscript.Env) error { return nil }))
}

// TestVMScripts runs those that need QEMU. They find the minimal image in the
// folder $IMAGE, and what it has booted to in $TEMPLATES.
func TestVMScripts(t *testing.T) {
	folder, templates := vmtest.Folder(t), vmtest.Templates(t)
	testscript.Run(t, scripts(t, "vmscript", func(env *testscript.Env) error {
		env.Setenv("IMAGE", folder)
		env.Setenv("TEMPLATES", templates)
		return nil
	}))
}

// scripts are those of a folder of the client's.
func scripts(t *testing.T, folder string, prepare func(*testscript.Env) error) testscript.Params {
	root, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return testscript.Params{
		Dir:                 filepath.Join("services", "client", "testdata", folder),
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("ROOT", root)
			env.Setenv("MVM_GRID", "")
			env.Setenv("TMPDIR", env.WorkDir)
			// What Go programs of jobs are built with is kept between tests.
			env.Setenv("HOME", env.WorkDir)
			return prepare(env)
		},
		Condition: func(name string) (bool, error) {
			if name != "debian" {
				return false, fmt.Errorf("there is no condition %q", name)
			}
			folder, err := os.MkdirTemp("", "mvm-test-")
			if err != nil {
				return false, err
			}
			defer os.RemoveAll(folder)
			try := exec.Command("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", "busybox-static")
			try.Dir = folder
			return try.Run() == nil, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":  exits,
			"node":   startNode,
			"killed": killNode,
		},
	}
}

// exits runs a program and checks its exit code: exits CODE PROGRAM ARGS...
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if code != want {
		ts.Fatalf("exit code %d, want %d", code, want)
	}
}

// startNode starts `mvm node` with a free port and a folder of its own, waits
// until it is ready, and puts its address into a variable: node VARIABLE
// FLAGS... It is ended with the script. With --data the folder is kept, and so
// are VMs: the script destroys them.
func startNode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: node VARIABLE FLAGS...")
	}
	arguments := append([]string{"node", "--listen", "127.0.0.1:0"}, args[1:]...)
	if i := slices.Index(args, "--data"); i < 0 {
		arguments = append(arguments, "--temporary")
	} else {
		ts.Defer(func() { endVMs(args[i+1]) })
	}
	cmd := exec.Command("mvm", arguments...)
	cmd.Env = append(os.Environ(), "TMPDIR="+ts.Getenv("TMPDIR"))
	var log bytes.Buffer
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Defer(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		rest, _ := io.ReadAll(stdout)
		if err := cmd.Wait(); err != nil || len(rest) > 0 {
			ts.Logf("%s ended with %v; more on stdout: %q; log:\n%s", args[0], err, rest, &log)
		} else if warned := warnings(log.String()); warned != "" {
			ts.Logf("%s warned:\n%s", args[0], warned)
		}
	})
	line, err := bufio.NewReader(io.MultiReader(io.LimitReader(stdout, 200))).ReadString('\n')
	if err != nil {
		ts.Fatalf("the node is not ready: %v\n%s", err, &log)
	}
	ts.Setenv(args[0], strings.TrimSpace(line))
	ts.Setenv(args[0]+"_PID", strconv.Itoa(cmd.Process.Pid))
}

// warnings are those of a node's log, for who looks why a script has failed.
func warnings(log string) string {
	const most = 8 << 10
	var warned strings.Builder
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=warning") || strings.Contains(line, "level=error") {
			warned.WriteString(line)
		}
	}
	text := warned.String()
	return text[max(0, len(text)-most):]
}

// endVMs ends the QEMUs that a script which failed has left in a node's folder.
func endVMs(data string) {
	records, _ := filepath.Glob(filepath.Join(data, "node", "vm", "machines", "*", "machine.json"))
	for _, path := range records {
		var record struct{ PID int }
		if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &record) == nil && record.PID > 0 {
			_ = syscall.Kill(record.PID, syscall.SIGKILL)
		}
	}
}

// killNode ends a node as kill -9 does: killed VARIABLE.
func killNode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: killed VARIABLE")
	}
	pid, err := strconv.Atoi(ts.Getenv(args[0] + "_PID"))
	ts.Check(err)
	ts.Check(syscall.Kill(pid, syscall.SIGKILL))
	// Its last thread may hold the folder's lock for a while.
	ts.Check(unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil))
}

// waitFor polls until ok, or fails the test after a while.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}

// mentioned lists the processes whose environment has the text: all that a lab
// started inherit its TMPDIR or were made below it.
func mentioned(text string) []string {
	var found []string
	environments, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range environments {
		data, err := os.ReadFile(file)
		if err == nil && bytes.Contains(data, []byte(text)) {
			line, _ := os.ReadFile(filepath.Join(filepath.Dir(file), "cmdline"))
			found = append(found, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// TestLabLeavesNothing ends a lab whose job would run for long, by Ctrl-C, Ctrl-\
// and by kill -9: neither leaves a process or a file.
func TestLabLeavesNothing(t *testing.T) {
	t.Parallel()
	const profile = `<job xmlns="urn:mvm:1" name="sleeper">
  <source name="s" language="shell"><file name="s.sh"><text>echo asleep; sleep 1000 &amp; sleep 1000</text></file></source>
  <task name="sleeper" source="s" count="4"/>
  <policy nodes="2"/>
</job>`
	for name, how := range map[string]struct {
		signal syscall.Signal
		code   int
	}{
		"interrupted": {syscall.SIGINT, 130},
		"quit":        {syscall.SIGQUIT, 130},
		"killed":      {syscall.SIGKILL, -1},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "sleeper.xml")
			if err := os.WriteFile(file, []byte(profile), 0o644); err != nil {
				t.Fatal(err)
			}
			temp := t.TempDir()
			cmd := exec.Command("mvm", "lab", file)
			cmd.Env = append(os.Environ(), "TMPDIR="+temp)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var said strings.Builder
			lines := bufio.NewScanner(stderr)
			for lines.Scan() {
				said.WriteString(lines.Text() + "\n")
				if strings.HasPrefix(lines.Text(), "running 4 processes") {
					break
				}
			}
			waitFor(t, "the job's programs to run; the lab said:\n"+said.String(), func() bool {
				return slices.ContainsFunc(mentioned(temp), func(line string) bool { return strings.HasPrefix(line, "sleep 1000") })
			})
			to := cmd.Process.Pid
			if how.signal != syscall.SIGKILL {
				to = -to // as a terminal sends it
			}
			if err := syscall.Kill(to, how.signal); err != nil {
				t.Fatal(err)
			}
			rest, _ := io.ReadAll(stderr)
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != how.code {
				t.Errorf("exit code %d, want %d; it said\n%s%s", code, how.code, said.String(), rest)
			}
			if bytes.Contains(rest, []byte("goroutine ")) {
				t.Errorf("it said at its end\n%s", rest)
			}
			waitFor(t, "every process to end", func() bool { return len(mentioned(temp)) == 0 })
			waitFor(t, "every file to be removed", func() bool {
				left, err := os.ReadDir(temp)
				return err == nil && len(left) == 0
			})
		})
	}
}

// TestHelpIsQuick holds the cost of starting the program: it links etcd, and
// yet nothing of it may be set up before a verb asks for it.
func TestHelpIsQuick(t *testing.T) {
	const most = 50 * time.Millisecond
	best := time.Hour
	for range 5 {
		cmd := exec.Command("mvm", "--help")
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		best = min(best, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	if best > most {
		t.Errorf("mvm --help takes %v of CPU at best, want at most %v", best, most)
	}
}

// daemon is a node process that a test kills and starts again.
type daemon struct {
	*exec.Cmd
	url string
	log *bytes.Buffer
}

// startDaemon starts `mvm node` with these flags and waits until it is ready.
func startDaemon(t *testing.T, flags ...string) *daemon {
	t.Helper()
	d := &daemon{Cmd: exec.Command("mvm", append([]string{"node"}, flags...)...), log: new(bytes.Buffer)}
	d.Stderr = d.log
	d.Env = append(os.Environ(), "TMPDIR="+t.TempDir()) // it is killed: nobody else removes its data
	stdout, err := d.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Process.Kill()
		d.Wait()
		if t.Failed() {
			t.Logf("mvm node %s:\n%s", strings.Join(flags, " "), d.log)
		}
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatalf("mvm node %s is not ready: %v\n%s", strings.Join(flags, " "), err, d.log)
	}
	d.url = strings.TrimSpace(line)
	return d
}

// What a node that was killed had just started still has its address, for a
// moment: the node that comes back waits for it, unless it is told to end.
func TestAddressInUseForAMoment(t *testing.T) {
	t.Parallel()
	last, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer last.Close()
	o := &nodeOptions{listen: last.Addr().String()}
	ended, end := context.WithCancel(t.Context())
	end()
	if _, _, err := o.open(ended); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("an address that another has: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { last.Close() })
	next, _, err := o.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
}

// TestJobOutlivesItsBroker kills the broker's node with kill -9, once as soon
// as a job is accepted and once while it runs: whoever waits for the job sees
// it succeed, and it ran once.
func TestJobOutlivesItsBroker(t *testing.T) {
	t.Parallel()
	data, ran := t.TempDir(), filepath.Join(t.TempDir(), "ran")
	front := startDaemon(t, "--roles", "backend,frontend", "--listen", "127.0.0.1:0", "--data", data)
	startDaemon(t, "--listen", "127.0.0.1:0", "--temporary", "--slots", "4", "--join", front.url)
	restart := func() {
		front.Process.Kill()
		front.Wait()
		front = startDaemon(t, "--roles", "backend,frontend", "--listen", strings.TrimPrefix(front.url, "http://"), "--data", data)
	}
	profile := filepath.Join(t.TempDir(), "once.xml")
	if err := os.WriteFile(profile, []byte(`<job xmlns="urn:mvm:1" name="once">
  <parameter name="file"/>
  <source name="s" language="shell"><file name="s.sh"><text>echo ran &gt;&gt; "$1"; echo begun; sleep 2; echo "the answer is 42"</text></file></source>
  <task name="t" source="s"><argument>${file}</argument></task>
</job>`), 0o644); err != nil {
		t.Fatal(err)
	}
	mvm := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("mvm", args...)
		cmd.Env = append(os.Environ(), "MVM_GRID="+front.url)
		said, err := cmd.Output()
		if err != nil {
			var exit *exec.ExitError
			errors.As(err, &exit)
			t.Fatalf("mvm %s: %v\n%s%s", strings.Join(args, " "), err, said, exit.Stderr)
		}
		return strings.TrimSpace(string(said))
	}
	id := mvm("submit", profile, "-p", "file="+ran)
	restart()
	waitFor(t, "the job's program to run", func() bool { _, err := os.Stat(ran); return err == nil })
	waiter := exec.Command("mvm", "logs", "-f", id, "--grid", front.url)
	stdout, err := waiter.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var complaint bytes.Buffer
	waiter.Stderr = &complaint
	if err := waiter.Start(); err != nil {
		t.Fatal(err)
	}
	heard := bufio.NewReader(stdout)
	if line, err := heard.ReadString('\n'); line != "begun\n" {
		t.Fatalf("mvm logs -f: %q, %v\n%s", line, err, &complaint)
	}
	restart()
	rest, _ := io.ReadAll(heard)
	if err := waiter.Wait(); err != nil || string(rest) != "the answer is 42\n" {
		t.Errorf("mvm logs -f: %v, %q\n%s", err, rest, &complaint)
	}
	waitFor(t, "the job to succeed", func() bool { return strings.Contains(mvm("job", id, "--json"), `"state": "succeeded"`) })
	if lines, err := os.ReadFile(ran); err != nil || string(lines) != "ran\n" {
		t.Errorf("the program ran: %q, %v; want once", lines, err)
	}
	if said := mvm("logs", id); said != "begun\nthe answer is 42" {
		t.Errorf("its output is %q", said)
	}
}

// TestLabEndsWhenANodeIsLost kills a node of a lab: its grid never grows, so a
// job that no longer fits must not wait for ever.
func TestLabEndsWhenANodeIsLost(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "long.xml")
	if err := os.WriteFile(file, []byte(`<job xmlns="urn:mvm:1" name="long">
  <source name="s" language="shell"><file name="s.sh"><text>sleep 1000</text></file></source>
  <task name="s" source="s" count="3"/>
  <policy retries="5"/>
</job>`), 0o644); err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "mvm", "lab", file, "--nodes", "3")
	cmd.Env = append(os.Environ(), "TMPDIR="+temp)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := bufio.NewReader(stderr)
	for line := ""; !strings.HasPrefix(line, "running"); {
		if line, err = said.ReadString('\n'); err != nil {
			t.Fatalf("the lab ended before the job ran: %q, %v", line, err)
		}
	}
	killed := false
	command, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range command {
		line, _ := os.ReadFile(name)
		environment, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "environ"))
		if bytes.Contains(line, []byte("\x00--name\x00node3\x00")) && bytes.Contains(environment, []byte(temp)) {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				t.Fatal(err)
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed = true
		}
	}
	rest, _ := io.ReadAll(said)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); !killed || code != 1 {
		t.Errorf("killed: %v, exit code %d, want 1; it said\n%s", killed, code, rest)
	}
	if !bytes.Contains(rest, []byte("node3 ended: signal: killed")) || !bytes.Contains(rest, []byte("the others cannot hold the job")) {
		t.Errorf("it said\n%s", rest)
	}
	waitFor(t, "every process to end", func() bool { return len(mentioned(temp)) == 0 })
}

// TestIdleWorkerIsSlim holds a worker that waits for jobs, and one that has had
// one, to what a machine lends without noticing: no MVM process, 30 MiB.
func TestIdleWorkerIsSlim(t *testing.T) {
	t.Parallel()
	const most = 30 << 10 // KiB
	front := startDaemon(t, "--roles", "backend,frontend", "--listen", "127.0.0.1:0", "--temporary")
	worker := startDaemon(t, "--listen", "127.0.0.1:0", "--temporary", "--join", front.url)
	check := func(when string) {
		t.Helper()
		waitFor(t, "no process below the worker "+when, func() bool {
			// A child belongs to the thread that made it.
			lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", worker.Process.Pid))
			return err == nil && len(lists) > 0 && !slices.ContainsFunc(lists, func(list string) bool {
				children, _ := os.ReadFile(list)
				return len(bytes.TrimSpace(children)) > 0
			})
		})
		// What a job took is given back a moment after it.
		resident := 0
		waitFor(t, fmt.Sprintf("the worker %s to have at most %d KiB resident", when, most), func() bool {
			status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", worker.Process.Pid))
			if err != nil {
				t.Fatal(err)
			}
			_, after, _ := strings.Cut(string(status), "VmRSS:")
			if _, err := fmt.Sscan(after, &resident); err != nil {
				t.Fatalf("no VmRSS in\n%s", status)
			}
			return resident <= most
		})
		t.Logf("%s: %d KiB resident", when, resident)
	}
	check("before any job")
	profile := filepath.Join(t.TempDir(), "trivial.xml")
	if err := os.WriteFile(profile, []byte(`<job xmlns="urn:mvm:1" name="trivial">
  <source name="s" language="shell"><file name="s.sh"><text>true</text></file></source>
  <task name="s" source="s"/>
</job>`), 0o644); err != nil {
		t.Fatal(err)
	}
	if said, err := exec.Command("mvm", "submit", "--wait", "--grid", worker.url, profile).CombinedOutput(); err != nil {
		t.Fatalf("mvm submit: %v\n%s", err, said)
	}
	check("after a job")
}

// TestRolesApart runs the back end, the front end and a worker as nodes of
// their own over an external etcd, and finds the broker through each of them.
func TestRolesApart(t *testing.T) {
	t.Parallel()
	any := url.URL{Scheme: "http", Host: "127.0.0.1:0"}
	config := embed.NewConfig()
	config.Dir = t.TempDir()
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{any}, []url.URL{any}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{any}, []url.URL{any}
	config.InitialCluster = config.InitialClusterFromName(config.Name)
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	defer etcd.Close()
	<-etcd.Server.ReadyNotify()
	state := etcd.Clients[0].Addr().String()

	back := startDaemon(t, "--roles", "backend", "--state", state, "--listen", "127.0.0.1:0", "--temporary")
	worker := startDaemon(t, "--roles", "worker", "--join", back.url, "--listen", "127.0.0.1:0", "--temporary")
	if said, err := exec.Command("mvm", "nodes", "--grid", worker.url).CombinedOutput(); err == nil || !strings.Contains(string(said), "does not know a broker yet") {
		t.Errorf("without a front end: %v, %s", err, said)
	}
	front := startDaemon(t, "--roles", "frontend", "--state", state, "--join", back.url, "--listen", "127.0.0.1:0", "--temporary")
	profile := filepath.Join(t.TempDir(), "trivial.xml")
	if err := os.WriteFile(filepath.Join(filepath.Dir(profile), "hello.txt"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(profile, []byte(`<job xmlns="urn:mvm:1" name="apart">
  <source name="s" language="shell"><file name="s.sh"><text>cat hello.txt</text></file></source>
  <task name="s" source="s"><input path="hello.txt"/></task>
</job>`), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, node := range map[string]*daemon{"back end": back, "front end": front, "worker": worker} {
		waitFor(t, "the "+name+" to know the broker", func() bool {
			return exec.Command("mvm", "jobs", "--grid", node.url).Run() == nil
		})
		id, err := exec.Command("mvm", "submit", "--wait", "--grid", node.url, profile).Output()
		if err != nil {
			t.Fatalf("through the %s: %v\n%s", name, err, err.(*exec.ExitError).Stderr)
		}
		said, err := exec.Command("mvm", "logs", "--grid", node.url, strings.TrimSpace(string(id))).Output()
		if err != nil || string(said) != "hello" {
			t.Errorf("through the %s the job printed %q, %v", name, said, err)
		}
	}
}

// TestNamesThatTheBrokerTakesTheNodeTakes holds two rooms that must not know
// each other to one rule: what a profile may call a file, a build accepts.
func TestNamesThatTheBrokerTakesTheNodeTakes(t *testing.T) {
	t.Parallel()
	names := []string{"a/b/c.c", "a b.c", "ä.c", "...", "a/.b", ".a", "~a", "a/~b", "@a", "a/@b", "-a", "a/-b", "a//b", "a/./b", "a/../b", "/a", "a/",
		strings.Repeat("a/", 127) + "b", strings.Repeat("a/", 130) + "b", strings.Repeat("a", 255), strings.Repeat("a", 256)}
	for r := rune(1); r < 0x180; r++ {
		names = append(names, "a"+string(r)+"b", string(r)+"b")
	}
	accepted := 0
	for _, name := range names {
		job := &wsdl.Job{
			Name:   "j",
			Source: []*wsdl.Source{{Name: "s", Language: wsdl.Of(wsdl.LanguageShell), File: []*wsdl.SourceFile{{Name: name, Text: "true"}}}},
			Input:  []*wsdl.InputFile{{Name: name, Text: "in"}},
			Task:   []*wsdl.Task{{Name: "t", Source: "s"}},
		}
		if _, err := profile.Compile(job, nil, nil, nil); err != nil {
			continue
		}
		accepted++
		if err := build.CheckName(name); err != nil {
			t.Errorf("the broker takes the file name %q, but a node: %v", name, err)
		}
	}
	if accepted < 300 {
		t.Errorf("only %d of %d names are accepted: the test shows little", accepted, len(names))
	}
}

// TestFlagsThatTheBrokerTakesTheNodeTakes holds both to one rule, and to one
// sentence about what breaks it.
func TestFlagsThatTheBrokerTakesTheNodeTakes(t *testing.T) {
	t.Parallel()
	flags := []string{"-O2", "-lm", "--", "-", "-e", "-eu", "-q", "x.c", "./a.a", "/etc/passwd", "@list", "-Wl,-rpath,/x", "-Xlinker", "a\nb", "a\x00", "-x\u202e", "$(reboot)", "; reboot", "-`x`",
		"-E", "-S", "-c", "-r", "-shared", "-###", "-load", "-Xclang", "--compile", "--coverage", "-ox", "--output=x", "-wrapper", "-fplugin=x", "-fpass-plugin=x", "-specs=x", "--specs=x", "-B.", "-MD", "-xc", "-Tx",
		"-save-temps", "--save-temps", "-dumpbase", "-fdump-tree-all", "-ftest-coverage", "-fprofile-use", "-gsplit-dwarf", "-run",
		"-a", "--a", "-n", "-work", "-json", "-race", "-o=x", "--o", "-C", "-C=/", "-p=1", "-toolexec=rm", "--toolexec", "-overlay=x", "-mod=vendor", "-modfile=x", "-pkgdir=x", "-exec=x", "-compiler=gccgo", "-gccgoflags=x",
		"-buildmode=plugin", "-installsuffix=x", "-pgo=x", "-ldflags=-extld=x", "-ldflags=-linkmode=external", "-tags=a", "-m", "-i", "-h", "-V", "--help", "--version", "-O", strings.Repeat("-x", 40)}
	refused := 0
	for _, language := range []wsdl.Language{wsdl.LanguageC, wsdl.LanguageCpp, wsdl.LanguageGo_, wsdl.LanguagePython, wsdl.LanguageShell} {
		for _, name := range []string{"a.c", "go.mod", "a/go.mod", "go.work"} {
			for _, flag := range flags {
				job := &wsdl.Job{
					Name:   "j",
					Source: []*wsdl.Source{{Name: "s", Language: wsdl.Of(language), File: []*wsdl.SourceFile{{Name: name, Text: "x"}}, Flag: []string{flag}}},
					Task:   []*wsdl.Task{{Name: "t", Source: "s"}},
				}
				_, broker := profile.Compile(job, nil, nil, nil)
				node := build.Check(string(language), []string{flag}, []build.File{{Name: name}})
				if (broker == nil) != (node == nil) && !strings.Contains(flag, "\x00") {
					t.Errorf("%s, %s, %q: the broker says %v, the node %v", language, name, flag, broker, node)
				}
				var fault *wsdl.Fault
				if node == nil || !errors.As(broker, &fault) {
					continue
				}
				refused++
				said := ""
				for _, p := range fault.Problem {
					said += p.Message + "\n"
				}
				for line := range strings.SplitSeq(node.Error(), "\n") {
					if !strings.Contains(said, line) && !strings.Contains(flag, "\x00") {
						t.Errorf("%s, %s, %q: the broker says %snot %s", language, name, flag, said, line)
					}
				}
			}
		}
	}
	if refused < 300 {
		t.Errorf("only %d refused: the test shows little", refused)
	}
}
