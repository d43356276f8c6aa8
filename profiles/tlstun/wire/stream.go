package wire

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/yamux"

	"sshbroker/profiles"
)

// Stream is one flow after the Answer, at either end. While nothing flows it has no
// buffer and no goroutine, but for one between the far end's end and ours. Safe for
// concurrent use.
//
// Closed is known to a Stream that is being read, or was read to its end; whoever only
// writes does not hear of it. The pool's way of carrying (profiles.Carrier) is right for
// it as it is.
type Stream struct {
	ys            *yamux.Stream
	session       *Session
	local, remote net.Addr

	read  reader
	write writer

	sent, received atomic.Uint64

	mu         sync.Mutex
	shut       bool // we closed or reset it
	readUntil  time.Time
	writeUntil time.Time
	ourEnd     bool   // our direction has ended
	farEnd     bool   // the far end's has, in order
	farGone    error  // why the far end takes no more
	words      string // the far end's, where policy has ended the flow

	over     chan struct{} // Closed
	overOnce sync.Once
	woken    chan struct{} // has room for one; whoever waits to write looks again
}

var (
	_ profiles.Stream    = (*Stream)(nil)
	_ profiles.FarCloser = (*Stream)(nil)
	_ profiles.Counter   = (*Stream)(nil)
	_ io.ReaderFrom      = (*Stream)(nil)
	_ io.WriterTo        = (*Stream)(nil)
)

// Between sets what LocalAddr and RemoteAddr say, before anything else is done with s.
func (s *Stream) Between(local, remote net.Addr) *Stream {
	s.local, s.remote = local, remote
	return s
}

// LocalAddr is net.Conn's.
func (s *Stream) LocalAddr() net.Addr { return s.local }

// RemoteAddr is net.Conn's.
func (s *Stream) RemoteAddr() net.Addr { return s.remote }

// Counts is profiles.Counter's.
func (s *Stream) Counts() (sent, received uint64) { return s.sent.Load(), s.received.Load() }

// Closed is profiles.FarCloser's.
func (s *Stream) Closed() <-chan struct{} { return s.over }

// Ended gives the far end's words where policy has ended the flow there, else "". Read
// has come to them when it fails with ErrReset. They are the far end's: make them fit
// for a terminal before they are shown.
func (s *Stream) Ended() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.words
}

// longAgo as a deadline wakes whoever waits in yamux.
var longAgo = time.Unix(1, 0)

// SetReadDeadline is net.Conn's.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return s.fault("set", net.ErrClosed)
	}
	s.readUntil = t
	s.read.armed = false
	s.wakeReadAt(t)
	return nil
}

// SetWriteDeadline is net.Conn's.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shut {
		return s.fault("set", net.ErrClosed)
	}
	s.writeUntil = t
	if s.farGone == nil {
		s.wakeWriteAt(t)
	}
	s.wakeWriter()
	return nil
}

// SetDeadline is net.Conn's.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// wakeReadAt has a wait for data end at a time, and with the session in any case.
func (s *Stream) wakeReadAt(t time.Time) {
	s.ys.SetReadDeadline(t)
	if s.session.Err() != nil {
		s.ys.SetReadDeadline(longAgo)
	}
}

// wakeWriteAt is wakeReadAt for a wait for room.
func (s *Stream) wakeWriteAt(t time.Time) {
	s.ys.SetWriteDeadline(t)
	if s.session.Err() != nil {
		s.ys.SetWriteDeadline(longAgo)
	}
}

func (s *Stream) wakeWriter() {
	select {
	case s.woken <- struct{}{}:
	default:
	}
}

// fault dresses an error as the net package does. io.EOF stays as it is.
func (s *Stream) fault(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "tls", Source: s.local, Addr: s.remote, Err: err}
}

// barred is why a call may not go on, by s.shut and its deadline.
func (s *Stream) barred(until *time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.shut:
		return net.ErrClosed
	case !until.IsZero() && !until.After(time.Now()):
		return os.ErrDeadlineExceeded
	}
	return nil
}

// meaning is what an error of yamux says of the stream: ErrLost, ErrReset, or nil where
// it only says that a deadline has passed, which may have been moved since.
func (s *Stream) meaning(err error) error {
	var timeout net.Error
	switch {
	case errors.Is(err, profiles.ErrReset):
		return err
	case s.session.Err() != nil:
		return s.session.Err()
	case errors.As(err, &timeout) && timeout.Timeout():
		return nil
	}
	return profiles.ErrReset
}

// gone notes why the far end takes no more data, wakes our writer and closes Closed.
func (s *Stream) gone(why error) {
	s.mu.Lock()
	if s.farGone == nil {
		s.farGone = why
		if !s.shut {
			s.ys.SetWriteDeadline(longAgo)
		}
	}
	s.mu.Unlock()
	s.wakeWriter()
	s.closeOver()
}

func (s *Stream) closeOver() { s.overOnce.Do(func() { close(s.over) }) }

// Close ends the stream in order: what was written is sent, then our end. It waits for
// neither. Where it interrupts a Write the stream is reset.
func (s *Stream) Close() error {
	s.end(s.sayEnd)
	return nil
}

// Reset ends the stream without an orderly end. It does not wait.
func (s *Stream) Reset() error {
	s.end(func() { s.sayReset("") })
	return nil
}

// EndFor resets the stream and tells the far end why, in a few words for its record and
// its users. It does not wait. A far end that has stopped reading hears only the reset.
func (s *Stream) EndFor(reason string) { s.end(func() { s.sayReset(reason) }) }

// end releases local readers and writers, and has the rest done by goroutines that live
// until the far end has given the stream up too.
func (s *Stream) end(last func()) {
	s.mu.Lock()
	first := !s.shut
	s.shut = true
	if first {
		s.ys.SetDeadline(longAgo)
	}
	s.mu.Unlock()
	if !first {
		return
	}
	s.wakeWriter()
	go func() {
		if s.read.leave() {
			go s.drain()
		}
		s.write.mu.Lock()
		defer s.write.mu.Unlock()
		last()
		s.ys.Close()
		s.closeOver()
	}()
}

// errPipe is what a write gets after CloseWrite.
var errPipe error = syscall.EPIPE
