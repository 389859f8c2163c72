package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"mvm/wsdl"
)

// Exit codes of every verb. `mvm help exit-codes` prints ExitCodes.
const (
	ExitDone        = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitRefused     = 3
	ExitUnreachable = 4
	ExitNotFound    = 5
	ExitCancelled   = 6
	ExitTimeout     = 7
	ExitForbidden   = 8
	ExitOther       = 9
	ExitInterrupted = 130
)

// ExitCodes says what each exit code means, for people.
const ExitCodes = `The exit code of every verb says how it ended:

    0  done; where a job was waited for, it succeeded
    1  the job failed; or plan found no room for it now
    2  wrong usage: an unknown verb or flag, a missing argument
    3  the profile was refused: each problem is printed with its line
    4  the grid cannot be reached, or a part of it is not there now
    5  no such job, process, file or registered profile
    6  the job was cancelled
    7  the time that --timeout gave is over; the job goes on
    8  the grid does not know the caller, or does not allow the call
    9  anything else that went wrong
  130  interrupted by Ctrl-C or SIGTERM
`

// Exit is an error that ends the command with a code of its own. Err may be
// nil when everything has been said already.
type Exit struct {
	Code int
	Err  error
}

func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Exit) Unwrap() error { return e.Err }

// usagef is a fault of whoever typed the command.
func usagef(format string, args ...any) error {
	return &Exit{Code: ExitUsage, Err: fmt.Errorf(format, args...)}
}

// Usage makes err one that ends the command with ExitUsage.
func Usage(err error) error { return &Exit{Code: ExitUsage, Err: err} }

// ExitCode is the code with which a command that returned err ends.
func ExitCode(err error) int {
	var exit *Exit
	switch {
	case err == nil:
		return ExitDone
	case errors.As(err, &exit):
		return exit.Code
	case errors.Is(err, context.Canceled):
		return ExitInterrupted
	case errors.Is(err, context.DeadlineExceeded): // no --timeout, which ends with its own code
		return ExitUnreachable
	}
	switch wsdl.CodeOf(err) {
	case wsdl.FaultCodeInvalidProfile, wsdl.FaultCodeUnsupported, wsdl.FaultCodeBuildFailed:
		return ExitRefused
	case wsdl.FaultCodeUnavailable, wsdl.FaultCodeBusy, wsdl.FaultCodeWrongNode, wsdl.FaultCodeTimeout:
		return ExitUnreachable
	case wsdl.FaultCodeNotFound:
		return ExitNotFound
	case wsdl.FaultCodeUnauthenticated, wsdl.FaultCodeForbidden:
		return ExitForbidden
	}
	return ExitOther
}

// PrintError tells a person what went wrong: the message, each problem with
// its line and element, what a tool printed, and what to do. name is the
// program's.
func PrintError(w io.Writer, name string, err error) {
	var exit *Exit
	if errors.As(err, &exit) && exit.Err == nil {
		return
	}
	if errors.Is(err, context.Canceled) {
		fmt.Fprintf(w, "%s: interrupted\n", name)
		return
	}
	var fault *wsdl.Fault
	if !errors.As(err, &fault) {
		fmt.Fprintf(w, "%s: %s\n", name, printableLines(err.Error()))
		return
	}
	message := fault.Message
	if whole := err.Error(); whole != fault.Error() {
		// What was wrapped around the fault stays before its message.
		message = strings.Replace(whole, fault.Error(), fault.Message, 1)
	}
	fmt.Fprintf(w, "%s: %s\n", name, printableLines(message))
	file := ""
	var at *inFile
	if errors.As(err, &at) {
		file = at.file
	}
	for _, p := range fault.Problem {
		fmt.Fprintf(w, "  %s\n", problemLine(file, p))
	}
	if fault.Output != "" {
		fmt.Fprint(w, indent(printableLines(fault.Output), "  | "))
	}
	if fault.Address != "" {
		fmt.Fprintf(w, "  ask %s instead\n", printable(fault.Address))
	}
	if fault.Advice != "" {
		fmt.Fprintf(w, "  advice: %s\n", printable(fault.Advice))
	}
	if fault.RequestId != "" && ExitCode(err) == ExitOther {
		fmt.Fprintf(w, "  request %s, as in the node's log\n", printable(fault.RequestId))
	}
}

// inFile is an error about a document that lies in a file here.
type inFile struct {
	file string
	err  error
}

func (e *inFile) Error() string { return e.err.Error() }

func (e *inFile) Unwrap() error { return e.err }

// problemLine is file:line: element: message, with what is known of these.
func problemLine(file string, p *wsdl.Problem) string {
	text := p.Message
	if p.Line > 0 {
		text = strings.TrimPrefix(text, fmt.Sprintf("line %d: ", p.Line))
	}
	if p.Element != "" && !strings.Contains(text, p.Element) {
		text = p.Element + ": " + text
	}
	switch {
	case file != "" && p.Line > 0:
		text = fmt.Sprintf("%s:%d: %s", file, p.Line, text)
	case p.Line > 0:
		text = fmt.Sprintf("line %d: %s", p.Line, text)
	}
	return printable(text)
}

func indent(text, with string) string {
	return with + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+with) + "\n"
}
