package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// bench is where one test builds.
type bench struct {
	t         *testing.T
	compilers []Compiler
	clients   string
	cache     string
	n         int
}

// newBench lays out the client files without the libraries that `make build`
// may have put beside them, so that these are built here.
func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, compilers: NewDetector("", "").Compilers(t.Context()), clients: t.TempDir(), cache: t.TempDir()}
	for _, folder := range []string{"c", "client", "python"} {
		err := copyTree(filepath.Join("../../queuevm", folder), filepath.Join(b.clients, folder), func(name string) bool { return !strings.HasPrefix(name, "lib/") })
		if err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// request writes the files ("name", "text", ...) and asks to build them.
func (b *bench) request(language string, flags []string, files ...string) Request {
	b.t.Helper()
	compiler, ok := For(language, b.compilers)
	if !ok {
		b.t.Skipf("SKIPPED: this machine has no compiler for %s; install one", language)
	}
	b.n++
	dir := filepath.Join(b.t.TempDir(), fmt.Sprint(b.n))
	r := Request{Source: "test", Language: language, Flags: flags, Dir: dir, Out: dir + ".out", Compiler: compiler, Clients: b.clients, Cache: b.cache}
	// Go's library need not be compiled anew by every test run.
	if out, err := exec.Command("go", "env", "GOCACHE").Output(); err == nil {
		r.GoCache = strings.TrimSpace(string(out))
	}
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(dir, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			b.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o644); err != nil {
			b.t.Fatal(err)
		}
		r.Files = append(r.Files, File{files[i], fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(files[i+1])))})
	}
	return r
}

// run builds and runs, in another folder than it was built in.
func (b *bench) run(r Request, arguments ...string) string {
	b.t.Helper()
	if _, err := Build(b.t.Context(), nil, r); err != nil {
		var f *Failure
		if errors.As(err, &f) {
			b.t.Fatalf("%v\n%s", err, f.Output)
		}
		b.t.Fatal(err)
	}
	moved := r.Out + ".moved"
	if err := os.Rename(r.Out, moved); err != nil {
		b.t.Fatal(err)
	}
	argv, err := Command(moved, arguments)
	if err != nil {
		b.t.Fatal(err)
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Env = append(Environment(b.t.TempDir()), "PYTHONPATH="+filepath.Join(b.clients, "python"))
	out, err := c.CombinedOutput()
	if err != nil {
		b.t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

func TestDetect(t *testing.T) {
	d := NewDetector("", "")
	first := d.Compilers(t.Context())
	for _, c := range first {
		t.Logf("%+v", c)
		if !filepath.IsAbs(c.Command) || c.Version == "" {
			t.Errorf("%+v", c)
		}
	}
	if _, ok := For(Shell, first); !ok {
		t.Error("there is no sh")
	}
	if again := d.Compilers(t.Context()); len(again) != len(first) {
		t.Errorf("a second look finds %v", again)
	}
	// What is no compiler is not taken for one, and a new one is found.
	dir := t.TempDir()
	fake := func(name, script string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fake("gcc", "echo crt1.o") // no C library to link with
	fake("python3", "exit 1")
	d = NewDetector(dir, "")
	if got := d.Compilers(t.Context()); len(got) != 0 {
		t.Errorf("found %v", got)
	}
	d.looked = time.Time{} // as if that were a while ago
	fake("clang", `echo asked >> `+dir+`/log; case $1 in --version) echo clang 99; echo more;; *) echo /lib/crt1.o;; esac`)
	for range 3 {
		if got := d.Compilers(t.Context()); len(got) != 1 || got[0] != (Compiler{C, "clang", dir + "/clang", "clang 99"}) {
			t.Errorf("found %v", got)
		}
	}
	if log, _ := os.ReadFile(dir + "/log"); string(log) != "asked\nasked\n" {
		t.Errorf("it was asked more than once:\n%s", log)
	}
}

// tcc is taken where the C client was made ready for it, and only there.
func TestDetectTCC(t *testing.T) {
	dir := t.TempDir()
	script := "#!/bin/sh\ncase $1 in -v) echo tcc version 0.9;; -print-search-dirs) printf 'install: /x\\nlibraries:\\n  /nowhere\\n  " + dir + "\\n';; *) exit 1;; esac\n"
	if err := os.WriteFile(filepath.Join(dir, "tcc"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := NewDetector(dir, "").Compilers(t.Context()); len(got) != 0 {
		t.Errorf("without the client's library: %v", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "libmvm.a"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := NewDetector(dir, "").Compilers(t.Context()); len(got) != 1 || got[0] != (Compiler{C, TCC, dir + "/tcc", "tcc version 0.9"}) {
		t.Errorf("with it: %v", got)
	}
}

// What was found outlives the detector for as long as nothing of it changes, and
// nothing that failed does.
func TestDetectorRemembers(t *testing.T) {
	dir, file := t.TempDir(), filepath.Join(t.TempDir(), "sub", "compilers.json")
	fake := func(name, script string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	asked := func(want int, names ...string) {
		t.Helper()
		os.Remove(dir + "/log")
		var got []string
		for _, c := range NewDetector(dir, file).Compilers(t.Context()) {
			got = append(got, c.Name+" "+c.Version)
		}
		log, _ := os.ReadFile(dir + "/log")
		if n := strings.Count(string(log), "asked"); n != want || strings.Join(got, ", ") != strings.Join(names, ", ") {
			t.Errorf("found %q after %d questions, expected %q after %d", got, n, names, want)
		}
	}
	start := filepath.Join(dir, "crt1.o")
	if err := os.WriteFile(start, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	gcc := func(version string) {
		fake("gcc", "echo asked >> "+dir+"/log; case $1 in --version) echo "+version+";; *) echo "+start+";; esac")
	}
	gcc("one")
	asked(2, "gcc one")
	asked(0, "gcc one")
	gcc("eleven")
	asked(2, "gcc eleven")
	asked(0, "gcc eleven")
	if err := os.WriteFile(start, []byte("other"), 0o644); err != nil { // what it links with is another
		t.Fatal(err)
	}
	asked(2, "gcc eleven")
	asked(0, "gcc eleven")
	fake("go", "echo asked >> "+dir+"/log; exit 1") // may work next time, for whatever reason
	asked(3, "gcc eleven")
	asked(3, "gcc eleven")
	os.Remove(dir + "/go")
	asked(0, "gcc eleven") // as it was before
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked(2, "gcc eleven")
}

func TestLanguages(t *testing.T) {
	b := newBench(t)
	t.Run("c", func(t *testing.T) {
		b.t = t
		got := b.run(b.request(C, []string{"-DWORD=\"two words\"", "-lm"},
			"main.c", "#include <mvm.h>\n#include <math.h>\n#include <stdio.h>\n#include \"sub/part.h\"\nint main(int n,char**a){printf(\"%s %s %.0f %d %s\\n\",WORD,a[1],sqrt(n*8),part(),mvm_strerror(MVM_END)[0]?\"mvm\":\"\");}",
			"sub/part.c", "int part(void){return 42;}", "sub/part.h", "int part(void);"), "a b")
		if got != "two words a b 4 42 mvm\n" {
			t.Errorf("it prints %q", got)
		}
	})
	t.Run("cpp", func(t *testing.T) {
		b.t = t
		got := b.run(b.request(CPP, []string{"-std=c++17"}, "main.cpp", "#include <mvm.h>\n#include <iostream>\n#include <vector>\nint main(){std::vector<int> v{1,2};std::cout<<v.size()<<(mvm_open(\"x\")==nullptr)<<mvm_error()[0]<<std::endl;}"))
		if !strings.HasPrefix(got, "21") {
			t.Errorf("it prints %q", got)
		}
	})
	t.Run("go", func(t *testing.T) {
		b.t = t
		got := b.run(b.request(Go, []string{"-ldflags=-X main.word=set"},
			"main.go", "package main\nimport (\"fmt\"; \"job/inner\"; \"mvm/queuevm/client\")\nvar word string\nfunc main(){_, err := client.Open(\"x\"); fmt.Println(word, inner.N, err != nil)}",
			"inner/inner.go", "package inner\nconst N = 7"))
		if got != "set 7 true\n" {
			t.Errorf("it prints %q", got)
		}
	})
	t.Run("python", func(t *testing.T) {
		b.t = t
		r := b.request(Python, []string{"-O"}, "main.py", "import sys, part, mvm\nprint(part.n, sys.argv[1:], __debug__)", "part.py", "n = 5", "data.txt", "no code")
		if got := b.run(r, "x y"); got != "5 ['x y'] False\n" {
			t.Errorf("it prints %q", got)
		}
	})
	t.Run("shell", func(t *testing.T) {
		b.t = t
		if got := b.run(b.request(Shell, []string{"-e"}, "main.sh", "echo $1; . \"$(dirname \"$0\")/part.sh\"; false; echo not here", "part.sh", "echo part; exit 0"), "it's"); got != "it's\npart\n" {
			t.Errorf("it prints %q", got)
		}
	})
}

func TestSourcesThatDoNotBuild(t *testing.T) {
	b := newBench(t)
	for _, c := range []struct {
		language, name, text, says string
	}{
		{C, "main.c", "int main(void) { return nothing; }", "main.c:1"},
		{C, "main.c", "int part(void); int main(void) { return part(); }", "undefined reference"},
		{C, "main.h", "", ""},
		{CPP, "main.cpp", "int main() { return std::x; }", "main.cpp:1"},
		{Go, "main.go", "package main\nfunc main() { nothing() }", "main.go:2"},
		{Go, "main.go", "package main\nimport _ \"github.com/no/such\"\nfunc main() {}", "github.com/no/such"},
		{Go, "main.go", "package main\nimport _ \"mvm/node\"\nfunc main() {}", "mvm/node"},
		{Python, "main.py", "def broken(:\n  pass\n", "SyntaxError"},
		{Python, "main.txt", "print()", ""},
		{Shell, "main.sh", "if true; then echo", "yntax error"},
	} {
		t.Run(c.language, func(t *testing.T) {
			b.t = t
			r := b.request(c.language, nil, c.name, c.text)
			_, err := Build(t.Context(), nil, r)
			var f *Failure
			if !errors.As(err, &f) || !strings.Contains(f.Output, c.says) || !strings.Contains(f.Message, "source test") {
				t.Fatalf("%v: %+v", err, f)
			}
			if strings.Contains(f.Output, ".tmp/source") {
				t.Errorf("it shows folders of ours:\n%s", f.Output)
			}
			if _, err := os.Stat(r.Out); err == nil {
				t.Error("the artifact folder is left")
			}
		})
	}
}

func TestOutputIsCapped(t *testing.T) {
	b := newBench(t)
	r := b.request(C, []string{"-fmax-errors=0"}, "main.c", "int main(void) {\n"+strings.Repeat("nothing_at_all();x\n", 5000)+"}")
	_, err := Build(t.Context(), nil, r)
	var f *Failure
	if !errors.As(err, &f) || len(f.Output) > DefaultOutputMax+100 || !strings.Contains(f.Output, "bytes left out]") || !strings.Contains(f.Output, "main.c:2:") {
		t.Fatalf("%v, %d bytes", err, len(f.Output))
	}
}

// TestLimit ends a compiler that takes too long, with all that it started.
func TestLimit(t *testing.T) {
	b := newBench(t)
	r := b.request(Shell, nil, "main.sh", "echo")
	marker := fmt.Sprintf("1000.%d", time.Now().UnixNano())
	slow := filepath.Join(t.TempDir(), "sh")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\necho working\nsleep "+marker+" & sleep "+marker+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.Compiler.Command, r.Limit = slow, 300*time.Millisecond
	began := time.Now()
	_, err := Build(t.Context(), nil, r)
	var f *Failure
	if !errors.As(err, &f) || !strings.Contains(f.Message, "300ms") || !strings.Contains(f.Output, "working") {
		t.Fatalf("%v, %+v", err, f)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		left := 0
		names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range names {
			if text, _ := os.ReadFile(name); bytes.Contains(text, []byte(marker)) {
				left++
			}
		}
		if left == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%d processes are left", left)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.Out += "2"
	if _, err := Build(ctx, nil, r); !errors.Is(err, context.Canceled) || errors.As(err, &f) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestKey(t *testing.T) {
	b := newBench(t)
	base := b.request(C, []string{"-O1", "-g"}, "main.c", "int main(void){}", "a.h", "", "b.h", "1")
	var keys Keys
	key := func(change func(*Request)) string {
		t.Helper()
		r := base
		r.Flags = append([]string(nil), base.Flags...)
		r.Files = append([]File(nil), base.Files...)
		if change != nil {
			change(&r)
		}
		k, err := Key(r)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if again, err := keys.Key(r); err != nil || again != k {
				t.Errorf("of many builds it is %s (%v), alone %s", again, err, k)
			}
		}
		return k
	}
	want := key(nil)
	if !strings.HasPrefix(want, "sha256:") || len(want) != 71 {
		t.Fatal(want)
	}
	for name, change := range map[string]func(*Request){
		"nothing":      nil,
		"other places": func(r *Request) { r.Dir, r.Out, r.Cache, r.Source, r.Limit = "x", "y", "z", "w", 1 },
		"order":        func(r *Request) { r.Files[1], r.Files[2] = r.Files[2], r.Files[1] },
		"same clients elsewhere": func(r *Request) {
			other := t.TempDir()
			if err := copyTree(b.clients, other, func(string) bool { return true }); err != nil {
				t.Fatal(err)
			}
			r.Clients = other
		},
		"what Python leaves": func(r *Request) {
			other := t.TempDir()
			err := copyTree(b.clients, other, func(string) bool { return true })
			if err == nil {
				err = os.Mkdir(filepath.Join(other, "c/__pycache__"), 0o755)
			}
			if err == nil {
				err = os.WriteFile(filepath.Join(other, "c/__pycache__/x.pyc"), nil, 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
			r.Clients = other
		},
	} {
		if got := key(change); got != want {
			t.Errorf("%s changes the key", name)
		}
	}
	seen := map[string]string{want: "the same"}
	for name, change := range map[string]func(*Request){
		"language":   func(r *Request) { r.Language = CPP },
		"flag order": func(r *Request) { r.Flags[0], r.Flags[1] = r.Flags[1], r.Flags[0] },
		"flag joint": func(r *Request) { r.Flags = []string{"-O1-g"} },
		"flag less":  func(r *Request) { r.Flags = r.Flags[:1] },
		"content":    func(r *Request) { r.Files[2].Digest = r.Files[1].Digest },
		"name":       func(r *Request) { r.Files[1].Name = "c.h" },
		"first":      func(r *Request) { r.Files[0], r.Files[1] = r.Files[1], r.Files[0] },
		"version":    func(r *Request) { r.Compiler.Version += "+" },
		"compiler":   func(r *Request) { r.Compiler.Command += "2" },
		"library": func(r *Request) {
			other := t.TempDir()
			if err := copyTree(b.clients, other, func(name string) bool { return name != "c/mvm.h" }); err != nil {
				t.Fatal(err)
			}
			r.Clients = other
		},
	} {
		got := key(change)
		if other, ok := seen[got]; ok {
			t.Errorf("%s gives the key of %s", name, other)
		}
		seen[got] = name
	}
	base.Files[0].Digest = ""
	if _, err := Key(base); err == nil {
		t.Error("a file without a digest has a key")
	}
}

func TestCheck(t *testing.T) {
	for _, name := range []string{"", ".", "..", "/etc/passwd", "../x.c", "a/../../x.c", "a//b", "a/", "./a", "-o", "a/-x.c", "@list", "a\nb", "a\x00b",
		"x;rm", "$(x)", "`x`", "a\"b", ".hidden", "~root", "a\\b", strings.Repeat("a", 256), "\xff", "a|b", "a*"} {
		if CheckName(name) == nil {
			t.Errorf("the name %q passes", name)
		}
	}
	for _, name := range []string{"main.c", "a/b/c.h", "two words.py", "x-y_z.1.c++", "äöü.py", "a@b.c"} {
		if err := CheckName(name); err != nil {
			t.Error(err)
		}
	}
	one := []File{{Name: "main"}}
	for language, flags := range map[string]string{
		C:      "|a\nb|-o|-ofile|-fplugin=x|-specs=x|--specs=x|-B/tmp|@file|-E|-S|-c|-wrapper|-MD|-MF|-xc++|-save-temps|-T|-Tx.ld|-shared",
		CPP:    "-o|-c|-x",
		Go:     "-o|-o=x|--o=x|-C|-toolexec=x|--toolexec=x|-overlay=x|-modfile=x|-exec=x|-buildmode=plugin|-race|-ldflags=-extld=x|-ldflags=-linkmode=external|x.go|./...",
		Python: "-c|-cprint()|-m|-mpip|-|--|x.py|--version",
		Shell:  "-c|-s|-i|-|--|x|-ec|-o",
	} {
		for _, flag := range strings.Split(flags, "|") {
			if Check(language, []string{flag}, one) == nil {
				t.Errorf("%s: the flag %q passes", language, flag)
			}
		}
	}
	for language, flags := range map[string]string{
		C:      "-O3|-march=native|-lm|-Wall|-std=c11|-I/usr/include/x|-DX=\"a b\"|-fopenmp|-pthread|-g|-Wl,--as-needed|-lfftw3",
		CPP:    "-std=c++20",
		Go:     "-tags=x|-ldflags=-s -w|-trimpath|-gcflags=-l|-v",
		Python: "-O|-OO|-u|-Wignore|-Xutf8",
		Shell:  "-e|-eu|-x",
	} {
		for _, flag := range strings.Split(flags, "|") {
			err := Check(language, []string{flag}, one)
			if err != nil {
				t.Error(err)
			}
		}
	}
	err := Check("cobol", []string{""}, []File{{Name: "a"}, {Name: "a"}, {Name: "-b"}})
	if err == nil || strings.Count(err.Error(), "\n") != 3 {
		t.Errorf("not all problems are named: %v", err)
	}
}

func FuzzCheckName(f *testing.F) {
	f.Add("main.c")
	f.Add("../x")
	f.Fuzz(func(t *testing.T, name string) {
		if CheckName(name) == nil && (!filepath.IsLocal(name) || filepath.Clean(name) != name || name[0] == '-' || strconv.Quote(name)[1:len(name)+1] != name && !strings.ContainsFunc(name, func(r rune) bool { return r > 0x7e })) {
			t.Errorf("%q passes", name)
		}
	})
}

func TestSharedLibrary(t *testing.T) {
	b := newBench(t)
	if _, ok := For(C, b.compilers); !ok {
		t.Skip("SKIPPED: no C compiler; install gcc and libc6-dev")
	}
	path, err := SharedLibrary(t.Context(), b.clients, b.cache, b.compilers)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	// The second time it is there; without a compiler it cannot be made.
	again, err := SharedLibrary(t.Context(), b.clients, b.cache, b.compilers)
	if now, _ := os.Stat(path); err != nil || again != path || !now.ModTime().Equal(info.ModTime()) {
		t.Errorf("%s, %v", again, err)
	}
	if left, _ := filepath.Glob(b.cache + "/*"); len(left) != 1 {
		t.Errorf("in the cache: %v", left)
	}
	if _, err := SharedLibrary(t.Context(), b.clients, b.cache, nil); err == nil || !strings.Contains(err.Error(), "install gcc") {
		t.Errorf("without a compiler: %v", err)
	}
	// The one that came along is used as it is.
	lib := filepath.Join(b.clients, "c", "lib")
	if err := errors.Join(os.MkdirAll(lib, 0o755), os.WriteFile(lib+"/libmvm.so", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, err := SharedLibrary(t.Context(), b.clients, b.cache, nil); got != lib+"/libmvm.so" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}
