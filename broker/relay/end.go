package relay

import (
	"errors"
	"strconv"
	"syscall"
)

// End is how one direction of a flow ended.
type End uint8

const (
	Unfinished     End = iota // never in the Result of Pipe
	EOF                       // orderly, passed on
	ResetByProgram            // the program reset its connection
	ResetByFar                // the far end reset, was lost, or takes no more data
	Cancelled                 // ctx ended
	Failed                    // the program's socket failed in another way
)

// String returns the word used in records.
func (e End) String() string {
	switch e {
	case Unfinished:
		return "unfinished"
	case EOF:
		return "eof"
	case ResetByProgram:
		return "reset-by-program"
	case ResetByFar:
		return "reset-by-far"
	case Cancelled:
		return "cancelled"
	case Failed:
		return "failed"
	}
	return "end(" + strconv.Itoa(int(e)) + ")"
}

// errFarClosed stands for the write that was not tried because the far end had said
// that it takes no more.
var errFarClosed = errors.New("the far end takes no more data")

// programEnd classifies an error of the program's socket.
func programEnd(err error) End {
	switch {
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ENOTCONN):
		return ResetByProgram
	}
	return Failed
}
