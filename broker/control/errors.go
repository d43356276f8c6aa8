package control

import (
	"errors"
	"strings"
)

var (
	// ErrNoBroker says that no broker listens at the address.
	ErrNoBroker = errors.New("no broker is running")
	// ErrRunning says that a broker holds the address already.
	ErrRunning = errors.New("a broker is running already")
	// ErrBrokerGone says that the broker went away during a call.
	ErrBrokerGone = errors.New("the broker went away")
	// ErrClientGone says that the client went away during a call. It is the cause
	// of a call's context then.
	ErrClientGone = errors.New("the client went away")
	// ErrNoPrompt says that the client has nobody to ask.
	ErrNoPrompt = errors.New("nobody can be asked")
	// ErrTooLarge says that a message is larger than MaxMessage, or carries more
	// descriptors than MaxFiles.
	ErrTooLarge = errors.New("message too large")
)

// Code is the class of an error that a broker answers with.
type Code string

const (
	CodeFailed     Code = "failed"       // the operation was tried
	CodeUnknownOp  Code = "unknown-op"   // this broker does not have the operation
	CodeBadRequest Code = "bad-request"  // arguments or protocol
	CodeVersion    Code = "version"      // the two speak different protocols
	CodeForbidden  Code = "forbidden"    // not for this user
	CodeBusy       Code = "busy"         // too many clients
	CodeStopping   Code = "stopping"     // the broker is about to end
	CodeConfig     Code = "config-error" // the configuration cannot be used
	CodeRefused    Code = "refused"      // a connection was, by a rule or by the far side
)

// Error is an answer that says no. A handler returns one to choose code and hint;
// any other error travels as CodeFailed.
type Error struct {
	Message string // may have several lines
	Code    Code
	Hint    string // what to do about it; "" where there is nothing to say
}

func (e *Error) Error() string { return e.Message }

// asError is err in the form that travels, cut to a size that fits a message.
func asError(err error) *Error {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Message: err.Error(), Code: CodeFailed}
	} else if whole := err.Error(); whole != e.Message {
		e = &Error{Message: whole, Code: e.Code, Hint: e.Hint} // keep what was wrapped around it
	}
	out := Error{Message: cut(e.Message, MaxMessage/4), Code: e.Code, Hint: cut(e.Hint, 1024)}
	if out.Message == "" {
		out.Message = "failed without a reason"
	}
	if out.Code == "" {
		out.Code = CodeFailed
	}
	return &out
}

// cut shortens s to at most limit bytes of valid text, at the end of a line if it
// has several. JSON may escape a byte to six, which MaxMessage/4 does not cover
// for control characters only; those are replaced.
func cut(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) <= limit {
		return s
	}
	s = strings.ToValidUTF8(s[:limit], "")
	if i := strings.LastIndexByte(s, '\n'); i > 0 {
		s = s[:i]
	}
	return s + "\n..."
}
