package mvm

import (
	"context"
	"errors"

	"mvm/node/build"
	"mvm/queuevm"
)

// toError makes of any error what crosses the control socket.
func toError(err error) *Error {
	var told *Error
	var failure *build.Failure
	switch {
	case errors.As(err, &told):
		return told
	case errors.As(err, &failure):
		return &Error{Code: "buildFailed", Message: failure.Message, Output: failure.Output}
	case errors.Is(err, queuevm.ErrUnknown):
		return &Error{Code: "notFound", Message: err.Error()}
	case errors.Is(err, queuevm.ErrTooBig):
		return &Error{Code: "tooLarge", Message: err.Error()}
	case errors.Is(err, queuevm.ErrClosed), errors.Is(err, queuevm.ErrMoved):
		return &Error{Code: "conflict", Message: err.Error()}
	case errors.Is(err, queuevm.ErrLost), errors.Is(err, queuevm.ErrDown), errors.Is(err, context.Canceled):
		return &Error{Code: "unavailable", Message: err.Error()}
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{Code: "timeout", Message: err.Error()}
	}
	return &Error{Code: "internal", Message: err.Error()}
}
