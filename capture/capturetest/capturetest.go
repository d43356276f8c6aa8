package capturetest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"sshbroker/capture"
	"sshbroker/capture/service"
)

// Source implements capture.Source. Its zero value is not usable; see NewSource.
type Source struct {
	attempts chan capture.Attempt
	closed   chan struct{}
	once     sync.Once
}

// NewSource returns an empty source.
func NewSource() *Source {
	return &Source{attempts: make(chan capture.Attempt), closed: make(chan struct{})}
}

// Next implements capture.Source.
func (s *Source) Next(ctx context.Context) (capture.Attempt, error) {
	select {
	case a := <-s.attempts:
		return a, nil
	case <-s.closed:
		return nil, capture.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Close ends the source.
func (s *Source) Close() { s.once.Do(func() { close(s.closed) }) }

// Offer hands an attempt to whoever calls Next and returns it.
func (s *Source) Offer(a *Attempt) *Attempt {
	s.attempts <- a
	return a
}

// Outcome is what became of an attempt.
type Outcome struct {
	Admitted bool
	Passed   bool
	Handed   bool            // its owner's own broker has it
	Refusal  capture.Refusal // where none of these
	Text     string          // of the refusal of an attempt with an Order
}

// Attempt implements capture.Attempt.
type Attempt struct {
	At        capture.Flow
	CanPass   bool // the kernel has a way of its own
	Abandoned bool // the program is gone when it is admitted
	Gone      bool // the program gave up as soon as it had begun
	Exhausted bool // there is no descriptor for it

	Order []byte // a system broker's, as a carrier is given it

	// Carrier is the owner's own broker; nil: there is none.
	Carrier func(order []byte) (service.Handed, error)

	outcome chan Outcome
	program chan *net.TCPConn
}

// NewAttempt returns an attempt to connect to dst.
func NewAttempt(dst string) *Attempt {
	return &Attempt{
		At: capture.Flow{
			Src: netip.MustParseAddrPort("192.0.2.1:40000"), Dst: netip.MustParseAddrPort(dst), UID: 1000,
			Arrived: time.Now(), Origin: func() capture.Origin { return capture.Origin{} },
		},
		outcome: make(chan Outcome, 2), program: make(chan *net.TCPConn, 1),
	}
}

// Outcome waits until the attempt is decided.
func (a *Attempt) Outcome() Outcome { return <-a.outcome }

// Program waits until the attempt is admitted and returns the program's connection,
// which the caller closes.
func (a *Attempt) Program() *net.TCPConn { return <-a.program }

// Waits implements capture.Waiter.
func (a *Attempt) Waits() bool { return !a.Gone }

// Flow implements capture.Attempt.
func (a *Attempt) Flow() capture.Flow { return a.At }

// Admit implements capture.Attempt.
func (a *Attempt) Admit(context.Context) (*capture.Conn, error) {
	if a.Exhausted {
		return nil, fmt.Errorf("%w: %w", capture.ErrNoDescriptors, syscall.EMFILE)
	}
	if a.Abandoned {
		a.outcome <- Outcome{}
		return nil, capture.ErrAbandoned
	}
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	program, err := net.DialTCP("tcp4", nil, l.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, err
	}
	ours, err := l.AcceptTCP()
	if err != nil {
		program.Close()
		return nil, err
	}
	a.outcome <- Outcome{Admitted: true}
	a.program <- program
	return &capture.Conn{TCPConn: ours}, nil
}

// Hand has Carrier decide, as the client of ssh-captured does.
func (a *Attempt) Hand(ctx context.Context, order []byte) (service.Handed, error) {
	if a.Carrier == nil {
		return service.Handed{}, &service.Error{Code: service.CodeNoCarrier, Message: "no broker of that user carries"}
	}
	h, err := a.Carrier(order)
	if err == nil && (h.Outcome == service.HandAdmitted || h.Outcome == service.HandLost) {
		a.outcome <- Outcome{Handed: true}
	}
	return h, err
}

// Payload is Order.
func (a *Attempt) Payload() []byte { return a.Order }

// RefuseBecause is Refuse with a text.
func (a *Attempt) RefuseBecause(r capture.Refusal, text string) {
	a.outcome <- Outcome{Refusal: r, Text: text}
}

// Refuse implements capture.Attempt.
func (a *Attempt) Refuse(r capture.Refusal) { a.outcome <- Outcome{Refusal: r} }

// Pass implements capture.Attempt.
func (a *Attempt) Pass() error {
	if !a.CanPass {
		return capture.ErrNoWayOut
	}
	a.outcome <- Outcome{Passed: true}
	return nil
}
