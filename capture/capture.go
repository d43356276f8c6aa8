package capture

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

// Flow is one TCP connection that a program asked for.
type Flow struct {
	Src     netip.AddrPort // as the program's socket is bound, before any translation
	Dst     netip.AddrPort // where the program meant to go
	UID     uint32         // owner of the socket, in terms of the initial user namespace
	Arrived time.Time      // when its SYN was seen

	// Local says that Dst is an address of the capture itself: loopback, or an
	// address of the namespace's own device.
	Local bool

	// Origin finds the process behind the flow. It may search /proc and take
	// milliseconds, so it is called only when a rule or the record needs it.
	// Safe for concurrent use; the answer of the first call is kept.
	Origin func() Origin
}

// Origin is the process behind a flow. Known is false when the process could not
// be found, or was gone already; the other fields are then zero.
type Origin struct {
	Known bool
	PID   int
	Exe   string // path of the executable, as /proc/PID/exe names it

	// Err says that looking was not possible, for want of a descriptor say: a rule
	// about programs must then not be passed over as if it did not match.
	Err error
}

// Refusal is how a refused connect() is to fail.
type Refusal uint8

// The zero Refusal refuses, like every other.
const (
	Unreachable Refusal = iota // EHOSTUNREACH
	Refused                    // ECONNREFUSED
	Silent                     // no answer at all: the program runs into its own time limit
)

var (
	// ErrNoWayOut is what Pass returns where the kernel cannot carry the flow by
	// itself. The attempt is then still undecided: Admit or Refuse it.
	ErrNoWayOut = errors.New("the capture has no way out of its own")
	// ErrAbandoned is what Admit returns when the program gave up while its SYN was held.
	ErrAbandoned = errors.New("the program gave up connecting")
	// ErrNoDescriptors is what Admit returns where this process has no descriptor for
	// the connection. The attempt is then still undecided: Refuse it.
	ErrNoDescriptors = errors.New("no descriptor for the connection")
	// ErrClosed is what Source.Next returns once the source is closed.
	ErrClosed = errors.New("capture closed")
)

// Attempt is a flow whose handshake has not finished. Exactly one of Admit,
// Refuse and a successful Pass ends it.
type Attempt interface {
	Flow() Flow

	// Admit lets the handshake finish and returns the connection, which the caller
	// closes. It returns ErrAbandoned when the program does not take it in time, and
	// ErrNoDescriptors, with the attempt undecided, when we cannot.
	Admit(ctx context.Context) (*Conn, error)

	// Refuse makes connect() fail as r says. It does not block.
	Refuse(r Refusal)

	// Pass lets the kernel carry the flow by itself, or returns ErrNoWayOut.
	Pass() error
}

// Waiter is an Attempt that can tell whether its program still waits: nobody is told
// when one gives up while its SYN is held.
type Waiter interface{ Waits() bool }

// Source hands over attempts, from one goroutine at a time.
type Source interface {
	// Next waits for an attempt. After ctx ends it returns ctx's error; once the
	// source is closed, ErrClosed. Any other error is temporary: back off and go on.
	Next(ctx context.Context) (Attempt, error)
}

// Conn is an admitted connection. It embeds the concrete type so that the
// kernel's splice path and half-close survive every wrapper.
//
// It is set to be reset by the kernel should this process die (SO_LINGER with no
// time), as the program must not take that for the end of the data. Close takes that
// back; the Close of the embedded type does not.
type Conn struct {
	*net.TCPConn
}

// Close ends both directions in order.
func (c *Conn) Close() error {
	_ = c.SetLinger(-1) // fails only when it is closed already
	return c.TCPConn.Close()
}
