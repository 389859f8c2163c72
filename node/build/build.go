// Package build turns the shipped source of a job into something to run: it
// finds the compilers of this machine, names a build by the digest of all that
// goes into it, compiles into an artifact folder, and says how to run that.
//
// What always holds: nothing goes through a shell; a build writes below its own
// folders only and ends with everything that it started; equal keys mean that
// the artifacts can stand for each other.
//
// It must never keep a finished artifact where a job could still write it: the
// caller moves the folder into its cache.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Languages that a source may be written in, as in the job profile.
const (
	C      = "c"
	CPP    = "cpp"
	Go     = "go"
	Python = "python"
	Shell  = "shell"
)

// Defaults for the zero values of Request.
const (
	DefaultTimeLimit = 5 * time.Minute
	DefaultOutputMax = 64 << 10 // bytes kept of what a compiler printed
)

// Request is one source to build. It travels to the MVM process as JSON.
type Request struct {
	Source   string        // what the profile calls it, for messages
	Language string        // C, CPP, Go, Python or Shell
	Flags    []string      // in order, each one argument
	Files    []File        // at least one; the first is what an interpreter runs
	Dir      string        // folder that holds the files; nothing is written there
	Out      string        // folder to make, the artifact; it must not exist or be empty
	Compiler Compiler      // from Detector.Compilers
	Clients  string        // folder of the client files (c/, client/, python/), read-only
	Cache    string        // folder that lasts between builds: compiled client libraries
	GoCache  string        // Go's build cache, which nodes of one machine may share; "" means Cache/go
	Limit    time.Duration // 0 means DefaultTimeLimit
}

// File is one file of a source: its name relative to Dir, with slashes, and
// its digest ("sha256:" and 64 hex digits).
type File struct{ Name, Digest string }

// Result is a successful build.
type Result struct {
	Output string // what the compiler printed: warnings
	Took   time.Duration
}

// Failure is a source that does not build: the user's to mend. Message names
// the source; Output is what the compiler printed, its middle left out when it
// is long.
type Failure struct {
	Message string
	Output  string
}

func (f *Failure) Error() string { return f.Message }

// Build compiles a source into request.Out, running compilers through runner
// (Alone when nil). It returns a *Failure when the source is at fault, and
// other errors when the machine is. On any error Out is removed.
func Build(ctx context.Context, runner Runner, request Request) (*Result, error) {
	began := time.Now()
	if runner == nil {
		runner = Alone{}
	}
	if err := Check(request.Language, request.Flags, request.Files); err != nil {
		return nil, &Failure{Message: fmt.Sprintf("source %s: %v", request.Source, err)}
	}
	if request.Compiler.Command == "" || request.Compiler.Language != request.Language {
		return nil, fmt.Errorf("source %s: no compiler for %s was given; detect one first", request.Source, request.Language)
	}
	if request.Limit <= 0 {
		request.Limit = DefaultTimeLimit
	}
	ctx, cancel := context.WithTimeout(ctx, request.Limit)
	defer cancel()
	if err := os.MkdirAll(request.Out, 0o755); err != nil {
		return nil, fmt.Errorf("source %s: make the artifact folder: %w", request.Source, err)
	}
	b := &builder{Request: request, runner: runner, temp: filepath.Join(request.Out, ".tmp")}
	err := os.Mkdir(b.temp, 0o755)
	if err == nil {
		switch request.Language {
		case C, CPP:
			err = b.native(ctx)
		case Go:
			err = b.golang(ctx)
		case Python:
			err = b.python(ctx)
		case Shell:
			err = b.shell(ctx)
		}
	}
	if err == nil {
		err = os.RemoveAll(b.temp)
	}
	if err == nil {
		err = b.manifest.write(request.Out)
	}
	if err != nil {
		os.RemoveAll(request.Out)
		return nil, b.explain(ctx, err)
	}
	return &Result{Output: b.said, Took: time.Since(began)}, nil
}

// builder is one build under way.
type builder struct {
	Request
	runner   Runner
	temp     string // scratch, below Out
	said     string // what the compiler printed so far
	manifest manifest
}

// explain makes of an error what the caller of Build is promised.
func (b *builder) explain(ctx context.Context, err error) error {
	var failure *Failure
	switch {
	case errors.As(err, &failure):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return &Failure{
			Message: fmt.Sprintf("source %s: the build took longer than %v and was ended", b.Source, b.Limit),
			Output:  b.said,
		}
	}
	return fmt.Errorf("source %s: %w", b.Source, err)
}

// compile runs one compiler command and keeps what it prints. A non-zero exit
// is a *Failure.
func (b *builder) compile(ctx context.Context, dir string, environment []string, argv ...string) error {
	// In memory: that the disk is full must not keep the compiler from saying it.
	fd, err := unix.MemfdCreate("output", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("keep the compiler's output: %w", err)
	}
	output := os.NewFile(uintptr(fd), "output")
	defer output.Close()
	exit, err := b.runner.Run(ctx, Step{
		Argv:        argv,
		Dir:         dir,
		Environment: append(Environment(b.temp), environment...),
		Output:      output,
	})
	b.said += clip(output, DefaultOutputMax)
	if err != nil {
		return fmt.Errorf("run %s: %w", argv[0], err)
	}
	switch exit {
	case 0:
	case 128 + int(syscall.SIGKILL), 128 + int(syscall.SIGTERM):
		// Nobody's source does this: the attempt was ended, or memory ran out.
		return fmt.Errorf("%s was killed before it was done", filepath.Base(argv[0]))
	default:
		return &Failure{
			Message: fmt.Sprintf("source %s does not build: %s answered with exit status %d", b.Source, filepath.Base(argv[0]), exit),
			Output:  b.said,
		}
	}
	return nil
}

// clip reads what a compiler printed, at most max bytes of it: the first three
// quarters (the first error explains the rest) and the end.
func clip(f *os.File, max int64) string {
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	head, tail := info.Size(), int64(0)
	if head > max {
		head, tail = max/4*3, max/4
	}
	text := read(f, 0, head)
	if tail > 0 {
		text += fmt.Sprintf("\n[%d bytes left out]\n", info.Size()-head-tail) + read(f, info.Size()-tail, tail)
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

func read(f *os.File, offset, length int64) string {
	text, _ := io.ReadAll(io.NewSectionReader(f, offset, length)) // what is readable is shown
	return string(text)
}
