package profile

import (
	"errors"
	"fmt"
	"io"

	"mvm/wsdl"
)

// maxDocument bounds a profile document in bytes.
const maxDocument = 64 << 20

// Positions says on which line of a document each element and attribute
// stands, by its path as in wsdl.Problem.
type Positions wsdl.Lines

// Parse reads a job profile document strictly by the schema. name is the
// document's name for people, its file name for example. The error is a
// *wsdl.Fault with code invalidProfile that lists every problem with its line.
// What the schema cannot say is checked by Compile.
func Parse(r io.Reader, name string) (*wsdl.Job, Positions, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxDocument+1))
	if err != nil {
		return nil, nil, wsdl.NewFault(wsdl.FaultCodeInvalidProfile, fmt.Sprintf("%s cannot be read: %v", name, err), "")
	}
	if len(data) > maxDocument {
		return nil, nil, wsdl.NewFault(wsdl.FaultCodeTooLarge, fmt.Sprintf("%s is longer than %d MiB", name, maxDocument>>20), "give big files by path, so that they are uploaded beside the profile")
	}
	job := &wsdl.Job{}
	lines, problems := wsdl.Decode(data, "job", job)
	if len(problems) > 0 {
		return nil, Positions(lines), refusal(name, problems)
	}
	return job, Positions(lines), nil
}

func refusal(name string, problems []*wsdl.Problem) error {
	fault := wsdl.NewFault(wsdl.FaultCodeInvalidProfile, name+" is refused", "mend what is listed; the schema is served by every node as profile.xsd")
	fault.Problem = problems
	return fault
}

// Locate adds the lines to the problems of a *wsdl.Fault that Compile or Blobs
// returned, or a broker answered with, for the document that was parsed.
func (p Positions) Locate(err error) error {
	var fault *wsdl.Fault
	if !errors.As(err, &fault) {
		return err
	}
	for _, problem := range fault.Problem {
		if problem == nil || problem.Line > 0 || problem.Element == "" {
			continue
		}
		if line := wsdl.Lines(p).Of(problem.Element); line > 0 {
			problem.Line = int32(line)
			problem.Message = fmt.Sprintf("line %d: %s", line, problem.Message)
		}
	}
	return err
}
