package wsdl

import (
	"errors"
	"fmt"
)

// Fault is the one error that crosses the grid: a code for machines, a
// sentence that says what happened to which thing, and what to do.
type Fault = GridFault

func (f *GridFault) Error() string {
	s := f.Message
	if len(f.Problem) == 1 && f.Problem[0].Message != "" && f.Problem[0].Message != f.Message {
		s += ": " + f.Problem[0].Message
	} else if len(f.Problem) > 1 {
		s += fmt.Sprintf(" (%d problems)", len(f.Problem))
		for _, p := range f.Problem {
			s += "\n  " + p.Message
		}
	}
	if f.Advice != "" {
		s += "; " + f.Advice
	}
	return s
}

// NewFault makes a Fault. message says what happened, to which thing; advice
// says what to do and may be empty.
func NewFault(code FaultCode, message, advice string) *Fault {
	return &Fault{Code: &code, Message: message, Advice: advice}
}

// Faultf makes a Fault with a formatted message and no advice.
func Faultf(code FaultCode, format string, args ...any) *Fault {
	return NewFault(code, fmt.Sprintf(format, args...), "")
}

// CodeOf returns the code of the Fault in err's chain: FaultCodeInternal when
// there is an error without one, and "" when there is no error.
func CodeOf(err error) FaultCode {
	if err == nil {
		return ""
	}
	var f *Fault
	if errors.As(err, &f) && f.Code != nil {
		return *f.Code
	}
	return FaultCodeInternal
}
