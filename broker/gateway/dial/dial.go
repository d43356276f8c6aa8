package dial

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"
)

const (
	// stagger is how long an address has for itself before the next one is tried
	// beside it (RFC 8305 section 5).
	stagger = 250 * time.Millisecond
	// most bounds how many addresses of one name are tried.
	most = 8
)

// Classes of failure, found with errors.Is.
var (
	ErrRefused       = errors.New("connection refused")
	ErrTimeout       = errors.New("connection timed out")
	ErrUnreachable   = errors.New("backend cannot be reached")
	ErrNoDescriptors = errors.New("no descriptors left")
)

// Error is why no address could be connected to.
type Error struct {
	Class error // one of the classes
	Err   error // of the address that tells most
}

func (e *Error) Error() string   { return e.Err.Error() }
func (e *Error) Unwrap() []error { return []error{e.Class, e.Err} }

// Dialer dials one address; *net.Dialer fits.
type Dialer interface {
	DialTCP(ctx context.Context, network string, local, remote netip.AddrPort) (*net.TCPConn, error)
}

// First connects to one of addrs, in their order, each a while after the one before or
// when that has failed. ctx bounds all of it: its end is ErrTimeout where it was a
// deadline. Its other errors are *Error. The caller closes the connection.
func First(ctx context.Context, d Dialer, addrs []netip.AddrPort) (*net.TCPConn, error) {
	if len(addrs) == 0 {
		return nil, &Error{ErrUnreachable, errors.New("there is no address")}
	}
	addrs = addrs[:min(len(addrs), most)]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn *net.TCPConn
		err  error
	}
	results := make(chan result)
	start := func(addr netip.AddrPort) {
		go func() {
			c, err := d.DialTCP(ctx, "tcp", netip.AddrPort{}, addr)
			select {
			case results <- result{c, err}:
			case <-ctx.Done():
				if err == nil {
					c.Close()
				}
			}
		}()
	}
	next := time.NewTimer(stagger)
	defer next.Stop()
	start(addrs[0])
	started, failed := 1, 0
	var worst error
	for {
		select {
		case r := <-results:
			if r.err == nil {
				return r.conn, nil
			}
			failed++
			worst = telling(worst, r.err)
			if failed == len(addrs) {
				return nil, &Error{classOf(worst), worst}
			}
		case <-next.C:
		case <-ctx.Done():
			if worst == nil || errors.Is(ctx.Err(), context.DeadlineExceeded) {
				worst = ctx.Err()
			}
			return nil, &Error{classOf(worst), worst}
		}
		if started < len(addrs) {
			start(addrs[started])
			started++
			next.Reset(stagger)
		}
	}
}

// telling is the one of two errors that tells more: who was refused has reached
// somebody.
func telling(a, b error) error {
	if a == nil || rank(b) > rank(a) {
		return b
	}
	return a
}

func rank(err error) int {
	switch classOf(err) {
	case ErrNoDescriptors:
		return 3
	case ErrRefused:
		return 2
	case ErrTimeout:
		return 1
	}
	return 0
}

func classOf(err error) error {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ErrRefused
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return ErrNoDescriptors
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return ErrTimeout
	}
	return ErrUnreachable
}
