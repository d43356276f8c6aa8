package sshtun

import (
	"errors"
	"io"
	"net"
	"sync"
)

// smallWrite is what need not wait while much waits to be sent.
const smallWrite = 1 << 10

// Write returns when the library has taken all of p. After a deadline it counts the
// piece under way as written: it will be, before anything written later, unless the
// stream ends.
func (s *stream) Write(p []byte) (int, error) {
	n, err := s.writeAll(p)
	return n, s.fault("write", err)
}

func (s *stream) writeAll(p []byte) (n int, err error) {
	h := &s.write
	if err := s.takeToWrite(); err != nil {
		return 0, err
	}
	defer h.give()
	for len(p) > 0 {
		// The piece is copied, as p is the caller's again when we leave.
		buf := s.t.buffers.get()
		piece := buf[:copy(buf, p)]
		h.busy = true
		go func() {
			err := s.put(piece)
			s.t.buffers.put(buf)
			h.results <- result{err: err}
		}()
		r, err := s.await(h)
		n += len(piece)
		p = p[len(piece):]
		switch {
		case err != nil:
			return n, err
		case r.err != nil:
			return n - len(piece), r.err
		}
	}
	return n, nil
}

// takeToWrite waits for the turn and for a piece that was left behind.
func (s *stream) takeToWrite() error {
	h := &s.write
	if err := s.take(h); err != nil {
		return err
	}
	for h.busy {
		r, err := s.await(h)
		if err == nil {
			err = r.err
		}
		if err != nil {
			h.give()
			return err
		}
	}
	s.endMu.Lock()
	defer s.endMu.Unlock()
	if s.eofSent {
		h.give()
		return errPipe
	}
	return nil
}

// put hands one piece to the library.
func (s *stream) put(piece []byte) error {
	if len(piece) > smallWrite {
		s.t.wire.AwaitRoom()
	}
	n, err := s.ch.Write(piece)
	s.t.wire.Flush()
	s.sent.Add(uint64(n))
	switch {
	case err == nil && !isDone(s.t.done): // the library reports a failed send only to the next one
		return nil
	case s.isClosed():
		return net.ErrClosed
	case err == nil:
		return s.t.Err()
	}
	return s.writeFailure()
}

// pickup is a ReadFrom under way.
type pickup struct {
	mu      sync.Mutex
	left    bool // the caller has gone
	putting bool // in the library, not in the source
	n       int64
}

// ReadFrom carries src into the stream until src ends. It returns early when the
// stream ends or its write deadline passes, but not out of a read from src: the
// caller ends that, as with io.Copy. From a *net.TCPConn or *net.UnixConn it reads
// without holding a buffer while nothing comes.
func (s *stream) ReadFrom(src io.Reader) (int64, error) {
	return s.pickUp(s.source(src), s.t.buffers.put)
}

// pickUp is ReadFrom with a function that gives one piece after the other, each of
// which is handed to release once it is not needed.
func (s *stream) pickUp(next func() ([]byte, int, error), release func([]byte)) (int64, error) {
	h := &s.write
	if err := s.takeToWrite(); err != nil {
		return 0, s.fault("write", err)
	}
	defer h.give()
	k := &pickup{}
	h.busy = true
	go func() { h.results <- result{err: s.pickUpAll(k, next, release)} }()
	var err error
	select {
	case r := <-h.results:
		h.busy = false
		return k.n, s.pickupError(r.err)
	case <-h.deadline.passed():
		err = errTimeout
	case <-s.closed:
		err = net.ErrClosed
	}
	k.mu.Lock()
	k.left = true
	if k.putting {
		n := k.n
		k.mu.Unlock()
		return n, s.fault("write", err)
	}
	k.mu.Unlock()
	<-h.results // the source's read ends as its owner pleases
	h.busy = false
	return k.n, s.fault("write", err)
}

// sourceError marks an error as the source's.
type sourceError struct{ error }

func (s *stream) pickupError(err error) error {
	var theirs sourceError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &theirs):
		return theirs.error
	}
	return s.fault("write", err)
}

func (s *stream) pickUpAll(k *pickup, next func() ([]byte, int, error), release func([]byte)) error {
	for {
		buf, n, err := next()
		if n > 0 {
			k.mu.Lock()
			if k.left {
				k.mu.Unlock()
				release(buf)
				return net.ErrClosed
			}
			k.putting = true
			k.mu.Unlock()

			perr := s.put(buf[:n])
			release(buf)

			k.mu.Lock()
			k.putting = false
			left := k.left
			if perr == nil {
				k.n += int64(n)
			}
			k.mu.Unlock()
			switch {
			case perr != nil:
				return perr
			case left:
				return nil
			}
		}
		switch {
		case err == io.EOF:
			return nil
		case err != nil:
			return sourceError{err}
		}
	}
}

// source returns a function that reads the next piece of src into a buffer of the
// transport, which it hands over only with data in it.
func (s *stream) source(src io.Reader) func() ([]byte, int, error) {
	switch c := src.(type) {
	case *net.TCPConn:
		return s.rawSource(c)
	case *net.UnixConn:
		return s.rawSource(c)
	}
	return func() ([]byte, int, error) {
		buf := s.t.buffers.get()
		n, err := src.Read(buf)
		if n <= 0 {
			s.t.buffers.put(buf)
			return nil, 0, err
		}
		return buf, n, err
	}
}
